# SPDX-License-Identifier: BSD-3-Clause
"""The calls that `make sanitize` makes: for each kernel a function that draws arguments and computes the results."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
import textbook
from sanitize_draw import DTYPES, EPS, Draw, Expected, Memory, as_maps, decode, encode, samples_struct
from sanitize_wavelets import wavelet_modulus, wavelet_modulus_gradient


def generated(C: ModuleType, at: tuple[int, int, int, int], rows: int, cols: int) -> np.ndarray:
    """G, by the kernel itself, which the calls of `gaussian` have compared with the textbook."""
    G = np.empty((rows, cols))
    C.gaussian(G.ctypes.data, DTYPES.index("f64"), rows, cols, cols, at, 1)
    return G


# --- one function for each kernel: its arguments, except for the threads, and its results ---

START = 0.5  # what is in memory to which kernels add


LEFT_OUT = (0.0, 2.0**-14, 2.0**-7)  # of a product of float32 numbers, by enum Precision


def product(A: np.ndarray, B: np.ndarray, dtype: str, precision: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A B, and the error that a sum in dtype may have: it grows like the square root of the number of roundings."""
    error = (4 + math.sqrt(A.shape[1])) * EPS[dtype] + LEFT_OUT[precision]
    return A @ B, error * (abs(A) @ abs(B) + START)


