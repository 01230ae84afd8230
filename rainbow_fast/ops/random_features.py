# SPDX-License-Identifier: BSD-3-Clause
"""random_features: phi' = scale sigma(u G^T + shift), and two fused ops, which do not store phi'. G is never stored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import integer, tensor
from rainbow_fast.ops import random_features_arguments as checks
from rainbow_fast.ops import random_features_batching as batching
from rainbow_fast.ops import random_features_derivative as derivative
from rainbow_fast.ops import random_features_flops as flops
from rainbow_fast.ops.activations import ACTIVATIONS, MODULUS, modulus
from rainbow_fast.ops.cross_covariance import cross_covariance_reference
from rainbow_fast.ops.gaussian import Seed, as_key, gaussian_reference
from rainbow_fast.ops.memory import address_of, flat, matrix, samples
from rainbow_fast.ops.random_features_arguments import Features
from rainbow_fast.ops.registration import Derivative, functional, writing


def random_features(
    u: Tensor,  # (N, r) or (N, r, *space)
    n: int,
    *,
    G: Tensor | None = None,  # (n, r)
    shift: Tensor | None = None,  # (N,) or (N, *space)
    activation: str = "relu",
    negative_slope: float = 0.01,
    seed: Seed | None = None,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:  # (N, n) or (N, n, *space); for S seeds (S, N, n, *space)
    r"""Random features ``phi' = scale sigma(u G^T + shift)``.

    Equivalent to::

        G = rainbow_fast.gaussian(n, r, seed=seed, stream=stream, row_offset=row_offset)
        scale * sigma(torch.einsum("nr...,mr->nm...", u, G.to(u.dtype)) + shift.unsqueeze(1))

    The rows of G are the neurons: the features of a smaller n are the first features of a larger n, bit for bit.
    Differentiable in u, shift and G; the backward pass computes the features again, in blocks. (Gradients of an
    explicit G, and second derivatives, run in plain PyTorch.)

    ``activation="modulus"`` takes complex u and shift: ``phi' = scale sqrt(a^2 + b^2)`` is real, with ``a = Re u G^T +
    Re shift`` and ``b = Im u G^T + Im shift``, without an epsilon and with gradient 0 at 0. Both share the rows of G.
    Circular rows ``(G_re + i G_im) / sqrt 2`` are columns ``[G_re, G_im]`` on ``torch.cat([u, 1j * u], 1) / sqrt 2``.

    Args:
        u: projections, float32 or float64 (the reference takes every floating dtype), samples by rank, then any axes of
            positions (NCHW and channels_last are read in place). For the modulus complex64 or complex128.
        n: number of neurons.
        G: explicit rows to use instead of generated ones. Exactly one of `G` and `seed` must be given.
        shift: a number for each sample and position, added for every neuron; None (default) adds nothing.
        activation: ``identity relu abs leaky_relu tanh erf gelu`` (its erf form) ``silu sign step cos``; step is 1 for
            s > 0, else 0. Errors of float32 kernels are at most 4 units in the last place. ``modulus``, of complex
            numbers, see above. "relu" by default.
        negative_slope: slope of leaky_relu; 0.01 by default.
        seed, stream, row_offset: the address in G, as in `rainbow_fast.key`; or a key as ``seed``. The results of S
            seeds lie along a leading axis, and each has the same bits as a call with its seed alone.
        scale: factor of the features; 1 by default.
        precision: of the products of float32 numbers: ``"highest"``, in full; ``"high"``, with each factor as the sum
            of two bfloat16 numbers (an error of at most 2^-14 of the sum of the absolute values of the products); or
            ``"medium"``, with each as one (2^-7). None (default) takes what torch's own products are set to at this
            call, by `torch.set_float32_matmul_precision` or ``torch.backends.*.fp32_precision``. CPUs without a matrix
            unit always take "highest"; the reference multiplies as torch does.
        backend: ``"cpu"``, ``"triton"`` or ``"reference"``; None (default) takes the best one available. There are no
            CUDA kernels.

    Returns:
        phi' in the dtype of u, or of its parts; under autocast computed in float32 and rounded to the autocast dtype.
        Its memory format is that of u: channels last (for each seed) if u is, otherwise contiguous.

    Raises:
        ValueError: shapes do not match, the activation or the precision is unknown, neither or both of seed and G are
            given, an address is outside its range, or the backend is not available.
        TypeError: an argument is not a tensor or integer, dtypes differ, the backend does not support the dtype, or u
            or the shift is complex for another activation than the modulus, or real for it.

    Source: the random feature map of Guth, Menard, Rochette and Mallat (JMLR 2024), section 2.1.
    """
    key = None if seed is None else as_key(seed, stream, row_offset)
    u, shift = checks.checked(u, G, shift, activation, negative_slope, scale, precision)
    return torch.ops.rainbow_fast.random_features(
        u, shift, integer("n", n), key, G, activation, negative_slope, scale, precision, backend
    )


def random_features_covariance(
    x: Tensor,  # (N, d) or (N, d, *space)
    u: Tensor,  # (N, r) or (N, r, *space)
    n: int | Sequence[int],
    *,
    G: Tensor | None = None,
    shift: Tensor | None = None,
    x_center: Tensor | None = None,  # (d,)
    center: Tensor | None = None,  # (n,); for S seeds (S, n)
    activation: str = "relu",
    negative_slope: float = 0.01,
    seed: Seed | None = None,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    precision: str | None = None,
    backend: str | None = None,
) -> Any:  # (d, n), (n,), (n,); for S seeds (S, d, n), (S, n), (S, n); for a list of n a list of these triples
    r"""Cross-covariance of x with random features, :math:`\sum x^\top \phi'`, and :math:`\sum \phi'` and
    :math:`\sum \phi'^2`, in float64. Positions count as samples. No array of size N x n is stored.

    Equivalent to::

        phi = random_features(u, n, ...) - center  # one number for each neuron
        x = x - x_center  # one number for each channel
        cross_covariance(x, phi), phi.double().sum(samples), (phi.double() ** 2).sum(samples)

    Centers reduce rounding: blocks of samples are summed in the dtype of u. Without centers, features with a mean of
    1000 standard deviations leave no correct digit of the variance. A center need only be near the mean. It is best
    rounded to an eighth of the standard deviation: sums of equal features are then exact. x_center is (d,), center is
    (n,) or (S, n), both in the dtype of x; None (default) is zero.

    For a list of widths n, the result is a list: each width takes the sums of its first n neurons, as views of the sums
    of the largest width, for which `center` is given. (A call with one width alone may differ in the last bits, because
    the largest width decides how sums over samples are divided into parts.)

    Other arguments, errors and source: see `random_features`. x has the N, the positions and the dtype of phi'.
    Differentiable in x, u, shift, G and both centers.
    """
    several = isinstance(n, list | tuple | range)
    numbers: Any = n if several else [n]
    widths = [integer("n", each) for each in numbers]
    if not widths:
        raise ValueError("n is an empty list: wanted at least one width")
    key = None if seed is None else as_key(seed, stream, row_offset)
    tensor("x", x)
    options = (negative_slope, scale, precision)
    u, shift = checks.checked(u, G, shift, activation, *options, x_center=x_center, center=center)
    sums = torch.ops.rainbow_fast.random_features_covariance(
        x, u, shift, x_center, center, max(widths), key, G, activation, negative_slope, scale, precision, backend
    )
    return [tuple(t[..., :width] for t in sums) for width in widths] if several else sums


def random_features_projection(
    u: Tensor,  # (N, r) or (N, r, *space)
    A: Tensor | Sequence[Tensor],  # (d, n), or (S, d, n) for S seeds
    *,
    G: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    seed: Seed | None = None,
    stream: int = 0,
    row_offset: int = 0,
    scale: float = 1.0,
    precision: str | None = None,
    backend: str | None = None,
) -> Any:  # (N, d) or (N, d, *space); for S seeds (S, N, d, *space); for a list of A a list of these tensors
    r"""Aligned random features :math:`\phi' A^\top`. No array of size N x n is stored.

    Equivalent to::

        torch.einsum("nm...,dm->nd...", random_features(u, A.shape[1], ...), A)

    with blocks of neurons summed in float64. For a list of A_k (d_k, n_k), the result is a list: A_k projects the first
    n_k neurons. One pass computes each feature once (not on Triton), with the same bits as separate calls. Results have
    the memory format of u, as those of `random_features`.

    Other arguments, errors, source: see `random_features`. A has the dtype of phi'. Differentiable in u, A, shift, G.
    """
    several = isinstance(A, list | tuple)
    parts = [tensor("A", part) for part in (A if several else [A])]
    key = None if seed is None else as_key(seed, stream, row_offset)
    u, shift = checks.checked(u, G, shift, activation, negative_slope, scale, precision)
    out = torch.ops.rainbow_fast.random_features_projection(
        u, parts, shift, key, G, activation, negative_slope, scale, precision, backend
    )
    return out if several else out[0]


def random_features_reference(
    u: Tensor, G: Tensor, shift: Tensor | None, activation: str, slope: float, scale: float
) -> Tensor:
    s = torch.einsum("nr...,mr->nm...", u, G.to(u.dtype))
    s = s if shift is None else s + shift.unsqueeze(1)
    return scale * (modulus(s) if activation == MODULUS else ACTIVATIONS[activation][0](s, slope))


def _values(f: Features, n: int, where: list[int]) -> Tensor:
    """The features, computed by the reference."""
    G = f.G
    if G is None:
        G = torch.from_numpy(gaussian_reference(where, n, f.u.shape[1])).to(f.u.device)
    return random_features_reference(f.u, G, f.shift, f.activation, f.slope, f.scale)


def _write(f: Features, backend: str | None, out: Tensor) -> None:
    n = out.shape[len(f.seeds) + 1]
    targets = f.targets(out)
    parts = f.each(n, out)
    chosen = f.chosen(backend)
    if chosen == "reference":
        for where, part in parts:
            part.copy_(_values(f, n, where))
        return
    if chosen == "triton":
        u, rest = f.plain()
        for where, part in parts:
            view = samples(part, written=True)[0]
            _backend.run_triton("random_features", u.device, view, u, *rest(where))
        return
    kept, features = f.memory(n)
    for target, (where, _) in zip(targets, parts, strict=True):
        with _backend.running(chosen, f.u.device) as run:
            _backend.kernels().random_features(target, features(where), run)


def _accumulate(
    f: Features, x: Tensor, x_center: Tensor | None, center: Tensor | None, backend: str | None,
    out: Tensor, total: Tensor, square: Tensor,
) -> None:  # fmt: skip
    n = out.shape[-1]
    of_x, of_phi = (None if t is None else t.contiguous() for t in (x_center, center))
    parts = f.each(n, out, total, square, *([] if of_phi is None else [of_phi]))
    chosen = f.chosen(backend)
    if chosen == "reference":
        x = flat(x).double() - (0 if of_x is None else of_x.double().unsqueeze(1))
        for where, M, first, second, *own in parts:
            phi = flat(_values(f, n, where)).double() - (own[0].double().unsqueeze(1) if own else 0)
            M += cross_covariance_reference(x, phi)
            first += phi.sum((0, 2))
            second += (phi * phi).sum((0, 2))
        return
    x_kept, x_samples = samples(x)
    if chosen == "triton":
        name = "random_features.random_features_covariance"
        u, rest = f.plain()
        for where, *sums in parts:
            off = sums.pop() if len(sums) > 3 else None
            _backend.run_triton(name, u.device, *sums, x_kept, of_x, off, u, *rest(where))
        return
    kept, features = f.memory(n)
    for where, *sums in parts:
        off = sums.pop() if len(sums) > 3 else None
        targets, offs = [t.data_ptr() for t in sums], [address_of(of_x), address_of(off)]
        with _backend.running(chosen, f.u.device) as run:
            _backend.kernels().random_features_covariance(*targets, x_samples, *offs, features(where), run)


def _project(f: Features, A: list[Tensor], backend: str | None, out: list[Tensor]) -> None:
    n = max(a.shape[-1] for a in A)
    targets = [f.targets(o) for o in out]
    whole = [a.expand(*f.seeds, *a.shape[-2:]) for a in A]
    parts = f.each(n, *whole, *out)
    chosen = f.chosen(backend)
    if chosen == "reference":
        for where, *slices in parts:
            phi = _values(f, n, where)
            for a, o in zip(slices[: len(A)], slices[len(A) :], strict=True):
                o.copy_(torch.einsum("nm...,dm->nd...", phi[:, : a.shape[1]], a))
        return
    if chosen == "triton":
        name = "random_features.random_features_projection"
        u, rest = f.plain()
        for where, *slices in parts:
            for a, o in zip(slices[: len(A)], slices[len(A) :], strict=True):
                view = samples(o, written=True)[0]
                _backend.run_triton(name, u.device, view, u, a, *rest(where))
        return
    kept, features = f.memory(n)
    for s, (where, *slices) in enumerate(parts):
        pairs = [(target[s], matrix(a)) for target, a in zip(targets, slices, strict=False)]
        with _backend.running(chosen, f.u.device) as run:
            _backend.kernels().random_features_projection(pairs, features(where), run)


# The registered implementations. Their arguments are in the order of the schemas.


def _random_features(u, shift, n, key, G, activation, slope, scale, precision, backend):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(n)
    out = f.empty(n)
    _write(f, backend, out)
    return out


def _random_features_out(u, shift, key, G, activation, slope, scale, precision, backend, out):
    _write(Features(u, shift, key, G, activation, slope, scale, precision), backend, out)


def _random_features_covariance(x, u, shift, x_center, center, n, key, G, activation, slope, scale, precision, backend):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(n)
    checks.check_samples(x, u, activation)
    checks.centers(x, u, n, key, x_center, center)
    shapes = ((*f.seeds, x.shape[1], n), (*f.seeds, n), (*f.seeds, n))
    sums = tuple(_backend.empty(shape, torch.float64, u.device).zero_() for shape in shapes)
    _accumulate(f, x, x_center, center, backend, *sums)
    return sums


def _random_features_covariance_out(
    x, u, shift, x_center, center, key, G, activation, slope, scale, precision, backend, out, total, square
):
    """Add to out (d, n), total (n,) and square (n,), all float64 and contiguous."""
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    _accumulate(f, x, x_center, center, backend, out, total, square)


def _random_features_projection(u, A, shift, key, G, activation, slope, scale, precision, backend):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(checks.projections(A, u, key))
    out = [f.empty(a.shape[-2]) for a in A]
    _project(f, A, backend, out)
    return out


def _random_features_projection_out(u, A, shift, key, G, activation, slope, scale, precision, backend, out):
    _project(Features(u, shift, key, G, activation, slope, scale, precision), A, backend, out)


def _fake_features(u, shift, n, key, G, activation, slope, scale, precision, backend):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(n)
    return f.fake(n)


def _fake_covariance(x, u, shift, x_center, center, n, key, G, activation, slope, scale, precision, backend):
    Features(u, shift, key, G, activation, slope, scale, precision).check(n)
    checks.check_samples(x, u, activation)
    checks.centers(x, u, n, key, x_center, center)
    seeds = () if key is None else key.shape[:-1]
    return tuple(x.new_empty(*seeds, *shape, dtype=torch.float64) for shape in ((x.shape[1], n), (n,), (n,)))


def _fake_projection(u, A, shift, key, G, activation, slope, scale, precision, backend):
    f = Features(u, shift, key, G, activation, slope, scale, precision)
    f.check(checks.projections(A, u, key))
    return [f.fake(a.shape[-2]) for a in A]


_CENTERS = "Tensor? x_center, Tensor? center"
_HOW = "Tensor? key, Tensor? G, str activation, float negative_slope, float scale, str? precision, str? backend"
functional(
    f"random_features(Tensor u, Tensor? shift, SymInt n, {_HOW}) -> Tensor",
    _random_features,
    _fake_features,
    flops=flops.random_features_flops,
    derivative=Derivative(derivative.features_vjp, derivative.features_jvp),
    vmap=batching.features_vmap,
    autocast="lower",
    takes_half=False,
)
functional(
    f"random_features_covariance(Tensor x, Tensor u, Tensor? shift, {_CENTERS}, SymInt n, {_HOW})"
    " -> (Tensor, Tensor, Tensor)",
    _random_features_covariance,
    _fake_covariance,
    flops=flops.random_features_covariance_flops,
    derivative=Derivative(derivative.covariance_vjp, derivative.covariance_jvp, keeps=True),
    vmap=batching.covariance,
    takes_half=False,
)
functional(
    f"random_features_projection(Tensor u, Tensor[] A, Tensor? shift, {_HOW}) -> Tensor[]",
    _random_features_projection,
    _fake_projection,
    flops=flops.random_features_projection_flops,
    derivative=Derivative(derivative.projection_vjp, derivative.projection_jvp),
    vmap=batching.projection,
    autocast="lower",
    takes_half=False,
)
writing(
    f"random_features_out(Tensor u, Tensor? shift, {_HOW}, Tensor(a!) out) -> ()",
    _random_features_out,
    check=checks.features_out,
    flops=flops.random_features_out_flops,
    called="random_features_out",
)
writing(
    f"random_features_covariance_out(Tensor x, Tensor u, Tensor? shift, {_CENTERS}, {_HOW}, "
    "Tensor(a!) out, Tensor(b!) total, Tensor(c!) square) -> ()",
    _random_features_covariance_out,
    check=checks.covariance_out,
    flops=lambda x, u, key, out: flops.random_features_covariance_flops(x, u, out[-1], key),
    called="random_features_covariance_out",
)
writing(
    f"random_features_projection_out(Tensor u, Tensor[] A, Tensor? shift, {_HOW}, Tensor(a!)[] out) -> ()",
    _random_features_projection_out,
    check=checks.projection_out,
    flops=flops.random_features_projection_flops,
    called="random_features_projection_out",
)
