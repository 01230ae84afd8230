# SPDX-License-Identifier: BSD-3-Clause
"""The calls that `make sanitize` makes: for each kernel a function that draws arguments and says what they should give.

Every array lies in a block of its own of exactly its size, aligned to its element only, with NaN in its gaps.
"""

import math
import random
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

DTYPES = ["f32", "f64", "bf16", "f16"]  # enum DType
STORAGE = {"f32": np.float32, "f64": np.float64, "bf16": np.uint16, "f16": np.float16}
EPS = {"f32": 2.0**-23, "f64": 2.0**-52, "bf16": 2.0**-7, "f16": 2.0**-10}
LEAST = {"f32": 1e-38, "f64": 0.0, "bf16": 1e-38, "f16": 2.0**-24}  # below it, precision is absolute


class Memory:
    """Numbers at strides given in elements, in a block that begins with `offset` elements and ends with the last one.

    `start` fills it; without, it is NaN. `short` elements are missing at the end of the block that kernels see.
    """

    def __init__(self, shape, dtype: str, strides, start, offset: int, short: int) -> None:
        self.dtype, size = dtype, np.dtype(STORAGE[dtype]).itemsize
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if math.prod(shape) else 0
        self.block = np.full((offset + extent) * size, 0xFF, np.uint8)  # NaN in every dtype
        elements = self.block[offset * size :].view(STORAGE[dtype])
        self.view = np.lib.stride_tricks.as_strided(elements, shape, [s * size for s in strides])
        if start is not None:
            self.view[...] = encode(np.asarray(start, np.float64), dtype)
        seen = self.block[: len(self.block) - short * size].copy() if short else self.block
        self.seen, self.address = seen, seen.ctypes.data + offset * size

    def numbers(self) -> np.ndarray:
        return decode(self.view, self.dtype)

    def gaps_are_untouched(self) -> bool:
        self.view.view(f"u{self.view.itemsize}")[...] = -1 % 2 ** (8 * self.view.itemsize)
        return bool((self.block == 0xFF).all())


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bf16":
        return values.astype(STORAGE[dtype])
    words = values.astype(np.float32).view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


class Expected(NamedTuple):
    memory: Memory
    values: np.ndarray
    tolerance: np.ndarray  # of what is computed; storing is added

    def error(self) -> float:
        """The largest, where one is above its tolerance."""
        dtype, got = self.memory.dtype, self.memory.numbers()
        allowed = self.tolerance + EPS[dtype] * abs(self.values) + LEAST[dtype]
        rounded = decode(encode(self.values, dtype), dtype)  # beyond the largest number: infinite
        same = (got == rounded) | np.isnan(got) & np.isnan(rounded)
        wrong = ~(same | (abs(got - self.values) <= allowed))
        return abs(got - self.values)[wrong].max(initial=0)


def samples_struct(memory: Memory | None, images: int, channels: int, positions: int, strides=(0, 0, 0)) -> tuple:
    """struct Samples as the extension takes it; without memory, sizes alone."""
    where = (memory.address, DTYPES.index(memory.dtype)) if memory else (0, 0)
    return (*where, images, channels, positions, *strides)


