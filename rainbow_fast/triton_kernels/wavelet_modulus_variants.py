# SPDX-License-Identifier: BSD-3-Clause
"""The kernels of wavelet_modulus that tests/helpers/gpu_check.py compiles."""

from collections.abc import Iterator

from rainbow_fast.triton_kernels.rounding import full
from rainbow_fast.triton_kernels.variant import Variant
from rainbow_fast.triton_kernels.wavelet_modulus import WARPS, gradient_kernel, maps_kernel


def variants() -> Iterator[Variant]:
    """Those that keep to registers; the docstring of the kernels names the others."""
    everywhere = ("sm_80", "sm_90", "sm_100", "gfx942")
    cases = [  # kernel, name, skip, phi of its own, rows of a tile of the output, targets
        (maps_kernel, "wavelet_modulus 32 -> 16", False, False, 16, everywhere),
        (maps_kernel, "wavelet_modulus 32 -> 32", False, True, 32, everywhere),
        (maps_kernel, "wavelet_modulus 32 -> 32 skip", True, True, 32, everywhere),
        (gradient_kernel, "wavelet_modulus_gradient 32 -> 16", False, False, 16, everywhere[1:]),
    ]
    numbers = ("z_image", "z_channel", "z_row", "maps", "channels", "height", "width", "lines", "across")
    pointers = dict.fromkeys(("out", "grad", "z", "rows", "columns", "beta"), "*fp32")
    for kernel, name, skip, own, lines, targets in cases:
        types = {**pointers, **dict.fromkeys(numbers, "i32")}
        types = {key: value for key, value in types.items() if key in kernel.arg_names}
        aligned = tuple(key for key in pointers if key in types and key != "beta")
        for target in targets:
            constants = {
                "z_column": 1, "PARTS": 1, "SKIP": skip, "OWN": own, "DOWN": 1, "ACROSS": 1, "H": 32, "LINES": lines,
                "PRECISION": full(target),
            }  # fmt: skip
            products = target in ("sm_80", "gfx942")  # the others use the instructions of sm_80 for these small tiles
            options = {"num_warps": WARPS, "num_stages": 1}
            yield Variant(name, kernel, types, constants, options, aligned, products=products, targets=(target,))
