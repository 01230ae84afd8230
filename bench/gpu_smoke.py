# SPDX-License-Identifier: BSD-3-Clause
"""Each op once on some kernels, on little data, against plain PyTorch on the CPU: for gpu_stages.py."""

from collections.abc import Callable

import torch
from here import differing_bits, draw
from tolerance import assert_close_to_float64

import rainbow_fast as rf
from rainbow_fast import backend

ROWS, RANK, SAMPLES, CHANNELS = 70, 40, 150, 20  # more than a tile of rows, and no multiple of any tile


def calls(kernels: str, device: str) -> dict[str, Callable[[], None]]:
    """By its name, a check of each op that these kernels have: it raises AssertionError if the numbers are wrong."""

    def random_numbers(numbers: Callable) -> None:
        at = {"seed": 5, "stream": 9, "row_offset": 2**33 + 1, "col_offset": 3}
        got = numbers(ROWS, RANK, device=device, backend=kernels, **at)
        assert differing_bits(got.cpu(), numbers(ROWS, RANK, backend="reference", **at)) == 0

    def cross_covariance() -> None:
        for dtype in (torch.float32, torch.bfloat16):
            x, y = draw(SAMPLES, CHANNELS, 3, 4, dtype=dtype).relu(), draw(SAMPLES, CHANNELS + 7, 3, 4, dtype=dtype)
            got = rf.cross_covariance(x.to(device), y.to(device), backend=kernels).cpu()
            exact = rf.cross_covariance(x.double(), y.double(), backend="reference")
            plain = torch.einsum("nchw,ndhw->cd", x.float(), y.float())
            assert_close_to_float64(got.float(), exact, plain, terms=12 * SAMPLES)

    def sample_project_align() -> None:
        for dtype in (torch.float32, torch.bfloat16):
            P = draw(RANK, CHANNELS, dtype=dtype)
            G = rf.gaussian(ROWS, RANK, dtype=dtype, seed=3, backend="reference")
            got = rf.sample_project_align(ROWS, P.to(device), seed=3, backend=kernels).cpu()
            plain = (G.float() @ P.float()).to(dtype)
            assert_close_to_float64(got, G.double() @ P.double(), plain, terms=RANK)

    def random_features() -> None:
        u, x, A = draw(SAMPLES, RANK), draw(SAMPLES, CHANNELS, seed=1), draw(CHANNELS, ROWS, seed=2)
        exact = rf.random_features(u.double(), ROWS, seed=4, backend="reference")
        plain = rf.random_features(u, ROWS, seed=4, backend="reference")
        there = [t.to(device) for t in (u, x, A)]
        got = rf.random_features(there[0], ROWS, seed=4, backend=kernels)
        assert_close_to_float64(got.cpu(), exact, plain, terms=RANK)
        sums = rf.random_features_covariance(there[1], there[0], ROWS, seed=4, backend=kernels)[0]
        assert_close_to_float64(sums.cpu().float(), x.double().T @ exact, x.T @ plain, terms=SAMPLES)
        projected = rf.random_features_projection(there[0], there[2], seed=4, backend=kernels)
        assert_close_to_float64(projected.cpu(), exact @ A.double().T, plain @ A.T, terms=ROWS)

    def polar() -> None:
        M = draw(CHANNELS, RANK)
        got = rf.polar(M.to(device), backend=kernels).A.cpu()
        # both are rounded results of float64
        torch.testing.assert_close(got, rf.polar(M, backend="reference").A, rtol=0, atol=1e-6)

    def wavelet_modulus() -> None:
        z = draw(3, 5, 12, 9)
        got = rf.wavelet_modulus(z.to(device), backend=kernels).cpu()
        exact = rf.wavelet_modulus(z.double(), backend="reference")
        assert_close_to_float64(got, exact, rf.wavelet_modulus(z, backend="reference"), terms=25)

    checks: dict[str, Callable[[], None]] = {
        "gaussian": lambda: random_numbers(rf.gaussian),
        "uniform": lambda: random_numbers(rf.uniform),
    }
    for check in (cross_covariance, sample_project_align, random_features, polar, wavelet_modulus):
        checks[check.__name__] = check
    return {op: check for op, check in checks.items() if kernels == "cpu" or kernels in backend.ON_GPUS[op][8]}
