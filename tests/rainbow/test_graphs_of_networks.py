# SPDX-License-Identifier: BSD-3-Clause
"""Sampled networks exported with any number of samples, also in a new process, and compiled in one graph."""

from pathlib import Path

import pytest
import torch
from here import draw, fresh_python, threads
from tolerance import REORDERED
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp, scattering

pytestmark = pytest.mark.filterwarnings("ignore:site .*")
BATCHES = (2, 33, 60)  # none of them has the number of samples of the export


def dense() -> tuple[nn.Module, Tensor]:
    return mlp((12, 8, 3), seed=0), draw(60, 12)


def convolutions() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 4, 3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
        return nn.Sequential(*layers), draw(60, 2, 8, 8)


def wavelets() -> tuple[nn.Module, Tensor]:
    network = scattering(3, 1 / 16, scale_last=True, image_size=16, image_channels=1, classes=3, seed=0)
    return network, draw(60, 1, 16, 16)


def sampled(kind: str) -> tuple[nn.Module, Tensor]:
    network, x = KINDS[kind]()
    network, x = network.double().eval(), x.double()
    return rf.fit(network, x, holdout=0.0).sample(factor=2, method="calibrated")[0], x


KINDS = {"dense": dense, "convolutions": convolutions, "wavelets": wavelets}

IN_A_NEW_PROCESS = """
import sys, torch, rainbow_fast
torch.set_num_threads(1)
for name in sys.argv[2:]:
    exported = torch.export.load(f"{sys.argv[1]}/{name}.pt2").module()
    for x, y in torch.load(f"{sys.argv[1]}/{name}.pt"):
        assert torch.equal(exported(x), y), (name, len(x))
"""


@threads(1)
@torch.no_grad()
def test_exported_to_a_new_process_with_equal_bits(tmp_path: Path) -> None:
    for kind in KINDS:
        network, x = sampled(kind)
        exported = torch.export.export(network, (x[:4],), dynamic_shapes=({0: torch.export.Dim("N", min=2)},))
        torch.export.save(exported, tmp_path / f"{kind}.pt2")
        torch.save([(x[:rows], network(x[:rows])) for rows in BATCHES], tmp_path / f"{kind}.pt")
        module = exported.module()
        for rows in BATCHES:
            assert torch.equal(module(x[:rows]), network(x[:rows])), (kind, rows)
    fresh_python(IN_A_NEW_PROCESS, tmp_path, *KINDS)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dense", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*KINDS][1:])])
def test_compiled_in_one_graph(kind: str) -> None:
    """On a CPU, mode="reduce-overhead" compiles as by default: there are no CUDA graphs."""
    network, x = sampled(kind)
    torch._dynamo.reset()
    how = {"mode": "reduce-overhead"} if kind == "dense" else {"backend": "eager"}  # which generates no code
    compiled = torch.compile(network, fullgraph=True, dynamic=True, **how)
    for rows in BATCHES:
        torch.testing.assert_close(compiled(x[:rows]), network(x[:rows]), **REORDERED)
