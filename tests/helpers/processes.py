# SPDX-License-Identifier: BSD-3-Clause
"""Cases of a test in processes of their own, two at a time."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from here import ROOT

Finished = Callable[..., subprocess.CompletedProcess]


def start(request: pytest.FixtureRequest, test: str, run: Finished) -> Iterator[Finished]:
    """For a fixture of a module: calls `run` with the arguments of each chosen case of the test `test`, and yields a
    function that waits for the result of a case."""
    cases = [
        item.callspec.params for item in request.session.items if (item.path, item.originalname) == (request.path, test)
    ]
    with ThreadPoolExecutor(2) as pool:
        futures = {str(case): pool.submit(run, **case) for case in cases}
        yield lambda **case: futures[str(case)].result()
        for future in futures.values():
            future.cancel()  # if a failure has ended the session


def pytest_of(files: Iterable[Path], *options: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the tests of some files on one thread, with variables of the environment given by name."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *map(str, files)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def passed(done: subprocess.CompletedProcess, file: Path) -> int:
    """The number of tests of a file that have passed, in the output of `pytest_of` with the option -rA."""
    starts = f"PASSED {os.path.relpath(file, ROOT)}::"
    return sum(line.startswith(starts) for line in done.stdout.splitlines())
