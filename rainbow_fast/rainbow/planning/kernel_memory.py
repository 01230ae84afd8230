# SPDX-License-Identifier: BSD-3-Clause
"""The memory that ops need beside their arguments, in bytes, from shapes: that of the compiled kernels with AVX-512.

Kernels of narrower instruction sets, which have smaller tiles, need at most as much. Memory that does not grow with a
shape is left out.
"""

from __future__ import annotations

TASKS, CHUNK, CHUNKS_EACH = 32, 256, 4  # a long sum is divided into parts, so that there are this many tasks, and each
# has some chunks of this many samples: `slabs_for` of csrc/cpu/epilogue.h
FEATURES, ROWS, COLUMNS = 320, 258, 128  # of a block of a sum, in `covariance` of random_features and in `accumulate`
LONG, PROBES = 16, 8  # of `polar_`: ratio of the sides, rows as long as the matrix
SQUARES = {False: 6, True: 5}  # square matrices of `polar_`; True for the accuracy of float32, which needs fewer poles
PACKED = 2**24  # bytes of a matrix that are packed at a time
COLUMN_BLOCKS = 6 * 2**21  # bytes of blocks of columns of a long matrix


def features_covariance_bytes(rows: int, neurons: int, samples: int) -> int:
    """Of `random_features_covariance`: the sums (rows, neurons) that it returns, and their parts."""
    parts = _parts(-(-neurons // FEATURES), samples)
    return 8 * (rows + 2) * neurons * (1 + (parts if parts > 1 else 0))


def second_moment_bytes(columns: int, samples: int) -> int:
    """Of `cross_covariance_` of one side: the parts of its sum, one at least."""
    return 8 * columns**2 * _parts(-(-columns // ROWS) * -(-columns // COLUMNS), samples)


def polar_bytes(rows: int, columns: int, *, single: bool) -> int:
    """Of `polar_` for a float64 matrix without zero rows and columns; `single` for the accuracy of float32.

    A long matrix is decomposed in its own memory, see `ops.polar_lq`. Others are copied, as a whole and for the
    iteration, and packed.
    """
    short, long = sorted((rows, columns))
    if long >= LONG * short:
        return 8 * (PROBES * long + SQUARES[single] * short**2) + min(COLUMN_BLOCKS, 8 * short * long)
    return 8 * (2 * short * long + SQUARES[single] * short**2 + 3 * PROBES * long) + min(PACKED, 8 * short * long)


def _parts(blocks: int, samples: int) -> int:
    """How many parts a sum over these samples is divided into, if its result has this many blocks."""
    return max(1, min(-(-TASKS // blocks), -(-samples // CHUNK) // CHUNKS_EACH))
