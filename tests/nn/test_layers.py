# SPDX-License-Identifier: BSD-3-Clause
"""RainbowLinear and RainbowConv2d: values of an explicit G, both ways of the forward pass, gradients, what is kept."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from here import (
    BACKENDS,
    LEVELS,
    assert_compiles_once,
    assert_same_for_threads,
    differing_bits,
    draw,
    fresh_python,
    level,
)
from safetensors.torch import load_file, save_file
from tolerance import REORDERED, assert_close_to_float64
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, RainbowLinear
from rainbow_fast.nn.layers import gain
from rainbow_fast.ops.activations import ACTIVATIONS

F64 = torch.float64
Layer = RainbowLinear | RainbowConv2d

# Each with inputs for which the usual way, through z, is cheaper; FEW with inputs for which sampled weights are.
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


def linear(rank: int = 5, n: int = 17, **options) -> RainbowLinear:
    torch.manual_seed(0)
    return biased(RainbowLinear(12, n, rank, seed=5, stream=2, **options))


def convolution(kernel_size: int | tuple[int, int] = 3, rank: int = 5, n: int = 17, **options) -> RainbowConv2d:
    torch.manual_seed(0)
    return biased(RainbowConv2d(3, n, kernel_size, rank, seed=5, stream=2, **options))


def biased(layer: Layer) -> Layer:
    if layer.projection.bias is not None:
        nn.init.normal_(layer.projection.bias)
    return layer


FEW = {  # 60 samples, or maps
    "linear": (lambda **options: linear(12, 6, **options), (60, 12)),
    "tokens": (lambda **options: linear(12, 6, **options), (4, 15, 12)),
    "convolution": (lambda **options: convolution(3, 27, 6, padding=1, **options), (4, 3, 9, 8)),
}


def explicit(layer: Layer, x: Tensor) -> Tensor:
    """sigma(G (W x + b) / sqrt(r)) with G as a tensor, in the dtype of x."""
    r, n = layer.features.rank, layer.features.n
    G = rf.gaussian(n, r, seed=rf.key(5, 2, col_offset=2**33), dtype=F64).to(x.dtype)
    z = copy.deepcopy(layer.projection).to(x.dtype)(x)
    s = (z @ G.T if isinstance(layer, RainbowLinear) else torch.einsum("nr,brhw->bnhw", G, z)) / math.sqrt(r)
    return ACTIVATIONS[layer.features.activation][0](s, layer.features.negative_slope)


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
    rank = 3 * math.prod(
        geometry["kernel_size"] if isinstance(geometry["kernel_size"], tuple) else [geometry["kernel_size"]] * 2
    )
    layer = convolution(**geometry, bias=True, **({"rank": rank, "n": 4} if few else {})).double()
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
    """Each factor |phi_k|^2 / |phi_{k-1}|^2 is 1 + O(1 / sqrt(r) + 1 / sqrt(n)): at r = 8, 20 of them stay within e^3.

    tanh brings every size to its fixed point, and so stays in a smaller range.
    """
    torch.manual_seed(0)
    layers = [RainbowLinear(128, 128, rank, seed=0, stream=k, activation=activation) for k in range(20)]
    with torch.no_grad():
        phi = nn.Sequential(*layers)(draw(200, 128))
    square = float(phi.square().mean())
    # the size of relu's activations walks at random; 20 steps of variance 5 / r + 5 / n, three deviations
    bound = math.exp(3 * math.sqrt(20 * (5 / rank + 5 / 128))) if activation == "relu" else 10
    assert 1 / bound < square < bound


def test_drawn_by_the_seed_of_torch_and_again() -> None:
    layer, other = linear(bias=True), linear(bias=True)
    assert torch.equal(layer.projection.weight, other.projection.weight)
    other.reset_parameters()
    assert not torch.equal(layer.projection.weight, other.projection.weight) and not other.projection.bias.any()
    bound = math.sqrt(2 * 3 / 27)
    weight = convolution(rank=27).projection.weight.detach()
    assert float(weight.abs().max()) <= bound and float(weight.abs().max()) > 0.95 * bound


# --- modules ---


@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), (convolution, (4, 3, 9, 8)), *FEW.values()])
def test_materialize(make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
    for bias, activation in ((False, "relu"), (True, "leaky_relu"), (True, "erf")):
        layer, x = make(bias=bias, activation=activation, negative_slope=0.2, dtype=F64).eval(), draw(*shape, dtype=F64)
        plain = layer.materialize()
        assert (plain[0].bias is not None) == bias and not plain.training and plain[0].weight.requires_grad
        assert plain[0].weight.data_ptr() != layer.projection.weight.data_ptr()
        torch.testing.assert_close(plain(x), layer(x), **REORDERED)
    with torch.autocast("cpu", torch.bfloat16):
        assert make().materialize()[0].weight.dtype == torch.float32
    assert make(dtype=torch.bfloat16).materialize()[0].weight.dtype == torch.bfloat16


def test_state_dict(tmp_path) -> None:
    layer, x = linear(bias=True), draw(60, 12)
    assert list(layer.state_dict()) == ["projection.weight", "projection.bias", "features.key"]
    assert list(linear().state_dict()) == ["projection.weight", "features.key"]
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    torch.save(layer, tmp_path / "whole.pt")
    states = load_file(tmp_path / "layer.safetensors"), torch.load(tmp_path / "layer.pt", weights_only=True)
    copies = [torch.load(tmp_path / "whole.pt", weights_only=False), copy.deepcopy(layer)]
    for state in states:
        other = RainbowLinear(12, 17, 5, seed=9, bias=True)
        assert not torch.equal(other(x), layer(x))
        other.load_state_dict(state)
        copies.append(other)
    with torch.device("meta"):
        empty = RainbowLinear(12, 17, 5, seed=9, bias=True)
    empty.load_state_dict(states[0], assign=True)
    for other in (*copies, empty):
        assert differing_bits(other(x), layer(x)) == 0


def test_a_layer_for_another_device_keeps_its_key() -> None:
    layer = RainbowConv2d(3, 17, 3, 5, seed=5, stream=2, device="meta")
    assert layer(torch.empty(2, 3, 9, 9, device="meta")).shape == (2, 17, 7, 7)
    assert layer.features.key.tolist() == [5, 2, 0, 2**33]
    assert layer.to_empty(device="cpu").features.key.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), (convolution, (4, 3, 9, 8)), *FEW.values()])
def test_half_precision(make: Callable[..., Layer], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, x = make(bias=True), draw(*shape)
    wanted = layer(x)
    # Inputs, weights and z are rounded, to 2^-8 for bfloat16, in sums of up to 27 terms of size one.
    close = {"rtol": 0, "atol": 2**-5 * float(wanted.abs().max())}
    for phi in (copy.deepcopy(layer).to(dtype)(x.to(dtype)), under_autocast(layer, x, dtype)):
        assert phi.dtype == dtype
        torch.testing.assert_close(phi.float(), wanted, **close)


def under_autocast(layer: Layer, x: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=dtype):
        phi = layer(x)
    phi.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    return phi


# --- torch's own tools ---


@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), *FEW.values()])
def test_function_transforms(make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
    layer, x = make(bias=True, activation="tanh", dtype=F64), draw(*shape, dtype=F64)
    state, parameters = layer.state_dict(), dict(layer.named_parameters())
    call = lambda values, x: torch.func.functional_call(layer, values, (x,))  # noqa: E731
    assert torch.equal(call(state, x), layer(x))
    other = state | {"features.key": rf.key(8, col_offset=2**33)}
    assert not torch.equal(call(other, x), layer(x)) and layer.features.key.tolist()[0] == 5
    batches = torch.stack([x, -x])
    torch.testing.assert_close(torch.func.vmap(layer)(batches), torch.stack([layer(x), layer(-x)]), **REORDERED)
    loss = lambda values, x: call(values, x).square().sum()  # noqa: E731
    both = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, batches)
    value, moved = torch.func.jvp(lambda values: loss(values, x), (parameters,), (parameters,))
    layer.zero_grad()
    loss(parameters, x).backward()
    slope = sum((p * p.grad).sum() for p in layer.parameters())
    torch.testing.assert_close(moved, slope, **REORDERED)
    for name, p in layer.named_parameters():
        torch.testing.assert_close(both[name][0], p.grad, rtol=1e-10, atol=1e-10)  # sums of some hundred terms


@pytest.mark.slow
@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), (convolution, (4, 3, 9, 8)), *FEW.values()])
def test_compiles_once(make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
    layer = make(bias=True)

    def run(x: Tensor, key: Tensor) -> Tensor:
        layer.features.key = key
        return layer(x)

    assert_compiles_once(run, [(draw(*shape, seed=s), rf.key(s, col_offset=2**33)) for s in range(3)])


@pytest.mark.parametrize("make, shape", [(linear, (60, 12)), FEW["linear"]])
def test_exports_with_any_number_of_rows(make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
    layer, x = make(bias=True), draw(*shape)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=2)},)).module()
    for rows in (2, 60, 500):
        y = draw(rows, 12)
        assert_close_to_float64(exported(y), explicit(layer, y.double()), explicit(layer, y), terms=27)


TRAINED = """
import sys, torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from rainbow_fast.nn import RainbowConv2d, RainbowLinear

