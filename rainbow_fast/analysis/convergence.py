# SPDX-License-Identifier: BSD-3-Clause
"""How the kernels of sampled features, and the features once aligned, converge as the width grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.analysis.kernels import empirical_kernel, expected_kernel
from rainbow_fast.arguments import integer
from rainbow_fast.ops.gaussian import as_key
from rainbow_fast.progress import Progress, reported
from rainbow_fast.rainbow.kinds import Pointwise
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.positions import channels_first

WIDE = 4  # times the largest width: the sample that others are aligned with


class KernelConvergence(NamedTuple):
    """Errors at growing widths, ``(networks, widths)`` float64 each. All samples are independent.

    khat is the kernel of the n features of a sample, k its closed form at the same input; means are over all N^2 pairs
    of inputs. phi' are the features over sqrt(n), so that khat is their Gram matrix.

    Attributes:
        widths: (widths,) int64.
        kernel: ``E (khat - k)^2 / E k^2``. Falls as 1/n exactly.
        between: ``E (khat - khat')^2 / E k^2`` of each sample and the next, each at its own input: the noise of two
            samples, twice `kernel` where their inputs are equal, as at the first site of a network.
        limit: ``min_A E|A phi' - phi|^2 / E|phi|^2``, phi the infinitely many features at the same input.
        wide: the same, with phi the features of one sample of `wide_width` neurons at its own input.
        wide_width: 4 times the largest width.
        spectrum: eigenvalues of ``E[phi phi^T]`` in decreasing order, (N,), phi the infinitely many features at the
            input of the wide sample.
    """

    widths: np.ndarray
    kernel: np.ndarray
    between: np.ndarray
    limit: np.ndarray
    wide: np.ndarray
    wide_width: int
    spectrum: np.ndarray


class SiteFeatures(NamedTuple):
    """n features of Gaussian rows, at given projections; see `rainbow_fast.random_features`."""

    u: Tensor  # (N, r)
    shift: Tensor | None
    n: int
    key: Tensor
    activation: str
    negative_slope: float

    def expected(self) -> Tensor:
        """The kernel of infinitely many of them, (N, N)."""
        return expected_kernel(self.u, **self._options())

    def empirical(self) -> Tensor:
        """The kernel of the n of them, (N, N)."""
        return empirical_kernel(self.u, self.n, seed=self.key, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"shift": self.shift, "activation": self.activation, "negative_slope": self.negative_slope}


def kernel_convergence(
    u: Tensor,  # (N, r)
    widths: Sequence[int],
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    shift: Tensor | None = None,  # (N,)
    networks: int = 5,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> KernelConvergence:
    """How fast random features of u converge: samples of each width against their limit and against each other.

    In float64 throughout, whatever the dtype of u. Work: N^2 n multiplications and two singular value decompositions
    (N, N) for each sample of n features.

    Args:
        u, activation, negative_slope, shift: as in `rainbow_fast.analysis.kernels.expected_kernel`.
        widths: increasing.
        networks: samples of each width, at least 2.
        seed: of the random numbers; each sample has a stream of its own, 0, 1, ...
        progress: called as ``progress(done, total, what)``, after each sample; or True, which shows a bar.

    Raises:
        ValueError: as `expected_kernel`; widths that do not increase from 1 on, fewer than 2 networks.
    """

    def draw(n: int, index: int) -> dict[str, SiteFeatures]:
        a = None if shift is None else shift.detach().double()
        return {"": SiteFeatures(u.detach().double(), a, n, as_key(seed, index, 0), activation, negative_slope)}

    with reported(progress) as report:
        return _converge(draw, widths, networks, report)[""]


def site_convergence(
    network_at_width: Callable[[int, int], RainbowNetwork],
    x: Tensor,
    widths: Sequence[int],
    *,
    networks: int = 5,
    sites: Sequence[str] | None = None,
    samples: int = 512,
    progress: Progress | bool | None = None,
) -> dict[str, KernelConvergence]:
    """`kernel_convergence` of the sites of whole networks, each at the zh that its own lower layers give it.

    Args:
        network_at_width: gives a sampled network of n neurons at each site, from ``(n, index)``; indices 0, 1, ... are
            independent networks: ``lambda n, index: model.sample(width=n, network_index=index)[0]``.
        x: (images, ...) of the networks' dtype and device.
        widths, networks, progress: as in `kernel_convergence`.
        sites: their names; all sampled sites by default. Their rows must be Gaussian, of any rank, with or without the
            mean row; they must not pool. A normalisation after them is left out of phi.
        samples: inputs of a site that pairs are made of, at most, evenly spread; positions of a map are samples.

    Returns:
        By site, in the order of the network.

    Raises:
        ValueError: a site that pools, or whose rows are not Gaussian; else as `kernel_convergence`.
    """

    def draw(n: int, index: int) -> dict[str, SiteFeatures]:
        network = network_at_width(n, index)
        return site_features(network, x, sites=sites, samples=samples)

    with reported(progress) as report:
        return _converge(draw, widths, networks, report)


@torch.no_grad()
def site_features(
    network: RainbowNetwork, x: Tensor, *, sites: Sequence[str] | None = None, samples: int = 512
) -> dict[str, SiteFeatures]:
    """What the sites of a sampled network make their features of at the images x; arguments as `site_convergence`."""
    samples = integer("samples", samples, 1)
    inputs: dict[str, Tensor] = {}
    names = network.sampled if sites is None else tuple(sites)
    hooks = []
    for name in names:
        site = network.site(name)
        if not site.fused or not site.drawn.implicit:
            raise ValueError(
                f"site {name!r}: wanted one with Gaussian rows (law='gaussian'), without pooling, of a known activation"
            )
        hooks.append(site.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]})))
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    features = {}
    for name in names:
        site = network.site(name)
        u, shift = site.project(channels_first(inputs[name], site.axis))
        rows = _rows(u, samples).double()
        added = None if shift is None else _rows(shift.unsqueeze(1), samples).squeeze(1).double()
        assert isinstance(site.kind, Pointwise) and site.kind.activation is not None
        of_kernel = site.kind.activation, site.kind.negative_slope
        features[name] = SiteFeatures(rows, added, site.n, site.key, *of_kernel)
    return features


def bures_wasserstein(K: Tensor, K2: Tensor) -> float:
    r"""``min_A E|A phi' - phi|^2`` over isometries A, from the kernels of phi and of phi' at the same N inputs.

        (tr K + tr K2 - 2 |K^{1/2} K2^{1/2}|_*) / N

    the squared Bures-Wasserstein distance of the two kernels as operators. Widths do not enter, nor does an A that
    over-fits: the N inputs are the whole law. float64; the rounding is below 1e-7 of the traces.

    Args:
        K, K2: (N, N), symmetric and positive.

    Raises:
        ValueError: shapes that differ or are not square.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equation 7 and lemma 2.
    """
    if K.dim() != 2 or K.shape[0] != K.shape[1] or K.shape != K2.shape:
        raise ValueError(f"K and K2 have shapes {tuple(K.shape)} and {tuple(K2.shape)}: wanted (N, N) of both")
    return _distance(_root(K), _root(K2))


def _distance(root: Tensor, other: Tensor) -> float:
    nuclear = torch.linalg.svdvals(root.T @ other).sum()
    return max(float(root.square().sum() + other.square().sum() - 2 * nuclear), 0.0) / len(root)


def _root(K: Tensor) -> Tensor:
    """R with R R^T = K."""
    values, vectors = torch.linalg.eigh(K.double())
    return vectors * values.clamp(min=0).sqrt()


def _rows(u: Tensor, most: int) -> Tensor:
    """(N, r, *space) as (samples, r), at most `most` of them, evenly spread."""
    rows = u.movedim(1, -1).reshape(-1, u.shape[1])
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most, device=u.device).long()]


def _checked(widths: Sequence[int], networks: int) -> list[int]:
    """Increasing widths, and networks enough to compare one with another."""
    widths = [integer("widths", n) for n in widths]
    if not widths or any(b <= a for a, b in zip([0, *widths], widths, strict=False)):
        raise ValueError(f"widths={list(widths)}: wanted one or more, increasing, at least 1")
    if integer("networks", networks) < 2:
        raise ValueError(f"networks={networks}: wanted at least 2, to compare one with another")
    return widths


def _converge(
    draw: Callable[[int, int], Mapping[str, SiteFeatures]],
    widths: Sequence[int],
    networks: int,
    progress: Progress | None,
) -> dict[str, KernelConvergence]:
    """`draw(n, index)` gives the features of the sites of one sample; every index is drawn once."""
    widths = _checked(widths, networks)
    total, count = networks * len(widths) + 1, len(widths)
    wide_width = WIDE * widths[-1]
    far: dict[str, Tensor] = {}
    results: dict[str, KernelConvergence] = {}
    for name, features in draw(wide_width, total - 1).items():
        far[name] = _root(features.empirical())
        spectrum = torch.linalg.eigvalsh(features.expected()).flip(0) / len(features.u)
        kernel, between, limit, wide = np.full((4, networks, count), np.nan)
        results[name] = KernelConvergence(np.array(widths), kernel, between, limit, wide, wide_width, spectrum.numpy())
    if progress is not None:
        progress(1, total, f"width {wide_width}")
    for place, n in enumerate(widths):
        kept: dict[str, list[tuple[Tensor, float]]] = {name: [] for name in results}
        for network in range(networks):
            for name, features in draw(n, network * count + place).items():
                k, khat, to = features.expected(), features.empirical(), results[name]
                power, trace, size = (
                    float(total) / len(k) or math.nan  # of activations that are all zero nothing is a share
                    for total in (k.square().sum() / len(k), k.trace(), far[name].square().sum())
                )
                root = _root(khat)
                to.kernel[network, place] = float((khat - k).square().mean()) / power
                to.limit[network, place] = _distance(root, _root(k)) / trace
                to.wide[network, place] = _distance(root, far[name]) / size
                kept[name].append((khat, power))
            if progress is not None:
                progress(1 + place * networks + network + 1, total, f"width {n}, network {network}")
        for name, kernels in kept.items():
            for network, (khat, power) in enumerate(kernels):
                difference = khat - kernels[(network + 1) % networks][0]
                results[name].between[network, place] = float(difference.square().mean()) / power
    return results
