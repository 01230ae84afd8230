# SPDX-License-Identifier: BSD-3-Clause
"""A statistical battery for the generator: is G, over 100 streams of 10^7 values, white and Gaussian?

    python bench/gaussian_battery.py                  this package; three to five minutes on one core
    python bench/gaussian_battery.py --control        NumPy's PCG64 instead: this tests the battery itself
    python bench/gaussian_battery.py --defect 2e-4    G with rows correlated by that much: the battery must find it

Every test gives a p-value, and Holm's correction covers all of them. The exit status is 1 if a corrected p-value is
below 10^-3. All seeds are fixed: the same command prints the same numbers on every machine, up to the rounding of the
statistics.
"""

import argparse
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from scipy import special, stats

import rainbow_fast as rf

ROWS, COLS = 40_000, 250  # the tile of a stream: 10^7 values, whose last group of four columns is incomplete
SEED = 20_240_607
LIMIT = 1e-3
CELLS = 1 << 14  # equiprobable cells of the marginal law
TAILS = (3.0, 4.0, 5.0, 5.5, 6.0)
POWERS = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10_170)}  # k: mean and variance of g^k

Draw = Callable[..., np.ndarray]  # (rows, cols, seed, stream, row_offset, col_offset) -> float32 tile


def draw_package(rows: int, cols: int, seed: int, stream: int, row_offset: int = 0, col_offset: int = 0) -> np.ndarray:
    return rf.gaussian(rows, cols, seed=seed, stream=stream, row_offset=row_offset, col_offset=col_offset).numpy()


def draw_control(rows: int, cols: int, seed: int, stream: int, row_offset: int = 0, col_offset: int = 0) -> np.ndarray:
    source = np.random.default_rng([seed, stream, row_offset, col_offset])
    return source.standard_normal((rows, cols), dtype=np.float32)


def planted(defect: float) -> Draw:
    """G where each row has a share `defect` of the row before: a correlation of that size."""

    def draw(rows: int, cols: int, seed: int, stream: int, row_offset: int = 0, col_offset: int = 0) -> np.ndarray:
        G = draw_package(rows, cols, seed, stream, row_offset, col_offset)
        G[1:] += np.float32(defect) * G[:-1]
        return G

    return draw


class Battery:
    """The p-values of all tests, by name, and their corrected values."""

    def __init__(self) -> None:
        self.tests: list[tuple[str, str, float]] = []

    def add(self, name: str, observed: str, p: float) -> None:
        self.tests.append((name, observed, min(float(p), 1.0)))

    def z(self, name: str, z: float) -> None:
        """A statistic that is N(0, 1)."""
        self.add(name, f"z = {z:+.2f}", 2 * special.ndtr(-abs(z)))

    def chi2(self, name: str, value: float, freedom: int) -> None:
        """A two-sided test: too regular is as wrong as too irregular."""
        p = 2 * min(special.chdtr(freedom, value), special.chdtrc(freedom, value))
        self.add(name, f"chi2 = {value:.1f} / {freedom}", p)

    def counts(self, name: str, counts: np.ndarray, probability: np.ndarray | None = None) -> None:
        """Counts in cells of given probability (None: equal probabilities)."""
        counts = counts.ravel().astype(np.float64)
        share = np.full(counts.size, 1 / counts.size) if probability is None else probability.ravel()
        expected = counts.sum() * share
        self.chi2(name, float(((counts - expected) ** 2 / expected).sum()), counts.size - 1)

    def rare(self, name: str, count: int, expected: float) -> None:
        """A count that is Poisson, tested exactly."""
        p = 2 * min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected))
        self.add(name, f"{count} for {expected:.1f}", p)

    def zs(self, name: str, z: np.ndarray) -> None:
        """Many statistics that are N(0, 1): tests their sum of squares, and the largest one."""
        z = np.asarray(z, dtype=np.float64).ravel()
        self.chi2(f"{name}: all", float((z**2).sum()), z.size)
        largest = np.abs(z).max()
        self.add(
            f"{name}: largest",
            f"|z| = {largest:.2f} of {z.size}",
            -math.expm1(z.size * math.log1p(-2 * special.ndtr(-largest))),
        )

    def uniform(self, name: str, p: list[float]) -> None:
        """p-values that should be uniform: tests their law, and the smallest one."""
        test = stats.kstest(p, "uniform")
        self.add(f"{name}: law of p over streams", f"D = {test.statistic:.3f} of {len(p)}", test.pvalue)
        self.add(f"{name}: smallest p", f"{min(p):.1e} of {len(p)}", -math.expm1(len(p) * math.log1p(-min(p))))

    def corrected(self) -> list[float]:
        """The p-values with Holm's correction."""
        order = np.argsort([p for _, _, p in self.tests])
        result, running = [0.0] * len(order), 0.0
        for rank, k in enumerate(order):
            running = max(running, (len(order) - rank) * self.tests[k][2])
            result[k] = min(running, 1.0)
        return result


