# SPDX-License-Identifier: BSD-3-Clause
"""Triton neither folds the promotion out of tensor cores into one chain of sums, nor simplifies it."""

import os
import re

import pytest

pytest.importorskip("triton", reason="needs triton, which compiles without a GPU")
from gpu_check import TARGETS, compiled  # noqa: E402

from rainbow_fast.triton_kernels.cross_covariance import CHAIN  # noqa: E402
from rainbow_fast.triton_kernels.cross_covariance_variants import variants  # noqa: E402
from rainbow_fast.triton_kernels.random_features import variants as random_features_variants  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("case", ["bf16 maps", "fp32 maps"])
def test_tensor_cores_are_left_every_chain(case: str, target: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    [variant] = [v for v in variants() if v.name == f"cross_covariance {case}" and v.targets == (target,)]
    stages = compiled(variant, next(t for t in TARGETS if t.name == target))
    rows, columns, step, every = (variant.constants[name] for name in ("ROWS", "COLUMNS", "STEP", "CHAIN"))
    assert step * every == CHAIN == 128
    # Three operations on the whole tile, under a condition: total = high + low, lost = total - high, low - lost.
    tile = rf"tensor<{rows}x{columns}xf32, [^>]*>"
    branch = re.search(rf"scf\.if (?:(?!scf\.if).)*?arith\.addf[^\n]*{tile}(.*?)scf\.yield", stages["ttgir"], re.S)
    assert branch and len(re.findall(rf"arith\.subf[^\n]*{tile}", branch[1])) == 2
    # The assembler still gets them, once for each entry of a thread.
    share = rows * columns // (32 * variant.options["num_warps"])
    subtractions = re.findall(r"\bsub(?:\.rn)?\.f32(x2)?\b", stages["ptx"])
    assert len(subtractions) + subtractions.count("x2") >= 2 * share


@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_no_sum_over_samples_or_ranks_stays_in_tensor_cores(target: str, tmp_path, monkeypatch) -> None:
    """No product adds to a value carried by a loop: on sm_100 its accumulator is overwritten, elsewhere it is zeros."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    name = "random_features_covariance long rank fp32"
    [variant] = [v for v in random_features_variants() if v.name == name and v.targets == (target,)]
    text = compiled(variant, next(t for t in TARGETS if t.name == target))["ttgir"]
    carried = {name for pairs in re.findall(r"iter_args\((.*?)\) ->", text) for name in re.findall(r"(%\w+) =", pairs)}
    dots = re.findall(r"(= tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma) (%[^:{\n]*)", text)
    products = [(name, operands.replace(" ", "").split(",")) for name, operands in dots]
    assert len(products) >= 2 and carried and not carried & {operands[2] for _, operands in products}
    overwrites = [operands[3] for name, operands in products if "gen5" in name]
    assert 3 * overwrites.count("%false") == len(overwrites)  # the first of three products in TF32