rank, file, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(rank)  # other weights, which DDP replaces by those of rank 0
net = nn.Sequential(
    RainbowConv2d(2, 12, 3, 4, seed=1, bias=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    RainbowLinear(12, 9, 12, seed=1, stream=1), nn.Linear(9, 3),
).double()
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
net = DistributedDataParallel(net)
before = {name: value.clone() for name, value in net.module.state_dict().items()}
x = torch.randn(40, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
net(x[20 * rank:20 * (rank + 1)]).square().mean().backward()
torch.save((before, {name: p.grad for name, p in net.module.named_parameters()}), f"{out}/{rank}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_of_two_processes(tmp_path) -> None:
    """Each has half of the batch; both end with the gradient of the whole, which is computed here."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(fresh_python, TRAINED, rank, tmp_path / "store", tmp_path) for rank in range(2)]
        for run in runs:
            run.result()
    (before, grads), (also, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    net = nn.Sequential(
        RainbowConv2d(2, 12, 3, 4, seed=1, bias=True),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(RainbowLinear(12, 9, 12, seed=1, stream=1), nn.Linear(9, 3)),
    ).double()
    net.load_state_dict(before)
    x = torch.randn(40, 2, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    net(x).square().mean().backward()
    for name, p in net.named_parameters():
        assert torch.equal(before[name], also[name]) and torch.equal(grads[name], others[name])
        torch.testing.assert_close(grads[name], p.grad, **REORDERED)


def test_a_network_of_layers_learns() -> None:
    """Both kinds of layers, by the whole of autograd: 60 steps on random labels bring the loss to a tenth."""
    torch.manual_seed(0)
    net = nn.Sequential(
        RainbowConv2d(2, 64, 3, 16, seed=1, bias=True),
        *(nn.MaxPool2d(2), nn.Flatten()),
        *(RainbowLinear(256, 64, 32, seed=1, stream=1), nn.Linear(64, 3)),
    )
    x, y = draw(40, 2, 6, 6), torch.arange(40) % 3
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(net(x), y)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 10


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features=0: wanted in_features >= 1"),
        ({"in_features": 3.0}, TypeError, "in_features=3.0: wanted an integer, got float"),
        ({"out_features": 0}, ValueError, "out_features=0: wanted out_features >= 1"),
        ({"rank": 0}, ValueError, "rank=0: wanted rank >= 1"),
        ({"rank": 5}, ValueError, "rank=5: wanted at most 4, the inputs of one neuron"),
        ({"rank": True}, TypeError, "rank=True: wanted an integer, got bool"),
        ({"seed": -1}, ValueError, r"seed=-1: wanted 0 <= seed < 2\^63"),
        ({"stream": 2**32}, ValueError, r"stream=4294967296: wanted 0 <= stream < 2\^32"),
        ({"activation": "swish"}, ValueError, "activation='swish': wanted one of identity"),
        ({"bias": 1}, TypeError, "bias=1: wanted True or False"),
    ],
    ids=str,
)
def test_arguments_of_a_linear_layer_that_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RainbowLinear(**({"in_features": 4, "out_features": 6, "rank": 2, "seed": 0} | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels=0: wanted in_channels >= 1"),
        ({"out_channels": 0}, ValueError, "out_channels=0: wanted out_channels >= 1"),
        ({"rank": 37}, ValueError, "rank=37: wanted at most 36, the inputs of one neuron"),
        ({"rank": 9, "kernel_size": (1, 2)}, ValueError, "rank=9: wanted at most 8, the inputs of one neuron"),
        ({"kernel_size": 0}, ValueError, "kernel_size=0: wanted kernel_size >= 1"),
        ({"kernel_size": 2.0}, TypeError, "kernel_size=2.0: wanted an integer, got float"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size=\(3, 3, 3\): wanted one integer or two"),
        ({"bias": None}, TypeError, "bias=None: wanted True or False"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode"),
    ],
    ids=str,
)
def test_arguments_of_a_convolution_that_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RainbowConv2d(**({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "rank": 2, "seed": 0} | options))


def test_inputs_that_are_refused() -> None:
    for layer in (convolution(), FEW["convolution"][0]()):  # one map alone has the shape of rows
        with pytest.raises(ValueError, match=r"x has shape \(3, 9, 9\): wanted \(N, in, H, W\)"):
            layer(draw(3, 9, 9))
        with pytest.raises(TypeError, match="x is a list: wanted a torch.Tensor"):
            layer([1.0])


def test_sides_of_a_kernel_as_a_list() -> None:
    layer = RainbowConv2d(3, 17, [3, 2], 18, seed=5)
    assert layer.projection.kernel_size == (3, 2)


def test_layers_of_one_network_have_other_neurons() -> None:
    layers = [RainbowLinear(4, 4, 4, seed=0, stream=stream) for stream in range(3)]
    rows = [rf.gaussian(4, 4, seed=layer.features.key) for layer in layers]
    assert all(not torch.isin(a, b).any() for a, b in pairwise(rows))
