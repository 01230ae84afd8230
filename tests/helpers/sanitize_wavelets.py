# SPDX-License-Identifier: BSD-3-Clause
"""The calls of wavelet_modulus and its gradient for `make sanitize`: random filters, as one matrix with the border."""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from sanitize_draw import DTYPES, EPS, Draw, Expected, Memory, samples_struct

FILTERS = "g c hc s hs phi".split()  # in the order of struct Bank
ODD = ("s", "hs")


class Wavelets(NamedTuple):
    """Arguments of the kernels, maps z (N, c, pixels), complex, and their responses (5, N, c, outputs) by a matrix."""

    z_struct: tuple
    bank: tuple
    parts: int
    skip: bool
    dtype: str  # of z
    stored: str  # of the output
    z: np.ndarray
    matrix: np.ndarray  # (5, outputs, pixels), complex
    response: np.ndarray
    wrong: np.ndarray  # the error that responses may have


def one_axis(side: int, stride: int, taps: np.ndarray, sign: int) -> np.ndarray:
    """The matrix (outputs, side) of a filter whose taps from the middle on are given, on the padded periodic axis."""
    before, whole = (2, side + 4) if side % 2 == 0 else (1, side + 3)
    pixels = np.pad(np.arange(side), (before, whole - side - before), mode="reflect")
    matrix = np.zeros(((whole - 4) // stride, side))
    for v in range(len(matrix)):
        for u, tap in enumerate(taps):
            matrix[v, pixels[(2 + stride * v - u) % whole]] += tap
            if u:
                matrix[v, pixels[(2 + stride * v + u) % whole]] += sign * tap
    return matrix


def wavelets(draw: Draw) -> Wavelets:
    N, c, H, W = (
        (2, 3, 5, 6) if draw.regular else (draw.any(*sizes) for sizes in ((1, 2), (1, 5, 19), (2, 5, 8), (2, 9)))
    )
    dtype, parts, skip = draw.any(*DTYPES), draw.any(1, 2), draw.any(False, True)
    reach, stride, own_low = draw.any(1, 4, 5, 7), draw.any(1, 2), draw.any(False, True)
    taps = draw.noise.standard_normal((reach + 1, len(FILTERS)))
    taps[0, [FILTERS.index(name) for name in ODD]] = 0
    taps[:, 5] = taps[:, 5] if own_low else taps[:, 0]
    memory, beta = draw.memory(taps.shape, "f64", start=taps), 0.25
    computed = "f64" if dtype == "f64" else "f32"
    taps = taps.astype(np.float32 if computed == "f32" else np.float64).astype(float)
    axes = [
        {name: one_axis(side, stride, taps[:, i], -1 if name in ODD else 1) for i, name in enumerate(FILTERS)}
        for side in (H, W)
    ]

    def product(rows: str, columns: str) -> np.ndarray:
        return np.kron(axes[0][rows], axes[1][columns])

    mean = product("hc", "hc") - beta * product("g", "g")
    matrix = np.stack([
        product("phi", "phi") + 0j,
        mean - product("hs", "hs") + 1j * (product("hs", "hc") + product("hc", "hs")),
        product("c", "g") + 1j * product("s", "g"),
        mean + product("hs", "hs") + 1j * (product("hs", "hc") - product("hc", "hs")),
        product("g", "c") - 1j * product("g", "s"),
    ])  # fmt: skip
    strides = draw.any(  # NCHW, channels_last, and a slice of every axis
        (c * H * W * parts, H * W * parts, W * parts, parts),
        (c * H * W * parts, parts, W * c * parts, c * parts),
        (c * (2 * H * W + 1) * parts + 5, (2 * H * W + 1) * parts, 2 * W * parts, 2 * parts),
    )
    values = draw.noise.standard_normal((N, c, H, W, parts))
    z = draw.memory(values.shape, dtype, (*strides, 1), values)
    numbers = z.numbers()
    maps = (numbers[..., 0] + (1j * numbers[..., 1] if parts == 2 else 0)).reshape(N, c, H * W)
    response, size = (
        np.einsum("top,ncp->tnco", a, b) for a, b in ((matrix, maps), (bound(axes), abs(maps.real) + abs(maps.imag)))
    )
    wrong = (4 + 4 * reach) * EPS[computed] * size.real
    return Wavelets(
        samples_struct(z, (N, c, H, W), strides),
        (memory.address, reach, stride, own_low, beta),
        *(parts, skip, dtype, dtype if parts == 1 and not skip else computed, maps, matrix, response, wrong),
    )


def bound(axes: list[dict[str, np.ndarray]]) -> np.ndarray:
    """A bound (5, outputs, pixels) on the sums of magnitudes, of all filters."""
    rows, columns = (sum(abs(matrix) for matrix in axis.values()) for axis in axes)
    return np.broadcast_to(np.kron(rows, columns), (5, len(rows) * len(columns), rows.shape[1] * columns.shape[1]))


def in_order(low: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """(N, c, outputs), (4, N, c, outputs) -> (N, 5 c, outputs)."""
    return np.concatenate([low, np.moveaxis(waves, 0, 2).reshape(len(low), -1, low.shape[-1])], 1)


def as_output(w: Wavelets, linear: np.ndarray, moduli: np.ndarray) -> np.ndarray:
    """The output, from [phi, psi] and [|phi|, |psi|] (5, N, c, outputs), as pairs on a last axis if need be."""
    if not w.skip:
        out = in_order(linear[0], moduli[1:] + 0j)
    else:
        out = np.concatenate([in_order(linear[0], linear[1:]), in_order(moduli[0] + 0j, moduli[1:] + 0j)], 1)
    return np.stack([out.real, out.imag], -1) if w.skip or w.parts == 2 else out.real


def struct(w: Wavelets, out: Memory) -> tuple:
    return w.z_struct, w.parts, w.skip, out.address, DTYPES.index(w.stored)


def wavelet_modulus(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    w = wavelets(draw)
    values = as_output(w, w.response, abs(w.response))
    tolerance = abs(as_output(w, (1 + 1j) * w.wrong, 2 * w.wrong))
    out = draw.memory(values.shape, w.stored)
    return (struct(w, out), w.bank), [Expected(out, values, tolerance)]


def wavelet_modulus_gradient(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    w = wavelets(draw)
    moduli = abs(w.response)
    shape = as_output(w, w.response, moduli).shape
    grad = draw.memory(shape, w.stored, start=draw.noise.standard_normal(shape))
    pairs = grad.numbers().reshape(*shape[:3], -1)
    N, c = w.z.shape[:2]
    halves = pairs.reshape(N, -1, 5 * c, shape[2], pairs.shape[-1]).transpose(1, 0, 2, 3, 4)
    upstream = np.stack([  # (halves, 5, N, c, outputs, numbers)
        np.concatenate([half[None, :, :c], np.moveaxis(half[:, c:].reshape(N, c, 4, *half.shape[2:]), 2, 0)])
        for half in halves
    ])  # fmt: skip
    linear, of_moduli = upstream[0], upstream[-1][..., 0].copy()
    complex_linear = linear[..., 0] + (1j * linear[..., 1] if linear.shape[-1] == 2 else 0)
    if not w.skip:
        of_moduli[0] = 0
        complex_linear[1:] = 0
    direction = np.divide(w.response, moduli, out=np.zeros_like(w.response), where=moduli > 0)
    pulled = complex_linear + of_moduli * direction
    computed = "f64" if w.dtype == "f64" else "f32"
    off = abs(of_moduli) * np.minimum(2, 4 * w.wrong / np.maximum(moduli, 1e-300)) + 8 * EPS[computed] * abs(pulled)
    values = np.einsum("top,tnco->ncp", w.matrix.conj(), pulled)
    reach = w.bank[1]
    size = np.einsum("top,tnco->ncp", abs(w.matrix.real) + abs(w.matrix.imag) + 0.5, abs(pulled))
    tolerance = np.einsum("top,tnco->ncp", abs(w.matrix.real) + abs(w.matrix.imag), off)
    tolerance += (8 + 4 * reach) * EPS[computed] * size * 8
    H, W = w.z_struct[2][2:]
    parts = [values.real, values.imag][: w.parts]
    values = np.stack(parts, -1).reshape(N, c, H, W, w.parts)
    tolerance = np.repeat(tolerance.reshape(N, c, H, W, 1), w.parts, -1)
    out = draw.memory(values.shape, w.dtype)
    return (out.address, struct(w, grad), w.bank), [Expected(out, values, tolerance)]
