# SPDX-License-Identifier: BSD-3-Clause
"""The machinery of the first run on a GPU: a stage that crashes, hangs or fails ends itself and not the others."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import gpu_first_run
import gpu_network
import gpu_stages
import pytest
from gpu_first_run import (
    LEAST,
    NOT_RUN,
    SECONDS,
    VARIABLE,
    Stage,
    all_stages,
    main,
    python_path,
    run_all,
    unpacked,
)
from here import ROOT

import rainbow_fast as rf
from rainbow_fast import backend

OPS = (*backend.ON_GPUS,)
PLENTY = 600.0  # seconds for what ends by itself, also on a busy machine

WRITES = f"import json, os, pathlib; pathlib.Path(os.environ['{VARIABLE}']).write_text(json.dumps({{'seen': 1}}));"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_every_outcome_and_what_is_kept_of_it(tmp_path: Path) -> None:
    child = f"import subprocess, sys, time; subprocess.Popen({python('import time; time.sleep(600)')!r});"
    stages = [
        Stage("right", PLENTY, python(f"{WRITES} print('all is well')")),
        Stage("wrong", PLENTY, python("print('before'); raise SystemExit('because')")),
        Stage("dies", PLENTY, python(f"{WRITES} os.kill(os.getpid(), 11)")),
        Stage("hangs", LEAST, python(f"{child} time.sleep(600)")),
        Stage("elsewhere", PLENTY, python(f"print('no such device'); raise SystemExit({NOT_RUN})"), optional=True),
    ]
    shown: list[str] = []
    outcomes = {outcome.stage: outcome for outcome in run_all(stages, tmp_path / "out", 9 * PLENTY, show=shown.append)}
    assert {name: outcome.outcome for name, outcome in outcomes.items()} == {
        "right": "passed", "wrong": "failed", "dies": "crashed", "hangs": "out of time", "elsewhere": "not run",
    }  # fmt: skip
    assert outcomes["wrong"].why == "exit status 1: because" and outcomes["dies"].why == "SIGSEGV"
    assert outcomes["hangs"].why == f"after {LEAST:.0f} s" and outcomes["elsewhere"].why == "no such device"
    assert [name for name, outcome in outcomes.items() if outcome.bad] == ["wrong", "dies", "hangs"]
    kept = {name: outcome.results for name, outcome in outcomes.items()}
    assert kept["right"] == kept["dies"] == {"seen": 1} and kept["wrong"] is kept["elsewhere"] is None
    record = json.loads((tmp_path / "out" / "gpu_first_run.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == list(outcomes) and len(shown) == len(stages)
    log = (tmp_path / "out" / "gpu_first_run.log").read_text()
    assert "before" in record["stages"][1]["tail"] and "all is well" in log and "no such device" in log
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu_first_run.json", "gpu_first_run.log"]


def ends(process: int) -> bool:
    for _ in range(200):  # the system may take a moment to end it
        if not Path(f"/proc/{process}").exists() or "Z" in Path(f"/proc/{process}/stat").read_text().split()[2]:
            return True
        time.sleep(0.05)
    return False


def test_what_a_stage_has_started_ends_with_it(tmp_path: Path) -> None:
    leaves = python("import time; time.sleep(600)")
    code = f"import subprocess; print(subprocess.Popen({leaves!r}).pid)"
    [outcome] = run_all([Stage("leaves", PLENTY, python(code))], tmp_path, PLENTY, show=lambda line: None)
    assert outcome.outcome == "passed"
    assert ends(int(outcome.tail))


def test_json_is_there_after_each_stage(tmp_path: Path) -> None:
    path = tmp_path / "gpu_first_run.json"
    counts = []

    def count(line: str) -> None:
        counts.append(len(json.loads(path.read_text())["stages"]))

    run_all([Stage(str(k), PLENTY, python("")) for k in range(3)], tmp_path, PLENTY, show=count)
    assert counts == [1, 2, 3]


def test_no_stage_begins_when_the_time_is_over(tmp_path: Path) -> None:
    stages = [Stage(str(optional), PLENTY, python("print('begun')"), optional) for optional in (False, True)]
    outcomes = run_all(stages, tmp_path, seconds=LEAST / 2, show=lambda line: None)
    assert [(o.outcome, o.bad, o.tail) for o in outcomes] == [("no time left", bad, "") for bad in (True, False)]


def test_what_ran_when_the_program_was_told_to_end_is_recorded(tmp_path: Path) -> None:
    told = f"{WRITES} import time; print(os.getpid()); os.kill(os.getppid(), {int(signal.SIGTERM)}); time.sleep(600)"
    program = f"""if True:
        import gpu_first_run as g
        g.all_stages = lambda: [g.Stage("told", {PLENTY}, {python(told)!r})]
        raise SystemExit(g.main(["--out", {str(tmp_path)!r}]))
    """
    environment = {**os.environ, "PYTHONPATH": python_path()}
    assert subprocess.run(python(program), env=environment, timeout=PLENTY).returncode == 128 + signal.SIGTERM
    [stage] = json.loads((tmp_path / "gpu_first_run.json").read_text())["stages"]
    assert stage["outcome"] == "interrupted" and stage["results"] == {"seen": 1}
    assert ends(int(stage["tail"]))


def test_no_stage_may_take_more_than_half_of_the_time() -> None:
    names = [stage.name for stage in all_stages()]
    assert len(names) == len(set(names)) and names[:2] == ["environment", "build"]
    assert SECONDS == 480 and all(LEAST < stage.seconds <= SECONDS / 2 for stage in all_stages())


def test_wheels_are_unpacked_unless_their_package_is_there(tmp_path: Path) -> None:
    for name in ("rainbow_first_run_toy", "torch"):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    assert unpacked(tmp_path, tmp_path / "site") == ["rainbow_first_run_toy-1.0-py3-none-any.whl"]
    assert (tmp_path / "site" / "rainbow_first_run_toy" / "__init__.py").exists()
    assert not (tmp_path / "site" / "torch").exists()


def test_without_a_device_each_stage_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = ("environment", "smoke cuda", "tests", "memcheck triton")
    stages = [replace(stage, seconds=PLENTY) for stage in all_stages() if stage.name in names]
    outcomes = run_all(stages, tmp_path, seconds=4 * PLENTY, show=lambda line: None)
    assert [(o.stage, o.outcome, o.bad) for o in outcomes] == [
        (name, "not run", name != "memcheck triton") for name in names
    ]  # fmt: skip
    assert outcomes[0].results["setuptools"] == metadata.version("setuptools")
    assert outcomes[0].results["pybind11"] == metadata.version("pybind11")
    skipped = outcomes[2].results["tests"]
    why = "no CUDA device"
    assert [o.why for o in outcomes] == [why, why, f"{why}: {skipped} tests are skipped", why] and skipped > 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("PYTHONPATH", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # it sets them
    monkeypatch.setattr(
        gpu_first_run, "all_stages", lambda: [Stage("a", PLENTY, python("")), Stage("b", 0, python(""))]
    )
    assert main(["--out", str(tmp_path), "--only", "a"]) == 0 and "all stages passed" in capsys.readouterr().out
    assert main(["--out", str(tmp_path)]) == 1 and "1 of 2 stages did not pass: b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "typo"], "--only: got 'typo', wanted a part of one of the names environment, build, smoke cpu"),
        (["--seconds", "nan"], "--seconds: got nan, wanted at least 5"),
        (["--seconds", "4.5"], "--seconds: got 4.5, wanted at least 5"),
    ],
    ids=["only", "nan", "few"],
)
def test_what_the_command_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err


def test_packages_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    [wanted] = re.findall(r"setuptools>=([\d.]+)", (ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr("importlib.metadata.version", {"setuptools": "70.2", "pybind11": "1000.0"}.__getitem__)
    assert gpu_stages.too_old() == [f"setuptools 70.2: wanted {wanted} or newer"]


TOY = """import pytest
pytestmark = pytest.mark.gpu
@pytest.fixture
def broken():
    raise ValueError
