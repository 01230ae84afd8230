# SPDX-License-Identifier: BSD-3-Clause
"""Kills a run of `rainbow-fast sample` before each of its file operations, lets it go on, and compares the results.

python tests/helpers/kills.py CHECKPOINT FOLDER STEP [SCENARIO]...

prints a JSON object for each scenario: the number of operations, how many of them were tried, and what was wrong. Every
run is a process of its own, forked from this one, which has imported all modules and has one thread. Every STEP-th
operation is tried. A file that is being written is also left half written. What happens between file operations and
takes half of the time is left out: the figure is written, but not drawn; the command line is parsed by the objects of
the first process, and the digits are read once.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
from matplotlib.figure import Figure
from runs import RESULTS, contents

from rainbow_fast import cli, plots
from rainbow_fast.cli import running

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
OPTIONS = ["--methods", "paper,calibrated", "--factors", "1", "--networks", "1", "--images", "40", "--threads", "1"]
OPTIONS += ["--storage", "file", "--scratch-dir", "scratch"]
REPLACED = 30
SCENARIOS = ("new", "resumed", "over")  # a new run; one that goes on; one that replaces the results of another


class Operations:
    """Counts the file operations of this process below a folder, and kills it by SIGKILL before the one numbered `at`.

    A file that is opened to be written counts twice: the second time it holds the first bytes of what is written.
    """

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.count, self.inside = str(folder), at, 0, False
        sys.addaudithook(self.hear)
        sync = os.fsync

        def counted_sync(descriptor: int) -> None:
            self.tick()
            sync(descriptor)

        os.fsync = counted_sync

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python before each event."""
        if self.inside or not (event in CHANGES or (event == "open" and arguments[2] & WRITES)):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not self.below(os.fsdecode(path)):
            return
        self.tick()
        if event == "open":
            self.tick(half=Path(os.fsdecode(path)))

    def below(self, path: str) -> bool:
        """Whether a path lies below the folder.

        Every relative path does: Python's calls relative to an open folder are made only inside it.
        """
        return not path.startswith("/") or path.startswith(self.folder)

    def tick(self, half: Path | None = None) -> None:
        self.count += 1
        if self.count == self.at:
            self.inside = True
            if half is not None:
                half.write_bytes(b'{"half')
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, words: Iterable[object], *, at: int | None = None, counted: bool = False) -> int:
    """A command in a forked process, in a folder: its exit code, -9 if it was killed; with `counted` the operations."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        status = os.waitpid(child, 0)[1]
        return int(text) if counted and os.WIFEXITED(status) else os.waitstatus_to_exitcode(status)
    code: object = 3
    try:
        os.chdir(folder)
        silence = os.open("errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        sys.argv = ["rainbow-fast", *map(str, words)]
        operations = Operations(folder, at)
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        os.write(write, str(operations.count).encode())
    finally:
        os._exit(code if isinstance(code, int) else 3)


def prepared(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "scratch").mkdir(parents=True)
    return folder


def wrongs(folder: Path, *wholes: Path) -> list[str]:
    """What is wrong with the folder of a run that went on: wanted the files of one whole run, and no others."""
    left = contents(folder / "scratch")
    wrong = [f"left in scratch: {left}"] if left else []
    if contents(folder / "out") != RESULTS:
        return [*wrong, f"out holds {contents(folder / 'out')}: {(folder / 'errors.txt').read_text()}"]
    same = [[name for name in RESULTS if not equal(folder / "out" / name, whole / "out" / name)] for whole in wholes]
    return wrong if [] in same else [*wrong, f"another {min(same, key=len)}"]


def equal(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def go_on(folder: Path, command: list[object]) -> int:
    """What a user does after a kill: --resume, or the command again if nothing has begun. Returns the exit code."""
    begun = (folder / "out" / "report.json").exists()
    return run(folder, ["sample", "--resume", "out"] if begun else command)


def sweep(folder: Path, step: int, start: Callable[[Path], object], words: list[object], wholes: list[Path]) -> dict:
    """Kill a command at every `step`-th operation; each time the folder begins as `start` leaves it.

    A run over former results is a new run once it has replaced them, after fewer than `REPLACED` operations.
    """
    case = prepared(folder)
    start(case)
    count = run(case, words, counted=True)
    if len(wholes) > 1:
        count = min(count, REPLACED)
    wrong: dict[int, list[str]] = {}
    tried = range(1, count + 1, step)
    for at in tried:
        start(prepared(case))
        code = run(case, words, at=at)
        faults = [] if code == -signal.SIGKILL else [f"was not killed, but ended with {code}"]
        if code := go_on(case, words):
            faults.append(f"went on, and ended with {code}")
        faults += wrongs(case, *wholes)
        if faults:
            wrong[at] = faults
    return {"operations": count, "tried": len(tried), "wrong": wrong}


def warmed(folder: Path, command: list[object]) -> None:
    """Run a command in this process, so that all modules are imported and all caches filled before the first fork."""
    os.chdir(prepared(folder))
    figure = Figure()
    plots.accuracy_and_error = lambda records, **how: figure
    Figure.savefig = lambda figure, file, **how: file.write(b"not drawn")
    running.get_command = functools.cache(running.get_command)
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sys.argv = ["rainbow-fast", *map(str, command)]
    torch.set_num_threads(1)
    with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):
        try:
            cli.main()
        except SystemExit as end:
            assert end.code == 0
    assert len(os.listdir("/proc/self/task")) == 1, "only one thread survives a fork"
    gc.freeze()  # a collection would write to the pages that forked processes share


def main() -> None:
    checkpoint, folder, step = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3])
    command: list[object] = ["sample", checkpoint, *OPTIONS, "--out", "out"]
    chosen = sys.argv[4:] or SCENARIOS
    warmed(folder / "warm", command)
    whole, former, begun = (prepared(folder / name) for name in ("whole", "former", "begun"))
    assert run(whole, command) == 0 and run(former, [*command, "--seed", "5"]) == 0
    late = run(prepared(folder / "case"), command, counted=True) * 2 // 3
    assert run(begun, command, at=late) == -signal.SIGKILL

    def with_results_of(source: Path) -> Callable[[Path], object]:
        return lambda case: shutil.copytree(source / "out", case / "out")

    scenarios: dict[str, tuple[Callable[[Path], object], list[object], list[Path]]] = {
        "new": (lambda case: None, command, [whole]),
        "resumed": (with_results_of(begun), ["sample", "--resume", "out"], [whole]),
        "over": (with_results_of(former), command, [whole, former]),
    }
    for name in chosen:
        print(json.dumps({"scenario": name} | sweep(folder / "case", step, *scenarios[name])), flush=True)


if __name__ == "__main__":
    main()
