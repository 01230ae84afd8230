# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the global random state unchanged while a user's code runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """On exit, restore the random state of torch (on the CPU and on `device`), of Python and of NumPy."""
    python, numpy = random.getstate(), np.random.get_state()
    kind, devices = ("cuda", []) if device.type == "cpu" else (device.type, [device])
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
