# SPDX-License-Identifier: BSD-3-Clause
"""The emulation that runs csrc/cuda/*.cu on a CPU: right programs give a GPU's results, and wrong ones are found."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import sanitize_order
import torch
from cuda_on_cpu import build
from here import differing_bits, draw
from torch import Tensor

from rainbow_fast import backend
from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.ops.uniform import uniform_reference

if not (os.environ.get("CXX") or shutil.which("c++")):
    pytest.skip("no C++ compiler here", allow_module_level=True)

ORDERS = range(6)  # orders of blocks, warps and lanes: forward, backward, and four random ones
HERE = (0, 0, 0, 0)  # struct Stream: no device, no workspace


@pytest.fixture(autouse=True)
def forward_again() -> Iterator[None]:
    yield
    build.set_order(0)


def toy(name: str, *arguments: Tensor | int) -> str:
    """Runs a kernel of toys.cu and returns what went wrong; empty if nothing did."""
    function = getattr(build.library(), f"rf_{name}")
    function.restype = ctypes.c_char_p
    return function(*(a if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) for a in arguments)).decode()


# --- tensor cores ---

LANE = torch.arange(32)
G, T = LANE[:, None] // 4, LANE[:, None] % 4
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}


def word(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A word with x[row, column] and, for 16 bits, the number below it in the same column."""
    if x.dtype == torch.float32:
        return x.view(torch.int32)[row, column]
    bits = x.view(torch.int16).int() & 0xFFFF
    return bits[row, column] | bits[row + 1, column] << 16


