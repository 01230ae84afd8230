# SPDX-License-Identifier: BSD-3-Clause
"""A small convolutional network, fitted, sampled, saved and loaded on a device: for gpu_stages.py.

The numbers are judged by the rule of the tests: the error against a run in float64 on the CPU is compared with the
error of plain PyTorch in float32 on the CPU. Plain PyTorch is the same package without its kernels. On a GPU, torch
takes TF32 for float32 convolutions unless it is told otherwise: here only for the times at "high".
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from here import differing_bits
from race import at_precision, relative
from tolerance import FACTOR
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast import backend
from rainbow_fast.networks import cnn, train

CLASSES = 10
SMALL = {"samples": 600, "side": 12, "channels": (1, 8, 16)}
LARGE = {"samples": 8192, "side": 32, "channels": (3, 64, 128)}
SAMPLED = {"factor": 4, "method": "calibrated", "seed": 0}


@contextmanager
def without_kernels() -> Iterator[None]:
    """A context in which every op is plain PyTorch."""
    built = backend.BUILD
    backend.BUILD = backend.Build()
    try:
        yield
    finally:
        backend.BUILD = built


@contextmanager
def convolutions(allow_tf32: bool) -> Iterator[None]:
    """A context in which torch takes TF32 for the convolutions of a GPU, or float32."""
    names = ("enabled", "benchmark", "benchmark_limit", "deterministic")
    kept = {name: getattr(torch.backends.cudnn, name) for name in names}
    with torch.backends.cudnn.flags(**kept, allow_tf32=allow_tf32):
        yield


def images(samples: int, side: int, channels: int) -> tuple[Tensor, Tensor]:
    """Images (samples, channels, side, side) of ten classes, each a pattern of its own with noise, and the classes."""
    numbers = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, channels, side, side, generator=numbers)
    classes = torch.arange(samples) % CLASSES
    return patterns[classes] + torch.randn(samples, channels, side, side, generator=numbers), classes


def trained(samples: int, side: int, channels: tuple[int, ...], device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on a device, and its data, on the CPU."""
    x, classes = images(samples, side, channels[0])
    network = cnn(channels, image_size=side, kernel_size=3, classes=CLASSES, seed=0).to(device)
    return train(network, x, classes, epochs=2).eval(), x, classes


def sampled(reference: nn.Module, x: Tensor, classes: Tensor, device: str) -> tuple[rf.RainbowModel, rf.RainbowNetwork]:
    model = rf.fit(reference.to(device), (x, classes), holdout=0.0)
    return model, model.sample(**SAMPLED)[0]


@convolutions(allow_tf32=False)
def compare(device: str) -> dict[str, Any]:
    """The error of a sampled network on a device, and whether it is the same after `save` and `load`.

    Raises:
        AssertionError: the error is too large, or the loaded network has other bits.
    """
    reference, x, classes = trained(**SMALL, device="cpu")
    tests = x[:200]
    with without_kernels(), torch.no_grad():
        _, plain = sampled(reference, x, classes, "cpu")
        _, exact = sampled(reference.double(), x.double(), classes, "cpu")
        wanted, of_plain = exact(tests.double()), plain(tests)
    model, network = sampled(reference.float(), x, classes, device)
    there = tests.to(device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        logits = network(there)
        rf.save(network, Path(folder) / "network")
        rf.save_model(model, Path(folder) / "model")
        same = differing_bits(rf.load(Path(folder) / "network", reference)(there), logits)
        again, _ = rf.load_model(Path(folder) / "model", reference).sample(**SAMPLED)
        same += differing_bits(again(there), logits)
    errors = {"error": relative(logits.cpu(), wanted), "error_of_plain": relative(of_plain, wanted)}
    assert same == 0, f"{same} logits have other bits after save and load"
    # the last place of a logit, for a plain error that is small by luck
    allowed = FACTOR * errors["error_of_plain"] + torch.finfo(torch.float32).eps
    assert errors["error"] <= allowed, f"the error is {errors['error']:.2e}, allowed {allowed:.2e}"
    return {device: errors | {"after_load": "the same bits"}}


def seconds(run: Callable[[], Any], rounds: int, device: str) -> list[float]:
    """Of each round; the first one includes all that is compiled in it."""
    spent = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        spent.append(time.perf_counter() - began)
    return spent


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def times(device: str, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Seconds of `fit` with `sample` and of a forward pass: with our kernels, and in plain PyTorch.

    The forward pass is timed at both precisions of float32 products. At "high", torch takes TF32, for convolutions,
    too; all else is in float32.
    """
    reference, x, classes = trained(**(sizes or LARGE), device=device)
    there = x.to(device)
    _, network = sampled(reference, x, classes, device)
    wide = network.materialize().eval()
    rows: dict[str, Any] = {}

    def whole() -> None:
        sampled(reference, x, classes, device)

    with convolutions(allow_tf32=False):
        rows["fit and sample, ours"] = seconds(whole, 3, device)
        with without_kernels():
            rows["fit and sample, plain torch"] = seconds(whole, 3, device)
    forward = {"ours": network, "plain torch": wide}
    for precision in ("highest", "high"):
        with torch.no_grad(), convolutions(allow_tf32=precision == "high"):
            for name, module in forward.items():
                run = at_precision(precision, partial(module, there))
                rows[f"forward at {precision}, {name}"] = seconds(run, 5, device)
    return {"seconds": rows}
