# SPDX-License-Identifier: BSD-3-Clause
"""RainbowLinear and RainbowConv2d: values of an explicit G, both ways of the forward pass, gradients, what is kept."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, level
from rainbow_layers import F64, FEW, Layer, convolution, explicit, linear
from tolerance import REORDERED, assert_close_to_float64
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, RainbowLinear
from rainbow_fast.nn.layers import gain
from rainbow_fast.ops.activations import ACTIVATIONS

LINEAR = {"rows": (9, 12), "tokens": (3, 5, 12), "one row": (12,)}
CONVOLUTIONS: dict[str, dict] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "same": {"kernel_size": (3, 2), "padding": "same"},
    "strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "dilated": {"kernel_size": 2, "dilation": 2},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
}


@contextmanager
def called(layer: Layer) -> Iterator[list[str]]:
    """Whether the forward pass samples weights; hooks would change the way that it takes."""
    calls: list[str] = []
    own = layer._apply_weights
    layer._apply_weights = lambda *args: calls.append("weights") or own(*args)  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del layer._apply_weights


def by_weights(layer: Layer, x: Tensor) -> Tensor:
    with called(layer) as calls:
        phi = layer(x)
    assert calls == ["weights"]
    return phi


# --- values ---


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_of_an_explicit_matrix(activation: str, bias: bool) -> None:
    for layer, x in (
        (linear(bias=bias, activation=activation, negative_slope=0.2), draw(9, 12, dtype=F64)),
        (convolution(bias=bias, activation=activation, negative_slope=0.2), draw(2, 3, 6, 7, dtype=F64)),
    ):
        wide = copy.deepcopy(layer).double()
        with called(wide) as calls:
            torch.testing.assert_close(wide(x), explicit(layer, x), **REORDERED)
        assert calls == []
        single = x.float()
        # The sums have 27 products, then 5.
        assert_close_to_float64(layer(single), explicit(layer, single.double()), explicit(layer, single), terms=27)


@pytest.mark.parametrize("shape", LINEAR.values(), ids=LINEAR)
def test_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    layer, x = linear(bias=True).double(), draw(*shape, dtype=F64)
    assert layer(x).shape == (*shape[:-1], 17)
    torch.testing.assert_close(layer(x), explicit(layer, x), **REORDERED)
    assert linear()(draw(0, 12)).shape == (0, 17) and linear()(draw(2, 0, 12)).shape == (2, 0, 17)


@pytest.mark.parametrize("geometry", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("few", [False, True], ids=["by z", "by weights"])
def test_convolutions(geometry: dict, few: bool) -> None:
    taps = math.prod(nn.modules.utils._pair(geometry["kernel_size"]))
    layer = convolution(**geometry, bias=True, **({"rank": 3 * taps, "n": 4} if few else {})).double()
    x = draw(6, 3, 9, 8, dtype=F64)
    with called(layer) as calls:
        torch.testing.assert_close(layer(x), explicit(layer, x), **REORDERED)
    assert calls == ["weights"] * few
    wide = layer.materialize()
    assert type(wide) is nn.Sequential and type(wide[0]) is nn.Conv2d
    torch.testing.assert_close(wide(x), layer(x), **REORDERED)


def test_neurons_of_a_narrower_layer_are_the_first_ones() -> None:
    narrow, wide, x = linear(n=8), linear(n=17), draw(9, 12)
    narrow.load_state_dict(wide.state_dict())
    assert differing_bits(narrow(x), wide(x)[:, :8].contiguous()) == 0


def test_sampled_neurons_have_the_covariance_of_the_layer() -> None:
    """E[w w^T] = W^T W / r: with n = 20,000 neurons each entry has a standard deviation of 1% of its scale."""
    layer = RainbowLinear(4, 20_000, 3, seed=1, dtype=F64)
    W, rows = layer.projection.weight.detach(), layer.sampled()[0].detach()
    wanted = W.T @ W / 3
    scale = float(wanted.diagonal().max())
    torch.testing.assert_close(rows.T @ rows / 20_000, wanted, rtol=0, atol=0.05 * scale)  # five deviations


# --- the way by sampled weights ---


@pytest.mark.parametrize("make, shape", FEW.values(), ids=FEW)
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_both_ways_agree(make: Callable[..., Layer], shape: tuple[int, ...], activation: str) -> None:
    layer, x = make(bias=True, activation=activation).double(), draw(*shape, dtype=F64).requires_grad_()
    ways = by_weights(layer, x), layer.features(layer.projection(x))
    torch.testing.assert_close(*ways, **REORDERED)
    wanted = [x, *layer.parameters()]
    above = draw(*ways[0].shape, dtype=F64, seed=1)
    for one, other in zip(*(torch.autograd.grad(phi, wanted, above) for phi in ways), strict=True):
        torch.testing.assert_close(one, other, **REORDERED)
    single, x = copy.deepcopy(layer).float(), x.detach().float()
    exact = explicit(layer.float(), x.double())
    assert_close_to_float64(by_weights(single, x), exact, single.features(single.projection(x)).detach(), terms=27)


def test_when_weights_are_sampled() -> None:
    """With P rows: n r m + P n m < P r (m + n) multiply-adds, and n <= r."""
    for rank, n, least in ((12, 6, 7), (12, 12, 13), (9, 6, 8), (12, 1, 2)):
        layer = linear(rank, n)
        for rows in (least - 1, least):
            cheaper = n * rank * 12 + rows * n * 12 < rows * rank * (12 + n)
            assert cheaper == (rows == least), "the example"
            with called(layer) as calls:
                layer(draw(rows, 12))
            assert calls == ["weights"] * cheaper, (rank, n, rows)
    with called(wide := linear(12, 13)) as calls:
        wide(draw(10_000, 12))
    assert calls == [], "phi would be kept for the backward pass, which is larger than z"


def test_parts_that_are_watched_or_replaced_are_called() -> None:
    x, seen = draw(60, 12), []
    for change in (
        lambda layer: layer.features.register_forward_hook(lambda *args: seen.append("features")),
        lambda layer: layer.features.register_forward_pre_hook(lambda *args: seen.append("features")),
        lambda layer: layer.projection.register_forward_hook(lambda *args: seen.append("projection")),
        lambda layer: layer.projection.register_forward_pre_hook(lambda *args: seen.append("projection")),
    ):
        layer = linear(12, 6)
        change(layer)
        with called(layer) as calls:
            layer(x)
        assert calls == []
    assert seen == ["features"] * 2 + ["projection"] * 2
    layer = linear(12, 6)
    layer.features.in_place_of = lambda z: -z
    assert torch.equal(layer(x), -layer.projection(x))
    layer = linear(12, 6)
    torch.nn.utils.parametrizations.spectral_norm(layer.projection)
    with called(layer.eval()) as calls:
        torch.testing.assert_close(layer(x), layer.features(layer.projection(x)))
    assert calls == []
    layer = linear(12, 6)
    layer.projection = nn.Sequential(nn.Linear(12, 12, bias=False))
    torch.testing.assert_close(layer(x), layer.features(layer.projection(x)))


# --- gradients ---


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda **o: RainbowLinear(4, 6, 3, seed=1, activation="tanh", **o), (5, 4)),
        (lambda **o: RainbowLinear(3, 2, 3, seed=1, activation="tanh", **o), (9, 3)),  # by weights
        (lambda **o: RainbowConv2d(2, 4, 2, 3, seed=1, activation="tanh", padding=1, **o), (2, 2, 3, 2)),
        (lambda **o: RainbowConv2d(1, 2, 2, 4, seed=1, activation="tanh", **o), (2, 1, 4, 4)),  # by weights
    ],
    ids=["linear", "linear by weights", "convolution", "convolution by weights"],
)
def test_derivatives(make: Callable[..., Layer], shape: tuple[int, ...], bias: bool) -> None:
    layer = make(bias=bias, dtype=F64)
    x, names = draw(*shape, dtype=F64).requires_grad_(), [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), (convolution, (4, 3, 9, 8)), *FEW.values()])
def test_what_the_backward_pass_keeps(make: Callable[..., Layer], shape: tuple[int, ...], activation: str) -> None:
    """Beside inputs and parameters: numbers for each position, r of them or n if these are fewer."""
    kept: list[Tensor] = []
    layer, x = make(activation=activation), draw(*shape).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        phi = layer(x)
    positions = phi.numel() // layer.features.n
    own = [x, *layer.parameters()]
    others = [t for t in kept if all(t.data_ptr() != mine.data_ptr() for mine in own)]
    few = min(layer.features.rank, layer.features.n)
    sizes = {
        "z": positions * layer.features.rank,
        "phi": positions * few,
        "W'": few * layer.projection.weight[0].numel(),
    }
    assert all(t.numel() <= max(sizes.values()) for t in others)


def test_no_matrix_of_all_neurons_is_stored() -> None:
    for layer in (linear(n=10_000, bias=True), convolution(n=10_000, bias=True)):
        tensors = [*layer.parameters(), *layer.buffers(), *layer.state_dict().values()]
        assert max(t.numel() for t in tensors) == layer.projection.weight.numel() and len(list(layer.buffers())) == 0


# --- bits ---


@pytest.mark.parametrize("make, shape", [(linear, (900, 12)), (convolution, (20, 3, 9, 8)), *FEW.values()])
def test_same_bits_for_any_number_of_threads(make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
    """Of what this package computes; torch's own products are given."""
    layer = make(bias=True)
    z = layer.projection(draw(*shape)).detach()
    assert_same_for_threads(lambda: (layer.features(z).detach(), *(t.detach() for t in layer.sampled())))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), *FEW.values()])
