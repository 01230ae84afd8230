# SPDX-License-Identifier: BSD-3-Clause
"""Banks of one low-pass filter and four Morlet wavelets, as 1-D filters and as matrices that include the border."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from rainbow_fast.arguments import between, integer

AREA = 2 * 3.1415  # what the published code divides a Gaussian of width 1 by, instead of 2 pi
SMALLEST = 1e-14  # smaller entries count as zero; denormal numbers would make products many times slower
PADDING = 2  # pixels on each side

_positive = between(0, math.inf, "a number above 0", open_low=True, open_high=True)


@dataclass(frozen=True)
class WaveletBank:
    """One low-pass filter phi and four Morlet wavelets psi_t, at 45, 0, -45 and -90 degrees from the axis of rows.

        g_s(u) = exp(-|u|^2 / 2 s^2) / (2 3.1415 s^2),    u integer, |u_1|, |u_2| <= (taps - 1) / 2
        phi(u) = g_phi(u),    psi_t(u) = g_psi(u) (exp(i xi e_t.u) - beta_t),    e_t = (cos t, sin t) on (rows, columns)

    beta_t makes the sum of psi_t zero. All filters are sums of products of 1-D filters.

    Args:
        phi_sigma: width s of the Gaussian of phi, in pixels.
        psi_sigma: width s of the Gaussian of the wavelets.
        xi: frequency of the wavelets, in radians per pixel.
        stride: distance of the positions that are kept: 1 or 2.
        taps: length of the 1-D filters, an odd number. The tails beyond are cut off; 41 taps leave none.
            `wavelet_modulus` has the errors of the named banks.

    Raises:
        TypeError: an argument is not a number, or `stride` or `taps` is not an integer.
        ValueError: a width or frequency is not above 0, the stride is not 1 or 2, or `taps` is below 3 or even.

    Source: Guth, Menard, Rochette, Mallat (2024), appendix D, and their code (the constant 3.1415, and the banks "a"
    and "b"). "standard" is the bank of kymatio with J = 1 and L = 4.
    """

    phi_sigma: float
    psi_sigma: float
    xi: float
    stride: int = 2
    taps: int = 9

    def __post_init__(self) -> None:
        for name in ("phi_sigma", "psi_sigma", "xi"):
            _positive(name, getattr(self, name))
        integer("stride", self.stride, 1, 2)
        if integer("taps", self.taps, 3) % 2 == 0:
            raise ValueError(f"taps={self.taps}: wanted an odd number, so that the filters have a middle")

    @classmethod
    def named(cls, name: str) -> WaveletBank:
        """The bank "standard", "a" or "b".

        | name | phi_sigma | psi_sigma | xi | stride | taps |
        | --- | --- | --- | --- | --- | --- |
        | "standard" | 0.8 | 0.8 | 3 pi / 4 | 2 | 9 |
        | "a" | 0.8 / sqrt 2 | 0.8 | 3 pi / 4 | 1 | 9 |
        | "b" | 0.8 / sqrt 2 | 0.8 sqrt 1.5 | pi / sqrt 2 | 2 | 11 |

        "a", then "b" replace one block of "standard" by two, of which the second halves the map.

        Raises:
            ValueError: there is no bank of this name.
        """
        if name not in BANKS:
            raise ValueError(f"bank={name!r}: wanted one of {', '.join(BANKS)}, or a WaveletBank")
        return BANKS[name]

    @property
    def beta(self) -> tuple[float, float]:
        """beta_t of the wavelets along the axes (0 and -90 degrees), and of the diagonal ones (45 and -45)."""
        u, g = self._gaussian(self.psi_sigma)
        total, diagonal = g.sum(), g @ np.cos(self.xi / math.sqrt(2) * u)
        return float(g @ np.cos(self.xi * u) / total), float(diagonal**2 / total**2)

    def filters(self) -> dict[str, np.ndarray]:
        """The 1-D filters (taps,), from u = -(taps - 1) / 2 on, in float64.

        With b the first of `beta` and h = xi / sqrt 2, they are phi; g; c = g (cos xi u - b); s = g sin xi u;
        hc = g cos h u; hs = g sin h u. The product of two filters phi is the 2-D filter phi, and the others give psi_t.
        """
        u, g = self._gaussian(self.psi_sigma)
        half = self.xi / math.sqrt(2)
        filters = {
            "phi": self._gaussian(self.phi_sigma)[1],
            "g": g,
            "c": g * (np.cos(self.xi * u) - self.beta[0]),
            "s": g * np.sin(self.xi * u),
            "hc": g * np.cos(half * u),
            "hs": g * np.sin(half * u),
        }
        return {name: np.where(np.abs(taps) < SMALLEST, 0, taps) for name, taps in filters.items()}

    def side(self, side: int) -> int:
        """The side of the output for a side of the input, at least 2: even sides M give M / stride, odd ones one less.

        Raises:
            TypeError: `side` is not an integer.
            ValueError: `side` is below 2: there is nothing to reflect.
        """
        return (padded(integer("side", side, 2)) - 2 * PADDING) // self.stride

    def _gaussian(self, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """The positions and the values of one factor of g."""
        reach = (self.taps - 1) // 2
        u = np.arange(-reach, reach + 1)
        return u, np.exp(-((u / sigma) ** 2) / 2) / (math.sqrt(AREA) * sigma)


BANKS = {
    "standard": WaveletBank(0.8, 0.8, 3 * math.pi / 4, stride=2, taps=9),
    "a": WaveletBank(0.8 / math.sqrt(2), 0.8, 3 * math.pi / 4, stride=1, taps=9),
    "b": WaveletBank(0.8 / math.sqrt(2), 0.8 * math.sqrt(1.5), math.pi / math.sqrt(2), stride=2, taps=11),
}


def padded(side: int) -> int:
    """The side of the padded map, which is periodic: an even number."""
    return 2 * ((side + 2) // 2 + 1)


def border(bank: WaveletBank, side: int) -> np.ndarray:
    """The pixels that an output reads, (output side, taps): entry (v, u + reach) is the pixel that tap u multiplies.

    The map of an even side is reflected by 2 pixels on each side; an odd one by 1 before it and 2 after it. The padded
    map is periodic. Outputs are at the padded positions 2, 2 + stride, ...
    """
    whole, reach = padded(side), (bank.taps - 1) // 2
    outputs = PADDING + bank.stride * np.arange(bank.side(side))
    places = (outputs[:, None] - np.arange(-reach, reach + 1)) % whole - (whole - side) // 2
    period = 2 * (side - 1)
    places = places % period
    return np.minimum(places, period - places)


@functools.lru_cache(maxsize=256)
def matrices(bank: WaveletBank, side: int, dtype: str) -> dict[str, np.ndarray]:
    """Each 1-D filter as a matrix (output side, side) that includes padding, periodicity and stride. Not to be changed.

    Args:
        bank: the filters.
        side: side of the input, at least 2.
        dtype: the dtype of NumPy, "float32" or "float64".
    """
    pixels = border(bank, side)
    rows = np.arange(len(pixels))[:, None]
    result = {}
    for name, taps in bank.filters().items():
        matrix = np.zeros((len(pixels), side))
        np.add.at(matrix, (np.broadcast_to(rows, pixels.shape), pixels), np.broadcast_to(taps, pixels.shape))
        result[name] = matrix.astype(dtype)
    return result
