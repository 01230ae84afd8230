# SPDX-License-Identifier: BSD-3-Clause
"""State dicts in files of safetensors and of torch."""

import json

import pytest
import torch
from damage import metadata_of
from safetensors.torch import save_file
from torch import nn

from rainbow_fast.networks import load_weights, mlp, save_weights
from rainbow_fast.weights import read_state


def test_weights_are_written_with_checksums_and_foreign_ones_are_read_without(tmp_path):
    path, net = tmp_path / "weights.safetensors", mlp((4, 3, 2), seed=0)
    save_weights(net, path)
    assert set(json.loads(metadata_of(path)["sha256"])) == set(net.state_dict())
    save_file(net.state_dict(), path)
    other = load_weights(mlp((4, 3, 2), seed=1), path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_shared_and_strided_weights_are_written(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[0].bias = nn.Parameter(torch.arange(8.0)[::2])
    save_weights(net, tmp_path / "weights.safetensors")
    state = read_state(tmp_path / "weights.safetensors", "path")
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "value, message",
    [
        ({1: torch.ones(2)}, "holds no state dict: its keys are not all names"),
        ({}, "holds no state dict of tensors"),
        ([torch.ones(2)], "holds no state dict of tensors"),
        ({"a": 1}, "holds no state dict of tensors"),
        ({"state_dict": {"a": "b"}}, "holds no state dict of tensors"),
    ],
)
def test_what_is_no_state_dict(tmp_path, value, message):
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=f"^path: .*weights.pt {message}"):
        load_weights(mlp((4, 3, 2)), tmp_path / "weights.pt")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"path: {tmp_path} is a folder, wanted a file"):
        save_weights(mlp((4, 3, 2)), tmp_path)
    with pytest.raises(FileNotFoundError, match="path: no folder .*missing"):
        save_weights(mlp((4, 3, 2)), tmp_path / "missing" / "weights.safetensors")
