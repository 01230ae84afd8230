# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.rainbow_layers` as a page with tables, and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.plots.axes import (
    COLOURS,
    CURVE,
    GREY,
    GRID,
    INK,
    MARKERS,
    blank_figure,
    dress,
    label_ends,
    over_networks,
    plain,
)
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.rainbow_layers.arms import ARMS, NETWORKS, TITLES
from studies.rainbow_layers.layers_experiment import (
    ALIGNED,
    BASES,
    BATCH,
    DRAWS,
    ENSEMBLE_FACTOR,
    FACTORS,
    FRESH,
    MEMBERS,
    TUNING_EPOCHS,
    sample_accuracy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = ("usual", "usual x4", "e2 r1/4", "e4 r1/4", "e4 r1/4 fine-tuned", "e4 r1/4 resampled")  # in the left panel
GOAL = 2  # points that samples may lose to usual training
INTRODUCTION = """\
# Networks of rainbow layers

    python -m studies.rainbow_layers cifar-10-batches-bin --threads 1 --seeds {seeds}

![Accuracy of samples against width](rainbow_layers.png)

Networks that are trained in the usual way lose accuracy when their neurons are replaced by samples. Networks of
[rainbow layers](guide/rainbow_layers.md) are samples already, and lose less. This page says how much less, and what
that costs. Images are those of CIFAR-10 in colour, without augmentation; accuracies are in per cent on the 10,000 test
images.

Ways to train. d is the width of the architecture, the number of channels of a layer as its name says:

- *usual*: usual layers. *usual x4*: usual layers of width 4 d, a control for the width alone.
- *e4 r1/4*: `rainbow_fast.rainbowize(network, x, expand=4, rank=1/4)`: layers of n = 4 d fixed neurons, which read
  r = d / 4 trained projections. Other numbers accordingly.
- *fine-tuned*: the last epoch has n' = {fresh} d fresh neurons in every step (`rainbow_fast.nn.resample` with
  align="local"), and begins with a third of the rate. The number of epochs is the same.
- *resampled*: all epochs have fresh neurons, n' = {fresh} d.

All are trained by stochastic gradient descent with momentum 0.9, batches of {batch}, and a rate that falls to zero by
a cosine. The first rate is chosen for each way to train, with one seed, by the accuracy on other training images after
{tuning} epochs on {few}; the last table shows it. Fine-tuned networks have the rate of those that are not.
Where the loss of the whole training is not finite, it begins again with half of the rate.

Samples have n' = factor · d neurons, for all ways to train: at x4, a network *e4* is replaced by one of its own width,
at x1 by one of a quarter of it. They are aligned on {aligned:,} training images. Each number is the mean over the
trained networks, ± one standard deviation; of each trained network it has the mean over {draws} samples. An *ensemble*
is the mean of the probabilities of {members} samples at x{ensemble}; *refit* is a sample at x{ensemble} whose
classifier is fitted anew, by ridge regression, on the {aligned:,} images of the alignment, which are few. Both are of
the method *paper*.
"""
ONE = "Where one network is trained, there is no spread over trainings.\n"
ERROR = "An accuracy on 10,000 images has a standard error of half a point.\n"
COST = """\
What training costs: trained numbers, processor seconds of an epoch with one thread on a machine that did other work
too, the mean loss of the last epoch, with fresh neurons if it has them, the rates at which training begins (after
halving), and how many networks have a halved one:
"""
RATES = """\
The rate is a base, times r / n for rainbow layers. Validation accuracy by the base, the chosen one in bold; 0 says that
the loss was not finite:

"""

FINDINGS = """\
## What it says

These sentences are about the kept records, and samples are those of *paper* unless said.

- Samples of usual networks stay far below their networks at every width. Samples of *e4 r1/4* lose a few points to
  their network, and come near usual training; after fine-tuning they are about two points below it.
- The rainbow network is another network, and its accuracy another one: that of *e4 r1/4* itself is above that of usual
  training. It has more parameters, because its classifier reads four times as many features, and its steps take longer.
  *e2 r1/4* has fewer parameters than usual training, and its samples lose more.
- Low rank and width are both needed: samples of *e4 r1* and of *e1 r1/4* lose nine to ten points at x4 to
  their networks. Width alone helps a usual network itself, but not its samples.
- Fine-tuning raises samples and lowers the network itself, so that the two come close to each other. Fresh neurons in
  all epochs lower both. Their rate is smaller, which may be part of the reason: the next one of the grid diverged in
  the short training that chooses rates.
- At a quarter of the width of *e4*, samples lose much; beyond its width they gain little. *Calibrated* adds much to
  samples of usual networks, and little to those of rainbow layers, but for narrow ones. The mean of several samples is
  about as good as one wider sample.
- Rainbow layers are trained near the largest rate that does not diverge. The grid of rates is coarse, and one rate
  serves all seeds. The third *e4 r1/4* began again with half of the rate after its loss had diverged; its accuracy is
  the lowest of the three.
"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    trained = _trained(records)
    introduction = INTRODUCTION.format(
        seeds=len({record["seed"] for record in trained}),
        fresh=FRESH,
        batch=BATCH,
        tuning=TUNING_EPOCHS,
        few=" or ".join(f"{count:,}" for count in sorted({r["tuning_images"] for r in records if "base" in r})),
        aligned=ALIGNED,
        draws=DRAWS,
        members=MEMBERS,
        ensemble=ENSEMBLE_FACTOR,
    )
    parts = [introduction]
    for network in NETWORKS:
        mine = [record for record in trained if record["network"] == network]
        for images, epochs in sorted({(record["images"], record["epochs"]) for record in mine}, reverse=True):
            chosen = [record for record in mine if (record["images"], record["epochs"]) == (images, epochs)]
            parts += [f"## {TITLES[network]}\n", f"{images:,} training images, {epochs} epochs.\n", *_section(chosen)]
        if mine:
            parts += ["### Learning rates\n", _rates([r for r in records if r["network"] == network and "base" in r])]
    return "\n".join([*parts, *([FINDINGS] if any(r["network"] == "cnn" for r in trained) else [])])


def _trained(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "samples" in record]


def _arms(records: Sequence[Record]) -> list[str]:
    present = {record["arm"] for record in records}
    return [name for name in ARMS if name in present]


def _section(records: list[Record]) -> list[str]:
    arms = _arms(records)
    sizes = [f"x{factor}" for factor in FACTORS]

    def rows(*columns: Callable[[Record], float]) -> list[list[str]]:
        return [[arm, *(_cell([100 * f(r) for r in records if r["arm"] == arm]) for f in columns)] for arm in arms]

    accuracies = rows(lambda r: r["reference"], *(_of("paper", factor) for factor in FACTORS))
    counts = {arm: len({r["seed"] for r in records if r["arm"] == arm}) for arm in arms}
    first = [[row[0], str(counts[row[0]]), *row[1:]] for row in accuracies]
    more = rows(
        *(_of("calibrated", factor) for factor in FACTORS), lambda r: r["ensemble"], lambda r: r["refit"]
    )  # fmt: skip
    return [
        "The network itself and its samples, by the method *paper*:\n",
        markdown(["", "trained networks", "itself", *sizes], first),
        *([ONE] if 1 in counts.values() else []),
        ERROR,
        *_against_usual(records),
        "The method *calibrated*, ensembles and refit classifiers:\n",
        markdown(["", *(f"calibrated {size}" for size in sizes), "ensemble", "refit"], more),
        COST,
        markdown(["", "parameters", "seconds", "loss", "rates", "halved rates"], [_cost(arm, records) for arm in arms]),
    ]  # fmt: skip


def _of(method: str, factor: int) -> Callable[[Record], float]:
    return lambda record: sample_accuracy(record, method, factor)


def _against_usual(records: list[Record]) -> list[str]:
    """Differences in points: of each network to usual training, and of its samples to that and to itself."""
    usual = [r["reference"] for r in records if r["arm"] == "usual"]
    arms = [arm for arm in _arms(records) if ARMS[arm].rank is not None]
    if not usual or not arms:
        return []
    rows, gaps = [], {}
    for arm in arms:
        mine = [r for r in records if r["arm"] == arm]
        own, narrow, wide = (
            mean(f(r) for r in mine) for f in (lambda r: r["reference"], _of("paper", 4), _of("paper", 16))
        )
        gaps[arm] = 100 * (narrow - mean(usual))
        pairs = ((own, mean(usual)), (narrow, mean(usual)), (wide, mean(usual)), (narrow, own), (wide, own))
        rows.append([arm, *(f"{100 * (a - b):+.1f}" for a, b in pairs)])
    within = ", ".join(f"*{arm}*" for arm in arms if gaps[arm] >= -GOAL)
    best = max(gaps, key=lambda arm: gaps[arm])
    said = f"with {within}" if within else "in no way of training"
    heading = ["itself", "samples x4", "samples x16", "samples x4, to itself", "samples x16, to itself"]
    return [
        f"The goal was that samples at x4 lose at most {GOAL} points to usual training.\n"
        f"It is reached {said}; the least loss is that of *{best}*, {gaps[best]:+.1f} points.\n"
        "Differences in points, to usual training unless said:\n",
        markdown(["", *heading], rows),
    ]


def _cost(arm: str, records: list[Record]) -> list[str]:
    mine = [r for r in records if r["arm"] == arm]
    seconds, losses = [r["seconds"] for r in mine], [r["losses"][-1] for r in mine]
    rates = ", ".join(f"{rate:.2g}" for rate in sorted({r["rate"] for r in mine}, reverse=True))
    halved = sum(r["halved"] > 0 for r in mine)
    return [arm, f"{mine[0]['parameters']:,}", _cell(seconds), _cell(losses, 2), rates, str(halved)]


def _rates(records: list[Record]) -> str:
    """Validation accuracies of all rates that were tried, the best one in bold."""
    bases = [base for base in BASES if any(r["base"] == base for r in records)]
    rows = []
    for arm in _arms(records):
        by_base = {r["base"]: r["validation"] for r in records if r["arm"] == arm}
        best = max(by_base, key=lambda base: by_base[base])
        cells = [f"{100 * by_base[base]:.1f}" if base in by_base else "" for base in bases]
        rows.append([
            arm, f"{ARMS[arm].step:g}",
            *(f"**{cell}**" if base == best else cell for base, cell in zip(bases, cells, strict=True)),
        ])  # fmt: skip
    return RATES + markdown(["", "r / n", *(f"{base:g}" for base in bases)], rows)


def _cell(values: Sequence[float], digits: int = 1) -> str:
    (average,), (deviation,) = over_networks([values])
    return mean_and_deviation(average, deviation, digits=digits)


def figure(records: Sequence[Record]) -> Figure:
    """A row for each architecture: samples against width, and each network with its samples at x4."""
    trained = _trained(records)
    networks = [network for network in NETWORKS if any(record["network"] == network for record in trained)]
    shown = blank_figure(13, 4.8 * len(networks))
    grid = shown.subplots(len(networks), 2, squeeze=False, width_ratios=[1, 0.85])
    for (left, right), network in zip(grid, networks, strict=True):
        mine = [record for record in trained if record["network"] == network]
        most = max((record["images"], record["epochs"]) for record in mine)
        mine = [record for record in mine if (record["images"], record["epochs"]) == most]
        _draw_widths(left, mine)
        _draw_losses(right, mine)
        left.set_title(f"{TITLES[network]}: samples", fontsize=11.5, color=INK)
        right.set_title("○ networks,  ● their samples at x4", fontsize=11.5, color=INK)
    return shown


def _draw_widths(axes: Axes, records: list[Record]) -> None:
    labels = []
    dress(axes, list(map(float, FACTORS)))
    for arm, colour, marker in zip(DRAWN, COLOURS, MARKERS, strict=True):
        if arm not in _arms(records):
            continue
        runs = [[100 * _of("paper", factor)(r) for r in records if r["arm"] == arm] for factor in FACTORS]
        average, deviation = over_networks(runs)
        axes.errorbar(FACTORS, average, deviation, color=colour, marker=marker, **CURVE)
        labels.append((float(average[-1]), float(FACTORS[-1]), arm, colour))
    usual = [100 * r["reference"] for r in records if r["arm"] == "usual"]
    if usual:
        axes.axhline(mean(usual), color=INK, linestyle="--", linewidth=1.4, zorder=1)
        labels.append((mean(usual), axes.get_xlim()[1], "usual itself", INK))
    axes.set_xlabel("width of samples n'/d", fontsize=11.5)
    axes.set_ylabel("test accuracy (%)", fontsize=11.5)
    axes.margins(y=0.08)
    label_ends(axes, labels)


def _draw_losses(axes: Axes, records: list[Record]) -> None:
    arms = _arms(records)[::-1]
    for place, arm in enumerate(arms):
        mine = [r for r in records if r["arm"] == arm]
        own = [100 * r["reference"] for r in mine]
        at = [100 * _of("paper", 4)(r) for r in mine]
        axes.plot([mean(own), mean(at)], [place, place], color=GREY, linewidth=1.4, zorder=1)
        look: dict[str, Any] = {"linestyle": "none", "markersize": 7, "color": COLOURS[0]}
        axes.plot([mean(own)], [place], marker="o", markerfacecolor="white", **look)
        axes.plot([mean(at)], [place], marker="o", **look)
    axes.set_yticks(np.arange(len(arms)), arms)
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlabel("test accuracy (%)", fontsize=11.5)
    plain(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
