# SPDX-License-Identifier: BSD-3-Clause
"""Builds csrc/cuda/*.cu for the CPU: the extension module _C, whose `cuda` is the emulation, in build/cuda_on_cpu/.

`python tests/cuda_on_cpu/build.py` builds it, with `--sanitize` under AddressSanitizer and UndefinedBehaviorSanitizer.
Objects are made again when their source, any header, this file or the compiler changes.
"""

import ctypes
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
JOBS = 2
FLAGS = (
    "-std=c++20 -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi "
    "-Wno-maybe-uninitialized -Wno-unknown-pragmas -DRF_CUDA=1 -DRF_ISA=cuda -Icsrc -Itests/cuda_on_cpu"
)
OPTIMISE = {
    False: "-O2",
    True: "-O1 -g1 -fsanitize=address,undefined -fsanitize-sections=rf_shared -fno-sanitize-recover=all",
}
INCLUDES = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
SOURCES = ["csrc/bind.cpp", "csrc/scratch.cpp", "csrc/cuda/*.cu", "tests/cuda_on_cpu/*.cpp", "tests/cuda_on_cpu/*.cu"]


def build(sanitize: bool = False) -> Path:
    """The module's path, once it is up to date."""
    cxx = shlex.split(os.environ.get("CXX") or "c++")
    folder = ROOT / "build" / ("cuda_on_cpu_sanitize" if sanitize else "cuda_on_cpu")
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*cxx, *OPTIMISE[sanitize].split()]
    used, said = folder / "command", f"{shlex.join(flags)} pybind11 {pybind11.__version__} Python {sys.version}"
    if not used.exists() or used.read_text() != said:
        used.write_text(said)
    common = [used, Path(__file__), *ROOT.glob("csrc/**/*.h"), *HERE.glob("*.h")]
    changed = max(path.stat().st_mtime for path in common)
    jobs = {path: folder / f"{path.name}.o" for pattern in SOURCES for path in sorted(ROOT.glob(pattern))}

    def compile(source: Path, made: Path) -> None:
        seen = max(changed, source.stat().st_mtime)
        if not made.exists() or made.stat().st_mtime != seen:
            binding = INCLUDES if source.name == "bind.cpp" else []
            run([*flags, *FLAGS.split(), *binding, "-x", "c++", "-c", source, "-o", made])
            os.utime(made, (seen, seen))  # of the sources that were there when it began

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(compile, *zip(*jobs.items(), strict=True)))
    target = folder / "_C.so"
    newest = max(path.stat().st_mtime for path in jobs.values())
    if not target.exists() or target.stat().st_mtime < newest or linked(folder) != sorted(map(str, jobs)):
        run([*flags, "-shared", *jobs.values(), "-o", target])
        (folder / "linked").write_text("\n".join(sorted(map(str, jobs))))
    return target


def linked(folder: Path) -> list[str]:
    path = folder / "linked"
    return path.read_text().splitlines() if path.exists() else []


def run(command: list) -> None:
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"this failed: {shlex.join(map(str, command))}\n{done.stderr}")
    sys.stderr.write(done.stderr)


@cache
def load(sanitize: bool = False) -> ModuleType:
    """The extension: what `load().cuda` takes is what `rainbow_fast._C.cuda` takes, in the memory of the CPU."""
    spec = importlib.util.spec_from_file_location("_C", build(sanitize))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def library(sanitize: bool = False) -> ctypes.CDLL:
    """The same file, for what is not of the package: `set_order`, and the toy kernels."""
    return ctypes.CDLL(str(build(sanitize)))


def set_order(seed: int) -> None:
    """In which order blocks, warps and lanes run: 0 forward, 1 backward, else one that this seed draws."""
    library().rf_set_order(seed)


if __name__ == "__main__":
    print(build("--sanitize" in sys.argv))
