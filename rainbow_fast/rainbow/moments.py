# SPDX-License-Identifier: BSD-3-Clause
"""Moments of activations over any number of batches, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rainbow_fast.ops.cross_covariance import cross_covariance

BLOCK = 512  # samples
_NO_SAMPLES = "no samples yet, wanted at least one update"
KEYS = ("cross", "total_x", "square_x", "total_y", "square_y", "count")


class ChannelMoments:
    """Count, sum and sum of squares of every channel of x, (N, d) or (N, d, *space); positions are samples. float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None  # (d,)
        self.square: Tensor | None = None  # (d,)

    def update(self, x: Tensor) -> None:
        x = x.detach()
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        self.add(*_sums(x), x.numel() // max(x.shape[1], 1))

    def add(self, total: Tensor, square: Tensor, count: int) -> None:
        if self.total is None or self.square is None:
            self.total, self.square = torch.zeros_like(total), torch.zeros_like(square)
        self.total += total
        self.square += square
        self.count += count

    def not_finite(self) -> int | None:
        """The first channel that has held a value that is not finite, None if there is none."""
        assert self.square is not None
        bad = (~torch.isfinite(self.square)).nonzero()
        return int(bad[0]) if len(bad) else None

    @property
    def mean(self) -> Tensor:
        """E[x], (d,)."""
        assert self.total is not None
        return self.total / self.count

    @property
    def power(self) -> float:
        """E|x|^2, summed over channels."""
        assert self.square is not None
        return float(self.square.sum()) / self.count

    @property
    def spread(self) -> float:
        """E|x - E[x]|^2, summed over channels."""
        return max(self.power - float(self.mean.square().sum()), 0.0)

    def second_moment_about(self, center: Tensor, factor: Tensor) -> float:
        """E|factor (x - center)|^2, both (d,), summed over channels."""
        assert self.square is not None
        each = self.square / self.count - 2 * center * self.mean + center.square()
        return float((each * factor.square()).sum())

    def pooled(self, positions: int) -> ChannelMoments:
        """The same data with each run of `positions` channels taken as samples of one."""
        assert self.total is not None and self.square is not None
        made = ChannelMoments()
        total, square = (t.view(-1, positions).sum(1) for t in (self.total, self.square))
        made.add(total, square, self.count * positions)
        return made

    def variance(self, *, unbiased: bool = False) -> Tensor:
        """(d,); divided by count - 1 if unbiased."""
        assert self.square is not None
        variance = (self.square / self.count - self.mean.square()).clamp(min=0)
        return variance * (self.count / max(self.count - 1, 1)) if unbiased else variance


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of x and x^2 over samples and positions, (d,) float64; those of `BLOCK` samples, or positions, in the dtype of x,
    as the kernels do, where a copy in float64 would take longer than all else."""
    if x.dim() > 2:
        parts = [(p.sum(2), vector_norm(p, dim=2).double().square_()) for p in x.flatten(2).split(BLOCK, 2)]
    else:
        parts = [(p.sum(0, keepdim=True), (p * p).sum(0, keepdim=True)) for p in x.split(BLOCK)]
    total, square = (torch.cat(each).sum(0, dtype=torch.float64) for each in zip(*parts, strict=True))
    return total, square


class CrossCovariance:
    r"""Streaming cross-covariance ``M = E[x y^T]`` with the means and second moments of both sides.

    Uncentred; positions of a map are samples; every batch counts by its own number of samples. Sums are float64, as
    those of `rainbow_fast.cross_covariance`. Not a module: it has no parameters and no gradient.

    Equivalent to::

        x, y = torch.cat(xs).double(), torch.cat(ys).double()    # (N, d), (N, m)
        x.T @ y / len(x)

    Args:
        name: of the layer, for error messages.

    Attributes:
        count: samples seen.
        mean_x, mean_y: E[x] (d,) and E[y] (m,).
        trace_x, trace_y: E|x|^2 and E|y|^2, floats.

    Source: M of Guth, Menard, Rochette and Mallat (JMLR 2024), equations 5 to 7.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Forget everything but the name."""
        self.cross: Tensor | None = None
        self._known = False
        self.x = ChannelMoments()
        self.y = ChannelMoments()

    @property
    def count(self) -> int:
        return self.y.count

    def know(self, x: ChannelMoments) -> None:
        """The moments of all x that `begin` will be given, which then takes none; at the start."""
        self.x, self._known = x, True

    def update(self, x: Tensor, y: Tensor | None = None) -> CrossCovariance:
        """Add a batch: x (N, d) or (N, d, *space), y with the same N and positions; y=None stands for x. Returns self.

        Raises:
            ValueError, TypeError: as `rainbow_fast.cross_covariance`, or other channels than before.
        """
        self._check_channels(x.shape[1] if x.dim() > 1 else 0, (x if y is None else y).shape[1] if x.dim() > 1 else 0)
        cross = cross_covariance(x.detach(), None if y is None else y.detach())
        x_moments, y_moments = ChannelMoments(), ChannelMoments()
        x_moments.update(x)
        y_moments.update(x if y is None else y)
        self._add(cross, x_moments, y_moments)
        return self

    def add(self, cross: Tensor, x: ChannelMoments, y: ChannelMoments) -> None:
        """Add sums made elsewhere, as by `rainbow_fast.random_features_covariance`."""
        self._check_channels(*cross.shape)
        self._add(cross, x, y)

    def begin(self, x: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count a batch x, (N, d) or (N, d, *space), and its own moments where they are not known; the caller adds
        what depends on y.

        Returns:
            The sums of ``x y^T`` (d, m), y (m,) and y^2 (m,), contiguous float64, for the caller to add to in place.

        Raises:
            ValueError: other channels than before.
        """
        d = x.shape[1]
        self._check_channels(d, m)
        if self.cross is None:
            self.cross = torch.zeros(d, m, dtype=torch.float64, device=x.device)
        if not self._known:
            self.x.update(x)
        zeros = self.cross.new_zeros(m)
        self.y.add(zeros, zeros, x.numel() // max(d, 1))
        assert self.y.total is not None and self.y.square is not None
        return self.cross, self.y.total, self.y.square

    def merge(self, other: CrossCovariance) -> CrossCovariance:
        """Add what another accumulator has seen, of the same channels. Returns self.

        Raises:
            ValueError: other channels.
        """
        if other.cross is not None:
            self.add(other.cross, other.x, other.y)
        return self

    def compute(self) -> Tensor:
        """The mean ``E[x y^T]``, (d, m) float64.

        Raises:
            ValueError: no samples yet; or a value that is not finite has come in: the message names layer and side.
        """
        return self._checked_cross() / self.count

    def consume(self) -> Tensor:
        """`compute` in the memory of the sums, without a copy. Only counts, means and second moments are left.

        Raises:
            ValueError: as `compute`.
        """
        M, self.cross = self._checked_cross().div_(self.count), None
        return M

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
        return self._seen(self.x).mean

    @property
    def mean_y(self) -> Tensor:
        return self._seen(self.y).mean

    @property
    def trace_x(self) -> float:
        return self._seen(self.x).power

    @property
    def trace_y(self) -> float:
        return self._seen(self.y).power

    def state_dict(self) -> dict[str, Tensor]:
        """All sums: cross (d, m), total_x and square_x (d,), total_y and square_y (m,), count; nothing at the start."""
        if self.cross is None:
            return {}
        values = (self.cross, self.x.total, self.x.square, self.y.total, self.y.square, torch.tensor(self.count))
        return {key: value.clone() for key, value in zip(KEYS, values, strict=True) if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: keys or shapes that do not belong together.
        """
        if state and set(state) != set(KEYS):
            raise ValueError(f"state has the keys {sorted(state)}: wanted {sorted(KEYS)}, or none")
        if state:
            d, m = state["cross"].shape
            shapes = {"total_x": (d,), "square_x": (d,), "total_y": (m,), "square_y": (m,), "count": ()}
            for key, shape in shapes.items():
                if tuple(state[key].shape) != shape:
                    raise ValueError(f"state: {key} has shape {tuple(state[key].shape)}, wanted {shape}")
        self.reset()
        if state:
            count = int(state["count"])
            self.cross = state["cross"].clone()
            self.x.add(state["total_x"], state["square_x"], count)
            self.y.add(state["total_y"], state["square_y"], count)

    def _add(self, cross: Tensor, x: ChannelMoments, y: ChannelMoments) -> None:
        assert x.total is not None and x.square is not None and y.total is not None and y.square is not None
        self.cross = cross.clone() if self.cross is None else self.cross.add_(cross)
        self.x.add(x.total, x.square, x.count)
        self.y.add(y.total, y.square, y.count)

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
