# SPDX-License-Identifier: BSD-3-Clause
"""uniform: the same bits for every backend, instruction set, tiling, offset, shard and thread count."""

import hashlib

import numpy as np
import pytest
import textbook
import torch
from here import (
    BACKENDS,
    LEVELS,
    assert_compiles_once,
    assert_same_for_threads,
    differing_bits,
    level,
    random_state_untouched,
)
from scipy import stats
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.uniform import uniform_reference

SEED = 0x0123456789ABCDEF
OP, OUT = torch.ops.rainbow_fast.uniform.default, torch.ops.rainbow_fast.uniform_out.default
CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64
BITS = {F32: 23, F64: 52, torch.bfloat16: 7, torch.float16: 10}  # random bits of a number
each_dtype = pytest.mark.parametrize("dtype", BITS, ids=str)


def expected(
    rows: int, cols: int, seed: int, stream: int = 0, row_offset: int = 0, col_offset: int = 0, dtype=F32
) -> Tensor:
    return torch.from_numpy(uniform_reference([seed, stream, row_offset, col_offset], rows, cols, dtype)).to(dtype)


# --- matches the reference ---

TILES = {
    "one": (1, 1, 0, 0),
    "no-rows": (0, 5, 0, 0),
    "no-columns": (5, 0, 0, 3),
    "one-column-of-many-rows": (5003, 1, 0, 2),  # a vector holds as many rows as lanes
    "three-columns-in-two-groups": (997, 3, 5, 6),
    "long-odd-rows": (5, 4099, 1, 1),  # whole vectors, then the rest of a row together with the next row
    "rows-cross-2^32": (40, 21, 2**32 - 19, 0),
    "rows-end-at-2^56": (19, 70, 2**56 - 19, 5),
    "columns-cross-2^32": (9, 203, 0, 2**32 - 101),
    "columns-end-at-2^34": (7, 131, 3, 2**34 - 131),
}


@pytest.mark.parametrize("name", LEVELS)
@each_dtype
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_matches_reference(tile: tuple[int, int, int, int], dtype: torch.dtype, name: str) -> None:
    rows, cols, row_offset, col_offset = tile
    at = {"seed": 2**63 - 1, "stream": 2**32 - 1, "row_offset": row_offset, "col_offset": col_offset, "dtype": dtype}
    with level(name):
        assert differing_bits(rf.uniform(rows, cols, backend="cpu", **at), expected(rows, cols, **at)) == 0


@each_dtype
def test_reference_backend_takes_every_dtype(dtype: torch.dtype) -> None:
    got = rf.uniform(5, 7, seed=1, row_offset=3, dtype=dtype, backend="reference")
    assert differing_bits(got, expected(5, 7, 1, row_offset=3, dtype=dtype)) == 0


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@each_dtype
def test_writes_its_tile_and_nothing_else(guarded, dtype: torch.dtype, backend: str) -> None:
    whole = guarded(33, 70, dtype=dtype)
    out = rf.uniform(33, 61, seed=1, col_offset=3, out=whole[:, 5:66], backend=backend)
    assert differing_bits(whole[:, 5:66], expected(33, 61, 1, col_offset=3, dtype=dtype)) == 0
    assert out.data_ptr() == whole[:, 5:66].data_ptr()
    assert whole[:, :5].isnan().all() and whole[:, 66:].isnan().all()


# --- invariants ---


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_any_number_of_threads(dtype: torch.dtype, name: str) -> None:
    with level(name):
        assert_same_for_threads(lambda: rf.uniform(1013, 1031, seed=2, col_offset=1, dtype=dtype))


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_and_nesting(backend: str) -> None:
    how = {"dtype": F64, "backend": backend}
    whole = rf.uniform(300, 90, seed=4, stream=9, **how)
    shards = [rf.uniform(100, 90, seed=4, stream=9, row_offset=100 * s, **how) for s in range(3)]
    assert differing_bits(torch.cat(shards), whole) == 0
    smaller = rf.uniform(17, 33, seed=rf.key(4, 9), **how)  # rows and columns nest; a key is its numbers
    assert differing_bits(smaller, whole[:17, :33]) == 0


def test_every_part_of_the_address_matters() -> None:
    addresses = (
        {"seed": 1},
        {"seed": 1 + 2**40},
        {"seed": 1, "stream": 1},
        {"seed": 1, "row_offset": 8},
        {"seed": 1, "row_offset": 2**32},  # the same low word
        {"seed": 1, "col_offset": 8},
        {"seed": 1, "col_offset": 2**33},
    )
    tiles = [rf.uniform(8, 8, dtype=F64, **at) for at in addresses]
    for i, a in enumerate(tiles):
        assert all((a != b).all() for b in tiles[:i])


