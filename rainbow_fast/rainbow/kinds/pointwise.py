# SPDX-License-Identifier: BSD-3-Clause
"""The simplest kind of site: a pointwise non-linearity, with or without max-pooling before or after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rainbow_fast.ops.activations import HOMOGENEOUS
from rainbow_fast.rainbow.kinds.kind import Kind
from rainbow_fast.tracing.site import Site


class Pointwise(Kind):
    """``phi' = after(sigma(before(s)))``, with one feature per neuron. A batch norm without affine part may follow.

    Args:
        site: a traced site; its modules are shared, not copied.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.activation, self.negative_slope = site.activation, site.negative_slope
        self.sigma, self.before, self.after = site.sigma, site.before, site.after
        self.normalisation = None if site.norm is None else float(site.norm.eps)  # type: ignore[arg-type]
        self.in_kernel = self.activation is not None and self.before is None  # sigma is applied by the kernel
        self.fused = self.in_kernel and self.after is None
        self.homogeneous = not self.in_kernel or self.activation in HOMOGENEOUS

    def kernel(self) -> dict[str, Any]:
        if self.in_kernel:
            return {"activation": self.activation, "negative_slope": self.negative_slope}
        return {"activation": "identity"}

    def expected(self) -> dict[str, Any] | None:
        return self.kernel() if self.fused and self.normalisation is None else None

    def finish(self, s: Tensor) -> Tensor:
        if not self.in_kernel:
            return self.features_of(s)
        return s if self.after is None else self.after(s)

    def features_of(self, s: Tensor) -> Tensor:
        s = self.sigma(s if self.before is None else self.before(s))
        return s if self.after is None else self.after(s)

    def features_over(self, s: Tensor) -> Tensor:
        return s.relu_() if self.fused and self.activation == "relu" else self.features_of(s)

    def extra_repr(self) -> str:
        return self.activation or type(self.sigma).__name__
