# SPDX-License-Identifier: BSD-3-Clause
"""Arguments are read in one strict way, in every function."""

import numpy as np
import pytest
import torch
from here import draw
from torch import nn

import rainbow_fast as rf
from rainbow_fast import arguments
from rainbow_fast.analysis.convergence import kernel_convergence, site_features
from rainbow_fast.data import batches
from rainbow_fast.infinite_width.kernels import empirical_kernel
from rainbow_fast.networks import mlp, train

X = draw(40, 6)
NETWORK = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_integers_of_python_and_numpy() -> None:
    for value in (3, np.int64(3), np.uint8(3), np.int16(3)):
        assert arguments.integer("n", value) == 3 and type(arguments.integer("n", value)) is int


@pytest.mark.parametrize(
    "value", [3.0, np.float64(3), "3", b"3", True, np.True_, None, [3], torch.tensor(3), 3 + 0j], ids=repr
)
def test_nothing_else_is_an_integer(value: object) -> None:
    with pytest.raises(TypeError, match=r"^n=.*: wanted an integer, got"):
        arguments.integer("n", value)


def test_ranges() -> None:
    for least, most, value, wanted in (
        (0, None, -1, r"n=-1: wanted n >= 0"),
        (1, 5, 6, r"n=6: wanted 1 <= n <= 5"),
        (0, 2**63 - 1, 2**63, r"n=\d+: wanted 0 <= n < 2\^63"),
    ):
        with pytest.raises(ValueError, match=wanted):
            arguments.integer("n", value, least, most)


def test_bytes() -> None:
    assert arguments.bytes_of("memory_budget", 2e9) == 2 * 10**9 == arguments.bytes_of("memory_budget", np.float64(2e9))
    assert arguments.bytes_of("memory_budget", np.int64(7)) == 7
    for value in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"memory_budget=.*: wanted a whole number of bytes"):
            arguments.bytes_of("memory_budget", value)
    for value in ("8G", True, None):
        with pytest.raises(TypeError, match=r"memory_budget=.*: wanted an integer"):
            arguments.bytes_of("memory_budget", value)
    with pytest.raises(ValueError, match=r"memory_budget=-1: wanted memory_budget >= 0"):
        arguments.bytes_of("memory_budget", -1)


def test_numbers_and_flags() -> None:
    assert arguments.number("scale", np.float32(0.5)) == 0.5 and arguments.number("scale", 2) == 2
    for value, kind in ((None, "None"), ("1", "a str"), (True, "a bool"), (torch.ones(()), "a torch.Tensor")):
        with pytest.raises(TypeError, match=rf"scale is {kind}: wanted a number"):
            arguments.number("scale", value)
    with pytest.raises(TypeError, match=r"center='a': wanted True or False"):
        arguments.flag("center", "a")


DOORS = {
    "width": lambda v: rf.fit(NETWORK, X).sample(width=v),
    "width by site": lambda v: rf.fit(NETWORK, X).sample(width={"1": v}),
    "rank": lambda v: rf.fit(NETWORK, X).sample(rank=v),
    "seed": lambda v: rf.fit(NETWORK, X).sample(seed=v),
    "network_index": lambda v: rf.fit(NETWORK, X).sample(network_index=v),
    "max_samples": lambda v: rf.fit(NETWORK, X, max_samples=v).sample(),
    "procrustes_iterations": lambda v: rf.fit([NETWORK, NETWORK], X, procrustes_iterations=v),
    "images": lambda v: rf.plan(NETWORK, X[:1], images=v),
    "rows": lambda v: rf.gaussian(v, 2, seed=1),
    "cols": lambda v: rf.gaussian(2, v, seed=1),
    "seed of an op": lambda v: rf.gaussian(2, 2, seed=v),
    "seed in a list": lambda v: rf.gaussian(2, 2, seed=[1, v]),
    "stream": lambda v: rf.sample_project_align(2, X, seed=1, stream=v),
    "row_offset": lambda v: rf.random_features(X, 2, seed=1, row_offset=v),
    "col_offset": lambda v: rf.gaussian(2, 2, seed=1, col_offset=v),
    "n": lambda v: rf.random_features(X, v, seed=1),
    "n of covariance": lambda v: rf.random_features_covariance(X, X, v, seed=1),
    "n in a list": lambda v: rf.random_features_covariance(X, X, [2, v], seed=1),
    "n of sample_project_align": lambda v: rf.sample_project_align(v, X, seed=1),
    "patch": lambda v: rf.cross_covariance(X.view(40, 1, 2, 3), patch=v),
    "n of a kernel": lambda v: empirical_kernel(X, v, seed=1),
    "networks": lambda v: kernel_convergence(X, [2, 4], networks=v),
    "samples": lambda v: site_features(rf.fit(NETWORK, X).sample()[0], X, samples=v),
    "widths": lambda v: kernel_convergence(X, [2, v], networks=2),
    "sizes": lambda v: mlp((6, v, 3)),
    "batch_size": lambda v: batches(X, batch_size=v),
    "epochs": lambda v: train(mlp((6, 4, 3)), X, torch.zeros(40, dtype=torch.int64), epochs=v),
}


