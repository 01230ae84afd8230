# SPDX-License-Identifier: BSD-3-Clause
"""random_features: phi' = scale sigma(u G^T + shift), and its two fused passes; G is never stored."""

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops import random_features_gradient as gradient
from rainbow_fast.ops.activations import ACTIVATIONS, CODE
from rainbow_fast.ops.cross_covariance import cross_covariance_reference, flat, samples
from rainbow_fast.ops.gaussian import address, as_key, gaussian_reference

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

    Rows of G are neurons: features nest in n, bit for bit. Differentiable in u, shift and G; the backward pass generates
    G again, a block of neurons at a time.

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
    key = _check(u, n, G, shift, activation, seed, stream, row_offset)
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
    key = _check(u, n, G, shift, activation, seed, stream, row_offset)
    if x.dim() != u.dim() or x.shape[0] != u.shape[0] or x.shape[2:] != u.shape[2:]:
        raise ValueError(f"x has shape {tuple(x.shape)}: wanted the N and the positions of u, of shape {tuple(u.shape)}")
    if x.dtype != u.dtype:
        raise TypeError(f"x is {x.dtype}: wanted the dtype of u, {u.dtype}")
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
    if A.dim() != 2:
        raise ValueError(f"A has shape {tuple(A.shape)}: wanted (d, n)")
    if A.dtype != u.dtype:
        raise TypeError(f"A is {A.dtype}: wanted the dtype of u, {u.dtype}")
    key = _check(u, A.shape[1], G, shift, activation, seed, stream, row_offset)
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
    u: Tensor,
    n: int,
    G: Tensor | None,
    shift: Tensor | None,
    activation: str,
    seed: int | Tensor | None,
    stream: int,
    row_offset: int,
) -> Tensor | None:
    """The packed key, or None where G is given."""
    if u.dim() < 2:
        raise ValueError(f"u has shape {tuple(u.shape)}: wanted (N, r) or (N, r, *space)")
    if n < 0:
        raise ValueError(f"n={n}: wanted n >= 0")
    if shift is not None and shift.shape != u.shape[:1] + u.shape[2:]:
        raise ValueError(f"shift has shape {tuple(shift.shape)}: wanted {tuple(u.shape[:1] + u.shape[2:])}, u without its channels")
    if shift is not None and shift.dtype != u.dtype:
        raise TypeError(f"shift is {shift.dtype}: wanted the dtype of u, {u.dtype}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: wanted one of {', '.join(ACTIVATIONS)}")
    if (G is None) == (seed is None):
        raise ValueError(f"seed and G are {'both missing' if G is None else 'both given'}: wanted one of the two")
    if G is None:
        assert seed is not None
        return as_key(seed, stream, row_offset)
    if tuple(G.shape) != (n, u.shape[1]):
        raise ValueError(f"G has shape {tuple(G.shape)}: wanted (n, r) = {(n, u.shape[1])}")
    if G.dtype != u.dtype:
        raise TypeError(f"G is {G.dtype}: wanted the dtype of u, {u.dtype}")
    return None


def _rows(key: Tensor | None, G: Tensor | None, n: int, r: int, device: torch.device) -> Tensor:
    """The (n, r) rows of G, for the reference."""
    if G is not None:
        return G.detach()
    assert key is not None
    return torch.from_numpy(gaussian_reference(address(key, n, r), n, r)).to(device)


def _weights(key: Tensor | None, G: Tensor | None, n: int, r: int) -> tuple[Tensor | None, tuple[int, ...], list[int]]:
    """What a kernel reads of the rows of G: explicit ones (pointer and strides) or an address."""
    if G is None:
        assert key is not None
        return None, (0, 0, n, r, 1, 0, 0, 0), address(key, n, r)
    G = G.detach()
    return G, (G.data_ptr(), _backend.CODE[G.dtype], n, r, 1, *G.stride(), 0), [0, 0, 0, 0]


def _shifts(shift: Tensor | None) -> Tensor | None:
    return None if shift is None else shift.detach().contiguous()


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _random_features_out(u, shift, key, G, activation, negative_slope, scale, backend, out) -> None:
    _backend.refuse_grad("random_features_out", u, shift, G, out)
    n, r = out.shape[1], u.shape[1]
    if out.shape != (u.shape[0], n, *u.shape[2:]) or out.dtype != u.dtype:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}: wanted {u.dtype} of shape (N, n, *space)")
    if _backend.choose(backend, u.device, u.dtype, DTYPES) == "reference":
        rows = _rows(key, G, n, r, u.device)
        out.copy_(random_features_reference(u, rows, shift, activation, negative_slope, scale))
        return
    out_kept, out_samples = samples(out)
    if out_kept.data_ptr() != out.data_ptr():
        raise ValueError(f"out has strides {out.stride()}: wanted positions at one stride")
    kept = (samples(u), _shifts(shift), _weights(key, G, n, r))
    _backend.kernels().random_features(
        out_samples, kept[0][1], _pointer(kept[1]), *kept[2][1:], CODE[activation], negative_slope, scale, torch.get_num_threads()
    )


def _random_features(u, shift, n, key, G, activation, negative_slope, scale, backend):
    out = u.new_empty(u.shape[0], n, *u.shape[2:])
    given = [None if t is None else t.detach() for t in (u, shift, key, G)]
    _random_features_out(*given, activation, negative_slope, scale, backend, out)
    return out


