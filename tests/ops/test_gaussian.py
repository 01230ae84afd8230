# SPDX-License-Identifier: BSD-3-Clause
"""gaussian: the same bits for every backend, instruction set, tiling, offset, shard and thread count."""

import hashlib
import random
from functools import cache

import numpy as np
import pytest
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
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.gaussian import GAUSSIAN_KIND, choices, gaussian_reference, philox_reference, words_reference

SEED = 0x0123456789ABCDEF
OP, OUT = torch.ops.rainbow_fast.gaussian.default, torch.ops.rainbow_fast.gaussian_out.default
CPU = torch.device("cpu")


def expected(rows: int, cols: int, seed: int, stream: int = 0, row_offset: int = 0, col_offset: int = 0) -> Tensor:
    return torch.from_numpy(gaussian_reference([seed, stream, row_offset, col_offset], rows, cols))


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
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_matches_reference(tile: tuple[int, int, int, int], name: str) -> None:
    rows, cols, row_offset, col_offset = tile
    address = {"seed": 2**63 - 1, "stream": 2**32 - 1, "row_offset": row_offset, "col_offset": col_offset}
    with level(name):
        assert differing_bits(rf.gaussian(rows, cols, backend="cpu", **address), expected(rows, cols, **address)) == 0


# A tile of 10^7 numbers, whose sides are not multiples of four, and whose rows cross 2^32.
ROWS, COLS = 2503, 4001
AT = {"seed": SEED, "stream": 5 << 12 | 3, "row_offset": 2**32 - 1201, "col_offset": 2**32 - 2002}


@cache
def ten_million() -> Tensor:
    return expected(ROWS, COLS, **AT)


@pytest.mark.parametrize("name", LEVELS)
def test_ten_million_values_in_random_tiles(name: str) -> None:
    draw = random.Random(name)
    cut_rows = [0, *sorted(draw.sample(range(1, ROWS), 7)), ROWS]
    cut_cols = [0, *sorted(draw.sample(range(1, COLS), 5)), COLS]
    tiled = torch.full((ROWS, COLS), torch.nan)
    with level(name):
        for top, bottom in zip(cut_rows, cut_rows[1:], strict=False):
            for left, right in zip(cut_cols, cut_cols[1:], strict=False):
                at = {**AT, "row_offset": AT["row_offset"] + top, "col_offset": AT["col_offset"] + left}
                out = tiled[top:bottom, left:right]
                rf.gaussian(bottom - top, right - left, out=out, backend="cpu", **at)
    assert ROWS * COLS >= 10**7 and differing_bits(tiled, ten_million()) == 0


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_round_the_float32_value(dtype: torch.dtype, name: str) -> None:
    at = {"seed": 3, "col_offset": 1}
    with level(name):
        assert differing_bits(rf.gaussian(1001, 517, dtype=dtype, **at), expected(1001, 517, **at).to(dtype)) == 0


def test_reference_backend_takes_every_dtype() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        got = rf.gaussian(5, 7, seed=1, row_offset=3, dtype=dtype, backend="reference")
        assert differing_bits(got, expected(5, 7, 1, row_offset=3).to(dtype)) == 0


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_writes_its_tile_and_nothing_else(guarded, backend: str, dtype: torch.dtype) -> None:
    whole = guarded(33, 70, dtype=dtype)
    out = rf.gaussian(33, 61, seed=1, col_offset=3, out=whole[:, 5:66], backend=backend)
    assert differing_bits(whole[:, 5:66], expected(33, 61, 1, col_offset=3).to(dtype)) == 0
    assert out.data_ptr() == whole[:, 5:66].data_ptr()
    assert whole[:, :5].isnan().all() and whole[:, 66:].isnan().all()


# --- invariants ---


@pytest.mark.parametrize("name", LEVELS)
def test_any_number_of_threads(name: str) -> None:
    with level(name):
        assert_same_for_threads(lambda: rf.gaussian(1013, 1031, seed=2, col_offset=1))


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_and_nesting(backend: str) -> None:
    whole = rf.gaussian(300, 90, seed=4, stream=9, backend=backend)
    shards = [rf.gaussian(100, 90, seed=4, stream=9, row_offset=100 * s, backend=backend) for s in range(3)]
    assert differing_bits(torch.cat(shards), whole) == 0
    smaller = rf.gaussian(17, 33, seed=rf.key(4, 9), backend=backend)  # width and rank nest; a key is its numbers
    assert differing_bits(smaller, whole[:17, :33]) == 0


def test_every_part_of_the_address_matters() -> None:
    tiles = [
        rf.gaussian(8, 8, **at)
        for at in (
            {"seed": 1},
            {"seed": 1 + 2**40},
            {"seed": 1, "stream": 1},
            {"seed": 1, "row_offset": 8},
            {"seed": 1, "row_offset": 2**32},  # the same low word
            {"seed": 1, "col_offset": 8},
            {"seed": 1, "col_offset": 2**33},
        )
    ]
    for i, a in enumerate(tiles):
        assert all((a != b).all() for b in tiles[:i])


