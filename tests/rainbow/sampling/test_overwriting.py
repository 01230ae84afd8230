# SPDX-License-Identifier: BSD-3-Clause
"""The output of a ReLU is written over its input only where nothing else reads that memory."""

import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf


class Shared(nn.Module):
    """The first ReLU is applied to the data; the input of the second one is read again, as itself and as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.relu())
        h = self.second(torch.cat([z.relu(), z.view(-1, 6)], 1))
        return self.last(h.relu() + h + x)


class Skip(nn.Module):
    """The input of the second ReLU exists before the first site, where the sampled network leaves the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        a = self.third(self.second(h).relu())
        return self.last(h.relu() + a)


class Chain(nn.Sequential):
    """Layers whose inputs nothing reads again."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("make", [Shared, Skip, Chain])
def test_results_are_those_of_a_run_that_overwrites_nothing(make):
    """With the storage "recompute" every activation is computed into new memory."""
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(64, 6, dtype=torch.float64)
    before = x.clone()
    for law in ("gaussian", "identity"):
        kept, _ = rf.sample(net, x, law=law, seed=0, holdout=0, batch_size=16)
        again, _ = rf.sample(net, x, law=law, seed=0, holdout=0, batch_size=16, storage="recompute")
        assert torch.equal(kept(x), again(x))
        assert torch.equal(x, before)
    assert (kept(x) - net(x)).norm() < 1e-12 * net(x).norm()  # the identity, to the rounding of float64


def test_what_a_hook_keeps_stays_as_it_was():
    net, kept = Chain(), []
    net[2].register_forward_hook(lambda module, inputs, output: kept.append((output, output.clone())))
    rf.sample(net, torch.randn(64, 6), holdout=0, batch_size=16)
    assert kept and all(torch.equal(output, copy) for output, copy in kept)


def test_memory_is_written_once(monkeypatch):
    """The chain overwrites the input of its second ReLU; that of the first one is shared by both networks."""
    written, relu_ = [], Tensor.relu_
    monkeypatch.setattr(Tensor, "relu_", lambda z: (written.append(tuple(z.shape)), relu_(z))[1])
    x = torch.randn(64, 6)
    rf.sample(Chain(), x, holdout=0, batch_size=16, width=8)
    assert written == [(16, 6)] * 4
    written.clear()
    rf.sample(Shared(), x, holdout=0, batch_size=16, width=8)
    assert not written