@pytest.mark.filterwarnings("ignore:site .*")
@pytest.mark.parametrize(("name", "call"), DOORS.items(), ids=DOORS)
def test_integers_at_every_door(name: str, call) -> None:
    call(np.int64(3))
    for value in (3.0, "3", True, np.array([3, 4])):
        with pytest.raises(TypeError, match=rf"^{name.split()[0]}.*: wanted an integer, got"):
            call(value)


@pytest.mark.filterwarnings("ignore:site .*")
def test_bytes_may_be_floats_that_are_whole() -> None:
    model = rf.fit(NETWORK, X, memory_budget=2e9)
    model.sample(memory_budget=2e9)
    with pytest.raises(ValueError, match="memory_budget=0.5: wanted a whole number of bytes"):
        model.sample(memory_budget=0.5)


NOT_TENSORS = [np.ones((3, 2), np.float32), [[1.0, 2.0]], None, 3, 1.5]
TENSORS = {
    "x": lambda t: rf.cross_covariance(t),
    "x of covariance": lambda t: rf.random_features_covariance(t, X, 4, seed=1),
    "x of _": lambda t: rf.cross_covariance_(torch.zeros(2, 2, dtype=torch.float64), t),
    "y in a list": lambda t: rf.cross_covariance(X, [X, t]),
    "out": lambda t: rf.cross_covariance_(t, X),
    "M": rf.polar,
    "M of _": rf.polar_,
    "L": lambda t: rf.sample_project_align(3, t, seed=1),
    "out of sample": lambda t: rf.sample_project_align_(t, X, seed=1),
    "u": lambda t: rf.random_features(t, 3, seed=1),
    "u of covariance": lambda t: rf.random_features_covariance(X, t, 3, seed=1),
    "u of projection": lambda t: rf.random_features_projection(t, X, seed=1),
    "A of projection": lambda t: rf.random_features_projection(X, [X.T[:2], t], seed=1),
}


@pytest.mark.parametrize(("name", "call"), TENSORS.items(), ids=TENSORS)
def test_what_is_no_tensor_is_named(name: str, call) -> None:
    for value in NOT_TENSORS:
        with pytest.raises(TypeError, match=rf"^{name[0] if name[0] != 'o' else 'out'} is .*: wanted a torch.Tensor"):
            call(value)


OPTIONAL = {
    "A": lambda t: rf.sample_project_align(3, X, t, seed=1),
    "shift": lambda t: rf.random_features(X, 3, shift=t, seed=1),
    "G": lambda t: rf.random_features(X, 3, G=t),
    "y": lambda t: rf.cross_covariance(X, t),
}


@pytest.mark.parametrize(("name", "call"), OPTIONAL.items(), ids=OPTIONAL)
def test_what_may_be_left_out_is_named(name: str, call) -> None:
    for value in (np.ones(3), 3, "x"):
        with pytest.raises(TypeError, match=rf"^{name} is .*: wanted a torch.Tensor"):
            call(value)


NUMBERS = {
    "scale": lambda v: rf.sample_project_align(3, X, seed=1, scale=v),
    "scale of features": lambda v: rf.random_features(X, 3, seed=1, scale=v),
    "negative_slope": lambda v: rf.random_features_projection(X, X.T[:2], seed=1, negative_slope=v),
    "negative_slope of x": lambda v: rf.cross_covariance(X, negative_slope=v),
    "rtol": lambda v: rf.polar(X, rtol=v),
}


@pytest.mark.parametrize(("name", "call"), NUMBERS.items(), ids=NUMBERS)
def test_numbers_of_the_wrong_kind_are_named(name: str, call) -> None:
    for value in ("1", [1.0], torch.ones(())):
        with pytest.raises(TypeError, match=rf"^{name.split()[0]} is .*: wanted a number"):
            call(value)


KINDS = {
    "integers": (X.int(), r"(x|L|u).* torch.int32"),
    "complex": (X + 0j, r"(x|L|u).* torch.complex64"),
    "booleans": (X > 0, r"(x|L|u).* torch.bool"),
}


@pytest.mark.parametrize(("tensor", "message"), KINDS.values(), ids=KINDS)
def test_dtypes_of_the_wrong_kind_are_named(tensor: torch.Tensor, message: str) -> None:
    for call in (
        rf.cross_covariance,
        lambda t: rf.sample_project_align(3, t, seed=1),
        lambda t: rf.random_features(t, 3, seed=1),
        lambda t: rf.random_features(t, 3, seed=1, backend="reference"),
    ):
        with pytest.raises(TypeError, match=message):
            call(tensor)


def test_no_samples_with_axes_of_space() -> None:
    for space in ((), (2,), (2, 3), (2, 3, 4), (2, 3, 4, 5)):
        none = torch.zeros(0, 3, *space)
        assert rf.random_features(none, 4, seed=1).shape == (0, 4, *space)
        assert rf.random_features_projection(none, torch.ones(2, 4), seed=1).shape == (0, 2, *space)
        assert rf.random_features(torch.zeros(2, 3, *space), 0, seed=1).shape == (2, 0, *space)
        M, total, square = rf.random_features_covariance(none, none, 4, seed=1)
        assert not M.any() and not total.any() and not square.any() and M.shape == (3, 4)
        assert torch.equal(rf.cross_covariance(none), torch.zeros(3, 3, dtype=torch.float64))
