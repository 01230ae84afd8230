# SPDX-License-Identifier: BSD-3-Clause
"""Gives memory that is free, but kept by the allocator of the C library, back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Give free memory back to the system, so that a process holds no more than what is in use.

    glibc keeps blocks below 32 MiB after they are freed, in case that they are needed again. In a run this may be as
    much as everything else. Other C libraries have no such call, and nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
