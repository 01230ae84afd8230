# SPDX-License-Identifier: BSD-3-Clause
"""The memory of wide samples: only M in float64 and each A in float32 are as wide as the sample."""

import pytest
from here import fresh_python

SAMPLE = """
import torch
import rainbow_fast as rf
from memory import status
from rainbow_fast.networks import mlp

torch.set_num_threads(1)
x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
model = rf.fit(mlp((16, 64, 64, 4), seed=0), x)
model.sample(width=100, method="METHOD")
before = status("VmHWM")
network, report = model.sample(width=200_000, method="METHOD")
print((status("VmHWM") - before) / (64 * 200_000 * 8))
"""


@pytest.mark.parametrize("method", ["paper", "calibrated"])
def test_memory(method: str) -> None:
    """M, and half of it for each of two A. The rest are eight rows of 64, blocks of neurons, and vectors."""
    assert float(fresh_python(SAMPLE.replace("METHOD", method))) < 2.6
