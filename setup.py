# SPDX-License-Identifier: BSD-3-Clause
"""Builds rainbow_fast._C: csrc/*.cpp once, csrc/cpu/*.cpp once for each instruction-set level (into build/isa/LEVEL/).

A file dropped into csrc/cpu is found by itself. Objects are kept, and made again when their source, any header, this
file or the compiler changes. CXX names the compiler; without one the package installs without its kernels.
RAINBOW_FAST_SANITIZE=1 makes the build that tests/sanitize.py runs, all of it in build/sanitize/.
"""

import os
import platform
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


def run(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"rainbow_fast: this failed: {shlex.join(command)}")


class BuildKernels(build_ext):
    """Compiles in parallel what is out of date, and links it all."""

    def build_extension(self, ext: Extension) -> None:
        cxx = compiler()
        assert cxx is not None
        common = [ROOT / "setup.py", toolchain(cxx), *ROOT.glob("csrc/**/*.h")]
        self.changed = max(path.stat().st_mtime for path in common)
        once = FLAGS.split() + INCLUDES + ["-DRF_X86=1"] * ("avx2" in LEVELS)
        jobs = [(source, f"{BUILD}/{Path(source).stem}.o", once) for source in ext.sources if "csrc/cpu/" not in source]
        for level, flags in LEVELS.items():
            each = [*FLAGS.split(), "-Icsrc", f"-DRF_ISA={level}", *flags.split()]
            jobs += [(s, f"{BUILD}/isa/{level}/{Path(s).stem}.o", each) for s in ext.sources if "csrc/cpu/" in s]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.compile(cxx, *job), jobs))
        target = ROOT / BUILD / "_C.so" if SANITIZE else Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        run(
            [
                *cxx,
                *OPTIMISE.split(),
                "-shared",
                "-fopenmp",
                *(made for _, made, _ in jobs),
                "-o",
                str(target.resolve()),
            ]
        )

    def compile(self, cxx: list[str], source: str, made: str, flags: list[str]) -> None:
        path = ROOT / made
        if path.exists() and path.stat().st_mtime > max(self.changed, (ROOT / source).stat().st_mtime):
            return
        sys.stdout.write(f"{made}\n")  # one call, so that threads do not mix their lines
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()
        run([*cxx, *flags, "-c", source, "-o", made])
        os.utime(path, (started, started))  # a source edited while it was compiled is newer than its object


def toolchain(cxx: list[str]) -> Path:
    """A file that says what compiles: written when that changes, so that its age is the age of the toolchain."""
    path, text = (
        ROOT / BUILD / "toolchain",
        f"{shlex.join(cxx)}, pybind11 {pybind11.__version__}, Python {sys.version}\n",
    )
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
