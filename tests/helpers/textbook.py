# SPDX-License-Identifier: BSD-3-Clause
"""Random numbers by the formulae of textbooks: Philox in NumPy, of its own; Box-Muller in float64."""

import numpy as np

Address = tuple[int, int, int, int]  # seed, stream, row_offset, col_offset


def words(at: Address, rows: int, cols: int, kind: int) -> list[np.ndarray]:
    """The four words of Philox4x32-10 for each row and each group of four columns that the tile touches, as uint64."""
    seed, stream, row, col = at
    low = np.uint64(0xFFFFFFFF)
    i = np.arange(row, row + rows, dtype=np.uint64)[:, None]
    q = np.arange(col >> 2, (col + cols + 3) >> 2, dtype=np.uint64)[None]
    c = [q, i & low, np.uint64(stream), (i >> np.uint64(32)) + np.uint64((1 << 28) + (kind << 24))]
    for n in range(10):
        k0, k1 = (np.uint64((k + n * w) % 2**32) for k, w in ((seed % 2**32, 0x9E3779B9), (seed >> 32, 0xBB67AE85)))
        p, p2 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [p2 >> np.uint64(32) ^ c[1] ^ k0, p2 & low, p >> np.uint64(32) ^ c[3] ^ k1, p & low]
    return list(np.broadcast_arrays(*c))


def columns(at: Address, rows: int, cols: int, groups: list[np.ndarray]) -> np.ndarray:
    """The tile whose columns 4 q + w are column q of groups[w]."""
    first = at[3] & 3
    return np.stack(groups, -1).reshape(rows, 4 * groups[0].shape[1])[:, first : first + cols]


def gaussian(at: Address, rows: int, cols: int) -> np.ndarray:
    c, normals = words(at, rows, cols, 0), []
    for a, b in (c[:2], c[2:]):
        v = a.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)  # near 1, its rounding is what counts
        radius = np.sqrt(-2 * np.log(v.astype(np.float64)))
        angle = np.pi / 2 * ((b + np.uint64(2**29)) % np.uint64(2**30)).astype(np.float64) / 2**30
        for part, bit in ((np.cos(angle), 31), (np.sin(angle), 30)):
            normals.append(np.where(b >> np.uint64(bit) & np.uint64(1), -radius, radius) * part)
    return columns(at, rows, cols, normals)


def uniform(at: Address, rows: int, cols: int, bits: int) -> np.ndarray:
    """(2 k + 1) / 2^(bits + 1), where k are the upper bits of a word of kind 2 that a word of kind 3 follows."""
    high, low = (columns(at, rows, cols, words(at, rows, cols, kind)) for kind in (2, 3))
    k = (high * np.uint64(2**32) + low) // np.uint64(2 ** (64 - bits))
    return (2 * k + np.uint64(1)).astype(np.float64) / 2.0 ** (bits + 1)
