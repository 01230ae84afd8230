# SPDX-License-Identifier: BSD-3-Clause
"""Random features of any activation: those that `rainbow_fast.random_features` lacks take its projections first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.random_features import random_features

OF_THE_OP = (*ACTIVATIONS, "modulus")  # activations of `rainbow_fast.random_features`
Draw = Callable[..., Tensor]  # of the arguments of `random_features` but for the activation and its slope


def features_of(activation: str | Callable[[Tensor], Tensor], negative_slope: float) -> Draw:
    """`rainbow_fast.random_features` with any activation that `expected_kernel` takes.

    Where the op has no such activation, the result is ``sigma(random_features(..., activation="identity"))``, in the
    same dtype. Both the projections and the features are in memory then.

    Raises:
        ValueError: the name is unknown. In a call: a function returns another shape, or features are not finite.
        TypeError: neither a name nor a function.
    """
    if isinstance(activation, str) and activation in OF_THE_OP:
        return partial(random_features, activation=activation, negative_slope=negative_slope)
    form = expectations(activation, negative_slope)

    def draw(u: Tensor, n: int, **options: Any) -> Tensor:
        projections = random_features(u, n, activation="identity", **options)
        phi = form.sigma(projections)
        if not isinstance(phi, Tensor) or phi.shape != projections.shape:
            shape = f"a tensor of shape {tuple(phi.shape)}" if isinstance(phi, Tensor) else repr(phi)
            raise ValueError(
                f"activation returned {shape}: wanted a tensor of the shape it takes, {tuple(projections.shape)}"
            )
        if bool(projections.isfinite().all()) and not bool(phi.isfinite().all()):
            raise ValueError(f"activation {form.name} is not finite at some of the projections")
        return phi.to(projections.dtype).contiguous()

    return draw
