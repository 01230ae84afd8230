# SPDX-License-Identifier: BSD-3-Clause
"""The error of a certificate, summed piece by piece, is that of the whole, for any batches and dtype."""

import pytest
import torch
from here import draw

from rainbow_fast.rainbow.report import Error


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 9), (7, 5, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_error(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    phi, phih = draw(*shape, dtype=dtype), draw(*shape, seed=1, dtype=dtype)
    exact = (phih - phi).double().square().sum()  # the difference is rounded to the dtype
    mean = phi.double().transpose(0, 1).flatten(1).mean(1).view(1, -1, *[1] * (phi.dim() - 2))
    wanted = [float(exact / phi.double().square().sum()), float(exact / (phi.double() - mean).square().sum())]
    for piece in (1, 2 * phi[0].numel(), 2**17):  # one sample, two, or all of them at a time
        error = Error(piece=piece)
        for some in (slice(0, 4), slice(4, 4), slice(4, 7)):  # one of the batches is empty
            error.update(phi[some], phih[some])
        # norms of float32 have 24 bits; of 7 x 60 numbers their squares sum to a few units of the last place
        assert error.relative() == pytest.approx(wanted, rel=1e-14 if dtype == torch.float64 else 1e-6)


def test_zero_activations_have_no_relative_error() -> None:
    error = Error()
    error.update(torch.zeros(3, 2), torch.ones(3, 2))
    assert all(value != value for value in error.relative())
