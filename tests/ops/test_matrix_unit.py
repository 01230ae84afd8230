# SPDX-License-Identifier: BSD-3-Clause
"""Products on the matrix unit: its arithmetic, bit by bit, and numbers at the edges. Other tests run it, too."""

import numpy as np
import pytest
import torch
from here import BACKENDS, LEVELS, level

import rainbow_fast as rf
from rainbow_fast.ops.sample_project_align import in_two_terms

UNITS = [name for name in LEVELS if name.startswith("amx")]  # emulated, and real where the CPU has the unit
pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
INF, NAN = float("inf"), float("nan")
PRODUCTS = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]  # terms of the left and of the right factor
COUNTS = {"high": 3, "medium": 1}  # of these products; all six where `sample_project_align` has "highest"


def terms(x: torch.Tensor) -> list[np.ndarray]:
    """x as a sum of bfloat16 numbers, each the rest of those before, rounded to nearest."""
    parts = []
    for _ in range(3):
        part = x.bfloat16().float()
        parts.append(part.numpy())
        x = x - part
    assert not x.any()  # three terms hold all 24 bits
    return parts


def tile_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One instruction: 32 products an entry, even and odd ones summed apart in float32, then together."""
    even = odd = np.zeros((len(a), len(b)), np.float32)
    for k in range(0, 32, 2):  # products of bfloat16 numbers are exact in float32
        even = even + a[:, None, k] * b[None, :, k]
        odd = odd + a[:, None, k + 1] * b[None, :, k + 1]
    return even + odd


def product(u: torch.Tensor, G: torch.Tensor, count: int) -> torch.Tensor:
    """``u G^T`` for at most 256 terms, as the unit computes it with the first `count` products."""
    left, right = terms(u), terms(G)
    rank = u.shape[1]
    filled = [[np.pad(part, ((0, 0), (0, -rank % 32))) for part in parts] for parts in (left, right)]
    out = np.zeros((len(u), len(G)), np.float32)
    for k in range(0, rank, 32):
        for i, j in PRODUCTS[:count]:
            out = out + tile_product(filled[0][i][:, k : k + 32], filled[1][j][:, k : k + 32])
    return torch.from_numpy(out)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize(("N", "r", "n"), [(1, 1, 1), (50, 70, 40), (97, 256, 130)])
def test_bits(name: str, N: int, r: int, n: int) -> None:
    """Edges of tiles, of blocks of 48 rows and of panels of 64 columns."""
    source = torch.Generator().manual_seed(N)
    u, G = (torch.randn(rows, r, generator=source) for rows in (N, n))
    how = {"G": G, "activation": "identity", "backend": "cpu"}
    with level(name):
        for precision, count in COUNTS.items():
            assert torch.equal(rf.random_features(u, n, **how, precision=precision), product(u, G, count))
        W = rf.sample_project_align(N, G.T.contiguous(), seed=1, precision="highest", backend="cpu")
    assert torch.equal(W, product(rf.gaussian(N, r, seed=1), G, 6))


@pytest.mark.parametrize("name", UNITS)
def test_bfloat16_numbers_of_g_are_one_term(name: str) -> None:
    source = torch.Generator().manual_seed(0)
    P, G = torch.randn(70, 90, generator=source), rf.gaussian(60, 70, seed=1).bfloat16().float()
    with level(name):
        W = rf.sample_project_align(60, P, seed=1, precision="bf16x2", backend="cpu")
    assert torch.equal(W, product(G, in_two_terms(P).T, 2))


@pytest.mark.parametrize("name", UNITS)
def test_layouts_have_the_same_bits(name: str) -> None:
    """Rows that lie side by side, columns that do, and neither: each is written as tiles by other code."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 70, generator=source), torch.randn(300, 90, generator=source)
    strided = torch.zeros(300, 140).index_copy_(1, torch.arange(0, 140, 2), x)[:, ::2]
    maps = x.T.contiguous().T  # samples side by side
    with level(name):
        expected = rf.cross_covariance(x, y, activation="relu", precision="high", backend="cpu")
        for other in (strided, maps):
            again = rf.cross_covariance(other, y, activation="relu", precision="high", backend="cpu")
            assert torch.equal(again, expected)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("space", [(1, 2), (5, 10), (7, 7)], ids=str)
def test_maps_are_read_in_place_or_packed(name: str, space: tuple[int, int]) -> None:
    """Images of fewer rows than a block, of as many, and of some more; sums over a long rank wait in memory."""
    source = torch.Generator().manual_seed(0)
    u, G = torch.randn(9, 300, *space, generator=source), torch.randn(70, 300, generator=source)
    u = u.contiguous(memory_format=torch.channels_last)
    options = {"G": G, "activation": "identity", "precision": "high", "backend": "cpu"}
    with level(name):
        maps = rf.random_features(u, 70, **options)
        rows = rf.random_features(u.movedim(1, -1).flatten(0, 2), 70, **options)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(maps.movedim(1, -1).flatten(0, 2), rows)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("precision", ["highest", *COUNTS])
