# SPDX-License-Identifier: BSD-3-Clause
"""The sampled site, in reference coordinates: phih = scale A phi' + offset, phi' = sigma(G_eff zh)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rainbow_fast.ops.center import first_center, spread_samples
from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.gaussian import check_key, further, gaussian
from rainbow_fast.ops.random_features import (
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.rainbow.channel_moments import shaped, sums
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.tracing.sites import Site

# Neurons at a time, whatever the batch: where features must be stored (pooling), and where rows of G_eff must be.
FEATURE_BLOCK = 128
ROW_BLOCK = 4096
HALVES = (torch.bfloat16, torch.float16)
IMPLICIT_BLOCK = 2**16  # where they need not: their sums are float64 numbers, d times as many
EXACT = ("U", "T", "gain", "bias", "scale", "offset")  # small, and what is lost in them is lost in all features
HOMOGENEOUS = ("identity", "relu", "abs", "leaky_relu")  # sigma(c s) = c sigma(s) for c > 0

Select = Callable[[Tensor], Tensor]


class Law(NamedTuple):
    """The law of the rows of G_eff, drawn: ``z' = zbar + R U^T (zh - zbar) / sqrt(d)``, zbar = 0 without the mean row.

    ``R`` is G itself; or ``T G``; or ``sqrt((1 - h^2) d) U[k] + h G``. None stands for the identity, or for absent.
    """

    n: int
    d: int
    mean_row: bool
    key: Tensor  # (4,) int64, on the CPU: the address of G
    U: Tensor | None = None  # (d, r) float64
    T: Tensor | None = None  # (n, n) float64
    k: Tensor | None = None  # (n,) int64
    h: float = 0.0


class RainbowActivation(nn.Module):
    r"""A site of a sampled network: takes zh, gives phih, both in reference coordinates.

        zh   <- gain zh + bias                       per channel, where the method recalibrates
        u     = U^T (zh - zbar) / sqrt(d),           zbar the mean over channels, 0 unless the mean row is kept
        phi'  = after(sigma(before(R u + zbar)))     n neurons at each position, made again at every call
        phih  = scale A phi' + offset

    Where there is no pooling, and the kernels know sigma, all of it is one fused pass over ``R u``
    (`rainbow_fast.random_features_projection`), and nothing of width n is stored but A. Else neurons come in blocks of
    128. zh of half precision is computed on in float32, and so it is under autocast; phih has the dtype of zh.

    Buffers (None where there is none): ``U`` (d, r) float64; ``T`` (n, n) and ``k`` (n,), see `Law`; ``gain``,
    ``bias`` (d,); ``A`` (d, n), or (features, n positions) if `flattened`; ``scale`` (), float64; ``offset`` (d,).
    ``half()`` and ``bfloat16()`` round A alone, the others keep their dtypes.

    ``key`` (4,) int64, the address of G, is in the state dict, but is no buffer: it stays on the CPU, where kernels are
    launched, so that a forward pass on a GPU does not wait for it. A CUDA graph keeps the address it was captured with.
    A function compiled by `torch.compile` is not compiled again for another key.

    Args:
        site: what is replaced.
        law: the drawn law of the rows.
        flattened: A takes all n positions features, and phih is (N, features): a Flatten follows.
        recalibration: (gain, bias), each (d,).
        device: where its buffers lie.
    """

    key: Tensor
    U: Tensor | None
    T: Tensor | None
    k: Tensor | None
    gain: Tensor | None
    bias: Tensor | None
    A: Tensor | None
    scale: Tensor
    offset: Tensor | None

    def __init__(
        self,
        site: Site,
        law: Law,
        *,
        flattened: bool = False,
        recalibration: tuple[Tensor, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.negative_slope, self.sigma = site.activation, site.negative_slope, site.sigma
        self.before, self.after = site.before, site.after
        self.n, self.d, self.mean_row, self.h = law.n, law.d, law.mean_row, law.h
        self.axis, self.flattened = site.axis, flattened
        gain, bias = recalibration or (None, None)
        check_key(law.key)
        self.key = law.key
        drawn = {"U": law.U, "T": law.T, "k": law.k}
        drawn["scale"] = torch.ones((), dtype=torch.float64, device=device)
        for name, value in (drawn | {"gain": gain, "bias": bias, "A": None, "offset": None}).items():
            self.register_buffer(name, value)

    def forward(self, z: Tensor) -> Tensor:
        """z (N, d) or (N, d, *space), or (..., d) after a linear layer; phih of the same shape but for pooling."""
        with without_autocast():
            return self.finish(self.raw(z)).to(z.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RainbowActivation:
        """What moves and converts a module: of what is to stay exact, it moves only."""
        before = {name: t for name in EXACT if (t := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        for name, t in before.items():
            if getattr(self, name).dtype != t.dtype:
                setattr(self, name, t.to(getattr(self, name).device))
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "key"] = self.key

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list, unexpected: list, errors: list
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        name = prefix + "key"
        if name not in state_dict:
            missing.append(name)
            return
        if name in unexpected:
            unexpected.remove(name)
        try:
            check_key(state_dict[name].cpu())
        except ValueError as error:
            errors.append(f"{name}: {error}")
            return
        self.key = state_dict[name].detach().cpu().clone()

    def raw(self, z: Tensor) -> Tensor:
        """A phi', without scale and offset, for z as in `forward`; in the dtype of A."""
        assert self.A is not None
        u, shift = self._project(channels_first(z, self.axis, self.flattened))
        positions = self.A.shape[1] // self.n
        total: Tensor | None = None
        for start, stop in self.blocks():
            A = self.A.narrow(1, start * positions, (stop - start) * positions).to(u.dtype)
            if self.fused:
                y = random_features_projection(u, A, shift=shift, **self._sigma(), **self._rows(u, start, stop))
            elif self.flattened:
                y = self._features(u, shift, start, stop).flatten(1) @ A.T
            else:
                y = torch.einsum("nm...,dm->nd...", self._features(u, shift, start, stop), A).contiguous()
            total = y if total is None else total + y
        assert total is not None
        return total if total.dim() == z.dim() or self.flattened else total.view(*z.shape[:-1], -1)

    def finish(self, y: Tensor) -> Tensor:
        """``scale y + offset``, in place."""
        y = y.mul_(self.scale)
        rows = channels_first(y, None if self.flattened else self.axis)
        return y if self.offset is None else rows.add_(_per_channel(self.offset, rows)).view(y.shape)

    def covariance(self, moments: CrossCovariance, features: int, x: Tensor, z: Tensor, select: Select) -> None:
        """Add a batch, the samples of it that `select` takes, to the moments of x and the features phi'."""
        u, shift = self._project(z)
        x = select(x).to(u.dtype)
        if self.fused:
            u, shift = select(u), None if shift is None else select(shift.unsqueeze(1)).squeeze(1)
        positions = features // self.n
        first = moments.cross is None
        cross, total, square = moments.begin(x, features)
        center, x_center = moments.y.center, moments.x.center
        assert center is not None and x_center is not None
        if not self.fused:
            x = x - shaped(x_center, x)
        for start, stop in self.blocks():
            at = slice(start * positions, stop * positions)
            if self.fused:
                if first:
                    center[at] = self._center(u, shift, start, stop)
                given = dict(shift=shift, **self._sigma(), **self._rows(u, start, stop))
                given |= dict(x_center=x_center.to(u.dtype), center=center[at].to(u.dtype))
                found = random_features_covariance(x, u, stop - start, **given)
            else:
                phi = select(self._features(u, shift, start, stop))
                if first:
                    center[at] = first_center(phi)
                phi = phi - shaped(center[at], phi)
                found = (cross_covariance(x, phi), *sums(phi))
            for out, part in zip((cross[:, at], total[at], square[at]), found, strict=True):
                out += part

    def _center(self, u: Tensor, shift: Tensor | None, start: int, stop: int) -> Tensor:
        """`first_center` of features, of which no others are made, some neurons at a time."""
        u, shift = spread_samples(u), None if shift is None else spread_samples(shift.unsqueeze(1)).squeeze(1)
        starts = range(start, stop, ROW_BLOCK)
        return torch.cat([first_center(self._features(u, shift, at, min(at + ROW_BLOCK, stop))) for at in starts])

    def add_product(self, out: Tensor, V: Tensor, c: Tensor, z: Tensor, select: Select, center: Tensor) -> None:
        """Add the sum of ``(V phi' - c)(phi' - center)^T`` (k, features) over the samples that `select` takes to `out`,
        float64.

        V (k, m) has zeros for the features after the first m.
        """
        u, shift = self._project(z)
        if self.fused:
            u, shift = select(u), None if shift is None else select(shift.unsqueeze(1)).squeeze(1)
        positions = out.shape[1] // self.n

        def features(start: int, stop: int) -> Tensor:
            return select(self._features(u, shift, start, stop))

        y: Tensor | None = None
        neurons = -(-V.shape[1] // positions)
        V = nn.functional.pad(V, (0, neurons * positions - V.shape[1]))
        for start, stop in self.blocks(neurons):
            of_block = V[:, start * positions : stop * positions]
            if self.fused:
                given = dict(shift=shift, **self._sigma(), **self._rows(u, start, stop))
                part = random_features_projection(u, of_block, **given)
            else:
                part = torch.einsum("nm...,km->nk...", features(start, stop), of_block)
            y = part if y is None else y.add_(part)
        assert y is not None
        y -= _per_channel(c, y)
        for start, stop in self.blocks():
            at = slice(start * positions, stop * positions)
            if self.fused:
                given = dict(shift=shift, **self._sigma(), **self._rows(u, start, stop))
                given |= dict(center=center[at].to(u.dtype))
                out[:, at] += random_features_covariance(y, u, stop - start, **given)[0]
            else:
                phi = features(start, stop)
                out[:, at] += cross_covariance(y, phi - shaped(center[at], phi))

    def rows(self, z: Tensor, select: Select, start: int, stop: int) -> Tensor:
        """Neurons start to stop of phi' as (samples, features), of the samples that `select` takes."""
        u, shift = self._project(z)
        if self.fused:
            u, shift = select(u), None if shift is None else select(shift.unsqueeze(1)).squeeze(1)
            phi = self._features(u, shift, start, stop)
        else:
            phi = select(self._features(u, shift, start, stop))
        return phi.movedim(1, -1).reshape(-1, phi.shape[1])

    def features(self, z: Tensor) -> Tensor:
        """phi', (N, n, *space): all of it, in the dtype of z; z as in `forward`, (N, d, *space) if flattened."""
        u, shift = self._project(channels_first(z, None if self.flattened else self.axis))
        return torch.cat([self._features(u, shift, start, stop) for start, stop in self.blocks()], 1)

    def activity(self, z: Tensor) -> float:
        """The share of (sample, neuron) pairs with z' > 0, before any pooling."""
        u, shift = self._project(z)
        ones = u.new_ones(u.shape[0], 1, *u.shape[2:])
        active = 0.0
        for start, stop in self.blocks():
            given = dict(shift=shift, activation="step", **self._rows(u, start, stop))
            active += float(random_features_covariance(ones, u, stop - start, **given)[0].sum())
        return active / (ones.numel() * self.n)

    def project(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """u (N, r, *space), and the shift zbar (N, *space)."""
        u, shift = self._project(z)
        return u if self._factor == 1 else u * self._factor, shift

    def _project(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same, but u without its 1 / sqrt(d) where that is a factor of the features."""
        z = z.float() if z.dtype in HALVES else z
        if self.gain is not None and self.bias is not None:
            z = z * _per_channel(self.gain, z) + _per_channel(self.bias, z)
        shift = z.mean(1) if self.mean_row else None
        if shift is not None:
            z = z - shift.unsqueeze(1)
        if self.U is None:
            return z if self._factor != 1 else z * (1 / math.sqrt(self.d)), shift
        return torch.einsum("nd...,dr->nr...", z, (self.U / math.sqrt(self.d)).to(z.dtype)), shift

    def effective_rows(self) -> Tensor:
        """G_eff, (n, d) float64, without the recalibration."""
        r = self.d if self.U is None else self.U.shape[1]
        device = self.scale.device
        given = self._rows(torch.empty(0, r, dtype=torch.float64, device=device), 0, self.n)
        R = given.get("G")
        if R is None:
            R = gaussian(self.n, r, seed=self.key, dtype=torch.float64, device=device)
        rows = (R if self.U is None else R @ self.U.double().T) / math.sqrt(self.d)
        return rows - rows.mean(1, keepdim=True) + 1 / self.d if self.mean_row else rows

    @property
    def fused(self) -> bool:
        return self.activation is not None and self.before is None and self.after is None and not self.flattened

    def blocks(self, neurons: int | None = None) -> Iterator[tuple[int, int]]:
        """First and last-but-one neuron of each block of all, or of the first so many; their size depends on the kind
        of the site alone."""
        implicit = self.T is None and self.k is None
        size = FEATURE_BLOCK if not self.fused else IMPLICIT_BLOCK if implicit else ROW_BLOCK
        neurons = self.n if neurons is None else neurons
        for start in range(0, neurons, size):
            yield start, min(start + size, neurons)

    @property
    def _factor(self) -> float:
        """What features are multiplied by in the place of u, which then takes no pass over z."""
        through = homogeneous(self.activation, self.before) and self.U is None and not self.mean_row
        return 1 / math.sqrt(self.d) if through else 1.0

    def _sigma(self) -> dict:
        return {"activation": self.activation, "negative_slope": self.negative_slope, "scale": self._factor}

    def _rows(self, u: Tensor, start: int, stop: int) -> dict:
        """Rows start..stop of R: the address of G where R = G, else the rows themselves, made for this call."""
        key, r, device = self.key, u.shape[1], u.device
        if self.T is not None:
            return {
                "G": self.T.narrow(0, start, stop - start).to(u.dtype)
                @ gaussian(self.n, r, seed=key, dtype=u.dtype, device=device)
            }
        here = key if start == 0 else further(key, start)
        if self.k is None:
            return {"seed": here}
        k = self.k.narrow(0, start, stop - start)
        chosen = nn.functional.one_hot(k, r) if self.U is None else self.U.index_select(0, k)
        R = math.sqrt((1 - self.h**2) * self.d) * chosen.to(u.dtype)
        if self.h:
            R = R + self.h * gaussian(stop - start, r, seed=here, dtype=u.dtype, device=device)
        return {"G": R}

    def _features(self, u: Tensor, shift: Tensor | None, start: int, stop: int) -> Tensor:
        given = dict(shift=shift, **self._rows(u, start, stop))
        if self.before is None and self.activation is not None:
            phi = random_features(u, stop - start, **self._sigma(), **given)
        else:
            s = random_features(u, stop - start, activation="identity", scale=self._factor, **given)
            phi = self.sigma(s if self.before is None else self.before(s))
        return phi if self.after is None else self.after(phi)

    def extra_repr(self) -> str:
        parts = [self.activation or type(self.sigma).__name__, f"d={self.d}", f"n={self.n}"]
        parts += [f"r={self.U.shape[1]}"] if self.U is not None else []
        return ", ".join(parts + [word for word in ("mean_row", "flattened") if getattr(self, word)])


def homogeneous(activation: str | None, before: nn.Module | None) -> bool:
    """Whether what the kernels apply is: sigma itself, or nothing where features are stored for it."""
    return activation is None or before is not None or activation in HOMOGENEOUS


def channels_first(z: Tensor, axis: int | None, flattened: bool = False) -> Tensor:
    """z as (N, d, *space); as (samples, d) where its channel axis is the last and no Flatten takes its positions."""
    if axis != -1 or z.dim() == 2:
        return z
    return z.movedim(-1, 1) if flattened else z.flatten(0, -2)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2)).to(like.dtype)
