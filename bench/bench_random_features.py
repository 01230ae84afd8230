# SPDX-License-Identifier: BSD-3-Clause
"""random_features and its two fused passes, against the same results with every feature stored.

The best plain torch makes the features of `BLOCK` neurons at a time, so that they stay in the cache. Its products are
convolutions (see `convolutions.py`), and relu works in place.
"""

from collections.abc import Callable, Iterator

import torch
from convolutions import covariance, product
from floor import Floor
from race import BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf

SHAPE = (4096, 64, 16384, 128)  # N, r, n, d
BATCH = 128
BLOCK = 512  # neurons


def blocks(u: Tensor, G: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The columns of each block of neurons, and u times the weights of the block, transposed."""
    for start in range(0, len(G), BLOCK):
        yield slice(start, start + BLOCK), product(u, G[start : start + BLOCK].T)


def random_features(form: str, activation: str, N: int, r: int, n: int, d: int) -> Race:
    source, drawing = torch.Generator().manual_seed(0), torch.Generator()
    u = torch.randn(N, r, generator=source) / r**0.5
    x, A = torch.randn(N, d, generator=source).relu_(), torch.randn(d, n, generator=source) / n**0.5
    sigma = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]
    sigma_in_place = {"relu": torch.relu_, "gelu": torch.nn.functional.gelu}[activation]

    def draw() -> Tensor:
        return torch.randn(n, r, generator=drawing.manual_seed(1))

    def exact(G: Tensor) -> Tensor:
        total = torch.zeros(N, d, dtype=torch.float64)
        parts = []
        for k, part in enumerate(G.split(2048)):
            phi = sigma(u.double() @ part.double().T)
            if form == "projection":
                total += phi @ A[:, 2048 * k : 2048 * k + len(part)].double().T
            else:
                parts.append(phi if form == "features" else x.double().T @ phi)
        return total if form == "projection" else torch.cat(parts, 1)

    def published_covariance() -> Tensor:
        """One batch at a time: the features, and running sums of the covariance and of both moments, in float32."""
        G = draw()
        M, first, second = torch.zeros(d, n), torch.zeros(n), torch.zeros(n)
        for a, b in zip(x.split(BATCH), u.split(BATCH), strict=True):
            phi = sigma(b @ G.T)
            M += a.T @ phi
            first += phi.sum(0)
            second += phi.square().sum(0)
        return M

    def published_projection() -> Tensor:
        G = draw()
        return torch.cat([sigma(b @ G.T) @ A.T for b in u.split(BATCH)])

    def best_covariance() -> Tensor:
        M, first, second = torch.empty(d, n), torch.empty(n), torch.empty(n)
        for b, z in blocks(u, draw()):
            phi = sigma_in_place(z)
            M[:, b] = covariance(x, phi)
            torch.sum(phi, 0, out=first[b])
            torch.sum(phi.square_(), 0, out=second[b])
        return M

    def best_projection() -> Tensor:
        total = torch.zeros(N, d)
        for b, z in blocks(u, draw()):
            total += product(sigma_in_place(z), A[:, b].T)
        return total

    def plain_covariance() -> Tensor:
        phi = sigma(u @ draw().T)
        phi.sum(0), phi.square().sum(0)  # the moments, which ours computes as well
        return x.T @ phi

    ways = {
        "features": (
            lambda: rf.random_features(u, n, seed=1, activation=activation),
            lambda: sigma(u @ draw().T),
            lambda: sigma_in_place(product(u, draw().T)),
            None,  # the codes that are published store no features of all samples
        ),
        "covariance": (
            lambda: rf.random_features_covariance(x, u, n, seed=1, activation=activation)[0],
            plain_covariance,
            best_covariance,
            published_covariance,
        ),
        "projection": (
            lambda: rf.random_features_projection(u, A, seed=1, activation=activation),
            lambda: sigma(u @ draw().T) @ A.T,
            best_projection,
            published_projection,
        ),
    }
    ours, *others = ways[form]
    candidates = {OURS: Candidate(ours, lambda got: relative(got, exact(rf.gaussian(n, r, seed=1))))}
    for name, way in zip((PLAIN, BEST, PUBLISHED), others, strict=True):
        if way is not None:
            candidates[name] = Candidate(way, lambda got: relative(got, exact(draw())))
    products = r if form == "features" else r + d
    return Race(
        f"random_features {form}, {activation}, N {N}, r {r}, n {n}" + f", d {d}" * (form != "features"),
        candidates,
        Floor({"f32": 2.0 * N * n * products}, bytes=4 * N * n if form == "features" else 0),
    )


EACH = "rainbow_fast, one call each"


def several_widths(N: int, r: int, d: int, *widths: int) -> Race:
    """Projections at nested widths: in one pass, in plain torch, and with one call for each width."""
    source = torch.Generator().manual_seed(0)
    u = torch.randn(N, r, generator=source) / r**0.5
    A = [torch.randn(d, n, generator=source) / n**0.5 for n in widths]
    G = rf.gaussian(max(widths), r, seed=1)

    def draw() -> Tensor:
        return torch.randn(max(widths), r, generator=source.manual_seed(1))

    def plain() -> list[Tensor]:
        phi = (u @ draw().T).relu()
        return [phi[:, :n] @ a.T for n, a in zip(widths, A, strict=True)]

    def best() -> list[Tensor]:
        """One product of a block of features with the rows of all networks that have these neurons."""
        total = torch.zeros(N, len(widths) * d)
        for b, z in blocks(u, draw()):
            wide = [a[:, b] for n, a in zip(widths, A, strict=True) if n > b.start]
            total[:, -len(wide) * d :] += product(z.relu_(), torch.cat(wide).T)
        return list(total.split(d, 1))

    def error(rows: Tensor) -> Callable[[list[Tensor]], float]:
        phi = (u.double() @ rows.double().T).relu()
        return lambda got: max(relative(g, phi[:, :n] @ a.double().T) for g, n, a in zip(got, widths, A, strict=True))

    return Race(
        f"random_features projection at widths {', '.join(map(str, widths))}, N {N}, r {r}, d {d}",
        {
            OURS: Candidate(lambda: rf.random_features_projection(u, A, seed=1), error(G)),
            PLAIN: Candidate(plain, lambda got: error(draw())(got)),
            BEST: Candidate(best, lambda got: error(draw())(got)),
            EACH: Candidate(lambda: [rf.random_features_projection(u, a, seed=1) for a in A], error(G), part=True),
        },
        Floor({"f32": 2.0 * N * (max(widths) * r + sum(widths) * d)}),
    )


def several_seeds(N: int, r: int, d: int, n: int, S: int) -> Race:
    """Covariances for S seeds of n neurons: in one call, in plain torch, and for S n neurons (x and u packed once)."""
    source = torch.Generator().manual_seed(0)
    u, x = torch.randn(N, r, generator=source) / r**0.5, torch.randn(N, d, generator=source)
    seeds = list(range(S))

    def exact(G: Tensor) -> Tensor:
        return torch.stack([x.double().T @ (u.double() @ g.double().T).relu() for g in G])

    def draw() -> Tensor:
        return torch.randn(S, n, r, generator=source.manual_seed(1))

    def best() -> Tensor:
        M = torch.empty(d, S * n)
        for b, z in blocks(u, draw().flatten(0, 1)):
            M[:, b] = covariance(x, z.relu_())
        return M.view(d, S, n).movedim(1, 0)

    return Race(
        f"random_features covariance of {S} seeds, n {n}, N {N}, r {r}, d {d}",
        {
            OURS: Candidate(
                lambda: rf.random_features_covariance(x, u, n, seed=seeds)[0],
                lambda got: relative(got, exact(rf.gaussian(n, r, seed=seeds))),
            ),
            PLAIN: Candidate(
                lambda: torch.stack([x.T @ (u @ g.T).relu() for g in draw()]), lambda got: relative(got, exact(draw()))
            ),
            BEST: Candidate(best, lambda got: relative(got, exact(draw()))),
            "rainbow_fast, S n neurons": Candidate(
                lambda: rf.random_features_covariance(x, u, S * n, seed=1)[0],
                lambda got: relative(got, exact(rf.gaussian(S * n, r, seed=1)[None])[0]),
                part=True,
            ),
        },
        Floor({"f32": 2.0 * N * S * n * (r + d)}),
    )


def backward(form: str, N: int, r: int, n: int, d: int) -> Race:
    """The gradient of u through sigma = relu, given the gradient of the result. No forward pass is timed.

    Plain torch keeps the features of its forward pass; ours makes them again. The best plain torch also keeps them, and
    goes through them in blocks of neurons.
    """
    source = torch.Generator().manual_seed(0)
    u = (torch.randn(N, r, generator=source) / r**0.5).requires_grad_()
    x, A = torch.randn(N, d, generator=source), torch.randn(d, n, generator=source) / n**0.5
    G = rf.gaussian(n, r, seed=1)
    with torch.enable_grad():
        ours, phi = {
            "features": (lambda: rf.random_features(u, n, seed=1), lambda phi: phi),
            "covariance": (lambda: rf.random_features_covariance(x, u, n, seed=1)[0], lambda phi: x.T @ phi),
            "projection": (lambda: rf.random_features_projection(u, A, seed=1), lambda phi: phi @ A.T),
        }[form]
        got, features = ours(), (u @ G.T).relu()
        plain = phi(features)
    kept = features.detach()
    upstream = torch.randn(plain.shape, generator=source)
    wide, above = upstream.to(got.dtype), upstream.double()
    dphi = {
        "features": lambda: above,
        "covariance": lambda: x.double() @ above,
        "projection": lambda: above @ A.double(),
    }
    active = u.detach() @ G.T > 0  # as plain torch decides: a feature at its corner may fall on either side
    exact = (dphi[form]() * active) @ G.double()
    above_in_blocks = {
        "features": lambda b: upstream[:, b],
        "covariance": lambda b: product(x, upstream[:, b]),
        "projection": lambda b: product(upstream, A[:, b]),
    }

    def best() -> Tensor:
        total = torch.zeros(N, r)
        for start in range(0, n, BLOCK):
            b = slice(start, start + BLOCK)
            total += product(torch.ops.aten.threshold_backward(above_in_blocks[form](b), kept[:, b], 0), G[b])
        return total

    return Race(
        f"random_features {form}, backward to u, relu, N {N}, r {r}, n {n}" + f", d {d}" * (form != "features"),
        {
            OURS: Candidate(
                lambda: torch.autograd.grad(got, u, wide, retain_graph=True)[0], lambda g: relative(g, exact)
            ),
            PLAIN: Candidate(
                lambda: torch.autograd.grad(plain, u, upstream, retain_graph=True)[0], lambda g: relative(g, exact)
            ),
            BEST: Candidate(best, lambda g: relative(g, exact)),
        },
        Floor({"f32": 2.0 * N * n * (2 * r + (0 if form == "features" else d))}),
        slack=1e-3,  # for features at their corner on the other side: three of 67 million make 3e-4
    )


def moduli(form: str, N: int, r: int, n: int, d: int) -> Race:
    """A fused pass over moduli of pairs ``|u G^T|``: ours, all features at once, and blocks of neurons in the cache."""
    source, drawing = torch.Generator().manual_seed(0), torch.Generator()
    u = torch.complex(*(torch.randn(N, r, generator=source) / r**0.5 for _ in range(2)))
    parts = u.real.contiguous(), u.imag.contiguous()
    x, A = torch.randn(N, d, generator=source), torch.randn(d, n, generator=source) / n**0.5
    of_x = form == "covariance"

    def draw() -> Tensor:
        return torch.randn(n, r, generator=drawing.manual_seed(1))

    def features(G: Tensor) -> Tensor:
        real, imaginary = (product(part, G.T) for part in parts)
        return real.square_().addcmul_(imaginary, imaginary).sqrt_()

    def used(phi: Tensor, b: slice) -> Tensor:
        if not of_x:
            return product(phi, A[:, b].T)
        phi.sum(0), phi.square().sum(0)  # the moments, which ours computes as well
        return covariance(x, phi)

    def best() -> Tensor:
        G = draw()
        places = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
        each = [used(features(G[b]), b) for b in places]
        return torch.cat(each, 1) if of_x else torch.stack(each).sum(0)

    def error(G: Tensor) -> Callable[[Tensor], float]:
        phi = (u.to(torch.complex128) @ G.T.to(torch.complex128)).abs()
        return lambda got: relative(got, x.double().T @ phi if of_x else phi @ A.double().T)

    ours = {
        "covariance": lambda: rf.random_features_covariance(x, u, n, seed=1, activation="modulus")[0],
        "projection": lambda: rf.random_features_projection(u, A, seed=1, activation="modulus"),
    }
    return Race(
        f"random_features {form}, modulus of pairs, N {N}, r {r}, n {n}, d {d}",
        {
            OURS: Candidate(ours[form], lambda got: error(rf.gaussian(n, r, seed=1))(got)),
            PLAIN: Candidate(lambda: used(features(draw()), slice(None)), lambda got: error(draw())(got)),
            BEST: Candidate(best, lambda got: error(draw())(got)),
        },
        Floor({"f32": 2.0 * N * n * (2 * r + d)}),
    )


fused = [(form, "relu", *SHAPE) for form in ("covariance", "projection")] + [("covariance", "gelu", *SHAPE)]
bench_fused = entries(random_features, fused, (OURS, PLAIN, BEST, PUBLISHED))
bench_moduli = entries(
    moduli, [(form, 4096, 64, 4096, 128) for form in ("covariance", "projection")], (OURS, PLAIN, BEST)
)
bench_features = entries(random_features, [("features", "relu", *SHAPE)], (OURS, PLAIN, BEST))
bench_widths = entries(several_widths, [(4096, 64, 128, 1024, 2048, 4096, 8192, 16384)], (OURS, PLAIN, BEST, EACH))
bench_seeds = entries(
    several_seeds,
    [(4096, 64, 128, n, S) for n, S in ((1024, 16), (48, 128))],
    (OURS, PLAIN, BEST, "rainbow_fast, S n neurons"),
)
bench_backward = entries(
    backward, [(form, *SHAPE) for form in ("features", "covariance", "projection")], (OURS, PLAIN, BEST)
)
