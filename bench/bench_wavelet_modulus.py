# SPDX-License-Identifier: BSD-3-Clause
"""wavelet_modulus on 32 images, in blocks of the published networks: forward, and with the gradient of z.

Plain torch pads by reflection and periodically, and convolves with nine real 2-D filters. The published way multiplies
the FFT of the padded map by five filters, and folds it to the frequencies of the positions that are kept. Two more ways
have the border in their matrices: products along columns and rows, and one product of each map by all filters. All are
in wavelet_ways.py, and are compared with the whole filters in float64.
"""

import torch
from floor import Floor
from race import OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor
from wavelet_ways import DENSE_PIXELS, Way, by_fft, dense, direct, separable

import rainbow_fast as rf

SEPARABLE, DENSE = "torch, separable products", "torch, one product"
IMAGES = 32


def wavelet_modulus(name: str, c: int, side: int, direction: str, threads: int) -> Race:
    bank = rf.WaveletBank.named(name)
    source = torch.Generator().manual_seed(0)
    z = torch.randn(IMAGES, c, side, side, generator=source)
    after = bank.side(side)
    upstream = torch.randn(IMAGES, 5 * c, after, after, generator=source)

    def run(way: Way, z: Tensor = z, upstream: Tensor = upstream) -> Tensor:
        if direction == "forward":
            return way(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(way(leaf), leaf, upstream)
        return gradient

    exact = run(by_fft(bank, c, side), z.double(), upstream.double())
    ways = {
        OURS: lambda z: rf.wavelet_modulus(z, bank),
        PLAIN: direct(bank, c, side),
        PUBLISHED: by_fft(bank, c, side),
        SEPARABLE: separable(bank, c, side),
    }
    if side**2 <= DENSE_PIXELS:
        ways[DENSE] = dense(bank, c, side)
    # Multiply-adds of five or six filters along columns, and of nine or ten along rows, half of them even or odd.
    half, own_low = bank.taps // 2 + 1, bank.phi_sigma != bank.psi_sigma
    flops = 2.0 * IMAGES * c * half * after * ((5 + own_low) * side + (9 + own_low) * after)
    moved = z.nbytes + upstream.nbytes
    back = direction != "forward"
    return Race(
        f"wavelet_modulus {name}, {c} channels, {side} -> {after}, {direction}",
        {name: Candidate(lambda way=way: run(way), lambda got: relative(got, exact)) for name, way in ways.items()},
        Floor({"f32": flops * (2 if back else 1)}, bytes=moved * (2 if back else 1)),
        threads=threads,
        variant=threads == 1,
    )


BLOCKS = [("a", 16, 32), ("standard", 16, 32), ("b", 16, 32), ("standard", 64, 16), ("standard", 128, 8)]
CASES = [(*block, way, n) for block in BLOCKS for way in ("forward", "forward and backward") for n in (2, 1)]
large = [case for case in CASES if case[2] ** 2 > DENSE_PIXELS]
small = [case for case in CASES if case[2] ** 2 <= DENSE_PIXELS]
bench_wavelets = entries(wavelet_modulus, large, (OURS, PLAIN, PUBLISHED, SEPARABLE))
bench_wavelets_of_small_maps = entries(wavelet_modulus, small, (OURS, PLAIN, PUBLISHED, SEPARABLE, DENSE))
