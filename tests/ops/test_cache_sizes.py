# SPDX-License-Identifier: BSD-3-Clause
"""The sizes of caches decide the sizes of blocks, and no bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from features import problem, three
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, fresh_python, laid_out, level
from parameters import slow_but_for
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast import backend

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="for the kernels of CPUs")

SIZES = {  # second level, share of the third
    "none": (1, 1),
    "small": (2**17, 2**19),
    "server": (2**21, 2**22),
    "parts": (2**20, 6_000_000),  # sums of two wide sides are computed in parts of several chunks
    "huge": (2**30, 2**40),
}


@contextmanager
def caches(*sizes: int) -> Iterator[None]:
    here = backend.kernels().caches()
    backend.kernels().set_caches(*sizes)
    try:
        yield
    finally:
        backend.kernels().set_caches(*here)


def wide_sides() -> Tensor:
    """So many blocks of channels that the samples are summed in one go."""
    return rf.cross_covariance(draw(4000, 300, dtype=torch.float64), draw(4000, 1100, dtype=torch.float64, seed=1))


def results() -> list[Tensor]:
    """Problems of several blocks in each direction, for each kernel that asks for the caches."""
    x, y = draw(5, 530, 9, 13), draw(5, 300, 9, 13, seed=1)
    rows = draw(1300, 90)
    few, u, A, shift = problem((2100, 300), 700, 37)
    maps, positions, B, _ = problem((3, 5, 11, 13), 260, 9)
    return [
        rf.cross_covariance(x, y),
        rf.cross_covariance(x),
        *rf.cross_covariance(rows, [rows.flip(1), rows[:, :7]]),
        rf.cross_covariance(laid_out(x, "channels_last"), y),
        rf.cross_covariance(x.bfloat16(), y.bfloat16()),
        rf.cross_covariance(draw(1700, 530), draw(1700, 300)),
        rf.cross_covariance(draw(3400, 530).bfloat16(), draw(3400, 300).bfloat16()),  # 1700 pairs
        rf.cross_covariance(draw(1700, 530), draw(1700, 300), center=True),
        rf.cross_covariance(rows.double()),
        wide_sides(),
        rf.sample_project_align(230, draw(1100, 150), seed=1),
        rf.polar(draw(150, 190)).A,
        rf.polar(draw(150, 190), accuracy="float32").A,
        *three(few, u, A, shift, seed=1),
        *three(few.double(), u.double(), A.double(), shift.double(), activation="gelu", seed=1),
        *three(maps, laid_out(positions, "channels_last"), B, None, seed=1),
        torch.func.grad(lambda t: rf.random_features_projection(t, A, seed=1).square().sum())(u),
    ]


def test_parts_of_a_sum_do_not_depend_on_the_number_of_threads() -> None:
    with caches(*SIZES["parts"]):
        assert_same_for_threads(wide_sides)


@pytest.mark.parametrize("name", slow_but_for([name for name in LEVELS if name != "amx_emulated"], LEVELS))
def test_bits_do_not_depend_on_the_caches(name: str) -> None:
    with level(name):
        wanted = results()
        for sizes in SIZES.values():
            with caches(*sizes):
                for a, b in zip(results(), wanted, strict=True):
                    assert differing_bits(a, b) == 0


def test_sizes_of_this_machine() -> None:
    second, third = backend.kernels().caches()
    assert 2**16 <= second <= 2**28 and 2**16 <= third <= 2**34  # of any machine


def test_a_variable_replaces_them() -> None:
    code = "import rainbow_fast as rf; print(rf.backend.kernels().caches(), rf.gaussian(2, 3, seed=0).shape)"
    printed = fresh_python(code, RAINBOW_FAST_CACHES=" 524288,4000000")
    assert printed.startswith("(524288, 4000000)")


@pytest.mark.parametrize("wanted", ["524288", "524288,0", "524288,2M", "1,2,3", "-1,2", f"1,{2**64}"])
def test_a_wrong_variable(wanted: str) -> None:
    with pytest.raises(ImportError, match=f"RAINBOW_FAST_CACHES='{wanted}': wanted two numbers of bytes, above 0 and"):
        backend._set_caches(None, wanted)


def test_a_wrong_variable_is_an_error_of_the_first_op() -> None:
    code = """
import rainbow_fast as rf
try:
    rf.gaussian(2, 3, seed=0)
except ImportError as error:
    print(error)
"""
    assert fresh_python(code, RAINBOW_FAST_CACHES="much").startswith("RAINBOW_FAST_CACHES='much': wanted two numbers")
