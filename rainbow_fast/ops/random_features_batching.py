# SPDX-License-Identifier: BSD-3-Clause
"""The vmap rules of random_features and its fused ops: a batch becomes more samples, seeds, neurons or channels.

Each rule gives the result of a loop over the batch. If batched arguments cannot share one of these axes, the rule is a
loop.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.ops.registration import loop

Result = tuple[Any, Any]  # the results, and the axis of the batch in each


def features_vmap(info: Any, in_dims: Any, u, shift, n, key, G, *rest: Any) -> Result:
    in_u, in_shift, _, in_key, in_G, *_ = in_dims
    op = torch.ops.rainbow_fast.random_features
    batched = (in_u is not None or in_shift is not None, in_key is not None, in_G is not None)
    if batched == (True, False, False):
        more_u, more_shift = _as_samples(info.batch_size, u, in_u, shift, in_shift)
        return _unfolded(op(more_u, more_shift, n, key, G, *rest), info.batch_size, key)
    if batched == (False, True, False):
        keys = key.movedim(in_key, 0)
        return _by_seeds(op(u, shift, n, keys.reshape(-1, 4), G, *rest), keys), 0
    if batched == (False, False, True):
        out = op(u, shift, info.batch_size * n, key, G.movedim(in_G, 0).flatten(0, 1), *rest)
        return out.unflatten(1, (info.batch_size, n)), 1
    return loop(op.default)(info, in_dims, u, shift, n, key, G, *rest)


def projection(info: Any, in_dims: Any, u, A: Sequence[Tensor], shift, key, G, *rest: Any) -> Result:
    in_u, in_A, in_shift, in_key, in_G, *_ = in_dims
    op, size = torch.ops.rainbow_fast.random_features_projection, info.batch_size
    dims = list(in_A) if isinstance(in_A, list | tuple) else [None] * len(A)
    samples, some_A = in_u is not None or in_shift is not None, any(dim is not None for dim in dims)
    if samples and not (some_A or in_key is not None or in_G is not None):
        more_u, more_shift = _as_samples(size, u, in_u, shift, in_shift)
        unfolded = [_unfolded(out, size, key) for out in op(more_u, A, more_shift, key, G, *rest)]
        return [out for out, _ in unfolded], [dim for _, dim in unfolded]
    if in_key is not None and key.dim() == 2 and not samples and in_G is None:
        each = [a if dim is None else a.movedim(dim, 0) for a, dim in zip(A, dims, strict=True)]
        return op(u, each, shift, key.movedim(in_key, 0), G, *rest), [0] * len(A)
    if some_A and not samples and in_key is None and in_G is None and (key is None or key.dim() == 1):
        channels = [a if dim is None else a.movedim(dim, 0).flatten(0, 1) for a, dim in zip(A, dims, strict=True)]
        outputs = op(u, channels, shift, key, G, *rest)
        pairs = zip(outputs, dims, strict=True)
        return [out if dim is None else out.unflatten(1, (size, -1)) for out, dim in pairs], [
            None if dim is None else 1 for dim in dims
        ]
    return loop(op.default)(info, in_dims, u, A, shift, key, G, *rest)


def covariance(info: Any, in_dims: Any, x, u, shift, x_center, center, n, key, G, *rest: Any) -> Result:
    in_x, in_u, in_shift, in_x_center, in_center, _, in_key, in_G, *_ = in_dims
    op = torch.ops.rainbow_fast.random_features_covariance
    others = any(dim is not None for dim in (in_u, in_shift, in_x_center, in_center, in_G))
    if in_x is not None and in_key is None and not others:
        every = None if x_center is None else x_center.repeat(info.batch_size)
        M, total, square = op(x.movedim(in_x, 1).flatten(1, 2), u, shift, every, center, n, key, G, *rest)
        return (M.unflatten(-2, (info.batch_size, -1)), total, square), (M.dim() - 2, None, None)
    if in_key is not None and in_x is None and center is None and not others:
        keys = key.movedim(in_key, 0)
        sums = op(x, u, shift, x_center, None, n, keys.reshape(-1, 4), G, *rest)
        return tuple(_by_seeds(t, keys) for t in sums), (0, 0, 0)
    return loop(op.default)(info, in_dims, x, u, shift, x_center, center, n, key, G, *rest)


def _as_samples(size: int, u: Tensor, in_u: int | None, shift: Tensor | None, in_shift: int | None) -> tuple:
    """u and shift of all elements of the batch, concatenated along the samples."""
    more = [
        None if t is None else (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in ((u, in_u), (shift, in_shift))
    ]
    return more[0], more[1]


def _unfolded(out: Tensor, size: int, key: Tensor | None) -> tuple[Tensor, int]:
    """`out` with its samples split into batch and samples, and the axis of the batch."""
    samples = 0 if key is None or key.dim() == 1 else 1
    return out.unflatten(samples, (size, -1)), samples


def _by_seeds(out: Tensor, keys: Tensor) -> Tensor:
    """`out` with its seeds split into the batch, which comes first, and the seeds of each element."""
    return out.view(*keys.shape[:-1], *out.shape[1:])
