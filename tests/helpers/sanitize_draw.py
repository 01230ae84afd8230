# SPDX-License-Identifier: BSD-3-Clause
"""Arguments for `make sanitize`: memory, random sizes and layouts, and what is expected of an output.

Every array has its own block of memory of exactly its size, aligned to its element only, with NaN in the gaps.
"""

import math
import random
from typing import NamedTuple

import numpy as np

DTYPES = ["f32", "f64", "bf16", "f16"]  # enum DType
STORAGE = {"f32": np.float32, "f64": np.float64, "bf16": np.uint16, "f16": np.float16}
EPS = {"f32": 2.0**-23, "f64": 2.0**-52, "bf16": 2.0**-7, "f16": 2.0**-10}
LEAST = {"f32": 1e-38, "f64": 0.0, "bf16": 1e-38, "f16": 2.0**-24}  # below it, precision is absolute


class Memory:
    """Numbers at strides given in elements, in a block that begins with `offset` elements and ends with the last one.

    `start` fills it; the default is NaN. `short` elements are missing at the end of the block that kernels see.
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
    tolerance: np.ndarray  # of the computed numbers; the rounding of storing is added

    def error(self) -> float:
        """The largest error of entries above their tolerance, or 0. It is infinite or NaN if their error is."""
        dtype, got = self.memory.dtype, self.memory.numbers()
        allowed = self.tolerance + EPS[dtype] * abs(self.values) + LEAST[dtype]
        rounded = decode(encode(self.values, dtype), dtype)  # beyond the largest number: infinite
        same, finite = (got == rounded) | np.isnan(got) & np.isnan(rounded), np.isfinite(self.values)
        assert np.isfinite(allowed[finite]).all(), "of a finite number the tolerance is finite"
        wrong = ~(same | finite & (abs(got - self.values) <= allowed))
        return abs(got - self.values)[wrong].max(initial=0)


def samples_struct(memory: Memory | None, sizes, strides=(0, 0, 0, 0)) -> tuple:
    """struct Samples as the extension takes it; without memory it has only sizes."""
    where = (memory.address, DTYPES.index(memory.dtype)) if memory else (0, 0)
    return (*where, list(sizes), list(strides))


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
        """Sizes: one more or less than a tile, or empty. Their product, which is the work of a call, is bounded."""
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
        """A matrix as struct Samples, and its numbers."""
        strides = self.any((cols, 1), (1, rows), (2 * cols + 3, 2), (cols + 5, 1))
        memory = self.normal((rows, cols), dtype, strides)
        return samples_struct(memory, (rows, cols, 1, 1), (*strides, 0, 0)), memory.numbers()

    def lines(self, S: int) -> int:
        return self.any(*(n for n in (1, 2, 3, 16) if S % n == 0))

    def layout(self, N: int, d: int, S: int, lines: int) -> tuple[tuple, tuple]:
        """Sizes (N, d, lines, positions) with S samples for each image, and strides: NCHW, channels_last, images inside
        channels, a slice of longer lines, and a slice of every axis."""
        P = S // lines
        line, map_ = P + 3, lines * (P + 3)
        strides = self.any(
            (d * S, S, P, 1), (S * d, 1, P * d, d), (S, N * S, P, 1), (d * map_ + 5, map_, line, 1),
            (d * (2 * map_ + 1) + 5, 2 * map_ + 1, 2 * line, 2),
        )  # fmt: skip
        return (N, d, lines, P), strides

    def samples(self, N: int, d: int, S: int, dtype: str, lines: int | None = None) -> tuple[tuple, np.ndarray]:
        """Struct Samples, and its numbers (N S, d)."""
        sizes, strides = self.layout(N, d, S, lines or self.lines(S))
        memory = self.normal(sizes, dtype, strides)
        return samples_struct(memory, sizes, strides), memory.numbers().transpose(0, 2, 3, 1).reshape(N * S, d)

    def pairs(self, N: int, d: int, S: int, dtype: str) -> tuple[tuple, np.ndarray]:
        """Struct Samples of real parts that are followed by imaginary parts, and the numbers (2, N S, d)."""
        sizes, strides = self.layout(N, d, S, self.lines(S))
        shape, strides = (*sizes, 2), tuple(2 * stride for stride in strides)
        memory = self.memory(shape, dtype, (*strides, 1), self.noise.standard_normal(shape))
        return samples_struct(memory, sizes, strides), memory.numbers().transpose(4, 0, 2, 3, 1).reshape(2, N * S, d)

    def samples_out(self, N: int, d: int, S: int, dtype: str) -> tuple[tuple, Memory]:
        sizes, strides = self.layout(N, d, S, self.lines(S))
        memory = self.memory(sizes, dtype, strides)
        return samples_struct(memory, sizes, strides), memory


def as_maps(values: np.ndarray, like: Memory) -> np.ndarray:
    N, d, lines, P = like.view.shape
    return values.reshape(N, lines, P, d).transpose(0, 3, 1, 2)
