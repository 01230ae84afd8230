# SPDX-License-Identifier: BSD-3-Clause
"""sample_project_align against randn and a product, and against the published square root of the covariance.

The best plain torch draws with one generator for each thread. Its float32 product is a convolution.
"""

import torch
from convolutions import product
from draws import normal
from floor import Floor
from race import AVX2, BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative, with_avx2
from torch import Tensor

import rainbow_fast as rf

PRODUCT = "torch, product alone"  # G is an input: only the matrix product is left


def square_root(P: Tensor) -> Tensor:
    """The symmetric square root of P^T P, as the published codes compute it."""
    values, V = torch.linalg.eigh(P.T @ P)
    return (V * values.clamp(min=0).sqrt()) @ V.T


def sample_project_align(dtype_name: str, n: int, r: int, m: int, memory: str = "new") -> Race:
    dtype = getattr(torch, dtype_name)
    P = (torch.randn(r, m, generator=torch.Generator().manual_seed(0)) / r**0.5).to(dtype)
    source = torch.Generator()

    def draw(rows: int, cols: int) -> Tensor:
        return torch.randn(rows, cols, generator=source.manual_seed(1))

    gaussians = draw(n, r).to(dtype)
    out = torch.empty(n, m, dtype=dtype) if memory == "given" else None

    def exact(G: Tensor) -> Tensor:
        return G.to(dtype).double() @ P.double()

    def ours() -> Tensor:
        return rf.sample_project_align(n, P, seed=1) if out is None else rf.sample_project_align_(out, P, seed=1)

    def best() -> Tensor:
        G = normal(n, r).to(dtype)
        if dtype != torch.float32:
            return torch.mm(G, P, out=out)
        W = product(G, P)
        return W if out is None else out.copy_(W)

    def error(W: Tensor) -> float:
        return relative(W, exact(rf.gaussian(n, r, seed=1)))

    candidates = {
        OURS: Candidate(ours, error),
        PLAIN: Candidate(lambda: torch.mm(draw(n, r).to(dtype), P, out=out), lambda W: relative(W, exact(draw(n, r)))),
        BEST: Candidate(best, lambda W: relative(W, exact(normal(n, r)))),
        PRODUCT: Candidate(lambda: torch.mm(gaussians, P, out=out), lambda W: relative(W, exact(gaussians)), part=True),
        AVX2: Candidate(with_avx2(ours), error, part=True),
    }
    if memory == "new" and dtype == torch.float32 and m < 4608:
        candidates[PUBLISHED] = Candidate(
            lambda: draw(n, m) @ square_root(P), lambda W: relative(W, draw(n, m).double() @ square_root(P.double()))
        )
    return Race(
        f"sample_project_align {dtype_name} n {n}, r {r}, m {m}" + ", given memory" * (memory == "given"),
        candidates,
        Floor({"bf16" if dtype == torch.bfloat16 else "f32": 2.0 * n * r * m}, bytes=P.element_size() * n * m),
        slack=torch.finfo(dtype).eps,
    )


bench_new = entries(
    sample_project_align,
    [("float32", 8192, 256, m) for m in (240, 1152)],
    (OURS, PLAIN, BEST, PRODUCT, AVX2, PUBLISHED),
)
others = [("float32", 8192, 256, m, "given") for m in (1152, 4608)]
others += [("float32", 8192, 256, 4608), ("bfloat16", 8192, 256, 1152), ("bfloat16", 8192, 256, 1152, "given")]
bench_others = entries(sample_project_align, others, (OURS, PLAIN, BEST, PRODUCT, AVX2))
