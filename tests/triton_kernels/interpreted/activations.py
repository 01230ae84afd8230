# SPDX-License-Identifier: BSD-3-Clause
"""The non-linearities inside Triton kernels: within 4 units, as on the CPU;
run by tests/triton_kernels/test_triton.py."""

import pytest
import torch
import triton
import triton.language as tl
from nonlinearities import LIMITS, exact, inputs, units
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.triton_kernels.activations import activate

SLOPE = float(torch.tensor(0.01))


@triton.jit
def kernel(out, x, n, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = activate(tl.load(x + i, mask=i < n, other=0.0), ACTIVATION, SLOPE)
    tl.store(out + i, value, mask=i < n)


def activated(x: Tensor, activation: str) -> Tensor:
    out = torch.empty_like(x)
    size = min(2**20, triton.next_power_of_2(len(x)))
    kernel[(triton.cdiv(len(x), size),)](out, x, len(x), activation, SLOPE, size)
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # warnings of NumPy, from branches that are not taken
def test_four_units_in_the_last_place(activation: str) -> None:
    x = inputs()[::5].contiguous()
    if activation == "cos":  # for larger numbers the reduction has too few bits
        x = x[x.abs() < 2.0**20]
    error = units(activated(x, activation), exact(x, activation))
    worst = error.argmax()
    assert error[worst] <= 4, f"{float(error[worst])} units at {float(x[worst])!r}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float64(activation: str) -> None:
    near = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    x = torch.cat([near, torch.linspace(-1e6, 1e6, 9_999, dtype=torch.float64)])
    error = (activated(x, activation) - exact(x, activation)).abs()
    assert (error / (1 + x.abs())).max() <= 4e-16  # two units in the last place of 1 + |x|


@pytest.mark.parametrize(("activation", "limits"), LIMITS.items(), ids=LIMITS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infinities_and_nan(activation: str, limits: list[float]) -> None:
    for dtype in (torch.float32, torch.float64):
        x, wanted = torch.tensor([[torch.inf, -torch.inf, torch.nan], limits], dtype=dtype)
        torch.testing.assert_close(activated(x, activation), wanted, rtol=0, atol=0, equal_nan=True)
