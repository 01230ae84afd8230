# SPDX-License-Identifier: BSD-3-Clause
"""The kernels for aarch64, cross-compiled and run under qemu: `make aarch64`. A program, not a pytest file.

It needs g++-aarch64-linux-gnu, qemu-user and the extension of this machine. The emulated process makes the calls of
`sanitize_calls.py`. Results are compared with float64, and one thread and two threads must give the same bits. G must
have the bits of the levels of this machine. The program also reads the machine code: the inner loop of a product has
one fused multiply-add of vectors for each accumulator of the tile, and stores no vector. Emulation says nothing about
speed.
"""

import argparse
import os
import re
import shlex
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
from extensions import ROOT, installed, load
from sanitize import check
from sanitize_calls import KERNELS
from sanitize_draw import Draw

sys.path.insert(0, str(ROOT))
import compilers  # noqa: E402

FOLDER = ROOT / "build" / "aarch64"
CXX = shlex.split(os.environ.get("AARCH64_CXX") or "aarch64-linux-gnu-g++")
OBJDUMP = os.environ.get("AARCH64_OBJDUMP") or "aarch64-linux-gnu-objdump"
QEMU = shlex.split(os.environ.get("AARCH64_RUN") or "qemu-aarch64")
TILE = 20  # accumulators of the largest tile of csrc/cpu/gemm.h
GENERATORS = ("gaussian", "uniform")  # of the same bits on every machine


def build() -> Path:
    """Build the program that makes the calls. It is linked statically, so that it needs no libraries of aarch64."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    flags = [*compilers.CXX_FLAGS.split(), "-O3", "-DRF_ISA=baseline", "-Icsrc"]
    sources = [
        *ROOT.glob("csrc/cpu/*.cpp"),
        *(ROOT / f"csrc/{name}.cpp" for name in ("caches", "scratch")),
        ROOT / "tests/helpers/aarch64_calls.cpp",
    ]

    def compiled(source: Path) -> Path:
        target = FOLDER / f"{source.stem}.o"
        subprocess.run([*CXX, *flags, "-c", source, "-o", target], cwd=ROOT, check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    program = FOLDER / "calls"
    linked = subprocess.run([*CXX, "-static", "-fopenmp", *objects, "-o", program], capture_output=True, text=True)
    if linked.returncode:  # a success warns about dlopen in a static program
        sys.exit(linked.stderr)
    return program


# --- the calls ---


class Emulated:
    """The process that makes calls: it gets arguments and memory, and sends the memory back."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([*QEMU, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, kernel: str, draw: Draw, arguments: tuple) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        blocks = [memory.seen for memory in draw.arrays]
        parts = [struct.pack("q", len(kernel)), kernel.encode(), struct.pack("q", len(blocks))]
        for block in blocks:
            parts += [struct.pack("q", block.size), block.tobytes()]
        self.process.stdin.write(b"".join([*parts, *words(arguments, blocks)]))
        self.process.stdin.flush()
        for block in blocks:
            answer = self.process.stdout.read(block.size)
            if len(answer) < block.size:
                sys.exit(f"{kernel}{arguments}: the process has ended with status {self.process.wait()}")
            block[:] = np.frombuffer(answer, np.uint8)


def words(argument: object, blocks: list[np.ndarray]) -> Iterator[bytes]:
    """Arguments as aarch64_calls.cpp reads them. An address in a block is sent with the block and the offset."""
    if isinstance(argument, tuple | list):
        if isinstance(argument, list):
            yield struct.pack("qqq", len(argument), -1, 0)
        for member in argument:
            yield from words(member, blocks)
    elif isinstance(argument, float):
        yield struct.pack("dqq", argument, -1, 0)
    else:
        number = int(argument)  # type: ignore[call-overload]
        offsets = [number - block.ctypes.data for block in blocks]
        inside = [i for i, block in enumerate(blocks) if 0 <= offsets[i] < max(block.size, 1)]
        block, offset = (inside[0], offsets[inside[0]]) if inside else (-1, 0)
        yield struct.pack("qqq", number, block, offset)


def check_bits(native: ModuleType, emulated: Emulated, kernel: str, seed: str) -> None:
    blocks = []
    for run in (lambda kernel, draw, arguments: getattr(native, kernel)(*arguments), emulated.call):
        draw = Draw(seed)
        arguments, [expected] = KERNELS[kernel](native, draw)
        run(kernel, draw, (*arguments, 1))
        blocks.append(expected.memory.block)
    if (blocks[0] != blocks[1]).any():
        sys.exit(f"{seed}: {kernel}{arguments} has other bits than on this machine")


# --- the machine code ---


def loops(function: str) -> Iterator[list[str]]:
    """The instructions of each innermost loop, from the target of a backward jump to the jump."""
    lines = re.findall(r"^ *([0-9a-f]+):\t(.*)$", function, re.MULTILINE)
    numbers = {address: number for number, (address, _) in enumerate(lines)}
    spans = []
    for number, (_, text) in enumerate(lines):
        jump = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\t.*?([0-9a-f]+) <", text)
        if jump and numbers.get(jump[1], len(lines)) <= number:
            spans.append((numbers[jump[1]], number))
    for start, end in spans:
        if not any((start, end) != other and start <= other[0] and other[1] <= end for other in spans):
            yield [text for _, text in lines[start : end + 1]]


def check_inner_loops() -> None:
    """Check all kernels that are products. Their loops may read an integer from the stack, but no vector."""
    for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        command = [OBJDUMP, "-d", "--no-show-raw-insn", FOLDER / f"{source.stem}.o"]
        assembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        functions = re.split(r"^[0-9a-f]+ <.*>:$", assembly, flags=re.MULTILINE)
        innermost = [loop for function in functions for loop in loops(function)]
        tiles = [loop for loop in innermost if sum("fmla\t" in line for line in loop) == TILE]
        for loop in tiles:
            if spilled := [line for line in loop if re.search(r"\bq\d+.*\[sp", line)]:
                sys.exit(f"{source.name}: an inner loop leaves the registers: {spilled}")
        if source.stem in GENERATORS and re.search(r"\tf(?:n?madd|n?msub|mla|mls)\t", assembly):
            sys.exit(f"{source.name}: the generator has fused multiply-adds")
        if not tiles and source.stem not in (*GENERATORS, "kernels"):
            sys.exit(f"{source.name}: no loop of {TILE} fused multiply-adds")
        if tiles:
            shortest = min(map(len, tiles))
            print(f"{source.name}: {len(tiles)} loops of {TILE} fused multiply-adds, {shortest} instructions at least")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10, help="of each kernel")
    parser.add_argument("--seed", default="", help="any text, for other calls")
    options = parser.parse_args()
    np.seterr(all="ignore")  # some numbers are infinite
    native = load(installed(), "native")
    emulated = Emulated(build())
    check_inner_loops()
    for level in native.levels():
        native.use(level)
        for call in range(options.calls):
            for kernel in GENERATORS:
                check_bits(native, emulated, kernel, f"{kernel} {call}{options.seed}")
    print(f"{' and '.join(GENERATORS)}: the bits of {', '.join(native.levels())} in {options.calls} calls")
    for kernel in KERNELS:
        started = time.perf_counter()
        for call in range(options.calls):
            check(native, kernel, f"{kernel} {call}{options.seed}", emulated.call)
        print(f"{options.calls} calls of {kernel} in {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