def test_instruction_sets_agree(make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
    layer, x = make(bias=True, activation="gelu"), draw(*shape)
    exact, plain = explicit(layer, x.double()), explicit(layer, x)
    for name in LEVELS:
        with level(name):
            assert_close_to_float64(layer(x), exact, plain, terms=27)


# --- initialisation ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gain(activation: str) -> None:
    s = torch.linspace(-12, 12, 100_001, dtype=F64)  # E sigma^2 as a sum, with an error below its spacing, 2.4e-4
    weight = torch.exp(-(s**2) / 2) / math.sqrt(2 * math.pi) * (s[1] - s[0])
    square = float((ACTIVATIONS[activation][0](s, 0.2) ** 2 * weight).sum())
    assert gain(activation, 0.2) == pytest.approx(square**-0.5, rel=1e-3)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("rank", [8, 64])
def test_twenty_layers_keep_the_size_of_activations(activation: str, rank: int) -> None:
    """The logarithm of each factor |phi_k|^2 / |phi_{k-1}|^2 has the variance 2 / r + 5 / n; three deviations of 20.

    tanh brings every size to its fixed point, and so stays in a smaller range.
    """
    torch.manual_seed(0)
    layers = [RainbowLinear(128, 128, rank, seed=0, stream=k, activation=activation) for k in range(20)]
    with torch.no_grad():
        phi = nn.Sequential(*layers)(draw(200, 128))
    square = float(phi.square().mean())
    # the size of relu's activations walks at random; 20 steps of variance 2 / r + 5 / n, three deviations
    bound = math.exp(3 * math.sqrt(20 * (2 / rank + 5 / 128))) if activation == "relu" else 10
    assert 1 / bound < square < bound


def test_drawn_by_the_seed_of_torch_and_again() -> None:
    layer, other = linear(bias=True), linear(bias=True)
    assert torch.equal(layer.projection.weight, other.projection.weight)
    other.reset_parameters()
    assert not torch.equal(layer.projection.weight, other.projection.weight) and not other.projection.bias.any()
    bound = math.sqrt(2 * 3 / 27)
    weight = convolution(rank=27).projection.weight.detach()
    assert float(weight.abs().max()) <= bound and float(weight.abs().max()) > 0.95 * bound


def test_pooling_is_a_part_of_the_layer() -> None:
    """In the layer, in its plain form, and in a sampled network, where it comes before the alignment."""
    x, pool = draw(80, 3, 8, 8, dtype=torch.float64), nn.MaxPool2d(2)
    torch.manual_seed(0)
    layer = rf.nn.RainbowConv2d(3, 12, 3, 4, seed=1, pool=pool, dtype=torch.float64)
    wanted = nn.MaxPool2d(2)(rf.nn.RandomFeatures(4, 12, seed=1)(layer.projection(x)))
    assert torch.equal(layer(x), wanted)
    torch.testing.assert_close(layer.materialize()(x), wanted)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(108, 2).double())
    assert rf.sites(net, x)[0].activation == "RandomFeatures + ReLU + MaxPool2d"
    sampled, _ = rf.sample(net, x, width=30, holdout=0.0)
    torch.testing.assert_close(sampled.materialize()(x), sampled(x))
    with pytest.raises(ValueError, match="pool=ReLU.*: wanted an nn.MaxPool1d, 2d or 3d that returns no indices"):
        rf.nn.RainbowConv2d(3, 12, 3, 4, seed=1, pool=nn.ReLU())
    with pytest.raises(ValueError, match="pool=MaxPool2d.*, and axis=1"):
        rf.nn.RandomFeatures(3, 12, seed=1, pool=pool, axis=-1)
    with pytest.raises(ValueError, match="pool=MaxPool2d.*: wanted"):
        rf.nn.RandomFeatures(3, 12, seed=1, pool=nn.MaxPool2d(2, return_indices=True))
