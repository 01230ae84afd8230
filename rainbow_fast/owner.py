# SPDX-License-Identifier: BSD-3-Clause
"""The process that owns a temporary file or folder, as a part of its name, and whether that process has ended."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
NOWHERE = "0" * 12  # the host of a process that cannot read /proc
STARTED = 19  # place of the start time in /proc/PID/stat, counted from the state, which follows the name
ENDED = ("Z", "X")  # states of processes that have ended, but still have a number
TEXT = re.compile(r"([0-9a-f]{12})-(\d{1,20})-(\d{1,20})", re.ASCII)
LOCAL = frozenset("bcachefs btrfs exfat ext2 ext3 ext4 f2fs jfs overlay ramfs reiserfs tmpfs vfat xfs zfs".split())


@dataclass(frozen=True)
class Owner:
    """A process, named so that no other process has the same name. As text it is ``host-process-started``.

    Attributes:
        host: 12 hexadecimal digits, which stand for one boot of one machine and, in a container, for the container.
        process: the number of the process.
        started: when it started, in clock ticks after the boot. Numbers of processes are used again, times are not.
    """

    host: str
    process: int
    started: int

    def __str__(self) -> str:
        return f"{self.host}-{self.process}-{self.started}"

    @classmethod
    def here(cls) -> Owner:
        """The owner that stands for this process."""
        stat = _stat(os.getpid())
        return cls(_host() if stat else NOWHERE, os.getpid(), int(stat[STARTED]) if stat else 0)

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner whose text is `text`; None if it is no such text."""
        match = TEXT.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]), int(match[3]))

    def ended(self) -> bool | None:
        """Whether the process has ended; None if that cannot be known here, because it belongs to another host."""
        if self.host == NOWHERE or self.host != _host():
            return None
        stat = _stat(self.process)
        return None if stat is None else _over(stat) or int(stat[STARTED]) != self.started


def on_local_disk(descriptor: int) -> bool:
    """Whether an open file or folder lies in a file system that no other machine can write to.

    File systems of unknown types count as shared.
    """
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = [line.split() for line in (PROC / "self/mountinfo").read_text(errors="replace").splitlines()]
    except OSError:
        return False
    types = {words[words.index("-") + 1] for words in mounts if words[2] == number}
    return bool(types) and types <= LOCAL


def _host() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink(PROC / "self/ns/pid")  # processes are numbered anew in each of these namespaces
    except OSError:
        return NOWHERE
    return hashlib.sha256(f"{boot} {numbers}".encode()).hexdigest()[:12]


def _stat(process: int) -> list[str] | None:
    """State, start time and other fields of a process. Empty if there is no such process, None if it is hidden."""
    try:
        text = (PROC / str(process) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return [] if (PROC / "self/stat").exists() else None
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _over(stat: list[str]) -> bool:
    return not stat or stat[0] in ENDED