def test_features_have_the_same_bits_in_every_pass(name: str, precision: str) -> None:
    """Features are the left factor in one pass and the right one in another: the order of terms does not change."""
    source = torch.Generator().manual_seed(0)
    u, G = torch.randn(100, 300, generator=source), torch.randn(70, 300, generator=source)
    options = {"G": G, "activation": "identity", "precision": precision, "backend": "cpu"}
    with level(name):
        rows = rf.random_features(u, 70, **options)
        maps = rf.random_features(u.T.reshape(1, 300, 10, 10), 70, **options).reshape(70, 100).T
        projected = rf.random_features_projection(u, torch.eye(70), **options)
    assert torch.equal(maps, rows)
    assert precision != "highest" or torch.equal(projected, rows)  # otherwise the projection rounds them


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("precision", COUNTS)
@pytest.mark.parametrize("value", [INF, -INF, NAN, 3.4e38])
def test_numbers_beyond_the_terms(name: str, value: float, precision: str) -> None:
    """They change their own row and column of the result, as in IEEE arithmetic, and no bit elsewhere."""
    source = torch.Generator().manual_seed(0)
    u, G = torch.randn(60, 300, generator=source), torch.randn(70, 300, generator=source)
    marked, other = u.clone(), G.clone()
    marked[50, 290], other[65, 3] = value, value
    how = {"activation": "identity", "precision": precision, "backend": "cpu"}
    with level(name):
        before = rf.random_features(u, 70, G=G, **how)
        for left, right in ((marked, G), (u, other), (marked, other), (marked.T.contiguous().T, other)):
            after = rf.random_features(left, 70, G=right, **how)
            exact = left.double() @ right.double().T
            changed = torch.zeros(60, 70, dtype=torch.bool)
            changed[50] = left is not u
            changed[:, 65] |= right is not G
            assert torch.equal(after[~changed], before[~changed])
            # with fewer products: 2^-14 or 2^-7 of the 300 products of a sum, which are of order one
            atol = {"high": 0.02, "medium": 2.4}[precision]
            torch.testing.assert_close(after[changed], exact[changed].float(), equal_nan=True, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("value", [INF, NAN, 3.4e38])
def test_numbers_beyond_three_terms(name: str, value: float) -> None:
    """The same for the weights of `sample_project_align`, which are six products."""
    P = torch.randn(300, 70, generator=torch.Generator().manual_seed(0))
    marked = P.clone()
    marked[3, 65] = value
    with level(name):
        before, after = (rf.sample_project_align(60, p, seed=1, backend="cpu") for p in (P, marked))
    changed = torch.arange(70) == 65
    exact = rf.gaussian(60, 300, seed=1).double() @ marked.double()
    assert torch.equal(after[:, ~changed], before[:, ~changed])
    torch.testing.assert_close(after[:, changed], exact[:, changed].float(), equal_nan=True, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", UNITS)
def test_edges_of_the_range(name: str) -> None:
    """The largest numbers are exact, and subnormal numbers count as zero."""
    largest = float(torch.finfo(torch.bfloat16).max)
    column = torch.tensor([3.4e38, largest, -largest, 2.0**-126, 1e-39])
    with level(name):
        how = {"activation": "identity", "precision": "high", "backend": "cpu"}
        out = rf.random_features(column[:, None], 1, G=torch.ones(1, 1), **how).flatten()
    assert out.tolist() == [column[0].item(), largest, -largest, 2.0**-126, 0.0]


@pytest.mark.parametrize("name", UNITS)
def test_products_of_torch_in_between(name: str) -> None:
    """torch's bfloat16 products use the same registers of tiles: neither side changes the results of the other."""
    source = torch.Generator().manual_seed(0)
    a, x = torch.randn(96, 96, generator=source).bfloat16(), torch.randn(100, 70, generator=source)
    with level(name):
        theirs, ours = a @ a, rf.cross_covariance(x, precision="high", backend="cpu")
        for _ in range(10):
            assert torch.equal(rf.cross_covariance(x, precision="high", backend="cpu"), ours)
            assert torch.equal(a @ a, theirs)


@pytest.mark.parametrize("name", UNITS)
def test_long_sums_are_more_exact_than_multiply_adds(name: str) -> None:
    """Each instruction sums 16 terms apart, so errors grow with a sixteenth of the additions."""
    source = torch.Generator().manual_seed(0)
    P = torch.randn(2048, 64, generator=source)
    exact = rf.gaussian(64, 2048, seed=1).double() @ P.double()
    errors = []
    for one in (name, "avx512"):
        with level(one):
            errors.append((rf.sample_project_align(64, P, seed=1, backend="cpu") - exact).norm())
    assert errors[0] < 0.7 * errors[1]  # 0.46 measured


@pytest.mark.parametrize("name", UNITS)
def test_long_sums_over_samples_in_many_lines(name: str) -> None:
    """Partial sums of a block of rows have their own memory, however many lines the rows lie in."""
    source = torch.Generator().manual_seed(0)
    u, G = torch.randn(6, 300, 7, 8, generator=source), torch.randn(70, 300, generator=source)
    lines = u.to(memory_format=torch.channels_last)[..., :-1]
    with level(name):
        phi, expected = (
            rf.random_features(maps, 70, G=G, activation="identity", precision="high", backend="cpu")
            for maps in (lines, lines.contiguous(memory_format=torch.channels_last))
        )
    assert torch.equal(phi, expected)
