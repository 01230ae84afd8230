# SPDX-License-Identifier: BSD-3-Clause
"""Every registered op with arguments that are nearly right writes only what it should; see fuzz_ops.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz_ops import VALID, Maker
from parameters import slow_but_for

import rainbow_fast  # noqa: F401  registers the ops

CALLS = 40_000


def test_every_registered_op_is_called() -> None:
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("rainbow_fast::") for s in schemas if s.name.startswith("rainbow_fast::")}
    assert names == set(VALID)


@pytest.mark.parametrize("seed", slow_but_for([1], range(1, 7)))
@pytest.mark.parametrize("name", VALID)
def test_registered_as_torch_asks(name: str, seed: int) -> None:
    """torch's own check of schema, autograd, fake tensors and tracing, on valid calls."""
    op, args = getattr(torch.ops.rainbow_fast, name).default, VALID[name](Maker(seed))
    if not name.endswith("_") and not name.endswith("_out"):
        for t in args:
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                t.requires_grad_()
    torch.library.opcheck(op, tuple(args))


def test_nothing_is_written_outside_of_outputs() -> None:
    command = [sys.executable, Path(__file__).parents[1] / "helpers" / "fuzz_ops.py", "0", str(CALLS)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, outcomes in json.loads(done.stdout).items():
        share = outcomes.get("returned", 0) / sum(outcomes.values())
        assert 0.1 < share < 0.95, f"{name}: {outcomes}: neither all nor none of the calls should be good"
        assert outcomes.get("ValueError", 0) + outcomes.get("TypeError", 0) > 0, f"{name}: {outcomes}"