def test_nothing_global_is_touched() -> None:
    numpy_before = np.random.get_state()[1].copy()
    with random_state_untouched():
        for backend in BACKENDS:
            rf.uniform(10, 10, seed=1, backend=backend)
    assert (np.random.get_state()[1] == numpy_before).all()


# --- the values ---


@each_dtype
def test_values_are_midpoints_of_cells(dtype: torch.dtype) -> None:
    """Odd multiples of eps / 2, inside of (0, 1); the widest dtype is in the cell of every other one."""
    u, wide = (rf.uniform(300, 300, seed=5, dtype=d).double() for d in (dtype, F64))
    eps = torch.finfo(dtype).eps
    odd = u * (2 / eps)
    assert eps == 2.0 ** -BITS[dtype] and (odd == odd.round()).all() and (odd % 2 == 1).all()
    assert 0 < u.min() and u.max() < 1 and ((u - wide).abs() < eps / 2).all()
    if eps > 1e-3:
        assert u.min() == eps / 2 and u.max() == 1 - eps / 2 and len(u.unique()) == 1 / eps


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_the_ends_of_the_interval(monkeypatch: pytest.MonkeyPatch, word: int) -> None:
    """All bits of the words are 0, or 1: the nearest numbers to 0 and to 1."""
    constant = lambda *_: [np.full((2, 2), word, np.uint32)] * 4  # noqa: E731
    monkeypatch.setattr("rainbow_fast.ops.uniform.words_reference", constant)
    for dtype, bits in BITS.items():
        u = torch.from_numpy(uniform_reference([1, 0, 0, 0], 2, 8, dtype)).to(dtype).double()
        assert (u == (1 - 2.0 ** -(bits + 1) if word else 2.0 ** -(bits + 1))).all()


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_law(dtype: torch.dtype) -> None:
    """Bounds are five standard deviations of each statistic for 2e6 independent numbers, whose law is known."""
    u = rf.uniform(4000, 500, seed=11, dtype=dtype).double()
    centred, n = u - 0.5, u.numel()
    for power, mean, variance in (
        (1, 0, 1 / 12),
        (2, 1 / 12, 1 / 180),
        (3, 0, 1 / 448),
        (4, 1 / 80, 1 / 2304 - 1 / 6400),
    ):
        assert abs((centred**power).mean() - mean) < 5 * (variance / n) ** 0.5
    # Kolmogorov-Smirnov: the probability of a larger distance is exp(-2 1.95^2) 2 = 1e-3. Cells of 2^-23 add nothing.
    assert stats.kstest(u.flatten().numpy(), "uniform").statistic < 1.95 / n**0.5
    # Neighbours along rows and columns, and G at the same address, are uncorrelated.
    G = rf.gaussian(4000, 500, seed=11, dtype=F64)
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1]), (centred, G / 12**0.5)):
        assert abs((a * b).mean()) < 5 / 12 / a.numel() ** 0.5


def test_every_bit_of_float64_is_random() -> None:
    k = (rf.uniform(1000, 1000, seed=3, dtype=F64) * 2.0**53).long() // 2
    for bit in range(52):
        assert abs((k >> bit & 1).double().mean() - 0.5) < 5 * 0.5 / 1000  # standard deviations of a fair coin


# --- known answers, from an implementation of its own ---

KNOWN = {
    F32: (
        "0x1.f0c1a00000000p-5 0x1.2a3f860000000p-1 0x1.5c72a80000000p-3 0x1.e1cdf20000000p-1",
        "555698dc55dcc08251a38119db95efde736662c82146c74b0749538c33a32e4c",
    ),
    F64: (
        "0x1.f0c18cce03890p-5 0x1.2a3f869b4e0dfp-1 0x1.5c72a2dc68344p-3 0x1.e1cdf3164e11dp-1",
        "b1ff24e73dd08493992904fa384b22131af3f5d18ab37e3fec0859b6212385c9",
    ),
    torch.bfloat16: (
        "0x1.e000000000000p-5 0x1.2a00000000000p-1 0x1.5800000000000p-3 0x1.e200000000000p-1",
        "a32845b3366620d9e715874ec3b63ea0a9a3509b131da3e17f8d13e86f342908",
    ),
    torch.float16: (
        "0x1.f400000000000p-5 0x1.2a40000000000p-1 0x1.5d00000000000p-3 0x1.e1c0000000000p-1",
        "2e4818422c3a7b52b97e54a2831e4c1ad83c0d044b26f6bbdf36808dbf37fded",
    ),
}


@each_dtype
def test_known_answers(dtype: torch.dtype) -> None:
    first, sha256 = KNOWN[dtype]
    at = (SEED, 7, 0, 0)
    got = uniform_reference(list(at), 256, 256, dtype)
    assert " ".join(float(u).hex() for u in got[0, :4]) == first
    assert hashlib.sha256(got.astype("<f8").tobytes()).hexdigest() == sha256
    far = (2**63 - 1, 2**32 - 1, 2**56 - 33, 2**34 - 203)
    for where, rows, cols in ((at, 256, 256), (far, 33, 203)):
        values = textbook.uniform(where, rows, cols, BITS[dtype])
        assert np.array_equal(uniform_reference(list(where), rows, cols, dtype), values)


