# SPDX-License-Identifier: BSD-3-Clause
"""State dicts in files of safetensors and of torch."""

import argparse
import json

import numpy as np
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


def trained() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.normal_(net[1].running_mean)
    return net


def prefixed(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in net.state_dict().items()}


def other(net: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of the same keys and shapes."""
    return {key: torch.zeros_like(value) for key, value in net.state_dict().items()}


def half_wrapped(net: nn.Sequential) -> dict[str, torch.Tensor]:
    """As if a part of the network had been wrapped in DataParallel and another compiled."""
    names = {"0.weight": "0.module.weight", "0.bias": "0.module.bias", "3.weight": "3._orig_mod.weight"}
    return {names.get(key, key): value for key, value in net.state_dict().items()}


def without_counters(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}


WRAPPED = {
    "plain.pt": lambda net: net.state_dict(),
    "hub.bin": lambda net: net.state_dict(),
    "model_best.pth.tar": lambda net: {"state_dict": prefixed(net, "module."), "epoch": 180, "best_prec1": 91.2},
    "resnet20-12fca82f.th": lambda net: {"state_dict": prefixed(net, "module."), "best_prec1": np.float64(91.2)},
    "ckpt.pth": lambda net: {"net": prefixed(net, "module."), "acc": 93.1, "epoch": 180},
    "tutorial.pt": lambda net: {
        "epoch": 5,
        "optimizer_state_dict": torch.optim.Adam(net.parameters()).state_dict(),
        "model_state_dict": net.state_dict(),
        "loss": torch.tensor(0.3),
    },
    "compiled.pt": lambda net: {"model": prefixed(net, "_orig_mod.")},
    "both.pt": lambda net: {"model": prefixed(net, "module._orig_mod.")},
    "other way.pt": lambda net: {"model": prefixed(net, "_orig_mod.module.")},
    "lightning.ckpt": lambda net: {
        "state_dict": {"loss.weight": torch.ones(2)} | prefixed(net, "model.") | {"loss.bias": torch.ones(2)},
        "pytorch-lightning_version": "2.5.0",
    },
    "compiled lightning.ckpt": lambda net: {"state_dict": prefixed(net, "model._orig_mod.")},
    "its own name.ckpt": lambda net: {"state_dict": prefixed(net, "backbone.body.")},
    "args.pth": lambda net: {"model": net.state_dict(), "args": argparse.Namespace(lr=0.1, out=None)},
    "ema.pth": lambda net: {"ema": net.state_dict(), "updates": 7},
    "ema of two.pth": lambda net: {"ema": other(net), "state_dict": net.state_dict()},
    "ema beside.ckpt": lambda net: {
        "state_dict": prefixed(net, "model.") | {f"ema.{key}": value for key, value in other(net).items()}
    },
    "averaged.pt": lambda net: {"n_averaged": torch.tensor(3)} | prefixed(net, "module."),
    "nested.pt": lambda net: {"state": {"model": {"module": net.state_dict()}}},
    "beside numbers.pt": lambda net: net.state_dict() | {"epoch": 3, "name": "net"},
    "half wrapped.pt": half_wrapped,
    "old.pt": without_counters,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
@pytest.mark.parametrize("file", WRAPPED)
def test_checkpoints_of_training_scripts(tmp_path, file, legacy):
    net = trained()
    torch.save(WRAPPED[file](net), tmp_path / file, _use_new_zipfile_serialization=not legacy)
    loaded = load_weights(trained(), tmp_path / file).state_dict()
    assert all(
        torch.equal(loaded[key], value) for key, value in net.state_dict().items() if key in without_counters(net)
    )


def test_the_content_of_a_file_decides_how_it_is_read(tmp_path):
    net = trained()
    for size in range(640, 640 + 64, 8):  # of a header: the first bytes of the file, which may be those of a pickle
        save_file(net.state_dict(), tmp_path / "weights.pt", metadata={"of": "x" * (size - 500)})
        torch.save(net.state_dict(), tmp_path / "weights.safetensors")
        for name in ("weights.pt", "weights.safetensors"):
            loaded = load_weights(trained(), tmp_path / name).state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())


def test_parts_that_have_names_of_wrappers(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)
            self.weight = nn.Parameter(torch.randn(4))
            self.module.module = nn.Linear(3, 3)

    net = Net()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pt")
    loaded = load_weights(Net(), tmp_path / "net.pt").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    "value, message",
    [
        ({1: torch.ones(2)}, r"a dict from names to tensors, got 1 keys \(1\)"),
        ({}, "a dict from names to tensors, got an empty dict"),
        ([torch.ones(2)], "a dict from names to tensors, got list"),
        ({"a": 1, "b": 2}, r"a dict from names to tensors, got 2 keys \(a, b\)"),
        ({"state_dict": {"a": "b"}}, r"a dict from names to tensors, got 1 keys \(state_dict\)"),
    ],
)
def test_what_is_no_state_dict(tmp_path, value, message):
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=f"^path: .*weights.pt holds no state dict: wanted {message}$"):
        load_weights(mlp((4, 3, 2)), tmp_path / "weights.pt")


def test_a_state_dict_of_another_network(tmp_path):
    """The message is about the state dict and the prefix that fit best, and shows the keys of both."""
    net = trained()
    state = {"module.body." + key: value for key, value in net.state_dict().items() if key != "3.bias"}
    state["module.body.head.bias"] = torch.ones(2)
    torch.save({"ema": {"x": torch.ones(1)}, "model": state}, tmp_path / "weights.pt")
    message = (
        r"does not fit the network: missing 3.bias; unexpected head.bias. The file has 9 keys \(module.body.0.weight, "
        r"module.body.0.bias, module.body.1.weight, module.body.1.bias, ...\); the network has 9 keys \(0.weight, "
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(net, tmp_path / "weights.pt")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_whole_module_is_not_unpickled(tmp_path):
    torch.save(trained(), tmp_path / "module.pt")
    message = r"module.pt cannot be read .* wanted one of `torch.save\(network.state_dict\(\), path\)`"
    with pytest.raises(ValueError, match=message):
        load_weights(trained(), tmp_path / "module.pt")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"path: {tmp_path} is a folder, wanted a file"):
        save_weights(mlp((4, 3, 2)), tmp_path)
    with pytest.raises(FileNotFoundError, match="path: no folder .*missing"):
        save_weights(mlp((4, 3, 2)), tmp_path / "missing" / "weights.safetensors")
