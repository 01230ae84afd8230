# SPDX-License-Identifier: BSD-3-Clause
"""Products of float32 and bfloat16 numbers on a matrix unit, at each precision, against torch at its own setting.

The floor is the peak of bfloat16 products, measured in the same run: for the tiles of a matrix unit where the CPU has
one. A float32 product counts as three of them at "high" and one at "medium". At "highest" the floor is the peak of
float32 multiply-adds; six products on a matrix unit, as in `sample_project_align`, may take less. Errors are relative
in the Frobenius norm, against float64 with the same operands.
"""

from collections.abc import Callable

import torch
from convolutions import covariance_of_maps
from convolutions import product as convolution
from draws import normal
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, at_precision, entries, relative
from torch import Tensor

import rainbow_fast as rf

FLOOR = {"highest": ("f32", 1), "high": ("bf16", 3), "medium": ("bf16", 1), "bfloat16": ("bf16", 1)}
ALLOWED = {"highest": 1e-7, "high": 2.0**-14, "medium": 2.0**-7, "bfloat16": 2.0**-7}  # besides the error of torch
HALF, BMM, ALONE = "torch in bfloat16", "torch, bmm by image", "torch, product alone"


def race(job: str, precision: str, ways: dict, error: dict[str, Callable], flops: float, part: str = "") -> Race:
    """A race of ways at a precision; with "bfloat16" the operands are of this dtype, and torch has its default."""
    setting = "highest" if precision == "bfloat16" else precision
    candidates = {
        name: Candidate(at_precision(setting, run), error.get(name, error[PLAIN]), name == part)
        for name, run in ways.items()
    }
    kind, products = FLOOR[precision]
    return Race(f"{job}, {precision}", candidates, Floor({kind: products * flops}), slack=ALLOWED[precision])


def operand(precision: str, x: Tensor) -> Tensor:
    return x.bfloat16() if precision == "bfloat16" else x


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def covariance(precision: str, *shape: int) -> Race:
    x, y = (operand(precision, draw(seed, *shape).relu_()) for seed in (0, 1))
    flat = [t.double().flatten(2) if t.dim() > 2 else t.double().unsqueeze(2) for t in (x, y)]
    exact = torch.einsum("nds,nms->dm", *flat)
    ways: dict[str, Callable[[], Tensor]] = {OURS: lambda: rf.cross_covariance(x, y)}
    if x.dim() == 2:
        ways[PLAIN] = lambda: x.T @ y
    else:
        ways[PLAIN] = lambda: torch.einsum("nds,nms->dm", x.flatten(2), y.flatten(2))
        ways[BMM] = lambda: torch.bmm(x.flatten(2), y.flatten(2).mT).sum(0)
        if precision != "bfloat16":
            ways[BEST] = lambda: covariance_of_maps(x, y)
    error = {PLAIN: lambda M: relative(M, exact)}
    return race(f"cross_covariance {list(shape)}", precision, ways, error, 2.0 * x.numel() * shape[1])


def sampling(precision: str, n: int, r: int, m: int) -> Race:
    P = operand(precision, draw(0, r, m) / r**0.5)
    source = torch.Generator()

    def gaussians() -> Tensor:
        return torch.randn(n, r, generator=source.manual_seed(1)).to(P.dtype)

    def exact(G: Tensor) -> Tensor:
        return G.to(P.dtype).double() @ P.double()

    drawn = gaussians()
    ways: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: rf.sample_project_align(n, P, seed=1),
        PLAIN: lambda: gaussians() @ P,
        BEST: lambda: normal(n, r).to(P.dtype) @ P if precision == "bfloat16" else convolution(normal(n, r), P),
        ALONE: lambda: drawn @ P,
    }
    error = {
        OURS: lambda W: relative(W, exact(rf.gaussian(n, r, seed=1))),
        PLAIN: lambda W: relative(W, exact(drawn)),
        BEST: lambda W: relative(W, exact(normal(n, r))),
    }
    return race(f"sample_project_align n {n}, r {r}, m {m}", precision, ways, error, 2.0 * n * r * m, ALONE)


def fused(precision: str, form: str, N: int, r: int, n: int, d: int) -> Race:
    """One of the two fused passes, with relu. torch in bfloat16 stores all features."""
    u, x, A = draw(0, N, r) / r**0.5, draw(1, N, d).relu_(), draw(2, d, n) / n**0.5
    half = [t.bfloat16() for t in (u, x, A)]
    source = torch.Generator()

    def features(u: Tensor) -> Tensor:
        G = torch.randn(n, r, generator=source.manual_seed(1)).to(u.dtype)
        return (u @ G.T).relu_()

    def plain(u: Tensor, x: Tensor, A: Tensor) -> Tensor:
        phi = features(u)
        if form == "projection":
            return phi @ A.T
        phi.sum(0), phi.square().sum(0)  # the moments, which ours computes as well
        return x.T @ phi

    def exact(G: Tensor) -> Tensor:
        phi = (u.double() @ G.double().T).relu_()
        return phi @ A.double().T if form == "projection" else x.double().T @ phi

    def ours() -> Tensor:
        if form == "projection":
            return rf.random_features_projection(u, A, seed=1)
        return rf.random_features_covariance(x, u, n, seed=1)[0]

    ways = {OURS: ours, PLAIN: lambda: plain(u, x, A), HALF: lambda: plain(*half)}
    drawn = exact(torch.randn(n, r, generator=source.manual_seed(1)))
    wanted = exact(rf.gaussian(n, r, seed=1))
    error = {OURS: lambda got: relative(got, wanted), PLAIN: lambda got: relative(got, drawn)}
    return race(f"random_features {form}, N {N}, r {r}, n {n}, d {d}", precision, ways, error, 2.0 * N * n * (r + d))


EACH = tuple(FLOOR)
MAPS, SAMPLES, WEIGHTS, FEATURES = (32, 512, 16, 16), (20_000, 512), (8192, 256, 1152), (4096, 256, 8192, 256)
bench_maps = entries(covariance, [(p, *MAPS) for p in EACH[:3]], (OURS, PLAIN, BMM, BEST))
bench_maps_in_bfloat16 = entries(covariance, [("bfloat16", *MAPS)], (OURS, PLAIN, BMM))
bench_samples = entries(covariance, [(p, *SAMPLES) for p in EACH], (OURS, PLAIN))
bench_weights = entries(sampling, [(p, *WEIGHTS) for p in EACH], (OURS, PLAIN, BEST, ALONE))
bench_fused = entries(
    fused, [(p, form, *FEATURES) for p in EACH[:3] for form in ("covariance", "projection")], (OURS, PLAIN, HALF)
)
