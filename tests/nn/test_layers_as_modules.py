# SPDX-License-Identifier: BSD-3-Clause
"""RainbowLinear and RainbowConv2d as modules: files, dtypes, torch's own tools, two processes, and what is refused."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from here import assert_compiles_once, differing_bits, draw, fresh_python
from rainbow_layers import F64, FEW, Layer, convolution, explicit, linear
from safetensors.torch import load_file, save_file
from tolerance import REORDERED, assert_close_to_float64
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, RainbowLinear


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
    # Inputs, weights and z are rounded to eps / 2 each, in sums of up to 27 terms of size one.
    close = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps * float(wanted.detach().abs().max())}
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
