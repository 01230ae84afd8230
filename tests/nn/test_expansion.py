# SPDX-License-Identifier: BSD-3-Clause
"""RandomFeatures: values of an explicit G, addresses, what is stored and saved, and what is refused."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from here import assert_compiles_once, assert_same_for_threads, differing_bits, draw, random_state_untouched
from tolerance import REORDERED, assert_close_to_float64
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.nn import RainbowLinear, RandomFeatures
from rainbow_fast.nn.addresses import shared_keys, warn_if_shared
from rainbow_fast.ops.activations import ACTIVATIONS, HOMOGENEOUS

F64 = torch.float64
SMOOTH = [name for name in ACTIVATIONS if name not in ("sign", "step")]


def explicit(layer: RandomFeatures, z: Tensor, seed: int = 5, stream: int = 2) -> Tensor:
    """sigma(G z / sqrt(r)) with G as a tensor, in the dtype of z."""
    r, n = layer.rank, layer.n
    G = rf.gaussian(n, r, seed=rf.key(seed, stream, col_offset=2**33), dtype=F64).to(z.dtype)
    s = torch.einsum("nr,br...->bn...", G, z if layer.axis == 1 else z.movedim(-1, 1)) / math.sqrt(r)
    phi = ACTIVATIONS[layer.activation][0](s, layer.negative_slope)
    return phi if layer.axis == 1 else phi.movedim(1, -1)


def layer(rank: int = 7, n: int = 33, activation: str = "relu", **options) -> RandomFeatures:
    return RandomFeatures(rank, n, seed=5, stream=2, activation=activation, **options)


# --- values ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(9, 7), (3, 7, 5), (2, 7, 4, 3)], ids=str)
def test_values_of_an_explicit_matrix(activation: str, shape: tuple[int, ...]) -> None:
    features = layer(activation=activation, negative_slope=0.2)
    z = draw(*shape, dtype=F64)
    torch.testing.assert_close(features(z), explicit(features, z), **REORDERED)
    single = z.float()
    assert features(single).dtype == torch.float32
    assert_close_to_float64(features(single), explicit(features, single.double()), explicit(features, single), terms=7)


@pytest.mark.parametrize("shape", [(7,), (9, 7), (2, 4, 7), (2, 3, 4, 7), (0, 5, 7)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_channels_as_the_last_axis(shape: tuple[int, ...], activation: str) -> None:
    features, z = layer(activation=activation, axis=-1), draw(*shape, dtype=F64)
    rows = explicit(features, z.view(-1, 7))
    torch.testing.assert_close(features(z), rows.view(*shape[:-1], 33), **REORDERED)
    swapped = z.swapaxes(0, -1).contiguous().swapaxes(0, -1)  # the same numbers, with other strides
    torch.testing.assert_close(features(swapped), features(z), **REORDERED)


def test_other_columns_than_those_of_samples() -> None:
    """The neurons of a sample with this seed and stream begin at column 0; no number is shared."""
    own, of_sample = rf.gaussian(33, 7, seed=layer().key), rf.gaussian(33, 7, seed=5, stream=2)
    assert not torch.isin(own, of_sample).any()


@pytest.mark.parametrize("axis", [1, -1])
def test_preactivations(axis: int) -> None:
    features, z = layer(activation="tanh", axis=axis), draw(3, 7, 7, dtype=F64)
    torch.testing.assert_close(features.preactivations(z).tanh(), features(z), **REORDERED)


def test_narrower_layers_have_the_first_neurons() -> None:
    z = draw(9, 7)
    assert differing_bits(layer(n=20)(z), layer(n=33)(z)[:, :20].contiguous()) == 0


def test_another_rank_has_the_first_columns_of_the_same_rows() -> None:
    smaller = layer(activation="tanh", negative_slope=0.3, axis=-1).of_rank(4)
    assert (smaller.rank, smaller.n, smaller.activation, smaller.axis) == (4, 33, "tanh", -1)
    z = draw(9, 4, dtype=F64)
    torch.testing.assert_close(smaller(z), explicit(smaller, z), **REORDERED)


def test_same_bits_for_any_number_of_threads() -> None:
    features, z = layer(64, 300, "tanh"), draw(5, 64, 9, 9).requires_grad_()

    def run() -> tuple[Tensor, ...]:
        phi = features(z)
        return phi.detach(), torch.autograd.grad(phi, z, draw(*phi.shape, seed=1))[0]

    assert_same_for_threads(run)


# --- derivatives ---


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("activation", SMOOTH)
def test_derivatives(activation: str, axis: int) -> None:
    features = layer(3, 5, activation, axis=axis)
    z = draw(2, 3, 3, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(features, (z,))
    assert torch.autograd.gradgradcheck(features, (z,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_backward_pass_keeps_z_alone(activation: str) -> None:
    kept: list[tuple[int, ...]] = []
    z = draw(50, 7, 3, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        phi = layer(n=200, activation=activation)(z)
    assert phi.shape == (50, 200, 3, 3)
    assert {shape for shape in kept if math.prod(shape) > 4} == {(50, 7, 3, 3)}  # the key has 4 numbers


# --- dtypes ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_half_precision_is_rounded_once(dtype: torch.dtype, activation: str) -> None:
    features, z = layer(activation=activation), draw(9, 7).to(dtype)
    assert differing_bits(features(z), features(z.float()).to(dtype)) == 0
    with torch.autocast("cpu", dtype=dtype):
        assert features(z).dtype == dtype and features(z.float()).dtype == dtype
        # z of half precision is multiplied by 1 / sqrt(r) in its own precision: one more rounding of s, |s| < 4.
        torch.testing.assert_close(
            features(z).float(), features(z.float()).float(), rtol=0, atol=4 * torch.finfo(dtype).eps
        )


def test_converting_the_module_leaves_the_key() -> None:
    features = layer()
    for convert in (
        lambda m: m.half(),
        lambda m: m.to(F64),
        lambda m: m.to("meta"),
        lambda m: m.to_empty(device="cpu"),
    ):
        convert(features)
        assert features.key.dtype == torch.int64 and features.key.tolist() == [5, 2, 0, 2**33]
        assert features.key.device.type == "cpu"


def test_meta_tensors_have_the_shape() -> None:
    for z, shape in ((torch.empty(3, 7, 2, device="meta"), (3, 33, 2)), (torch.empty(3, 7, device="meta"), (3, 33))):
        assert layer()(z).shape == shape and layer()(z).device.type == "meta"


# --- what is stored ---


def test_state_dict_holds_the_key_and_nothing_else() -> None:
    features = layer(n=10_000)
    assert list(features.state_dict()) == ["key"] and not [*features.parameters(), *features.buffers()]
    other, z = RandomFeatures(7, 33, seed=1), draw(4, 7)
    assert differing_bits(other(z), layer()(z)) > 0
    other.load_state_dict(layer().state_dict())
    assert differing_bits(other(z), layer()(z)) == 0
    with random_state_untouched():
        layer()(z)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda module: torch.load(saved(module), weights_only=False),
        lambda module: loaded(module, torch.load(saved(module.state_dict()), weights_only=True)),
    ],
    ids=["deepcopy", "pickle", "state dict"],
)
def test_copies(copied: Callable[[nn.Module], RandomFeatures]) -> None:
    z, features = draw(4, 7), layer(activation="leaky_relu", negative_slope=0.3)
    other = copied(features)
    assert differing_bits(other(z), features(z)) == 0
    other.key[0] = 9
    assert features.key[0] == 5, "nothing is shared"


def saved(what: object) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    buffer.seek(0)
    return buffer


def loaded(like: RandomFeatures, state: dict[str, Tensor]) -> RandomFeatures:
    other = RandomFeatures(like.rank, like.n, seed=1, activation=like.activation, negative_slope=like.negative_slope)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, 'Missing key.*"key"'),
        ({"key": [5, 2, 0, 0]}, "key: key is a list: wanted a torch.Tensor"),
        ({"key": None}, "key: key is None: wanted a torch.Tensor"),
        ({"key": torch.zeros(4)}, r"key: seed is a torch.float32 tensor of shape \(4,\)"),
        ({"key": torch.zeros(3, dtype=torch.int64)}, r"key: seed is a torch.int64 tensor of shape \(3,\)"),
        ({"key": torch.zeros(2, 4, dtype=torch.int64)}, r"key: key has shape \(2, 4\): wanted one key, \(4,\)"),
        ({"key": rf.key(1), "other": torch.zeros(1)}, 'Unexpected key.*"other"'),
    ],
    ids=str,
)
def test_states_that_are_refused(state: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        layer().load_state_dict(state)


def test_a_missing_key_may_be_left_as_it_is() -> None:
    features = layer()
    assert features.load_state_dict({}, strict=False).missing_keys == ["key"]
    assert features.key.tolist() == [5, 2, 0, 2**33]


# --- torch's own tools ---


def test_compiles_once_for_all_keys() -> None:
    features, calls = layer(activation="tanh"), []
    for seed in (1, 2, 3):
        calls.append((draw(4, 7, seed=seed), rf.key(seed, col_offset=2**33)))

    def run(z: Tensor, key: Tensor) -> Tensor:
        features.key = key
        return features(z)

    assert_compiles_once(run, calls)
    features.key = calls[0][1]
    assert_compiles_once(features, [(z,) for z, _ in calls])


def test_function_transforms() -> None:
    features = layer(activation="tanh", axis=-1)
    z, tangent = draw(6, 7, dtype=F64), draw(6, 7, dtype=F64, seed=1)
    torch.testing.assert_close(torch.func.vmap(features)(z), features(z), **REORDERED)
    value, moved = torch.func.jvp(features, (z,), (tangent,))
    torch.testing.assert_close(value, features(z), **REORDERED)
    other = torch.func.vjp(features, z)[1](draw(6, 33, dtype=F64, seed=2))[0]
    # <w, J t> = <J^T w, t>
    torch.testing.assert_close((draw(6, 33, dtype=F64, seed=2) * moved).sum(), (other * tangent).sum(), **REORDERED)


# --- layers that share an address ---


def test_layers_with_one_address_are_listed() -> None:
    net = nn.Sequential(RandomFeatures(3, 4, seed=1), RandomFeatures(5, 9, seed=1), RandomFeatures(3, 4, seed=2))
    net.append(nn.Sequential(RandomFeatures(3, 4, seed=1), RandomFeatures(3, 4, seed=2, stream=1)))
    net.append(RainbowLinear(4, 5, 2, seed=2, stream=1)).append(net[0])  # a module at two places is one layer
    assert shared_keys(net) == [("0", "1", "3.0"), ("3.1", "4.features")]
    with pytest.warns(
        UserWarning, match="have the same neurons: '0', '1', '3.0'; '3.1', '4.features'; wanted another stream"
    ) as caught:
        warn_if_shared(net, stacklevel=1)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_layers_with_other_streams_are_not_listed() -> None:
    net = nn.Sequential(*(RandomFeatures(3, 3, seed=1, stream=stream) for stream in range(3)))
    assert shared_keys(net) == []
    warn_if_shared(net, stacklevel=1)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank=0: wanted rank >= 1"),
        ({"rank": 2.0}, TypeError, "rank=2.0: wanted an integer, got float"),
        ({"n": 0}, ValueError, "n=0: wanted n >= 1"),
        ({"n": "4"}, TypeError, "n='4': wanted an integer, got str"),
        ({"seed": -1}, ValueError, r"seed=-1: wanted 0 <= seed < 2\^63"),
        ({"seed": 2**63}, ValueError, r"seed=9223372036854775808: wanted 0 <= seed < 2\^63"),
        ({"seed": [1, 2]}, TypeError, r"seed=\[1, 2\]: wanted an integer, got list"),
        ({"seed": rf.key(1)}, TypeError, "seed=tensor.*: wanted an integer, got Tensor"),
        ({"stream": -1}, ValueError, r"stream=-1: wanted 0 <= stream < 2\^32"),
        ({"stream": 2**32}, ValueError, r"stream=4294967296: wanted 0 <= stream < 2\^32"),
        ({"activation": "swish"}, ValueError, "activation='swish': wanted one of identity, relu, abs"),
        ({"negative_slope": "a"}, TypeError, "negative_slope is a str: wanted a number"),
        ({"negative_slope": math.nan}, ValueError, "negative_slope=nan: wanted a finite number"),
        ({"axis": 0}, ValueError, "axis=0: wanted 1 or -1"),
        ({"axis": 2}, ValueError, "axis=2: wanted -1 <= axis <= 1"),
        ({"axis": True}, TypeError, "axis=True: wanted an integer, got bool"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RandomFeatures(**({"rank": 3, "n": 4, "seed": 0} | options))


@pytest.mark.parametrize(
    ("z", "axis", "error", "message"),
    [
        (torch.zeros(2, 4), 1, ValueError, r"z has shape \(2, 4\): wanted \(N, r, \*space\) with r = 3"),
        (torch.zeros(2, 4, 3), 1, ValueError, r"z has shape \(2, 4, 3\): wanted \(N, r, \*space\) with r = 3"),
        (torch.zeros(3), 1, ValueError, r"z has shape \(3,\): wanted \(N, r, \*space\) with r = 3"),
        (torch.zeros(2, 3, 4), -1, ValueError, r"z has shape \(2, 3, 4\): wanted \(\.\.\., r\) with r = 3"),
        (torch.zeros(()), -1, ValueError, r"z has shape \(\): wanted \(\.\.\., r\) with r = 3"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, TypeError, "z is torch.int64: wanted one of torch.float32"),
        (torch.zeros(2, 3, dtype=torch.complex64), 1, TypeError, "z is torch.complex64: wanted one of torch.float32"),
        ([0.0, 1.0, 2.0], 1, TypeError, "z is a list: wanted a torch.Tensor"),
    ],
    ids=str,
)
def test_inputs_that_are_refused(z: object, axis: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RandomFeatures(3, 4, seed=0, axis=axis)(z)


def test_homogeneous_activations_are_those_that_pass_factors() -> None:
    s = draw(50, dtype=F64)
    for name, (sigma, _) in ACTIVATIONS.items():
        equal = torch.allclose(sigma(3 * s, 0.2), 3 * sigma(s, 0.2))
        assert equal == (name in HOMOGENEOUS), name
