# SPDX-License-Identifier: BSD-3-Clause
"""Locks on folders between processes."""

import fcntl
import os
import signal
from pathlib import Path

import pytest

from rainbow_fast.locks import locked


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    told, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            with locked(tmp_path, "out"):
                os.write(tell, b"locked")
                signal.pause()
        finally:
            os._exit(0)
    os.close(tell)  # so that a read ends if the process ends
    try:
        with os.fdopen(told, "rb") as pipe:
            assert pipe.read(6) == b"locked"
        with pytest.raises(ValueError, match=f"^--out: {tmp_path} is in use by another run$"):
            with locked(tmp_path, "--out"):
                pytest.fail("two processes have the lock")
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    for _ in range(2):  # again in the same process
        with locked(tmp_path, "--out"):
            pass


def test_file_systems_without_locks_are_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", without)
    with locked(tmp_path, "--out"), locked(tmp_path, "--out"):
        pass
