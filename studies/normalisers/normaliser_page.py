# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.normalisers` as a page with tables, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from rainbow_fast import plots
from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.plots.axes import over_networks
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.normalisers.normaliser_experiment import (
    ARMS,
    BATCH,
    BATCHES,
    GROUP,
    MOMENTUM,
    SAMPLES,
    SIZES,
    batch_norm_growth,
    batch_norm_limits,
    best_rate,
    last_loss,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "stable_rank": "stable rank",
    "mean_cosine": "mean cosine",
    "variance": "log10 of the variance",
    "gradient": "log10 of the norm",
}
TITLES = {"stable_rank": "stable rank", "mean_cosine": "cosine", "variance": "variance", "gradient": "gradient"}
INFINITE, BATCH_LIMIT, GROWTH = (
    "infinite width, no norm or layer norm",
    "infinite width, batch norm",
    "batch norm, growth",
)
INTRODUCTION = """\
# Norms: orthogonality against training

    python -m studies.normalisers cifar-10-batches-bin

![Measures by layer and by epoch](normalisers.png)

Lubana, Dick and Tanaka ("Beyond BatchNorm", NeurIPS 2021) compare norms by what a network does before training: stable
rank and cosine of its activations, their variance, and gradients by layer. The talk "Representations in random deep
neural networks" (Daneshmand, Joudaki and Bach, 2021) shows such a figure. Its numbers are not transcribed, and their
networks are convolutional and trained on CIFAR-100. So nothing here can be matched with them by number; it is compared
with theory.

Perceptrons 3072-{width}-...-{width}-10 with ReLU, without biases and with He's normal weights are trained on {images:,}
images of CIFAR-10 (pixels from -1 to 1): {epochs} epochs of stochastic gradient descent with momentum {momentum:g}, in
batches of {batch}. Depth is the number of linear layers. A norm stands before each ReLU: none, torch's batch norm,
layer norm, or group norm with groups of {group} units, all with parameters. Each has the learning rate with the lowest
last loss of its first seed (last table). Numbers are means over {seeds} seeds, ± one standard deviation.

*Stable rank* and *mean cosine* are those of the activations after each ReLU (`random_networks.measure`), means over
{batches} batches of {samples} training images. *Variance* is that of the inputs of each ReLU, over images and units,
and *gradient* the norm of the gradient of the loss by the weights of a layer, on the first batch. Batch norms are in
train mode.

Theory is that of infinite width before training, without sampling of weights. Without a norm the cosines are those of
the kernel of ReLU, and layer norm does not change them (black lines). With batch norm all cosines before a ReLU tend to
{opposite}, and the measures to the dashed levels. Its gradients grow by `sqrt(pi / (pi - 1))` = {growth:.3f} a layer
towards the second one (black line of gradients, from the measured last layer).

"""
FINDINGS = """\
## What the figure shows

- *Stable rank and cosine before training.* Without a norm and with layer norm activations become parallel as the kernel
  says, group norm keeps them a little apart, and batch norm keeps them at its limit in every layer.
- *Variance before training.* Norms hold it at 1. Without a norm it scatters around that of the first layer (line), the
  more the deeper the layer.
- *Gradients before training.* Only those of batch norm grow fast towards the first layers, by a factor a layer that
  lies 1 to 4 % below theory; the first layer differs because its inputs are images.
- *After training.* Norms differ less: without batch norm activations are less parallel than before, with it a little
  more, and its gradients no longer grow.
- *By epoch.* Without batch norm the cosine of the last layer falls with the loss, in group norm from the second epoch
  on.
- *Last loss against rank.* Orthogonality before training does not order the norms by how fast they learn. Batch norm
  has by far the most orthogonal activations. At depth 10 it learns as fast as no norm, and at depths 20 and 30 slowest
  of all, where its gradients differ most between layers. No norm and layer norm, whose activations are nearly parallel,
  learn fastest. For each norm alone the loss rises and the rank falls with the depth.

These sentences are about the kept records, which are small networks that are trained briefly.

## Numbers

"""
RATES = """
## Learning rates

The last loss of the first seed at each rate:

"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    first = records[0]
    counts = {len(mine) for _, _, mine in _cases(records)}
    introduction = INTRODUCTION.format(
        width=first["width"],
        images=first["images"],
        epochs=first["epochs"],
        momentum=MOMENTUM,
        batch=BATCH,
        group=GROUP,
        seeds=f"{min(counts)} to {max(counts)}" if len(counts) > 1 else max(counts),
        batches=BATCHES,
        samples=SAMPLES,
        opposite=f"-1/{SAMPLES - 1}",
        growth=batch_norm_growth(),
    )
    return introduction + FINDINGS + _table(records) + RATES + _of_rates(records)


def _table(records: Sequence[Record]) -> str:
    """A row for each depth and norm, at its best rate."""
    heading = [
        *(
            "depth",
            "norm",
            "rate",
            "initial stable rank, last layer",
            "last",
            "initial mean cosine, last layer",
            "last",
        ),
        *("growth of gradients a layer", "last loss", "test accuracy (%)"),
    ]
    rows = []
    for depth, arm, mine in _cases(records):
        whole = [record for record in mine if record["accuracy"] is not None]
        rows.append([
            str(depth), arm, f"{mine[0]['rate']:g}",
            *(_cell([record["last_layer"][name][place] for record in some])
              for name in ("stable_rank", "mean_cosine") for place, some in ((0, mine), (-1, whole))),
            _cell([growth(record) for record in mine]),
            _cell([record["losses"][-1] for record in whole]) if whole else "not finite",
            _cell([100 * record["accuracy"] for record in whole], 1),
        ])  # fmt: skip
    return markdown(heading, rows)


def growth(record: Record) -> float:
    """The factor of gradients a layer before training, from the last hidden layer back to the second one.

    NaN if a gradient is zero, as in a network whose units are all off.
    """
    gradients = record["before"]["gradient"]
    if not gradients[1] or not gradients[-1]:
        return math.nan
    return float((gradients[1] / gradients[-1]) ** (1 / (len(gradients) - 2)))


def _of_rates(records: Sequence[Record]) -> str:
    """The last loss of the first seed of each depth and norm, at each rate."""
    rates, rows = _rates(records), []
    for depth, arm, _ in _cases(records):
        losses = {record["rate"]: last_loss(record) for record in _of(records, depth, arm) if record["seed"] == 0}
        cells = [f"{losses[rate]:.2f}" if math.isfinite(losses[rate]) else "not finite" for rate in rates]
        rows.append([str(depth), arm, *cells])
    return markdown(["depth", "norm", *(f"rate {rate:g}" for rate in rates)], rows)


def figure(records: Sequence[Record], kernel: Record) -> Figure:
    """Measures by layer of the deepest networks, before and after training; by epoch; and the loss against the rank."""
    depth = max(record["depth"] for record in records)
    deepest = {arm: mine for at, arm, mine in _cases(records) if at == depth}
    layers = range(1, depth)
    panels = []
    for when, title in (("before", "before training"), ("after", "after training")):
        for name, label in LABELS.items():
            take = _measured(when, name)
            curves = _curves(deepest, layers, take)
            theory, levels = _theory(name, deepest, kernel, depth) if when == "before" else ({}, {})
            panels.append(plots.GapPanel(f"{TITLES[name]} {title}", "layer", label, curves, levels, theory=theory))
    epochs = range(records[0]["epochs"] + 1)
    losses = _curves(deepest, epochs[1:], lambda record: record["losses"])
    panels.append(plots.GapPanel("training loss", "epoch", "loss (nats)", losses, {"chance": math.log(10)}))
    for name in ("stable_rank", "mean_cosine"):
        curves = _curves(deepest, epochs, lambda record, name=name: record["last_layer"][name])  # type: ignore[misc]
        panels.append(plots.GapPanel(f"{TITLES[name]} of the last layer", "epoch", LABELS[name], curves))
    panels.append(_against_rank(records))
    return plots.gap_panels(panels, columns=4, title=f"perceptrons of {depth} layers and width {records[0]['width']}")


def _theory(
    name: str, deepest: dict[str, list[Record]], kernel: Record, depth: int
) -> tuple[dict[str, tuple[Sequence[float], Sequence[float]]], dict[str, float]]:
    """Lines over the layers, and levels, of a measure before training."""
    layers = list(range(1, depth))
    if name == "gradient":
        batch = deepest.get("batch norm", [])
        if not batch:
            return {}, {}
        last = mean(math.log10(record["before"]["gradient"][-1]) for record in batch)
        step = math.log10(batch_norm_growth())
        return {GROWTH: (layers[1:], [last + step * (depth - 1 - layer) for layer in layers[1:]])}, {}
    values = kernel[name][: depth - 1]
    if name == "variance":
        return {INFINITE: (layers, np.log10(values))}, {"a norm": 0.0}
    return {INFINITE: (layers, values)}, {BATCH_LIMIT: batch_norm_limits()[name]}


def _against_rank(records: Sequence[Record]) -> plots.GapPanel:
    """The last loss against the initial stable rank of the last hidden layer: a point for each depth."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for _, arm, mine in _cases(records):
        whole = [record for record in mine if record["accuracy"] is not None]
        if whole:
            rank = mean(record["last_layer"]["stable_rank"][0] for record in whole)
            points.setdefault(arm, []).append((rank, [record["losses"][-1] for record in whole]))
    curves = []
    for arm, pairs in points.items():
        runs = np.full((max(len(losses) for _, losses in pairs), len(pairs)), np.nan)
        for place, (_, losses) in enumerate(pairs):
            runs[: len(losses), place] = losses
        curves.append(plots.GapCurve(arm, [rank for rank, _ in pairs], runs))
    depths = sorted({record["depth"] for record in records})
    title = f"last loss at depth {', '.join(map(str, depths))}"
    return plots.GapPanel(title, "initial stable rank, last layer", "last loss (nats)", curves, bars=True)