def test_right():
    pass
def test_wrong():
    assert False
def test_that_cannot_start(broken):
    pass
"""


def test_failures_errors_and_crashes_of_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test_toy.py"
    monkeypatch.setattr(gpu_stages, "TESTS", path)
    monkeypatch.setattr(gpu_stages, "results", {})
    monkeypatch.setattr(gpu_stages, "has_device", lambda: False)
    path.write_text(TOY)
    with pytest.raises(SystemExit, match="1 of 3 tests failed, 1 errors"):
        gpu_stages.tests()
    assert gpu_stages.results["failed"] == ["test_wrong", "test_that_cannot_start"]
    path.write_text("import os; os._exit(3)")
    with pytest.raises(SystemExit, match="pytest ended with status 3 and without a report"):
        gpu_stages.tests()


def test_row_of_a_timing() -> None:
    about = {"error": 1e-7, "ratio_to_plain": 2.0, "ratio_to_best": 1.5, "share_of_floor": 0.5, "rates": {"tf32": 1.0}}
    entry = {
        "group": "polar 4 x 4 on cuda", "params": {"name": "plain torch", "case": [4, 4]}, "stats": {"min": 0.25},
        "extra_info": {**about, "best": "plain torch"},
    }  # fmt: skip
    assert gpu_stages.row_of(entry) == {
        "job": "polar 4 x 4 on cuda", "candidate": "plain torch", "milliseconds": 250.0, **about,
    }  # fmt: skip


def test_smoke_on_the_kernels_of_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_stages.smoke("cpu")
    assert set(capsys.readouterr().out.split("\n")) > {f"{op}: passed" for op in OPS}


def test_smoke_finds_wrong_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = rf.uniform

    def wrong(*arguments, **words):
        numbers = right(*arguments, **words)
        return numbers if words["backend"] == "reference" else numbers + 1e-6

    monkeypatch.setattr(rf, "uniform", wrong)
    with pytest.raises(SystemExit, match="wrong: uniform"):
        gpu_stages.smoke("cpu")
    assert "uniform: AssertionError" in capsys.readouterr().out


def test_network_on_the_cpu_and_its_times() -> None:
    of_cpu = gpu_network.compare("cpu")["cpu"]
    assert of_cpu["after_load"] == "the same bits" and 0 < of_cpu["error"] < 1e-5
    spent = gpu_network.times("cpu", gpu_network.SMALL)["seconds"]
    assert len(spent) == 6 and all(len(rounds) >= 3 and min(rounds) > 0 for rounds in spent.values())


REFUSES = "========= Error: Device not supported\n========= ERROR SUMMARY: 0 errors"
HAZARD = "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
SAYS = {  # what it prints, its status, and how the stage ends
    "refuses": (REFUSES, 0, NOT_RUN),
    "dies": ("Killed", 9, "compute-sanitizer ended with status 9 and no summary"),
    "finds-nothing": ("========= ERROR SUMMARY: 0 errors", 0, None),
    "smoke-fails": ("========= ERROR SUMMARY: 0 errors", 1, "the stage smoke ended with status 1"),
    "finds-a-race": (f"========= {HAZARD}", 99, HAZARD),
}


@pytest.mark.parametrize(("said", "status", "end"), SAYS.values(), ids=SAYS)
def test_what_compute_sanitizer_says(
    said: str, status: int, end: int | str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu_stages, "has_device", lambda: True)
    if end is None:
        return gpu_stages.sanitize("memcheck", "cuda")
    with pytest.raises(SystemExit) as left:
        gpu_stages.sanitize("memcheck", "cuda")
    assert left.value.code == end


def test_without_compute_sanitizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_stages, "has_device", lambda: True)
    with pytest.raises(SystemExit) as left:
        gpu_stages.sanitize("racecheck", "triton")
    assert left.value.code == NOT_RUN and capsys.readouterr().out == "compute-sanitizer is not installed\n"


def test_what_is_brought_along_is_small() -> None:
    """The files of the repository and the wheels together."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no repository here")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    sizes = [
        (ROOT / os.fsdecode(name)).stat().st_size for name in files if name and (ROOT / os.fsdecode(name)).exists()
    ]
    wheels = [wheel.stat().st_size for wheel in (ROOT / "build" / "wheels").glob("*.whl")]
    assert sum(sizes) + sum(wheels) < 64 * 2**20
