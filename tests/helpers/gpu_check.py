# SPDX-License-Identifier: BSD-3-Clause
"""Compile the Triton kernels for GPUs, without a GPU, and judge the result: `make gpu-check`.

Each module of rainbow_fast/triton_kernels lists in ``variants()`` what is compiled. A kernel passes if nothing spills,
matrix products run on tensor cores, the generator is not contracted to fused multiply-adds, and as many programs fit on
a multiprocessor as its design assumes.

The column /product is the number of instructions of a warp in the hot loop for each product of 16 x 8 x 16 numbers,
4,096 flops of tensor cores (gpu_loops.py). A float32 product of this size is three of them: three products of TF32 take
the time of six of bfloat16. The column /stage has the bytes that a block copies in one pass of this loop (CUDA only).
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from gpu_loops import Shape, hot_loop

ROOM = Path(__file__).resolve().parents[2] / "rainbow_fast" / "triton_kernels"
MODULES = [path.stem for path in sorted(ROOM.glob("*.py")) if "def variants" in path.read_text()]


@dataclass(frozen=True)
class Target:
    name: str
    triton: tuple[str, int | str, int]
    shared: int  # bytes that a program, and all programs of a multiprocessor, may use
    reserved: int  # further bytes that each program costs
    most: int  # bytes that one program may use, on the smallest of the NVIDIA GPUs that the target stands for
    tensor_core: str  # its instructions


KIB = 1024
TARGETS = [
    Target("sm_80", ("cuda", 80, 32), 164 * KIB, KIB, 99 * KIB, r"\b[HD]MMA\b"),
    Target("sm_90", ("cuda", 90, 32), 228 * KIB, KIB, 227 * KIB, r"\b(?:HGMMA|DMMA)\b"),
    Target("sm_100", ("cuda", 100, 32), 228 * KIB, KIB, 227 * KIB, r"\b(?:UTC\w*MMA|DMMA)\b"),
    Target("gfx942", ("hip", "gfx942", 64), 64 * KIB, 0, 64 * KIB, r"\bv_mfma_\w+"),
]


@dataclass
class Row:
    """The result of compiling one variant of a kernel."""

    kernel: str
    target: str
    registers: int = 0
    local: int = 0  # bytes of stack or scratch for each thread
    spills: int = 0  # instructions that move registers to and from memory
    shared: int = 0
    tensor_core: int = 0
    per_gaussian: float | None = None
    per_product: float | None = None
    stage: int | None = None  # bytes that a block copies asynchronously in one pass of the hot loop
    wrong: list[str] = field(default_factory=list)

    HEAD = (
        f"{'kernel':58} {'target':7} {'regs':>5} {'local':>6} {'spills':>6} {'shared':>7} {'mma':>5} {'/normal':>8} "
        f"{'/product':>8} {'/stage':>7}"
    )

    def __str__(self) -> str:
        per = " ".join(f"{'' if x is None else f'{x:.1f}':>8}" for x in (self.per_gaussian, self.per_product))
        numbers = f"{self.registers:5} {self.local:6} {self.spills:6} {self.shared:7} {self.tensor_core:5} {per}"
        stage = f"{'' if self.stage is None else self.stage:>7}"
        return f"{self.kernel:58} {self.target:7} {numbers} {stage}  {'; '.join(self.wrong)}"


def judge(row: Row, target: Target, *, threads: int, blocks: int, products: bool, most: float | None = None) -> None:
    """Write into row.wrong what is wrong with a kernel: `threads` a program, `blocks` programs a multiprocessor.

    It may have `most` instructions a product (None: any number).
    """
    if row.local or row.spills:
        row.wrong.append("uses local memory")
    if products and not row.tensor_core:
        row.wrong.append("no tensor-core instruction")
    if most is not None and (row.per_product is None or row.per_product > most):
        row.wrong.append(f"wanted at most {most} instructions a product")
    if row.shared > target.most:
        row.wrong.append(f"shared memory: one wants more than {target.most}")
    if blocks * (row.shared + target.reserved) > target.shared:
        row.wrong.append(f"shared memory: {blocks} programs want more than {target.shared}")
    # A register file has 64 Ki words; on gfx942 there are four, each with 512 words for each of 64 lanes.
    file = 512 * 64 * 4 if target.name.startswith("gfx") else 65536
    if blocks * threads * row.registers > file:
        row.wrong.append(f"registers: {blocks} programs want more than {file}")


# Flags that contract, approximate or reorder, in the text of LLVM and of PTX.
INEXACT = re.compile(r"\b(?:fast|contract|reassoc|afn)\b|llvm\.fma|\bfma\.|\.approx")
# An exact generator has fused multiply-adds only in square roots: two in each, and one in its slow path.
FUSED = re.compile(r"\b(?:FFMA2?|v_(?:pk_)?(?:fma|fmac|mad|mac)_f32)\b")
ROOT = re.compile(r"\b(?:MUFU\.RSQ|v_sqrt_f32)")
CALL = "CALL.REL"  # the slow path of a square root, which none of our numbers takes: five instructions and a subroutine
SLOW = 5


def executed(sass: str) -> int:
    """The number of instructions that run in straight code, without the slow path of square roots."""
    body = sass.split("EXIT")[0] if sass.count(CALL) else sass
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", body, re.M)) - SLOW * sass.count(CALL)


def tool(name: str, *arguments: str) -> str:
    import triton.backends.nvidia as nvidia

    command = [str(Path(nvidia.__path__[0]) / "bin" / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compiled(variant, target: Target) -> dict:
    """The stages of Triton by name, and `shared`, the bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    signature = {
        p.name: "constexpr" if p.name in variant.constants else variant.types.get(p.name) or p.annotation_type
        for p in kernel.params
    }
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=variant.constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget(*target.triton), options=variant.options)
    return {**binary.asm, "shared": binary.metadata.shared}