def multiply(name: str, d: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """d (16, 8) + a (16, terms) b (terms, 8), computed by one warp in the layouts of csrc/cuda/device.h."""
    k = torch.arange(4)
    term = T + 4 * (k // 2) if name == "tf32" else 2 * T + 8 * (k // 2)
    x = word(a.T, term, G + 8 * (k % 2))
    y = word(b, term[:, ::2], G.expand(32, 2))
    place = (G + 8 * (k // 2), 2 * T + k % 2)
    sums = d[place].contiguous()
    assert toy("product", sums, x.contiguous(), y.contiguous(), list(TYPES).index(name)) == ""
    out = torch.empty_like(d)
    out[place] = sums
    return out


@pytest.mark.parametrize("name", TYPES)
def test_product_of_integers_is_exact(name: str) -> None:
    terms = 8 if name == "tf32" else 16
    d, a, b = (t.mul(10).round() for t in (draw(16, 8), draw(16, terms, seed=1), draw(terms, 8, seed=2)))
    assert differing_bits(multiply(name, d, a.to(TYPES[name]), b.to(TYPES[name])), d + a @ b) == 0


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is not above |x|."""
    return torch.ldexp(torch.ones_like(x), x.frexp().exponent - 1).where(x != 0, 0)


def product_on_an_a100(d: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The result according to two models fitted to a GPU (Khattak and Mikaitis, arXiv 2512.07004; MMA-Sim), in float64.

    Half of the terms are added at a time. They and the number that they are added to are cut off at 2^-24 of the
    largest, by exponents of factors. Then their sum is cut off at 24 bits.
    """
    for x, y in zip(a.chunk(2, 1), b.chunk(2, 0), strict=True):
        products = torch.cat([d[:, None], x[:, :, None] * y], 1)
        sizes = torch.cat([power_of_two(d)[:, None], power_of_two(x)[:, :, None] * power_of_two(y)], 1)
        step = sizes.amax(1, keepdim=True) * 2.0**-24
        exact = ((products / step).trunc() * step).sum(1)
        step = power_of_two(exact) * 2.0**-23
        d = (exact / step).trunc() * step
    return d


@pytest.mark.parametrize("name", TYPES)
def test_product_is_that_of_an_a100(name: str) -> None:
    terms = 8 if name == "tf32" else 16
    d, a, b = draw(16, 8), draw(16, terms, seed=1).to(TYPES[name]), draw(terms, 8, seed=2).to(TYPES[name])
    b[:, 0] *= 2.0**-20  # so that d is large compared with the product
    a[:, 0] *= 2.0**9  # and that one term is large compared with the others
    seen = [(t.view(torch.int32) & ~0x1FFF).view(torch.float32) if name == "tf32" else t for t in (a, b)]
    assert torch.equal(multiply(name, d, a, b).double(), product_on_an_a100(d.double(), *(t.double() for t in seen)))


@pytest.mark.parametrize("name", TYPES)
def test_product_of_infinities(name: str) -> None:
    terms = 8 if name == "tf32" else 16
    d, a, b = (draw(16, 8), draw(16, terms, seed=1).to(TYPES[name]), draw(terms, 8, seed=2).to(TYPES[name]))
    a[0, 0], a[1, 1], a[2, 2], b[0, :3], d[3, 3] = torch.inf, torch.nan, -torch.inf, 0, torch.inf
    wanted, got = d + a.float() @ b.float(), multiply(name, d, a, b)
    finite = wanted.isfinite()
    torch.testing.assert_close(got[~finite], wanted[~finite], equal_nan=True)
    assert got[finite].isfinite().all() and 0 < finite.sum() < finite.numel()


def test_product_of_float64() -> None:
    d, a, b = (draw(8, n, dtype=torch.float64, seed=n) for n in (8, 4, 4))
    place = (G, 2 * T + torch.arange(2))
    sums = d[place].contiguous()
    assert toy("product_f64", sums, a.contiguous(), b.contiguous()) == ""  # lane 4 g + t: a[g, t], b[t, g]
    # float64 sums of five terms of order one
    torch.testing.assert_close(sums, (d + a @ b.T)[place], rtol=0, atol=1e-14)


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrices_of_shared_memory(transposed: int) -> None:
    matrices, out = torch.arange(256, dtype=torch.int16).view(4, 8, 8), torch.zeros(32, 4, dtype=torch.int32)
    assert toy("matrices", out, matrices, transposed, 0) == ""
    for k, matrix in enumerate(matrices.mT if transposed else matrices):
        assert torch.equal(out[:, k : k + 1], word(matrix.T, 2 * T, G))
    assert "load_matrices" in toy("matrices", out, matrices, transposed, 4)  # rows that are not aligned


@pytest.mark.parametrize("name, dtype", [("shuffles", torch.float32), ("shuffles_f64", torch.float64)])
def test_shuffles(name: str, dtype: torch.dtype) -> None:
    source = torch.randperm(32, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    values, out = draw(32, dtype=dtype), torch.empty(2, 32, dtype=dtype)
    assert toy(name, out, values, source) == ""
    assert torch.equal(out, torch.stack([values[source.long()], values[LANE ^ 11]]))


# --- numbers ---


def test_rounding_to_16_bits_and_to_tf32() -> None:
    wide = draw(4096).view(torch.int32)
    ties = (wide[:1024] & ~0xFFFF) | 0x8000, (wide[1024:2048] & ~0x1FFF) | 0x1000
    small = (draw(1024, seed=1) * 2.0**-20).view(torch.int32)  # subnormal in float16
    special = torch.tensor([0.0, -0.0, np.inf, -np.inf, np.nan, 65519.0, 65520.0, 2.0**-25, 2.0**-24, 3e38, 1e-40])
    x = torch.cat([wide, *ties, small, special.view(torch.int32), torch.zeros(53, dtype=torch.int32)])
    x = x.view(torch.float32)
    out = torch.empty(len(x), 3, dtype=torch.int32)
    assert toy("narrow", out, x, len(x) // 64) == ""
    for k, dtype in enumerate([torch.bfloat16, torch.float16]):
        for value, bits in ((x, out[:, k] << 16 >> 16), (-x, out[:, k] >> 16)):
            got, wanted = bits.to(torch.int16).view(dtype), value.to(dtype)
            assert torch.equal(got.isnan(), wanted.isnan())
            assert differing_bits(got.nan_to_num(1), wanted.nan_to_num(1)) == 0
    got, exact = out[:, 2].view(torch.float32), x.double()
    assert (out[:, 2] & 0x1FFF)[~x.isnan()].eq(0).all() and torch.equal(got.isnan(), x.isnan())
    # No subnormal numbers, and no number that rounds to infinity
    normal = x.isfinite() & (x.abs() > 1e-37) & (x.abs() < 3e38)
    step = 2 ** (exact.abs().log2().floor() - 10)
    away = exact.sign() * (exact.abs() / step + 0.5).floor() * step
    assert torch.equal(got.double()[normal], away[normal])


def test_every_number_of_16_bits() -> None:
    bits = torch.arange(65536).to(torch.int32).to(torch.int16)
    out = torch.empty(65536, 2)
    assert toy("widen", out, bits, 1024) == ""
    for k, dtype in enumerate([torch.bfloat16, torch.float16]):
        wanted = bits.view(dtype).float()
        assert torch.equal(out[:, k].isnan(), wanted.isnan())
        assert differing_bits(out[:, k].nan_to_num(1), wanted.nan_to_num(1)) == 0


# --- copies and barriers: right programs are right in every order, wrong ones are seen in one ---

FAULTS = ["none", "no wait", "no barrier", "overwrites what others read"]


@pytest.mark.parametrize("fault", FAULTS)
def test_pipeline(fault: str) -> None:
    steps = 5
    values, right = draw(steps, 64, 4), []
    for order in ORDERS:
        build.set_order(order)
        out = torch.zeros(steps, 64, 4)
        assert toy("pipeline", out, values, steps, FAULTS.index(fault)) == ""
        right.append(torch.equal(out, values.flip(1)))
    assert all(right) if fault == "none" else not any(right)


def test_copies_of_fewer_bytes() -> None:
    source = torch.arange(512, dtype=torch.int16).to(torch.uint8).view(32, 16)
    out = torch.ones(32, 16, dtype=torch.uint8)
    assert toy("partial", out, source, 0) == ""
    assert torch.equal(out, source * (torch.arange(16) < LANE[:, None] // 2))
    assert "copies to an address that is not aligned to 16 bytes" in toy("partial", out, source, 4)


def test_positive_part_of_two_numbers_at_once() -> None:
    """max(x, 0) of both halves of a word, also for infinities and zeros of both signs; NaN stays."""
    numbers = torch.cat([draw(58), torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, torch.nan, -torch.nan])])
    inputs = [numbers.to(dtype) for dtype in (torch.bfloat16, torch.float16)]
    outputs = [t.clone() for t in inputs]
    assert toy("positive", *outputs) == ""
    for got, t in zip(outputs, inputs, strict=True):
        torch.testing.assert_close(got, t.relu(), rtol=0, atol=0, equal_nan=True)


def test_warps_may_take_different_numbers_of_shuffles() -> None:
    out = torch.empty(3)
    for order in ORDERS:
        build.set_order(order)
        assert toy("folds", out, 3) == ""
        assert (out == 32 + 32**2 + 32**3 + 32**4).all()


def test_missing_barrier_gives_other_numbers_in_another_order() -> None:
    results = {0: set(), 1: set()}
    for ordered, outcomes in results.items():
        for order in ORDERS:
            build.set_order(order)
            out = torch.empty(64, dtype=torch.int32)
            assert toy("neighbours", out, ordered) == ""
            outcomes.add(tuple(out.tolist()))
    assert results[1] == {(*range(32, 64), *range(32))} and len(results[0]) > 1


def test_shared_memory_of_a_block_begins_as_nan() -> None:
    out = torch.zeros(2, 64, 2)
    assert toy("unwritten", out, 2) == ""
    assert (out[0] == 1).all() and out[1].isnan().all()  # block 1 does not see what block 0 has written


# --- errors ---


@pytest.mark.parametrize(
    "how, thread, here, there",
    [
        (0, 7, "the end of the kernel", "shuffle"),
        (1, 7, "warp_barrier", "shuffle"),
        (2, 63, "the end of the kernel", "barrier"),
    ],
    ids=["leaves", "elsewhere", "warp-leaves"],
)
def test_lanes_that_part(how: int, thread: int, here: str, there: str) -> None:
    said = toy("diverges", torch.empty(64, dtype=torch.int32), how)
    for part in ["kernel diverges", "block (0, 0, 0)", f"thread ({thread}, 0, 0)", f"is at {here} ", f"is at {there}"]:
        assert part in said
    assert toy("folds", torch.empty(3), 3) == ""  # and the next launch works


@pytest.mark.parametrize("index", [-1, 64, 100])
def test_write_outside_of_shared_memory(index: int) -> None:
    out = torch.empty(1, dtype=torch.int32)
    said = toy("touches", out, 0, index)
    assert "kernel touches, block (0, 0, 0)" in said and f"byte {4 * index} of 256 of shared memory" in said
    assert toy("touches", out, 0, 63) == ""


@pytest.mark.parametrize("blocks, threads, shared", [(0, 32, 0), (1, 48, 0), (1, 2048, 0), (1, 32, 2**18)])
def test_launch_that_no_gpu_takes(blocks: int, threads: int, shared: int) -> None:
    assert "the CUDA kernel touches was not launched" in toy("launch", blocks, threads, shared)


# --- random numbers, bit for bit ---

TILES = {  # rows, cols, row_offset, col_offset, entries before each row of the result
    "one": (1, 1, 0, 0, 0),
    "columns-within-a-group": (3, 2, 5, 4 * 7 + 1, 1),
    "unaligned-rows": (9, 259, 2**32 - 4, 2, 3),
    "aligned-rows": (17, 264, 2**56 - 17, 2**34 - 264, 0),
    "columns-cross-2^32": (5, 131, 2**40 + 3, 2**32 - 67, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
@pytest.mark.parametrize("op", ["gaussian", "uniform"])
def test_random_numbers(guarded, op: str, tile: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    rows, cols, row, col, gap = tile
    at = (2**63 - 1, 2**32 - 1, row, col)
    values = {
        "gaussian": lambda: gaussian_reference(list(at), rows, cols),
        "uniform": lambda: uniform_reference(list(at), rows, cols, dtype),
    }[op]()
    expected = torch.from_numpy(values).to(dtype)
    for order in ORDERS[:3]:
        build.set_order(order)
        whole = guarded(rows, gap + cols, dtype=dtype)
        out = whole[:, gap:]
        code = backend.CODE[dtype]
        getattr(build.load().cuda, op)(out.data_ptr(), code, rows, cols, whole.stride(0), at, HERE)
        assert differing_bits(out, expected) == 0 and whole[:, :gap].isnan().all()


def test_an_unknown_kind_of_build_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: got 'thread', wanted one of '', 'sanitize', 'order'"):
        build.build("thread")


@pytest.mark.parametrize("refused", [False, True])
def test_addresses_are_not_random_under_thread_sanitizer(
    refused: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    present, asked = 0x0000008, []

    def personality(flags: int) -> int:
        if flags == 0xFFFFFFFF:  # the question of personality(2)
            return present
        asked.append(flags)
        return -1 if refused else present

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(personality=personality))
    sanitize_order.keep_addresses()
    assert asked == [present | 0x0040000]  # ADDR_NO_RANDOMIZE of <sys/personality.h>
    assert ("personality(2) is refused here" in capsys.readouterr().err) == refused
