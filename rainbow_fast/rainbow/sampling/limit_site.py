# SPDX-License-Identifier: BSD-3-Clause
"""A site of infinitely many neurons: the alignment in closed form, from the kernel of the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rainbow_fast.maps import as_rows
from rainbow_fast.ops.gaussian import site_key
from rainbow_fast.ops.polar import RTOL, polar_
from rainbow_fast.rainbow.alignment.classifier import ridge_classifier
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.limit_activation import LimitActivation, factored
from rainbow_fast.rainbow.network.rainbow_network import refit_site
from rainbow_fast.rainbow.options import law_of
from rainbow_fast.rainbow.sampling.align import AlignedMap, nothing
from rainbow_fast.rainbow.sampling.flight import REFERENCE
from rainbow_fast.rainbow.sampling.sampled_site import SampledSite
from rainbow_fast.tracing.tail import Tail

SQUARED = 1e12  # largest condition of M M^T: its small eigenvalues are rounding beyond


class LimitSite(SampledSite):
    r"""Samples one site, as `SampledSite`, in the limit of infinitely many neurons.

    Phi are features with the kernel k, X (S, d) the reference's phi at the S alignment samples, K (S, S) the kernel of
    the samples. ``M = E[phi Phi^T]`` has ``M M^T = X^T K X / S^2``, so that the aligned features are

        A Phi(z) = polar(M) Phi(z) = (X^T K X)^(-1/2) X^T k(samples, z)

    K is streamed. The square root squares the condition of M. Where that is above 1e12, and for Nystrom's approximation
    ``K = K_Sm K_mm^{-1} K_mS`` from m of the samples, A is the polar factor of ``X^T K_Sm R^{-1}``, which needs the
    factor R of ``K_mm = R^T R`` and does not square it. K_mm is stored then.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 1 and equations 5 and 6.
    """

    activation: LimitActivation
    _embedded: list[tuple[Tensor, Tensor | None]] | None = None  # all samples, which a new classifier is fitted to

    def draw(self) -> None:
        """Choose the samples that the kernel is expanded in, and embed them."""
        address = site_key(self.options.seed, self.options.network_index, self.site.index)
        drawn = law_of(self.options).limit(self.own, self.spec.directions[self.site.name], address)
        assert drawn is not None
        self.activation = LimitActivation(
            self.site,
            drawn._replace(mean_row=self.options.keep_mean and self.own.has_mean_row),
            recalibration=self._recalibration() if self.options.recalibrate and self.align.apart[self.lane] else None,
            precision=self.options.precision or "highest",
            device=self.device,
        )
        chosen, before = self._chosen(self.samples), 0
        self.m = int(chosen.sum())
        rows, shifts, targets = [], [], []
        for start in self.align:
            z, select = self._input(self.align, start), self.select(start)
            u, shift = self.activation.embedded(select(z))
            here = chosen[before : before + len(u)]
            rows.append(u[here])
            shifts += [] if shift is None else [shift[here]]
            if self.m == self.samples:
                targets.append(as_rows(select(self._target(self.align.output(REFERENCE, start)))).double())
            before += len(u)
        self.activation.rows = torch.cat(rows)
        self.activation.shifts = torch.cat(shifts) if shifts else None
        self.X = torch.cat(targets) if targets else None

    def accumulate(self) -> None:
        """Compute the moments of phi and k, in one pass over the alignment set."""
        self.moments = CrossCovariance(self.site.name)
        neurons = self.activation.neurons
        power = active = 0.0
        for start in self.align:
            phi, select = self._target(self.align.output(REFERENCE, start)), self.select(start)
            u, shift = self.activation.embedded(select(self._input(self.align, start)))
            x = as_rows(select(phi)).double()
            for at, k in self.activation.kernel_in_blocks(u, shift):
                self.moments.update(x[at], k)
                del k  # freed before the next block is computed
            power += float(neurons.power(u, shift).sum())
            active += float(neurons.activity(u, shift).sum())
            self.tick(f"{self.site.name}: moments")
        self.power, self.activity = power / self.moments.count, active / self.moments.count

    def solve(self) -> None:
        """Compute A from the moments."""
        moments, options = self.moments, self.options
        mu, mean = moments.mean_x, moments.mean_y
        T = moments.covariance() if options.center else moments.compute()  # E[x k^T], (d, m)
        if options.offset and moments.x.constant:
            self.activation.A, self.aligned = T.zero_(), nothing(T, mu)
            return
        solution = None if self.X is None else self._by_square(self.X - mu if options.center else self.X, T)
        factor = None
        if solution is None:
            factor = factored(self.activation.whole_kernel(self.activation.rows, self.activation.shifts))
            M = torch.linalg.solve_triangular(factor, T, upper=True, left=False)
            size = float(torch.linalg.vector_norm(M))
            polar = polar_(M, rank="partial", rtol=RTOL)
            B = torch.linalg.solve_triangular(factor.T, M, upper=False, left=False)
            nuclear, rank, condition = float(polar.nuclear_norm), int(polar.rank), float(polar.condition)
        else:
            B, nuclear, size, rank, condition = solution
        features = self.power
        if options.center and factor is None:
            features -= float(mean.mean())
        elif options.center and factor is not None:
            features -= float(torch.linalg.solve_triangular(factor.T, mean.unsqueeze(1), upper=False).square().sum())
        covariance = nuclear - (0.0 if options.center else float(mu @ (B @ mean)))
        phi = moments.x.spread if options.center else moments.trace_x
        self.aligned = AlignedMap(
            shape=(len(B), 1),  # of A for features with the kernel k, which are phi' / sqrt(n)
            b=torch.zeros_like(mu),
            center=torch.zeros_like(mu),
            inverse=torch.ones_like(mu),
            mean=B @ mean,
            overlap=covariance if options.offset else nuclear,
            covariance=covariance,
            nuclear_norm=nuclear,
            features=features,
            similarity=nuclear / math.sqrt(phi * features) if phi * features > 0 else math.nan,
            rank=rank,
            effective_rank=(nuclear / size) ** 2,
            condition=condition,
        )
        self.activation.A, self.X = B.contiguous(), None

    def collect_for(self, tail: Tail) -> None:
        """Let `measure` collect the samples that a new classifier is fitted to."""
        self._embedded = []

    def measure(self) -> None:
        """As `SampledSite.measure`; and collect the embedded samples."""
        if self._embedded is not None:
            for start in self.align:
                self._embedded.append(self.activation.embedded(self._input(self.align, start)))
        super().measure()

    def refit_classifier(self, tail: Tail) -> None:
        r"""Fit a classifier to infinitely many features, and put it in the place of A in `refit`.

        It is kernel ridge regression, ``f(x) = B R^{-T} k(rows, x) + b``, in the features ``R^{-T} k(rows, x)`` of
        `ridge_classifier`, with ``R^T R`` the kernel of the m rows. With all N images as rows,
        ``B R^{-T} = (y - mean y)^T (K + lambda I)^{-1}`` for the centred kernel K. With fewer, K is Nystrom's
        approximation. lambda is relative to the mean eigenvalue of the covariance of the m features ``R^{-T} k``; with
        all images this is the mean diagonal of the centred kernel.
        """
        assert self._embedded is not None and self.align.data.labels is not None
        whole, parts, self._embedded = self.activation, self._embedded, None
        u, shifts = torch.cat([part for part, _ in parts]), [part for _, part in parts if part is not None]
        shift = torch.cat(shifts) if shifts else None
        del parts, shifts  # freed before the kernel is computed
        pooling = _pooling(tail, self.statistics.phi_shape, u) if len(self.statistics.phi_shape) > 1 else None
        readout = LimitActivation(
            refit_site(self.site, tail, flattened=pooling is not None),
            whole.drawn,
            pooling=pooling,
            recalibration=whole.recalibration,
            precision=whole.precision,
            device=self.device,
        )
        positions, images = readout.positions_of_a_sample, self._chosen(self.align.count)
        chosen = images.repeat_interleave(positions)
        readout.rows, readout.shifts = u[chosen], None if shift is None else shift[chosen]
        k = readout.whole_kernel(u, shift)
        del u, shift
        factor = factored(k[images])
        features = torch.linalg.solve_triangular(factor, k, upper=True, left=False, out=k)
        B, b, self.ridge = ridge_classifier(features, self.align.data.labels, tail.last.out_features)
        readout.A = torch.linalg.solve_triangular(factor.T, B, upper=False, left=False).contiguous()
        readout.offset, self.refit = b, readout

    def _chosen(self, count: int) -> Tensor:
        """The mask of `limit_rows` of this many samples, which the option `seed` chooses; of all if there are fewer."""
        generator = torch.Generator("cpu").manual_seed(self.options.seed)
        order = torch.randperm(count, generator=generator, device="cpu")
        chosen = torch.zeros(count, dtype=torch.bool, device="cpu")
        chosen[order[: self.options.limit_rows]] = True
        return chosen.to(self.device)

    def _by_square(self, X: Tensor, T: Tensor) -> tuple[Tensor, float, float, int, float] | None:
        """A by the square root of ``M M^T = X^T K X / S^2``; None if its condition is above `SQUARED`.

        Channels that are zero for all samples are null directions, and do not count.

        Returns:
            A (d, S), |M|_*, |M|_F, the rank and the condition of M.
        """
        alive = X.square().sum(0) > 0
        W = X[:, alive].T / len(X)
        square = W @ T[alive].T
        values, vectors = torch.linalg.eigh((square + square.T) / 2)
        if not float(values[0]) * SQUARED > float(values[-1]):
            return None
        A = T.new_zeros(len(alive), len(X))
        A[alive] = (vectors * values.rsqrt()) @ (vectors.T @ W)
        roots = values.sqrt()
        nuclear, size = float(roots.sum()), math.sqrt(float(values.sum()))
        return A, nuclear, size, len(roots), float(roots[-1] / roots[0])


def _pooling(tail: Tail, phi_shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The products of positions (P, P) in the kernel of the features that the classifier reads, a mean over these."""
    space = phi_shape[1:]
    positions = torch.eye(math.prod(space), dtype=like.dtype, device=like.device)
    maps = tail.between(positions.view(-1, 1, *space))
    return maps @ maps.T / maps.shape[1]
