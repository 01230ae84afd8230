# SPDX-License-Identifier: BSD-3-Clause
"""Initial weights that orthogonalise: shapes of layers, groups, whole networks, and what is refused."""

import copy
import math
import warnings

import pytest
import torch
from architectures import ConvNeXt, Mixer, Transformer, build
from torch import Tensor, nn
from torch.nn import functional as F
from whitened_layers import EXACT, initialised, random, scaled, singular_values

from rainbow_fast import random_networks as rn
from rainbow_fast.data import digits
from rainbow_fast.networks import mlp, train
from rainbow_fast.networks.resnet import resnet_cifar

pytestmark = pytest.mark.usefixtures("one_thread")


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


GROUPED = [
    (nn.Conv2d(6, 9, 3, groups=3, padding=1), (30, 6, 6, 6)),
    (nn.Conv2d(4, 4, 3, groups=4, bias=False), (30, 4, 6, 6)),
    (nn.Conv2d(2, 8, 2, groups=2, padding="same", padding_mode="circular"), (30, 2, 5, 5)),
    (nn.Conv1d(4, 8, 3, groups=2, stride=2), (30, 4, 9)),
]


@pytest.mark.parametrize("layer, shape", GROUPED, ids=lambda value: str(value) if isinstance(value, nn.Module) else "")
@pytest.mark.parametrize("exponent", [1, 0.5])
def test_each_group_is_a_layer_of_its_own_patches(layer, shape, exponent):
    """Of groups whose channels differ in size, up to the gain, which is that of the layer."""
    layer, groups = layer.double(), layer.groups
    x = random(*shape) * torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    options = {"exponent": exponent, "eps": 0}
    z = initialised(layer, x, gain=3, **options)(x).detach()
    assert float(z.square().mean()) == pytest.approx(9, rel=1e-10)
    norms = []
    for part, outputs in zip(x.chunk(groups, 1), z.chunk(groups, 1), strict=True):
        alone = type(layer)(part.shape[1], outputs.shape[1], layer.kernel_size, layer.stride, layer.padding,
                            padding_mode=layer.padding_mode, dtype=torch.float64)  # fmt: skip
        wanted = initialised(alone, part, scale="frobenius", **options)(part).detach()
        norms.append(float(torch.linalg.vector_norm(outputs)))
        torch.testing.assert_close(outputs / norms[-1], wanted, **EXACT)
    spread = max(norms) / min(norms) - 1
    assert spread < 1e-9 if exponent == 1 else spread > 0.1  # every group is white at the same scale


def test_channels_of_a_depthwise_convolution_that_are_zero():
    """Their weights are those of directions without signal, whose size eps bounds; eps=0 is refused."""
    x = random(30, 3, 6, 6)
    x[:, 1] = 0
    layer = initialised(nn.Conv2d(3, 3, 3, groups=3, dtype=torch.float64), x)
    sizes = torch.linalg.vector_norm(layer.weight.detach().flatten(1), dim=1)
    patches = [F.unfold(x[:, [c]], 3).mT.flatten(0, 1) for c in range(3)]
    eps = 1e-5 * sum(float(H.square().sum()) for H in patches) / 27
    largest = torch.stack([torch.linalg.svdvals(H)[0] for H in patches]).square()
    torch.testing.assert_close(sizes / sizes[0], ((largest[0] + eps) / (largest + eps)).sqrt(), **EXACT)
    with pytest.raises(ValueError, match=r"^eps=0: layer '', group 1: its input on the batch has rank 0, wanted 1"):
        rn.init_orthogonal_(layer, x, eps=0)


def test_haar_factors_of_groups_are_independent():
    """The same input in both groups has different weights."""
    x = random(30, 3, 6, 6).repeat(1, 2, 1, 1)
    weight = initialised(nn.Conv2d(6, 8, 1, groups=2, dtype=torch.float64), x, factor="haar").weight
    assert not torch.allclose(weight[:4], weight[4:], rtol=0.1)


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


# Whole networks


SAMPLES = 200
LEAST = 1 / 10 - 1 / SAMPLES  # the smallest V^2 of SAMPLES samples of ten numbers, whatever the weights


def traced(architecture: str) -> nn.Module:
    """In train mode: batch norms have the statistics of the batch, which depend on the weights only."""
    mixer = architecture == "mixer"
    net = build(Mixer, width=12) if mixer else resnet_cifar(8, width=8, image_channels=1, seed=0)
    return net.double().train()


