# SPDX-License-Identifier: BSD-3-Clause
"""A small training loop, accuracy, and files of weights for reference networks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from rainbow_fast import tensor_files
from rainbow_fast.arguments import integer
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.networks.training_state import TrainingState, facts_of
from rainbow_fast.weights import load_state

EpochProgress = Callable[[int, int, float], None]  # progress(epoch, epochs, loss)
Schedule = Literal["constant", "steps", "cosine"]
FINITE = 1000  # images whose numbers are checked at a time


def train(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 5,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    schedule: Schedule = "constant",
    crop: int = 0,
    flip: bool = False,
    seed: int = 0,
    progress: EpochProgress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Train `module` in place on images `x` and labels `y` by stochastic gradient descent on the cross-entropy.

        v <- momentum v + grad(loss + weight_decay |w|^2 / 2),    w <- w - lr v

    Each epoch has a new random order, and its last batch may be smaller. Training starts from the current weights.

    Args:
        module: network from (N, ...) to (N, classes) logits; it stays on its device.
        x: images (N, ...), floating point, on any device.
        y: classes (N,), int64.
        epochs: passes over the data.
        lr: learning rate; with a `schedule`, the rate of the first step.
        momentum: factor of the velocity v.
        weight_decay: factor of the squared norm of all parameters.
        batch_size: images in each step.
        schedule: the learning rate at step t of T. `"constant"` (default) is lr; `"steps"` divides it by 10 after each
            third, lr 10^-floor(3 t / T); `"cosine"` is lr (1 + cos(pi t / T)) / 2.
        crop: each image is padded with `crop` pixels of zeros on all sides, and a random part of its original size is
            cut out. 0 (default) does not crop.
        flip: whether each image is mirrored left to right with probability 1/2; False by default.
        seed: seed of the order of the images, their augmentation and dropout, 0 to 2^63 - 1.
        progress: called after each epoch as ``progress(epoch, epochs, loss)``, not as in `fit`; True is not accepted.
            It gets the epochs done, the number of epochs, and the mean loss of the epoch in nats.
        checkpoint: a file in which the state of the training is kept after each epoch, once `progress` has returned. If
            it exists already, the training goes on from there instead of from the current weights; all other arguments
            must be those of the interrupted training. The result has the bits that it would have without interruption,
            on the same machine, with the same versions and number of threads. The file stays when the training is over.
            None (default) keeps nothing.

    Returns:
        `module`. Its submodules keep their train or eval mode, and the global random state is left unchanged. Two runs
        on the CPU with the same number of threads give the same bits.

    Raises:
        TypeError: `x` is not a floating-point tensor; `y` is not an int64 tensor; `epochs`, `batch_size`, `crop` or
            `seed` is not an integer; or `progress` is neither None nor a function.
        ValueError: `x` and `y` do not match or are empty, `x` has a number that is not finite, an argument is out of
            its range, or `checkpoint` is damaged or holds a training of another network (such as one of another width),
            of other images, or with other arguments.
        FileNotFoundError: the folder of `checkpoint` does not exist.
        FloatingPointError: the loss of an epoch is not finite.

    Source: the defaults are those of the tutorial of Guth, Menard, Rochette, Mallat (2024). Their ResNets are trained
    with `lr=0.1, weight_decay=1e-4, schedule="steps"`, on CIFAR-10 with `crop=4, flip=True`; their scattering networks
    on CIFAR-10 with `epochs=150, lr=0.01, schedule="steps", crop=4, flip=True`, and `weight_decay=1e-4` with `norm`:
    see `PRESETS`.
    """
    _check_labelled(x, y)
    _check_finite(x)
    _check_progress(progress)
    epochs, batch_size = integer("epochs", epochs, 1), integer("batch_size", batch_size, 1)
    crop = integer("crop", crop, 0)
    if schedule not in get_args(Schedule):
        raise ValueError(f'schedule: wanted "constant", "steps" or "cosine", got {schedule!r}')
    if (crop or flip) and x.ndim != 4:
        raise ValueError(f"x: crop and flip want images (N, C, H, W), got {tuple(x.shape)}")
    device = _device(module)
    optimiser = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    order = torch.Generator("cpu")
    steps_of_epoch = math.ceil(len(x) / batch_size)
    steps, kept = epochs * steps_of_epoch, None
    if checkpoint is not None:
        arguments = {
            "epochs": epochs, "lr": float(lr), "momentum": float(momentum), "weight_decay": float(weight_decay),
            "batch_size": batch_size, "schedule": schedule, "crop": crop, "flip": bool(flip), "seed": int(seed),
        }  # fmt: skip
        kept = TrainingState(Path(checkpoint), facts_of(x, y, module, arguments), module, optimiser, order)
    with _mode(module, training=True), seeded(seed, device), torch.enable_grad():
        order.manual_seed(seed)
        done = 0 if kept is None else kept.read()
        step = done * steps_of_epoch
        for epoch in range(done + 1, epochs + 1):
            total = torch.zeros((), dtype=torch.float64, device=device)
            for rows in torch.randperm(len(x), generator=order, device="cpu").to(x.device).split(batch_size):
                images, labels = x[rows].to(device), y[rows.to(y.device)].to(device)
                for group in optimiser.param_groups:
                    group["lr"] = _rate(lr, schedule, step, steps)
                loss = cross_entropy(module(_augmented(images, crop, flip, order)), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.detach() * len(rows)
                step += 1
            mean = total.item() / len(x)
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"epoch {epoch}: mean loss {mean}: lr={lr} is too large for these images and weights"
                )
            if progress is not None:
                progress(epoch, epochs, mean)
            if kept is not None:
                kept.write(epoch)
    return module


