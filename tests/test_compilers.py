# SPDX-License-Identifier: BSD-3-Clause
"""compilers.py: what nvcc can compile is asked, and an nvcc that cannot be used is left out with one line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from here import ROOT
from toy_build import build, write_cuda_toy, write_toy

import compilers

# The message of nvcc if the host compiler is too new.
UNSUPPORTED_HOST = """In file included from /usr/local/cuda/include/cuda_runtime.h:82,
                 from <command-line>:
/usr/local/cuda/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 \
are not supported! The nvcc flag '-allow-unsupported-compiler' can be used to override this version check
  143 | #error -- unsupported GNU version! gcc versions later than 13 are not supported!
      |  ^~~~~"""
LIST = "*--list-gpu-arch*)"
OF_12_4 = f"{LIST} printf 'compute_%s\\n' 50 52 53 60 61 62 70 72 75 80 86 87 89 90 ;;"
NO_100 = "*compute_100*) echo \"nvcc fatal   : Unsupported gpu architecture 'compute_100'\" >&2; exit 1 ;;"
REJECTS_HOST = f"*probe.cu*) cat >&2 <<'END'\n{UNSUPPORTED_HOST}\nEND\n exit 2 ;;"
NO_LIST = f"{LIST} echo \"nvcc fatal   : Unknown option '--list-gpu-arch'\" >&2; exit 1 ;;"
SILENT = "*probe.cu*) exit 3 ;;"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    write_cuda_toy(tmp_path)
    return tmp_path


def fake_nvcc(folder: Path, *cases: str) -> str:
    """Write a script that answers some calls by the cases of a shell, and passes the others to the installed nvcc."""
    nvcc = compilers.find_nvcc()
    assert nvcc is not None
    path = folder / "nvcc"
    path.write_text("\n".join(["#!/bin/sh", 'case "$*" in', *cases, f'*) exec {nvcc[0]} "$@" ;;', "esac", ""]))
    path.chmod(0o755)
    return str(path)


def test_cuda_is_built_where_asked(toy: Path) -> None:
    chosen = {"RAINBOW_FAST_CUDA": "1", "RAINBOW_FAST_CUDA_ARCHS": "80"}
    status, compiled, said = build(toy, **chosen)
    assert status == 0 and "build/cuda/kernel.o" in compiled and "rainbow_fast:" not in said, said
    subprocess.run([sys.executable, "-c", "import rainbow_fast._C"], cwd=toy, check=True)
    assert build(toy, **chosen)[1] == []
    assert build(toy, **chosen, NVCC=fake_nvcc(toy))[1] == []  # the same nvcc in another folder
    assert build(toy, RAINBOW_FAST_CUDA="0")[1] == build(toy, **chosen)[1] == ["build/bind.o"]
    (toy / "csrc/cuda/kernel.cu").touch()
    assert build(toy, **chosen)[1] == ["build/cuda/kernel.o"]


def test_probe_has_the_headers_of_the_kernels() -> None:
    """nvcc includes the header of the runtime by itself."""
    text = "".join(path.read_text() for path in (ROOT / "csrc/cuda").iterdir())
    headers = set(re.findall(r"#include <cuda_\w+.h>", text))
    assert headers - {"#include <cuda_runtime.h>"} == set(re.findall("#include.*", compilers.PROBE))


def test_cuda_is_left_out_where_asked(toy: Path) -> None:
    status, compiled, said = build(toy, RAINBOW_FAST_CUDA="0")
    assert status == 0 and "build/cuda/kernel.o" not in compiled and said == ""


def test_architectures_that_nvcc_does_not_know_are_left_out(toy: Path) -> None:
    nvcc = fake_nvcc(toy, OF_12_4, NO_100)
    status, compiled, said = build(toy, RAINBOW_FAST_CUDA="", RAINBOW_FAST_CUDA_ARCHS="", NVCC=nvcc)
    assert status == 0 and "build/cuda/kernel.o" in compiled, said
    assert said.splitlines() == [f"rainbow_fast: {nvcc} does not know the architectures 100: left out"]
    used = (toy / "build/cuda/toolchain").read_text()
    assert all(f"arch=compute_{code}" in used for code in ("80,code=sm_80", "90,code=sm_90", "90,code=compute_90"))
    subprocess.run([sys.executable, "-c", "import rainbow_fast._C"], cwd=toy, check=True)


UNUSABLE = {
    "host-compiler": ([OF_12_4, REJECTS_HOST], "nvcc failed: .*error: #error -- unsupported GNU version! .*"),
    "no-wanted-architecture": ([OF_12_4], "nvcc knows none of the architectures 100, 120f"),
    "too-old-to-be-asked": ([NO_LIST], "nvcc failed: nvcc fatal   : Unknown option '--list-gpu-arch'"),
    "says-nothing": ([SILENT], "nvcc failed: exit status 3"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_nvcc_that_cannot_be_used_is_left_out_in_one_line(tmp_path: Path, case: str) -> None:
    cases, why = UNUSABLE[case]
    environment = {**os.environ, "NVCC": fake_nvcc(tmp_path, *cases), "PYTHONPATH": str(ROOT)}
    if case == "no-wanted-architecture":
        environment["RAINBOW_FAST_CUDA_ARCHS"] = "100;120f"
    command = [sys.executable, "-c", "import compilers; print(compilers.cuda_compiler(['c++']))"]
    for wanted, status, printed, start in [
        ("1", 1, "", "RAINBOW_FAST_CUDA=1, and "),
        ("", 0, "None\n", "installing without the CUDA kernels: "),
    ]:
        environment["RAINBOW_FAST_CUDA"] = wanted
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        [line] = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (status, printed)
        assert re.fullmatch(rf"rainbow_fast: {start}\S+{why}", line), line


def test_host_compiler_that_nvcc_does_not_support(toy: Path) -> None:
    """This compiler tells nvcc that it is GCC 99, which no nvcc supports."""
    host, real = toy / "g++", shutil.which("g++")
    lies = f'*__CUDACC__*) exec {real} -U__GNUC__ -D__GNUC__=99 "$@" ;;'
    host.write_text(f'#!/bin/sh\ncase "$*" in\n{lies}\n*) exec {real} "$@" ;;\nesac\n')
    host.chmod(0o755)
    status, compiled, said = build(toy, RAINBOW_FAST_CUDA="1", CXX=str(host))
    assert status and compiled == [] and not list((toy / "rainbow_fast").glob("_C*.so"))
    assert "RAINBOW_FAST_CUDA=1, and" in said and "unsupported GNU version" in said
    status, compiled, said = build(toy, RAINBOW_FAST_CUDA="", CXX=str(host))
    assert status == 0 and "build/bind.o" in compiled and "build/cuda/kernel.o" not in compiled
    [line] = said.splitlines()
    assert "installing without the CUDA kernels" in line and "unsupported GNU version" in line
    subprocess.run([sys.executable, "-c", "import rainbow_fast._C"], cwd=toy, check=True)


def test_host_compiler_that_is_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CCBIN", "PREPEND_FLAGS", "APPEND_FLAGS"):
        monkeypatch.delenv(f"NVCC_{name}", raising=False)
    assert compilers.host_compiler(["nvcc"], ["clang++"]) == ["-ccbin", "clang++"]
    assert compilers.host_compiler(["nvcc"], ["ccache", "g++"]) == []
    assert compilers.host_compiler(["nvcc", "-ccbin=g++-12"], ["clang++"]) == []
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "--compiler-bindir g++-12")
    assert compilers.host_compiler(["nvcc"], ["clang++"]) == []
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "")
    monkeypatch.setenv("NVCC_CCBIN", "g++-12")
    assert compilers.host_compiler(["nvcc"], ["clang++"]) == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAINBOW_FAST_CUDA": "yes"}, "RAINBOW_FAST_CUDA='yes': wanted 0 or 1"),
        ({"RAINBOW_FAST_CUDA": "1", "NVCC": "no-such-nvcc"}, "no-such-nvcc: No such file or directory"),
    ],
)
def test_cuda_that_cannot_be_built_is_a_failed_build(toy: Path, environment: dict[str, str], message: str) -> None:
    status, _, said = build(toy, **environment)
    assert status and message in said and not list((toy / "rainbow_fast").glob("_C*.so"))


def test_no_nvcc_is_an_error_where_cuda_is_asked_for(tmp_path: Path) -> None:
    """The toy has its own compilers.py, which does not search the Python packages."""
    write_toy(tmp_path)
    source = (tmp_path / "compilers.py").read_text().replace('glob("nvidia/cu*/bin")', 'glob("nowhere")')
    (tmp_path / "compilers.py").write_text(source)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("c++", "as", "ld"):
        (tools / name).symlink_to(shutil.which(name))
    without = {"CUDA_HOME": "", "NVCC": "", "CXX": "", "PATH": str(tools)}
    status, _, said = build(tmp_path, RAINBOW_FAST_CUDA="1", **without)
    assert status and "RAINBOW_FAST_CUDA=1, and no nvcc in NVCC, CUDA_HOME/bin, PATH" in said
    status, _, said = build(tmp_path, RAINBOW_FAST_CUDA="", **without)
    assert status == 0 and said == ""
