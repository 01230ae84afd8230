# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.batch_norms` as a page with tables, and as a figure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.plots.axes import COLOURS, GREY, INK, MARKERS, blank_figure, over_networks, plain
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.batch_norms.norm_experiment import (
    ALIGNMENT,
    ARMS,
    BATCH,
    MOMENTUM,
    STATISTICS,
    TUNING,
    VALIDATION,
    best_rate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LOSS = 3.5  # nats; curves above are not drawn

INTRODUCTION = """\
# Only the batch norms are trained

    python -m studies.batch_norms cifar-10-batches-bin WEIGHTS

![Accuracy of each arm, losses, and the choice of the learning rate](batch_norms.png)

How good can a network become if only the scales and shifts of its batch norms are trained, and all other weights stay
random? Frankle, Schwab and Morcos ask this in *Training BatchNorm and only BatchNorm* (ICLR 2021, arXiv:2003.00152).
Here the question is put to ResNet-{depth} on CIFAR-10, and to networks sampled from a trained ResNet-{depth}, whose
weights are random too, but have the trained covariances.

All arms have the same images, epochs and batches: {images:,} training images, {epochs} epochs, batches of {batch},
stochastic gradient descent with momentum {momentum:g} and a learning rate that falls to 0 as a cosine, no weight decay,
no augmentation. Arms of one seed have the same order of images, and the random arms the same initial weights. The
learning rate of each arm is the best of {rates}: each is tried for {tuning}
on {held:,} other training images. Accuracy is that on the first {test:,} test images, where one standard error is up to
{error:.1f} points. Numbers are means over {seeds} seeds, ± one standard deviation. The run took {minutes:.0f} minutes
of CPU time.

- *random*: torch's initial weights. *Batch norms*: scale and shift of each channel are trained, and the convolutions
  and the classifier stay as they are. *Batch norms, classifier*: the classifier is trained as well. *Classifier*: only
  the classifier is trained, on the features of the random network; its batch norms keep the statistics of
  {statistics:,} training images. *All parameters*: the usual training.
- *paper*, *calibrated*: the trained network, sampled at its own width by these methods of `RainbowModel.sample`, with
  the trained classifier, rotated. *As sampled*: nothing is trained. *Batch norms*: the same network, of which only
  batch norms are trained. `materialize` folds the batch norms of the trained network into dense convolutions, so none
  are left. One is put before each non-linearity. It starts with the statistics of {statistics:,} images, and with the
  scale and the shift that undo them: before training, the network is still the sampled one.
- *trained network*: the one that is sampled, on the same test images.
"""
DIFFERENCES = """\
## What differs from the published experiment

- The published abstract gives 82 % for "sufficiently deep" residual networks. This one has {depth} layers and
  is trained on {images:,} images for {steps:,} steps, a small part of what is usual. So accuracies are low, and only
  to be compared with each other.
- The learning rate is chosen anew for each arm, in a short training.
- In a sampled network, the second batch norm of a block is after the sum with the shortcut. In the random networks it
  is before the sum. Shortcuts of sampled networks are dense random maps.
- A calibrated network has one more neuron at each site, its constant offset. The batch norm of this neuron can only
  shift it; so this arm has a few parameters more.
- Sampled networks are aligned on the first {alignment:,} training images, without labels. But their weights and their
  classifier come from a network that was trained on all 50,000 training images, those of the choice of the learning
  rate among them. The random arms know nothing of it. So the arms of sampled networks show what batch norms can repair,
  not what can be learned from {images:,} images.
"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    final = [record for record in records if not record["tuning"]]
    rates = sorted({record["rate"] for record in records if record["tuning"]})
    shared: dict[str, Any] = {name: final[0][name] for name in ("depth", "images", "test")}
    epochs = max(record["epochs"] for record in final)
    shared |= {
        "epochs": epochs,
        "batch": BATCH,
        "steps": epochs * -(-final[0]["images"] // BATCH),
        "momentum": MOMENTUM,
        "rates": ", ".join(f"{rate:g}" for rate in rates),
        "tuning": "one epoch" if TUNING == 1 else f"{TUNING} epochs",
        "held": VALIDATION,
        "error": 50 / final[0]["test"] ** 0.5,
        "seeds": len({record["seed"] for record in final}),
        "statistics": STATISTICS,
        "alignment": min(ALIGNMENT, final[0]["images"]),
        "minutes": sum(record["cpu_seconds"] for record in records) / 60,
    }
    parts = [_flowed(INTRODUCTION.format(**shared)), "## Results\n", _results(final), _sentences(final)]
    parts += [
        "## The choice of the learning rate\n",
        _choice(records, rates),
        _flowed(DIFFERENCES.format(**shared)),
    ]
    return "\n".join(parts)


def _results(final: Sequence[Record]) -> str:
    """A table with a row for each arm."""
    rows = []
    for arm in _names(final):
        mine = [record for record in final if record["arm"] == arm]
        whole = [record for record in mine if record["accuracy"] is not None]
        rate = mine[0]["rate"]
        losses = [record["losses"] for record in whole if record["losses"]]
        rows.append([
            arm,
            f"{mine[0]['parameters']:,}",
            "-" if rate is None else f"{rate:g}",
            _cell([each[0] for each in losses], 2),
            _cell([each[-1] for each in losses], 2),
            _cell([100 * record["accuracy"] for record in whole], 1)
            + (f" ({len(mine) - len(whole)} not finite)" if len(whole) < len(mine) else ""),
        ])  # fmt: skip
    heading = ["", "trained parameters", "learning rate", "loss of the first epoch", "of the last", "test accuracy (%)"]
    return markdown(heading, rows)


def _sentences(final: Sequence[Record]) -> str:
    """One sentence for each arm, from its numbers."""
    means = {
        arm: round(100 * mean(each), 1)  # as in the table
        for arm in _names(final)
        if (each := [r["accuracy"] for r in final if r["arm"] == arm and r["accuracy"] is not None])
    }
    counts = {record["arm"]: record["parameters"] for record in final}
    rates = {record["arm"]: record["rate"] for record in final}
    if set(means) != set(ARMS):
        return ""
    norms, everything = means["random: batch norms"], means["random: all parameters"]
    both = "random: batch norms, classifier"
    share = 100 * counts["random: batch norms"] / counts["random: all parameters"]
    lines = [
        f"- *random: batch norms*: {share:.1f} % of the parameters reach {norms:.1f} %, where chance is 10 % and all "
        f"parameters reach {everything:.1f} %.",
        f"- *{both}*: with the classifier trained too, this is {_points(means[both] - norms)}; both share one learning "
        f"rate, which is {rates[both]:g} here and {rates['random: batch norms']:g} for batch norms alone.",
        f"- *random: classifier*: the classifier alone reaches {means['random: classifier']:.1f} %, "
        f"{_against(means['random: classifier'] - norms)} the batch norms alone.",
        f"- *random: all parameters*: this is as far as training of the whole network comes with this budget, "
        f"{_against(everything - means['trained network'])} the trained network.",
    ]
    for method in ("paper", "calibrated"):
        before, after = means[f"{method}: as sampled"], means[f"{method}: batch norms"]
        lines += [
            f"- *{method}: as sampled*: without training, the sampled network reaches {before:.1f} %.",
            f"- *{method}: batch norms*: training its batch norms changes this to {after:.1f} %, "
            f"{_against(after - norms)} the random network of which only batch norms are trained, and "
            f"{_against(after - everything)} the one of which all parameters are trained.",
        ]
    lines.append(f"- *trained network*: it is right on {means['trained network']:.1f} % of the same images.")
    return _flowed("\n".join(lines))


def _points(change: float) -> str:
    return f"{abs(change):.1f} points {'more' if change >= 0 else 'less'}"


def _against(change: float) -> str:
    return f"{abs(change):.1f} points {'above' if change >= 0 else 'below'}"


def _flowed(text: str) -> str:
    """The text with lines of at most 120 columns; a paragraph or an item of a list is filled anew, and ends a line."""
    blocks = re.split(r"(\n\n|\n(?=- ))", text.strip("\n"))
    for place, block in enumerate(blocks):
        if not block.isspace() and not block.startswith(("    ", "!", "#")):
            item = "  " if block.startswith("- ") else ""
            blocks[place] = textwrap.fill(" ".join(block.split()), 120, subsequent_indent=item, break_on_hyphens=False)
    return "".join(blocks) + "\n"


def _choice(records: Sequence[Record], rates: Sequence[float]) -> str:
    """A table of validation accuracies, with the chosen ones in bold."""
    rows = []
    for arm in _names(records):
        tried = {record["rate"]: record for record in records if record["arm"] == arm and record["tuning"]}
        if tried:
            best = best_rate(list(tried.values()))
            rows.append([arm, *(_share(tried.get(rate), bold=rate == best) for rate in rates)])
    return markdown(["validation accuracy (%)", *(f"{rate:g}" for rate in rates)], rows)


def _share(record: Record | None, *, bold: bool) -> str:
    if record is None:
        return ""
    text = "not finite" if record["validation"] is None else f"{100 * record['validation']:.1f}"
    return f"**{text}**" if bold else text


def figure(records: Sequence[Record]) -> Figure:
    """Three panels: the accuracy of each arm, training losses by epoch, and validation accuracy by learning rate."""
    final = [record for record in records if not record["tuning"]]
    drawn = blank_figure(13.5, 4.6)
    panels = drawn.subplots(1, 3, width_ratios=(1.1, 1, 1))
    trained = [arm for arm in _names(records) if ARMS[arm].layers]
    looks: dict[str, dict[str, Any]] = {
        arm: {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 6, "linewidth": 1.6}
        for place, arm in enumerate(trained)
    }
    above: list[str] = []
    _accuracies(panels[0], final, looks)
    for arm, look in looks.items():
        runs = np.array([r["losses"] for r in final if r["arm"] == arm and r["accuracy"] is not None])
        if len(runs):
            places, (average, deviation) = range(1, runs.shape[1] + 1), over_networks(runs.T.tolist())
            if average.min() > MOST_LOSS:
                above.append(arm)
            else:
                panels[1].errorbar(places, average, np.nan_to_num(deviation), capsize=3, label=arm, **look)
        tried = sorted(
            (r["rate"], 100 * r["validation"])
            for r in records
            if r["arm"] == arm and r["tuning"] and r["validation"] is not None
        )
        panels[2].plot([rate for rate, _ in tried], [share for _, share in tried], label=arm, **look)
    _dress(panels[1], "training loss", "epoch", "loss (nats)")
    panels[1].locator_params(axis="x", integer=True)
    if above:
        text = f"above {MOST_LOSS:g}: {', '.join(above)}"
        panels[1].text(0.98, 0.98, text, transform=panels[1].transAxes, ha="right", va="top", fontsize=9, color=INK)
    _dress(panels[2], f"choice of the learning rate, {TUNING} epoch", "learning rate", "validation accuracy (%)")
    panels[2].set_xscale("log")
    rates = sorted({record["rate"] for record in records if record["tuning"]})
    panels[2].set_xticks(rates, [f"{rate:g}" for rate in rates])
    panels[2].set_xticks([], minor=True)
    lines, labels = panels[2].get_legend_handles_labels()
    drawn.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10.5)
    return drawn


def _accuracies(axes: Axes, final: Sequence[Record], looks: dict[str, dict[str, Any]]) -> None:
    """One row for each arm: its mean with one standard deviation, and its number of trained parameters."""
    names = _names(final)
    for row, arm in enumerate(names):
        values = [100 * r["accuracy"] for r in final if r["arm"] == arm and r["accuracy"] is not None]
        if not values:
            continue
        look = looks.get(arm, {"color": GREY, "marker": "o", "markersize": 6, "markerfacecolor": "white"})
        (average,), (deviation,) = over_networks([values])
        axes.errorbar([average], [row], xerr=[0 if np.isnan(deviation) else deviation], capsize=3, **look)
        axes.annotate(
            f"{average:.1f}", (average, row), (0, 7), textcoords="offset points", ha="center", fontsize=9, color=INK
        )
    axes.axvline(10, color=GREY, linestyle="--", linewidth=1, zorder=1)
    _dress(axes, "test accuracy", "per cent (dashed: chance)", "")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.set_xlim(0, 100)


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    plain(axes)
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)


def _names(records: Sequence[Record]) -> list[str]:
    """The arms of these records, in the order of `ARMS`."""
    present = {record["arm"] for record in records}
    return [arm for arm in ARMS if arm in present]


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    (average,), (deviation,) = over_networks([values])
    return mean_and_deviation(average, deviation, digits=digits)
