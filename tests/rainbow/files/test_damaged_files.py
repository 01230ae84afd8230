# SPDX-License-Identifier: BSD-3-Clause
"""Damaged files of every kind are refused by name; old ones load with a note."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import as_older, flipped, resealed
from safetensors.torch import load_file
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast import tensor_files
from rainbow_fast.cli.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from rainbow_fast.cli.training import new_reference
from rainbow_fast.networks import load_weights, mlp, save_weights
from rainbow_fast.rainbow.files.model_file import MODEL
from rainbow_fast.rainbow.files.network_file import NETWORK
from rainbow_fast.rainbow.sampling.checkpoint import RUN, SITE

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]


def reference() -> nn.Module:
    return mlp((16, 12, 8, 5), seed=0)


def x(N: int = 60) -> Tensor:
    return torch.randn(N, 16, generator=torch.Generator().manual_seed(0))


def model() -> rf.RainbowModel:
    return rf.fit(reference(), (x(), torch.arange(60) % 5))


def write_network(path: Path) -> None:
    rf.save(model().sample(factor=2, method="calibrated", rank=4, classifier="refit_aligned")[0], path)


def write_model(path: Path) -> None:
    rf.save_model(model(), path)


def write_run(path: Path) -> None:
    model().sample(factor=2, resume_dir=path.parent / "run")
    (path.parent / "run" / "run.safetensors").rename(path)


def write_site(path: Path) -> None:
    model().sample(factor=2, classifier="refit", resume_dir=path.parent / "run")
    (path.parent / "run" / "network-0-site-1.safetensors").rename(path)


def write_checkpoint(path: Path) -> None:
    about = new_reference("mlp", "digits")
    save_checkpoint(about.build(), about, path)


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "network": (write_network, lambda path: rf.load(path, reference())),
    "model": (write_model, lambda path: rf.load_model(path, reference())),
    "run": (write_run, RUN.read),
    "site": (write_site, SITE.read),
    "checkpoint": (write_checkpoint, load_checkpoint),
    "weights": (lambda path: save_weights(reference(), path), lambda path: load_weights(reference(), path)),
}


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed(tmp_path, kind, count):
    write, read = KINDS[kind]
    path = tmp_path / "file.safetensors"
    write(path)
    data = path.read_bytes()
    read(path)
    for damaged in flipped(data, seed=len(kind), count=count):
        path.write_bytes(damaged)
        if kind == "weights" and tensor_files.SUMS not in metadata_of_damaged(damaged):
            other = load_weights(mlp((16, 12, 8, 5), seed=1), path)  # the bit is in the name of the checksums
            assert all(map(torch.equal, other.state_dict().values(), reference().state_dict().values()))
            continue
        with pytest.raises(ValueError, match="file.safetensors "):
            read(path)


def metadata_of_damaged(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; an entry for the checksums stands for a header that is not JSON."""
    try:
        return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    except (ValueError, KeyError):
        return {tensor_files.SUMS: ""}


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_noticed(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "file.safetensors"
    write(path)
    data = path.read_bytes()
    for length in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"file.safetensors is not a whole safetensors file"):
            read(path)


@pytest.mark.parametrize("kind, version", [("network", 3), ("model", 2), ("run", 1), ("site", 1), ("checkpoint", 1)])
def test_files_without_checksums_load_with_a_note(tmp_path, kind, version):
    write, read = KINDS[kind]
    path = tmp_path / "file.safetensors"
    write(path)
    as_older(path, version)
    with pytest.warns(UserWarning, match="file.safetensors was written by an older version, without checksums"):
        read(path)


def changed(**values: Any) -> Callable[[dict], dict]:
    """A change of entries of the header."""
    return lambda header: header | values


def of_site(**values: Any) -> Callable[[dict], dict]:
    """A change of entries of the first site in the header."""
    return lambda header: header | {"sites": [header["sites"][0] | values, *header["sites"][1:]]}


