# SPDX-License-Identifier: BSD-3-Clause
"""The sampled site, in reference coordinates: phih = scale A phi' + offset, phi' = sigma(G_eff zh)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.maps import add_per_channel_, channels_first, per_channel, real_columns
from rainbow_fast.nn.keyed import Keyed
from rainbow_fast.ops.random_features import random_features
from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.laws.real_form import complex_of
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.each_feature import EACH
from rainbow_fast.rainbow.network.features import FUSED, STORED, FeatureStrategy, Select, blocks
from rainbow_fast.tracing.site import Site

HALVES = (torch.bfloat16, torch.float16)
EXACT = (
    "U",
    "T",
    "matrix",
    "gain",
    "bias",
    "scale",
    "offset",
    "root",
)  # small buffers that keep their dtype: an error in them would be an error in all features


class RainbowActivation(Keyed):
    r"""A sampled site of a network: maps zh to phih, both in the coordinates of the reference.

    Sampling makes it; `RainbowNetwork.site` returns it. Its constructor is not part of the public interface.

        zh   <- gain zh + bias                       per channel, if the method recalibrates
        u     = U^T (zh - zbar) / sqrt(d),           zbar = mean of zh over channels with keep_mean, else 0
        phi'  = the kind's features of R u + zbar    n neurons at each position, computed anew in every call
        phih  = scale A phi' + offset

    A pointwise site (`rainbow_fast.rainbow.kinds`) has ``phi' = after(sigma(before(.)))``. Without pooling, and if the
    kernels support sigma, everything is one fused pass over ``R u`` (`rainbow_fast.random_features_projection`), and A
    is the only tensor of width n that is stored. Otherwise neurons are computed in blocks of 128. zh of half precision
    is computed on in float32, also under autocast. phih has the dtype of zh.

    A site of wavelets has several features of each neuron, with one fused pass for each. phi has those of one channel
    beside each other; complex maps are pairs of real numbers on a last axis. A may be one matrix for each of the
    features, (features, d, n). With complex weights before the site, G_eff and A are complex. They are stored as real
    matrices (Re G_eff, Im G_eff) and (Re A; Im A), which act on (u, i u) and give pairs of maps: d is then twice the
    number of channels in U, and A has 2 d rows.

    Buffers, None if absent: ``U`` (d, r) float64, ``T`` (n, n), ``k`` (n,) and ``matrix`` (n, r), see `Rows`;
    ``gain``, ``bias`` (d,); ``A`` (d, n), or (features, n * positions) if `flattened`; ``scale`` () float64;
    ``offset`` (d,), or (d, 2) of complex maps; ``root``, see `Rows.root`. ``half()`` and ``bfloat16()`` round A only;
    the other buffers keep their dtypes.

    ``key`` (4,) int64 is the address of the random matrix G, see `rainbow_fast.nn.keyed.Keyed`.

    Args:
        site: the site that is replaced.
        rows: the drawn rows.
        flattened: A is applied to all n * positions features, and phih is (N, features). A Flatten follows the site.
        positions: features per neuron, used until A is set: those of the kind, times the positions if flattened.
        recalibration: (gain, bias), each (d,); None without recalibration.
        precision: of float32 products, as in `rainbow_fast.random_features`; "highest" by default.
        device: of the buffers.
    """

    U: Tensor | None
    T: Tensor | None
    k: Tensor | None
    matrix: Tensor | None
    gain: Tensor | None
    bias: Tensor | None
    A: Tensor | None
    scale: Tensor
    offset: Tensor | None
    root: Tensor | None

    def __init__(
        self,
        site: Site,
        rows: Rows,
        *,
        flattened: bool = False,
        positions: int = 1,
        recalibration: tuple[Tensor, Tensor] | None = None,
        precision: str = "highest",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(rows.key)
        self.kind = kind_of(site)
        self.exact: tuple[str, ...] = EXACT
        self.n, self.d, self.mean_row, self.h = rows.n, rows.d, rows.mean_row, rows.h
        self.precision = precision
        self.axis, self.flattened, self._positions = site.axis, flattened, positions
        gain, bias = recalibration or (None, None)
        drawn = {name: getattr(rows, name) for name in ("U", "T", "k", "matrix")}
        drawn["scale"] = torch.ones((), dtype=torch.float64, device=device)
        for name, value in (drawn | {"gain": gain, "bias": bias, "A": None, "offset": None}).items():
            self.register_buffer(name, value)
        root = self.drawn.root(self.scale.device) if self.kind.divides else None
        self.register_buffer("root", root, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Compute phih from z (N, d), (N, d, *space), or (..., d) after a linear layer.

        phih has the axes of z with the channels of phi; pooling changes the sizes of the space axes.
        """
        with without_autocast():
            y = self.strategy.project(self, channels_first(z, self.axis, self.flattened), self.whole)
            return self.finish(self.shaped_as(y, z)).to(z.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RainbowActivation:
        """Move or convert the module. The buffers in `exact` are moved, but keep their dtype."""
        before = {name: t for name in self.exact if (t := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        for name, t in before.items():
            if getattr(self, name).dtype != t.dtype:
                setattr(self, name, t.to(getattr(self, name).device))
        return self

    def aligned(self, z: Tensor) -> Tensor:
        """A phi' without scale and offset, in the dtype of A; z as in `forward`."""
        y = self.strategy.project(self, channels_first(z, self.axis, self.flattened), self.whole)
        return self.shaped_as(y, z)

    def shaped_as(self, y: Tensor, z: Tensor) -> Tensor:
        """The strategy's result y with the axes of z: channels are the last axis if they are in z."""
        return y if y.dim() == z.dim() or self.flattened else y.view(*z.shape[:-1], -1)

    def finish(self, y: Tensor) -> Tensor:
        """``scale y + offset``, in place."""
        y = y.mul_(self.scale)
        rows = channels_first(y, None if self.flattened else self.axis)
        return y if self.offset is None else add_per_channel_(rows, self.offset).view_as(y)

    def preactivations(self, z: Tensor) -> Tensor:
        """``R u + zbar`` of all n neurons, with the axes of z; z as in `forward`."""
        u, shift = self.mixed(channels_first(z, self.axis), prepared=False)
        rows = self.source(u, 0, self.n)
        rows |= {"activation": "identity", "scale": self._factor, "precision": self.precision}
        s = random_features(u, self.n, shift=shift, **rows)
        return self.shaped_as(s, z)

    def aligned_features(self, phi: Tensor) -> Tensor:
        """A phi' for features phi' (N, n, *space) or (..., n), with their axes."""
        assert self.A is not None
        rows = channels_first(phi, self.axis)
        y = random_features(rows, len(self.A), G=self.A, activation="identity", precision=self.precision)
        return self.shaped_as(y, phi)

    def features(self, z: Tensor) -> Tensor:
        """All features phi' (N, n, *space), in the dtype of z; z as in `forward`, (N, d, *space) if flattened."""
        z = channels_first(z, None if self.flattened else self.axis)
        parts: list[Tensor] = []
        for start, stop in blocks(self.n, self.strategy.block(self)):
            parts.append(self.strategy.rows(self, z, lambda t: t, start, stop))
        return torch.cat(parts, 1)

    def effective_rows(self) -> Tensor:
        """The random weights G_eff, (n, d) float64, without the recalibration. Complex ones are complex128."""
        if not self.kind.complex_weights:
            return self.drawn.effective(self.scale.device)
        rows = complex_of(self.drawn._replace(mean_row=False).effective(self.scale.device))
        return rows - rows.mean(1, keepdim=True) + 1 / rows.shape[1] if self.mean_row else rows

    def project(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """u (N, r, *space), and the shift zbar (N, *space)."""
        u, shift = self.mixed(z)
        return u if self._factor == 1 else u * self._factor, shift

    # Used by the strategies that compute features

    @property
    def strategy(self) -> FeatureStrategy:
        """How features are computed: fused, all at once or one of each neuron after the other, or stored in blocks."""
        if self.fused:
            return FUSED
        return EACH if self.kind.features > 1 and not self.flattened else STORED

    @property
    def fused(self) -> bool:
        """Whether the fused kernels compute the site: no feature is stored."""
        return self.kind.fused and not self.flattened

    @property
    def positions(self) -> int:
        """Number of features per neuron."""
        if self.A is None:
            return self._positions
        return self.A.shape[1] // self.n if self.A.dim() == 2 else len(self.A)

    @property
    def recalibration(self) -> tuple[Tensor, Tensor] | None:
        """(gain, bias), each (d,); None without recalibration."""
        return None if self.gain is None or self.bias is None else (self.gain, self.bias)

    @property
    def drawn(self) -> Rows:
        """The drawn rows, made from the buffers."""
        return Rows(self.n, self.d, self.key, self.U, self.T, self.k, self.h, self.matrix, self.mean_row)

    @property
    def kernel(self) -> dict[str, Any]:
        """Keyword arguments of the ops: sigma, its scale and the precision; the identity if torch applies sigma
        afterwards."""
        return self.kind.kernel() | {"scale": self._factor, "precision": self.precision}

    @property
    def whole(self) -> Select:
        """A `Select` that takes all samples, flattened if A expects flattened features."""
        return (lambda t: t.flatten(1)) if self.flattened else (lambda t: t)

    def mixed(self, z: Tensor, *, prepared: bool = True) -> tuple[Tensor, Tensor | None]:
        """u and the shift as the kernels take them, without the factor 1 / sqrt(d) of u if the kernels multiply their
        result by it instead. If they are not `prepared` by the kind, ``z' = R u + shift`` at each position of z."""
        u = z.float() if z.dtype in HALVES else z
        if self.gain is not None and self.bias is not None:
            u = u * per_channel(self.gain, u) + per_channel(self.bias, u)
        shift = u.mean(1) if self.mean_row else None
        if shift is not None:
            u = u - shift.unsqueeze(1)
        u = real_columns(u) if self.kind.complex_weights else u
        if self.U is not None:
            G = (self.U / math.sqrt(self.d)).to(u.dtype).T
            u = random_features(u, len(G), G=G, activation="identity", precision=self.precision)
        elif self._factor == 1:
            u = u * (1 / math.sqrt(self.d))
        return self.kind.prepare(u, shift, self.root) if prepared else (u, shift)

    def source(self, u: Tensor, start: int, stop: int) -> dict[str, Any]:
        """Rows start..stop of R as a keyword argument of the ops: ``G``, or ``seed`` if only their address is known."""
        rows = self.drawn.rows(start, stop, u.dtype, u.device)
        return {"G": rows} if rows.is_floating_point() else {"seed": rows}

    def pooled(self, s: Tensor) -> Tensor:
        """phi' from the result of the kernels."""
        return self.kind.finish(s)

    @property
    def _factor(self) -> float:
        """The factor that the kernels multiply their result by, instead of u. It saves a pass over z."""
        through = self.kind.homogeneous and self.U is None and not self.mean_row
        return 1 / math.sqrt(self.d) if through else 1.0

    def extra_repr(self) -> str:
        parts = [self.kind.extra_repr(), f"d={self.d}", f"n={self.n}"]
        parts += [f"r={self.U.shape[1]}"] if self.U is not None else []
        return ", ".join(parts + [word for word in ("mean_row", "flattened") if getattr(self, word)])
