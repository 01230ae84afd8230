# SPDX-License-Identifier: BSD-3-Clause
"""The built objects: one namespace for each instruction set, no contracted products in the generator, one OpenMP."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sanitize
import torch

from rainbow_fast import backend

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "isa"
LEVELS = ["baseline", "avx2", "avx512", "avx512_bf16"]
BUILT = [level for level in LEVELS if (OBJECTS / level).is_dir()] or ["baseline"]

# A fused multiply-add: x86, then aarch64.
FUSED = re.compile(r"\bvfn?m(?:add|sub)\w*|\bf(?:n?madd|n?msub|mla|mls)\b")

if not (os.environ.get("CXX") or any(map(shutil.which, ["c++", "g++", "clang++"]))):
    pytest.skip("no C++ compiler here, so nothing was built", allow_module_level=True)


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- the objects ---


def strays(path: Path, level: str) -> list[str]:
    """The weak symbols of an object that are not in ``rf::<level>``.

    The linker keeps one copy of a weak symbol for the whole extension. If that copy came from an AVX-512 object, the
    baseline path would run it, on a machine that may not. Mangled names are read, where the namespace comes first:
    _ZN2rf4avx2..., after what marks a table, a typeinfo, a guard (T, GV, GR) or a local of a function (Z).
    """
    ours = re.compile(rf"_Z(?:T[VTISC]|GV|GR)?Z*N[rVKRO]*2rf{len(level)}{level}(?=\d|L|E|C|D)")
    # A pointer to the runtime's exception handler: data, the same in every object.
    data = "DW.ref.__gxx_personality_v0"
    symbols = [line.split() for line in output("nm", path).splitlines()]
    return [s[-1] for s in symbols if s[-2] in "WwVvu" and s[-1] != data and not ours.match(s[-1])]


@pytest.mark.parametrize("level", BUILT)
def test_weak_symbols_stay_in_their_namespace(level: str) -> None:
    for source in (ROOT / "csrc" / "cpu").glob("*.cpp"):
        path = OBJECTS / level / f"{source.stem}.o"
        assert path.exists(), f"{path.relative_to(ROOT)} is missing: python setup.py build_ext --inplace"
        assert strays(path, level) == []


@pytest.mark.parametrize(
    "code",
    [
        "inline int f() { static int n; return ++n; } int g() { return f(); }",
        "template <class T> struct S { int f() const { return 1; } }; int g() { return S<int>().f(); }",
        "struct S { virtual ~S() {} }; S s;",
    ],
    ids=["inline", "template", "virtual"],
)
def test_stray_weak_symbol_is_found(tmp_path: Path, code: str) -> None:
    counts = {}
    for place in ["rf::avx2", "rf::avx512", "elsewhere"]:
        (tmp_path / "toy.cpp").write_text(f"namespace {place} {{ {code} }}\n")
        output("c++", "-std=c++20", "-fPIC", "-c", tmp_path / "toy.cpp", "-o", tmp_path / "toy.o")
        counts[place] = len(strays(tmp_path / "toy.o", "avx2"))
    assert counts["rf::avx2"] == 0 and counts["rf::avx512"] == counts["elsewhere"] > 0


@pytest.mark.parametrize("level", BUILT)
def test_generator_has_no_fused_multiply_add(level: str) -> None:
    assert not FUSED.search(output("objdump", "-d", OBJECTS / level / "gaussian.o"))


@pytest.mark.parametrize("level", BUILT[1:])
def test_fused_multiply_add_is_found_where_it_is(level: str) -> None:
    assert FUSED.search(output("objdump", "-d", OBJECTS / level / "sample_project_align.o"))


# --- the choice of the instruction set ---


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", [*LEVELS, "sse9"])
def test_isa_can_be_forced_where_it_runs(level: str) -> None:
    present = backend.kernels().levels()
    done = python("import rainbow_fast; print(rainbow_fast.backend.isa)", RAINBOW_FAST_ISA=level)
    if level in present:
        assert done.stdout.strip() == level, done.stderr
    else:
        message = done.stderr.strip().splitlines()[-1]
        assert done.returncode and all(word in message for word in ["ImportError", "RAINBOW_FAST_ISA", level, *present])


def test_best_isa_is_taken_by_itself() -> None:
    done = python("import rainbow_fast; print(rainbow_fast.backend.isa)", RAINBOW_FAST_ISA="")
    assert done.stdout.strip() == backend.kernels().levels()[-1], done.stderr


def test_isa_that_this_machine_cannot_run_is_an_error() -> None:
    old_machine = SimpleNamespace(levels=lambda: ["baseline", "avx2"], use=lambda level: None)
    assert backend._select(old_machine, None) == "avx2"
    with pytest.raises(ImportError, match="RAINBOW_FAST_ISA.*avx512.*baseline, avx2"):
        backend._select(old_machine, "avx512")


# --- the sanitizers ---


def test_sanitizers_run_every_kernel() -> None:
    exported = {name for name in dir(backend.kernels()) if not name.startswith("_")}
    assert set(sanitize.KERNELS) == exported - sanitize.NO_KERNELS


# --- one OpenMP ---


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_one_libgomp() -> None:
    done = python(
        "import sys, torch, rainbow_fast._C\n"
        "assert 'sklearn' not in sys.modules, 'it brings an OpenMP of its own'\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}, sep='\\n')"
    )
    [library] = done.stdout.splitlines()
    assert Path(library).is_relative_to(Path(torch.__file__).resolve().parent), done.stderr


# --- setup.py, on a toy ---

MODULE = """#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "rainbow_fast").mkdir()
    cpu = tmp_path / "csrc" / "cpu"
    cpu.mkdir(parents=True)
    (cpu.parent / "bind.cpp").write_text(MODULE)
    (cpu.parent / "kernels.h").write_text("")
    (cpu / "kernel.h").write_text("namespace rf::RF_ISA { int kernel(); }\n")
    (cpu / "kernel.cpp").write_text('#include "kernel.h"\nint rf::RF_ISA::kernel() { return 1; }\n')
    return tmp_path


