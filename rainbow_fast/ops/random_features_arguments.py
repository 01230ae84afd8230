# SPDX-License-Identifier: BSD-3-Clause
"""Checks the arguments of random_features and its fused ops, and describes them for the kernels."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import number, optional_tensor, tensor
from rainbow_fast.ops import memory
from rainbow_fast.ops.activations import ACTIVATIONS, CODE, MODULUS
from rainbow_fast.ops.gaussian import addresses, check_key
from rainbow_fast.ops.precision import CODE as PRECISION_CODE
from rainbow_fast.ops.precision import check_precision, precision_of

DTYPES = (torch.float32, torch.float64)
NAMES = (*ACTIVATIONS, MODULUS)


def checked(u, G, shift, activation, slope, scale, precision, **optional) -> tuple[Tensor, Tensor | None]:
    """Check that tensors are tensors and numbers are numbers. Returns u and the shift, as pairs for the modulus.

    Raises:
        TypeError: they are not, or u or the shift is not complex for the modulus.
        ValueError: the precision is unknown.
    """
    check_precision(precision)
    tensor("u", u)
    for name, value in {"G": G, "shift": shift, **optional}.items():
        optional_tensor(name, value)
    number("negative_slope", slope)
    number("scale", scale)
    if activation != MODULUS:
        return u, shift
    for name, t in (("u", u), ("shift", shift)):
        if t is not None and not t.is_complex():
            raise TypeError(f"{name} is {t.dtype}: wanted complex numbers for activation='modulus'")
    if shift is not None and shift.dtype != u.dtype:
        raise TypeError(f"shift is {shift.dtype}: wanted the dtype of u, {u.dtype}")
    real = torch.view_as_real(u.resolve_conj())
    return real, None if shift is None else torch.view_as_real(shift.resolve_conj())


def check_features(
    u: Tensor, n: int, G: Tensor | None, shift: Tensor | None, activation: str, key: Tensor | None
) -> None:
    """Check that shapes, dtypes and devices match; the kernels rely on it."""
    _check_u(u, activation)
    if n < 0:
        raise ValueError(f"n={n}: wanted n >= 0")
    if key is not None:
        check_key(key)
    if shift is not None:
        _check_shift(shift, u, activation)
    if activation not in NAMES:
        raise ValueError(f"activation={activation!r}: wanted one of {', '.join(NAMES)}")
    if (G is None) == (key is None):
        raise ValueError(f"seed and G are {'both missing' if G is None else 'both given'}: wanted one of the two")
    if G is not None and tuple(G.shape) != (n, u.shape[1]):
        raise ValueError(f"G has shape {tuple(G.shape)}: wanted (n, r) = {(n, u.shape[1])}")
    if G is not None and G.dtype != u.dtype:
        raise TypeError(f"G is {G.dtype}: wanted the dtype of phi', {u.dtype}")
    memory.check_device("u", u, shift=shift, G=G)


def _check_u(u: Tensor, activation: str) -> None:
    if not u.is_floating_point():
        wanted = ", ".join(map(str, DTYPES))
        raise TypeError(f"u is {u.dtype}: wanted one of {wanted}, or complex numbers for activation='modulus'")
    if activation == MODULUS and u.shape[-1:] != (2,):
        raise ValueError(f"u has shape {tuple(u.shape)}: wanted pairs, (N, r, *space, 2)")
    if u.dim() < 2 + (activation == MODULUS):
        raise ValueError(f"u has shape {_shape(u, activation)}: wanted (N, r) or (N, r, *space)")


def _shape(t: Tensor, activation: str) -> tuple[int, ...]:
    """The shape of u or of a shift; that of pairs without their axis, as callers know it."""
    return tuple(t.shape[:-1] if activation == MODULUS else t.shape)


def _check_shift(shift: Tensor, u: Tensor, activation: str) -> None:
    if shift.shape != u.shape[:1] + u.shape[2:]:
        of_u = _shape(u, activation)
        raise ValueError(
            f"shift has shape {_shape(shift, activation)}: wanted {of_u[:1] + of_u[2:]}, u without its channels"
        )
    if shift.dtype != u.dtype:
        raise TypeError(f"shift is {shift.dtype}: wanted the dtype of u, {u.dtype}")


def space_of(u: Tensor, activation: str) -> torch.Size:
    """The axes of positions of u."""
    return u.shape[2:-1] if activation == MODULUS else u.shape[2:]


def check_samples(x: Tensor, u: Tensor, activation: str) -> None:
    if x.dim() < 2 or x.shape[:1] + x.shape[2:] != u.shape[:1] + space_of(u, activation):
        raise ValueError(
            f"x has shape {tuple(x.shape)}: wanted the N and the positions of u, of shape {_shape(u, activation)}"
        )
    if x.dtype != u.dtype:
        raise TypeError(f"x is {x.dtype}: wanted the dtype of phi', {u.dtype}")
    memory.check_device("u", u, x=x)


def centers(x: Tensor, u: Tensor, n: int, key: Tensor | None, x_center: Tensor | None, center: Tensor | None) -> None:
    several = () if key is None else tuple(key.shape[:-1])
    letters = "(S, n)" if several else "(n,)"
    for name, t, what, shape in (
        ("x_center", x_center, "(d,)", (x.shape[1],)),
        ("center", center, letters, (*several, n)),
    ):
        if t is not None and t.shape != shape:
            raise ValueError(f"{name} has shape {tuple(t.shape)}: wanted {what} = {shape}")
        if t is not None and t.dtype != u.dtype:
            raise TypeError(f"{name} is {t.dtype}: wanted the dtype of phi', {u.dtype}")
    memory.check_device("u", u, x_center=x_center, center=center)


def projections(parts: list[Tensor], u: Tensor, key: Tensor | None) -> int:
    """Check the projections (d, n), or (S, d, n) for a key of S seeds; returns the largest n."""
    if not parts:
        raise ValueError("A is an empty list: wanted at least one (d, n)")
    several = () if key is None else key.shape[:-1]
    for A in parts:
        if A.dim() != 2 and (A.dim() != 3 or A.shape[:1] != several):
            raise ValueError(
                f"A has shape {tuple(A.shape)}: wanted (d, n)" + f" or {(*several, 'd', 'n')}" * len(several)
            )
        if A.dtype != u.dtype:
            raise TypeError(f"A is {A.dtype}: wanted the dtype of phi', {u.dtype}")
        memory.check_device("u", u, A=A)
    return max(A.shape[-1] for A in parts)


class Features(NamedTuple):
    """The arguments that determine the features; all registered ops share them."""

    u: Tensor
    shift: Tensor | None
    key: Tensor | None
    G: Tensor | None
    activation: str
    slope: float
    scale: float
    precision: str | None

    def check(self, n: int) -> None:
        check_precision(self.precision)
        check_features(self.u, n, self.G, self.shift, self.activation, self.key)

    @property
    def paired(self) -> bool:
        """Whether the features are moduli of pairs, so that u (N, r, *space, 2) and shift (N, *space, 2) are pairs."""
        return self.activation == MODULUS

    @property
    def space(self) -> torch.Size:
        """The axes of positions of u."""
        return space_of(self.u, self.activation)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The leading axes of the results: (S,) for S seeds, else ()."""
        return () if self.key is None else tuple(self.key.shape[:-1])

    def each(self, n: int, *tensors: Tensor) -> Iterable[tuple]:
        """For each seed, the address of its G and its slices of the given tensors, which have the leading axes."""
        if self.key is None:
            return [((0, 0, 0, 0), *tensors)]
        return addresses(self.key, n, self.u.shape[1], *tensors)

    def result(self, channels: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Shape and strides of a result (N, channels, *space) for each seed, in the memory format of u.

        None stands for the strides of a contiguous tensor.
        """
        shape = (*self.seeds, self.u.shape[0], channels, *self.space)
        last = memory.channels_last(self.u[..., 0] if self.paired else self.u)
        return shape, memory.channels_last_strides(shape, len(self.seeds) + 1) if last else None

    def empty(self, channels: int) -> Tensor:
        """An uninitialised tensor of the form `result`."""
        shape, strides = self.result(channels)
        return _backend.empty(shape, self.u.dtype, self.u.device, strides)

    def fake(self, channels: int) -> Tensor:
        """The same for tracing and for the meta device."""
        shape, strides = self.result(channels)
        return self.u.new_empty(shape) if strides is None else self.u.new_empty_strided(shape, strides)

    def targets(self, out: Tensor) -> list[memory.Samples]:
        """For each seed, the description of the memory of `out` (N, channels, *space) that a kernel writes to."""
        targets = []
        for part in out if self.seeds else [out]:
            view, target = memory.samples(part, written=True)
            if view.data_ptr() != part.data_ptr():
                raise ValueError(
                    f"out has strides {out.stride()}: wanted at most two axes of space, or one stride that spans them"
                )
            targets.append(target)
        return targets

    def memory(self, n: int) -> tuple[object, Callable[[list[int]], tuple]]:
        """The tensors that must be kept alive, and a function from an address to what a kernel reads.

        The function returns struct Features of csrc/kernels.h.
        """
        r = self.u.shape[1]
        u, u_samples = (memory.pairs if self.paired else memory.samples)(self.u)
        shift = None if self.shift is None else self._parts_of_shift(self.shift)
        rows: memory.Samples = (0, 0, (n, r, 1, 1), (0, 0, 0, 0)) if self.G is None else memory.matrix(self.G)
        first = (u_samples, self.paired, memory.address_of(shift), rows)
        last = (
            CODE["identity" if self.paired else self.activation],
            self.slope,
            self.scale,
            PRECISION_CODE[precision_of(self.precision, self.u)],
        )
        return (u, shift), lambda where: (*first, where, *last)

    def _parts_of_shift(self, shift: Tensor) -> Tensor:
        """The shift in contiguous memory; that of pairs as all real parts, then all imaginary parts."""
        return (shift.movedim(-1, 0) if self.paired else shift).contiguous()

    def plain(self) -> tuple[Tensor, Callable[[list[int]], tuple]]:
        """The arguments of the Triton kernels: u, and a function from an address to the other arguments."""
        shift = None if self.shift is None else self._parts_of_shift(self.shift)
        last = (self.activation, self.slope, self.scale, precision_of(self.precision, self.u))
        u = torch.view_as_real(memory.pairs(self.u)[0]) if self.paired else memory.samples(self.u)[0]
        return u, lambda where: (shift, where if self.G is None else self.G, *last)

    def chosen(self, backend: str | None) -> str:
        return _backend.choose(backend, self.u.device, self.u.dtype, DTYPES, "random_features", called="u")


def check_upstream(
    f: Features, n: int, grad_phi: Tensor | None, total: Tensor | None, square: Tensor | None, x: list, A: list
) -> None:
    """Check that the terms of the gradient of the features have matching shapes; see random_features_gradient.py."""
    N, space = len(f.u), f.space
    wanted = [("grad_phi", grad_phi, (N, n, *space)), ("total", total, (n,)), ("square", square, (n,))]
    if len(x) != len(A):
        raise ValueError(f"A has {len(A)} tensors: wanted {len(x)}, one for each x")
    for x_k, A_k in zip(x, A, strict=True):
        if A_k.dim() < 2:
            raise ValueError(f"A has shape {tuple(A_k.shape)}: wanted (d, n)")
        d = A_k.shape[-2]
        wanted += [("x", x_k, (N, d, *space)), ("A", A_k, (d, min(n, A_k.shape[-1])))]
    for name, t, shape in wanted:
        memory.check_device("u", f.u, **{name: t})
        if t is not None and (t.shape not in (shape, (*f.seeds, *shape)) or t.dtype != f.u.dtype):
            raise ValueError(f"{name} is {t.dtype} of shape {tuple(t.shape)}: wanted {f.u.dtype} of shape {shape}")


# Checks of the ops that write into `out`. Their arguments are in the order of the schemas.


def written(f: Features, channels: int, out: Tensor, A: Sequence[Tensor] = ()) -> None:
    wanted = (*f.seeds, f.u.shape[0], channels, *f.space)
    memory.check_written("out", out, wanted, f.u.dtype, beside=("u", f.u), u=f.u, shift=f.shift, G=f.G, A=A)


def features_out(u, shift, key, G, activation, slope, scale, precision, backend, out):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    if out.dim() != len(f.seeds) + 2 + len(f.space):
        raise ValueError(f"out has shape {tuple(out.shape)}: wanted {(*f.seeds, *u.shape[:1], 'n', *f.space)}")
    n = out.shape[len(f.seeds) + 1]
    f.check(n)
    written(f, n, out)


def covariance_out(
    x, u, shift, x_center, center, key, G, activation, slope, scale, precision, backend, out, total, square
):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    n = out.shape[-1] if out.dim() else -1
    f.check(n)
    check_samples(x, u, activation)
    centers(x, u, n, key, x_center, center)
    sums = (("out", out, (x.shape[1], n)), ("total", total, (n,)), ("square", square, (n,)))
    for place, (name, t, shape) in enumerate(sums):
        read = {"x": x, "u": u, "shift": shift, "G": G, "x_center": x_center, "center": center}
        read |= {other: output for other, output, _ in sums[:place]}
        memory.check_written(name, t, (*f.seeds, *shape), torch.float64, beside=("u", u), **read)
        if not t.is_contiguous():
            raise ValueError(f"{name} has strides {t.stride()}: wanted a contiguous tensor")


def projection_out(u, A, shift, key, G, activation, slope, scale, precision, backend, out):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(projections(A, u, key))
    if len(out) != len(A):
        raise ValueError(f"out has {len(out)} tensors: wanted {len(A)}, one for each A")
    for place, (a, o) in enumerate(zip(A, out, strict=True)):
        written(f, a.shape[-2], o, [*A, *out[:place]])