@pytest.mark.parametrize("architecture", ["resnet", "mixer"])
def test_every_layer_of_a_traced_network_is_white(architecture):
    """Over samples and positions, up to rounding; so the gap of the outputs falls to the least one."""
    x, net = digits()[0][:SAMPLES].double(), traced(architecture)
    before = rn.measure(net, x)
    rn.init_orthogonal_(net, x, eps=0)
    after = rn.measure(net, x)
    assert before[-1].mean() ** 2 > LEAST
    assert after[-1].mean() ** 2 == pytest.approx(LEAST, rel=1e-9)  # 1e-16, times conditions of moments of 1e6
    outputs: dict[str, Tensor] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda _, args, z, name=name: outputs.update({name: z.detach()}))
    with torch.no_grad():
        net(x)
    assert len(outputs) == {"resnet": 8, "mixer": 10}[architecture]
    for name, z in outputs.items():
        weight = net.get_parameter(f"{name}.weight")
        rows = (z.movedim(1, -1) if z.dim() == 4 else z).flatten(0, -2)
        s = torch.linalg.svdvals(rows)[: min(len(weight), weight[0].numel())]
        assert float(s[0] / s[-1]) == pytest.approx(1, rel=1e-6), name  # the root of that rounding, and more


@pytest.mark.parametrize("architecture", ["resnet", "mixer"])
def test_100_steps_of_training_leave_the_least_gap_as_the_square_of_the_rate(architecture):
    """V^2 of the outputs is least after `init_orthogonal_`, for any weights of all layers, so its derivative is 0.

    The steps move the weights by the rate, to first order, and V^2 by its square: half the rate leaves a fourth of the
    excess. An excess of the first order would give 2, one of the third order 8, and one by rounding (1e-16) about 1.
    The tolerance is the relative size of the next order at this rate.
    """
    x, y = (part[:SAMPLES] for part in digits()[:2])
    net, excess = rn.init_orthogonal_(traced(architecture), x.double(), eps=0), []
    for rate in (4e-7, 2e-7):
        trained = train(copy.deepcopy(net), x.double(), y, epochs=25, batch_size=50, lr=rate, momentum=0)
        gap = rn.measure(trained, x, measures=["orthogonality_gap"])[-1].mean()
        excess.append(gap**2 - LEAST)
    assert excess[1] > 1e-13  # a thousand times the rounding of V^2, whose terms are about 0.1
    assert excess[0] / excess[1] == pytest.approx(4, rel=0.05)


def test_a_network_with_depthwise_convolutions():
    """Without a warning, all of its layers get new weights."""
    net = build(ConvNeXt)
    before = {name: value.clone() for name, value in net.named_parameters() if value.dim() > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rn.init_orthogonal_(net, random(64, 3, 16, 16, dtype=torch.float32))
    assert not any(torch.equal(net.get_parameter(name), value) for name, value in before.items())


def test_layers_that_are_left_are_named():
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
    with pytest.raises(ValueError, match=r"^layers: layer 'deconvolution' cannot be initialised: of class ConvTr"):
        rn.init_orthogonal_(net, random(30, 4, dtype=torch.float32), layers=["deconvolution"])
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
    (
        {"batch": X * (torch.arange(20) > 5)[:, None], "factor": "slice"},
        ValueError,
        "^batch: layer '1': its first 5 rows are zero, wanted others with factor='slice'",
    ),
    ({"batch": X * (torch.arange(20) > 5)[:, None], "factor": "polar_slice"}, ValueError, "^batch: .* 5 rows are zero"),
    ({"batch": X * 0}, ValueError, "^layer '1': its input on the batch is zero"),
    ({"factor": "random"}, ValueError, "^factor='random': wanted one of identity, haar, slice, polar_slice"),
    ({"scale": "max"}, ValueError, "^scale='max': wanted one of rms, frobenius"),
    ({"exponent": 0}, ValueError, "^exponent=0: wanted 0 < exponent <= 1"),
    ({"exponent": 2}, ValueError, "^exponent=2: wanted 0 < exponent <= 1"),
    ({"exponent": "1"}, TypeError, "^exponent is a str: wanted a number"),
    ({"eps": -1e-9}, ValueError, "^eps=-1e-09: wanted 0 <= eps < infinity"),
    ({"eps": math.nan}, ValueError, "^eps=nan: wanted 0 <= eps < infinity"),
    ({"gain": 0}, ValueError, "^gain=0: wanted 0 < gain < infinity"),
    ({"seed": -1}, ValueError, "^seed=-1: wanted 0 <= seed < 2"),
    ({"seed": 2**63, "factor": "haar"}, ValueError, f"^seed={2**63}: wanted 0 <= seed < "),
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
