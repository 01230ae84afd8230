# SPDX-License-Identifier: BSD-3-Clause
"""The one rule by which a kernel's numbers are judged: against float64, by what plain PyTorch achieves."""

import math

import torch
from torch import Tensor

# The error of a kernel and that of plain PyTorch are two draws from the same law: another order of summation, another
# rounding at the end. The largest of each over a tensor differ by less than a factor of two.
FACTOR = 2.0

# What a long sum of products may lose, relative to the sum of their magnitudes. Tensor cores round towards zero in
# chains of up to 128 samples, which biases sums of positive numbers by about 2e-7.
CLASS = {"tensor cores": 3e-7, "float64": 1e-14}

# What it loses where many terms are equal, or nearly: these are rounded in one direction. Of 256 equal ones in float32,
# as many as a CPU adds up between two promotions, each binade of the sum takes its share: 85 2^-24 at most. Of pairs of
# bfloat16, which a CPU may have a product of, there are 512 numbers.
EQUAL = {"cpu": 5.1e-6, "pairs": 1.02e-5, "gpu": 1.5e-6, "float64": 5e-14}

# Two orders of the same sums in float64, of numbers up to about ten: what some hundred roundings of 1e-16 come to where
# conditions stay below a hundred.
REORDERED = {"rtol": 1e-12, "atol": 1e-12}


def varied(samples: int) -> float:
    """What it loses on a CPU in float32 where terms vary, in no order: roundings wander."""
    return 2e-5 / math.sqrt(samples)


def error(got: Tensor, reference64: Tensor) -> float:
    """The largest absolute difference; NaN where `got` holds one, so that no comparison with it succeeds."""
    return (got.double() - reference64).abs().max().item() if got.numel() else 0.0


def assert_close_to_float64(got: Tensor, reference64: Tensor, plain: Tensor, *, terms: int = 1) -> None:
    """Assert that ``error(got) <= FACTOR * error(plain) + floor``, both errors against `reference64`.

    Args:
        got: what the kernel gives, in its own dtype.
        reference64: the same in float64, from the same (already rounded) inputs.
        plain: what plain PyTorch gives for it in the inputs' dtype.
        terms: how many terms are summed into an entry. It matters where `plain` is no yardstick: its own error is zero
            by luck, or because it *is* the float64 result.
    """
    assert got.shape == reference64.shape, f"shape {tuple(got.shape)}, wanted {tuple(reference64.shape)}"
    assert reference64.dtype == torch.float64 and reference64.isfinite().all(), "the reference is finite float64"
    # The last place of the largest entry: storing a right result costs half of it, whatever `plain` did by luck; and
    # a sum rounded at each of its terms wanders by the square root of their number.
    scale = reference64.abs().max().item() if reference64.numel() else 0.0
    floor = torch.finfo(got.dtype).eps * scale * math.sqrt(terms)
    allowed = FACTOR * error(plain, reference64) + floor
    actual = error(got, reference64)
    assert actual <= allowed, (
        f"error {actual:.3e}, allowed {allowed:.3e} (plain PyTorch {error(plain, reference64):.3e})"
    )


def assert_in_class(got: Tensor, exact: Tensor, magnitude: Tensor, name: str) -> None:
    """Assert of each entry of a sum of products that ``|got - exact| <= CLASS[name] * magnitude``, all float64."""
    assert got.shape == exact.shape == magnitude.shape and exact.isfinite().all()
    allowed = CLASS[name] * magnitude
    wrong = ~((got - exact).abs() <= allowed)
    assert not wrong.any(), (
        f"{int(wrong.sum())} entries off, by {((got - exact).abs() / magnitude).max():.3e} of {name}"
    )