def _measured(when: str, name: str) -> Callable[[Record], Sequence[float]]:
    def take(record: Record) -> list[float]:
        values = np.array(record[when][name], dtype=float)
        shown = np.log10(np.where(values > 0, values, np.nan)) if name in SIZES else values
        return [float(value) for value in shown]

    return take


def _curves(
    deepest: dict[str, list[Record]], x: Sequence[float], take: Callable[[Record], Sequence[float]]
) -> list[plots.GapCurve]:
    """A curve for each norm, of networks whose loss stayed finite."""
    curves = []
    for arm, mine in deepest.items():
        runs = [take(record) for record in mine if record["accuracy"] is not None]
        if runs:
            curves.append(plots.GapCurve(arm, x, np.array(runs, dtype=float)))
    return curves


def _cases(records: Sequence[Record]) -> Iterator[tuple[int, str, list[Record]]]:
    """The networks of each depth and norm at its best rate."""
    for depth in sorted({record["depth"] for record in records}):
        for arm in ARMS:
            mine = _of(records, depth, arm)
            if mine:
                best = best_rate([record for record in mine if record["seed"] == 0])
                yield depth, arm, [record for record in mine if record["rate"] == best]


def _of(records: Sequence[Record], depth: int, arm: str) -> list[Record]:
    return [record for record in records if (record["depth"], record["arm"]) == (depth, arm)]


def _rates(records: Sequence[Record]) -> list[float]:
    return sorted({record["rate"] for record in records})


def _cell(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and deviation of the numbers; a measure that is not defined has none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return "-"
    (average,), (deviation,) = over_networks([finite])
    return mean_and_deviation(average, deviation, digits=digits)
