# SPDX-License-Identifier: BSD-3-Clause
"""Cross-covariances of activations over any number of batches, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rainbow_fast.arguments import one_of
from rainbow_fast.ops.cross_covariance import DTYPES, REDUCTIONS, cross_covariance, cross_covariance_
from rainbow_fast.rainbow.channel_moments import ChannelMoments, piece_size
from rainbow_fast.rainbow.positions import per_channel

_NO_SAMPLES = "no samples yet, wanted at least one update"
KEYS = ("cross", "total_x", "square_x", "total_y", "square_y", "count")
CENTERS = ("center_x", "center_y")  # not in states of earlier versions, whose sums are about 0


class CrossCovariance:
    r"""Streaming cross-covariance of x and y, with the means and variances of both sides.

    Positions of a map are samples; every batch counts by its own number of samples. Sums are float64, as those of
    `rainbow_fast.cross_covariance`, and about the centers of both sides (see `ChannelMoments`), so that `covariance` of
    float32 data is right to 2e-6 of the standard deviations, whatever the means. Not a module: it has no parameters and
    no gradient.

    Equivalent to::

        x, y = torch.cat(xs).double(), torch.cat(ys).double()    # (N, d), (N, m)
        x.T @ y / len(x)                                         # compute()
        (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)             # covariance()

    Args:
        name: of the layer, for error messages.

    Attributes:
        count: samples seen.
        cross: sum (x - x.center)(y - y.center)^T, (d, m) float64; None at the start, and when it is consumed.
        x, y: `ChannelMoments` of both sides.
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
        other = x if y is None else y
        if x.dim() < 2 or x.dtype not in DTYPES or x.dtype != other.dtype or _samples(x) != _samples(other):
            cross_covariance(x, y)  # which says what is wrong
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
            of_x, of_y, near_a, near_b = ChannelMoments(), ChannelMoments(), piece - per_channel(a, x), None
            of_x.add_shifted(near_a, a)
            if y is not None:
                near_b = other_piece - per_channel(b, other)
                of_y.add_shifted(near_b, b)
            cross_covariance_(self.cross, near_a, near_b)
            self.x.merge(of_x)
            self.y.merge(of_x if y is None else of_y)
        return self

    def add(self, cross: Tensor, x: ChannelMoments, y: ChannelMoments) -> None:
        """Add sums made elsewhere, as by `rainbow_fast.random_features_covariance`; `cross` is about the centers of x
        and y."""
        assert x.center is not None and x.total is not None and y.center is not None and y.total is not None
        self._check_channels(*cross.shape)
        self.x.merge(x)
        self.y.merge(y)
        assert self.x.center is not None and self.y.center is not None
        self.cross = cross.clone() if self.cross is None else self.cross.add_(cross)
        shift_x, shift_y = x.center - self.x.center, y.center - self.y.center
        self.cross.addr_(shift_x, y.total + y.count * shift_y).addr_(x.total, shift_y)

    def begin(self, x: Tensor, m: int, center: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Count a batch x, (N, d) or (N, d, *space), and its own moments where they are not known; the caller adds
        what depends on y.

        Args:
            m: channels of y.
            center: that of y, (m,), which the first batch decides; None for 0. It may still be changed, in place,
                before the caller adds the first sums.

        Returns:
            The sums of ``(x - x.center)(y - y.center)^T`` (d, m), ``y - y.center`` (m,) and its square (m,), contiguous
            float64, for the caller to add to in place.

        Raises:
            ValueError: other channels than before.
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
        """Add what another accumulator has seen, of the same channels. Returns self.

        Raises:
            ValueError: other channels.
        """
        if other.cross is not None:
            self.add(other.cross, other.x, other.y)
        return self

    def compute(self, *, reduction: str = "mean") -> Tensor:
        """The uncentred cross-covariance ``E[x y^T]``, (d, m) float64; or, with ``reduction="sum"``, the sum.

        Raises:
            ValueError: no samples yet; another reduction; or a value that is not finite has come in: the message names
                layer and side.
        """
        one_of("reduction", reduction, REDUCTIONS)
        mean = self.covariance().addr_(self.x.mean, self.y.mean)
        return mean if reduction == "mean" else mean.mul_(self.count)

    def covariance(self) -> Tensor:
        """``E[(x - E[x])(y - E[y])^T]``, (d, m) float64, which is not made of two large numbers.

        Raises:
            ValueError: as `compute`.
        """
        return (self._checked_cross() / self.count).addr_(self.x.off, self.y.off, alpha=-1)

    def consume(self, about: Tensor | None = None) -> Tensor:
        """``E[x (y - about)^T]`` in the memory of the sums, without a copy; None for 0, so that it is `compute`, and
        E[y] for `covariance`. Only counts, means and variances are left.

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
        """All sums: cross (d, m), total_x and square_x (d,), total_y and square_y (m,), count, and what they are about,
        center_x (d,) and center_y (m,); nothing at the start."""
        if self.cross is None:
            return {}
        sides = (self.x.total, self.x.square, self.y.total, self.y.square)
        values = (self.cross, *sides, torch.tensor(self.count, device="cpu"), self.x.center, self.y.center)
        return {key: value.clone() for key, value in zip(KEYS + CENTERS, values, strict=True) if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; sums without centers, as earlier versions gave them, are about 0.

        Raises:
            ValueError: keys or shapes that do not belong together.
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
    """N and the positions."""
    return x.shape[:1] + x.shape[2:]
