# SPDX-License-Identifier: BSD-3-Clause
"""Chains of samples through deep linear networks with Gaussian weights, normalised after every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.arguments import flag, integer, tensor
from rainbow_fast.ops.gaussian import MOST, gaussian
from rainbow_fast.progress import Progress, reported
from rainbow_fast.random_networks.frames import orthonormal_frame
from rainbow_fast.random_networks.gaussian_layer import LAYERS, RUNS, gaussian_layer
from rainbow_fast.random_networks.lyapunov import positive
from rainbow_fast.random_networks.variates import chi, need_scipy


def normalised_chain(H: Tensor, layers: int, *, runs: int = 1, seed: int = 0) -> Tensor:
    r"""The samples ``x_(l+1) = W_l x_l / |W_l x_l|`` of a chain, with the same Gaussian weights W_l (d, d) for all.

    For each sample alone, {x_l} from l = 1 on are independent and uniform on the sphere. What the chain remembers is in
    the angles between samples, which collapse (`coupled_chain`). The weights are those of `lyapunov_estimate` with the
    same seed.

    Args:
        H: (n, d) float32 or float64, the samples x_0; their lengths do not matter.
        layers: number of layers, 1 to 2^20.
        runs: number of independent networks, 1 to 2^12; 1 by default.
        seed: 0 <= seed < 2^63; 0 by default.

    Returns:
        (layers + 1, runs, n, d): samples of length 1 before the first layer and after every layer, in the dtype and on
        the device of H.

    Raises:
        TypeError: an argument has the wrong type, or H is not float32 or float64.
        ValueError: H has another shape, is not finite or has a sample that is zero, or a number is outside its range.

    Source: Daneshmand, Joudaki and Bach (NeurIPS 2021), section 2, for networks without batch normalisation.
    """
    H = _samples(H)
    layers, runs = integer("layers", layers, 1, LAYERS), integer("runs", runs, 1, RUNS)
    seed = integer("seed", seed, 0, MOST["seed"])
    chain = [_unit(H)[0].expand(runs, *H.shape)]
    for layer in range(layers):
        chain.append(_unit(gaussian_layer(chain[-1], H.shape[-1], seed=seed, layer=layer))[0])
    return torch.stack(chain)


@dataclass(frozen=True)
class CoupledChain:
    """The result of `coupled_chain`: n samples in each of the recorded layers, for each run.

    Attributes:
        layers: the recorded layers; 0 is the input.
        factors: (layers, runs, n, n) float64, lower triangular factors of the cosines of the samples. The rows have
            length 1. They can take the place of the samples in every measure of a batch, such as `orthogonality_gap`.
        log_diagonal: (layers, runs, n) float64, the logarithms of the diagonals of `factors`, also where these are too
            small for float64. For two samples, the last one is log|sin| of their angle.
        log_norms: (layers, runs, n) float64, log|x| of the samples that are not normalised: S x_0, S the product.
    """

    layers: tuple[int, ...]
    factors: Tensor
    log_diagonal: Tensor
    log_norms: Tensor

    @property
    def cosines(self) -> Tensor:
        """The cosines of all pairs of samples, (layers, runs, n, n)."""
        return self.factors @ self.factors.mT

    @property
    def log_determinants(self) -> Tensor:
        """The logarithms of the determinants of `cosines`, (layers, runs), without rounding of small ones."""
        return 2 * self.log_diagonal.sum(-1)

    @property
    def isometry_gaps(self) -> Tensor:
        """The isometry gap of the samples at length 1, (layers, runs): minus the mean of 2 `log_diagonal`."""
        return -2 * self.log_diagonal.mean(-1)


def coupled_chain(
    H: Tensor,
    layers: int,
    *,
    width: int | None = None,
    runs: int = 1,
    seed: int = 0,
    variance: float = 1.0,
    weights: bool = False,
    record: Sequence[int] | None = None,
    progress: Progress | bool | None = None,
) -> CoupledChain:
    r"""The joint law of n samples in deep linear networks with the same Gaussian weights, normalised in every layer.

        L_(l+1) = D L_l A_l,   C_l = L_l L_l^T

    C_l (n, n) holds the cosines of the samples, D scales the rows to length 1, and the matrices A_l are independent and
    lower triangular: ``A_jj ~ chi_(width - j + 1)`` and ``A_ij ~ N(0, 1)`` below the diagonal (Bartlett). This law is
    exact at any width, and a step costs O(n^3) for any width. For two samples it is the recursion
    ``cot' = (A_11 cot + A_21) / A_22`` of their angle. Since the factor is kept, and not C, the chain keeps all of its
    digits while C becomes singular. Collapsed components fade only below 1e-308, and `log_diagonal` not even there.

    Args:
        H: (n, d) float32 or float64, linearly independent samples at the input, with n <= d.
        layers: number of layers, 1 to 2^20.
        width: number of units of every layer, at least n; None (default) for d.
        runs: number of independent networks, at least 1; at most 2^12 with `weights`. 1 by default.
        seed: 0 <= seed < 2^63; 0 by default. A_l is at the stream l of `rainbow_fast.gaussian` and of `chi`, and run r
            is row r there, so that it is the same for any number of runs.
        variance: of the weights, above 0; 1 by default. Only `log_norms` depends on it.
        weights: True takes A_l from a network with weights, those of `lyapunov_estimate` with the same seed. They are
            not stored (`gaussian_layer`). False (default) draws A_l.
        record: the layers to record, in increasing order, 0 for the input; None (default) for all.
        progress: a function that is called as ``progress(layer, layers, "layers")``; or True for a bar.

    Returns:
        `CoupledChain`, on the device of H.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: H has another shape, is not finite, has a sample that is zero or linearly dependent on others, or
            n > d or n > width; `record` is not increasing; or a number is outside its range.
        ImportError: the chain is drawn by its law, which needs SciPy for `chi`, and SciPy is not installed.

    Source: Bartlett, Proceedings of the Royal Society of Edinburgh 53 (1933), 260-283, for A; Daneshmand, Joudaki and
    Bach (NeurIPS 2021), section 2, for the chain.
    """
    H = _samples(H)
    n, d = H.shape
    if n > d:
        raise ValueError(f"H has shape {(n, d)}, {n} samples of {d} units: wanted at most as many samples")
    width, layers = integer("width", d if width is None else width, n), integer("layers", layers, 1, LAYERS)
    runs = integer("runs", runs, 1, RUNS if flag("weights", weights) else None)
    seed, variance = integer("seed", seed, 0, MOST["seed"]), positive("variance", variance)
    kept = _recorded(record, layers)
    if not weights:
        need_scipy("coupled_chain", "; with weights=True it does not")
    unit, log_lengths = _unit(H.double())
    frame = orthonormal_frame(unit)
    if bool((frame.L.diagonal() <= n * torch.finfo(torch.float64).eps).any()):
        raise ValueError("H: the samples are linearly dependent, wanted independent ones")
    step = _by_weights(frame.Q.expand(runs, n, d), width, seed) if weights else _by_law(n, width, runs, seed, H.device)
    factor = frame.L.expand(runs, n, n)
    log_diagonal = frame.L.diagonal().log().expand(runs, n)
    log_norms = log_lengths.expand(runs, n)
    states = [(factor, log_diagonal, log_norms)] if 0 in kept else []
    with reported(progress) as report:
        for layer in range(layers):
            A = step(layer)
            factor = factor @ A
            grown = torch.linalg.vector_norm(factor, dim=-1)
            factor = factor / grown[..., None]
            log_diagonal = log_diagonal + A.diagonal(dim1=-2, dim2=-1).log() - grown.log()
            log_norms = log_norms + grown.log() + math.log(variance) / 2
            if layer + 1 in kept:
                states.append((factor, log_diagonal, log_norms))
            if report is not None:
                report(layer + 1, layers, "layers")
    return CoupledChain(tuple(kept), *(torch.stack(part) for part in zip(*states, strict=True)))


def _by_law(n: int, width: int, runs: int, seed: int, device: torch.device) -> Callable[[int], Tensor]:
    """A function that draws the factors A (runs, n, n) of a layer."""
    below = torch.tril_indices(n, n, -1, device="cpu")

    def step(layer: int) -> Tensor:
        A = torch.zeros(runs, n, n, dtype=torch.float64, device="cpu")
        A.diagonal(dim1=-2, dim2=-1).copy_(chi(range(width, width - n, -1), runs, seed=seed, stream=layer))
        A[:, below[0], below[1]] = gaussian(runs, below.shape[1], seed=seed, stream=layer, dtype=torch.float64)
        return A.to(device)

    return step


def _by_weights(Q: Tensor, width: int, seed: int) -> Callable[[int], Tensor]:
    """A function that computes the factors A of a layer from the frames Q (runs, n, d), which it moves forward."""

    def step(layer: int) -> Tensor:
        nonlocal Q
        frame = orthonormal_frame(gaussian_layer(Q, width, seed=seed, layer=layer))
        Q = frame.Q
        return frame.L

    return step


def _recorded(record: Sequence[int] | None, layers: int) -> list[int]:
    if record is None:
        return list(range(layers + 1))
    several = record if isinstance(record, list | tuple | range) else [record]
    kept = [integer("record", each, 0, layers) for each in several]
    if not kept or kept != sorted(set(kept)):
        raise ValueError(f"record={kept}: wanted at least one layer, in increasing order")
    return kept


def _unit(H: Tensor) -> tuple[Tensor, Tensor]:
    """The samples at length 1, and the logarithms of their lengths; squares of any size do not overflow."""
    largest = H.abs().amax(-1, keepdim=True)
    scaled = H / largest
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / length, (largest.log() + length.log())[..., 0]


def _samples(H: Tensor) -> Tensor:
    """H, finite samples (n, d) with directions."""
    if tensor("H", H).dim() != 2 or 0 in H.shape:
        raise ValueError(f"H has shape {tuple(H.shape)}: wanted (n, d), none of them 0")
    if H.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"H is {H.dtype}: wanted torch.float32 or torch.float64")
    if not bool(H.isfinite().all()):
        raise ValueError("H is not finite")
    if bool((H == 0).all(-1).any()):
        raise ValueError("H: a sample is zero, wanted samples with a direction")
    return H
