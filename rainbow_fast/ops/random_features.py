# SPDX-License-Identifier: BSD-3-Clause
"""random_features: phi' = scale sigma(u G^T + shift), and its two fused passes; G is never stored."""

from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops import random_features_gradient as gradient
from rainbow_fast.ops.activations import ACTIVATIONS, CODE
from rainbow_fast.ops.cross_covariance import cross_covariance_reference
from rainbow_fast.ops.gaussian import address, as_key, gaussian_reference
from rainbow_fast.ops.memory import Samples, address_of, flat, matrix, samples

DTYPES = (torch.float32, torch.float64)


def random_features(
    u: Tensor,  # (N, r) or (N, r, *space)
    n: int,
    *,
    G: Tensor | None = None,  # (n, r)
    shift: Tensor | None = None,  # (N,) or (N, *space)
    activation: str = "relu",
    negative_slope: float = 0.01,
    seed: int | Tensor | None = None,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:  # (N, n) or (N, n, *space)
    r"""Random features ``phi' = scale sigma(u G^T + shift)``.

    Equivalent to::

        G = rainbow_fast.gaussian(n, r, seed=seed, stream=stream, row_offset=row_offset)
        scale * sigma(torch.einsum("nr...,mr->nm...", u, G.to(u.dtype)) + shift.unsqueeze(1))

    Rows of G are neurons: features nest in n, bit for bit. Differentiable in u, shift and G; the backward pass
    generates G again, a block of neurons at a time.

    Args:
        u: projections, samples by rank, then any positions (NCHW and channels_last are read in place).
        n: neurons.
        G: explicit rows instead of generated ones; then no seed.
        shift: what is added to every neuron of a sample; None for nothing.
        activation: ``identity relu abs leaky_relu tanh erf gelu`` (its erf form) ``silu sign step cos``; step is 1 for
            s > 0, else 0. float32 kernels are within 4 units in the last place of float64.
        negative_slope: of leaky_relu; 0.01 by default.
        seed, stream, row_offset: the address in G, as in `rainbow_fast.key`; or a packed key as ``seed``.
        scale: multiplies the features; 1 by default.
        backend: ``"cpu"`` or ``"reference"``; None takes the best one that is there.

    Returns:
        phi', in the dtype of u.

    Raises:
        ValueError: shapes that do not belong together, an unknown activation, neither or both of seed and G, an address
            outside its range, a backend that is missing.
        TypeError: dtypes that differ, or one that the backend does not take.

    Source: the random feature map of Guth, Menard, Rochette and Mallat (JMLR 2024), section 2.1.
    """
    _check(u, n, G, shift, activation, seed)
    key = _key(seed, stream, row_offset)
    return torch.ops.rainbow_fast.random_features(u, shift, n, key, G, activation, negative_slope, scale, backend)


def random_features_covariance(
    x: Tensor,  # (N, d) or (N, d, *space)
    u: Tensor,  # (N, r) or (N, r, *space)
    n: int,
    *,
    G: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    seed: int | Tensor | None = None,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (d, n), (n,), (n,)
    r"""Cross-covariance of x with random features, :math:`\sum x^\top \phi'`, with :math:`\sum \phi'` and
    :math:`\sum \phi'^2`, in float64; positions are samples and nothing of size N x n is stored.

    Equivalent to::

        phi = random_features(u, n, ...)
        cross_covariance(x, phi), phi.double().sum(samples), (phi.double() ** 2).sum(samples)

    Arguments, errors and source as in `random_features`; x has the N, the positions and the dtype of u. Differentiable
    in x, u, shift and G.
    """
    _check(u, n, G, shift, activation, seed)
    _check_samples(x, u)
    key = _key(seed, stream, row_offset)
    return torch.ops.rainbow_fast.random_features_covariance(
        x, u, shift, n, key, G, activation, negative_slope, scale, backend
    )


def random_features_projection(
    u: Tensor,  # (N, r) or (N, r, *space)
    A: Tensor,  # (d, n)
    *,
    G: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    seed: int | Tensor | None = None,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:  # (N, d) or (N, d, *space)
    r"""Aligned random features :math:`\phi' A^\top`; nothing of size N x n is stored.

    Equivalent to::

        torch.einsum("nm...,dm->nd...", random_features(u, A.shape[1], ...), A)

    summed in float64 over blocks of neurons. Arguments, errors and source as in `random_features`; A has the dtype of
    u. Differentiable in u, A, shift and G.
    """
    _check_projection(A, u)
    _check(u, A.shape[1], G, shift, activation, seed)
    key = _key(seed, stream, row_offset)
    return torch.ops.rainbow_fast.random_features_projection(
        u, A, shift, key, G, activation, negative_slope, scale, backend
    )


def random_features_reference(
    u: Tensor, G: Tensor, shift: Tensor | None, activation: str, slope: float, scale: float
) -> Tensor:
    s = torch.einsum("nr...,mr->nm...", u, G.to(u.dtype))
    s = s if shift is None else s + shift.unsqueeze(1)
    return scale * ACTIVATIONS[activation][0](s, slope)


def _check(
    u: Tensor, n: int, G: Tensor | None, shift: Tensor | None, activation: str, where: int | Tensor | None
) -> None:
    """Shapes and dtypes belong together: for the message here, and for the kernels, which read what they are told."""
    if u.dim() < 2:
        raise ValueError(f"u has shape {tuple(u.shape)}: wanted (N, r) or (N, r, *space)")
    if n < 0:
        raise ValueError(f"n={n}: wanted n >= 0")
    if shift is not None and shift.shape != u.shape[:1] + u.shape[2:]:
        raise ValueError(
            f"shift has shape {tuple(shift.shape)}: wanted {tuple(u.shape[:1] + u.shape[2:])}, u without its channels"
        )
    if shift is not None and shift.dtype != u.dtype:
        raise TypeError(f"shift is {shift.dtype}: wanted the dtype of u, {u.dtype}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: wanted one of {', '.join(ACTIVATIONS)}")
    if (G is None) == (where is None):
        raise ValueError(f"seed and G are {'both missing' if G is None else 'both given'}: wanted one of the two")
    if G is not None and tuple(G.shape) != (n, u.shape[1]):
        raise ValueError(f"G has shape {tuple(G.shape)}: wanted (n, r) = {(n, u.shape[1])}")
    if G is not None and G.dtype != u.dtype:
        raise TypeError(f"G is {G.dtype}: wanted the dtype of u, {u.dtype}")


def _check_samples(x: Tensor, u: Tensor) -> None:
    if x.dim() != u.dim() or x.shape[0] != u.shape[0] or x.shape[2:] != u.shape[2:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: wanted the N and the positions of u, of shape {tuple(u.shape)}"
        )
    if x.dtype != u.dtype:
        raise TypeError(f"x is {x.dtype}: wanted the dtype of u, {u.dtype}")


def _check_projection(A: Tensor, u: Tensor) -> None:
    if A.dim() != 2:
        raise ValueError(f"A has shape {tuple(A.shape)}: wanted (d, n)")
    if A.dtype != u.dtype:
        raise TypeError(f"A is {A.dtype}: wanted the dtype of u, {u.dtype}")


def _key(seed: int | Tensor | None, stream: int, row_offset: int) -> Tensor | None:
    return None if seed is None else as_key(seed, stream, row_offset)


class _Features(NamedTuple):
    """What features are made of; the arguments that the registered ops share."""

    u: Tensor
    shift: Tensor | None
    key: Tensor | None
    G: Tensor | None
    activation: str
    slope: float
    scale: float

    def check(self, n: int) -> None:
        _check(self.u, n, self.G, self.shift, self.activation, self.key)

    def values(self, n: int) -> Tensor:
        """The features themselves, by the reference."""
        G = self.G
        if G is None:
            assert self.key is not None
            r = self.u.shape[1]
            G = torch.from_numpy(gaussian_reference(address(self.key, n, r), n, r)).to(self.u.device)
        return random_features_reference(self.u, G, self.shift, self.activation, self.slope, self.scale)

    def memory(self, n: int) -> tuple[object, tuple]:
        """What a kernel reads (struct Features of csrc/kernels.h), behind the tensors that keep it alive."""
        r = self.u.shape[1]
        u, u_samples = samples(self.u)
        shift = None if self.shift is None else self.shift.contiguous()
        where = (0, 0, 0, 0) if self.key is None else tuple(address(self.key, n, r))
        given: Samples = (0, 0, (n, r, 1, 1), (0, 0, 0, 0)) if self.G is None else matrix(self.G)
        return (u, shift), (u_samples, address_of(shift), given, where, CODE[self.activation], self.slope, self.scale)


def _compiled(u: Tensor, backend: str | None) -> bool:
    return _backend.choose(backend, u.device, u.dtype, DTYPES) != "reference"


def _target(out: Tensor, u: Tensor, channels: int) -> Samples:
    """What a kernel writes of an (N, channels, *space) tensor."""
    wanted = (u.shape[0], channels, *u.shape[2:])
    if out.shape != wanted or out.dtype != u.dtype:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}: wanted {u.dtype} of shape {wanted}")
    view, target = samples(out)
    if view.data_ptr() != out.data_ptr():
        raise ValueError(f"out has strides {out.stride()}: wanted positions at one stride")
    return target


def _write(f: _Features, backend: str | None, out: Tensor) -> None:
    n = out.shape[1]
    f.check(n)
    target = _target(out, f.u, n)
    if not _compiled(f.u, backend):
        out.copy_(f.values(n))
        return
    kept, features = f.memory(n)
    _backend.kernels().random_features(target, features, torch.get_num_threads())


def _accumulate(f: _Features, x: Tensor, backend: str | None, out: Tensor, total: Tensor, square: Tensor) -> None:
    n = out.shape[1]
    f.check(n)
    _check_samples(x, f.u)
    wanted: tuple[int, ...]
    for name, t, wanted in (("out", out, (x.shape[1], n)), ("total", total, (n,)), ("square", square, (n,))):
        if t.shape != wanted or t.dtype != torch.float64 or not t.is_contiguous():
            got = f"{name} is {t.dtype} of shape {tuple(t.shape)}"
            raise ValueError(f"{got}: wanted contiguous float64 of shape {wanted}")
    if not _compiled(f.u, backend):
        phi = flat(f.values(n)).double()
        out += cross_covariance_reference(flat(x), phi)
        total += phi.sum((0, 2))
        square += (phi * phi).sum((0, 2))
        return
    x_kept, x_samples = samples(x)
    kept, features = f.memory(n)
    targets = (out.data_ptr(), total.data_ptr(), square.data_ptr())
    _backend.kernels().random_features_covariance(*targets, x_samples, features, torch.get_num_threads())


def _project(f: _Features, A: Tensor, backend: str | None, out: Tensor) -> None:
    _check_projection(A, f.u)
    d, n = A.shape
    f.check(n)
    target = _target(out, f.u, d)
    if not _compiled(f.u, backend):
        out.copy_(torch.einsum("nm...,dm->nd...", f.values(n), A))
        return
    kept, features = f.memory(n)
    _backend.kernels().random_features_projection(target, matrix(A), features, torch.get_num_threads())


# The registered implementations, in the order of their schemas' arguments.


def _random_features(u, shift, n, key, G, activation, slope, scale, backend):
    out = _backend.empty((u.shape[0], n, *u.shape[2:]), u.dtype, u.device)
    _write(_Features(u, shift, key, G, activation, slope, scale), backend, out)
    return out


def _random_features_out(u, shift, key, G, activation, slope, scale, backend, out):
    _backend.refuse_grad("random_features_out", u, shift, G, out)
    _write(_Features(u, shift, key, G, activation, slope, scale), backend, out)


def _random_features_covariance(x, u, shift, n, key, G, activation, slope, scale, backend):
    out = u.new_zeros(x.shape[1], n, dtype=torch.float64)
    total, square = (u.new_zeros(n, dtype=torch.float64) for _ in range(2))
    _accumulate(_Features(u, shift, key, G, activation, slope, scale), x, backend, out, total, square)
    return out, total, square


def _random_features_covariance_out(x, u, shift, key, G, activation, slope, scale, backend, out, total, square):
    """Adds to out (d, n), total (n,) and square (n,), all float64 and contiguous."""
    _backend.refuse_grad("random_features_covariance_out", x, u, shift, G)
    _accumulate(_Features(u, shift, key, G, activation, slope, scale), x, backend, out, total, square)


def _random_features_projection(u, A, shift, key, G, activation, slope, scale, backend):
    out = _backend.empty((u.shape[0], A.shape[0], *u.shape[2:]), u.dtype, u.device)
    _project(_Features(u, shift, key, G, activation, slope, scale), A, backend, out)
    return out


def _random_features_projection_out(u, A, shift, key, G, activation, slope, scale, backend, out):
    _backend.refuse_grad("random_features_projection_out", u, A, shift, G, out)
    _project(_Features(u, shift, key, G, activation, slope, scale), A, backend, out)


def _fake_covariance(x, u, shift, n, *rest):
    return tuple(x.new_empty(shape, dtype=torch.float64) for shape in ((x.shape[1], n), (n,), (n,)))


_NAME = "rainbow_fast::random_features"
_FEATURES = "Tensor? key, Tensor? G, str activation, float negative_slope, float scale, str? backend"
for _schema in (
    f"{_NAME}(Tensor u, Tensor? shift, SymInt n, {_FEATURES}) -> Tensor",
    f"{_NAME}_out(Tensor u, Tensor? shift, {_FEATURES}, Tensor(a!) out) -> ()",
    f"{_NAME}_covariance(Tensor x, Tensor u, Tensor? shift, SymInt n, {_FEATURES}) -> (Tensor, Tensor, Tensor)",
    f"{_NAME}_covariance_out(Tensor x, Tensor u, Tensor? shift, {_FEATURES}, "
    "Tensor(a!) out, Tensor(b!) total, Tensor(c!) square) -> ()",
    f"{_NAME}_projection(Tensor u, Tensor A, Tensor? shift, {_FEATURES}) -> Tensor",
    f"{_NAME}_projection_out(Tensor u, Tensor A, Tensor? shift, {_FEATURES}, Tensor(a!) out) -> ()",
):
    torch.library.define(_schema[: _schema.index("(")], _schema[_schema.index("(") :])
for _suffix, _functional, _out in (
    ("", _random_features, _random_features_out),
    ("_covariance", _random_features_covariance, _random_features_covariance_out),
    ("_projection", _random_features_projection, _random_features_projection_out),
):
    torch.library.impl(_NAME + _suffix, "CompositeExplicitAutograd")(_functional)
    torch.library.impl(f"{_NAME}{_suffix}_out", "CompositeExplicitAutograd")(_out)
    torch.library.register_fake(f"{_NAME}{_suffix}_out")(lambda *given: None)
torch.library.register_fake(_NAME)(lambda u, shift, n, *rest: u.new_empty(u.shape[0], n, *u.shape[2:]))
torch.library.register_fake(f"{_NAME}_covariance")(_fake_covariance)
torch.library.register_fake(f"{_NAME}_projection")(
    lambda u, A, *rest: u.new_empty(u.shape[0], A.shape[0], *u.shape[2:])
)
torch.library.register_autograd(_NAME, gradient.backward_features, setup_context=gradient.setup_features)
torch.library.register_autograd(
    f"{_NAME}_covariance", gradient.backward_covariance, setup_context=gradient.setup_covariance
)
torch.library.register_autograd(
    f"{_NAME}_projection", gradient.backward_projection, setup_context=gradient.setup_projection
)
