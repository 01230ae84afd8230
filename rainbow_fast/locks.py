# SPDX-License-Identifier: BSD-3-Clause
"""Locks on folders. A lock ends with the process that holds it, in whatever way the process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY


def lock(descriptor: int) -> bool | None:
    """Try to lock an open folder until it is closed.

    Returns:
        True: this process has the lock. False: another process has it. None: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """A context in which this process has a folder for itself.

    File systems without locks, such as some network file systems, are used without one.

    Raises:
        ValueError: another process has the folder; the message begins with `name`.
        OSError: there is no folder, or no permission to read it.
    """
    descriptor = os.open(folder, FOLDER)
    try:
        if lock(descriptor) is False:
            raise ValueError(f"{name}: {folder} is in use by another run")
        yield
    finally:
        os.close(descriptor)