# --- several seeds ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_seeds(guarded, backend: str) -> None:
    at = {"stream": 5, "row_offset": 2**32 - 3, "col_offset": 1, "dtype": F64, "backend": backend}
    seeds = [3, 2**63 - 1, 3]
    for tile, seed in zip(rf.uniform(7, 5, seed=seeds, **at), seeds, strict=True):
        assert differing_bits(tile, rf.uniform(7, 5, seed=seed, **at)) == 0
    whole = guarded(2, 7, 9)
    rf.uniform(7, 5, seed=rf.key(range(2), 5), out=whole[:, :, 1:6], backend=backend)
    assert differing_bits(whole[1, :, 1:6], rf.uniform(7, 5, seed=1, stream=5)) == 0
    assert whole[:, :, 0].isnan().all() and whole[:, :, 6:].isnan().all()
    assert rf.uniform(7, 5, seed=[], backend=backend).shape == (0, 7, 5)


def test_a_batch_of_keys() -> None:
    keys = rf.key(range(3), 5)
    got = torch.vmap(lambda key: rf.uniform(7, 3, seed=key))(keys)
    assert differing_bits(got, rf.uniform(7, 3, seed=range(3), stream=5)) == 0


# --- registration ---


def test_registration() -> None:
    torch.library.opcheck(OP, (9, 5, rf.key(1, 2, 3, 1), torch.bfloat16, CPU, None))
    torch.library.opcheck(OP, (9, 5, rf.key([1, 2]), F64, CPU, None))
    torch.library.opcheck(OUT, (rf.key(1, 2, 3, 1), None, torch.empty(9, 5)))
    torch.library.opcheck(OUT, (rf.key([1, 2]), None, torch.empty(2, 9, 5)))


@pytest.mark.parametrize("form", ["value", "out"])
def test_one_compilation_for_ten_seeds(form: str) -> None:
    def tile(key: Tensor) -> Tensor:
        out = torch.zeros(6, 7) if form == "out" else None
        return rf.uniform(6, 7, seed=key, out=out) * 2

    assert_compiles_once(tile, [(rf.key(seed, row_offset=seed),) for seed in range(10)])


# --- bad input: the checks are those of gaussian ---

BAD = {
    "rows": ({"rows": -1}, ValueError, r"rows=-1: wanted rows >= 0"),
    "cols-float": ({"cols": 4.0}, TypeError, r"cols=4\.0: wanted an integer"),
    "seed": ({"seed": 2**63}, ValueError, r"seed=9223372036854775808: wanted 0 <= seed < 2\^63"),
    "last-row": ({"row_offset": 2**56 - 3}, ValueError, r"rows=4 at .*: wanted row_offset \+ rows <= 2\^56"),
    "last-col": ({"col_offset": 2**34 - 3}, ValueError, r"cols=4 at .*: wanted col_offset \+ cols <= 2\^34"),
    "key-shape": ({"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, r"int64 tensor of shape \(4,\)"),
    "key-twice": ({"seed": rf.key(1), "stream": 1}, ValueError, r"packed key, which holds stream and offsets already"),
    "out-shape": ({"rows": 3}, ValueError, r"out has shape \(4, 4\): wanted \(rows, cols\) = \(3, 4\)"),
    "out-dtype": ({"out": torch.zeros(4, 4, dtype=torch.int32)}, TypeError, r"out is torch.int32: wanted one of"),
    "backend": ({"backend": "abacus"}, ValueError, r"backend='abacus' is not available on cpu: present are"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"rows": 4, "cols": 4, "seed": 1, "out": torch.full((4, 4), 7.0), **change}
    before = arguments["out"].clone()
    with pytest.raises(error, match=message):
        rf.uniform(arguments.pop("rows"), arguments.pop("cols"), **arguments)
    assert torch.equal(arguments["out"], before), "written before the error"


def test_bad_dtype_and_layout() -> None:
    with pytest.raises(TypeError, match=r"dtype=torch.int64: wanted one of torch.float32, .*torch.float16"):
        rf.uniform(4, 4, seed=1, dtype=torch.int64)
    out = torch.full((4, 4), 7.0).T
    if "cpu" in BACKENDS:
        with pytest.raises(ValueError, match=r"out has strides \(1, 4\): wanted contiguous rows"):
            rf.uniform(4, 4, seed=1, out=out)
        assert (out == 7).all()
    rf.uniform(4, 4, seed=1, out=out, backend="reference")
    assert differing_bits(out, expected(4, 4, 1)) == 0
