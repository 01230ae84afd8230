# SPDX-License-Identifier: BSD-3-Clause
"""The tests' own instruments: the rule of tolerance, poisoned memory, guard zones."""

from collections.abc import Callable

import pytest
import torch
from tolerance import assert_close_to_float64
from torch import Tensor


def test_tolerance_follows_plain_pytorch() -> None:
    reference = torch.linspace(1, 2, 5, dtype=torch.float64)
    plain = reference.float() + 1e-3
    assert_close_to_float64(reference.float() - 1.9e-3, reference, plain)
    with pytest.raises(AssertionError, match="error 2.1.*allowed 2.0.*plain PyTorch 1.0"):
        assert_close_to_float64(reference.float() - 2.1e-3, reference, plain)


def test_tolerance_has_a_floor_of_one_rounding() -> None:
    reference = torch.tensor([1.0, 8.0], dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    assert_close_to_float64(reference + 8 * eps, reference, reference)
    assert_close_to_float64(reference + 32 * eps, reference, reference, terms=16)
    with pytest.raises(AssertionError, match="error"):
        assert_close_to_float64(reference + 16 * eps, reference, reference)


@pytest.mark.parametrize("got", [torch.full((2,), torch.nan), torch.ones(3)], ids=["nan", "shape"])
def test_tolerance_refuses(got: Tensor) -> None:
    reference = torch.ones(2, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_close_to_float64(got, reference, torch.zeros(2))


def test_memory_is_poisoned() -> None:
    like = torch.ones(3)
    for tensor in [torch.empty(3), torch.empty_like(like), like.new_empty(3), torch.empty(3, dtype=torch.bfloat16)]:
        assert tensor.isnan().all()
    assert (torch.empty(3, dtype=torch.int64) == -(2**63)).all()
    assert torch.empty(3, requires_grad=True).requires_grad


@pytest.mark.unpoisoned
def test_memory_can_stay_as_it_is() -> None:
    assert type(torch.empty).__name__ == "builtin_function_or_method"


def test_poison_does_not_enter_compiled_code() -> None:
    def double(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out.copy_(2 * x)
        return out

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))


def test_guard_zones_are_around(guarded: Callable[..., Tensor]) -> None:
    out = guarded(2, 3, dtype=torch.float64)
    assert out.shape == (2, 3) and out.isnan().all()
    guard = out.storage_offset()
    around = out.as_strided((guard + 6 + guard,), (1,), 0)
    assert guard * out.itemsize >= 64 and (around[:guard] == 7).all() and (around[-guard:] == 7).all()
