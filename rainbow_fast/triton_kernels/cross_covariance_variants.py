# SPDX-License-Identifier: BSD-3-Clause
"""The kernels of cross_covariance that tests/helpers/gpu_check.py compiles."""

from collections.abc import Iterator
from typing import Any

from rainbow_fast.triton_kernels.activations import KEEP_PRECISION
from rainbow_fast.triton_kernels.cross_covariance import (
    CHAIN,
    MACHINES,
    Capacity,
    edge,
    parts_kernel,
    products_kernel,
    warps,
)
from rainbow_fast.triton_kernels.rounding import full
from rainbow_fast.triton_kernels.variant import Variant

_SIDE = ("channel", "image", "line", "position", "positions", "lines")
CASES = {  # dtype, channels, activation, whether channels have stride 1, axes, aligned, centred, symmetric
    "bf16 maps": ("bf16", 128, "identity", False, 2, True, False, False),
    "bf16 maps relu": ("bf16", 128, "relu", False, 2, True, False, True),
    "bf16 rows": ("bf16", 128, "identity", True, 1, True, False, False),
    "bf16 7 x 7": ("bf16", 128, "identity", False, 2, False, False, False),
    "bf16 16 channels": ("bf16", 32, "relu", False, 2, True, False, True),
    "bf16 slices": ("bf16", 64, "identity", False, 3, False, False, False),
    "bf16 gelu, centred": ("bf16", 128, "gelu", False, 2, True, True, False),
    "fp32 maps": ("fp32", 128, "identity", False, 2, True, False, False),
    "fp32 rows": ("fp32", 128, "identity", True, 1, True, False, True),
    "fp32 in two terms": ("fp32", 128, "identity", False, 2, True, False, False),
    "fp32 16 channels": ("fp32", 32, "identity", False, 2, True, False, True),
    "fp32 7 x 7 tanh, centred": ("fp32", 128, "tanh", False, 2, False, True, False),
    "fp64 maps": ("fp64", 64, "identity", False, 2, True, False, False),
    "fp64 7 x 7": ("fp64", 64, "identity", False, 2, False, False, False),
    "fp64 rows cos, centred": ("fp64", 64, "cos", True, 1, True, True, True),
}


def variants() -> Iterator[Variant]:
    for target, family in MACHINES.items():
        for name, case in CASES.items():
            if case[1] < 64 and target in ("sm_90", "sm_100"):
                continue  # these tiles are too small for the matrix instructions of the target, and use those of sm_80
            yield _variant(name, target, family, *case)
    types = {"out": "*fp64", "parts": "*fp32", **dict.fromkeys(("ld", "d", "m", "count", "size", "s_row"), "i32")}
    constants = {"s_column": 1, "SYMMETRIC": True, "PARTS": 64, "ENTRIES": 32}
    yield Variant("cross_covariance parts", parts_kernel, types, constants, {"num_warps": 4}, ("out", "parts"))


def _variant(
    name: str, target: str, family: Capacity, dtype: str, channels: int, activation: str, beside: bool, axes: int,
    aligned: bool, centred: bool, symmetric: bool,
) -> Variant:  # fmt: skip
    keep = not centred and (dtype != "bf16" or activation in KEEP_PRECISION)
    plan = family.double if dtype == "fp64" else family.half if dtype == "bf16" and keep else family.single
    rows, columns = edge(channels, plan.rows), edge(channels, plan.columns)
    wide, ragged = "fp64" if dtype == "fp64" else "fp32", axes > 1 and not aligned
    step = plan.step // 2 if ragged else plan.step
    types = {"parts": f"*{wide}", **dict.fromkeys(("samples", "each", "d", "m"), "i32")}
    constants: dict[str, Any] = {"Y_ALONG": int(ragged)}
    multiples = ["parts", "each", "d", "m", *(["samples"] if aligned else [])]
    for side in "xy":
        types |= {side: f"*{dtype}", f"{side}_shift": f"*{wide}", f"{side}_sums": "*fp64"}
        types |= {f"{side}_{word}": "i32" for word in _SIDE}
        constants |= {f"{side}_{'channel' if beside else 'position'}": 1, f"{side.upper()}_AXES": axes}
        constants |= {f"{side.upper()}_SHIFTED": centred, f"{side.upper()}_SUMS": centred}
        constants |= {f"{side}_lines": 1} if axes < 3 else {}
        multiples += [side, f"{side}_shift", f"{side}_sums"]
        multiples += [f"{side}_{word}" for word in _SIDE if aligned and f"{side}_{word}" not in constants]
    types = {key: value for key, value in types.items() if key not in constants}
    constants |= {
        "SYMMETRIC": symmetric, "KEEP": keep, "ACTIVATION": activation, "SLOPE": 0.0,
        "PRECISION": "high" if "two terms" in name else full(target),
        "ROWS": rows, "COLUMNS": columns, "STEP": step, "CHAIN": CHAIN // step,
    }  # fmt: skip
    options = {"num_warps": warps(rows, columns), "num_stages": plan.stages}
    return Variant(
        f"cross_covariance {name}", products_kernel, types, constants, options, tuple(multiples), products=True,
        targets=(target,),
    )  # fmt: skip
