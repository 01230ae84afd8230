# SPDX-License-Identifier: BSD-3-Clause
"""If a kernel runs out of memory, on any thread, it raises a MemoryError and the process goes on."""

import sys

import pytest
from here import PRESENT, fresh_python

CODE = """
import resource
import torch, rainbow_fast as rf

torch.set_num_threads(2)
source = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(shape, generator=source)
large, batch, double, maps = draw(300, 400), draw(8, 150, 200), draw(2, 200, 200).double(), draw(4, 80, 32, 32)
x, P, A = draw(4096, 300), draw(300, 4000), draw(300, 1000)
calls = {
    "polar, large": lambda: rf.polar(large),
    "polar, batch": lambda: rf.polar(batch),
    "polar, double": lambda: rf.polar(double),
    "cross_covariance": lambda: rf.cross_covariance(x, center=True),
    "patches": lambda: rf.cross_covariance(maps, patch=3),
    "sample_project_align": lambda: rf.sample_project_align(500, P, seed=1),
    "covariance": lambda: rf.random_features_covariance(x, x, 1000, seed=1),
    "projection": lambda: rf.random_features_projection(x, A, seed=1),
}
none = resource.getrlimit(resource.RLIMIT_AS)[1]

def outcome(call, room):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, none))
    try:
        call()
        return "result"
    except MemoryError:
        return "MemoryError"
    except RuntimeError as error:  # torch's own, of a tensor
        return "RuntimeError" if "can't allocate memory" in str(error) else repr(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (none, none))

for name, call in calls.items():
    call()  # threads, and what libraries take once
    print(name, *(outcome(call, room << 18) for room in (1, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 1024)), sep=";")
"""


@pytest.mark.skipif("cpu" not in PRESENT or sys.platform != "linux", reason="for kernels; limits of Linux")
def test_memory_that_ends_is_a_memory_error() -> None:
    # Freed memory goes back to the system at once, so that it is counted as free.
    lines = fresh_python(CODE, MALLOC_TRIM_THRESHOLD_="0", MALLOC_MMAP_THRESHOLD_="65536", MALLOC_ARENA_MAX="1")
    outcomes_of = {name: outcomes for name, *outcomes in (line.split(";") for line in lines.splitlines())}
    assert len(outcomes_of) == 8
    for name, outcomes in outcomes_of.items():
        assert set(outcomes) <= {"result", "MemoryError", "RuntimeError"}, (name, outcomes)
        assert "MemoryError" in outcomes and outcomes[-1] == "result", (name, outcomes)