def accuracy(module: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 1000) -> float:
    """The accuracy of a network in eval mode: the fraction (0 to 1) of images whose largest logit is that of the label.

    Args:
        module: network from (N, ...) to (N, classes) logits, on any device; its train or eval mode is restored.
        x: images (N, ...), floating point.
        y: classes (N,), int64.
        batch_size: images in each forward pass.

    Raises:
        TypeError, ValueError: as in `train`.
    """
    _check_labelled(x, y)
    batch_size = integer("batch_size", batch_size, 1)
    device = _device(module)
    right = 0
    with _mode(module, training=False), torch.no_grad():
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            right += int((module(images.to(device)).argmax(1) == labels.to(device)).sum())
    return right / len(x)


def save_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state dict of `module` to `path` in safetensors. The file appears only when it is complete.

    The file has a checksum (SHA-256) of every tensor in its metadata, which `load_weights` compares. Other readers of
    safetensors ignore it.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        ValueError: `path` is a folder, a device or a pipe.
        OSError: the folder cannot be written into, or the disk is full.
    """
    tensor_files.write(Path(path), module.state_dict(), {})


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load weights into `module` from a safetensors file, or from a file that `torch.save` wrote; returns `module`.

    Files have any suffix, such as .safetensors, .pt, .pth, .th, .pth.tar, .ckpt and .bin. Only tensors are read, and
    nothing is run. The state dict may be inside other dicts, under keys such as "state_dict", "model_state_dict",
    "model", "net" or "ema", beside epochs, options and the state of an optimizer. If several fit, the first of these
    keys counts. Keys may contain names that wrappers add ("module.", "_orig_mod."), and may have one prefix, such as
    "model."; keys without this prefix are then ignored. Values are converted to the dtype and device of the module.
    After an error the module is unchanged.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file holds no state dict, or its keys or shapes are not those of the module; the message names
            the first missing keys, unexpected keys and differing shapes, and shows keys of the file and of the module.
    """
    load_state(module, Path(path), "path")
    return module


def _rate(lr: float, schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate at step `step` (counted from 0) of `steps`."""
    if schedule == "steps":
        return lr * 0.1 ** (3 * step // steps)
    return lr * (1 + math.cos(math.pi * step / steps)) / 2 if schedule == "cosine" else lr


def _augmented(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """The images (N, C, H, W), each padded with `crop` zeros and cropped at a random place; then mirrored at random."""
    n = len(images)
    if crop:
        height, width = images.shape[2:]
        top, left = torch.randint(2 * crop + 1, (2, n), generator=generator, device="cpu").to(images.device)
        cuts = pad(images, (crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, top, left, H, W)
        images = cuts[torch.arange(n, device=images.device), :, top, left]
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=generator, device="cpu").to(images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    return images


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """A context in which `module` is in train or eval mode; on exit, the mode of each submodule is restored."""
    before = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


def _device(module: nn.Module) -> torch.device:
    """The device of the first parameter of a module; the CPU if it has none."""
    return next((value.device for value in module.parameters()), torch.device("cpu"))


def _check_labelled(x: Tensor, y: Tensor) -> None:
    """Check that x are images and y are their labels; an error names the wrong one."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise TypeError(f"x: wanted a floating-point tensor (N, ...), got {_kind(x)}")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1:
        raise TypeError(f"y: wanted an int64 tensor (N,), got {_kind(y)}")
    if len(x) != len(y):
        raise ValueError(f"y: wanted one label for each of the {len(x)} images of x, got {len(y)}")
    if len(x) == 0:
        raise ValueError("x: wanted at least one image, got none")


def _check_finite(x: Tensor) -> None:
    """Check that all numbers of the images are finite; an error names the first image with another one."""
    for first in range(0, len(x), FINITE):
        finite = torch.isfinite(x[first : first + FINITE]).flatten(1).all(1)
        if not finite.all():
            wrong = first + int(finite.logical_not().nonzero()[0])
            raise ValueError(f"x: wanted finite numbers, got NaN or infinity in image {wrong}")


def _check_progress(progress: object) -> None:
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: wanted a function or None, got {type(progress).__name__}")


def _kind(value: object) -> str:
    """The description of a wrong value in error messages."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
