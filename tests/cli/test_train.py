# SPDX-License-Identifier: BSD-3-Clause
"""The command `train`: presets, snapshots, trainings that go on after a kill, scattering networks, wrong words."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from here import ROOT

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from runs import contents
from training_kills import same_checkpoint

from rainbow_fast.cli.checkpoints import CHECKPOINT, About, load_checkpoint, save_checkpoint
from rainbow_fast.cli.training import STATE, default_preset, new_reference, train_reference
from rainbow_fast.data import Images, digits
from rainbow_fast.networks import PRESETS, accuracy, scattering, train

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
SMALL = {"J": 3, "width": 1 / 64, "scale_last": True}


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the form of CIFAR-10 with random pixels; only those that the first 10,000 training images need."""
    folder = tmp_path_factory.mktemp("noise")
    records = np.random.default_rng(0).integers(0, 256, (10_000, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    for name in ("data_batch_1", "test_batch"):
        records.tofile(folder / f"{name}.bin")
    return folder


def test_snapshots_are_trainings_of_so_many_epochs(rainbow_fast: Run, tmp_path: Path) -> None:
    words = ["train", "mlp", "--widths", "12", "--epochs", 3, "--schedule", "cosine", "--seed", 5, "--momentum", 0.5]
    code, out, err = rainbow_fast(*words, "--snapshots", "0,2,3", "--out", tmp_path / "net.safetensors")
    assert (code, err) == (0, "") and "net.safetensors: mlp on digits, test accuracy" in out
    names = [f"net-epoch-{epoch}.safetensors" for epoch in (0, 2, 3)]
    assert contents(tmp_path) == [*names, "net.safetensors"]
    whole, about = load_checkpoint(tmp_path / "net.safetensors")
    assert about.training == {
        **PRESETS["digits"], "epochs": 3, "schedule": "cosine", "momentum": 0.5, "seed": 5
    }  # fmt: skip
    x, y, x_test, y_test = digits()
    weights = [about.build(5).state_dict()]
    train(net := about.build(5), x, y, **about.training, progress=lambda *_: weights.append(copied(net)))
    for epoch, name in zip((0, 2, 3), names, strict=True):
        module, snapshot = load_checkpoint(tmp_path / name)
        assert all(torch.equal(value, weights[epoch][key]) for key, value in module.state_dict().items())
        assert snapshot.training == about.training | {"epoch": epoch}
        assert snapshot.accuracy == accuracy(module, x_test, y_test)
    assert all(torch.equal(value, weights[3][key]) for key, value in whole.state_dict().items())


def copied(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_presets(rainbow_fast: Run, tmp_path: Path) -> None:
    words = ["--widths", "4", "--preset", "scattering-short", "--epochs", 1, "--no-flip"]
    assert rainbow_fast("train", "mlp", *words, "--out", tmp_path / "it")[0] == 0
    assert load_checkpoint(tmp_path / "it")[1].training == {
        **PRESETS["scattering-short"], "epochs": 1, "flip": False, "seed": 0
    }  # fmt: skip
    for architecture, data, options, name in [
        ("mlp", "digits", None, "digits"),
        ("cnn", "cifar10", None, "tutorial"),
        ("scattering", "cifar10", SMALL, "scattering"),
        ("scattering", "cifar10", SMALL | {"norm": False}, "scattering-no-norm"),
    ]:
        assert default_preset(new_reference(architecture, data, scattering=options)) == name


@pytest.mark.parametrize("options", [{}, {"skip": True, "norm": False}, {"complex": True}], ids=str)
def test_a_scattering_checkpoint_comes_back(options: dict, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, 32, 32, generator=generator), torch.arange(20) % 10
    about = new_reference("scattering", "cifar10", grey=False, scattering=SMALL | options)
    net, about = train_reference(about, Images(x, y, x, y), {"epochs": 1, "seed": 2}, lambda share, what: None)
    assert about.training == {**PRESETS[default_preset(about)], "epochs": 1, "seed": 2}
    save_checkpoint(net, about, tmp_path / "it")
    module, same = load_checkpoint(tmp_path / "it")
    assert same == about and str(about).startswith("scattering on cifar10, test accuracy ")
    assert torch.equal(module.eval()(x), net.eval()(x))


def test_a_scattering_checkpoint_is_sampled(rainbow_fast: Run, noise_folder: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, 32, 32, generator=generator), torch.arange(20) % 10
    about = new_reference("scattering", "cifar10", grey=False, scattering=SMALL | {"skip": True})
    save_checkpoint(
        *train_reference(about, Images(x, y, x, y), {"epochs": 1, "seed": 0}, lambda *_: None), tmp_path / "it"
    )
    words = "--images 40 --networks 1 --holdout 0.1 --factors 2 --methods paper,calibrated --statistics running".split()
    code, _, err = rainbow_fast("sample", tmp_path / "it", "--data", noise_folder, *words, "--out", tmp_path / "out")
    assert code == 0, err
    records = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [(r["method"], r["site"], r["d"], r["n"]) for r in records] == [
        (method, f"block{place}.wavelets", d, 2 * d)
        for method in ("paper", "calibrated")
        for place, d in ((2, 1), (3, 2), (4, 4))
    ]


@pytest.mark.parametrize("width", [1 / 32, 1e5, 1e18, 1e300], ids=str)
def test_a_checkpoint_of_another_width_is_refused_without_memory(width: float, tmp_path: Path) -> None:
    """The header is that of another network than the tensors, which are those of an eighth of the width."""
    for complex_weights in (False, True):
        arguments = SMALL | {"width": width, "skip": True, "complex": complex_weights}
        about = About("scattering", arguments, "cifar10", False, {"seed": 0}, 0.0)
        small = scattering(**(arguments | {"width": 1 / 8}), seed=0)
        CHECKPOINT.write(tmp_path / "it", about, small.state_dict())
        with pytest.raises(ValueError, match="checkpoint: .*it is damaged: it describes no network"):
            load_checkpoint(tmp_path / "it")


WRONG = {
    "architecture": (["resnet"], "architecture: wanted mlp, cnn or scattering, got 'resnet'"),
    "digits": (["scattering"], "--data: digits are too small for scattering; wanted the folder of CIFAR-10"),
    "layers": (["scattering", "--data", "x", "--layers", "4"], "J=4: wanted 3, 7 or 10"),
    "ten": (
        ["scattering", "--data", "x", "--layers", "10"],
        "image_size=32: leaves a map of side 1 to block 10, wanted",
    ),
    "width": (["scattering", "--data", "x", "--width", "0"], "width=0.0: wanted a number above 0"),
    "folder": (
        ["scattering", "--data", "x", "--width", "0.1"],
        "folder: no file x/data_batch_1.bin; wanted the binary",
    ),
    "widths": (["scattering", "--data", "x", "--widths", "8"], "--widths: wanted with mlp or cnn only; scattering has"),
    "mlp-width": (["mlp", "--width", "2"], "--width: wanted with scattering only, got mlp"),
    "mlp-layers": (["mlp", "--layers", "3"], "--layers: wanted with scattering only, got mlp"),
    "mlp-norm": (["cnn", "--no-norm"], "--no-norm: wanted with scattering only, got cnn"),
    "mlp-complex": (["cnn", "--complex-weights"], "--complex-weights: wanted with scattering only, got cnn"),
    "mlp-last": (["cnn", "--scale-last"], "--scale-last: wanted with scattering only, got cnn"),
    "preset": (
        ["mlp", "--preset", "fast"],
        "--preset='fast': wanted one of tutorial, digits, scattering, scattering-no-",
    ),
    "schedule": (["mlp", "--schedule", "fast"], 'schedule: wanted "constant", "steps" or "cosine", got '),
    "crop": (["mlp", "--crop", "-1"], "crop=-1: wanted crop >= 0"),
    "images": (["mlp", "--images", "9"], "--images: wanted with the folder of CIFAR-10 only"),
    "few": (["mlp", "--data", "x", "--images", "0"], "--images=0: wanted --images >= 1"),
    "late": (
        ["mlp", "--snapshots", "0,21"],
        "--snapshots: wanted numbers from 0 to 20, each once, separated by commas",
    ),
    "twice": (
        ["mlp", "--snapshots", "1,1"],
        "--snapshots: wanted numbers from 0 to 20, each once, separated by commas",
    ),
    "half": (["mlp", "--snapshots", "1.5"], "--snapshots: wanted numbers from 0 to 20, each once, separated by commas"),
    "none": (["mlp", "--snapshots", ""], "--snapshots: wanted numbers from 0 to 20, each once, separated by commas"),
    "diverged": (["mlp", "--widths", "4", "--lr", "1e30"], "epoch 1: mean loss nan: lr=1e+30 is too large for these"),
}


@pytest.mark.parametrize("words, message", WRONG.values(), ids=WRONG)
def test_wrong_words(
    rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = rainbow_fast("train", *words)
    assert (code, out) == (2, "") and err.startswith(f"Error: {message}") and err.count("\n") == 1
    assert contents(tmp_path) == []


def test_a_snapshot_that_cannot_be_written_is_told_before_training(rainbow_fast: Run, tmp_path: Path) -> None:
    (tmp_path / "net-epoch-1.safetensors").mkdir()
    words = "train", "mlp", "--snapshots", "1", "--out", tmp_path / "net.safetensors"
    code, _, err = rainbow_fast(*words)
    assert code == 2 and f"--out: {tmp_path / 'net-epoch-1.safetensors'} is a folder, wanted a file" in err


def interrupted(rainbow_fast: Run, path: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Ends the command when its second snapshot is written, as a kill would."""
    with monkeypatch.context() as patch:
        patch.setattr("rainbow_fast.cli.training.snapshot_path", lambda path, epoch: path.parent / f"none/{epoch}")
        code, _, err = rainbow_fast("train", "mlp", *words, "--snapshots", "2", "--out", path)
    assert code == 2 and "no folder" in err
    assert contents(path.parent) == [path.name + STATE]


def test_another_training_is_not_gone_on_with(
    rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    words = "--widths", "6", "--epochs", "3"
    interrupted(rainbow_fast, path, monkeypatch, *words)
    refused = "Error: --out: an interrupted training is there, which cannot go on (checkpoint: "
    for other, message in [
        (["--widths", "6", "--epochs", "4"], "is of another training: it differs in epochs (3 there, 4 here)"),
        (["--widths", "8", "--epochs", "3"], "is of another network: 1.weight has shape (6, 64), wanted (8, 64); and"),
    ]:
        code, _, err = rainbow_fast("train", "mlp", *other, "--out", path)
        assert code == 2 and err.startswith(refused) and message in err and err.endswith("; delete it\n")
    assert contents(tmp_path) == [path.name + STATE]
    assert rainbow_fast("train", "mlp", *words, "--out", path)[0] == 0
    assert rainbow_fast("train", "mlp", *words, "--out", tmp_path / "whole.safetensors")[0] == 0
    assert same_checkpoint(path, tmp_path / "whole.safetensors")


def killed(folder: Path, step: int) -> dict:
    """What the sweep over file operations reports; every process has one thread, because only one survives a fork."""
    words = ["mlp", "--widths", "6", "--epochs", "3", "--batch-size", "100", "--snapshots", "0,2"]
    command = [sys.executable, str(ROOT / "tests/helpers/training_kills.py"), folder, str(step), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


FILES = ["net-epoch-0.safetensors", "net-epoch-2.safetensors", "net.safetensors"]


def test_killed_at_every_fifth_file_operation(tmp_path: Path) -> None:
    report = killed(tmp_path, 5)
    assert report["wrong"] == {} and report["files"] == FILES
    assert report["tried"] > 5 and 2 < report["resumed"] < report["tried"]


@pytest.mark.slow
def test_killed_at_every_file_operation_of_train(tmp_path: Path) -> None:
    report = killed(tmp_path, 1)
    assert report["wrong"] == {} and report["files"] == FILES and report["tried"] == report["operations"]


def test_a_killed_scattering_network_goes_on(noise_folder: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch, whichever it is: with random crops and flips the files are the same."""
    words = ["train", "scattering", "--data", noise_folder, "--width", 1 / 64, "--scale-last", "--images", 400]
    words += ["--preset", "scattering-short", "--epochs", 4, "--snapshots", "1,3", "--threads", 1]
    command = [sys.executable, "-c", "from rainbow_fast.cli import main; main()", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def begin(name: str) -> subprocess.Popen:
        out = tmp_path / name / "net.safetensors"
        out.parent.mkdir(exist_ok=True)
        return subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL)

    assert begin("whole").wait() == 0
    process = begin("killed")
    while not (state := tmp_path / "killed" / f"net.safetensors{STATE}").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and state.exists() and not (state.parent / "net.safetensors").exists()
    assert begin("killed").wait() == 0
    for name in ("net-epoch-1.safetensors", "net-epoch-3.safetensors", "net.safetensors"):
        assert same_checkpoint(tmp_path / "killed" / name, tmp_path / "whole" / name)
    assert not same_checkpoint(tmp_path / "whole" / name, tmp_path / "whole" / "net-epoch-1.safetensors")
    about = load_checkpoint(tmp_path / "killed" / "net.safetensors")[1]
    assert about.training["images"] == 400 and about.arguments == SMALL | {"image_channels": 3, "image_size": 32}
