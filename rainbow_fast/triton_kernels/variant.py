# SPDX-License-Identifier: BSD-3-Clause
"""The kernels that tests/helpers/gpu_check.py compiles without a GPU; ``variants()`` of each module lists some."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel.

    Args:
        name: name of its row in the table of results, for example ``gaussian float32``.
        kernel: the `triton.jit` function.
        types: Triton type of each argument that is neither annotated nor constant: ``{"out": "*fp32"}``.
        constants: values of the constexpr arguments, and of arguments that are 1 and that a launch specialises.
        options: launch options such as ``num_warps``.
        aligned: arguments that are multiples of 16 in these launches.
        gaussians: number of values of G that one thread generates; 0 for none.
        most: most instructions for one of these values, everything counted; 0 for no limit.
        products: whether the kernel multiplies matrices, so that it must have tensor-core instructions.
        inner: passes of an inner loop of products in one pass of the outer loop, where instructions are counted.
        blocks: number of programs that must fit on a multiprocessor, which limits registers and shared memory.
        targets: targets that it is compiled for, ``("sm_80", "sm_90")``; None for all.
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
    inner: int = 1
    blocks: int = 1
    targets: tuple[str, ...] | None = None
