# SPDX-License-Identifier: BSD-3-Clause
"""What tests/helpers/gpu_check.py compiles without a GPU: every kernel module has a ``variants()`` that lists some."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel.

    Args:
        name: of the row in the table, ``gaussian float32``.
        kernel: the `triton.jit` function.
        types: Triton's type of each argument that is neither annotated nor constant: ``{"out": "*fp32"}``.
        constants: values of its constexpr arguments, and of those that a launch would find equal to 1.
        options: ``num_warps`` and the like, as at the launch.
        aligned: arguments that are multiples of 16 in the launches this stands for.
        gaussians: how many values of G one thread makes; 0 where none.
        most: how many instructions one of them may take, everything counted; 0 where that says nothing.
        products: whether it multiplies matrices, so that there must be tensor-core instructions.
        blocks: programs that the design wants on a multiprocessor at once, which bounds registers and shared memory.
        targets: where it is meant to run, ``("sm_80", "sm_90")``; None means on all that are checked.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    aligned: tuple[str, ...] = ()
    gaussians: int = 0
    most: float = 0
    products: bool = False
    blocks: int = 1
    targets: tuple[str, ...] | None = None
