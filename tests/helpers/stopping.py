# SPDX-License-Identifier: BSD-3-Clause
"""Runs that stop before their end: their `progress` raises `Stop`."""

from collections.abc import Callable


class Stop(Exception):
    """Stands for the end of the process."""


def stop_when(reached: Callable[[int, int, str], bool]) -> Callable[[int, int, str], None]:
    """A `progress` that stops the run at the first step for which this is true."""

    def progress(done: int, total: int, what: str) -> None:
        if reached(done, total, what):
            raise Stop

    return progress


def stop_at(step: int) -> Callable[[int, int, str], None]:
    """A `progress` that stops the run after so many steps."""
    return stop_when(lambda done, total, what: done == step)
