# SPDX-License-Identifier: BSD-3-Clause
"""Entries more than 2^31 and 2^32 elements apart, in address space of which only a few pages are touched."""

import mmap
from collections.abc import Callable

import numpy as np
import pytest
import torch
from here import BACKENDS, differing_bits, draw
from torch import Tensor

import rainbow_fast as rf

FAR = 2**31 + 5  # three times this passes 2^32
NORESERVE = 0x4000  # Linux; mmap.MAP_NORESERVE from Python 3.13 on

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="plain PyTorch is not what is tested")


def far_apart(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, filled: Tensor | None = None
) -> Tensor:
    """A tensor with these strides, of zeros or of the given numbers."""
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    try:
        space = mmap.mmap(-1, extent * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except OSError as error:
        pytest.skip(f"{extent * dtype.itemsize >> 30} GiB of address space: {error}")
    whole = torch.from_numpy(np.frombuffer(space, dtype=np.uint8)).view(dtype)
    view = whole.as_strided(shape, strides)
    assert extent > 2**32
    return view if filled is None else view.copy_(filled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("numbers", [rf.gaussian, rf.uniform])
def test_random_numbers(numbers: Callable[..., Tensor], dtype: torch.dtype) -> None:
    out = far_apart((3, 70), (FAR, 1), dtype)
    numbers(3, 70, seed=1, col_offset=1, out=out)
    assert differing_bits(out, numbers(3, 70, seed=1, col_offset=1, dtype=dtype)) == 0


@pytest.mark.parametrize("strides", [(FAR, 5, 1), (5, FAR, 1), (1, 3, FAR)], ids=["images", "channels", "positions"])
def test_cross_covariance(strides: tuple[int, int, int]) -> None:
    dtype = torch.bfloat16  # this saves address space
    numbers = draw(3, 3, 5 if strides[2] == 1 else 3, dtype=dtype)
    x, y = far_apart(tuple(numbers.shape), strides, dtype, numbers), draw(*numbers.shape, dtype=dtype, seed=1)
    out = far_apart((3, 3), (FAR, 1), torch.float64)
    assert differing_bits(rf.cross_covariance_(out, x, y), rf.cross_covariance(numbers, y)) == 0
    assert differing_bits(rf.cross_covariance(x), rf.cross_covariance(numbers)) == 0


@pytest.mark.parametrize("strides", [(FAR, 1), (1, FAR)], ids=["rows", "columns"])
def test_sample_project_align(strides: tuple[int, int]) -> None:
    numbers = draw(3, 3)
    P, out = far_apart((3, 3), strides, torch.float32, numbers), far_apart((3, 3), (FAR, 1), torch.float32)
    assert differing_bits(rf.sample_project_align_(out, P, seed=1), rf.sample_project_align(3, numbers, seed=1)) == 0


@pytest.mark.parametrize("strides", [(FAR, 5, 1), (5, FAR, 1), (1, 3, FAR)], ids=["images", "channels", "positions"])
def test_random_features(strides: tuple[int, int, int]) -> None:
    numbers, A, key = draw(3, 3, 3), draw(3, 4, seed=1), rf.key(1)
    u, G = far_apart((3, 3, 3), strides, torch.float32, numbers), draw(3, 3, seed=2)
    out = far_apart((3, 3, 3), strides, torch.float32)
    rest = (None, None, far_apart((3, 3), (FAR, 1), torch.float32, G), "tanh", 0.0, 1.0, None, None)
    torch.ops.rainbow_fast.random_features_out(u, *rest, out)
    assert differing_bits(out, rf.random_features(numbers, 3, G=G, activation="tanh")) == 0
    torch.ops.rainbow_fast.random_features_projection_out(u, [A], None, key, None, "tanh", 0.0, 1.0, None, None, [out])
    assert differing_bits(out, rf.random_features_projection(numbers, A, seed=key, activation="tanh")) == 0
    for a, b in zip(
        rf.random_features_covariance(u, u, 4, seed=1),
        rf.random_features_covariance(numbers, numbers, 4, seed=1),
        strict=True,
    ):
        assert differing_bits(a, b) == 0
