# SPDX-License-Identifier: BSD-3-Clause
"""Gives memory that is free, but kept by the allocator of the C library, back to the system."""

from __future__ import annotations

import ctypes

LARGE = 2**25  # bytes: as much may be kept. Memory that is given back costs time when it is needed again


class Allocator:
    """Counts the memory that is freed, and gives it back to the system from time to time.

    glibc keeps blocks below 32 MiB after they are freed, in case that they are needed again. Between blocks that stay,
    this may be as much as everything else. Other C libraries have no such call, and nothing is done.
    """

    def __init__(self) -> None:
        self.freed = 0

    def free(self, count: int) -> None:
        """Count bytes that have been freed, and give them back if they are many."""
        self.freed += count
        if self.freed >= LARGE:
            self.give_back()

    def give_back(self) -> None:
        """Give all free memory back to the system."""
        self.freed = 0
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
