# SPDX-License-Identifier: BSD-3-Clause
"""Trainings that are interrupted and go on: the same bits, and errors for files of other trainings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from here import draw
from torch import nn

from rainbow_fast.networks import PRESETS, cnn, mlp, save_weights, scattering, train
from rainbow_fast.networks.training_state import TRAINING

EPOCHS = 4
OPTIONS: dict[str, Any] = {
    "epochs": EPOCHS, "lr": 0.05, "weight_decay": 1e-3, "batch_size": 8, "schedule": "cosine", "crop": 1, "flip": True,
    "seed": 3,
}  # fmt: skip


class Killed(Exception):
    """Stands for the end of the process."""


def with_dropout() -> nn.Sequential:
    """A network with random numbers, running averages, and weights that are not trained."""
    net = cnn((2, 4), kernel_size=3, stride=1, image_size=6, batch_norm="before", seed=1)
    net[0].requires_grad_(False)
    return net.insert(3, nn.Dropout(0.3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dropout": with_dropout,
    "scattering": lambda: scattering(3, 1 / 64, scale_last=True, image_channels=2, image_size=16, seed=1),
    "scattering-complex": lambda: scattering(
        3, 1 / 64, scale_last=True, skip=True, complex=True, image_channels=2, image_size=16, seed=1
    ),
}


def images(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    side = 6 if isinstance(net[0], nn.Conv2d) else 16  # type: ignore[index]
    return draw(20, 2, side, side), torch.arange(20) % 10


def until(epoch: int) -> Callable[[int, int, float], None]:
    def progress(done: int, epochs: int, loss: float) -> None:
        if done == epoch:
            raise Killed

    return progress


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0, "schedule": "steps"}], ids=["momentum", "plain"])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_goes_on_with_the_same_bits(build: Callable[[], nn.Module], options: dict, tmp_path: Path) -> None:
    """It ends in its third epoch, before the state of this epoch is kept; the network is then built from a new seed."""
    x, y = images(build())
    options, path = OPTIONS | options, tmp_path / "state"
    whole: list[tuple] = []
    wanted = train(build(), x, y, **options, progress=lambda *done: whole.append(done))
    with pytest.raises(Killed):
        train(build(), x, y, **options, checkpoint=path, progress=until(3))
    other = build()
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1)
    rest: list[tuple] = []
    before = torch.get_rng_state()
    got = train(other, x, y, **options, checkpoint=path, progress=lambda *done: rest.append(done))
    assert got is other and same(got, wanted) and torch.equal(torch.get_rng_state(), before)
    assert rest == whole[2:] and len(whole) == EPOCHS
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    again = train(build(), x, y, **options, checkpoint=path, progress=until(EPOCHS))  # it is over: no epoch is left
    assert same(again, wanted)


def test_a_checkpoint_changes_no_bits(tmp_path: Path) -> None:
    x, y = images(with_dropout())
    plain = train(with_dropout(), x, y, **OPTIONS)
    assert same(train(with_dropout(), x, y, **OPTIONS, checkpoint=tmp_path / "state"), plain)
    assert not same(train(with_dropout(), x, y, **OPTIONS | {"seed": 4}), plain)


def begun(path: Path, net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = images(net)
    with pytest.raises(Killed):
        train(net, x, y, **OPTIONS, checkpoint=path, progress=until(2))
    return x, y


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": 0.1}, r"lr \(0.05 there, 0.1 here\)"),
        ({"epochs": 5, "flip": False}, r"epochs \(4 there, 5 here\), flip \(True there, False here\)"),
        ({"seed": 9}, r"seed \(3 there, 9 here\)"),
        ({"crop": 2}, r"crop \(1 there, 2 here\)"),
        ({"schedule": "steps"}, r"schedule \('cosine' there, 'steps' here\)"),
    ],
)
def test_other_arguments_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    x, y = begun(tmp_path / "state", with_dropout())
    with pytest.raises(ValueError, match=f"checkpoint: .*state is of another training: it differs in {message}"):
        train(with_dropout(), x, y, **OPTIONS | options, checkpoint=tmp_path / "state")


def test_other_images_and_dtypes_are_refused(tmp_path: Path) -> None:
    x, y = begun(tmp_path / "state", with_dropout())
    other = x.clone()
    other[7, 1, 2, 3] += 1
    with pytest.raises(ValueError, match=r"it differs in images \(SHA-256 \w{12}... there, SHA-256 \w{12}... here\)"):
        train(with_dropout(), other, y, **OPTIONS, checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match=r"it differs in labels \(SHA"):
        train(with_dropout(), x, 9 - y, **OPTIONS, checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match=r"it differs in dtypes \(\['torch.float32', 'torch.int64'\] there"):
        train(with_dropout().double(), x.double(), y, **OPTIONS, checkpoint=tmp_path / "state")


def test_another_width_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    x, y = begun(tmp_path / "state", NETWORKS["scattering"]())
    wider = scattering(3, 1 / 32, scale_last=True, image_channels=2, image_size=16, seed=1)
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    message = r"state is of another network: block1.linear.weight has shape \(1, 10, 1, 1\), wanted \(2, 10, 1, 1\);"
    with pytest.raises(ValueError, match=message):
        train(wider, x, y, **OPTIONS, checkpoint=tmp_path / "state")
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())


def test_other_files_are_refused(tmp_path: Path) -> None:
    net, path = mlp((8, 5, 3), seed=0), tmp_path / "state"
    x, y = draw(20, 8), torch.arange(20) % 3
    save_weights(net, path)
    with pytest.raises(ValueError, match="checkpoint: .*state holds no training: its format is None"):
        train(net, x, y, checkpoint=path)
    path.unlink()
    train(net, x, y, epochs=1, checkpoint=path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checkpoint: .*state is damaged: tensor '.*' does not have its checksum"):
        train(net, x, y, epochs=1, checkpoint=path)
    with pytest.raises(FileNotFoundError, match="checkpoint: no folder .*none"):
        train(net, x, y, checkpoint=tmp_path / "none" / "state")
    with pytest.raises(ValueError, match=f"checkpoint: {tmp_path} is no file"):
        train(net, x, y, checkpoint=tmp_path)


def test_a_loss_that_is_not_finite_keeps_no_state(tmp_path: Path) -> None:
    x, y = draw(20, 8), torch.arange(20) % 3
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(mlp((8, 5, 3), seed=0), x, y, lr=1e38, batch_size=4, checkpoint=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_is_trained(tmp_path: Path) -> None:
    begun(tmp_path / "state", with_dropout())
    header, tensors = TRAINING.read(tmp_path / "state")
    assert header.epoch == 1 and OPTIONS.items() <= header.facts.items()
    velocities = {name.removeprefix("velocity.") for name in tensors if name.startswith("velocity.")}
    assert velocities == {"1.weight", "1.bias", "5.weight"}  # those that are trained


def test_the_published_trainings() -> None:
    assert set(PRESETS) == {"tutorial", "digits", "scattering", "scattering-no-norm", "scattering-short"}
    published = PRESETS["scattering"]
    assert published == {
        "epochs": 150, "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 128, "schedule": "steps",
        "crop": 4, "flip": True,
    }  # fmt: skip
    assert PRESETS["scattering-no-norm"] == published | {"weight_decay": 0.0}
    x, y = draw(8, 8), torch.arange(8) % 3
    for preset in ("tutorial", "digits"):
        train(mlp((8, 5, 3), seed=0), x, y, **PRESETS[preset])
    with pytest.raises(TypeError, match="does not support item assignment"):
        PRESETS["tutorial"] = {}  # type: ignore[index]
