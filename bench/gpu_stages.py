# SPDX-License-Identifier: BSD-3-Clause
"""What the stages of the first run on a GPU do. gpu_first_run.py starts them, with the paths that they need.

To run one stage: `python bench/gpu_first_run.py --only STAGE`.

A stage that needs a CUDA device and has none does what the CPU can do, and then says that it was not run. An error of
that part is an error of the stage.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from gpu_first_run import NOT_RUN, ROOT, VARIABLE, write_json

IMPORTED = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "msgspec",
    "pybind11",
    "setuptools",
    "pytest",
    "pytest_benchmark",
)
BENCH = ROOT / "bench" / "bench_gpu.py"
TESTS = ROOT / "tests" / "csrc" / "test_gpu.py"
FOUND = 99  # status of compute-sanitizer that has found something; else it is that of the program
REFUSED = "Device not supported"  # what compute-sanitizer says where a debugger cannot reach the GPU

results: dict[str, Any] = {}


def put(**values: Any) -> None:
    """Keep results, whatever comes after them."""
    results.update(values)
    if path := os.environ.get(VARIABLE):
        write_json(Path(path), results)
    print(*(f"{name}: {value}" for name, value in values.items()), sep="\n")


def not_run(why: str) -> NoReturn:
    print(why)
    sys.exit(NOT_RUN)


def has_device() -> bool:
    import torch

    return torch.cuda.is_available()


def said_by(*command: str) -> str:
    """The first line with a version that a command prints; empty if it is not installed."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d\.\d", line)), "")


def too_old() -> list[str]:
    """What the build needs, by pyproject.toml, and finds in an older version."""

    def numbers(version: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", version)]

    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pairs = [requirement.split(">=") for requirement in requires]
    versions = {name: metadata.version(name) for name, _ in pairs}
    return [
        f"{name} {versions[name]}: wanted {wanted} or newer"
        for name, wanted in pairs
        if numbers(versions[name]) < numbers(wanted)
    ]


# --- the stages ---


def environment() -> None:
    """Versions, the device, and which packages are missing."""
    missing = [name for name in IMPORTED if importlib.util.find_spec(name) is None]
    put(python=platform.python_version(), machine=platform.machine(), processors=os.cpu_count(), missing=missing)
    for tool in ("nvcc", "compute-sanitizer", "c++"):
        put(**{tool: said_by(tool, "--version") or "not installed"})
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (make gpu-wheels brings small ones along)")
    put(**{name: metadata.version(name) for name in ("setuptools", "pybind11")})
    if old := too_old():
        sys.exit("; ".join(old))
    import numpy
    import torch
    import triton

    put(torch=torch.__version__, triton=triton.__version__, numpy=numpy.__version__, device="no CUDA device")
    if not has_device():
        not_run("no CUDA device")
    properties = torch.cuda.get_device_properties(0)
    put(
        device=properties.name, capability=f"{properties.major}.{properties.minor}", memory=properties.total_memory,
        multiprocessors=properties.multi_processor_count, driver=said_by("nvidia-smi", "--version"),
    )  # fmt: skip


def build() -> None:
    """The kernels for the GPU that is here (without one, for compute capability 9.0), and for one level of the CPU."""
    import torch

    major, minor = torch.cuda.get_device_capability() if has_device() else (9, 0)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    level = next((name for name in ("avx512bw", "avx2") if name in flags), "baseline").removesuffix("bw")
    chosen = {"RAINBOW_FAST_CUDA": "1", "RAINBOW_FAST_CUDA_ARCHS": f"{major}{minor}", "RAINBOW_FAST_LEVELS": level}
    put(**chosen)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **chosen}, check=True)
    from rainbow_fast import backend

    kernels = backend.available("cuda")
    put(level=backend.isa, kernels=kernels)
    assert "cuda" in kernels and "triton" in kernels, f"wanted the kernels of CUDA and Triton, got {kernels}"


def smoke(kernels: str) -> None:
    """Each op once, on little data, against plain PyTorch on the CPU."""
    if kernels != "cpu" and not has_device():
        not_run("no CUDA device")
    from gpu_smoke import calls

    failed = []
    for op, check in calls(kernels, "cpu" if kernels == "cpu" else "cuda").items():
        try:
            check()
            put(**{op: "passed"})
        except Exception as error:  # the other ops are worth knowing, too
            failed.append(op)
            put(**{op: f"{type(error).__name__}: {error}"})
    if failed:
        sys.exit(f"wrong: {', '.join(failed)}")


