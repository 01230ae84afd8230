# SPDX-License-Identifier: BSD-3-Clause
"""A toy package for tests of setup.py: an empty module and one kernel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = """#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""


def write_toy(folder: Path) -> None:
    for name in ("setup.py", "compilers.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "rainbow_fast").mkdir()
    cpu = folder / "csrc" / "cpu"
    cpu.mkdir(parents=True)
    (cpu.parent / "bind.cpp").write_text(MODULE)
    (cpu.parent / "kernels.h").write_text("")
    (cpu / "kernel.h").write_text("namespace rf::RF_ISA { int kernel(); }\n")
    (cpu / "kernel.cpp").write_text('#include "kernel.h"\nint rf::RF_ISA::kernel() { return 1; }\n')


def write_cuda_toy(folder: Path) -> None:
    """Write a toy with a CUDA kernel. Its module can be imported only if it is linked with the CUDA runtime."""
    write_toy(folder)
    (folder / "csrc/cuda").mkdir()
    (folder / "csrc/cuda/kernel.cu").write_text("__global__ void kernel() {}\nvoid launch() { kernel<<<1, 1>>>(); }\n")
    with (folder / "csrc/bind.cpp").open("a") as bind:
        bind.write("#ifdef RF_CUDA\nvoid launch();\nvoid* used = (void*)launch;\n#endif\n")


def build(toy: Path, **environment: str) -> tuple[int, list[str], str]:
    """Build the toy; returns the exit status, the compiled objects and the text on stderr."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    variables = {**os.environ, "RAINBOW_FAST_CUDA": "0", **environment}
    done = subprocess.run(command, cwd=toy, env=variables, capture_output=True, text=True)
    return done.returncode, sorted(re.findall(r"^build/\S+\.o$", done.stdout, re.MULTILINE)), done.stderr
