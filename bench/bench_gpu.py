# SPDX-License-Identifier: BSD-3-Clause
"""Every op on a GPU: the CUDA kernels, the Triton kernels, torch (cuRAND, cuBLAS, cuSOLVER), the published codes' way.

`make bench-gpu` prints the table. Our kernels without a name are those that run by default. Errors are against float64.
Our kernels have the same bits of G as the CPU. torch computes float32 products in float32, in TF32 and in bfloat16; the
last two are rivals only where their errors are those of float32. The column "of floor" is the share of the peak: of the
rate that torch's largest products reach on this GPU. A float32 product is three in TF32 there, because nothing else on
tensor cores is as exact.

With RAINBOW_FAST_GPU=cpu the same lines run without a GPU, on little data, to see that they run and not how fast. With
RAINBOW_FAST_GPU_SHORT=1 there are fewer cases, and less time for each.
"""

import os
from collections.abc import Callable

import pytest
import torch
from floor import Floor
from race import BUDGET, OURS, PLAIN, PUBLISHED, Candidate, Race, at_precision, entries, relative
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast import backend

pytestmark = [] if os.environ.get("RAINBOW_FAST_GPU") else [pytest.mark.gpu]

DEVICE = torch.device(os.environ.get("RAINBOW_FAST_GPU") or "cuda")
TINY = DEVICE.type == "cpu"
SHORT = bool(os.environ.get("RAINBOW_FAST_GPU_SHORT"))
TF32, BF16 = f"{PLAIN}, TF32", f"{PLAIN}, bfloat16"
BACKENDS = {OURS: None} | {f"{OURS}, {b}": b for b in ("cuda", "triton") if b in backend.available(DEVICE)}


