# SPDX-License-Identifier: BSD-3-Clause
"""The memory of a process, and a plan's memory without what glibc keeps."""

from rainbow_fast.rainbow.planning.estimate import KEPT


def status(line: str) -> int:
    """Bytes of this process: "VmRSS" in memory now, "VmHWM" in memory at most, "VmSize" of addresses."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(text.split()[1]) for text in lines if text.startswith(line))


def without_kept(planned: int) -> float:
    """A plan's peak without what glibc keeps of freed memory."""
    return planned - min(planned / 2, KEPT)
