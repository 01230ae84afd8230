# SPDX-License-Identifier: BSD-3-Clause
"""Builds rainbow_fast._C: csrc/*.cpp once, csrc/cpu/*.cpp once for each instruction-set level (into build/isa/LEVEL/)
that does not take its kernels from the level avx512, and csrc/cuda/*.cu (into build/cuda/) if nvcc can compile them.

A file dropped into csrc/cpu or csrc/cuda is found by itself. Objects are kept, and made again when their source, any
header, the files of the build or a compiler changes. CXX names the compiler; without one the package installs without
its kernels. RAINBOW_FAST_CUDA=0 leaves the CUDA kernels out, 1 fails where they cannot be built (NVCC names nvcc; else
CUDA_HOME/bin, PATH and NVIDIA's Python packages are searched); RAINBOW_FAST_CUDA_ARCHS="80;90;100" are the
architectures, the last one also as PTX for those to come. RAINBOW_FAST_LEVELS="avx512 amx_emulated" builds these
instruction-set levels (default: all), with baseline, and with avx512 if one of them takes kernels from it.
RAINBOW_FAST_BUILD names the folder of the objects (default: build). Any other folder also gets the extension.
RAINBOW_FAST_SANITIZE=1 makes the build that tests/helpers/sanitize.py runs, all of it in build/sanitize/, of the CPU
alone.
"""

import os
import shlex
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
sys.path.insert(0, str(ROOT))  # a build frontend does not
from compilers import CXX_FLAGS, OWN, Cuda, chosen_levels, cuda_compiler, cuda_runtime, cxx_compiler  # noqa: E402

SANITIZE = bool(os.environ.get("RAINBOW_FAST_SANITIZE"))
BUILD = "build/sanitize" if SANITIZE else os.environ.get("RAINBOW_FAST_BUILD") or "build"
OPTIMISE = "-Og -g1 -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all" if SANITIZE else "-O3"
FLAGS = f"{OPTIMISE} {CXX_FLAGS}"
INCLUDES = ["-Icsrc", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]


def run(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"rainbow_fast: this failed: {shlex.join(command)}")


class BuildKernels(build_ext):
    """Compiles in parallel what is out of date, and links it all."""

    def build_extension(self, ext: Extension) -> None:
        cxx = cxx_compiler()
        assert cxx is not None
        cuda = None if SANITIZE else cuda_compiler(cxx)
        common = [ROOT / "setup.py", ROOT / "compilers.py", *ROOT.glob("csrc/*.h")]
        python = f"pybind11 {pybind11.__version__}, Python {sys.version}, CUDA {cuda is not None}"
        self.common = {
            "csrc": [*common, written("toolchain", shlex.join(cxx)), written("python", python)],
            "cpu": [*common, written("toolchain", shlex.join(cxx)), *ROOT.glob("csrc/cpu/*.h")],
        }
        if cuda:
            self.common["cuda"] = [*common, written("cuda/toolchain", nvcc_text(cuda)), *ROOT.glob("csrc/cuda/*.h")]
        levels = chosen_levels()
        once = FLAGS.split() + INCLUDES + ["-DRF_CUDA=1"] * (cuda is not None)
        jobs = [(cxx, s, f"{BUILD}/{Path(s).stem}.o", once) for s in ext.sources if Path(s).parent.name == "csrc"]
        for source in ROOT.glob("csrc/cuda/*.cu") if cuda else ():
            jobs.append((cuda.nvcc, str(source.relative_to(ROOT)), f"{BUILD}/cuda/{source.stem}.o", cuda.flags))
        for level, flags in levels.items():
            each = [*FLAGS.split(), "-Icsrc", f"-DRF_ISA={level}", *flags.split()]
            for source in filter(lambda s: "csrc/cpu/" in s, ext.sources):
                name = Path(source).stem
                if name in OWN.get(level, (name,)):
                    jobs.append((cxx, source, f"{BUILD}/isa/{level}/{name}.o", each))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.compile(*job), jobs))
        target = Path(self.get_ext_fullpath(ext.name)) if BUILD == "build" else ROOT / BUILD / "_C.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        run(
            [
                *cxx,
                *OPTIMISE.split(),
                "-shared",
                "-fopenmp",
                *(made for _, _, made, _ in jobs),
                *(cuda_runtime(cuda.nvcc) if cuda else ()),
                "-o",
                str(target.resolve()),
            ]
        )

    def compile(self, command: list[str], source: str, made: str, flags: list[str]) -> None:
        path, room = ROOT / made, Path(source).parent.name
        read = [*self.common[room], ROOT / source]
        if path.exists() and path.stat().st_mtime > max(file.stat().st_mtime for file in read):
            return
        sys.stdout.write(f"{made}\n")  # one call, so that threads do not mix their lines
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()
        run([*command, *flags, "-c", source, "-o", made])
        os.utime(path, (started, started))  # a source edited while it was compiled is newer than its object


def written(name: str, text: str) -> Path:
    """A file with this text: written when the text changes, so that its age is the age of what it says."""
    path = ROOT / BUILD / name
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def nvcc_text(cuda: Cuda) -> str:
    """What compiles the CUDA kernels. The same nvcc in another folder makes the same objects."""
    version = subprocess.run([*cuda.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return f"{version}{shlex.join([*cuda.nvcc[1:], *cuda.flags])}\n"


sources = sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])
if cxx_compiler() is None:
    print("rainbow_fast: no C++ compiler found: installing without the compiled kernels", file=sys.stderr)
    sources = []
setup(
    ext_modules=[Extension("rainbow_fast._C", sources)] if sources else [],
    cmdclass={"build_ext": BuildKernels},
)