def build(toy: Path, **environment: str) -> tuple[int, list[str], str]:
    """Exit status, the objects compiled, and what was said on stderr."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    variables = {**os.environ, "RAINBOW_FAST_CUDA": "0", **environment}
    done = subprocess.run(command, cwd=toy, env=variables, capture_output=True, text=True)
    return done.returncode, sorted(re.findall(r"^build/\S+\.o$", done.stdout, re.MULTILINE)), done.stderr


def test_only_what_changed_is_compiled_again(toy: Path) -> None:
    kernels = sorted(f"build/isa/{level}/kernel.o" for level in BUILT)
    assert build(toy)[:2] == (0, ["build/bind.o", *kernels])
    assert list((toy / "rainbow_fast").glob("_C*.so"))
    assert build(toy)[:2] == (0, [])
    (toy / "csrc/cpu/kernel.cpp").touch()
    assert build(toy)[:2] == (0, kernels)
    (toy / "csrc/cpu/kernel.h").touch()
    assert build(toy)[:2] == (0, kernels)
    (toy / "csrc/kernels.h").touch()
    assert build(toy)[:2] == (0, ["build/bind.o", *kernels])


def test_sanitizers_have_a_folder_of_their_own(toy: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    subprocess.run(command, cwd=toy, env={**os.environ, "RAINBOW_FAST_SANITIZE": "1"}, check=True)
    files = {path.relative_to(toy).as_posix() for suffix in ("*.o", "*.so") for path in toy.rglob(suffix)}
    kernels = {f"build/sanitize/isa/{level}/kernel.o" for level in BUILT}
    assert files == {"build/sanitize/_C.so", "build/sanitize/bind.o", *kernels}


def test_compiler_that_fails_is_a_failed_build(toy: Path) -> None:
    (toy / "csrc/cpu/kernel.cpp").write_text("this is no C++\n")
    status, _, said = build(toy)
    assert status and "kernel.o" in said and not list((toy / "rainbow_fast").glob("_C*.so"))
    assert build(toy, CXX="no-such-compiler")[0]


def test_no_compiler_is_a_printed_line(toy: Path, tmp_path: Path) -> None:
    status, compiled, said = build(toy, CXX="", PATH=str(tmp_path))
    assert (status, compiled) == (0, []) and "no C++ compiler found" in said


# --- setup.py, with CUDA ---


@pytest.fixture
def cuda_toy(toy: Path) -> Path:
    """A kernel for a GPU, which the module is linked with: without the CUDA runtime it would not be imported."""
    (toy / "csrc/cuda").mkdir()
    (toy / "csrc/cuda/kernel.cu").write_text("__global__ void kernel() {}\nvoid launch() { kernel<<<1, 1>>>(); }\n")
    with (toy / "csrc/bind.cpp").open("a") as bind:
        bind.write("#ifdef RF_CUDA\nvoid launch();\nvoid* used = (void*)launch;\n#endif\n")
    return toy


def test_cuda_is_built_where_asked(cuda_toy: Path) -> None:
    chosen = {"RAINBOW_FAST_CUDA": "1", "RAINBOW_FAST_CUDA_ARCHS": "80"}
    status, compiled, said = build(cuda_toy, **chosen)
    assert status == 0 and "build/cuda/kernel.o" in compiled, said
    subprocess.run([sys.executable, "-c", "import rainbow_fast._C"], cwd=cuda_toy, check=True)
    assert build(cuda_toy, **chosen)[1] == []
    (cuda_toy / "csrc/cuda/kernel.cu").touch()
    assert build(cuda_toy, **chosen)[1] == ["build/cuda/kernel.o"]


def test_cuda_is_left_out_where_asked(cuda_toy: Path) -> None:
    status, compiled, said = build(cuda_toy, RAINBOW_FAST_CUDA="0")
    assert status == 0 and "build/cuda/kernel.o" not in compiled, said


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAINBOW_FAST_CUDA": "yes"}, "RAINBOW_FAST_CUDA='yes': wanted 0 or 1"),
        ({"RAINBOW_FAST_CUDA": "1", "NVCC": "no-such-nvcc"}, "no-such-nvcc"),
    ],
)
def test_cuda_that_cannot_be_built_is_a_failed_build(cuda_toy: Path, environment: dict[str, str], message: str) -> None:
    status, _, said = build(cuda_toy, **environment)
    assert status and message in said and not list((cuda_toy / "rainbow_fast").glob("_C*.so"))


def test_no_nvcc_is_an_error_where_cuda_is_asked_for(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a tree of its own: setup.py looks into the Python packages, too."""
    source = (toy / "setup.py").read_text().replace('glob("nvidia/cu*/bin")', 'glob("nowhere")')
    (toy / "setup.py").write_text(source)
    compilers = toy / "bin"
    compilers.mkdir()
    for name in ("c++", "as", "ld"):
        (compilers / name).symlink_to(shutil.which(name))
    status, _, said = build(toy, RAINBOW_FAST_CUDA="1", CUDA_HOME="", NVCC="", PATH=str(compilers))
    assert status and "RAINBOW_FAST_CUDA=1, and no nvcc in NVCC, CUDA_HOME/bin, PATH" in said
