# SPDX-License-Identifier: BSD-3-Clause
"""Training, the choice of learning rates, and the accuracies of samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast import nn as layers
from rainbow_fast.cli.grid import Step
from rainbow_fast.cli.readers import names
from rainbow_fast.data import Images
from rainbow_fast.networks import accuracy, train
from rainbow_fast.rainbow.model import fit
from rainbow_fast.rainbow.report import Record
from studies.rainbow_layers.arms import ARMS, Arm, build

BATCH = 100
FRESH = 4  # neurons of resampled layers, n' / d
FINE = 1 / 3  # the rate of fine-tuning over that of the epochs before it
BASES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # rates; of rainbow layers, r / n times these
FIRST = (0.01, 0.03, 0.1)  # the next one follows while the best is the smallest or the largest of those tried
MOST_HALVINGS = 4
TUNING_IMAGES, TUNING_EPOCHS = 10_000, 2
ALIGNED = 2000  # training images that samples are aligned on
METHODS, FACTORS = ("paper", "calibrated"), (1, 4, 16)
DRAWS, MEMBERS = 2, 5  # samples of each method and width; samples of an ensemble
ENSEMBLE_FACTOR = 4
SAMPLE_SEED = 10_000  # added to the seed of the training: samples have other neurons than any step of the training had


@dataclass(frozen=True)
class Run:
    """One trained network: everything that its records depend on."""

    network: str
    arm: str
    seed: int
    images: int
    epochs: int

    @property
    def rates_of(self) -> dict[str, Any]:
        """The entries that identify the records of its learning rates."""
        return {"network": self.network, "arm": ARMS[self.arm].tuned_as.name, "tuning_images": self.tuning_images}

    @property
    def tuning_images(self) -> int:
        return min(TUNING_IMAGES, self.images // 2)

    def __str__(self) -> str:
        return f"{self.network}, {self.arm}, seed {self.seed}"


def runs(networks: Sequence[str], arms: Sequence[str], seeds: int, images: int, epochs: int) -> list[Run]:
    """All trainings, the first seed of every network and arm first."""
    return [Run(network, arm, seed, images, epochs) for seed in range(seeds) for network in networks for arm in arms]


def tuning(run: Run, images: Images, records: list[Record], step: Step) -> Record | None:
    """The validation accuracy of the next learning rate that is to be tried; None if the best one is known.

    Trained are the first images, and the ones after them validate, half as many. The seed is 0.
    """
    wanted = run.rates_of
    tried = {record["base"]: record["validation"] for record in records if record.items() >= wanted.items()}
    base = _next_rate(tried)
    if base is None:
        return None
    arm, count = ARMS[run.arm].tuned_as, run.tuning_images
    x, y = images.x_train, images.y_train
    step(0.0, f"rate {base:g}")
    network = build(run.network, arm, 0)
    reached = 0.0
    try:
        _train(network, arm, x[:count], y[:count], base * arm.step, TUNING_EPOCHS, 0)
        reached = accuracy(network, x[count : count * 3 // 2], y[count : count * 3 // 2])
    except FloatingPointError:
        step(1.0, f"rate {base:g}: the loss is not finite")
    return wanted | {"base": base, "validation": reached}


def best_rate(run: Run, records: list[Record]) -> float:
    """The base, without r / n, of the rate with the best validation accuracy."""
    mine = [record for record in records if record.items() >= run.rates_of.items()]
    return max(mine, key=lambda record: record["validation"])["base"]


def _next_rate(tried: dict[float, float]) -> float | None:
    for rate in FIRST:
        if rate not in tried:
            return rate
    best, places = BASES.index(max(tried, key=lambda rate: tried[rate])), sorted(map(BASES.index, tried))
    if best == places[0] > 0:
        return BASES[best - 1]
    return BASES[best + 1] if best == places[-1] < len(BASES) - 1 else None


def trained(run: Run, images: Images, base: float, step: Step) -> Record:
    """Train one network and sample it. After a loss that is not finite, training begins again with half of the rate."""
    arm = ARMS[run.arm]
    x, y = images.x_train[: run.images], images.y_train[: run.images]
    for halved in range(MOST_HALVINGS):
        rate = base * arm.step / 2**halved
        network = build(run.network, arm, run.seed)
        start = time.process_time()
        try:
            losses = _train(network, arm, x, y, rate, run.epochs, run.seed, step)
            break
        except FloatingPointError:
            step(0.0, f"rate {rate:g}: the loss is not finite")
    else:
        raise FloatingPointError(f"{run}: the loss is not finite with rates down to {rate:g}")
    seconds = (time.process_time() - start) / run.epochs
    test = images.x_test, images.y_test
    return vars(run) | {
        "rate": rate,
        "halved": halved,
        "losses": losses,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in network.parameters()),
        "reference": accuracy(network, *test),
        **_sampled(network, run, (x[:ALIGNED], y[:ALIGNED]), test, step),
    }


def _train(
    network: nn.Module, arm: Arm, x: Tensor, y: Tensor, rate: float, epochs: int, seed: int, step: Step | None = None
) -> list[float]:
    """Train a network; returns the mean loss of each epoch."""
    losses: list[float] = []

    def after_epoch(epoch: int, count: int, loss: float) -> None:
        losses.append(loss)
        if step is not None:
            step(0.7 * len(losses) / epochs, f"epoch {len(losses)} of {epochs}, loss {loss:.3f}")

    def some(module: nn.Module, lr: float, count: int, order: int) -> None:
        if count:
            how: dict[str, Any] = {"batch_size": BATCH, "schedule": "cosine", "progress": after_epoch}
            train(module, x, y, epochs=count, lr=lr, seed=order, **how)

    if arm.resampled == "never":
        some(network, rate, epochs, seed)
        return losses
    widths = {
        name: max(round(FRESH * part.n / arm.expand), 1)
        for name, part in network.named_modules()
        if isinstance(part, layers.RandomFeatures)
    }
    fresh = layers.resample(network, widths, align="local", seed=seed)
    if arm.resampled == "always":
        some(fresh, rate, epochs, seed)
    else:
        some(network, rate, epochs - 1, seed)
        some(fresh, FINE * rate, 1, seed + 1)
    return losses


def _sampled(
    network: nn.Module, run: Run, align: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], step: Step
) -> Record:
    """The accuracies of samples of a trained network, of an ensemble of them, and with a refit classifier."""
    model, expand = fit(network, align), ARMS[run.arm].expand
    samples: list[dict[str, Any]] = []
    whole: dict[str, float] = {}
    for place, factor in enumerate(FACTORS):
        step(0.7 + 0.1 * place, f"samples x{factor}")
        members = MEMBERS if factor == ENSEMBLE_FACTOR else DRAWS
        options: list[dict[str, Any]] = [{"method": "paper", "network_index": draw} for draw in range(members)]
        options += [{"method": "calibrated", "network_index": draw} for draw in range(DRAWS)]
        options += [{"classifier": "refit"}] * (factor == ENSEMBLE_FACTOR)
        same = {"factor": factor / expand, "seed": SAMPLE_SEED + run.seed}
        drawn = [_probabilities(sample, test[0]) for sample, _ in model.sample_many([one | same for one in options])]
        right = [_accuracy(p, test[1]) for p in drawn]
        for one, reached in zip(options, right, strict=True):
            if one.get("network_index", DRAWS) < DRAWS:
                samples.append({"method": one["method"], "factor": factor, "accuracy": reached})
        if factor == ENSEMBLE_FACTOR:
            mixed = _accuracy(torch.stack(drawn[:MEMBERS]).mean(0), test[1])
            whole = {"ensemble": mixed, "refit": right[-1]}
    return {"samples": samples, "aligned": len(align[0]), **whole}


@torch.no_grad()
def _probabilities(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([network(some).softmax(1) for some in x.split(500)])


def _accuracy(probabilities: Tensor, y: Tensor) -> float:
    return float((probabilities.argmax(1) == y).double().mean())


def sample_accuracy(record: Record, method: str, factor: float) -> float:
    """The mean accuracy over the samples of one network."""
    return mean(s["accuracy"] for s in record["samples"] if (s["method"], s["factor"]) == (method, factor))


def check_names(option: str, text: str, choices: Sequence[str]) -> list[str]:
    """The names in a text, separated by commas, each once."""
    chosen = names(option, text)
    for name in chosen:
        if name not in choices:
            raise ValueError(f"{option}: wanted some of {', '.join(choices)}, separated by commas; got {text!r}")
    return chosen
