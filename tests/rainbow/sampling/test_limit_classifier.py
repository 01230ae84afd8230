# SPDX-License-Identifier: BSD-3-Clause
"""A new classifier at a site of infinitely many neurons: kernel ridge regression, its files, its plan."""

import math
import os
from collections.abc import Callable

import pytest
import torch
from here import draw
from stopping import Stop, stop_when
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.infinite_width import expected_kernel
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.rainbow.alignment.classifier import RIDGES
from rainbow_fast.rainbow.files.network_file import NETWORK

pytest.importorskip("scipy")
pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")

F64 = torch.float64


def perceptron() -> nn.Module:
    return mlp((10, 9, 7, 3), seed=0).double()


def flattened() -> nn.Module:
    return cnn((1, 3, 4), kernel_size=3, image_size=13, classes=3, seed=0).double()


def averaged() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    return nn.Sequential(*layers).double()


def data(reference: nn.Module) -> tuple[Tensor, Tensor]:
    """Images whose label depends on two of their pixels."""
    shape = {perceptron: (10,), flattened: (1, 13, 13), averaged: (1, 6, 6)}[reference]
    x = draw(60, *shape, dtype=F64)
    return x, (x.flatten(1)[:, :2] > 0).sum(1)


def embedded(network: rf.RainbowNetwork, x: Tensor) -> Tensor:
    """u at the last site, (N, positions, r)."""
    site, seen = network.site(network.sampled[-1]), []
    handle = site.register_forward_pre_hook(lambda _, inputs: seen.append(site.project(inputs[0])[0]))
    network(x)
    handle.remove()
    u = seen[0].detach()
    return u.flatten(2).movedim(1, 2) if u.dim() > 2 else u.unsqueeze(1)


def windows(side: int) -> Tensor:
    """The average over windows of two by two positions, (windows, positions)."""
    return nn.functional.avg_pool2d(torch.eye(side**2, dtype=F64).view(-1, 1, side, side), 2).flatten(1).T


@pytest.mark.parametrize("reference", [perceptron, flattened, averaged])
def test_it_is_kernel_ridge_regression(reference: Callable[[], nn.Module]) -> None:
    """The formula with the kernel of all pairs of positions, written out."""
    x, y = data(reference)
    network, report = rf.sample(reference(), (x, y), holdout=0, factor=math.inf, classifier="refit")
    test = draw(20, *x.shape[1:], dtype=F64, seed=1)
    u, v = embedded(network, x), embedded(network, test)
    pool = windows(4) if reference is averaged else torch.eye(u.shape[1], dtype=F64)
    K, k = (
        torch.einsum("fp,ipjq,fq->ij", pool, expected_kernel(s.flatten(0, 1), u.flatten(0, 1)).view(
            len(s), s.shape[1], len(u), u.shape[1]
        ), pool) / len(pool)
        for s in (u, v)
    )  # fmt: skip
    targets = nn.functional.one_hot(y, 3).double()
    centred = K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    assert report.ridge in RIDGES
    ridge = report.ridge * centred.diagonal().mean()
    alpha = torch.linalg.solve(centred + ridge * torch.eye(len(x), dtype=F64), targets - targets.mean(0))
    wanted = (k - K.mean(0)) @ alpha + targets.mean(0)
    # The jitter, 1e-11 of the diagonal, over the ridge, which is at least 1e-5 of it.
    torch.testing.assert_close(network(test), wanted, rtol=1e-5, atol=1e-5)
    right = float((network(x).argmax(1) == y).double().mean())
    assert report.accuracy["alignment"] == pytest.approx(right, abs=1e-12)


def test_it_is_the_limit_of_wide_features() -> None:
    """With one ridge for all, the outputs of n features differ by about n^-1/2: by 8 for widths that differ by 64."""
    x, y = data(perceptron)
    sites = ["2", "4"]
    widths = dict.fromkeys(sites, 20)
    model = rf.fit(perceptron(), (x, y), holdout=0)
    limit, report = model.sample(width=widths | {sites[-1]: math.inf}, classifier="refit")
    targets, wanted, errors = nn.functional.one_hot(y, 3).double(), limit(x).detach(), []
    for n in (2**8, 2**14):
        network, _ = model.sample(width=widths | {sites[-1]: n})
        site, seen = network.site(sites[-1]), []
        handle = site.register_forward_pre_hook(lambda _, z, site=site, seen=seen: seen.append(site.features(z[0])))
        network(x)
        handle.remove()
        f = (seen[0] - seen[0].mean(0)).detach()
        K = f @ f.T / n
        K.diagonal().add_(report.ridge * K.diagonal().mean())
        outputs = f @ f.T / n @ torch.linalg.solve(K, targets - targets.mean(0)) + targets.mean(0)
        errors.append(float((outputs - wanted).norm()))
    assert errors[1] < 0.3 * errors[0] < 0.3 * float(wanted.norm())


