# SPDX-License-Identifier: BSD-3-Clause
"""Measures how the kernels of sampled features, and the aligned features, converge when the width grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.infinite_width.kernels import empirical_kernel, expected_kernel
from rainbow_fast.maps import channels_first
from rainbow_fast.ops.gaussian import as_key
from rainbow_fast.progress import Progress, reported
from rainbow_fast.rainbow.kinds import Pointwise
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork

WIDE = 4  # width of the wide sample, with which the others are aligned, over the largest width


class KernelConvergence(NamedTuple):
    """Errors at growing widths. Each array of errors is ``(networks, widths)`` float64; all samples are independent.

    khat is the kernel of the n features of a sample, and k is its limit for infinite width in closed form, at the same
    inputs. Means E of kernels are over all N^2 pairs of inputs. phi' are the features divided by sqrt(n), so that khat
    is their Gram matrix.

    Attributes:
        widths: the widths, (widths,) int64.
        kernel: ``E (khat - k)^2 / E k^2``. Its expectation is exactly proportional to 1/n.
        between: ``E (khat - khat')^2 / E k^2`` for each sample and the next one, each at its own inputs. If the inputs
            are equal, as at the first site of a network, the expectation is twice that of `kernel`.
        limit: ``min_A E|A phi' - phi|^2 / E|phi|^2``, with phi the features of infinite width at the same inputs.
        wide: the same as `limit`, with phi the features of one sample of `wide_width` neurons at its own inputs.
        wide_width: 4 times the largest width.
        spectrum: eigenvalues of ``E[phi phi^T]`` in decreasing order, (N,), with phi the features of infinite width at
            the inputs of the wide sample.
    """

    widths: np.ndarray
    kernel: np.ndarray
    between: np.ndarray
    limit: np.ndarray
    wide: np.ndarray
    wide_width: int
    spectrum: np.ndarray


class SiteFeatures(NamedTuple):
    """n random features with Gaussian rows for given projections u; see `rainbow_fast.random_features`."""

    u: Tensor  # (N, r)
    shift: Tensor | None
    n: int
    key: Tensor
    activation: str
    negative_slope: float

    def expected(self) -> Tensor:
        """The kernel for infinite width, (N, N)."""
        return expected_kernel(self.u, **self._options())

    def empirical(self) -> Tensor:
        """The kernel of the n features, (N, N)."""
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
    """Compare random features of u at several widths with their limit and with each other.

    All computations are in float64, for any dtype of u. A sample of n features takes N^2 n multiplications and two
    singular value decompositions of (N, N) matrices.

    Args:
        u, activation, negative_slope, shift: as in `rainbow_fast.infinite_width.kernels.expected_kernel`.
        widths: the widths n, in increasing order.
        networks: number of samples of each width, at least 2; 5 by default.
        seed: seed of the random numbers. The samples use the streams 0, 1, ...
        progress: called after each sample as ``progress(done, total, what)``; or True, which shows a progress bar.

    Raises:
        ValueError: as `expected_kernel`; or widths do not increase or are below 1, or `networks` is below 2.
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
    """`kernel_convergence` for the sites of sampled networks. The inputs of a site come from the network's own layers.

    Args:
        network_at_width: a function that returns, for ``(n, index)``, a sampled network with n neurons at each site.
            Different indices must give independent networks:
            ``lambda n, index: model.sample(width=n, network_index=index)[0]``.
        x: images (N, ...) with the dtype and device of the networks.
        widths, networks, progress: as in `kernel_convergence`.
        sites: names of the sites; by default all sampled sites. Their rows must be Gaussian, of any rank, with or
            without the mean row, and they must have no max-pooling. A normalisation after a site is left out of phi.
        samples: the largest number of inputs of a site, evenly spread; each position of a map is one input.

    Returns:
        The results by the name of the site, in the order of the network.

    Raises:
        ValueError: a site has max-pooling or its rows are not Gaussian; or as `kernel_convergence`.
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
    """The projections and options of the features of each site, for images x; arguments as in `site_convergence`."""
    samples = integer("samples", samples, 1)
    inputs: dict[str, Tensor] = {}
    names = network.sampled if sites is None else tuple(sites)
    hooks = []
    for name in names:
        site = network.site(name)
        if not site.fused or not site.drawn.implicit or math.isinf(site.n):
            raise ValueError(
                f"site {name!r}: wanted Gaussian rows (law='gaussian'), of finite width, without pooling, of a known "
                "activation"
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

    This is the squared Bures-Wasserstein distance of the two kernels as operators. E is the mean over the N inputs, on
    which A is optimal, so there is no over-fitting. It is computed in float64; rounding errors are below 1e-7 of the
    traces.

    Args:
        K, K2: (N, N), symmetric and positive semi-definite.

    Raises:
        ValueError: the shapes differ or are not square.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equation 7 and lemma 2.
    """
    if K.dim() != 2 or K.shape[0] != K.shape[1] or K.shape != K2.shape:
        raise ValueError(f"K and K2 have shapes {tuple(K.shape)} and {tuple(K2.shape)}: wanted (N, N) of both")
    return _distance(_root(K), _root(K2))


def _distance(root: Tensor, other: Tensor) -> float:
    nuclear = torch.linalg.svdvals(root.T @ other).sum()
    return max(float(root.square().sum() + other.square().sum() - 2 * nuclear), 0.0) / len(root)


def _root(K: Tensor) -> Tensor:
    """A matrix R with R R^T = K."""
    values, vectors = torch.linalg.eigh(K.double())
    return vectors * values.clamp(min=0).sqrt()


def _rows(u: Tensor, most: int) -> Tensor:
    """u (N, r, *space) as rows (samples, r); at most `most` rows, evenly spread."""
    rows = u.movedim(1, -1).reshape(-1, u.shape[1])
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most, device=u.device).long()]


def _checked(widths: Sequence[int], networks: int) -> list[int]:
    """Check that widths increase and that there are at least 2 networks; returns the widths."""
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
    """The results by site. `draw(n, index)` returns the features of the sites of one sample; each index occurs once."""
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
                    float(total) / len(k) or math.nan  # errors relative to zero activations are undefined
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