def test_moments_and_independence() -> None:
    g = rf.gaussian(4000, 500, seed=11).double()
    # Bounds are five standard deviations of each statistic for 2e6 independent normals.
    for power, mean, deviation in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((g**power).mean() - mean) < 5 * deviation / g.numel() ** 0.5
    # The largest eigenvalue of a white covariance ends at (1 + sqrt(500 / 4000))^2 = 1.832, the smallest at 0.418.
    eigenvalues = torch.linalg.eigvalsh(g.T @ g / len(g))
    assert 0.40 < eigenvalues[0] and eigenvalues[-1] < 1.86


def test_nothing_global_is_touched() -> None:
    numpy_before = np.random.get_state()[1].copy()
    with random_state_untouched():
        for backend in BACKENDS:
            rf.gaussian(10, 10, seed=1, backend=backend)
            choices(10, 3, seed=1)
    assert (np.random.get_state()[1] == numpy_before).all()


# --- known answers ---

ONES = 0xFFFFFFFF
RANDOM123 = {  # tests/kat_vectors of Random123, philox4x32 of ten rounds: counter, key, answer
    "zeros": ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ([ONES] * 4, [ONES] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


@pytest.mark.parametrize("vector", RANDOM123.values(), ids=RANDOM123)
def test_philox_known_answers(vector: tuple[list[int], list[int], str]) -> None:
    counter, key, answer = vector
    assert " ".join(f"{int(word):08x}" for word in philox_reference(counter, key)) == answer


@pytest.mark.parametrize(
    ("version", "first", "last", "sha256"),
    [
        (
            0,  # rows above 3 * 2^32: the counter's last word is 3
            "3ee69be4 bf932f05 bec97d95 bef6643b",
            "bd7080f3 3fed1f4e 3ee61909 3fd61817",
            "ed6c8149313a660789b95352d67f13a8f74686a9507af2fb205c6809c48e3650",
        ),
        (
            1,
            "3f725f19 3e4d84b3 3e1f5305 bf0a1803",
            "3f84ef74 3f361fcd 3eb4a282 becb1411",
            "e8334fb8fcccd080803bab7d81b236b110d2c545f11a63daf07ed3c8dd238662",
        ),
    ],
    ids=["tag-3", "version-1"],
)
def test_known_answers(version: int, first: str, last: str, sha256: str) -> None:
    tile = gaussian_reference([SEED, 7, 0 if version else 3 << 32, 0], 256, 256, version)
    assert " ".join(f"{word:08x}" for word in tile.view(np.uint32)[0, :4]) == first
    assert " ".join(f"{word:08x}" for word in tile.view(np.uint32)[255, 252:]) == last
    assert hashlib.sha256(tile.astype("<f4").tobytes()).hexdigest() == sha256


@pytest.mark.parametrize("name", LEVELS)
def test_known_sha256_of_the_kernels(name: str) -> None:
    with level(name):
        tile = rf.gaussian(256, 256, seed=SEED, stream=7, backend="cpu")
    sha256 = "e8334fb8fcccd080803bab7d81b236b110d2c545f11a63daf07ed3c8dd238662"
    assert hashlib.sha256(tile.numpy().astype("<f4").tobytes()).hexdigest() == sha256


EDGES = {"first pair": (24803, 4088, slice(0, 2)), "second pair": (9363, 3836, slice(2, 4))}


@pytest.mark.small
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_a_word_that_rounds_to_2_to_the_32(edge: tuple[int, int, slice], name: str) -> None:
    """The word of a radius is so large that v is 1: the radius is 0, and both numbers are zeros with their signs.

    About one word in 2^25 is so large.
    """
    row, col, pair = edge
    word = words_reference([0, 0, row, col], 1, 1, GAUSSIAN_KIND, 1)[pair.start].item()
    assert word >= 2**32 - 2**7 and np.float32(word) == 2**32  # once in 2^25 words
    G = rf.gaussian(1, 4, seed=0, row_offset=row, col_offset=col, backend=name)
    assert [f"{bits & 0xFFFFFFFF:08x}" for bits in G.view(torch.int32)[0, pair].tolist()] == ["00000000", "80000000"]
    assert differing_bits(G, expected(1, 4, 0, 0, row, col)) == 0


def test_transform_is_box_muller() -> None:
    """The four normal numbers of a counter, computed from its words by the textbook's formula in float64."""
    x = [w.astype(np.float64) for w in words_reference([SEED, 7, 0, 0], 64, 16, GAUSSIAN_KIND, 1)]
    v = x[0].astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)  # near 1, its rounding is what counts
    radius = np.sqrt(-2 * np.log(v.astype(np.float64)))
    angle = np.pi / 2 * ((x[1] + 2**29) % 2**30) / 2**30  # of the low 30 bits; the top two are signs
    got = gaussian_reference([SEED, 7, 0, 0], 64, 64)
    # 1e-6: the transform's polynomials have relative errors up to 2e-7, and a radius is at most 6.7
    np.testing.assert_allclose(np.abs(got[:, 0::4]), radius * np.abs(np.cos(angle)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.abs(got[:, 1::4]), radius * np.abs(np.sin(angle)), rtol=1e-6, atol=1e-6)


def test_choices() -> None:
    first = words_reference([5, 2, 0, 0], 1000, 1, 1, 1)[0][:, 0].astype(object)  # kind 1; exact integers
    assert choices(1000, 7, seed=5, stream=2).tolist() == [int(x) * 7 >> 32 for x in first]
    assert torch.equal(choices(10, 7, seed=5, stream=2, row_offset=990), choices(1000, 7, seed=5, stream=2)[990:])
    counts = choices(70_000, 7, seed=5).bincount(minlength=7)
    assert counts.numel() == 7 and (counts - 10_000).abs().max() < 5 * 93  # five deviations of a binomial


# --- several seeds ---


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_seeds(guarded, backend: str) -> None:
    at = {"stream": 5, "row_offset": 2**32 - 3, "col_offset": 1, "dtype": torch.float64, "backend": backend}
    seeds = [3, 2**63 - 1, 3]
    for tile, seed in zip(rf.gaussian(7, 5, seed=seeds, **at), seeds, strict=True):
        assert differing_bits(tile, rf.gaussian(7, 5, seed=seed, **at)) == 0
    key = rf.key(range(2), 5)
    assert key.tolist() == [[0, 5, 0, 0], [1, 5, 0, 0]]
    key[1, 2] = 4  # each seed has its own address
    whole = guarded(2, 7, 9)
    rf.gaussian(7, 5, seed=key, out=whole[:, :, 1:6], backend=backend)
    assert differing_bits(whole[1, :, 1:6], rf.gaussian(7, 5, seed=1, stream=5, row_offset=4)) == 0
    assert whole[:, :, 0].isnan().all() and whole[:, :, 6:].isnan().all()
    assert rf.gaussian(7, 5, seed=[], backend=backend).shape == (0, 7, 5)


# --- registration ---


def test_registration() -> None:
    torch.library.opcheck(OP, (9, 5, rf.key(1, 2, 3, 1), torch.bfloat16, CPU, None))
    torch.library.opcheck(OUT, (rf.key(1, 2, 3, 1), None, torch.empty(9, 5)))
    torch.library.opcheck(OP, (9, 5, rf.key([1, 2]), torch.float32, CPU, None))
    torch.library.opcheck(OUT, (rf.key([1, 2]), None, torch.empty(2, 9, 5)))


@pytest.mark.parametrize("form", ["value", "out"])
def test_one_compilation_for_ten_seeds(form: str) -> None:
    def tile(key: Tensor) -> Tensor:
        out = torch.zeros(6, 7) if form == "out" else None
        return rf.gaussian(6, 7, seed=key, out=out) * 2

    assert_compiles_once(tile, [(rf.key(seed, row_offset=seed),) for seed in range(10)])
    if form == "value":
        assert_compiles_once(tile, [(rf.key([seed, seed + 1]),) for seed in range(10)])


def test_one_compilation_for_int_seeds_where_ints_are_dynamic() -> None:
    calls = [(seed, seed + 20) for seed in range(3, 13)]
    assert_compiles_once(lambda seed, rows: rf.gaussian(rows, 7, seed=seed), calls, dynamic=True)


# --- bad input ---

BAD = {
    "rows": ({"rows": -1}, ValueError, r"rows=-1: wanted rows >= 0"),
    "cols": ({"cols": -2}, ValueError, r"cols=-2: wanted cols >= 0"),
    "seed": ({"seed": 2**63}, ValueError, r"seed=9223372036854775808: wanted 0 <= seed < 2\^63"),
    "stream": ({"stream": -1}, ValueError, r"stream=-1: wanted 0 <= stream < 2\^32"),
    "row-offset": ({"row_offset": 2**56}, ValueError, r"row_offset=\d+: wanted 0 <= row_offset < 2\^56"),
    "col-offset": ({"col_offset": 2**34}, ValueError, r"col_offset=\d+: wanted 0 <= col_offset < 2\^34"),
    "last-row": ({"row_offset": 2**56 - 3}, ValueError, r"rows=4 at .*: wanted row_offset \+ rows <= 2\^56"),
    "last-col": ({"col_offset": 2**34 - 3}, ValueError, r"cols=4 at .*: wanted col_offset \+ cols <= 2\^34"),
    "seed-float": ({"seed": 0.5}, TypeError, r"seed=0\.5: wanted an integer, got float"),
    "key-shape": ({"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, r"int64 tensor of shape \(4,\)"),
    "seeds-float": ({"seed": [1, 0.5]}, TypeError, r"seed=0\.5: wanted an integer, got float"),
    "seed-bytes": ({"seed": b"ab"}, TypeError, r"seed=b'ab': wanted an integer, got bytes"),
    "seed-bool": ({"seed": True}, TypeError, r"seed=True: wanted an integer, got bool"),
    "seed-array": ({"seed": np.arange(2)}, TypeError, r"seed=array.*: wanted an integer, got ndarray"),
    "row-float": ({"row_offset": 1.7}, TypeError, r"row_offset=1\.7: wanted an integer"),
    "rows-float": ({"rows": 4.0}, TypeError, r"rows=4\.0: wanted an integer"),
    "key-seed": ({"seed": torch.tensor([-1, 0, 0, 0])}, ValueError, r"seed of the key=-1: wanted 0 <= seed of the key"),
    "key-stream": ({"seed": torch.tensor([1, 2**32 + 5, 0, 0])}, ValueError, r"stream of the key=4294967301: wanted"),
    "key-row": ({"seed": torch.tensor([1, 0, -5, 0])}, ValueError, r"row_offset of the key=-5: wanted"),
    "key-col": ({"seed": torch.tensor([1, 0, 0, -4])}, ValueError, r"col_offset of the key=-4: wanted"),
    "seeds-range": ({"seed": [1, -2]}, ValueError, r"seed=-2: wanted 0 <= seed < 2\^63"),
    "key-axes": ({"seed": rf.key([1]).unsqueeze(0)}, ValueError, r"int64 tensor of shape \(4,\) or \(S, 4\)"),
    "seeds-out": ({"seed": [1, 2]}, ValueError, r"out has shape \(4, 4\): wanted \(S, rows, cols\) = \(2, 4, 4\)"),
    "seeds-last-row": (
        {"seed": rf.key(1, 0, 2**56 - 3).repeat(2, 1), "out": None},
        ValueError,
        r"rows=4 at .*: wanted",
    ),
    "key-twice": ({"seed": rf.key(1), "stream": 1}, ValueError, r"packed key, which holds stream and offsets already"),
    "out-shape": ({"rows": 3}, ValueError, r"out has shape \(4, 4\): wanted \(rows, cols\) = \(3, 4\)"),
    "out-dtype": ({"out": torch.zeros(4, 4, dtype=torch.int32)}, TypeError, r"out is torch.int32: wanted one of"),
    "backend": (
        {"backend": "abacus"},
        ValueError,
        r"backend='abacus' is not available on cpu: present are .*reference",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"rows": 4, "cols": 4, "seed": 1, "out": torch.full((4, 4), 7.0), **change}
    before = None if arguments["out"] is None else arguments["out"].clone()
    with pytest.raises(error, match=message):
        rf.gaussian(arguments.pop("rows"), arguments.pop("cols"), **arguments)
    assert before is None or torch.equal(arguments["out"], before), "written before the error"


@pytest.mark.small
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_dtype(backend: str) -> None:
    with pytest.raises(TypeError, match=r"dtype=torch.int64: wanted one of torch.float32, .*torch.float16"):
        rf.gaussian(4, 4, seed=1, dtype=torch.int64, backend=backend)
    with pytest.raises(TypeError, match=r"out is torch.int32: wanted one of"):
        rf.gaussian(4, 4, seed=1, out=torch.zeros(4, 4, dtype=torch.int32), backend=backend)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the reference takes any layout")
def test_bad_layout() -> None:
    out = torch.full((4, 4), 7.0).T
    with pytest.raises(ValueError, match=r"out has strides \(1, 4\): wanted contiguous rows"):
        rf.gaussian(4, 4, seed=1, out=out)
    assert (out == 7).all()
    rf.gaussian(4, 4, seed=1, out=out, backend="reference")
    assert differing_bits(out, expected(4, 4, 1)) == 0


@pytest.mark.parametrize(
    "change", [{"rows": -1}, {"count": 0}, {"count": 2**32}], ids=["rows", "no-choice", "too-many-choices"]
)
def test_bad_choices(change: dict) -> None:
    with pytest.raises(ValueError, match=r"seed holds 2 seeds: wanted one"):
        choices(1, 1, seed=[1, 2])
    with pytest.raises(ValueError, match=r"wanted (rows >= 0|1 <= count < 2\^32)"):
        choices(**{"rows": 1, "count": 1, "seed": 0, **change})
