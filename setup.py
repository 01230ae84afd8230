# SPDX-License-Identifier: BSD-3-Clause
"""Builds rainbow_fast._C: csrc/*.cpp once, csrc/cpu/*.cpp once for each instruction-set level (into build/isa/LEVEL/),
and csrc/cuda/*.cu (into build/cuda/) where nvcc is found.

A file dropped into csrc/cpu or csrc/cuda is found by itself. Objects are kept, and made again when their source, any
header, this file or a compiler changes. CXX names the compiler; without one the package installs without its kernels.
RAINBOW_FAST_CUDA=0 leaves the CUDA kernels out, 1 fails where there is no nvcc (NVCC names it; else CUDA_HOME/bin, PATH
and NVIDIA's Python packages are searched); RAINBOW_FAST_CUDA_ARCHS="80;90;100" are the architectures, the last one also
as PTX for those to come.
RAINBOW_FAST_SANITIZE=1 makes the build that tests/helpers/sanitize.py runs, all of it in build/sanitize/, of the CPU
alone.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SANITIZE = bool(os.environ.get("RAINBOW_FAST_SANITIZE"))
BUILD = "build/sanitize" if SANITIZE else "build"
OPTIMISE = "-Og -g1 -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all" if SANITIZE else "-O3"
FLAGS = (
    f"-std=c++20 {OPTIMISE} -ffp-contract=off -fno-math-errno -fopenmp -fPIC -fvisibility=hidden "
    "-Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized"
)
INCLUDES = ["-Icsrc", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]

ARCHITECTURES = os.environ.get("RAINBOW_FAST_CUDA_ARCHS", "80;90;100").split(";")
CUDA_FLAGS = (
    "-std=c++20 -O3 --fmad=false --threads 1 -Xcompiler -fPIC,-fvisibility=hidden -Icsrc -DRF_ISA=cuda -DRF_CUDA=1 "
    + " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES)
    + f" -gencode arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}"
)

LEVELS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS["avx2"] = "-mavx2 -mfma -mf16c"
    LEVELS["avx512"] = LEVELS["avx2"] + " -mavx512f -mavx512bw -mavx512dq -mavx512vl"
    LEVELS["avx512_bf16"] = LEVELS["avx512"] + " -mavx512bf16"


def compiler() -> list[str] | None:
    """The command that compiles C++: CXX, else the first that is installed, else None."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def cuda_compiler() -> list[str] | None:
    """The command that compiles CUDA; None where there is none, or it is not wanted."""
    wanted = os.environ.get("RAINBOW_FAST_CUDA")
    if wanted not in (None, "", "0", "1"):
        sys.exit(f"rainbow_fast: RAINBOW_FAST_CUDA={wanted!r}: wanted 0 or 1")
    if wanted == "0" or SANITIZE:
        return None
    if os.environ.get("NVCC"):
        return shlex.split(os.environ["NVCC"])
    packages = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin"))
    folders = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ.get("PATH", ""), *map(str, packages)]
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    if found is None and wanted == "1":
        sys.exit(
            "rainbow_fast: RAINBOW_FAST_CUDA=1, and no nvcc in NVCC, CUDA_HOME/bin, PATH or NVIDIA's Python packages"
        )
    return [found] if found else None


def cuda_runtime(nvcc: list[str]) -> list[str]:
    """What links the CUDA runtime statically: a library of it would have to be the one that torch has loaded."""
    text = subprocess.run([*nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    folders = re.findall(r'"(-L[^"]*)"', text)
    also = [folder.replace("/lib64", "/lib") for folder in folders]  # where NVIDIA's Python packages keep it
    return [*dict.fromkeys(folders + also), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]


def run(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"rainbow_fast: this failed: {shlex.join(command)}")


class BuildKernels(build_ext):
    """Compiles in parallel what is out of date, and links it all."""

    def build_extension(self, ext: Extension) -> None:
        cxx, nvcc = compiler(), cuda_compiler()
        assert cxx is not None
        common = [ROOT / "setup.py", toolchain(cxx, nvcc), *ROOT.glob("csrc/*.h")]
        self.common = {room: common + list(ROOT.glob(f"csrc/{room}/*.h")) for room in ("", "cpu", "cuda")}
        once = FLAGS.split() + INCLUDES + ["-DRF_X86=1"] * ("avx2" in LEVELS) + ["-DRF_CUDA=1"] * (nvcc is not None)
        jobs = [(cxx, s, f"{BUILD}/{Path(s).stem}.o", once) for s in ext.sources if Path(s).parent.name == "csrc"]
        for source in ROOT.glob("csrc/cuda/*.cu") if nvcc else ():
            made = f"{BUILD}/cuda/{source.stem}.o"
            jobs.append((nvcc, str(source.relative_to(ROOT)), made, CUDA_FLAGS.split()))
        for level, flags in LEVELS.items():
            each = [*FLAGS.split(), "-Icsrc", f"-DRF_ISA={level}", *flags.split()]
            jobs += [(cxx, s, f"{BUILD}/isa/{level}/{Path(s).stem}.o", each) for s in ext.sources if "csrc/cpu/" in s]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.compile(*job), jobs))
        target = ROOT / BUILD / "_C.so" if SANITIZE else Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        run(
            [
                *cxx,
                *OPTIMISE.split(),
                "-shared",
                "-fopenmp",
                *(made for _, _, made, _ in jobs),
                *(cuda_runtime(nvcc) if nvcc else ()),
                "-o",
                str(target.resolve()),
            ]
        )

    def compile(self, command: list[str], source: str, made: str, flags: list[str]) -> None:
        path, room = ROOT / made, Path(source).parent.name
        read = [*self.common["" if room == "csrc" else room], ROOT / source]
        if path.exists() and path.stat().st_mtime > max(file.stat().st_mtime for file in read):
            return
        sys.stdout.write(f"{made}\n")  # one call, so that threads do not mix their lines
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()
        run([*command, *flags, "-c", source, "-o", made])
        os.utime(path, (started, started))  # a source edited while it was compiled is newer than its object


def toolchain(cxx: list[str], nvcc: list[str] | None) -> Path:
    """A file that says what compiles: written when that changes, so that its age is the age of the toolchain."""
    path = ROOT / BUILD / "toolchain"
    text = f"{shlex.join(cxx)}, pybind11 {pybind11.__version__}, Python {sys.version}\n"
    if nvcc:
        text += subprocess.run([*nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


sources = sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])
if compiler() is None:
    print("rainbow_fast: no C++ compiler found: installing without the compiled kernels", file=sys.stderr)
    sources = []
setup(
    ext_modules=[Extension("rainbow_fast._C", sources)] if sources else [],
    cmdclass={"build_ext": BuildKernels},
)
