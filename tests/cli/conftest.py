# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the tests of the command line."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from here import threads


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and "run", the results of a network sampled from it."""
    from runs import finished_run  # needs what the command line needs

    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a finished run; it is called "run" in the current folder, where its checkpoint is as well."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "here"))
    with threads(1):
        yield tmp_path / "here" / "run"
