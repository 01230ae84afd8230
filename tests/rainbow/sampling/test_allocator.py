# SPDX-License-Identifier: BSD-3-Clause
"""Memory that is free goes back to the system, in a process of its own."""

import os
import subprocess
import sys

import pytest
from here import ROOT

from rainbow_fast.rainbow.sampling import allocator
from rainbow_fast.rainbow.sampling.allocator import LARGE, Allocator

HOLES = """
import torch
from rainbow_fast.rainbow.sampling.allocator import Allocator

def memory():
    return next(1024 * int(text.split()[1]) for text in open("/proc/self/status") if text.startswith("VmRSS"))

torch.ones(2**21)  # freed: from now on the allocator keeps blocks of this size
blocks = [torch.ones(2**18) for _ in range(100)]
full = memory()
del blocks[::2]
kept = memory()
Allocator().give_back()
print(full - kept, kept - memory())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_free_memory_between_blocks_in_use_goes_back():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    at_once, later = map(int, done.stdout.split())
    assert at_once < 25 * 2**20 < later, "of 50 blocks of a mebibyte"


def test_it_goes_back_when_it_is_much(monkeypatch):
    calls, counting = [], Allocator()
    monkeypatch.setattr(Allocator, "give_back", lambda self: calls.append(self.freed))
    for _ in range(3):
        counting.free(LARGE // 2)
    assert calls == [LARGE, LARGE + LARGE // 2]


def test_other_c_libraries_have_no_such_call(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    counting = Allocator()
    counting.free(2 * LARGE)
    assert counting.freed == 0
