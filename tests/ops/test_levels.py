# SPDX-License-Identifier: BSD-3-Clause
"""Every op on every level, for several numbers of threads. RAINBOW_FAST_ISA chooses the level in a new process."""

from functools import cache
from pathlib import Path

import pytest
import torch
from here import BACKENDS, LEVELS, differing_bits, draw, fresh_python
from parameters import slow_but_for
from tolerance import assert_close_to_float64
from torch import Tensor

import rainbow_fast as rf

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")

AT = {"seed": 5, "stream": 1 << 12 | 3, "row_offset": 2**32 - 20}
EXACT = "gaussian", "gaussian_wide", "uniform", "uniform_wide"
TERMS = 770  # the longest of the sums below


def results(dtype: torch.dtype = torch.float32, backend: str | None = None) -> dict[str, Tensor]:
    """Each op once, at sizes with remainders in every direction and with enough tasks for five threads."""
    how = {**AT, "backend": backend}
    features = {**how, "activation": "gelu", "scale": 0.3}
    x, y = draw(7, 19, 10, 11).to(dtype), draw(7, 150, 10, 11, seed=1).to(dtype)  # 770 samples
    P, A = draw(67, 301, seed=2).to(dtype), draw(9, 260, seed=3).to(dtype)
    shift, M = draw(7, 10, 11, seed=4).to(dtype), draw(41, 90, seed=5).to(dtype)
    covariance, total, square = rf.random_features_covariance(x, x, 260, shift=shift, **features)
    wide, narrow = rf.random_features_projection(x, [A, A[:2, :70]], shift=shift, **features)
    sides = rf.cross_covariance(x, [y, y[:, :33]], activation="relu", center=True, backend=backend)
    several = {**features, "seed": [5, 6]}
    factors = rf.polar(draw(6, 30, 17, seed=6).to(dtype), backend=backend)
    z = x.clone().requires_grad_()
    waves = rf.wavelet_modulus(z, "b", backend=backend)
    waves.backward(y[:, :95, :5, :5])
    u = x.clone().requires_grad_()
    rf.random_features_projection(u, A, shift=shift, **features).backward(x[:, :9])
    assert u.grad is not None
    pairs = torch.complex(x, y[:, :19]).requires_grad_()
    moduli = rf.random_features_projection(pairs, A, **features | {"activation": "modulus"})
    moduli.backward(x[:, :9])
    assert pairs.grad is not None
    return {
        "wavelet_modulus": waves.detach(),
        "wavelet_modulus_skip": torch.view_as_real(rf.wavelet_modulus(x, skip=True, backend=backend)),
        "wavelet_modulus_gradient": z.grad,
        "gaussian": rf.gaussian(203, 1031, col_offset=3, dtype=torch.float32, **how),
        "gaussian_wide": rf.gaussian(203, 41, dtype=torch.float64, **how),
        "uniform": rf.uniform(203, 1031, col_offset=3, **how),
        "uniform_wide": rf.uniform(203, 641, col_offset=3, dtype=torch.float64, **how),
        "cross_covariance": rf.cross_covariance(x, y, backend=backend),
        "cross_covariance_self": rf.cross_covariance(y, backend=backend),
        "cross_covariance_side": sides[0],
        "cross_covariance_other_side": sides[1],
        "cross_covariance_patch": rf.cross_covariance(x, y[:, :20], patch=3, backend=backend),
        "sample_project_align": rf.sample_project_align(301, P, **how),
        "random_features": rf.random_features(x, 260, shift=shift, **features),
        "random_features_covariance": covariance,
        "random_features_total": total,
        "random_features_square": square,
        "random_features_projection": wide,
        "random_features_narrow_projection": narrow,
        "random_features_seeds": rf.random_features(x, 130, shift=shift, **several),
        "random_features_gradient": u.grad,
        "random_features_of_pairs": moduli.detach(),
        "random_features_gradient_of_pairs": torch.view_as_real(pairs.grad),
        "polar": rf.polar(M, backend=backend).A,
        "polar_tall": rf.polar(M.T.contiguous(), backend=backend).A,
        "polar_batch": factors.A,
        "polar_norms": factors.nuclear_norm,
    }


@cache
def references() -> tuple[dict[str, Tensor], ...]:
    return results(torch.float64, "reference"), results(torch.float32, "reference")


PROGRAM = """
import torch
from here import backend, threads
from test_levels import results
made = {{}}
for count in (1, 2, 3, 5):
    with threads(count):
        made[count] = results()
torch.save((backend.isa, made), {!r})
"""


@pytest.mark.parametrize("name", slow_but_for(LEVELS[:1] + LEVELS[-1:], LEVELS))
def test_every_op_for_any_number_of_threads(name: str, tmp_path: Path) -> None:
    saved = tmp_path / "results.pt"
    fresh_python(PROGRAM.format(str(saved)), RAINBOW_FAST_ISA=name)
    isa, by_threads = torch.load(saved, weights_only=True)
    assert isa == name
    exact, plain = references()
    for op, got in by_threads[1].items():
        if op in EXACT:
            assert differing_bits(got, plain[op]) == 0
        else:
            assert_close_to_float64(got.to(torch.float32), exact[op].double(), plain[op].float(), terms=TERMS)
        for count in (2, 3, 5):
            assert differing_bits(by_threads[count][op], got) == 0, f"{op} on {count} threads"