def column_sums(A: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The same in a type wider than float64, in which sums of equal numbers would drift."""
    return A.sum(0, dtype=np.longdouble), (4 + math.sqrt(len(A))) * EPS[dtype] * (abs(A).sum(0) + START)


def random_numbers(draw: Draw) -> tuple[tuple, Memory]:
    """The arguments of a kernel that writes random numbers, and what it writes."""
    (rows, cols), dtype = draw.sizes(2, 1e5), draw.any(*DTYPES)
    at, ld = draw.address(cols), cols + draw.any(0, 5)
    out = draw.memory((rows, cols), dtype, (ld, 1))
    return (out.address, DTYPES.index(dtype), rows, cols, ld, at), out


def gaussian(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    arguments, out = random_numbers(draw)
    values = textbook.gaussian(arguments[-1], *out.view.shape)
    tolerance = np.full_like(values, 2e-6)  # the polynomials: relative errors up to 2e-7 of at most 6.76
    return arguments, [Expected(out, values, tolerance)]


def uniform(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    arguments, out = random_numbers(draw)
    values = textbook.uniform(arguments[-1], *out.view.shape, -round(math.log2(EPS[out.dtype])))
    return arguments, [Expected(out, values, np.zeros_like(values))]


def windows(size: int, k: int, padding: int, dilation: int, shift: int) -> dict[int, tuple[int, int]]:
    """For each tap u, the positions of an axis that it visits and from which tap u + shift is inside too."""
    stands, step = size + 2 * padding - dilation * (k - 1), dilation * shift
    return {
        u: (max(0, u * dilation - padding, -step), min(size, u * dilation - padding + stands, size - step))
        for u in range(max(0, -shift), min(k, k - shift))
    }


def pieces(size: int, k: int, padding: int, dilation: int) -> list[list[int]]:
    """struct Piece of all shifts of an axis."""
    structs = []
    for shift in range(1 - k, k):
        visited = windows(size, k, padding, dilation, shift)
        edges = sorted({edge for begin, end in visited.values() if begin < end for edge in (begin, end)})
        for begin, end in zip(edges, edges[1:], strict=False):
            taps = [u for u, (low, high) in visited.items() if low <= begin and end <= high]
            if taps:
                structs.append([shift, dilation * shift, begin, end, taps[0], len(taps)])
    return structs


def patch_covariance(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (d, m), dtype, symmetric = draw.sizes(2, 3e3), draw.any(*DTYPES), not draw.regular and draw.any(False, True)
    N, H, W = draw.any(1, 3), draw.any(2, 5, 9), draw.any(2, 7, 30)
    form = k, padding, dilation = draw.any(1, 2, 3), draw.any(0, 1, 2), draw.any(1, 2)
    m = d if symmetric else m
    x, X = draw.samples(N, d, H * W, dtype, H)
    y, Y = (x, X) if symmetric else draw.samples(N, m, H * W, dtype, H)
    X, Y = X.reshape(N, H, W, d), Y.reshape(N, H, W, m)
    values, tolerance = np.zeros((2, d, k, k, m, k, k))
    shifts = range(1 - k, k)
    for dy, dx in ((dy, dx) for dy in shifts for dx in shifts):
        for u, (top, bottom) in windows(H, *form, dy).items():
            for v, (left, right) in windows(W, *form, dx).items():
                if top >= bottom or left >= right:
                    continue
                samples = N * (bottom - top) * (right - left)
                here = X[:, top:bottom, left:right].reshape(samples, d)
                down, along = dy * dilation, dx * dilation
                there = Y[:, top + down : bottom + down, left + along : right + along].reshape(samples, m)
                block = (slice(None), u, v, slice(None), u + dy, v + dx)
                values[block], tolerance[block] = product(here.T, there, "f64" if dtype == "f64" else "f32")
    ld = m * k * k + draw.any(0, 5)
    out = draw.memory((d * k * k, m * k * k), "f64", (ld, 1), START)
    values, tolerance = (t.reshape(d * k * k, m * k * k) for t in (values, tolerance))
    call = (out.address, ld, x, y, pieces(H, *form), pieces(W, *form), k, symmetric)
    return call, [Expected(out, START + values, tolerance + EPS["f64"])]


def polar_multiply(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    rows, inner, cols = draw.sizes(3)
    q, m = draw.normal((rows, inner), "f64"), draw.normal((inner, cols), "f64")
    out = draw.memory((rows, cols), "f64")
    expected = Expected(out, *product(q.numbers(), m.numbers(), "f64"))
    return (q.address, m.address, out.address, rows, inner, cols), [expected]


def sample_project_align(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (n, r, m), dtype, stored = draw.sizes(3), draw.any(*DTYPES), draw.any(*DTYPES)
    p, P = draw.matrix(r, m, dtype)
    at, ld = draw.address(r), m + draw.any(0, 5)
    out = draw.memory((n, m), stored, (ld, 1))
    computed = "f64" if dtype == "f64" else "f32"
    rounding = "bf16" if dtype == "f32" and draw.any(0, 1) else dtype  # of G
    precision = 1 if rounding != dtype else draw.any(0, 0, 1, 2) if dtype == "f32" else 0
    G = decode(encode(generated(C, at, n, r), rounding), rounding)
    values, tolerance = product(0.25 * G, P, computed, precision)
    call = (out.address, DTYPES.index(stored), n, ld, p, DTYPES.index(rounding), at, 0.25, precision)
    return call, [Expected(out, values, tolerance)]


SLOPE, SCALE = 0.1, 0.7
ACTIVATIONS: list[Callable[[np.ndarray], np.ndarray]] = [  # enum Activation
    lambda s: s,
    lambda s: np.maximum(s, 0),
    np.abs,
    lambda s: np.where(s > 0, s, SLOPE * s),
    np.tanh,
    np.vectorize(math.erf, otypes=[float]),
    np.vectorize(lambda s: 0.5 * s * math.erfc(-s / math.sqrt(2)), otypes=[float]),
    lambda s: s / (1 + np.exp(-s)),
    np.sign,
    lambda s: (s > 0) * 1.0,
    np.cos,
]
JUMPS = (np.sign, ACTIVATIONS[9])


def activated(s: np.ndarray, wrong: np.ndarray, code: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """sigma(s), and its error for a given error of s."""
    f = ACTIVATIONS[code]
    phi = f(s)
    # Slopes are at most 1.13 and values are right to a few units in the last place; at a jump, both sides are right.
    tolerance = 1.2 * wrong + 8 * EPS[dtype] * abs(phi)
    if f in JUMPS:
        tolerance[abs(s) <= wrong] = 2.1
    tolerance[~np.isfinite(phi)] = 0
    return phi, tolerance


def cross_covariance(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (d, m, N, S), dtype = draw.sizes(4), draw.any(*DTYPES)
    channels = [d, *draw.any([], [m], [m, 1, 17], [3, m])]  # none: the samples with themselves
    code = draw.any(0, 0, 1, draw.random.randrange(len(ACTIVATIONS)))
    computed, centered = "f64" if dtype == "f64" else "f32", draw.regular or draw.any(False, True)
    sides, values, errors, totals, lines = [], [], [], [], draw.lines(S)
    for size in channels:
        x, X = draw.samples(N, size, S, dtype, lines)
        phi, wrong = activated(X, np.zeros_like(X), code, computed)
        shift, total = 0, 0
        if centered:
            off = draw.normal((size,), computed)
            totals.append(draw.memory((size,), "f64", start=START))
            shift, total = off.address, totals[-1].address
            phi, wrong = phi - off.numbers(), wrong + EPS[computed] * (abs(phi) + abs(off.numbers()))
        sides.append((x, shift, total))
        values.append(phi)
        errors.append(wrong)
    left, right, more = values[0], np.hstack(values[1:] or values), np.hstack(errors[1:] or errors)
    ld = right.shape[1] + draw.any(0, 5)
    out = draw.memory((d, right.shape[1]), "f64", (ld, 1), START)
    precision = draw.any(0, 0, 1, 2) if dtype == "f32" else 0
    product_, tolerance = product(left.T, right, computed, precision)
    tolerance = tolerance + errors[0].T @ abs(right) + abs(left).T @ more + errors[0].T @ more
    expected = [Expected(out, START + product_, tolerance)]
    for total, phi, wrong in zip(totals, values, errors, strict=False):
        sums, error = column_sums(phi, computed)
        drift = math.sqrt(len(phi))  # equal numbers, as step makes them, are always rounded in the same direction
        expected.append(Expected(total, START + sums, drift * error + wrong.sum(0)))
    call = (out.address, ld, sides[0], sides[1:] or sides, len(sides) == 1, code, SLOPE, precision)
    return call, expected


class Neurons(NamedTuple):
    """Arguments of features: struct Features, s = u G^T + shift with its tolerance, and G."""

    struct: tuple
    s: np.ndarray
    wrong: np.ndarray
    G: np.ndarray
    code: int
    precision: int


def neurons(C: ModuleType, draw: Draw, N: int, S: int, r: int, n: int, dtype: str, pairs: bool = False) -> Neurons:
    """Neurons of numbers; with `pairs`, some are those of pairs, and s are their moduli."""
    paired = pairs and not draw.regular and draw.any(False, False, True)
    u, U = draw.pairs(N, r, S, dtype) if paired else draw.samples(N, r, S, dtype)
    at, rows = draw.address(r), samples_struct(None, (n, r, 1, 1))
    if draw.regular or draw.any(False, True):
        rows, G = draw.matrix(n, r, dtype)
    else:
        G = generated(C, at, n, r)
    precision = draw.any(0, 0, 1, 2) if dtype == "f32" else 0
    s, wrong = product(U.reshape((1 + paired) * N * S, r), G.T, dtype, precision)
    pointer = 0
    if draw.regular or draw.any(False, True):
        memory = draw.normal((len(s),), dtype)
        pointer, shift = memory.address, memory.numbers()[:, None]
        s, wrong = s + shift, wrong + 8 * EPS[dtype] * (1 + abs(shift))
    code = draw.random.randrange(len(ACTIVATIONS))
    if paired:
        code, s = 0, np.sqrt(np.square(s.reshape(2, N * S, n)).sum(0))
        wrong = wrong.reshape(2, N * S, n).sum(0) + 8 * EPS[dtype] * abs(s)
    wrong[~np.isfinite(s)] = 0  # infinite s may give finite features, which are exact
    return Neurons((u, paired, pointer, rows, at, code, SLOPE, SCALE, precision), s, wrong, G, code, precision)


def features(f: Neurons, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """phi' (N S, n) and its tolerance."""
    phi, tolerance = activated(f.s, f.wrong, f.code, dtype)
    return SCALE * phi, SCALE * tolerance


def random_features(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n), dtype = draw.sizes(4, 1e6), draw.any("f32", "f64")
    f = neurons(C, draw, N, S, r, n, dtype, pairs=True)
    phi, tolerance = features(f, dtype)
    target, out = draw.samples_out(N, n, S, dtype)
    return (target, f.struct), [Expected(out, as_maps(phi, out), as_maps(tolerance, out))]


def random_features_covariance(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n, d), dtype = draw.sizes(5, 1e6), draw.any("f32", "f64")
    f = neurons(C, draw, N, S, r, n, dtype, pairs=True)
    phi, wrong = features(f, dtype)
    x, X = draw.samples(N, d, S, dtype)
    x_center = center = 0
    if draw.regular or draw.any(False, True):
        memory = draw.normal((d,), dtype)
        x_center, X = memory.address, X - memory.numbers()
    if draw.regular or draw.any(False, True):
        memory = draw.normal((n,), dtype)
        center, phi = memory.address, phi - memory.numbers()
        wrong = wrong + EPS[dtype] * (abs(phi) + 2 * abs(memory.numbers()))
    memories = [draw.memory(shape, "f64", start=START) for shape in ((d, n), (n,), (n,))]
    sums = [product(X.T, phi, dtype, f.precision), column_sums(phi, dtype), column_sums(phi * phi, dtype)]
    extra = [abs(X.T) @ wrong, wrong.sum(0), (2 * abs(phi) * wrong + wrong**2).sum(0)]
    expected = [
        Expected(memory, START + values, error + more)
        for memory, (values, error), more in zip(memories, sums, extra, strict=True)
    ]
    return (*(m.address for m in memories), x, x_center, center, f.struct), expected


def random_features_projection(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n, d), dtype = draw.sizes(5, 1e6), draw.any("f32", "f64")
    f = neurons(C, draw, N, S, r, n, dtype, pairs=True)
    phi, wrong = features(f, dtype)
    projections, expected = [], []
    for channels, width in draw.any([(d, n)], [(2, n // 3), (d, n)], [(d, n), (0, n), (3, max(n - 1, 0))]):
        a, A = draw.matrix(channels, width, dtype)
        target, out = draw.samples_out(N, channels, S, dtype)
        values, error = product(phi[:, :width], A.T, dtype, f.precision)
        error = error + wrong[:, :width] @ abs(A.T)
        projections.append((target, a))
        expected.append(Expected(out, as_maps(values, out), as_maps(error, out)))
    return (projections, f.struct), expected


DERIVATIVES: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda s: np.ones_like(s),
    lambda s: (s > 0) * 1.0,
    np.sign,
    lambda s: np.where(s > 0, 1, SLOPE),
    lambda s: 1 / np.cosh(s) ** 2,
    lambda s: 2 / math.sqrt(math.pi) * np.exp(-s * s),
    np.vectorize(
        lambda s: 0.5 * math.erfc(-s / math.sqrt(2)) + s * math.exp(-s * s / 2) / math.sqrt(2 * math.pi), otypes=[float]
    ),
    lambda s: np.where(np.isinf(s), s > 0, (1 + np.tanh(s / 2)) / 2 * (1 + s * (1 - np.tanh(s / 2)) / 2)),
    lambda s: np.zeros_like(s),
    lambda s: np.zeros_like(s),
    lambda s: -np.sin(s),
]
CORNERS = {1: 1.0, 2: 2.0, 3: 1 - SLOPE}  # how far derivatives jump at 0


def random_features_gradient(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n, d), dtype = draw.sizes(5, 1e6), draw.any("f32", "f64")
    f = neurons(C, draw, N, S, r, n, dtype)
    up, error = np.zeros_like(f.s), np.zeros_like(f.s)
    grad_phi, total, square, products = samples_struct(None, (0, 0, 0, 0)), 0, 0, []
    if draw.regular or draw.any(False, True):
        grad_phi, up = draw.samples(N, n, S, dtype)
    if draw.regular or draw.any(False, True):
        memory = draw.normal((n,), dtype)
        total, up = memory.address, up + memory.numbers()
    for channels, width in draw.any([(d, n)], [], [(2, n // 3), (d, n)]) if not draw.regular else [(d, n)]:
        (x, X), (a, A) = draw.samples(N, channels, S, dtype), draw.matrix(channels, width, dtype)
        values, more = product(X, A, dtype, f.precision)
        up[:, :width] += values
        error[:, :width] += more
        products.append((x, a))
    if draw.regular or draw.any(False, True):
        memory, (phi, wrong) = draw.normal((n,), dtype), features(f, dtype)
        square, up = memory.address, up + 2 * memory.numbers() * phi
        error += 2 * abs(memory.numbers()) * (wrong + 4 * EPS[dtype] * abs(phi))
    error += 8 * EPS[dtype] * abs(up)
    slope = SCALE * DERIVATIVES[f.code](f.s)
    off = SCALE * (1.2 * f.wrong + 8 * EPS[dtype])  # second derivatives are at most 1.13
    if f.code in CORNERS:
        off[abs(f.s) <= f.wrong] += CORNERS[f.code]
    off[np.isnan(slope)] = 0
    grad = slope * up
    error = abs(slope) * error + off * (abs(up) + error)
    values, tolerance = product(grad, f.G, dtype, f.precision)
    target, out = draw.samples_out(N, r, S, dtype)
    sums, of_sums = product(grad, np.ones((n, 1)), dtype, f.precision)
    shift = draw.memory((N * S,), dtype)
    expected = [
        Expected(out, as_maps(values, out), as_maps(tolerance + error @ abs(f.G), out)),
        Expected(shift, sums[:, 0], of_sums[:, 0] + error.sum(1)),
    ]
    return (target, shift.address, (grad_phi, total, square, products), f.struct), expected


DONE, NULL, FAILED = 0, 2, 3  # enum Outcome of polar.cpp


def polar(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (rows, cols), dtype = draw.sizes(2, 6e4), draw.any("f32", "f64")
    rows, cols, batch = max(rows, 1), max(cols, 1), 2 if draw.regular else draw.any(0, 1, 1, 2, 5)
    rows, cols = (min(rows, 260), cols) if rows < cols else (rows, min(cols, 260))
    d, batch = min(rows, cols), batch if rows * cols < 5000 else min(batch, 1)
    outcome = DONE if draw.regular else draw.any(DONE, DONE, DONE, NULL, FAILED)
    condition, size = draw.any(1.0, 30.0, 1e3) if d > 1 else 1.0, draw.any(1e-6, 1.0, 1e6)
    left, right = (np.linalg.qr(draw.noise.standard_normal((batch, n, d)))[0] for n in (rows, cols))
    numbers = size * (left * np.geomspace(1, 1 / condition, d)) @ right.transpose(0, 2, 1)
    if outcome == NULL and d > 1:
        numbers[(slice(None), 0) if rows <= cols else (slice(None), slice(None), 0)] = 0
    elif outcome != DONE:
        outcome, numbers = FAILED, numbers * draw.any(0, np.nan, np.inf)
    strides = draw.any(
        (rows * cols, cols, 1),
        (rows * cols, 1, rows),
        (cols, batch * cols, 1),
        (rows * (2 * cols + 1) + 9, 2 * cols + 1, 2),
    )
    m, statistics = draw.memory((batch, rows, cols), dtype, strides, numbers), draw.memory((batch, 6), "f64")
    out = draw.memory((batch, rows, cols), dtype)
    rtol, single = max(rows, cols) * EPS[dtype], draw.any(False, True)
    call = (out.address, statistics.address, m.address, DTYPES.index(dtype), batch, rows, cols, *strides, rtol, single)
    if outcome != DONE:
        return call, [
            Expected(statistics, np.array([*[np.nan] * 5, outcome]) + np.zeros((batch, 1)), np.zeros((batch, 6)))
        ]
    U, s, V = np.linalg.svd(m.numbers(), full_matrices=False)
    top, nuclear = s.max(1, initial=0), s.sum(1)
    ratio = top / s.min(1, initial=math.inf)
    certified = 1e-6 if dtype == "f32" or single else 1e-10
    columns = [nuclear, d, ratio, 0, 0, DONE], [certified * nuclear, 0, 0.02 * ratio, certified, certified, 0]
    values, tolerance = (np.stack(np.broadcast_arrays(*c), -1).reshape(batch, 6) for c in columns)
    # With `single`, A is right to the certified error in each direction of its singular vectors.
    error = 1e-6 if single else 1e-7 if dtype == "f32" else 1e-13
    near = (error + 1e-12 * ratio)[:, None, None] + np.zeros((rows, cols))
    return call, [Expected(out, U @ V, near), Expected(statistics, values, tolerance)]


KERNELS = {
    f.__name__: f
    for f in (
        gaussian,
        uniform,
        cross_covariance,
        patch_covariance,
        polar,
        polar_multiply,
        sample_project_align,
        random_features,
        random_features_covariance,
        random_features_projection,
        random_features_gradient,
        wavelet_modulus,
        wavelet_modulus_gradient,
    )
}
