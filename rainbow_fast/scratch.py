# SPDX-License-Identifier: BSD-3-Clause
"""What processes leave when they are killed: folders for temporary files, and unfinished files.

A folder for temporary files is removed by the next process that makes one beside it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rainbow_fast.io import PART
from rainbow_fast.io import PREFIX as PART_PREFIX
from rainbow_fast.locks import FOLDER, lock
from rainbow_fast.owner import Owner, on_local_disk

PREFIX = "rainbow_fast-"
NAME = re.compile(rf"{PREFIX}(.+)-\w+")
UNFINISHED = re.compile(rf"{re.escape(PART_PREFIX)}(.+)-[0-9a-f]+{re.escape(PART)}", re.ASCII)
DEAD, OTHERS = "dead", "of another user"
DAY = 86_400  # seconds


@contextmanager
def scratch_folder(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A context that gives a new folder for temporary files, and removes it at the end with all that is in it.

    Folders that processes of this user have left in `parent` because they were killed are removed first. The name of a
    folder tells its process, and the process holds a lock on it, so that no folder in use is ever removed.

    Args:
        parent: an existing folder; None (default) for the system's folder for temporary files.

    Raises:
        OSError: no folder can be made in `parent`.
    """
    where = Path(tempfile.gettempdir() if parent is None else parent).absolute()
    remove_dead(where)
    path, held = _locked_folder(where)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # what cannot be removed now is removed by the next run
        os.close(held)


def remove_dead(parent: Path) -> None:
    """Remove the folders that killed processes of this user have left in `parent`.

    A folder of another machine, or of this one before its last start, is removed only if the disk is a local one and
    no process holds the lock.
    """
    for path, state in in_folder(parent):
        if state == DEAD:
            _with_lock(path, remove=True)


def in_folder(parent: Path) -> list[tuple[Path, str]]:
    """Every folder of `scratch_folder` in `parent`, and what is known about it: "dead", or why it is left alone."""
    try:
        names = sorted(entry.name for entry in os.scandir(parent))
    except OSError:
        return []  # a folder that cannot be listed shows nothing to remove
    paths = [parent / name for name in names if _owner(name) is not None]
    return [(path, _with_lock(path)) for path in paths if path.is_dir() and not path.is_symlink()]


def dead_parts(folder: Path) -> list[Path]:
    """The unfinished files in a folder that processes of this user have left because they were killed.

    A file of another machine or container, or on a disk that other machines may write to, is among them only if it has
    not changed for a day.
    """
    owners = {path: _owner(path.name, UNFINISHED) for path in sorted(folder.glob(f"{PART_PREFIX}*{PART}"))}
    return [path for path, owner in owners.items() if owner is not None and _is_dead_part(path, owner)]


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds the lock on it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{Owner.here()}-", dir=parent))
        try:
            descriptor = os.open(path, FOLDER)
        except FileNotFoundError:  # removed by a process that cannot see this one, before the lock
            continue
        if lock(descriptor) is not False and path.exists():
            return path, descriptor
        os.close(descriptor)


def _owner(name: str, pattern: re.Pattern[str] = NAME) -> Owner | None:
    match = pattern.fullmatch(name)
    return None if match is None else Owner.parse(match[1])


def _with_lock(path: Path, *, remove: bool = False) -> str:
    """The state of a folder, as in `in_folder`. If it is dead and `remove` is set, it is removed under the lock."""
    try:
        descriptor = os.open(path, FOLDER | os.O_NOFOLLOW)
    except OSError:
        return OTHERS
    try:
        state = _state(path, descriptor)
        if state == DEAD and remove:
            shutil.rmtree(path, ignore_errors=True)
        return state
    finally:
        os.close(descriptor)


def _state(path: Path, descriptor: int) -> str:
    owner = _owner(path.name)
    if owner is None or os.fstat(descriptor).st_uid != os.geteuid():
        return OTHERS
    ended = owner.ended()
    held = None if ended is False else lock(descriptor)
    if ended is False or held is False:
        return "in use"
    if ended is None and not (held and on_local_disk(descriptor)):
        return "of another machine"
    return DEAD


def _is_dead_part(path: Path, owner: Owner) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        ended = owner.ended()
        if ended is False or not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        return bool(ended and on_local_disk(descriptor)) or time.time() - status.st_mtime > DAY
    finally:
        os.close(descriptor)
