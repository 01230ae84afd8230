# SPDX-License-Identifier: BSD-3-Clause
"""Initial weights that orthogonalise: singular values in closed form, shapes of layers, and what is refused."""

import copy
import math
import warnings
from itertools import pairwise

import pytest
import torch
from architectures import ConvNeXt, Mixer, Transformer, build
from torch import Tensor, nn

from rainbow_fast import random_networks as rn
from rainbow_fast.data import digits
from rainbow_fast.networks import mlp, train
from rainbow_fast.networks.resnet import resnet_cifar

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATOR = torch.Generator().manual_seed(0)
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # identities of float64, for inputs of condition 1e3 and eigenvalues of 1e6


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR).to(dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)


def scaled(n: int, d: int) -> Tensor:
    """Samples whose singular values fall to a thousandth, in directions that are no axes."""
    return random(n, d) * torch.logspace(0, -3, d).double() @ torch.linalg.qr(random(d, d))[0]


def initialised(layer: nn.Module, x: Tensor, **options: object) -> nn.Module:
    return rn.init_orthogonal_(copy.deepcopy(layer), x, **options)


def singular_values(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.linalg.svdvals(layer(x).detach())


# The singular values of one layer


@pytest.mark.parametrize("factor", ["identity", "haar"])
@pytest.mark.parametrize("outputs", [8, 5, 13])
def test_singular_values(outputs, factor):
    """Exponent 1 makes all of them equal, exponent 1/2 takes their roots; of the leading ones, with fewer outputs."""
    n, d = 60, 8
    x, k = scaled(n, d), min(d, outputs)
    sigma = torch.linalg.svdvals(x)[:k]
    for exponent in (1.0, 0.5):
        layer = initialised(linear(d, outputs), x, exponent=exponent, factor=factor, eps=0)
        values = singular_values(layer, x)
        wanted = sigma ** (1 - exponent)
        wanted = wanted * math.sqrt(n * outputs) / torch.linalg.vector_norm(wanted)  # the outputs have mean square 1
        torch.testing.assert_close(values[:k], wanted, **EXACT)
        assert (values[k:] < 1e-12).all()  # rounding
    white = initialised(linear(d, outputs), x, factor=factor, eps=0)
    floor = math.sqrt(1 / k - 1 / n)  # of n samples that span k dimensions
    assert float(rn.orthogonality_gap(white(x).detach())) == pytest.approx(floor, rel=1e-9)


def test_orthonormal_samples_of_a_square_batch():
    """As many samples as units: the outputs of samples are orthogonal, and the gap vanishes."""
    x = scaled(7, 7)
    layer = initialised(linear(7, 7), x, eps=0)
    rounding = 1e-16 * float(torch.linalg.cond(x)) ** 2  # of H^T H, relative to its smallest eigenvalue
    assert float(rn.orthogonality_gap(layer(x).detach())) < 10 * rounding < 1e-4


def test_the_identity_factor_gives_the_polar_factor():
    x = scaled(40, 6)
    z = initialised(linear(6, 6), x, eps=0)(x).detach()
    U, _, Vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(z, U @ Vh * math.sqrt(40), rtol=1e-8, atol=1e-9)  # 1e-16 times the squared condition
    white = torch.linalg.qr(random(40, 6))[0]
    layer = initialised(linear(6, 6), white, eps=0)
    torch.testing.assert_close(layer.weight / layer.weight[0, 0], torch.eye(6).double(), **EXACT)


@pytest.mark.parametrize("factor", ["identity", "haar"])
def test_the_gap_decreases_strictly(factor):
    """For every exponent, and with eps: at each layer and along the exponents."""
    x = scaled(100, 12)
    for eps in (0, 1e-5, 1e-2):
        gaps = [float(rn.orthogonality_gap(x))]
        for exponent in (0.25, 0.5, 0.75, 1.0):
            z = initialised(linear(12, 12), x, exponent=exponent, factor=factor, eps=eps)(x).detach()
            gaps.append(float(rn.orthogonality_gap(z)))
        assert all(after < before for before, after in pairwise(gaps))


def test_eps_bounds_weak_directions():
    """The singular values of the outputs are s (s^2 + eps m)^(-1/2), up to the gain; m is the mean of s^2."""
    x, eps = scaled(50, 6), 1e-3
    s = torch.linalg.svdvals(x)
    wanted = s * (s.square() + eps * s.square().mean()) ** -0.5
    values = singular_values(initialised(linear(6, 6), x, eps=eps), x)
    torch.testing.assert_close(values / values[0], wanted / wanted[0], **EXACT)


def test_scales():
    x = scaled(50, 6)
    z = initialised(linear(6, 9), x, gain=3)(x)
    assert float(z.square().mean()) == pytest.approx(9, rel=1e-12)
    z = initialised(linear(6, 4), x, gain=3, scale="frobenius")(x)
    assert float(torch.linalg.matrix_norm(z)) == pytest.approx(3, rel=1e-12)


def test_a_slice_is_not_orthogonal():
    """The law of Jacobi: of n = 3 d, the squared singular values of a slice fill [0, 8/9], with mean 1/3.

    Of d = 300, the largest is below 8/9 by about d^(-2/3), and mean square and ratio are known to about 1/d.
    """
    d = 300
    x = random(3 * d, d)
    layer = initialised(linear(d, d), x, factor="slice", scale="frobenius", eps=0)
    s = singular_values(layer, x)
    U = torch.linalg.svd(x, full_matrices=False)[0]
    sliced = torch.linalg.svdvals(U[:d])
    torch.testing.assert_close(s, sliced / torch.linalg.vector_norm(sliced), rtol=1e-8, atol=1e-10)
    assert float(sliced[0].square()) == pytest.approx(8 / 9, abs=0.03) and sliced[0].square() < 8 / 9 + 0.005
    assert float(sliced.square().mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(2 - 2 * s.mean() / s.square().mean().sqrt()) == pytest.approx(0.240, abs=0.01)
    whole = initialised(linear(d, d), x, eps=0)
    floor = math.sqrt(1 / d - 1 / (3 * d))
    assert float(rn.orthogonality_gap(whole(x).detach())) == pytest.approx(floor, rel=1e-9)
    assert rn.orthogonality_gap(layer(x).detach()) > 1.3 * floor


# Layers


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(3, 5, 3, padding=1), (40, 3, 6, 6)),
        (nn.Conv2d(3, 4, 1, stride=2), (40, 3, 6, 6)),
        (nn.Conv2d(2, 30, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1)), (40, 2, 9, 7)),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), (40, 2, 6, 6)),
        (nn.Conv2d(2, 4, 2, padding="same"), (40, 2, 6, 6)),
        (nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=False), (40, 3, 11)),
        (nn.Linear(5, 4), (10, 7, 5)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_positions_are_rows(layer, shape):
    """The moments of the outputs over samples and positions are white, whatever the window."""
    layer, x = layer.double(), random(*shape) + 1
    z = initialised(layer, x, eps=0)(x).detach()
    rows = (z if isinstance(layer, nn.Linear) else z.movedim(1, -1)).flatten(0, -2)
    moments = rows.T @ rows / len(rows)
    k = min(len(layer.weight), layer.weight[0].numel())
    values = torch.linalg.eigvalsh(moments).flip(0)
    wanted = torch.zeros_like(values)
    wanted[:k] = len(values) / k
    torch.testing.assert_close(values, wanted, **EXACT)
    sliced = initialised(layer, x, eps=0, factor="slice")(x)
    assert float(sliced.square().mean()) == pytest.approx(1, rel=1e-10)


def test_layers_are_whitened_one_after_the_other():
    """Each by the outputs of those before it, which have their new weights."""
    x = scaled(200, 12)
    net = mlp((12, 10, 10, 6), seed=0).double()
    assert rn.init_orthogonal_(net, x, eps=0) is net
    h = x
    for layer in net:
        h = layer(h).detach()
        if isinstance(layer, nn.Linear):
            s = torch.linalg.svdvals(h)
            assert float(s[0] / s[-1]) == pytest.approx(1, rel=1e-9)
    chosen = mlp((12, 10, 10, 6), seed=0).double()
    before = copy.deepcopy(chosen.state_dict())
    rn.init_orthogonal_(chosen, x, layers=["3"])
    changed = [name for name, value in chosen.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["3.weight"]


def test_keys_dtypes_bits_and_random_state():
    x = random(64, 1, 8, 8, dtype=torch.float32)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        nets = [build(Mixer).to(dtype) for _ in range(3)]
        before = {name: (value.dtype, value.shape) for name, value in nets[0].state_dict().items()}
        state = torch.get_rng_state()
        for net, seed in zip(nets, (1, 1, 2), strict=True):
            rn.init_orthogonal_(net, x, factor="haar", seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        states = [net.state_dict() for net in nets]
        assert {name: (value.dtype, value.shape) for name, value in states[0].items()} == before
        assert all(torch.equal(states[0][name], states[1][name]) for name in before)
        assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
        assert all(p.requires_grad and p.grad is None for p in nets[0].parameters())


def test_biases():
    x, net = random(30, 4, dtype=torch.float32), mlp((4, 5, 3), bias=True, seed=0)
    kept = rn.init_orthogonal_(copy.deepcopy(net), x, keep_bias=True)
    assert torch.equal(kept[1].bias, net[1].bias) and torch.equal(kept[3].bias, net[3].bias)
    zero = rn.init_orthogonal_(net, x)
    assert not zero[1].bias.any() and not zero[3].bias.any()


def test_batch_norms_run_as_their_mode_says():
    """In train mode the layers after them see the statistics of the batch; running statistics do not change."""
    x = random(80, 6) * 3 + 2
    nets = [mlp((6, 5, 4), batch_norm="before", seed=0).double().train(mode) for mode in (True, False)]
    for net in nets:
        running = copy.deepcopy(net[2].state_dict())
        rn.init_orthogonal_(net, x, eps=0)
        assert all(torch.equal(value, running[name]) for name, value in net[2].state_dict().items())
        s = singular_values(copy.deepcopy(net), x)
        assert float(s[0] / s[-1]) == pytest.approx(1, rel=1e-9)
    assert not torch.allclose(nets[0][4].weight, nets[1][4].weight)
    assert nets[0].training and not nets[1].training


def test_unused_inputs():
    """Inputs that are always zero, as the border of digits: their weights are zero, and eps is needed for all."""
    x = random(40, 6)
    x[:, :3] = 0
    layer = initialised(linear(6, 3), x, eps=0)
    assert layer.weight[:, :3].abs().max() < 1e-12  # rounding
    assert float(singular_values(layer, x).std()) < 1e-9
    with pytest.raises(ValueError, match=r"^eps=0: layer '': its input on the batch has rank 3, wanted 6: another bat"):
        rn.init_orthogonal_(linear(6, 6), x, eps=0)
    s = singular_values(initialised(linear(6, 6), x), x)
    torch.testing.assert_close(s[:3] / s[0], torch.ones(3).double(), rtol=1e-4, atol=0)  # eps = 1e-5


# Whole networks


@pytest.mark.parametrize("architecture", ["resnet", "mixer"])
def test_gaps_before_and_after(architecture):
    """The gap of the outputs falls to its floor, and the mean gap of activations decreases.

    No theory says what 100 steps of training do to them: only the range is asserted.
    """
    x, y = (part[:400] for part in digits()[:2])
    net: nn.Module = resnet_cifar(8, width=8, image_channels=1, seed=0) if architecture == "resnet" else build(Mixer)
    tables = [rn.measure(net, x)]
    rn.init_orthogonal_(net, x)
    tables.append(rn.measure(net, x))
    train(net, x, y, epochs=25, batch_size=100, lr=0.01)  # 100 steps
    tables.append(rn.measure(net, x))
    before, after, trained = [[site.mean() for site in table if site.place != "z"] for table in tables]
    assert sum(after) < 0.95 * sum(before)
    floor = math.sqrt(1 / 10 - 1 / 400)
    assert floor - 1e-6 < after[-1] < floor + 0.06 < 0.5 < before[-1]  # eps leaves weak directions weaker
    assert all(0 <= gap < 1 for gap in trained)


def test_layers_that_are_left_are_named():
    x = random(64, 3, 16, 16, dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"left as they are: 'stage1.0.depthwise' \(groups=4, and outputs of diff"):
        rn.init_orthogonal_(build(ConvNeXt), x)
    with pytest.raises(ValueError, match=r"^layers: layer 'stage1.0.depthwise' cannot be initialised: groups=4, and"):
        rn.init_orthogonal_(build(ConvNeXt), x, layers=["stage1.0.depthwise"])
    with pytest.warns(UserWarning, match="parameters of class Transformer"):
        rn.init_orthogonal_(build(Transformer), random(64, *Transformer().image, dtype=torch.float32))

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.tied, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.again = nn.Linear(4, 4)
            self.again.weight = self.tied.weight
            self.computed = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
            self.deconvolution = nn.ConvTranspose1d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.tied(self.first(self.computed(x))))

    net = Several()
    before = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning) as caught:
        rn.init_orthogonal_(net, random(30, 4, dtype=torch.float32))
    text = str(caught[0].message)
    for part in (
        *("'tied' (its weight belongs to several layers)", "'again' (its weight belongs to several layers)"),
        "'computed' (its weight is computed from other parameters)",
        "'unused' (the forward does not call it as a module)",
        "'deconvolution' (of class ConvTranspose1d)",
    ):
        assert part in text
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["first.weight", "first.bias"]
    with pytest.raises(ValueError, match=r"^layers: cannot be initialised: 'unused' \(the forward does not call it"):
        rn.init_orthogonal_(net, random(30, 4, dtype=torch.float32), layers=["first", "unused"])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


X = torch.ones(20, 4) + torch.eye(20, 4)
BAD = [
    ({"batch": X * math.nan}, ValueError, "^batch is not finite"),
    ({"batch": X * math.inf}, ValueError, "^batch is not finite"),
    ({"batch": X + 0j}, TypeError, "^batch is torch.complex64: wanted real numbers, or integers"),
    ({"batch": X[0]}, ValueError, r"^batch has shape \(4,\): wanted samples \(n, ...\), n > 0"),
    ({"batch": X[:0]}, ValueError, r"^batch has shape \(0, 4\): wanted samples"),
    ({"batch": [1.0]}, TypeError, "^batch is a list: wanted a torch.Tensor"),
    (
        {"batch": X[:3]},
        ValueError,
        r"^batch: layer '1' \(4 inputs, 5 outputs\) reads 3 rows \(samples times positions\), wanted at least 4: with "
        "fewer, H\\^T H has rank 3 at most, and eps alone would set the scale of the other directions",
    ),
    ({"batch": X[:4], "factor": "slice"}, ValueError, "^batch: layer '1' .* wanted at least 5"),
    ({"batch": X * 0}, ValueError, "^layer '1': its input on the batch is zero"),
    ({"factor": "random"}, ValueError, "^factor='random': wanted one of identity, haar, slice"),
    ({"scale": "max"}, ValueError, "^scale='max': wanted one of rms, frobenius"),
    ({"exponent": 0}, ValueError, "^exponent=0: wanted 0 < exponent <= 1"),
    ({"exponent": 2}, ValueError, "^exponent=2: wanted 0 < exponent <= 1"),
    ({"exponent": "1"}, TypeError, "^exponent is a str: wanted a number"),
    ({"eps": -1e-9}, ValueError, "^eps=-1e-09: wanted 0 <= eps < infinity"),
    ({"eps": math.nan}, ValueError, "^eps=nan: wanted 0 <= eps < infinity"),
    ({"gain": 0}, ValueError, "^gain=0: wanted 0 < gain < infinity"),
    ({"seed": -1}, ValueError, "^seed=-1: wanted 0 <= seed < 2"),
    ({"seed": 0.5}, TypeError, "^seed=0.5: wanted an integer"),
    ({"keep_bias": 1}, TypeError, "^keep_bias=1: wanted True or False"),
    ({"layers": ["4"]}, ValueError, "^layers: no layer '4', wanted some of '1', '3'"),
    ({"layers": "1"}, TypeError, "^layers='1': wanted names of layers"),
    ({"layers": []}, ValueError, "^layers: none, wanted at least one name, or None for all"),
    ({"module": nn.ReLU()}, ValueError, "^module: no parameters, wanted a network with linear or convolutional layers"),
    ({"module": nn.LayerNorm(4)}, ValueError, "^module: no layer to initialise, wanted a Linear or a convolution"),
    ({"module": "net"}, TypeError, "^module: wanted an nn.Module, got str"),
    ({"module": nn.LazyLinear(4)}, ValueError, "^module: parameter 'weight' has no shape yet, wanted a module that"),
    ({"module": Branching()}, ValueError, r"^module: torch.fx cannot trace it \(line "),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_refused(change, error, message):
    """Nothing is overwritten."""
    net = mlp((4, 5, 3), bias=True, seed=0)
    before = copy.deepcopy(net.state_dict())
    arguments = {"module": net, "batch": X} | change
    with pytest.raises(error, match=message), warnings.catch_warnings():
        warnings.simplefilter("error")
        rn.init_orthogonal_(**arguments)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_layer_whose_input_overflows():
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[0].weight.fill_(math.inf)
    before["0.weight"] = net[0].weight.clone()
    with pytest.raises(ValueError, match="^layer '1': its input on the batch is not finite"):
        rn.init_orthogonal_(net, random(20, 4, dtype=torch.float32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_that_overflow():
    """Of inputs of 1e-6, whitening weights are about 1e6, more than float16 holds."""
    layer = nn.Linear(4, 4, bias=False, dtype=torch.float16)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"^layer '': weights of \S+ overflow torch.float16"):
        rn.init_orthogonal_(layer, 1e-6 * random(50, 4))
    assert torch.equal(layer.weight, before)
