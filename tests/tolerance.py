# SPDX-License-Identifier: BSD-3-Clause
"""The rule by which the numbers of a kernel are judged: their error against float64, compared with plain PyTorch's."""

import math

import torch
from torch import Tensor

# The errors of a kernel and of plain PyTorch are two draws from the same law: they differ by the order of summation and
# by the last rounding. Their largest values over a tensor differ by less than a factor of two.
FACTOR = 2.0

# What a long sum of products may lose, relative to the sum of their magnitudes. Tensor cores round towards zero in
# chains of up to 128 samples, which biases sums of positive numbers by about 2e-7.
CLASS = {"tensor cores": 3e-7, "float64": 1e-14}

# What a sum may lose if many terms are equal or nearly equal, because these are always rounded in the same direction. A
# CPU adds up 256 terms in float32 between two promotions. If they are equal, each binade of the sum loses its share:
# 85 2^-24 at most. With pairs of bfloat16, which some CPUs multiply, there are 512 numbers between two promotions.
EQUAL = {"cpu": 5.1e-6, "pairs": 1.02e-5, "gpu": 1.5e-6, "float64": 5e-14}

# The difference between two orders of the same sums in float64, for numbers up to about ten: some hundred roundings of
# 1e-16, with condition numbers below a hundred.
REORDERED = {"rtol": 1e-12, "atol": 1e-12}


def varied(samples: int) -> float:
    """What a sum may lose on a CPU in float32 if the terms vary without an order: the roundings are random."""
    return 2e-5 / math.sqrt(samples)


def error(got: Tensor, reference64: Tensor) -> float:
    """The largest absolute difference. It is NaN if `got` contains one, so that every comparison with it fails."""
    return (got.double() - reference64).abs().max().item() if got.numel() else 0.0


def assert_close_to_float64(got: Tensor, reference64: Tensor, plain: Tensor, *, terms: int = 1) -> None:
    """Assert that ``error(got) <= FACTOR * error(plain) + floor``, both errors against `reference64`.

    Args:
        got: the result of the kernel, in its own dtype.
        reference64: the same result in float64, from the same (already rounded) inputs.
        plain: the result of plain PyTorch in the dtype of the inputs.
        terms: how many terms are summed into an entry. This matters if the error of `plain` is zero, by luck or because
            it *is* the float64 result.
    """
    assert got.shape == reference64.shape, f"shape {tuple(got.shape)}, wanted {tuple(reference64.shape)}"
    assert reference64.dtype == torch.float64 and reference64.isfinite().all(), "the reference is finite float64"
    # The last place of the largest entry: storing a right result costs half of it, even if `plain` has no error by
    # luck. A sum that is rounded at each term has a random error that grows like the square root of their number.
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
