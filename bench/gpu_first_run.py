# SPDX-License-Identifier: BSD-3-Clause
"""The first run on a GPU: builds, tests, checks and times the kernels, in at most eight minutes: `make gpu-first-run`.

The machine may be bare. It needs Python, torch, Triton, nvcc and a C++ compiler. Small packages that it may lack are
brought along as wheels in build/wheels/, where `make gpu-wheels` puts them on a machine with a network. A package that
is there already is not replaced.

Every stage is a process of its own with a time limit, so that neither a crash nor a kernel that hangs ends the rest.
After each stage, OUT/gpu_first_run.json has what came of it, and OUT/gpu_first_run.log all that it printed. What the
stages do stands in gpu_stages.py.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILT = ROOT / "build" / "gpu_first_run"
SITE = BUILT / "site"  # where wheels are unpacked
SECONDS = 480.0  # for all stages together
LEAST = 5.0  # seconds that are worth starting a stage for
GRACE = 10.0  # seconds for a killed process to end; one that is inside the driver may not
SHOWN = 3000  # last characters of a stage's output that the JSON file keeps
NOT_RUN = 77  # exit status of a stage that cannot run on this machine; the last line that it prints says why
VARIABLE = "RAINBOW_FAST_STAGE"  # the file into which a stage writes its results, at any time


@dataclass(frozen=True)
class Stage:
    """A process and the seconds that it may take; an optional one may find that it cannot run."""

    name: str
    seconds: float
    command: Sequence[str]
    optional: bool = False


@dataclass
class Outcome:
    """What came of a stage.

    `outcome` is "passed", "failed", "crashed", "out of time", "not run", "no time left", or "interrupted" if this
    program was told to end.
    """

    stage: str
    outcome: str = "interrupted"
    why: str = ""
    seconds: float = 0.0
    results: Any = None
    tail: str = ""
    optional: bool = False

    @property
    def bad(self) -> bool:
        return self.outcome != "passed" and not (self.optional and self.outcome in ("not run", "no time left"))


def all_stages() -> list[Stage]:
    """In order of importance, because the last ones may find no time left."""

    def stage(name: str, seconds: float, *words: str, optional: bool = False) -> Stage:
        command = [sys.executable, str(HERE / "gpu_stages.py"), *(words or (name,))]
        return Stage(name, seconds, command, optional)

    stages = [stage("environment", 40), stage("build", 240)]
    stages += [stage(f"smoke {kernels}", 60, "smoke", kernels) for kernels in ("cpu", "cuda", "triton")]
    stages += [stage("tests", 150), stage("network", 90), stage("timings", 150)]
    for kernels in ("cuda", "triton"):
        for tool in ("memcheck", "racecheck"):
            stages.append(stage(f"{tool} {kernels}", 120, "sanitize", tool, kernels, optional=True))
    return stages


def ended(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit status; None if the time is over: then the process and all that it has started are killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, and may have left some of it running
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def judged(code: int | None, seconds: float, last: str) -> tuple[str, str]:
    """The outcome of a stage and the reason, from its exit status, its time limit and its last line."""
    if code is None:
        return "out of time", f"after {seconds:.0f} s"
    if code < 0:
        return "crashed", signal.Signals(-code).name
    if code == NOT_RUN:
        return "not run", last
    return ("passed", "") if code == 0 else ("failed", f"exit status {code}: {last}")


def run_stage(stage: Stage, folder: Path, left: float, outcome: Outcome) -> None:
    """Run a stage for at most `left` seconds and fill in its outcome. Its output goes on the log in `folder`."""
    seconds = min(stage.seconds, left)
    if seconds < LEAST:
        outcome.outcome = "no time left"
        return
    results = folder / "stage.json"
    results.unlink(missing_ok=True)
    output = folder / "stage.log"
    began = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", VARIABLE: str(results)}
    try:
        with output.open("wb") as file:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
            code = ended(process, seconds)
    finally:
        outcome.seconds = round(time.monotonic() - began, 1)
        text = output.read_text(errors="replace")
        with (folder / "gpu_first_run.log").open("a") as log:
            log.write(f"===== {stage.name}\n{text}\n")
        outcome.tail = text[-SHOWN:]
        outcome.results = json.loads(results.read_text()) if results.exists() else None
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    outcome.outcome, outcome.why = judged(code, seconds, last)


def write_json(path: Path, value: Any) -> None:
    """Write a file at once: whoever reads it finds the old value or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def run_all(
    stages: Iterable[Stage], folder: Path, seconds: float = SECONDS, show: Callable[[str], None] = print
) -> list[Outcome]:
    """Run the stages one after another. The JSON file is written after each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_first_run.log").unlink(missing_ok=True)
    began, outcomes = time.monotonic(), []
    for stage in stages:
        last = Outcome(stage.name, optional=stage.optional)
        outcomes.append(last)
        try:
            run_stage(stage, folder, seconds - (time.monotonic() - began), last)
        finally:
            spent = round(time.monotonic() - began, 1)
            write_json(folder / "gpu_first_run.json", {"seconds": spent, "stages": [asdict(o) for o in outcomes]})
            show(f"{last.stage:18} {last.seconds:6.1f} s  {last.outcome}{f': {last.why}' if last.why else ''}")
    for name in ("stage.json", "stage.json.part", "stage.log"):
        (folder / name).unlink(missing_ok=True)
    return outcomes


def unpacked(wheels: Path, target: Path) -> list[str]:
    """Unpack the wheels of packages that this Python does not have. Returns the names of their files."""
    names = []
    for wheel in sorted(wheels.glob("*.whl")):
        package = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0])
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            names.append(wheel.name)
    return names


def python_path() -> str:
    """Where the stages find the package, what they share with the tests, and the unpacked wheels."""
    paths = [SITE, ROOT, HERE, ROOT / "tests", ROOT / "tests" / "helpers", os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(str(path) for path in paths if path)


def interrupted(number: int, frame: Any) -> NoReturn:
    """Ends this program by an exception, so that the stage that runs is ended and recorded first."""
    signal.signal(number, signal.SIG_IGN)  # a second signal would stop the recording
    sys.exit(128 + number)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=BUILT, help="folder of the results (default: build/gpu_first_run)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together (default: 480)")
    parser.add_argument("--only", default="", help="run only the stages whose names contain this text")
    chosen = parser.parse_args(words)
    stages = [stage for stage in all_stages() if chosen.only in stage.name]
    if not stages:
        names = ", ".join(stage.name for stage in all_stages())
        parser.error(f"--only: got {chosen.only!r}, wanted a part of one of the names {names}")
    if not chosen.seconds >= LEAST:
        parser.error(f"--seconds: got {chosen.seconds:g}, wanted at least {LEAST:g}")
    if names := unpacked(ROOT / "build" / "wheels", SITE):
        print(f"unpacked: {', '.join(names)}")
    os.environ["PYTHONPATH"] = python_path()
    os.environ.setdefault("TRITON_CACHE_DIR", str(BUILT / "triton"))
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        outcomes = run_all(stages, chosen.out, chosen.seconds)
    finally:
        signal.signal(signal.SIGTERM, before)
    bad = [outcome.stage for outcome in outcomes if outcome.bad]
    print(f"results: {chosen.out / 'gpu_first_run.json'}")
    print(f"{len(bad)} of {len(outcomes)} stages did not pass: {', '.join(bad)}" if bad else "all stages passed")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