def test_fewer_images_are_nystroms_kernel() -> None:
    x, y = data(flattened)
    network, _ = rf.sample(flattened(), (x, y), holdout=0, factor=math.inf, limit_rows=25, classifier="refit")
    site = network.site(network.sampled[-1])
    positions = len(site.pooling)
    assert site.A.shape == (3, 25) and site.rows.shape == (25 * positions, 4)
    whole = embedded(network, x)
    for image in site.rows.view(25, -1):
        assert float((whole.flatten(1) - image).abs().sum(1).min()) < 1e-12  # the rounding of sums of some products


@pytest.mark.parametrize("reference", [perceptron, flattened, averaged])
@pytest.mark.parametrize("options", [{}, {"method": "calibrated", "rank": 3, "limit_rows": 30}])
def test_files_plans_and_continued_runs(tmp_path, reference: Callable[[], nn.Module], options: dict) -> None:
    x, y = data(reference)
    network = reference()
    options = {"factor": math.inf, "classifier": "refit", "holdout": 0} | options
    sampled, report = rf.sample(network, (x, y), **options)
    path = tmp_path / "limit.safetensors"
    rf.save(sampled, path)
    assert torch.equal(rf.load(path, network)(x), sampled(x))
    plan = rf.plan(network, (x, y), **options)
    assert 0 < os.path.getsize(path) - plan.disk_bytes < 4096  # the header
    assert plan.rest["classifier"].flops > 0
    stop = stop_when(lambda done, total, what: done == total)
    with pytest.raises(Stop):
        rf.sample(network, (x, y), **options, resume_dir=tmp_path / "run", progress=stop)
    for _ in range(2):  # the second time, every site is read
        again, of_resumed = rf.sample(network, (x, y), **options, resume_dir=tmp_path / "run")
        assert torch.equal(again(x), sampled(x)) and of_resumed.to_dict() == report.to_dict()


def test_damaged_pooling(tmp_path) -> None:
    x, y = data(flattened)
    sampled, _ = rf.sample(flattened(), (x, y), holdout=0, factor=math.inf, classifier="refit")
    path, site = tmp_path / "limit.safetensors", sampled.sampled[-1]
    name, rows = f"{site}.pooling", f"{site}.rows"
    rf.save(sampled, path)
    header, tensors = NETWORK.read(path)
    without = {k: v for k, v in tensors.items() if k != name}
    one, first = tensors[name][:1, :1], tensors[rows].view(len(x), -1, 4)[:, 0].contiguous()
    for change, message in (
        (without, "rows is torch.float64 of shape"),
        (tensors | {name: one}, "rows is torch.float64 of shape"),
        (without | {rows: first}, "pooling: wanted for images at a site of infinitely many neurons, and for no other"),
        (tensors | {name: one, rows: first}, f"site '{site}' has pooling of 1 positions, wanted {len(tensors[name])}"),
    ):
        NETWORK.write(path, header, change)
        with pytest.raises(ValueError, match=f"path: .* does not fit the reference: {message}"):
            rf.load(path, flattened())


class Viewing(nn.Module):
    """Flattens to a number of features that it names itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.activation, self.last = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.conv(x)).view(-1, 64))


def test_layers_that_need_their_channels() -> None:
    x, y = data(averaged)
    options = {"factor": math.inf, "classifier": "refit"}
    message = "it can be refit only if the layers before it accept any number of channels; .* accept only 4"
    model = rf.fit(Viewing().double(), (x, y), holdout=0)
    steps: list[str] = []
    with pytest.raises(ValueError, match=message):
        model.sample(**options, progress=lambda done, total, what: steps.append(what))
    assert steps == []
    with pytest.raises(ValueError, match=message):
        model.plan(**options)
