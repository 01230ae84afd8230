# SPDX-License-Identifier: BSD-3-Clause
"""The derivatives of the non-linearities in Triton, interpreted, against float64;
run by tests/triton_kernels/test_triton.py."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.triton_kernels.derivatives import differentiate

SLOPE = 0.01  # which float32 does not hold


@triton.jit
def derivative_kernel(out, x, n, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(out + i, differentiate(value, ACTIVATION, SLOPE), mask=i < n)


def points(dtype: torch.dtype) -> Tensor:
    """Inputs of every size, with both signs, and dense where the polynomials meet."""
    sizes = torch.logspace(-6, 2, 2000, dtype=torch.float64)
    dense = torch.linspace(-16, 16, 6001, dtype=torch.float64)
    return torch.cat([sizes, -sizes, dense, torch.tensor([0.0])]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative(guarded, activation: str, dtype: torch.dtype) -> None:
    x = points(dtype)
    out = guarded(len(x), dtype=dtype)
    derivative_kernel[(triton.cdiv(len(x), 4096),)](out, x, len(x), activation, SLOPE, 4096)
    exact = ACTIVATIONS[activation][1](x.double(), SLOPE) + torch.zeros_like(x, dtype=torch.float64)
    # Four units in the last place of results of order one; smaller results have the same absolute error.
    bound = 4 * torch.finfo(dtype).eps * exact.abs().clamp(min=1)
    if dtype == torch.float64:  # the reference has a rounding error times x itself: 1 - t of silu
        bound = bound * (1 + x.abs())
    wrong = (out.double() - exact).abs() > bound
    assert not wrong.any(), (x[wrong][:5].tolist(), out[wrong][:5].tolist(), exact[wrong][:5].tolist())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out(activation: str) -> None:
    x = torch.tensor([3e38, -3e38, 1e4, -1e4, torch.nan])
    if activation == "cos":
        x = x[-3:]  # its argument is reduced
    out = torch.empty_like(x)
    derivative_kernel[(1,)](out, x, len(x), activation, SLOPE, 8)
    exact = ACTIVATIONS[activation][1](x.double(), SLOPE) + torch.zeros_like(x, dtype=torch.float64)
    exact[exact.isnan() & ~x.isnan()] = 0  # infinity times zero, which float64 does not meet below 1e150
    torch.testing.assert_close(out[:-1].double(), exact[:-1], rtol=1e-6, atol=1e-6)  # eight units of float32
    assert out[-1].isnan() or activation in ("identity", "relu", "leaky_relu", "sign", "step")
