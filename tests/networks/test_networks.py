# SPDX-License-Identifier: BSD-3-Clause
"""Reference architectures, their training and their weights on disk."""

import math
import os

import pytest
import torch
from torch import nn

from rainbow_fast import data
from rainbow_fast.networks import accuracy, cnn, load_weights, mlp, save_weights, train


def kinds(module: nn.Sequential) -> list[str]:
    return [type(part).__name__ for part in module]


def test_mlp_is_the_tutorials_perceptron():
    module = mlp(seed=0)
    assert type(module) is nn.Sequential
    assert kinds(module) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [tuple(p.shape) for p in module.parameters()] == [(512, 1024), (256, 512), (10, 256)]
    assert module(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_cnn_is_the_tutorials_network():
    module = cnn(seed=0)
    assert type(module) is nn.Sequential
    assert kinds(module) == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Flatten", "Linear"]
    assert [tuple(p.shape) for p in module.parameters()] == [(32, 1, 5, 5), (64, 32, 5, 5), (10, 1600)]
    assert module(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_batch_norm_before_is_affine_and_after_is_not():
    before, after = cnn(batch_norm="before", seed=0), cnn(batch_norm="after", seed=0)
    assert kinds(before)[:3] == ["Conv2d", "BatchNorm2d", "ReLU"] and before[1].affine
    assert kinds(after)[:3] == ["Conv2d", "ReLU", "BatchNorm2d"] and not after[2].affine
    assert kinds(mlp((8, 4, 2), batch_norm="after"))[1:] == ["Linear", "ReLU", "BatchNorm1d", "Linear"]


def test_options_of_the_builders():
    module = mlp((8, 4, 4, 2), activation=nn.GELU, bias=True)
    assert kinds(module).count("GELU") == 2 and all(part.bias is not None for part in module if hasattr(part, "bias"))
    module = cnn((3, 6), kernel_size=3, stride=1, image_size=8, classes=4, bias=True)
    assert module[0].bias is not None and module(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("build", [mlp, cnn])
def test_a_seed_fixes_the_weights_and_leaves_the_global_state(build):
    before = torch.get_rng_state()
    first, second, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first[-1].weight, other[-1].weight)
    bound = 1 / math.sqrt(first[-1].weight.shape[1])  # torch's default: kaiming_uniform_(a=sqrt(5))
    assert 0.99 * bound < first[-1].weight.abs().max() <= bound
    torch.manual_seed(3)
    assert torch.equal(first[-1].weight, build()[-1].weight)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mlp((10,)), r"sizes: wanted at least an input width and a number of classes, got \(10,\)"),
        (lambda: mlp((4, 0, 2)), "sizes=0: wanted sizes >= 1"),
        (lambda: mlp(batch_norm="both"), r"batch_norm: wanted None, .before. or .after., got .both."),
        (lambda: mlp(seed=-1), r"seed=-1: wanted 0 <= seed < 2\^63"),
        (lambda: cnn((1,)), r"channels: wanted those of the image and of each convolution, got \(1,\)"),
        (lambda: cnn(stride=0), "stride=0: wanted stride >= 1"),
        (lambda: cnn(image_size=8), "image_size: 8 leaves a map of side 2 before convolution 2, wanted at least"),
        (lambda: cnn(batch_norm="both"), "batch_norm: wanted None"),
    ],
)
def test_builders_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_builders_take_integers_alone() -> None:
    with pytest.raises(TypeError, match="channels=2.5: wanted an integer, got float"):
        cnn((1, 2.5))


def blobs(samples: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Three Gaussian blobs in 8 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (samples,), generator=generator)
    return torch.randn(samples, 8, generator=generator) + 3 * torch.eye(3, 8)[y], y


