# SPDX-License-Identifier: BSD-3-Clause
"""Activations in files: a run that was killed leaves them, and the next run with the same folder removes them."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from here import fresh_python
from torch import nn

import rainbow_fast as rf
from rainbow_fast.owner import Owner

CHILD = """
import json, os, signal, sys
import torch
from torch import nn
import rainbow_fast as rf

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and processes inherit that
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
model = rf.fit(net, torch.randn(200, 64))
where = {"storage": "file", "scratch_dir": sys.argv[1], "resume_dir": sys.argv[2]}

def left():
    return {name: len(os.listdir(os.path.join(sys.argv[1], name))) for name in sorted(os.listdir(sys.argv[1]))}

for by in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
    if os.fork() == 0:
        model.sample(factor=4, progress=lambda done, total, what: done == 5 and os.kill(os.getpid(), by), **where)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -by
    print(json.dumps(left()))
_, resumed = model.sample(factor=4, **where)
print(json.dumps(left()))
assert resumed.to_dict() == model.sample(factor=4, storage="file", scratch_dir=sys.argv[1])[1].to_dict()
"""


def test_killed_runs_leave_no_more_than_the_last_one(tmp_path: Path) -> None:
    """Killed, terminated, and with its terminal closed; a run that goes on leaves nothing."""
    (tmp_path / "scratch").mkdir()
    environment = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    printed = fresh_python(CHILD, tmp_path / "scratch", tmp_path / "run", **environment)
    left = [json.loads(line) for line in printed.splitlines()]
    assert [len(folders) for folders in left] == [1, 1, 1, 0]
    assert len({name for folders in left for name in folders}) == 3 and min(left[0].values()) > 1


def test_every_call_removes_what_is_dead(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    x = torch.randn(50, 64)
    for call in (rf.sample, lambda net, x, **words: rf.compare(net, net, x, **words)):
        dead = tmp_path / f"rainbow_fast-{replace(Owner.here(), started=1)}-abcdefgh"
        dead.mkdir()
        (dead / "activations").write_bytes(b"half")
        call(net, x, storage="file", scratch_dir=str(tmp_path))
        assert list(tmp_path.iterdir()) == []
