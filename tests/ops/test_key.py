# SPDX-License-Identifier: BSD-3-Clause
"""The key of a sampled site is on the host and in the state dict, is no buffer, and causes no new compilation."""

import copy
import pickle

import pytest
import torch
from here import differing_bits, draw
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import rainbow_fast as rf


@pytest.fixture(scope="module")
def sampled() -> rf.RainbowNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)).eval()
    return rf.fit(network, draw(200, 6), holdout=0.0).sample(factor=3, seed=5)[0]


def test_it_is_no_buffer_and_goes_with_the_module(sampled: rf.RainbowNetwork) -> None:
    site = sampled.site("1")
    assert site.key.tolist() == rf.key(5).tolist() and "key" not in dict(site.named_buffers())
    assert copy.deepcopy(site).key.tolist() == site.key.tolist()
    assert pickle.loads(pickle.dumps(site)).key.tolist() == site.key.tolist()  # noqa: S301  made a line above
    for moved in (copy.deepcopy(sampled).to("meta"), copy.deepcopy(sampled).half(), copy.deepcopy(sampled).double()):
        assert moved.site("1").key.device.type == "cpu" and moved.site("1").key.dtype == torch.int64


def test_it_is_in_the_state_dict(sampled: rf.RainbowNetwork) -> None:
    state = sampled.state_dict()
    assert state["body.1.key"].tolist() == [5, 0, 0, 0] and state["body.3.key"].tolist() == [5, 1, 0, 0]
    other = copy.deepcopy(sampled)
    for name in ("1", "3"):
        other.site(name).key = rf.key(9)
    x = draw(7, 6, seed=1)
    assert differing_bits(other(x), sampled(x)) > 0
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert differing_bits(other(x), sampled(x)) == 0
    assert other.site("1").key.data_ptr() != state["body.1.key"].data_ptr()


def test_a_state_without_it_or_with_another_thing(sampled: rf.RainbowNetwork) -> None:
    other, state = copy.deepcopy(sampled), sampled.state_dict()
    missing = {name: t for name, t in state.items() if name != "body.1.key"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "body.1.key"'):
        other.load_state_dict(missing)
    assert other.load_state_dict(missing, strict=False).missing_keys == ["body.1.key"]
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(4)):
        with pytest.raises(RuntimeError, match=r"seed is a torch.* tensor of shape .*: wanted integers, or a key"):
            other.load_state_dict(state | {"body.1.key": wrong})
    assert other.site("1").key.tolist() == [5, 0, 0, 0]


def test_ten_seeds_are_one_compilation(sampled: rf.RainbowNetwork) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    network, x = copy.deepcopy(sampled), draw(7, 6, seed=1)
    fast = torch.compile(network, backend=counter, fullgraph=True)
    counts = []
    for seed in range(10):
        for name in ("1", "3"):
            network.site(name).key = rf.key(seed, 3)
        assert differing_bits(fast(x), network(x)) == 0
        counts.append(counter.frame_count)
    assert set(counts) == {counts[0]}, f"compilations after each call: {counts}"


def test_a_key_elsewhere_is_refused() -> None:
    """If a launch had to fetch its address, it would wait for the GPU."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda:0")

    with pytest.raises(ValueError, match=r"seed is a key on cuda:0: wanted it on the CPU, where kernels are launched"):
        rf.gaussian(2, 2, seed=rf.key(1).as_subclass(Elsewhere))