def between(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges in float32, and the least real numbers that round to them or above: half a place lower."""
    rounded = edges.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return rounded, (rounded.astype(np.float64) + below.astype(np.float64)) / 2


def kolmogorov(cumulative: np.ndarray, law: np.ndarray, n: int) -> float:
    return float(special.kolmogorov(math.sqrt(n) * np.abs(cumulative / n - law).max()))


def levels(G: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which of eight equiprobable cells each value lies in."""
    result = np.zeros(G.shape, np.uint8)
    for edge in edges:
        result += edge <= G
    return result


def table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bincount((a * np.uint8(8) + b).ravel(), minlength=64)


def marginals(battery: Battery, draw: Draw, streams: int) -> None:
    """Tests each stream: moments, marginal law, tails, groups of four, radius and angle, neighbours, columns."""
    n = ROWS * COLS
    edges, cuts = between(special.ndtri(np.arange(1, CELLS) / CELLS))
    law = special.ndtr(cuts)
    eighths, eighth_cuts = between(special.ndtri(np.arange(1, 8) / 8))
    share = np.diff(special.ndtr(eighth_cuts), prepend=0, append=1)
    moments, ks, ks_radius = [], [], []
    cumulative = np.zeros(CELLS - 1)
    beyond = np.zeros((2, len(TAILS)), np.int64)
    groups, polar = np.zeros(8**4, np.int64), np.zeros((64, 256), np.int64)
    zeros = 0
    neighbours: dict[str, Callable] = {
        "rows i, i+1": lambda t: (t[:-1], t[1:]),
        "rows i, i+2": lambda t: (t[:-2], t[2:]),
        "columns j, j+4": lambda t: (t[:, :-4], t[:, 4:]),
    }
    tables = {name: np.zeros(64, np.int64) for name in neighbours}
    products = {name: np.zeros(3) for name in neighbours}  # count, sum of products, sum of products of squares
    gram = {name: np.zeros((COLS, COLS)) for name in ("g, g", "g^2, g^2", "g, g^2")}
    for stream in range(streams):
        G = draw(ROWS, COLS, SEED, stream)
        sums = dict.fromkeys(POWERS, 0.0)
        for part in np.array_split(G.ravel(), 100):
            x = part.astype(np.float64)
            x2 = x * x
            x4 = x2 * x2
            for k, total in ((1, x.sum()), (2, x2.sum()), (3, x @ x2), (4, x4.sum()), (6, x4 @ x2)):
                sums[k] += float(total)
        moments.append([(sums[k] / n - mean) / math.sqrt(var / n) for k, (mean, var) in POWERS.items()])

        ordered = np.sort(G, axis=None)
        below = np.searchsorted(ordered, edges)
        cumulative += below
        ks.append(kolmogorov(below, law, n))
        beyond[0] += np.searchsorted(ordered, -np.float32(TAILS), side="left")
        beyond[1] += n - np.searchsorted(ordered, np.float32(TAILS), side="right")

        cells = levels(G, eighths)
        four = cells[:, : COLS // 4 * 4].reshape(-1, 4).astype(np.int32)
        groups += np.bincount(four @ np.array([512, 64, 8, 1], np.int32), minlength=8**4)

        radius = np.zeros(1025, np.int64)
        for part in np.array_split(G.reshape(-1, 2), 100):
            a, b = part.T.astype(np.float64)
            u = np.exp(-0.5 * (a * a + b * b))
            radius += np.bincount((u * 1024).astype(np.int64), minlength=1025)
            angle = ((np.arctan2(b, a) + math.pi) * (256 / (2 * math.pi))).astype(np.int64) % 256
            index = np.minimum((u * 64).astype(np.int64), 63) * 256 + angle
            polar += np.bincount(index, minlength=64 * 256).reshape(64, 256)
            zeros += int((u == 1).sum())
        ks_radius.append(kolmogorov(radius.cumsum()[:1023], np.arange(1, 1024) / 1024, n // 2))

        T = torch.from_numpy(G)
        Q = (T * T - 1) / math.sqrt(2)
        for name, (a, b) in {"g, g": (T, T), "g^2, g^2": (Q, Q), "g, g^2": (T, Q)}.items():
            gram[name] += (a.T @ b).double().numpy()
        for name, pair in neighbours.items():
            tables[name] += table(*pair(cells))
            (a, b), (c, d) = pair(T), pair(Q)
            products[name] += a.numel(), float((a * b).sum()), float((c * d).sum())

    z = np.array(moments)
    for k, column in zip(POWERS, z.T, strict=True):
        battery.z(f"moment {k}: all streams together", column.sum() / math.sqrt(streams))
        battery.chi2(f"moment {k}: spread over streams", float((column**2).sum()), streams)
    battery.uniform("Kolmogorov-Smirnov", ks)
    total = n * streams
    battery.add("Kolmogorov-Smirnov: all streams together", f"n = {total:.0e}", kolmogorov(cumulative, law, total))
    counts = np.diff(cumulative, prepend=0, append=total)
    battery.counts(f"marginal law in {CELLS} cells", counts, np.diff(law, prepend=0, append=1))
    for side, row in zip(("below -", "above +"), beyond, strict=True):
        for tail, count in zip(TAILS, row, strict=True):
            battery.rare(f"tail {side}{tail}", int(count), total * special.ndtr(-tail))
    joint = share
    for _ in range(3):
        joint = np.multiply.outer(joint, share)
    battery.counts("group of four, 8^4 cells", groups, joint)
    grid = groups.reshape(8, 8, 8, 8)
    signs = grid.reshape(2, 4, 2, 4, 2, 4, 2, 4).sum((1, 3, 5, 7))
    battery.counts("group of four, signs", signs)
    for a in range(4):
        for b in range(a + 1, 4):
            rest = tuple(axis for axis in range(4) if axis not in (a, b))
            kind = "partners" if (a, b) in ((0, 1), (2, 3)) else "columns"
            battery.counts(f"group of four, {kind} {a}, {b}", grid.sum(rest), np.outer(share, share))
    for name, (number, product, squared) in products.items():
        battery.z(f"neighbours, {name}: products", product / math.sqrt(number))
        battery.z(f"neighbours, {name}: of squares", squared / math.sqrt(number))
        battery.counts(f"neighbours, {name}: 8 x 8 cells", tables[name], np.outer(share, share))
    battery.counts("radius of pairs", polar.sum(1))
    battery.counts("angle of pairs", polar.sum(0))
    battery.counts("radius and angle of pairs", polar)
    battery.uniform("radius, Kolmogorov-Smirnov", ks_radius)
    if draw is draw_package:
        # A first word above 2^32 - 129 rounds to v = 1 and gives the radius 0: one pair in 2^25, by design.
        battery.rare("pairs that are exactly zero", zeros, total / 2 * 2.0**-25)
    for name, C in gram.items():
        z = C / math.sqrt(ROWS * streams)
        chosen = ~np.eye(COLS, dtype=bool) if name == "g, g^2" else np.triu(np.ones((COLS, COLS), bool), 1)
        battery.zs(f"columns, {name}", z[chosen])
        for a in range(4):
            for b in range(a + 1, 4):
                pairs = z[a : COLS - 2 : 4, b : COLS - 2 : 4].diagonal()
                battery.z(f"group of four, {name}, columns {a}, {b}", pairs.sum() / math.sqrt(pairs.size))


def relations(battery: Battery, draw: Draw, bases: int) -> None:
    """Compares tiles whose addresses differ in one way: products of values, products of squares, and cells."""
    eighths, eighth_cuts = between(special.ndtri(np.arange(1, 8) / 8))
    share = np.diff(special.ndtr(eighth_cuts), prepend=0, append=1)
    shape = (10_000, 1000)
    others: dict[str, Callable[[int, int], dict[str, int]]] = {
        "row i, i + 2^16": lambda seed, stream: {"row_offset": 1 << 16},
        "row i, i + 2^31": lambda seed, stream: {"row_offset": 1 << 31},
        "row i, i + 2^32": lambda seed, stream: {"row_offset": 1 << 32},
        "row i, i + 2^40": lambda seed, stream: {"row_offset": 1 << 40},
        "row i, i + 2^55": lambda seed, stream: {"row_offset": 1 << 55},
        "column j, j + 2^16": lambda seed, stream: {"col_offset": 1 << 16},
        "column j, j + 2^33": lambda seed, stream: {"col_offset": 1 << 33},
        "stream, stream + 1": lambda seed, stream: {"stream": stream + 1},
        "stream, stream + 2^12 (next network)": lambda seed, stream: {"stream": stream + 4096},
        "stream, stream + 2^31": lambda seed, stream: {"stream": stream + 2**31},
        "seed, seed + 1": lambda seed, stream: {"seed": seed + 1},
        "seed, seed + 2^32": lambda seed, stream: {"seed": seed + 2**32},
        "seed, seed + 2^62": lambda seed, stream: {"seed": seed + 2**62},
        "seed and stream exchanged": lambda seed, stream: {"seed": stream, "stream": seed},
        "seed + 1, stream - 1": lambda seed, stream: {"seed": seed + 1, "stream": stream - 1},
    }
    first = {base: draw(*shape, seed=SEED + 1000 * base, stream=500 + 7 * base) for base in range(bases)}

    def compare(name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        n = sum(a.size for a, _ in pairs)
        products = squares = 0.0
        cells = np.zeros(64, np.int64)
        for a, b in pairs:
            for x, y in zip(np.array_split(a, 50), np.array_split(b, 50), strict=True):
                products += float(np.vdot(x, y))
                squares += float(np.vdot(x * x - 1, y * y - 1)) / 2
            cells += table(levels(a, eighths), levels(b, eighths))
        battery.z(f"{name}: products", products / math.sqrt(n))
        battery.z(f"{name}: of squares", squares / math.sqrt(n))
        battery.counts(f"{name}: 8 x 8 cells", cells, np.outer(share, share))

    for name, other in others.items():
        pairs = []
        for base, G in first.items():
            address = {"seed": SEED + 1000 * base, "stream": 500 + 7 * base}
            pairs.append((G, draw(*shape, **address | other(**address))))
        compare(name, pairs)

    side = 1024  # with the two inner words of the counter exchanged: group q of row i, and group i of row q
    G = [draw(side, 4 * side, SEED + base, 3).reshape(side, side, 4) for base in range(bases)]
    upper = np.triu_indices(side, 1)
    compare("row and group of four exchanged", [(g[upper], g.transpose(1, 0, 2)[upper]) for g in G])
    G = [draw(256, 1024, SEED, stream) for stream in range(256)]
    stacked = np.stack(G)
    upper = np.triu_indices(256, 1)
    compare("row and stream exchanged", [(stacked[upper], stacked.transpose(1, 0, 2)[upper])])


def crosswise(battery: Battery, draw: Draw) -> None:
    """Compares all pairs among 100 streams, 100 seeds and 400 rows, by products of values and of squares."""
    n = 10**6
    families = {
        "pairs of 100 streams": lambda k: draw(n // 250, 250, SEED, 10_000 + k),
        "pairs of 100 networks of one site": lambda k: draw(n // 250, 250, SEED, k << 12 | 1),
        "pairs of 100 seeds": lambda k: draw(n // 250, 250, k, 0),
        "pairs of 100 rows": lambda k: draw(1, n, SEED, 1, row_offset=10_000 + k),
    }
    for name, member in families.items():
        X = torch.stack([torch.from_numpy(member(k)).flatten() for k in range(100)])
        for kind, Y in ((name, X), (f"{name}, squares", (X * X - 1) / math.sqrt(2))):
            C = sum((part @ part.T).double() for part in Y.split(8192, 1)).numpy()  # type: ignore[union-attr]
            battery.zs(kind, C[np.triu_indices(100, 1)] / math.sqrt(n))


def eigenvalues(battery: Battery, draw: Draw, count: int) -> None:
    r"""Compares G G^T / n with the Wishart law: by exact moments, and by Marchenko-Pastur at its edges.

    The edges are centred and scaled to second order (Ma 2012). The Tracy-Widom law of order 1 has the mean -1.2065336
    and the variance 1.6077810. The control draws the same matrices from NumPy's PCG64.
    """
    p, n = 200, 800
    exact = {
        1: p * n,
        2: p * n * (n + p + 1),
        3: p * n * (n * n + p * p + 3 * n * p + 3 * n + 3 * p + 4),
        4: p
        * n
        * (n**3 + p**3 + 6 * n * n * p + 6 * n * p * p + 6 * n * n + 6 * p * p + 17 * n * p + 21 * n + 21 * p + 20),
    }
    spectra, control = [], []
    for k in range(count):
        for kept, G in ((spectra, draw(p, n, SEED + 77, k)), (control, draw_control(p, n, SEED, k))):
            W = G.astype(np.float64)
            kept.append(np.linalg.eigvalsh(W @ W.T))
    S, R = np.array(spectra), np.array(control)
    battery.chi2("eigenvalues: trace", float(S.sum()), p * n * count)
    for k in (2, 3, 4):
        powers = (S**k).sum(1)
        battery.z(
            f"eigenvalues: trace of power {k}", (powers.mean() - exact[k]) / (powers.std(ddof=1) / math.sqrt(count))
        )
    a, b = math.sqrt(n - 0.5), math.sqrt(p - 0.5)
    scale = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    largest = (S[:, -1] - (a + b) ** 2) / scale
    battery.z("eigenvalues: largest, mean of Tracy-Widom", (largest.mean() + 1.2065336) / math.sqrt(1.607781 / count))
    scale = (1 / b - 1 / a) ** (1 / 3) / (a - b)
    smallest = (math.log((a - b) ** 2) + scale**2 / 8 - np.log(S[:, 0])) / scale
    battery.z("eigenvalues: smallest, mean of Tracy-Widom", (smallest.mean() + 1.2065336) / math.sqrt(1.607781 / count))
    for name, statistic in (
        ("largest", lambda s: s[:, -1]),
        ("smallest", lambda s: s[:, 0]),
        ("log determinant", lambda s: np.log(s).sum(1)),
        ("trace of power 2", lambda s: (s**2).sum(1)),
        ("median spacing", lambda s: np.median(np.diff(s), axis=1)),
    ):
        test = stats.ks_2samp(statistic(S), statistic(R))
        battery.add(f"eigenvalues: {name}, against PCG64", f"D = {test.statistic:.3f}", test.pvalue)
    low, high = ((1 - math.sqrt(p / n)) ** 2, (1 + math.sqrt(p / n)) ** 2)
    print(f"Marchenko-Pastur: [{low:.4f}, {high:.4f}]; mean edges of {count} matrices {p} x {n}:")
    for name, kept in (("this generator", S), ("PCG64", R)):
        print(f"    {name}: [{kept[:, 0].mean() / n:.4f}, {kept[:, -1].mean() / n:.4f}]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--control", action="store_true", help="NumPy's PCG64 instead")
    parser.add_argument("--defect", type=float, default=0.0, help="size of a planted correlation between rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = draw_control if options.control else planted(options.defect) if options.defect else draw_package
    battery = Battery()
    marginals(battery, draw, options.streams)
    relations(battery, draw, max(1, options.streams // 10))
    crosswise(battery, draw)
    eigenvalues(battery, draw, 4 * options.streams)
    corrected = battery.corrected()
    print(f"{'test':58} {'found':>26} {'p':>9} {'Holm':>9}")
    for (name, observed, p), holm in zip(battery.tests, corrected, strict=True):
        print(f"{name:58} {observed:>26} {p:9.2e} {holm:9.2e}" + ("  <--" if holm < LIMIT else ""))
    smallest = min(corrected)
    verdict = "passed" if smallest >= LIMIT else "FAILED"
    least = min(p for *_, p in battery.tests)
    print(f"{len(corrected)} tests, smallest p {least:.2e}, corrected {smallest:.2e}: {verdict}")
    return int(smallest < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
