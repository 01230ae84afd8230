# SPDX-License-Identifier: BSD-3-Clause
"""W W^T of every linear layer, compared with the covariance of its output for white input, and the resulting ranks."""

import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.tracing.writers import writer_covariance

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")


def seeded(make: type[nn.Module], *sizes: int, **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*sizes, bias=False, **options).double()


WRITERS = {
    "linear": lambda: seeded(nn.Linear, 5, 4),
    "convolution": lambda: seeded(nn.Conv2d, 3, 4, 3, stride=2, dilation=2),
    "grouped": lambda: seeded(nn.Conv2d, 6, 4, 3, groups=2),
    "depthwise": lambda: seeded(nn.Conv1d, 6, 12, 3, groups=6),
    "transposed": lambda: seeded(nn.ConvTranspose1d, 3, 5, 3),
    "transposed, strides": lambda: seeded(nn.ConvTranspose2d, 3, 4, (3, 2), stride=(2, 3), dilation=(1, 2)),
    "transposed, groups": lambda: seeded(nn.ConvTranspose1d, 4, 6, 5, stride=2, groups=2),
    "transposed, depthwise": lambda: seeded(nn.ConvTranspose2d, 4, 4, 2, stride=2, groups=4),
}


def covariance(writer: nn.Module) -> Tensor:
    """The covariance of z for white input, at positions away from borders, in one period of the strides: the sum over
    all inputs of what each one gives alone."""
    space = {nn.Linear: 0, nn.Conv1d: 1, nn.ConvTranspose1d: 1}.get(type(writer), 2)
    shape = (getattr(writer, "in_channels", 5), *[14] * space)
    ones = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    z = writer(ones).detach()  # (inputs, d, *space)
    strides = writer.stride if getattr(writer, "transposed", False) else (1,) * space
    for axis, stride in enumerate(strides, 2):
        z = z.narrow(axis, z.shape[axis] // 2 - stride, stride)
    z = z.flatten(2) if space else z.unsqueeze(2)
    return torch.einsum("icp,idp->cd", z, z) / z.shape[2]


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
def test_it_is_the_covariance_for_white_input(make):
    writer = make()
    wanted, actual = covariance(writer), writer_covariance(writer)
    assert actual.shape == wanted.shape and actual.dtype == torch.float64
    assert (actual - wanted).abs().max() <= 1e-14 * wanted.abs().max()  # float64 sums of at most some hundred products


def sites(writer: nn.Module, x: Tensor) -> rf.RainbowModel:
    net = nn.Sequential(writer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    return rf.fit(net, x.double(), holdout=0)


def test_directions_of_a_depthwise_writer_are_its_channels():
    """Each channel has the variance of its own kernel, and no channel has a part of another one."""
    writer = seeded(nn.Conv2d, 8, 8, 3, groups=8)
    values, U = sites(writer, torch.randn(40, 8, 6, 6)).sites[0].directions(centred=False)
    wanted = writer.weight.detach().square().sum((1, 2, 3)).sort(descending=True)
    assert torch.allclose(values, wanted.values, rtol=1e-12)  # eigenvalues and sums of nine squares, in float64
    # Rounding divided by the gaps of the eigenvalues
    assert torch.allclose(U, torch.eye(8, dtype=torch.float64)[:, wanted.indices], atol=1e-12)


def test_energy_of_a_transposed_writer_is_that_of_its_outputs():
    """Eight channels that are combinations of two have rank 2, for any number of inputs."""
    writer = seeded(nn.ConvTranspose2d, 3, 8, 2, stride=2)
    with torch.no_grad():
        two = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        writer.weight.copy_(torch.einsum("icuv,dc->iduv", two, torch.linspace(-1, 2, 16).double().view(8, 2).sin()))
    model = sites(writer, torch.randn(40, 3, 5, 5))
    assert model.sample(explained_variance=1.0)[1].sites[0].rank == 2
    assert model.sample(rank="marchenko_pastur")[1].sites[0].rank == 2


def test_noise_of_grouped_weights_is_not_told():
    model = sites(seeded(nn.Conv2d, 8, 8, 3, groups=4), torch.randn(40, 8, 6, 6))
    with pytest.raises(ValueError, match="site '1' is written by a convolution of groups=4; the law is that of a full"):
        model.sample(rank="marchenko_pastur")
    assert model.sample(rank=3)[1].sites[0].rank == 3


def test_noise_of_a_transposed_writer_is_that_of_its_rows():
    """Three planted directions of 40 neurons that 5 channels write through kernels of 16 taps."""
    source = torch.Generator().manual_seed(0)
    writer = nn.ConvTranspose2d(5, 40, 4, stride=2, bias=False)
    rows = 0.1 * torch.randn(40, 80, generator=source)
    rows += torch.randn(40, 3, generator=source) @ torch.randn(3, 80, generator=source)
    writer.weight.data = rows.view(40, 5, 4, 4).transpose(0, 1).contiguous()
    net = nn.Sequential(writer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.randn(1, 5, 3, 3))
    report = rf.fit(net, torch.randn(60, 5, 3, 3, generator=source)).sample(rank="marchenko_pastur")[1]
    assert report.sites[0].rank == 3
