# SPDX-License-Identifier: BSD-3-Clause
"""Cross-covariances of activations, accumulated over batches in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rainbow_fast.arguments import one_of
from rainbow_fast.ops.cross_covariance import DTYPES, REDUCTIONS, cross_covariance, cross_covariance_
from rainbow_fast.ops.precision import check_precision
from rainbow_fast.rainbow.channel_moments import ChannelMoments, about, piece_size

_NO_SAMPLES = "no samples yet, wanted at least one update"
KEYS = ("cross", "total_x", "square_x", "total_y", "square_y", "count")
CENTERS = ("center_x", "center_y")  # missing in states of earlier versions, whose sums are about 0


class CrossCovariance:
    r"""Streaming cross-covariance of x and y, with the means and variances of both sides.

    Every position of a feature map is a sample. Batches are weighted by their number of samples. Sums are float64, as
    in `rainbow_fast.cross_covariance`, and are taken about a center on each side (see `ChannelMoments`). So
    `covariance` of float32 data is accurate to 2e-6 of the standard deviations, whatever the means. This is not an
    nn.Module: it has no parameters and no gradient.

    Equivalent to::

        x, y = torch.cat(xs).double(), torch.cat(ys).double()    # (N, d), (N, m)
        x.T @ y / len(x)                                         # compute()
        (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)             # covariance()

    Args:
        name: name of the layer, for error messages; default None.
        precision: of float32 products, as in `rainbow_fast.cross_covariance`; None (default) takes torch's setting at
            every update.

    Attributes:
        count: number of samples seen.
        cross: sum (x - x.center)(y - y.center)^T, (d, m) float64; None before the first batch and after `consume`.
        x, y: `ChannelMoments` of each side.
        mean_x, mean_y: E[x] (d,) and E[y] (m,), float64.
        trace_x, trace_y: E|x|^2 and E|y|^2, floats.

    Source: M of Guth, Menard, Rochette and Mallat (JMLR 2024), equations 5 to 7.
    """

    def __init__(self, name: str | None = None, *, precision: str | None = None) -> None:
        check_precision(precision)
        self.name, self.precision = name, precision
        self.reset()

    def reset(self) -> None:
        """Forget all samples; the name and the precision are kept."""
        self.cross: Tensor | None = None
        self._known = False
        self.x = ChannelMoments()
        self.y = ChannelMoments()

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return self.y.count

    def know(self, x: ChannelMoments) -> None:
        """Set the moments of x before the first batch, if they are already known for all x. `begin` then skips them."""
        self.x, self._known = x, True

    def update(self, x: Tensor, y: Tensor | None = None) -> CrossCovariance:
        """Add a batch and return self.

        Args:
            x: (N, d) or (N, d, *space).
            y: (N, m) or (N, m, *space), of the same dtype; None (default) stands for x.

        Raises:
            ValueError, TypeError: as `rainbow_fast.cross_covariance`; or the channels differ from earlier batches.
        """
        other = x if y is None else y
        if x.dim() < 2 or x.dtype not in DTYPES or x.dtype != other.dtype or _samples(x) != _samples(other):
            cross_covariance(x, y)  # raises the error
        self._check_channels(x.shape[1], other.shape[1])
        if not x.numel() or not other.numel():
            return self
        if y is None and self.count and not torch.equal(self.x.center, self.y.center):  # type: ignore[arg-type]
            y = x
        x, a = self.x.centered_on(x)
        other, b = (x, a) if y is None else self.y.centered_on(other)
        if x.dtype != other.dtype:
            x, other = x.double(), other.double()
        if self.cross is None:
            self.cross = torch.zeros(x.shape[1], other.shape[1], dtype=torch.float64, device=x.device)
        size = piece_size(x, other)
        for piece, other_piece in zip(x.split(size), other.split(size), strict=True):
            of_x, of_y, near_a, near_b = ChannelMoments(), ChannelMoments(), about(piece, a), None
            of_x.add_shifted(near_a, a)
            if y is not None:
                near_b = about(other_piece, b)
                of_y.add_shifted(near_b, b)
            cross_covariance_(self.cross, near_a, near_b, precision=self.precision)
            self.x.merge(of_x)
            self.y.merge(of_x if y is None else of_y)
        return self

    def add(self, cross: Tensor, x: ChannelMoments, y: ChannelMoments) -> None:
        """Add sums that were computed elsewhere, for example by `rainbow_fast.random_features_covariance`.

        `cross` is the sum of (x - x.center)(y - y.center)^T, (d, m) float64.
        """
        assert x.center is not None and x.total is not None and y.center is not None and y.total is not None
        self._check_channels(*cross.shape)
        self.x.merge(x)
        self.y.merge(y)
        assert self.x.center is not None and self.y.center is not None
        self.cross = cross.clone() if self.cross is None else self.cross.add_(cross)
        shift_x, shift_y = x.center - self.x.center, y.center - self.y.center
        self.cross.addr_(shift_x, y.total + y.count * shift_y).addr_(x.total, shift_y)

    def begin(self, x: Tensor, m: int, center: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Add the part of a batch that depends on x only. The caller adds the sums that depend on y.

        The batch is counted, and its moments of x are added unless `know` has set them.

        Args:
            x: (N, d) or (N, d, *space).
            m: channels of y.
            center: of y, (m,); None for 0. Only the center of the first batch is used. The caller may change it in
                place before adding the first sums.

        Returns:
            The sums of ``(x - x.center)(y - y.center)^T`` (d, m), of ``y - y.center`` (m,) and of its square (m,). They
            are contiguous float64 tensors; the caller adds to them in place.

        Raises:
            ValueError: the channels differ from earlier batches.
        """
        d = x.shape[1]
        self._check_channels(d, m)
        if not self._known:
            self.x.update(x)
        if self.cross is None:
            self.cross = torch.zeros(d, m, dtype=torch.float64, device=x.device)
            zeros = self.cross.new_zeros(m)
            self.y.add(zeros, zeros, 0, center)
            self.y.dtype = torch.promote_types(x.dtype, torch.float32)
        self.y.count += x.numel() // max(d, 1)
        assert self.y.total is not None and self.y.square is not None
        return self.cross, self.y.total, self.y.square

    def merge(self, other: CrossCovariance) -> CrossCovariance:
        """Add the samples of another accumulator with the same channels, and return self.

        Raises:
            ValueError: the channels differ.
        """
        if other.cross is not None:
            self.add(other.cross, other.x, other.y)
        return self

    def compute(self, *, reduction: str = "mean") -> Tensor:
        """The uncentred cross-covariance ``E[x y^T]``, (d, m) float64.

        Args:
            reduction: "mean" (default), or "sum" for the sum over samples.

        Raises:
            ValueError: there are no samples yet, the reduction is unknown, or a value was not finite. The message names
                the layer and the side.
        """
        one_of("reduction", reduction, REDUCTIONS)
        mean = self.covariance().addr_(self.x.mean, self.y.mean)
        return mean if reduction == "mean" else mean.mul_(self.count)

    def covariance(self) -> Tensor:
        """``E[(x - E[x])(y - E[y])^T]``, (d, m) float64. It is not computed as a difference of two large numbers.

        Raises:
            ValueError: as `compute`.
        """
        return (self._checked_cross() / self.count).addr_(self.x.off, self.y.off, alpha=-1)

    def consume(self, about: Tensor | None = None) -> Tensor:
        """``E[x (y - about)^T]``, (d, m) float64, in the memory of the sums, without a copy.

        Afterwards only counts, means and variances are left.

        Args:
            about: (m,). None (default) stands for 0 and gives `compute`; E[y] gives `covariance`.

        Raises:
            ValueError: as `compute`.
        """
        M, self.cross = self._checked_cross().div_(self.count), None
        M.addr_(self.x.off, self.y.off, alpha=-1)
        return M.addr_(self.x.mean, self.y.mean if about is None else self.y.mean - about)

    def _checked_cross(self) -> Tensor:
        if self.cross is None:
            why = "its sums have been consumed, wanted reset() first" if self.count else _NO_SAMPLES
            raise ValueError(f"{self._label}: {why}")
        for side, moments in (("x", self.x), ("y", self.y)):
            if (channel := moments.not_finite()) is not None:
                raise ValueError(f"{self._label}: {side} is not finite, first in channel {channel}")
        if not all(torch.isfinite(end) for end in torch.aminmax(self.cross)):  # no temporary as large as M
            raise ValueError(f"{self._label}: the products x y^T overflow")
        return self.cross

    @property
    def mean_x(self) -> Tensor:
        """E[x], (d,) float64."""
        return self._seen(self.x).mean

    @property
    def mean_y(self) -> Tensor:
        """E[y], (m,) float64."""
        return self._seen(self.y).mean

    @property
    def trace_x(self) -> float:
        """E|x|^2."""
        return self._seen(self.x).power

    @property
    def trace_y(self) -> float:
        """E|y|^2."""
        return self._seen(self.y).power

    def state_dict(self) -> dict[str, Tensor]:
        """All sums and their centers; an empty dict before the first batch.

        The keys are cross (d, m); total_x, square_x and center_x (d,); total_y, square_y and center_y (m,); count ().
        """
        if self.cross is None:
            return {}
        sides = (self.x.total, self.x.square, self.y.total, self.y.square)
        values = (self.cross, *sides, torch.tensor(self.count, device="cpu"), self.x.center, self.y.center)
        return {key: value.clone() for key, value in zip(KEYS + CENTERS, values, strict=True) if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state_dict`. Sums without centers, as in earlier versions, are taken as sums about 0.

        Raises:
            ValueError: keys are missing or unknown, or shapes do not match.
        """
        if state and set(state) not in (set(KEYS), set(KEYS + CENTERS)):
            raise ValueError(f"state has the keys {sorted(state)}: wanted {sorted(KEYS + CENTERS)}, or none")
        if state:
            d, m = state["cross"].shape
            shapes = {"total_x": (d,), "square_x": (d,), "total_y": (m,), "square_y": (m,), "count": ()}
            shapes |= {"center_x": (d,), "center_y": (m,)} if len(state) > len(KEYS) else {}
            for key, shape in shapes.items():
                if tuple(state[key].shape) != shape:
                    raise ValueError(f"state: {key} has shape {tuple(state[key].shape)}, wanted {shape}")
        self.reset()
        if state:
            count = int(state["count"])
            self.cross = state["cross"].clone()
            for moments, side in ((self.x, "x"), (self.y, "y")):
                moments.add(state[f"total_{side}"], state[f"square_{side}"], count, state.get(f"center_{side}"))

    def _check_channels(self, d: int, m: int) -> None:
        if self.cross is None and self.count:
            raise ValueError(f"{self._label}: its sums have been consumed, wanted reset() first")
        if self.cross is not None and tuple(self.cross.shape) != (d, m):
            wanted = tuple(self.cross.shape)
            raise ValueError(f"{self._label}: x and y have {d} and {m} channels, wanted {wanted} as before")

    def _seen(self, moments: ChannelMoments) -> ChannelMoments:
        if moments.count == 0:
            raise ValueError(f"{self._label}: {_NO_SAMPLES}")
        return moments

    @property
    def _label(self) -> str:
        return "CrossCovariance" if self.name is None else f"layer {self.name!r}"


def _samples(x: Tensor) -> torch.Size:
    """N and the sizes of the space axes."""
    return x.shape[:1] + x.shape[2:]