def test_train_is_torchs_sgd_on_batches_in_shuffled_order():
    x, y = blobs()
    ours = train(mlp((8, 5, 3), seed=0), x, y, epochs=2, lr=0.05, weight_decay=1e-3, batch_size=128, seed=7)
    theirs, generator = mlp((8, 5, 3), seed=0), torch.Generator().manual_seed(7)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(2):
        order = torch.randperm(300, generator=generator)
        for rows in (order[:128], order[128:256], order[256:]):
            sgd.zero_grad()
            nn.functional.cross_entropy(theirs(x[rows]), y[rows]).backward()
            sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_schedules_and_augmentation_are_those_of_torch_and_of_loops(schedule):
    """In float64, where another rounding of the learning rate does not matter."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 2, 4, 3, generator=generator).double(), torch.randint(3, (20,), generator=generator)
    ours, theirs = mlp((24, 5, 3), seed=0).double(), mlp((24, 5, 3), seed=0).double()
    train(ours, x, y, epochs=3, lr=0.3, batch_size=8, schedule=schedule, crop=2, flip=True, seed=7)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.3, momentum=0.9)
    schedulers = torch.optim.lr_scheduler
    rate = schedulers.StepLR(sgd, 3) if schedule == "steps" else schedulers.CosineAnnealingLR(sgd, 9)
    generator.manual_seed(7)
    for _ in range(3):
        for rows in torch.randperm(20, generator=generator).split(8):
            corners = torch.randint(5, (2, len(rows)), generator=generator).T.tolist()
            mirrored = (torch.rand(len(rows), generator=generator) < 0.5).tolist()
            crops = []
            for image, (top, left), mirror in zip(x[rows], corners, mirrored, strict=True):
                crop = nn.functional.pad(image, (2, 2, 2, 2))[:, top : top + 4, left : left + 3]
                crops.append(crop.flip(2) if mirror else crop)
            sgd.zero_grad()
            nn.functional.cross_entropy(theirs(torch.stack(crops)), y[rows]).backward()
            sgd.step()
            rate.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)  # nine steps in float64, with some thousand sums each


def test_train_repeats_bit_for_bit_and_leaves_global_state_and_modes():
    x, y = blobs()

    def once() -> nn.Module:
        module = mlp((8, 5, 3), batch_norm="before", seed=0).insert(3, nn.Dropout(0.5))
        module[1].eval()
        return train(module, x, y, epochs=2)

    before = torch.get_rng_state()
    first, second = once(), once()
    accuracy(first, x, y)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not first[1].training and first.training and first[3].training


def test_modes_are_restored_after_an_error():
    x, y = blobs()
    module = mlp((8, 5, 3), seed=0).eval()
    with pytest.raises(FloatingPointError, match=r"epoch 1: mean loss nan: lr=1e\+38 is too large for these images"):
        train(module, x, y, lr=1e38)
    assert not any(part.training for part in module.modules())


def test_train_reports_each_epoch_and_learns():
    x, y = blobs()
    seen: list[tuple[int, int, float]] = []
    module = mlp((8, 16, 3), seed=0)
    assert train(module, x, y, epochs=5, lr=0.05, progress=lambda *done: seen.append(done)) is module
    assert [done[:2] for done in seen] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert seen[-1][2] < 0.5 * seen[0][2]
    assert accuracy(module, x, y) > 0.9


def test_accuracy_is_a_fraction_in_eval_mode_whatever_the_batches():
    x, y = blobs()
    module = train(mlp((8, 5, 3), batch_norm="before", seed=0), x, y)
    module.eval()
    wanted = (module(x).argmax(1) == y).double().mean().item()
    module.train()
    assert accuracy(module, x, y) == pytest.approx(wanted, abs=1e-12)  # a mean of zeros and ones, in float64
    # A mean of zeros and ones, in float64
    assert accuracy(module, x, y, batch_size=7) == pytest.approx(wanted, abs=1e-12)
    assert module.training


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": [1]}, TypeError, r"x: wanted a floating-point tensor \(N, ...\), got list"),
        ({"x": torch.zeros(4, 8, dtype=torch.uint8)}, TypeError, r"x: wanted a floating.*got torch.uint8 \(4, 8\)"),
        ({"y": torch.zeros(4)}, TypeError, r"y: wanted an int64 tensor \(N,\), got torch.float32 \(4,\)"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, ValueError, "y: wanted one label for each of the 4 images"),
        ({"x": torch.zeros(0, 8), "y": torch.zeros(0, dtype=torch.int64)}, ValueError, "x: wanted at least one image"),
        ({"x": torch.ones(4, 8).index_fill(0, torch.tensor([2]), math.nan)}, ValueError, "x: wanted finite .* image 2"),
        ({"epochs": 0}, ValueError, "epochs=0: wanted epochs >= 1"),
        ({"batch_size": 0}, ValueError, "batch_size=0: wanted batch_size >= 1"),
        ({"seed": -1}, ValueError, r"seed=-1: wanted 0 <= seed < 2\^63"),
        ({"crop": -1}, ValueError, "crop=-1: wanted crop >= 0"),
        ({"schedule": "linear"}, ValueError, 'schedule: wanted "constant", "steps" or "cosine", got .linear.'),
        ({"flip": True}, ValueError, r"x: crop and flip want images \(N, C, H, W\), got \(4, 8\)"),
        ({"progress": True}, TypeError, "progress: wanted a function or None, got bool"),
        ({"progress": 3}, TypeError, "progress: wanted a function or None, got int"),
    ],
)
def test_train_refuses(change, error, message):
    arguments = {"x": torch.zeros(4, 8), "y": torch.zeros(4, dtype=torch.int64), **change}
    with pytest.raises(error, match=message):
        train(mlp((8, 5, 3), seed=0), **arguments)
    if (
        {"x", "y", "batch_size"} & change.keys()
        and "finite numbers" not in message
        and "finite .* image" not in message
    ):
        with pytest.raises(error, match=message):
            accuracy(mlp((8, 5, 3), seed=0), **arguments)


def test_weights_come_back_bit_for_bit(tmp_path):
    module = cnn(batch_norm="before", seed=0).to(memory_format=torch.channels_last)
    module(torch.randn(4, 1, 32, 32))
    save_weights(module, tmp_path / "w.safetensors")
    other = cnn(batch_norm="before", seed=1)
    assert load_weights(other, tmp_path / "w.safetensors") is other
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_weights_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(mlp((4, 3, 2), seed=0), path)
    before = path.read_bytes()

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(mlp((4, 3, 2), seed=1), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["w.safetensors"]


def test_load_weights_names_what_does_not_fit_and_changes_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), path)
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    before = module[0].weight.clone()
    with pytest.raises(ValueError) as error:
        load_weights(module, path)
    for part in ("missing 2.weight", "unexpected 1.bias", "1.weight has shape (3, 3), wanted (2, 3)", str(path)):
        assert part in str(error.value)
    assert torch.equal(module[0].weight, before)


def test_load_weights_refuses_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: no file .*none.safetensors"):
        load_weights(mlp((4, 2)), tmp_path / "none.safetensors")
    (tmp_path / "foreign.safetensors").write_bytes(b"\x80\x04 not a safetensors file")
    with pytest.raises(ValueError, match="path: .*foreign.safetensors is not a whole safetensors file"):
        load_weights(mlp((4, 2)), tmp_path / "foreign.safetensors")


def test_training_reaches_a_good_accuracy_on_digits():
    pytest.importorskip("sklearn")
    images = data.digits()
    module = train(mlp((64, 128, 64, 10), seed=0), images.x_train, images.y_train, epochs=20)
    assert accuracy(module, images.x_test, images.y_test) > 0.93