def without(name: str) -> Callable[[dict], dict]:
    return lambda header: {key: value for key, value in header.items() if key != name}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda header: [], "its header cannot be read"),
        (lambda header: {}, "its header cannot be read"),
        (changed(more=1), "its header cannot be read"),
        (changed(sites=[]), "its header cannot be read"),
        (changed(classifier="zzz"), "its header cannot be read"),
        (changed(own_layers=["2"]), "it has no '2.layer'"),
        (changed(input_shape=[10**15]), r"it names an input of shape \[1000000000000000\]"),
        (changed(input_shape=[2**14, 2**13]), "it names an input of shape"),
        (changed(input_shape=[0]), "its header cannot be read"),
        (changed(input_shape=[17]), "does not fit the reference"),
        (changed(reference=1), "its header cannot be read"),
        (without("input_shape"), "its header cannot be read"),
        (of_site(n=0), "its header cannot be read"),
        (of_site(n=-1), "its header cannot be read"),
        (of_site(n=2**62), r"does not fit the reference: T is|does not fit the reference: site '2' has A of shape"),
        (of_site(n=12), "does not fit the reference"),
        (of_site(d=0), "its header cannot be read"),
        (of_site(d=None), "its header cannot be read"),
        (of_site(d=10), "does not fit the reference"),
        (of_site(h="x"), "its header cannot be read"),
        (of_site(h=2.0), "its header cannot be read"),
        (of_site(flattened=1), "its header cannot be read"),
        (of_site(flattened=True), None),
        (of_site(name="none"), "does not fit the reference: it has no site 'none', wanted one of 2, 4"),
    ],
)
def test_headers_of_networks_that_are_refused(tmp_path, change, message):
    """The checksums fit: somebody wrote this header on purpose."""
    path = tmp_path / "file.safetensors"
    write_network(path)
    resealed(path, NETWORK, change)
    if message is None:  # A of all positions of a site with one position is the same map
        rf.load(path, reference())
        return
    with pytest.raises(ValueError, match=f"path: .*file.safetensors .*({message})"):
        rf.load(path, reference())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sites":' * 10_000, "", "NaN", '{"sites": NaN}', "\ud800"])
def test_texts_that_are_no_header(tmp_path, text):
    path = tmp_path / "file.safetensors"
    write_network(path)
    if text == "\ud800":
        text = '"\\ud800"'
    resealed(path, NETWORK, text=text)
    with pytest.raises(ValueError, match="file.safetensors is damaged: its header cannot be read"):
        rf.load(path, reference())


BUFFERS = [
    ("A", lambda t: t[0], "A is torch.float32 of shape|offset is"),
    ("A", lambda t: t[:-1], "offset is torch.float32 of shape"),
    ("A", lambda t: t[:, :-1], "has A of shape"),
    ("key", lambda t: t[:3], "key is torch.int64 of shape"),
    ("key", lambda t: t.double(), "key is torch.float64 of shape"),
    ("U", lambda t: t[:-1], "U is torch.float64 of shape"),
    ("U", lambda t: t[0], "U is torch.float64 of shape"),
    ("gain", lambda t: t[:-1], "gain is torch.float32 of shape|gain is torch.float64 of shape"),
    ("gain", lambda t: None, "gain and bias: wanted both or none"),
    ("scale", lambda t: t.expand(2), "scale is torch.float64 of shape"),
    ("offset", lambda t: t[:-1], "offset is torch.float"),
]


@pytest.mark.parametrize("name, change, message", BUFFERS)
def test_buffers_of_networks_that_are_refused(tmp_path, name, change, message):
    path = tmp_path / "file.safetensors"
    write_network(path)
    tensors = load_file(path)
    site = next(site for site in ("4.", "2.") if site + name in tensors)
    value = change(tensors.pop(site + name))
    resealed(path, NETWORK, tensors=tensors if value is None else tensors | {site + name: value})
    with pytest.raises(ValueError, match=f"file.safetensors does not fit the reference: .*({message})"):
        rf.load(path, reference())


def test_a_classifier_or_neurons_that_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    write_network(path)
    tensors = load_file(path)
    resealed(path, NETWORK, tensors=tensors | {"classifier.weight": tensors["classifier.weight"][:-1]})
    with pytest.raises(ValueError, match="file.safetensors does not fit the reference: its classifier has shapes"):
        rf.load(path, reference())
    rf.save(model().sample(law="bootstrap")[0], path)
    tensors = load_file(path)
    resealed(path, NETWORK, tensors=tensors | {"2.k": tensors["2.k"] + 12})
    with pytest.raises(ValueError, match="file.safetensors does not fit the reference: k names neurons outside 0 .."):
        rf.load(path, reference())


def test_inputs_too_large_to_be_read_again_are_not_saved(tmp_path):
    network, _ = model().sample()
    network.input_shape = (2**14, 2**13)
    with pytest.raises(ValueError, match=r"network: takes inputs \(16384, 8192\), wanted at most 67108864 numbers"):
        rf.save(network, tmp_path / "file")


