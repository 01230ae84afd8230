# SPDX-License-Identifier: BSD-3-Clause
"""Kernel regression with learned covariances and with C = I, beside networks of finite width: what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.analysis import SiteKernel, kernel_regression
from rainbow_fast.cli.checkpoints import About
from rainbow_fast.cli.grid import Step
from rainbow_fast.cli.training import new_reference, train_reference
from rainbow_fast.data import Images
from rainbow_fast.infinite_width import Gram
from rainbow_fast.rainbow.alignment.classifier import RIDGES
from rainbow_fast.rainbow.model import RainbowModel, fit
from rainbow_fast.rainbow.report import Record

LEARNED, OTHERS, WHITE = "learned C", "learned C, other images", "C = I"
TRAINED, SAMPLED, REFIT = "trained network", "sampled", "sampled and refit"
PAIRS = 2**25  # pairs of images and positions whose products are in memory at a time


@dataclass(frozen=True)
class Study:
    """What is measured.

    Attributes:
        images: how many images are aligned on and fitted to, by the architecture.
        trained: images that the networks are trained on, which are the first ones.
        epochs: of the training.
        tested: test images.
        factors: the finite widths of sampled networks, n/d.
        networks: number of networks of each finite width.
    """

    images: dict[str, int]
    trained: int = 10_000
    epochs: int = 5
    tested: int = 1000
    factors: tuple[float, ...] = (1, 4, 16)
    networks: int = 3

    @property
    def read(self) -> int:
        """Number of images that are read from the training set."""
        return self.trained + max(self.images.values())

    def records(self, data: Images, step: Step) -> Iterator[Record]:
        """All measurements, on the first `read` images of the training set and `tested` of the test set."""
        for place, (architecture, count) in enumerate(self.images.items()):

            def tell(share: float, what: str, place: int = place, architecture: str = architecture) -> None:
                step((place + share) / len(self.images), f"{architecture}: {what}")

            about = new_reference(architecture, "cifar10")
            first = Images(data.x_train[: self.trained], data.y_train[: self.trained], data.x_test, data.y_test)
            reference, about = train_reference(about, first, {"epochs": self.epochs, "seed": 0}, lambda *_: None)
            head = {"architecture": architecture, "images": count, "trained": self.trained, "tested": len(data.x_test)}
            yield head | {"arm": TRAINED, "accuracy": about.accuracy}
            test = data.x_test, data.y_test
            seen, fresh = (
                (data.x_train[start : start + count], data.y_train[start : start + count])
                for start in (0, self.trained)
            )
            tell(0.1, WHITE)
            yield head | {"arm": WHITE} | regressed(white_kernel(about), seen, test)
            model = fit(reference, seen, holdout=test)
            tell(0.3, LEARNED)
            yield from (head | record for record in _limit(model, LEARNED, seen, test, both=True))
            tell(0.5, OTHERS)
            other = fit(reference, fresh, holdout=test)
            yield from (head | record for record in _limit(other, OTHERS, fresh, test, both=False))
            for number, factor in enumerate(self.factors):
                tell(0.7 + 0.3 * number / len(self.factors), f"x{factor:g}")
                for network in range(self.networks):
                    for record in _sampled(model, factor, network):
                        yield head | record


def white_kernel(about: About) -> Callable[[Tensor, Tensor], Tensor]:
    """The kernel of an untrained network of infinite width, of the architecture of a reference."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        rows = max(PAIRS // (len(y) * x[0].numel()), 1)
        return torch.cat([_white(about, part, y) for part in x.split(rows)])

    return kernel


def _white(about: About, x: Tensor, y: Tensor) -> Tensor:
    if about.architecture == "mlp":
        K = Gram.of(x.flatten(1), y.flatten(1))
        for _ in about.arguments["sizes"][1:-1]:
            K = K.linear().activation("relu")
        return K.values
    K = Gram.of(x, y)
    for _ in about.arguments["channels"][1:]:
        K = K.convolution(about.arguments["kernel_size"], stride=about.arguments["stride"]).activation("relu")
    return K.flatten().values


def regressed(
    kernel: Callable[[Tensor, Tensor], Tensor], data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> Record:
    """The accuracy of kernel regression on the test data, and the ridge that a fifth of the data has chosen."""
    fitted = kernel_regression(kernel, *data, ridges=RIDGES)
    return {"accuracy": float((fitted(test[0]).argmax(1) == test[1]).double().mean()), "ridge": fitted.ridge}


def _limit(
    model: RainbowModel, arm: str, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, both: bool
) -> Iterator[Record]:
    """Kernel regression with learned covariances; with `both`, also the limit of sampled networks."""
    network, report = model.sample(factor=math.inf, limit_rows=len(data[0]), classifier="refit")
    kernel = SiteKernel(network)
    yield {"arm": arm} | regressed(kernel, (kernel.embedded(data[0]), data[1]), (kernel.embedded(test[0]), test[1]))
    for name, key in ((SAMPLED, "trained_classifier_held_out"), (REFIT, "held_out")) if both else ():
        yield {"arm": name, "factor": math.inf, "network": 0, "accuracy": report.accuracy[key]}


def _sampled(model: RainbowModel, factor: float, network: int) -> Iterator[Record]:
    """A network of finite width with the trained classifier, and with a new one."""
    _, report = model.sample(factor=factor, network_index=network, classifier="refit")
    for name, key in ((SAMPLED, "trained_classifier_held_out"), (REFIT, "held_out")):
        yield {"arm": name, "factor": factor, "network": network, "accuracy": report.accuracy[key]}