class Draw:
    """Random arguments. The array number `short` of a call gets a block one element too short."""

    SIZES = [1, 4, 8, 16, 24, 32, 48, 96, 120, 128, 240, 256, 1024, 2304, 4608]  # tiles, blocks, and parts of sums

    def __init__(self, seed: str, *, regular: bool = False, short: int | None = None) -> None:
        self.random, self.noise = random.Random(seed), np.random.default_rng(list(seed.encode()))
        self.regular, self.short = regular, short
        self.arrays: list[Memory] = []  # kept for the call

    def any(self, *choices):
        return self.random.choice(choices)

    def sizes(self, count: int, most: float = 2e6) -> list[int]:
        """One more or less than a tile, or empty; the product, which is the work of a call, is bounded."""
        if self.regular:
            return [5 + i for i in range(count)]
        while True:
            sizes = [self.any(*self.SIZES) + self.any(-1, 0, 1) for _ in range(count)]
            if math.prod(s or 1 for s in sizes) <= most and (0 not in sizes or self.random.random() < 0.1):
                return sizes

    def address(self, cols: int) -> tuple[int, int, int, int]:
        return self.any(0, 2**63 - 2), self.any(0, 2**32 - 1), self.any(0, 2**32 - 5), self.any(0, 3, 2**34 - cols)

    def memory(self, shape, dtype: str, strides=None, start=None) -> Memory:
        if strides is None:
            strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        short, offset = int(len(self.arrays) == self.short), 0 if self.regular else self.any(0, 1)
        self.arrays.append(Memory(shape, dtype, strides, start, offset, short))
        return self.arrays[-1]

    def normal(self, shape, dtype: str, strides=None) -> Memory:
        values = self.noise.standard_normal(shape)
        if values.size and self.random.random() < 0.2:
            values[tuple(self.random.randrange(n) for n in shape)] = self.any(np.inf, -np.inf, np.nan, 1e12, -1e12)
        return self.memory(shape, dtype, strides, values)

    def matrix(self, rows: int, cols: int, dtype: str) -> tuple[tuple, np.ndarray]:
        """As struct Samples, and its numbers."""
        strides = self.any((cols, 1), (1, rows), (2 * cols + 3, 2), (cols + 5, 1))
        memory = self.normal((rows, cols), dtype, strides)
        return samples_struct(memory, rows, cols, 1, (*strides, 0)), memory.numbers()

    def layout(self, N: int, d: int, S: int) -> tuple[int, int, int]:
        return self.any((d * S, S, 1), (S * d, 1, d), (S, N * S, 1), (d * (2 * S + 3) + 5, 2 * S + 3, 2))

    def samples(self, N: int, d: int, S: int, dtype: str) -> tuple[tuple, np.ndarray]:
        """Struct Samples, and its numbers (N S, d)."""
        strides = self.layout(N, d, S)
        memory = self.normal((N, d, S), dtype, strides)
        numbers = memory.numbers().transpose(0, 2, 1).reshape(N * S, d)
        return samples_struct(memory, N, d, S, strides), numbers

    def samples_out(self, N: int, d: int, S: int, dtype: str) -> tuple[tuple, Memory]:
        strides = self.layout(N, d, S)
        memory = self.memory((N, d, S), dtype, strides)
        return samples_struct(memory, N, d, S, strides), memory


def as_maps(values: np.ndarray, N: int, S: int) -> np.ndarray:
    return values.reshape(N, S, values.shape[1]).transpose(0, 2, 1)


# --- the generator, by the textbook ---


def gaussian_numbers(at: tuple[int, int, int, int], rows: int, cols: int) -> np.ndarray:
    seed, stream, row, col = at
    first, low = col & 3, np.uint64(0xFFFFFFFF)
    i = np.arange(row, row + rows, dtype=np.uint64)[:, None]
    q = np.arange(col >> 2, (col + cols + 3) >> 2, dtype=np.uint64)[None]
    c = [q, i & low, np.uint64(stream), (i >> np.uint64(32)) + np.uint64(1 << 28)]
    for n in range(10):
        k0, k1 = (np.uint64((k + n * w) % 2**32) for k, w in ((seed % 2**32, 0x9E3779B9), (seed >> 32, 0xBB67AE85)))
        p, p2 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [p2 >> np.uint64(32) ^ c[1] ^ k0, p2 & low, p >> np.uint64(32) ^ c[3] ^ k1, p & low]
    normals = []
    for a, b in (c[:2], c[2:]):
        v = a.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)  # near 1, its rounding is what counts
        radius = np.sqrt(-2 * np.log(v.astype(np.float64)))
        angle = np.pi / 2 * ((b + np.uint64(2**29)) % np.uint64(2**30)).astype(np.float64) / 2**30
        for part, bit in ((np.cos(angle), 31), (np.sin(angle), 30)):
            normals.append(np.where(b >> np.uint64(bit) & np.uint64(1), -radius, radius) * part)
    return np.stack(np.broadcast_arrays(*normals), -1).reshape(rows, -1)[:, first : first + cols]


def generated(C: ModuleType, at: tuple[int, int, int, int], rows: int, cols: int) -> np.ndarray:
    """By the kernel itself, which the calls of `gaussian` have compared with the textbook."""
    G = np.empty((rows, cols))
    C.gaussian(G.ctypes.data, DTYPES.index("f64"), rows, cols, cols, at, 1)
    return G


# --- one function a kernel: its arguments but for the threads, and what it should give ---

START = 0.5  # what kernels that accumulate find