MODELS = [
    ("alignment.x", lambda t: t[:0], "its samples have shapes"),
    ("held_out.x", lambda t: t[:, :-1], "its samples have shapes"),
    ("alignment.labels", lambda t: t[:-1], "its labels are torch.int64 of shape"),
    ("sites.0.cross", lambda t: t[:-1], "site '2' wanted moments of 12 channels, float64"),
    ("sites.0.cross", lambda t: t.float(), "site '2' wanted moments of 12 channels, float64"),
    ("sites.0.total_x", lambda t: t[:-1], "site '2': state: total_x has shape"),
    ("sites.0.count", lambda t: -t, "site '2' has no number of samples"),
    ("sites.0.count", lambda t: t.double(), "site '2' has no number of samples"),
]


def test_labels_of_another_kind(tmp_path):
    """They may be labels of a metric, which is no part of the file."""
    path = tmp_path / "file.safetensors"
    write_model(path)
    tensors = load_file(path)
    resealed(path, MODEL, tensors=tensors | {"alignment.labels": tensors["alignment.labels"] / 2})
    message = "path: .*file.safetensors does not fit reference, output or metric: alignment: labels y are float32"
    with pytest.raises(ValueError, match=message):
        rf.load_model(path, reference())
    rf.load_model(path, reference(), metric=lambda outputs, y: 0.0)


@pytest.mark.parametrize("name, change, message", MODELS)
def test_tensors_of_models_that_are_refused(tmp_path, name, change, message):
    path = tmp_path / "file.safetensors"
    write_model(path)
    tensors = load_file(path)
    resealed(path, MODEL, tensors=tensors | {name: change(tensors[name])})
    with pytest.raises(ValueError, match=f"path: .*file.safetensors is damaged: {message}"):
        rf.load_model(path, reference())


@pytest.mark.parametrize(
    "change, message",
    [
        (changed(max_samples=0), "its header cannot be read"),
        (changed(max_samples=2.5), "its header cannot be read"),
        (of_site(d="12"), "its header cannot be read"),
        (of_site(z_shape=[[12]]), "its header cannot be read"),
        (of_site(activity="x"), "its header cannot be read"),
    ],
)
def test_headers_of_models_that_are_refused(tmp_path, change, message):
    path = tmp_path / "file.safetensors"
    write_model(path)
    resealed(path, MODEL, change)
    with pytest.raises(ValueError, match=f"path: .*file.safetensors is damaged: {message}"):
        rf.load_model(path, reference())


@pytest.mark.parametrize(
    "change, message",
    [
        (changed(architecture="__import__"), "its header cannot be read"),
        (changed(architecture="mlp\n"), "its header cannot be read"),
        (changed(data="/etc"), "its header cannot be read"),
        (changed(accuracy="1"), "its header cannot be read"),
        (changed(arguments={"sizes": [64, 10**9, 10]}), "it describes no network .tensor"),
        (changed(arguments={"sizes": [8] * 10**6}), "it describes no network .999999 layers, but 3 tensors"),
        (changed(arguments={"sizes": "abc"}), "it describes no network"),
        (changed(arguments={"sizes": [64, [1], 10]}), "it describes no network"),
        (changed(arguments={"sises": [64, 10]}), "it describes no network"),
        (changed(arguments={}), "it describes no network .tensor"),
    ],
)
def test_headers_of_checkpoints_that_are_refused(tmp_path, change, message):
    path = tmp_path / "file.safetensors"
    write_checkpoint(path)
    resealed(path, CHECKPOINT, change)
    with pytest.raises(ValueError, match=f"checkpoint: {path} is damaged: {message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_of_torch_are_refused_by_name(tmp_path, seed):
    """What loads has no checksum: zip archives have one of 32 bits for each tensor, which torch does not compare."""
    path = tmp_path / "weights.pt"
    torch.save(reference().state_dict(), path)
    data = path.read_bytes()
    for number, damaged in enumerate(flipped(data, seed, 100)):
        path.write_bytes(damaged)
        try:
            load_weights(reference(), path)
        except ValueError as error:
            assert str(error).startswith(f"path: {path} "), number


def test_truncated_files_of_torch_are_refused_by_name(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(reference().state_dict(), path)
    data = path.read_bytes()
    for part in range(20):
        path.write_bytes(data[: len(data) * part // 20])
        with pytest.raises(ValueError) as caught:
            load_weights(reference(), path)
        assert str(caught.value).startswith(f"path: {path} "), part