def tests() -> None:
    """`pytest -m gpu`. Without a device, pytest collects the tests and skips them."""
    shared = ["--numprocesses=4"] * (has_device() and importlib.util.find_spec("xdist") is not None)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", *shared]
        code = subprocess.run([*command, f"--junitxml={report}", str(TESTS)], cwd=ROOT).returncode
        if not report.exists():
            sys.exit(f"pytest ended with status {code} and without a report")
        suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = [case for case in suite.iter("testcase") if {"failure", "error"} & {part.tag for part in case}]
    put(**counts, failed=[case.get("name") for case in wrong])
    if code:
        sys.exit(f"{counts['failures']} of {counts['tests']} tests failed, {counts['errors']} errors")
    if not has_device():
        not_run(f"no CUDA device: {counts['skipped']} tests are skipped")


def network() -> None:
    """`fit`, `sample`, `save` and `load` of a small CNN on the GPU against the CPU, and timed against plain torch."""
    from gpu_network import compare, times

    put(**compare("cpu"))
    if not has_device():
        not_run("no CUDA device: only the CPU was compared with float64")
    put(**compare("cuda"))
    put(**times("cuda"))


def timings() -> None:
    """The short form of `make bench-gpu`. Without a device, the same lines run on the CPU, on little data, untimed."""
    import pytest

    there = has_device()
    os.environ |= {"RAINBOW_FAST_GPU_SHORT": "1"} | ({} if there else {"RAINBOW_FAST_GPU": "cpu"})
    wrong = []
    names = re.findall(r"^bench_\w+", BENCH.read_text(), re.M)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:  # one by one, so that rows are kept when the time ends
            report = Path(folder) / f"{name}.json"
            timed = f"--benchmark-json={report}" if there else "--benchmark-disable"
            wrong += [name] * bool(pytest.main([f"{BENCH}::{name}", "-q", "-p", "no:cacheprovider", timed]))
            if there and report.exists() and report.stat().st_size:  # it is empty if no line was timed
                put(**{name: [row_of(entry) for entry in json.loads(report.read_text())["benchmarks"]]})
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")
    if not there:
        not_run("no CUDA device: the lines ran on the CPU, on little data, and were not timed")


def row_of(entry: dict[str, Any]) -> dict[str, Any]:
    """A line of pytest-benchmark's file in short."""
    about = entry["extra_info"]
    keys = ("error", "ratio_to_plain", "ratio_to_best", "share_of_floor", "rates")
    row = {"job": entry["group"], "candidate": entry["params"]["name"], "milliseconds": 1e3 * entry["stats"]["min"]}
    return row | {key: about.get(key) for key in keys}


def sanitize(tool: str, kernels: str) -> None:
    """The stage smoke under a tool of compute-sanitizer."""
    if not has_device():
        not_run("no CUDA device")
    if not (sanitizer := shutil.which("compute-sanitizer")):
        not_run("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all", sys.executable]
    caching = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else an access past a tensor meets memory that torch holds
    lines = []
    with subprocess.Popen(
        [*command, __file__, "smoke", kernels], cwd=ROOT, env={**os.environ, **caching}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:  # at once, because the time may end
            print(line, end="", flush=True)
            lines.append(line.strip("= \n"))
    code = process.returncode
    if refusal := next((line for line in lines if REFUSED in line), ""):
        not_run(f"compute-sanitizer refuses: {refusal}")
    summary = [line for line in lines if re.match("(ERROR|RACECHECK) SUMMARY: ", line)]
    if not summary:
        sys.exit(f"compute-sanitizer ended with status {code} and no summary")
    put(summary=summary[-1])
    if code:
        sys.exit(summary[-1] if code == FOUND else f"the stage smoke ended with status {code}")


STAGES: dict[str, Callable[..., None]] = {
    stage.__name__: stage for stage in (environment, build, smoke, tests, network, timings, sanitize)
}

if __name__ == "__main__":
    STAGES[sys.argv[1]](*sys.argv[2:])