def small(*sizes: int) -> tuple[int, ...]:
    """The sizes for a GPU, or small ones that a CPU computes at once."""
    return tuple(max(size // 1024, 4) if TINY else size for size in sizes)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)
    return numbers.to(dtype)


def race(job: str, ways: dict[str, Callable], error: dict[str, Callable], floor: Floor, slack: float) -> Race:
    floor.device = DEVICE.type
    candidates = {name: Candidate(way, error.get(name, error[OURS])) for name, way in ways.items()}
    budget = 0.3 if SHORT else BUDGET
    return Race(f"{job} on {DEVICE.type}", candidates, floor, slack=slack, device=DEVICE.type, budget=budget)


def peak(dtype: torch.dtype, flops: float) -> dict[str, float]:
    """The flops of products by the kind of their peak. On a GPU, float32 is made of three products in TF32."""
    if dtype == torch.bfloat16:
        return {"bf16": flops}
    return {"f32": flops} if TINY else {"tf32": 3 * flops}


def in_other_numbers(product: Callable[..., Tensor], *factors: Tensor) -> dict[str, Callable]:
    """A product of plain torch in TF32, and in bfloat16 with the factors rounded to it on the way."""
    return {
        TF32: at_precision("high", lambda: product(*factors)),
        BF16: lambda: product(*(factor.bfloat16() for factor in factors)),
    }


def gaussian(rows: int, cols: int) -> Race:
    (rows,) = small(rows)
    exact = rf.gaussian(256, cols, seed=1, dtype=torch.float64).to(DEVICE)
    ways: dict[str, Callable] = {
        name: lambda b=b: rf.gaussian(rows, cols, seed=1, device=DEVICE, backend=b) for name, b in BACKENDS.items()
    }
    ways[PLAIN] = lambda: torch.randn(rows, cols, device=DEVICE)
    error = {OURS: lambda G: relative(G[:256], exact[: len(G)]), PLAIN: lambda G: 0.0}
    return race(f"gaussian {rows} x {cols}", ways, error, Floor(bytes=4.0 * rows * cols), slack=0.0)


def cross_covariance(dtype_name: str, *shape: int) -> Race:
    dtype = getattr(torch, dtype_name)
    shape = (*small(shape[0]), *shape[1:])
    x, y = (draw(seed, *shape).relu_().to(dtype) for seed in (0, 1))
    exact = torch.einsum("nds,nms->dm", x.double().flatten(2), y.double().flatten(2))

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return torch.bmm(x.flatten(2), y.flatten(2).mT).float().sum(0)

    def published() -> Tensor:
        total = torch.zeros(shape[1], shape[1], device=DEVICE)
        for a, b in zip(x.split(128), y.split(128), strict=True):
            a, b = (t.flatten(2).permute(0, 2, 1).reshape(-1, shape[1]) for t in (a, b))
            total += (a.T @ b).float()
        return total

    ways: dict[str, Callable] = {name: lambda b=b: rf.cross_covariance(x, y, backend=b) for name, b in BACKENDS.items()}
    ways[PLAIN] = lambda: plain(x, y)
    ways[PUBLISHED] = published
    if dtype == torch.float32:
        ways |= in_other_numbers(plain, x, y)
    floor = Floor(peak(dtype, 2.0 * x.numel() * shape[1]), bytes=2.0 * x.nbytes)
    return race(f"cross_covariance {dtype_name} {list(shape)}", ways, {OURS: lambda M: relative(M, exact)}, floor, 3e-7)


def sample_project_align(form: str, n: int, r: int, m: int) -> Race:
    """In a dtype, or float32 in the precision "bf16x2"."""
    precision = form if form == "bf16x2" else None
    dtype = torch.float32 if precision else getattr(torch, form)
    (n,) = small(n)
    P = (draw(0, r, m) / r**0.5).to(dtype)
    G = rf.gaussian(n, r, seed=1, dtype=torch.bfloat16 if precision else dtype, device=DEVICE).double()
    exact = G @ P.double()
    ways: dict[str, Callable] = {
        name: lambda b=b: rf.sample_project_align(n, P, seed=1, precision=precision, backend=b)
        for name, b in BACKENDS.items()
    }

    def plain(P: Tensor) -> Tensor:
        return torch.randn(n, r, device=DEVICE).to(P.dtype) @ P

    ways[PLAIN] = lambda: plain(P)
    # torch draws another G, so its error is measured on the product with our G.
    same = {PLAIN: lambda: G.to(dtype) @ P}
    if dtype == torch.float32:
        ways |= in_other_numbers(plain, P)
        same |= in_other_numbers(torch.matmul, G.float(), P)
    error: dict[str, Callable] = {OURS: lambda W: relative(W, exact)}
    error |= {name: lambda W, product=product: relative(product(), exact) for name, product in same.items()}
    flops = peak(torch.bfloat16, 2 * 2.0 * n * r * m) if precision else peak(dtype, 2.0 * n * r * m)
    floor = Floor(flops, bytes=P.element_size() * n * m)
    slack = 2.0**-16 if precision else torch.finfo(dtype).eps
    return race(f"sample_project_align {form} n {n}, r {r}, m {m}", ways, error, floor, slack)


def random_features(form: str, N: int, r: int, n: int, d: int) -> Race:
    N, n = small(N, n)
    u, x, A = draw(0, N, r) / r**0.5, draw(1, N, d).relu_(), draw(2, d, n) / n**0.5
    features = rf.random_features(u.double(), n, seed=1, backend="reference")
    exact = x.double().T @ features if form == "covariance" else features @ A.double().T
    del features

    def ours() -> Tensor:
        if form == "covariance":
            return rf.random_features_covariance(x, u, n, seed=1)[0]
        return rf.random_features_projection(u, A, seed=1)

    def plain(u: Tensor, x: Tensor, A: Tensor, G: Tensor | None = None) -> Tensor:
        G = torch.randn(n, r, device=DEVICE) if G is None else G
        phi = (u @ G.to(u.dtype).T).relu_()
        return x.T @ phi if form == "covariance" else phi @ A.T

    def published() -> Tensor:
        G, parts = torch.randn(n, r, device=DEVICE), []
        for a, b in zip(x.split(128), u.split(128), strict=True):
            phi = (b @ G.T).relu_()
            parts.append(a.T @ phi if form == "covariance" else phi @ A.T)
        return torch.stack(parts).sum(0) if form == "covariance" else torch.cat(parts)

    ways: dict[str, Callable] = {OURS: ours}  # Triton: there are no CUDA kernels
    ways |= {PLAIN: lambda: plain(u, x, A), PUBLISHED: published} | in_other_numbers(plain, u, x, A)
    G = rf.gaussian(n, r, seed=1, device=DEVICE)
    same = {PLAIN: lambda: plain(u, x, A, G)} | in_other_numbers(lambda *factors: plain(*factors, G), u, x, A)
    error = {name: lambda got, product=product: relative(product(), exact) for name, product in same.items()}
    error |= {OURS: lambda got: relative(got, exact), PUBLISHED: error[PLAIN]}
    floor = Floor(peak(torch.float32, 2.0 * N * n * (r + d)))
    return race(f"random_features {form}, N {N}, r {r}, n {n}, d {d}", ways, error, floor, 3e-7)


def polar(d: int, m: int) -> Race:
    d, m = small(d, m)
    M = draw(0, d, m)
    U, _, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    exact = U @ Vh

    def by_svd() -> Tensor:
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
        return U @ Vh

    ways = {OURS: lambda: rf.polar(M).A, PLAIN: by_svd}
    return race(f"polar {d} x {m}", ways, {OURS: lambda A: relative(A, exact)}, Floor({"f64": 11.0 * d**3}), 1e-6)


def chosen(cases: list[tuple]) -> list[tuple]:
    """All cases, or in the short form the first and the last one."""
    return [cases[0], cases[-1]] if SHORT and len(cases) > 1 else cases


bench_gaussian = entries(gaussian, [(2**20, 1024)], (*BACKENDS, PLAIN))
maps = [(512, 64, 32, 32), (512, 512, 16, 16), (65536, 2048, 1)]
in_float32, in_bfloat16 = ([(name, *shape) for shape in maps] for name in ("float32", "bfloat16"))
bench_cross_covariance = entries(cross_covariance, chosen(in_float32), (*BACKENDS, PLAIN, TF32, BF16, PUBLISHED))
bench_cross_covariance_in_bfloat16 = entries(cross_covariance, chosen(in_bfloat16), (*BACKENDS, PLAIN, PUBLISHED))
layers = [(65536, 256, 1152), (8192, 256, 4608), (65536, 1024, 1024)]
in_float32 = [(form, *sizes) for form in ("float32", "bf16x2") for sizes in layers]
bench_sample_project_align = entries(sample_project_align, chosen(in_float32), (*BACKENDS, PLAIN, TF32, BF16))
in_bfloat16 = [("bfloat16", *sizes) for sizes in layers]
bench_sample_project_align_in_bfloat16 = entries(sample_project_align, chosen(in_bfloat16), (*BACKENDS, PLAIN))
sizes = [(65536, 64, 65536, 128), (16384, 256, 65536, 512)]
features = [(form, *case) for form in ("covariance", "projection") for case in sizes]
bench_random_features = entries(random_features, chosen(features), (OURS, PLAIN, TF32, BF16, PUBLISHED))
bench_polar = entries(polar, chosen([(1024, 1024), (512, 8192)]), (OURS, PLAIN))