def product(A: np.ndarray, B: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A B, and the error that a sum in dtype may make: roundings wander by the square root of their number."""
    return A @ B, (4 + math.sqrt(A.shape[1])) * EPS[dtype] * (abs(A) @ abs(B) + START)


def column_sums(A: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Likewise; wider than float64, in which a column of equal numbers drifts."""
    return A.sum(0, dtype=np.longdouble), (4 + math.sqrt(len(A))) * EPS[dtype] * (abs(A).sum(0) + START)


def gaussian(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (rows, cols), dtype = draw.sizes(2, 1e5), draw.any(*DTYPES)
    at, ld = draw.address(cols), cols + draw.any(0, 5)
    out = draw.memory((rows, cols), dtype, (ld, 1))
    values = gaussian_numbers(at, rows, cols)
    tolerance = np.full_like(values, 2e-6)  # the polynomials: relative errors up to 2e-7 of at most 6.76
    return (out.address, DTYPES.index(dtype), rows, cols, ld, at), [Expected(out, values, tolerance)]


def cross_covariance(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (d, m, N, S), dtype, symmetric = draw.sizes(4), draw.any(*DTYPES), draw.any(False, True)
    m = d if symmetric else m
    x, X = draw.samples(N, d, S, dtype)
    y, Y = (x, X) if symmetric else draw.samples(N, m, S, dtype)
    ld = m + draw.any(0, 5)
    out = draw.memory((d, m), "f64", (ld, 1), START)
    values, tolerance = product(X.T, Y, "f64" if dtype == "f64" else "f32")
    return (out.address, ld, x, y, symmetric), [Expected(out, START + values, tolerance)]


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
    values, tolerance = product(0.25 * generated(C, at, n, r), P, computed)
    return (out.address, DTYPES.index(stored), n, ld, p, at, 0.25), [Expected(out, values, tolerance)]


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


def features(C: ModuleType, draw: Draw, N: int, S: int, r: int, n: int, dtype: str):
    """Struct Features, then phi' (N S, n) and its tolerance."""
    u, U = draw.samples(N, r, S, dtype)
    at, given = draw.address(r), samples_struct(None, n, r, 1)
    if draw.regular or draw.any(False, True):
        given, G = draw.matrix(n, r, dtype)
    else:
        G = generated(C, at, n, r)
    s, wrong = product(U, G.T, dtype)
    pointer = 0
    if draw.regular or draw.any(False, True):
        memory = draw.normal((N * S,), dtype)
        pointer, shift = memory.address, memory.numbers()[:, None]
        s, wrong = s + shift, wrong + 8 * EPS[dtype] * (1 + abs(shift))
    code = draw.random.randrange(len(ACTIVATIONS))
    f = ACTIVATIONS[code]
    phi = SCALE * f(s)
    # Slopes are at most 1.13, values within a few units in the last place; a jump may be taken on the other side.
    tolerance = SCALE * 1.2 * wrong + 8 * EPS[dtype] * abs(phi)
    if f in JUMPS:
        tolerance[abs(s) <= wrong] = 2
    tolerance[np.isnan(s)] = 0  # what comes of NaN is exact
    return (u, pointer, given, at, code, SLOPE, SCALE), phi, tolerance


def random_features(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n), dtype = draw.sizes(4, 1e6), draw.any("f32", "f64")
    f, phi, tolerance = features(C, draw, N, S, r, n, dtype)
    target, out = draw.samples_out(N, n, S, dtype)
    return (target, f), [Expected(out, as_maps(phi, N, S), as_maps(tolerance, N, S))]


def random_features_covariance(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n, d), dtype = draw.sizes(5, 1e6), draw.any("f32", "f64")
    f, phi, wrong = features(C, draw, N, S, r, n, dtype)
    x, X = draw.samples(N, d, S, dtype)
    memories = [draw.memory(shape, "f64", start=START) for shape in ((d, n), (n,), (n,))]
    sums = [product(X.T, phi, dtype), column_sums(phi, dtype), column_sums(phi * phi, dtype)]
    extra = [abs(X.T) @ wrong, wrong.sum(0), (2 * abs(phi) * wrong + wrong**2).sum(0)]
    expected = [
        Expected(memory, START + values, error + more)
        for memory, (values, error), more in zip(memories, sums, extra, strict=True)
    ]
    return (*(m.address for m in memories), x, f), expected


def random_features_projection(C: ModuleType, draw: Draw) -> tuple[tuple, list[Expected]]:
    (N, S, r, n, d), dtype = draw.sizes(5, 1e6), draw.any("f32", "f64")
    f, phi, wrong = features(C, draw, N, S, r, n, dtype)
    a, A = draw.matrix(d, n, dtype)
    target, out = draw.samples_out(N, d, S, dtype)
    values, error = product(phi, A.T, dtype)
    return (target, a, f), [Expected(out, as_maps(values, N, S), as_maps(error + wrong @ abs(A.T), N, S))]


KERNELS = {
    f.__name__: f
    for f in (
        gaussian,
        cross_covariance,
        polar_multiply,
        sample_project_align,
        random_features,
        random_features_covariance,
        random_features_projection,
    )
}