def _random_features_covariance_out(
    x, u, shift, key, G, activation, negative_slope, scale, backend, out, total, square
) -> None:
    """Adds to out (d, n), total (n,) and square (n,), all float64 and contiguous."""
    _backend.refuse_grad("random_features_covariance_out", x, u, shift, G)
    n, r = out.shape[1], u.shape[1]
    for name, t, wanted in (("out", out, (x.shape[1], n)), ("total", total, (n,)), ("square", square, (n,))):
        if t.shape != wanted or t.dtype != torch.float64 or not t.is_contiguous():
            raise ValueError(f"{name} is {t.dtype} of shape {tuple(t.shape)}: wanted contiguous float64 of shape {wanted}")
    if _backend.choose(backend, u.device, u.dtype, DTYPES) == "reference":
        rows = _rows(key, G, n, r, u.device)
        phi = flat(random_features_reference(u, rows, shift, activation, negative_slope, scale)).double()
        out += cross_covariance_reference(flat(x), phi)
        total += phi.sum((0, 2))
        square += (phi * phi).sum((0, 2))
        return
    kept = (samples(x), samples(u), _shifts(shift), _weights(key, G, n, r))
    _backend.kernels().random_features_covariance(
        out.data_ptr(), total.data_ptr(), square.data_ptr(), kept[0][1], kept[1][1], _pointer(kept[2]), *kept[3][1:],
        CODE[activation], negative_slope, scale, torch.get_num_threads(),
    )  # fmt: skip


def _random_features_covariance(x, u, shift, n, key, G, activation, negative_slope, scale, backend):
    out = u.new_zeros(x.shape[1], n, dtype=torch.float64)
    total, square = (u.new_zeros(n, dtype=torch.float64) for _ in range(2))
    given = [None if t is None else t.detach() for t in (x, u, shift, key, G)]
    _random_features_covariance_out(*given, activation, negative_slope, scale, backend, out, total, square)
    return out, total, square


def _random_features_projection_out(u, A, shift, key, G, activation, negative_slope, scale, backend, out) -> None:
    _backend.refuse_grad("random_features_projection_out", u, A, shift, G, out)
    (d, n), r = A.shape, u.shape[1]
    if out.shape != (u.shape[0], d, *u.shape[2:]) or out.dtype != u.dtype:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}: wanted {u.dtype} of shape (N, d, *space)")
    if _backend.choose(backend, u.device, u.dtype, DTYPES) == "reference":
        phi = random_features_reference(u, _rows(key, G, n, r, u.device), shift, activation, negative_slope, scale)
        out.copy_(torch.einsum("nm...,dm->nd...", phi, A))
        return
    out_kept, out_samples = samples(out)
    if out_kept.data_ptr() != out.data_ptr():
        raise ValueError(f"out has strides {out.stride()}: wanted positions at one stride")
    A = A.detach()
    matrix = (A.data_ptr(), _backend.CODE[A.dtype], d, n, 1, *A.stride(), 0)
    kept = (samples(u), _shifts(shift), _weights(key, G, n, r))
    _backend.kernels().random_features_projection(
        out_samples, kept[0][1], matrix, _pointer(kept[1]), *kept[2][1:],
        CODE[activation], negative_slope, scale, torch.get_num_threads(),
    )  # fmt: skip


def _random_features_projection(u, A, shift, key, G, activation, negative_slope, scale, backend):
    out = u.new_empty(u.shape[0], A.shape[0], *u.shape[2:])
    given = [None if t is None else t.detach() for t in (u, A, shift, key, G)]
    _random_features_projection_out(*given, activation, negative_slope, scale, backend, out)
    return out


def _fake_covariance(x, u, shift, n, *rest):
    return tuple(x.new_empty(shape, dtype=torch.float64) for shape in ((x.shape[1], n), (n,), (n,)))


_REST = "str activation, float negative_slope, float scale, str? backend"
_SOURCE = "Tensor? key, Tensor? G"
_NAME = "rainbow_fast::random_features"
torch.library.define(_NAME, f"(Tensor u, Tensor? shift, SymInt n, {_SOURCE}, {_REST}) -> Tensor")
torch.library.define(f"{_NAME}_out", f"(Tensor u, Tensor? shift, {_SOURCE}, {_REST}, Tensor(a!) out) -> ()")
torch.library.define(
    f"{_NAME}_covariance",
    f"(Tensor x, Tensor u, Tensor? shift, SymInt n, {_SOURCE}, {_REST}) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    f"{_NAME}_covariance_out",
    f"(Tensor x, Tensor u, Tensor? shift, {_SOURCE}, {_REST}, Tensor(a!) out, Tensor(b!) total, Tensor(c!) square) -> ()",
)
torch.library.define(f"{_NAME}_projection", f"(Tensor u, Tensor A, Tensor? shift, {_SOURCE}, {_REST}) -> Tensor")
torch.library.define(
    f"{_NAME}_projection_out", f"(Tensor u, Tensor A, Tensor? shift, {_SOURCE}, {_REST}, Tensor(a!) out) -> ()"
)
for _suffix, _functional, _out in (
    ("", _random_features, _random_features_out),
    ("_covariance", _random_features_covariance, _random_features_covariance_out),
    ("_projection", _random_features_projection, _random_features_projection_out),
):
    torch.library.impl(_NAME + _suffix, "CompositeExplicitAutograd")(_functional)
    torch.library.impl(f"{_NAME}{_suffix}_out", "CompositeExplicitAutograd")(_out)
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