def check(module: str, index: int, target: Target) -> Row:
    variant = list(importlib.import_module(f"rainbow_fast.triton_kernels.{module}").variants())[index]
    row = Row(variant.name, target.name)
    try:
        stages = compiled(variant, target)
    except Exception as error:  # every error of the compiler becomes a line of the table
        row.wrong.append(f"does not compile: {(str(error).splitlines() or [repr(error)])[-1]}")
        return row
    row.shared = stages["shared"]
    if "amdgcn" in stages:
        text = stages["amdgcn"]
        number = {name: int(value) for name, value in re.findall(r"^; (\w+): (\d+)$", text, re.M)}
        row.registers, row.local = number["TotalNumVgprs"], number["ScratchSize"]
        row.spills = sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)))
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(stages["cubin"])
            file.flush()
            usage = tool("cuobjdump", "-res-usage", file.name)
            text = tool("nvdisasm", "-c", file.name)
        row.registers, row.local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
        row.spills = len(re.findall(r"\b(?:LDL|STL)\b", text))
        if variant.gaussians and not variant.products:
            row.per_gaussian = executed(text) / variant.gaussians
        if hot := hot_loop(text, Shape(products=variant.inner)):
            row.per_product = hot.per_unit
    row.tensor_core = len(re.findall(target.tensor_core, text))
    if variant.gaussians:
        inexact = INEXACT.findall(stages["llir"] + stages.get("ptx", ""))
        if len(FUSED.findall(text)) > 2 * len(ROOT.findall(text)) + 1:
            inexact.append("fused multiply-adds")
        if inexact:
            row.wrong.append(f"the generator is not exact: {inexact[0]}")
    if row.per_gaussian and variant.most and row.per_gaussian > variant.most:
        row.wrong.append(f"wanted at most {variant.most} instructions a normal")
    threads = variant.options["num_warps"] * target.triton[2]
    judge(row, target, threads=threads, blocks=variant.blocks, products=variant.products)
    return row


def work(only: str) -> Iterator[tuple[str, int, Target]]:
    for module in MODULES:
        for index, variant in enumerate(importlib.import_module(f"rainbow_fast.triton_kernels.{module}").variants()):
            for target in TARGETS:
                if re.search(only, variant.name) and (variant.targets is None or target.name in variant.targets):
                    yield module, index, target


def main(only: str = "") -> int:
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    chosen = list(work(only))
    if not chosen:
        print(f"no kernel's name holds {only!r}")
        return 1
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        print(Row.HEAD)
        wrong = 0
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            for row in pool.map(check, *zip(*chosen, strict=True)):
                print(row, flush=True)
                wrong += bool(row.wrong)
    print(f"{wrong} kernels fall short" if wrong else "all kernels pass")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
