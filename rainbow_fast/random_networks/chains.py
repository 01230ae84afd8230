# SPDX-License-Identifier: BSD-3-Clause
"""Random chains: a batch goes through layer after layer of fresh random weights, with or without batch norm.

`weight_chain` multiplies by weights, which it generates while it multiplies. `gram_chain` has the same law for Gaussian
weights, and needs no weights at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.ops.gaussian import MOST, gaussian
from rainbow_fast.ops.polar import polar
from rainbow_fast.progress import Progress, reported
from rainbow_fast.random_networks import chain_theory
from rainbow_fast.random_networks import orthogonality as measures
from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.gaussian_layer import LAYERS, RUNS, gaussian_layer, layer_keys
from rainbow_fast.random_networks.variates import uniform_weights

Weights = Callable[[int, int, int], Tensor]  # takes (layer, d_out, d_in)
Record = Callable[[int, Tensor], None]  # takes the number of a layer and batches (runs, B, n, d), or factors of them

WIDE = 2**24 - 1
WIDEST = {"haar": 2048, "uniform": 2048}
LEAST_PIVOT = 1e-6  # a squared pivot of Cholesky's method, over the square of its row, that still has ten digits


@dataclass(frozen=True, eq=False)
class ChainResult:
    r"""The measures of a batch in every layer of random chains.

    A measure is a float64 tensor of shape (runs, layers), with an axis of widths in front if several widths were
    asked for, and an axis of batches before the layers if there were several batches: (widths, runs, batches, layers).

    Attributes:
        layer: the layer of the chain.
        weights: the law of the weights: ``"gaussian"``, ``"haar"``, ``"uniform"`` or ``"function"``.
        width: the width, or the list of widths.
        layers: the numbers of the recorded layers, int64: 0 for the start, k for the batch after k layers.
        factors: an (n, n) float64 factor F of the Gram matrix of each batch: ``F F^T = H H^T``, up to a scale. As
            ``H = F Q`` with orthonormal rows of Q, F has all the measures of H. Shape: that of a measure, then (n, n).
    """

    layer: RandomLayer
    weights: str
    width: int | list[int]
    layers: Tensor
    factors: Tensor

    @functools.cached_property
    def grams(self) -> Tensor:
        """Gram matrices of trace 1, as `gram`: the shape of a measure, then (n, n)."""
        return measures.gram(self.factors)

    @functools.cached_property
    def orthogonality_gap(self) -> Tensor:
        """V, as `orthogonality_gap`."""
        return measures.orthogonality_gap(self.factors)

    @functools.cached_property
    def effective_rank(self) -> Tensor:
        """As `effective_rank`."""
        return measures.effective_rank(self.factors)

    @functools.cached_property
    def isometry_gap(self) -> Tensor:
        """As `isometry_gap`; infinite for n > d."""
        return measures.isometry_gap(self.factors)

    @functools.cached_property
    def gaussian_distance(self) -> Tensor:
        """As `gaussian_distance`, in the form with singular values, which holds for n > d as well."""
        return measures.gaussian_distance(self.factors)

    @functools.cached_property
    def smallest_eigenvalue(self) -> Tensor:
        """Smallest eigenvalue of the Gram matrix of trace 1."""
        squares = torch.linalg.svdvals(self.factors).square()
        return squares[..., -1] / squares.sum(-1)

    @functools.cached_property
    def largest_eigenvalue(self) -> Tensor:
        """Largest eigenvalue of the Gram matrix of trace 1."""
        squares = torch.linalg.svdvals(self.factors).square()
        return squares[..., 0] / squares.sum(-1)

    @functools.cached_property
    def mean_cosine(self) -> Tensor:
        """As `mean_cosine`.

        Raises:
            ValueError: there is only one sample, or a sample is zero.
        """
        return measures.mean_cosine(self.factors)

    @functools.cached_property
    def theory(self) -> dict[str, Tensor]:
        """What theory says, by name: the columns of `chain_theory.columns`, for every width and batch.

        A column has the shape of a measure, without the axis of runs. A chain without a theory has no columns. The
        start is that of the first run.
        """
        several = isinstance(self.width, list)
        factors = self.factors if several else self.factors[None]
        widths = self.width if isinstance(self.width, list) else [self.width]
        start = factors[:, 0, ..., 0, :, :]
        columns = [
            chain_theory.columns(self.layer, self.weights, F, d, self.layers.tolist())
            for F, d in zip(start, widths, strict=True)
        ]
        joined = {name: torch.stack([each[name] for each in columns]) for name in columns[0]}
        return joined if several else {name: column[0] for name, column in joined.items()}


@torch.no_grad()
def weight_chain(
    H: Tensor,  # (n, d), (B, n, d) or (runs, B, n, d)
    depth: int,
    *,
    width: int | Sequence[int],
    layer: RandomLayer | None = None,
    weights: str | Callable[[int, int, int], Tensor] = "gaussian",
    runs: int = 1,
    seed: int = 0,
    every: int = 1,
    progress: Progress | bool | None = None,
) -> ChainResult:
    r"""Random chains with explicit weights.

    Equivalent to, for each run and each of its batches::

        for _ in range(depth):
            W = layer.gain * torch.randn(width, H.shape[1]) / math.sqrt(H.shape[1])
            H = layer(H, lambda H: H @ W.T)

    Gaussian weights are those of `gaussian_layer`: above a width of about 128 they are generated inside the product and
    not stored. The weights of a run are a pure function of seed, layer, width and run: more runs, more widths or a
    greater depth keep those that there were. `gram_chain` has the same law at a small part of the cost.

    Args:
        H: the first batch, n samples of any number of units, float32 or float64, which is the dtype of the chain. For
            B batches that go through the same weights (B, n, d); a norm over samples takes each batch for itself. With
            an axis of runs in front, each run has its own start; otherwise all runs have the same.
        depth: number of layers, at least 1 and less than 2^20.
        width: units of each layer, or a list of widths, each with chains of its own.
        layer: the layer; by default linear, with the norm ``"batch"``.
        weights: ``"gaussian"`` (default); ``"haar"``, uniform orthogonal matrices times the gain (polar factors of
            Gaussian matrices), for widths up to 2048; ``"uniform"``, `uniform_weights` over sqrt(d_in) times the gain,
            for widths up to 2048; or a function of (layer, d_out, d_in) which returns weights
            (d_out, d_in). It is called for every run and layer, layers count from 0, and the gain multiplies.
        runs: number of independent networks, at most 2^12; 1 by default.
        seed: 0 <= seed < 2^63; 0 by default.
        every: record every such layer, beginning with the start; 1 by default.
        progress: a function that is called as ``progress(done, total, what)`` after every layer, with the layers of all
            widths and the width as ``what``; or True for a bar.

    Raises:
        ValueError: H is not finite or zero, or has another shape; a number is outside its range; `weights` is unknown,
            or a function of weights returns another shape; a norm over samples has one sample to centre; the layer has
            a skip and H has not the width.
        TypeError: H is no tensor of float32 or float64, or a number is no integer; or `progress` is no function.
        RuntimeError: a recorded batch is zero or not finite.
    """
    draw = _law(weights)
    name = weights if isinstance(weights, str) else "function"
    plan = ChainPlan.of(H, depth, width, layer, integer("runs", runs, 1, RUNS), seed, every, WIDEST.get(name, WIDE))

    def chain(d: int, record: Record) -> None:
        state = plan.start
        for number in range(plan.depth):

            def linear(H: Tensor, number: int = number) -> Tensor:
                return draw(H.flatten(1, 2), d, plan, number).reshape(*H.shape[:-1], d)

            state = plan.rescaled(plan.layer(state, linear))
            record(number + 1, state)

    return plan.run(chain, name, progress)


@dataclass(frozen=True)
class ChainPlan:
    """The checked arguments of a chain."""

    start: Tensor  # (runs, B, n, d)
    depth: int
    widths: list[int]
    layer: RandomLayer
    seed: int
    every: int
    several: bool  # widths
    batches: bool  # whether results have an axis of batches

    @classmethod
    def of(
        cls,
        H: Tensor,
        depth: int,
        width: int | Sequence[int],
        layer: RandomLayer | None,
        runs: int,
        seed: int,
        every: int,
        widest: int,
    ) -> ChainPlan:
        """A plan.

        Raises:
            TypeError, ValueError: as `weight_chain`.
        """
        measures.gram(H)  # it checks H
        if H.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"H is {H.dtype}: wanted float32 or float64")
        if H.dim() > 4:
            raise ValueError(f"H has shape {tuple(H.shape)}: wanted (n, d), (B, n, d) or (runs, B, n, d)")
        integer("depth", depth, 1, LAYERS - 1)
        integer("runs", runs, 1)
        integer("seed", seed, 0, MOST["seed"])
        integer("every", every, 1)
        several = isinstance(width, list | tuple | range)
        numbers: list[int] = list(width) if several else [width]  # type: ignore[arg-type,list-item]
        if not numbers:
            raise ValueError("width is an empty list: wanted at least one width")
        widths = [integer("width", each, 1, widest) for each in numbers]
        if runs * max(widths) >= 2**32:
            raise ValueError(f"runs={runs} at width={max(widths)}: wanted runs * width < 2^32")
        if H.dim() == 4 and len(H) != runs:
            raise ValueError(f"H has shape {tuple(H.shape)}, starts of {len(H)} runs: wanted runs={runs} of them")
        layer = RandomLayer() if layer is None else layer
        if not isinstance(layer, RandomLayer):
            raise TypeError(f"layer={layer!r}: wanted a RandomLayer")
        n, d = H.shape[-2:]
        if n < 2 and layer.normaliser in ("batch_centred", "batch_standard"):
            raise ValueError(f"H has shape {tuple(H.shape)}: wanted two samples for normaliser={layer.normaliser!r}")
        if layer.skip is not None and any(each != d for each in widths):
            raise ValueError(f"H has {d} units: wanted width={width}, because of skip={layer.skip!r}")
        start = H.detach().reshape(-1 if H.dim() == 4 else 1, *((1,) * (H.dim() == 2)), *H.shape[-3:])
        return cls(
            start.expand(runs, *start.shape[1:]), depth, widths, layer, seed, every, several, batches=H.dim() > 2
        )

    def first_row(self, d: int) -> int:
        """The first row of weights at width d: those of different widths lie in different rows."""
        return d << 32

    def rescaled(self, H: Tensor) -> Tensor:
        """H with entries near 1, if that changes no measure of any later batch."""
        if not self.layer.is_homogeneous:
            return H
        size = H.abs().amax((-2, -1), keepdim=True)
        return H / torch.where(size > 0, size, 1)

    def run(self, chain: Callable[[int, Record], None], weights: str, progress: Progress | bool | None) -> ChainResult:
        """Run a chain at every width, and collect what it records."""
        runs, batches, n = self.start.shape[:3]
        layers = list(range(0, self.depth + 1, self.every))
        shape = (len(self.widths), runs, batches, len(layers), n, n)
        factors = torch.zeros(shape, dtype=torch.float64, device=self.start.device)
        with reported(progress) as report:
            for place, d in enumerate(self.widths):

                def record(number: int, H: Tensor, place: int = place, d: int = d) -> None:
                    if number % self.every == 0:
                        F = factor(H)
                        factors[place, :, :, number // self.every, :, : F.shape[-1]] = F
                    if report is not None and number:
                        report(place * self.depth + number, len(self.widths) * self.depth, f"width {d}")

                record(0, self.start)
                chain(d, record)
        self._check(factors, layers)
        factors = factors / torch.linalg.matrix_norm(factors)[..., None, None]
        factors = factors if self.batches else factors[:, :, 0]
        numbers = torch.tensor(layers, device="cpu")
        width = self.widths if self.several else self.widths[0]
        return ChainResult(self.layer, weights, width, numbers, factors if self.several else factors[0])

    def _check(self, factors: Tensor, layers: list[int]) -> None:
        sizes = factors.abs().amax((-2, -1)).movedim(3, 0)
        wrong = (~(sizes.isfinite() & (sizes > 0))).nonzero().tolist()
        if wrong:
            layer, width, run, batch = wrong[0]
            what = "zero" if float(sizes[layer, width, run, batch]) == 0 else "not finite"
            raise RuntimeError(
                f"the batch of run {run} at width {self.widths[width]} is {what} after {layers[layer]} layers: wanted "
                "one with a direction. A larger width or a norm helps against zeros, another gain against overflow"
            )


def factor(X: Tensor) -> Tensor:
    """F (*, n, min(n, d)) float64 with ``F F^T = X X^T``, for X (*, n, d)."""
    X = X.double()
    return X if X.shape[-2] >= X.shape[-1] else triangular(X)


def triangular(X: Tensor) -> Tensor:
    """The lower triangular F (*, n, n) with ``F F^T = X X^T``, for X (*, n, d) float64 with n <= d.

    It is computed by Cholesky's method, or by a QR decomposition where samples are nearly dependent.
    """
    C = X @ X.mT
    F, info = torch.linalg.cholesky_ex(C)
    squares = F.diagonal(dim1=-2, dim2=-1).square()
    good = (info == 0) & (squares > LEAST_PIVOT * C.diagonal(dim1=-2, dim2=-1)).all(-1)
    if not bool(good.all()):
        F[~good] = torch.linalg.qr(X[~good].mT, mode="r").R.mT
    return F


def _law(weights: str | Weights) -> Callable[[Tensor, int, ChainPlan, int], Tensor]:
    """The products of x (runs, N, d_in) with the weights (d, d_in) of a layer in each run, transposed."""
    if weights == "gaussian":
        return _by_gaussian
    if weights == "haar":
        return _by_haar
    if weights == "uniform":
        return _by_uniform
    if callable(weights):
        return functools.partial(_by_function, weights)
    raise ValueError(f"weights={weights!r}: wanted gaussian, haar, uniform, or a function of (layer, d_out, d_in)")


def _by_gaussian(x: Tensor, d: int, plan: ChainPlan, number: int) -> Tensor:
    scale = plan.layer.gain / math.sqrt(x.shape[-1])
    return gaussian_layer(x, d, seed=plan.seed, layer=number, first_row=plan.first_row(d), scale=scale)


def _by_haar(x: Tensor, d: int, plan: ChainPlan, number: int) -> Tensor:
    products = []
    for H, key in zip(x, layer_keys(len(x), plan.seed, number, plan.first_row(d)), strict=True):
        G = gaussian(d, H.shape[-1], seed=key, dtype=torch.float64, device=H.device)
        products.append(H @ (plan.layer.gain * polar(G).A.mT).to(H.dtype))
    return torch.stack(products)


def _by_uniform(x: Tensor, d: int, plan: ChainPlan, number: int) -> Tensor:
    scale, products = plan.layer.gain / math.sqrt(x.shape[-1]), []
    for H, key in zip(x, layer_keys(len(x), plan.seed, number, plan.first_row(d)), strict=True):
        W = uniform_weights(d, H.shape[-1], seed=key, dtype=H.dtype, device=H.device)
        products.append(scale * (H @ W.mT))
    return torch.stack(products)


def _by_function(weights: Weights, x: Tensor, d: int, plan: ChainPlan, number: int) -> Tensor:
    products, wanted = [], (d, x.shape[-1])
    for H in x:
        W = weights(number, *wanted)
        if not isinstance(W, Tensor) or W.shape != wanted:
            what = f"a tensor of shape {tuple(W.shape)}" if isinstance(W, Tensor) else repr(W)
            raise ValueError(f"weights returned {what} for layer {number}: wanted a tensor of shape {wanted}")
        products.append(H @ (plan.layer.gain * W.detach().mT).to(H))
    return torch.stack(products)
