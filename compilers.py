# SPDX-License-Identifier: BSD-3-Clause
"""The compilers of setup.py: the C++ compiler with the instruction-set levels, and nvcc with the GPU architectures that
it can compile for.

nvcc is asked which architectures it knows. Then it compiles an empty kernel with the headers, flags and host compiler
of the build. If this fails, one line says why, and the package is built without its CUDA kernels. With
RAINBOW_FAST_CUDA=1 it is an error.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

CXX_FLAGS = (
    "-std=c++20 -ffp-contract=off -fno-math-errno -fopenmp -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi "
    "-Wno-maybe-uninitialized -Wno-unknown-warning-option"  # the first is of GCC, the second of clang
)
LEVELS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS["avx2"] = "-mavx2 -mfma -mf16c"
    LEVELS["avx512"] = LEVELS["avx2"] + " -mavx512f -mavx512bw -mavx512dq -mavx512vl"
    LEVELS["avx512_bf16"] = LEVELS["avx512"] + " -mavx512bf16"
    LEVELS["amx"] = LEVELS["avx512_bf16"] + " -DRF_MATRIX_UNIT"
    LEVELS["amx_emulated"] = LEVELS["amx"] + " -DRF_MATRIX_UNIT_EMULATED"
# The sources of the kernels that levels above avx512 have themselves. They take the other kernels from avx512.
PAIRS = ("kernels", "cross_covariance", "sample_project_align")
UNIT = (*PAIRS, "random_features", "random_features_gradient", "polar")
OWN = {"avx512_bf16": PAIRS, "amx": UNIT, "amx_emulated": UNIT}
ARCHITECTURES = "80;90;100"
CUDA_FLAGS = (
    "-std=c++20 -O3 --fmad=false --threads 1 -Xcompiler -fPIC,-fvisibility=hidden -Icsrc -DRF_ISA=cuda -DRF_CUDA=1"
)
PLACES = "NVCC, CUDA_HOME/bin, PATH or NVIDIA's Python packages"  # where nvcc is searched
PROBE = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n__global__ void probe() {}\n"


class Unusable(Exception):
    """Why nvcc cannot compile the kernels, in one line."""


class Cuda(NamedTuple):
    """The command that compiles CUDA, and its flags."""

    nvcc: list[str]
    flags: list[str]


def cxx_compiler() -> list[str] | None:
    """The command that compiles C++: CXX, else the first that is installed, else None."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def chosen_levels() -> dict[str, str]:
    """The levels of this build, with their flags."""
    wanted = (os.environ.get("RAINBOW_FAST_LEVELS") or " ".join(LEVELS)).split()
    if unknown := [name for name in wanted if name not in LEVELS]:
        sys.exit(f"rainbow_fast: RAINBOW_FAST_LEVELS: no level {unknown[0]!r}: wanted some of {', '.join(LEVELS)}")
    needed = {"baseline", *wanted} | ({"avx512"} if OWN.keys() & set(wanted) else set())
    return {level: flags for level, flags in LEVELS.items() if level in needed}


def cuda_compiler(cxx: list[str]) -> Cuda | None:
    """The CUDA compiler, with host compiler `cxx`; None if it is not wanted, or if it fails: then a line says why."""
    wanted = os.environ.get("RAINBOW_FAST_CUDA")
    if wanted not in (None, "", "0", "1"):
        sys.exit(f"rainbow_fast: RAINBOW_FAST_CUDA={wanted!r}: wanted 0 or 1")
    if wanted == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        if wanted == "1":
            sys.exit(f"rainbow_fast: RAINBOW_FAST_CUDA=1, and no nvcc in {PLACES}")
        return None
    try:
        return usable(nvcc, cxx)
    except Unusable as why:
        if wanted == "1":
            sys.exit(f"rainbow_fast: RAINBOW_FAST_CUDA=1, and {why}")
        print(f"rainbow_fast: installing without the CUDA kernels: {why}", file=sys.stderr)
        return None


def find_nvcc() -> list[str] | None:
    """The command nvcc, from one of PLACES; None if it is not installed."""
    if os.environ.get("NVCC"):
        return shlex.split(os.environ["NVCC"])
    packages = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin"))
    folders = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ.get("PATH", ""), *map(str, packages)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    return [nvcc] if nvcc else None


def usable(nvcc: list[str], cxx: list[str]) -> Cuda:
    """nvcc with the flags of the wanted architectures that it knows; Unusable if it cannot compile an empty kernel."""
    command = [*nvcc, *host_compiler(nvcc, cxx)]
    wanted = (os.environ.get("RAINBOW_FAST_CUDA_ARCHS") or ARCHITECTURES).split(";")
    present = set(re.findall(r"compute_(\d+)", ask(command, "--list-gpu-arch")))
    chosen = [name for name in wanted if name.rstrip("af") in present]  # 90a and 100f are variants of 90 and 100
    if not chosen:
        raise Unusable(f"{nvcc[0]} knows none of the architectures {', '.join(wanted)}")
    codes = [f"arch=compute_{name},code=sm_{name}" for name in chosen]
    codes.append(f"arch=compute_{chosen[-1]},code=compute_{chosen[-1]}")
    flags = CUDA_FLAGS.split() + [word for code in codes for word in ("-gencode", code)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text(PROBE)
        ask(command, *flags, "-c", str(source), "-o", f"{folder}/probe.o")
    if missing := ", ".join(name for name in wanted if name not in chosen):
        print(f"rainbow_fast: {nvcc[0]} does not know the architectures {missing}: left out", file=sys.stderr)
    return Cuda(command, flags)


def host_compiler(nvcc: list[str], cxx: list[str]) -> list[str]:
    """The option that makes `cxx` the host compiler; none if the user chose one, or if `cxx` has several words."""
    chosen = [os.environ.get(f"NVCC_{name}", "") for name in ("CCBIN", "PREPEND_FLAGS", "APPEND_FLAGS")]
    other = chosen[0] or re.search("-ccbin|-compiler-bindir", " ".join([*nvcc, *chosen]))
    return [] if other or len(cxx) > 1 else ["-ccbin", *cxx]


def ask(nvcc: list[str], *arguments: str) -> str:
    """The output of nvcc; Unusable if it fails."""
    try:
        done = subprocess.run([*nvcc, *arguments], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise Unusable(f"{nvcc[0]}: {error.strerror}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        first = next((line for line in lines if re.search(r"\b(error|fatal)\b", line)), "".join(lines[:1]))
        raise Unusable(f"{nvcc[0]} failed: {first or f'exit status {done.returncode}'}")
    return done.stdout


def cuda_runtime(nvcc: list[str]) -> list[str]:
    """The options that link the CUDA runtime statically: a shared one would have to be that of torch."""
    text = subprocess.run([*nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    folders = re.findall(r'"(-L[^"]*)"', text)
    also = [folder.replace("/lib64", "/lib") for folder in folders]  # where NVIDIA's Python packages keep it
    return [*dict.fromkeys(folders + also), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
