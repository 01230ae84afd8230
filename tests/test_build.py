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
from here import ROOT
from toy_build import build, write_toy

from compilers import OWN
from rainbow_fast import backend

OBJECTS = ROOT / "build" / "isa"
LEVELS = ["baseline", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"]
BUILT = [level for level in LEVELS if (OBJECTS / level).is_dir()] or ["baseline"]
# Levels that take no kernel from another one. The toy is built for these alone.
COMPLETE = [level for level in BUILT if level not in OWN]

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
        if source.stem not in OWN.get(level, [source.stem]):
            continue  # the object of avx512 is used
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


@pytest.mark.parametrize("level", COMPLETE)
def test_generator_has_no_fused_multiply_add(level: str) -> None:
    for op in ("gaussian", "uniform"):
        assert not FUSED.search(output("objdump", "-d", OBJECTS / level / f"{op}.o"))


@pytest.mark.parametrize("level", COMPLETE[1:])
def test_fused_multiply_add_is_found_where_it_is(level: str) -> None:
    assert FUSED.search(output("objdump", "-d", OBJECTS / level / "sample_project_align.o"))


# --- the choice of the instruction set ---


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", [*LEVELS, "sse9"])
def test_isa_can_be_forced_where_it_runs(level: str) -> None:
    present = backend.kernels().levels()
    done = python("import rainbow_fast as rf; rf.gaussian(2, 3, seed=0); print(rf.backend.isa)", RAINBOW_FAST_ISA=level)
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


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    write_toy(tmp_path)
    return tmp_path


def test_only_what_changed_is_compiled_again(toy: Path) -> None:
    kernels = sorted(f"build/isa/{level}/kernel.o" for level in COMPLETE)
    assert build(toy)[:2] == (0, ["build/bind.o", *kernels])
    assert list((toy / "rainbow_fast").glob("_C*.so"))
    assert build(toy)[:2] == (0, [])
    (toy / "csrc/cpu/kernel.cpp").touch()
    assert build(toy)[:2] == (0, kernels)
    (toy / "csrc/cpu/kernel.h").touch()
    assert build(toy)[:2] == (0, kernels)
    (toy / "csrc/kernels.h").touch()
    assert build(toy)[:2] == (0, ["build/bind.o", *kernels])


@pytest.mark.skipif("avx512" not in BUILT, reason="no levels to choose from")
def test_levels_can_be_chosen(toy: Path) -> None:
    """With what they need: baseline, and avx512 for those above it, which have one kernel of their own here."""
    (toy / "csrc/cpu/polar.cpp").write_text("")
    assert build(toy, RAINBOW_FAST_LEVELS="avx2")[1] == [
        "build/bind.o",
        *(f"build/isa/{level}/{name}.o" for level in ("avx2", "baseline") for name in ("kernel", "polar")),
    ]
    assert build(toy, RAINBOW_FAST_LEVELS="amx_emulated")[1] == [
        "build/isa/amx_emulated/polar.o",
        "build/isa/avx512/kernel.o",
        "build/isa/avx512/polar.o",
    ]


def test_unknown_level_is_an_error(toy: Path) -> None:
    status, compiled, said = build(toy, RAINBOW_FAST_LEVELS="baseline sse9")
    assert status and compiled == [] and "RAINBOW_FAST_LEVELS: no level 'sse9': wanted some of baseline" in said


def test_sanitizers_have_a_folder_of_their_own(toy: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    subprocess.run(command, cwd=toy, env={**os.environ, "RAINBOW_FAST_SANITIZE": "1"}, check=True)
    files = {path.relative_to(toy).as_posix() for suffix in ("*.o", "*.so") for path in toy.rglob(suffix)}
    kernels = {f"build/sanitize/isa/{level}/kernel.o" for level in COMPLETE}
    assert files == {"build/sanitize/_C.so", "build/sanitize/bind.o", *kernels}


def test_compiler_that_fails_is_a_failed_build(toy: Path) -> None:
    (toy / "csrc/cpu/kernel.cpp").write_text("this is no C++\n")
    status, _, said = build(toy)
    assert status and "kernel.o" in said and not list((toy / "rainbow_fast").glob("_C*.so"))
    assert build(toy, CXX="no-such-compiler")[0]


def test_no_compiler_is_a_printed_line(toy: Path, tmp_path: Path) -> None:
    status, compiled, said = build(toy, CXX="", PATH=str(tmp_path))
    assert (status, compiled) == (0, []) and "no C++ compiler found" in said


def test_other_folder_gets_the_extension(toy: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    variables = {**os.environ, "RAINBOW_FAST_CUDA": "0", "RAINBOW_FAST_BUILD": "build/other"}
    subprocess.run(command, cwd=toy, env=variables, check=True)
    assert (toy / "build/other/_C.so").exists() and (toy / "build/other/bind.o").exists()
    assert not (toy / "build/bind.o").exists() and not list((toy / "rainbow_fast").glob("_C*.so"))
