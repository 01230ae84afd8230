# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.scattering` as a page with a table, and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.plots.axes import COLOURS, INK, LINES, MARKERS, blank_figure, over_networks, plain
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.scattering.scattering_experiment import FIRST, TRAINING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = tuple[float, bool]  # width and skip

# Test accuracies of an experiment that came before this package had these networks: plain PyTorch, one seed each.
EARLIER = {(1 / 8, False): 67.1, (1 / 4, False): 70.1, (1 / 2, False): 72.3, (1 / 8, True): 72.3}
ALLOWED = 2.0  # points

INTRODUCTION = """\
# Learned scattering networks

    python -m studies.scattering cifar-10-batches-bin

![Test accuracy against the width, training loss and test accuracy by epoch](scattering.png)

Networks of [`scattering`](api/data.md) with three hidden layers on CIFAR-10 in colour: `scattering(3, width,
scale_last=True)`, with and without `skip`, trained on the first {images:,} images. The training is
`PRESETS["scattering-short"]`: {epochs} of stochastic gradient descent with momentum
{momentum:g}, weight decay {weight_decay:g}, batches of {batch_size}, and a learning rate that falls from {lr:g} to 0 as
a cosine. Images are mirrored, and cropped after padding by {crop} pixels, at random. This is no published training: the
published one has 50,000 images and 150 epochs. Accuracy is that on all 10,000 test images, where one standard error is
about 0.5 points. Numbers are means over seeds, ± one standard deviation over them.

The column *earlier* has one run each of an experiment in plain PyTorch, from before this package had these networks.
The two are in agreement if they differ by at most {allowed:g} points.
"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    plain_runs = [record for record in records if not record["skip"]]
    skip_runs = [record for record in records if record["skip"]]
    shared: dict[str, Any] = {
        **TRAINING,
        "images": records[0]["images"],
        "epochs": " and ".join(
            f"{_values(runs, 'epochs')} epochs {word} `skip`"
            for word, runs in (("without", plain_runs), ("with", skip_runs))
            if runs
        ),
        "allowed": ALLOWED,
    }
    return "\n".join([INTRODUCTION.format(**shared), "## Results\n", _table(records), _sentences(records)])


def _table(records: Sequence[Record]) -> str:
    """A row for each kind of network."""
    rows = []
    for kind in kinds(records):
        mine = _of(records, kind)
        rows.append([
            _name(kind),
            f"{mine[0]['parameters']:,}",
            str(len(mine)),
            _cell([record["losses"][0] for record in mine], 2),
            _cell([record["losses"][-1] for record in mine], 2),
            _cell([100 * record["accuracy"] for record in mine], 1),
            f"{EARLIER[kind]:.1f}" if kind in EARLIER else "-",
            f"{np.median([record['cpu_seconds'] / record['epochs'] for record in mine]):.0f}",
        ])  # fmt: skip
    heading = ["", "parameters", "seeds", "first loss", "last loss", "test accuracy (%)", "earlier", "CPU s an epoch"]
    return markdown(heading, rows)


def _sentences(records: Sequence[Record]) -> str:
    """What the numbers say, computed from them."""
    means = {kind: round(float(np.mean(_accuracies(records, kind))), 1) for kind in kinds(records)}  # as in the table
    lines = []
    for kind, mean in means.items():
        if kind in EARLIER:
            away = abs(mean - EARLIER[kind])
            verdict = "in agreement" if away <= ALLOWED else "not in agreement"
            lines.append(f"- *{_name(kind)}*: {away:.1f} points from the earlier run: {verdict}.")
    for width in sorted({width for width, skip in means if skip and (width, False) in means}):
        more = means[width, True] - means[width, False]
        change = f"{abs(more):.1f} points {'more' if more >= 0 else 'less'}"
        lines.append(f"- *Skip-connections* at width {_fraction(width)}: {change}.")
    lines.append(
        "- CPU seconds are those of one thread, while other programs ran, with the evaluation after each epoch. "
        "`bench/bench_scattering_step.py` times the step with the op and without it."
    )
    return "\n".join(lines) + "\n"


def figure(records: Sequence[Record]) -> Figure:
    """Three panels: test accuracy against the width, training loss by epoch, and test accuracy by epoch."""
    drawn = blank_figure(13.5, 4.6)
    panels = drawn.subplots(1, 3)
    shown = kinds(records)
    widths = sorted({width for width, _ in shown})
    _against_width(panels[0], records, widths)
    for panel, key, scale in ((panels[1], "losses", 1), (panels[2], "accuracies", 100)):
        for kind in shown:
            runs = scale * np.array([record[key] for record in _of(records, kind)])
            average, deviation = over_networks(runs.T.tolist())
            look = _look(kind, widths)
            epochs = range(1, runs.shape[1] + 1)
            bars = deviation if len(runs) > 1 else None
            panel.errorbar(epochs, average, bars, label=_name(kind), capsize=2, **look)
        panel.locator_params(axis="x", integer=True)
    _dress(panels[1], "training loss, augmented images", "epoch", "loss (nats)")
    _dress(panels[2], f"first {FIRST:,} test images", "epoch", "test accuracy (%)")
    lines, labels = panels[2].get_legend_handles_labels()
    drawn.legend(lines, labels, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=10.5)
    return drawn


def _against_width(axes: Axes, records: Sequence[Record], widths: Sequence[float]) -> None:
    """Accuracies of single networks as dots, their means as lines, and the earlier ones as crosses."""
    for skip in (False, True):
        mine = [kind for kind in kinds(records) if kind[1] == skip]
        if not mine:
            continue
        colour = COLOURS[int(skip)]
        means = [float(np.mean(_accuracies(records, kind))) for kind in mine]
        axes.plot([width for width, _ in mine], means, color=colour, linewidth=1.8)
        for kind in mine:
            values = _accuracies(records, kind)
            axes.plot([kind[0]] * len(values), values, MARKERS[int(skip)], color=colour, markersize=6, alpha=0.8)
            if kind in EARLIER:
                axes.plot([kind[0] * 1.06], [EARLIER[kind]], "x", color=INK, markersize=7)
        axes.annotate(
            "skip" if skip else "no skip", (mine[-1][0], means[-1]), (10, 6), textcoords="offset points", color=colour
        )
    _dress(axes, "all test images (crosses: earlier, one seed)", "width", "test accuracy (%)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [_fraction(width) for width in widths])
    axes.set_xticks([], minor=True)
    axes.set_xlim(widths[0] / 1.3, widths[-1] * 1.6)


def _look(kind: Kind, widths: Sequence[float]) -> dict[str, Any]:
    width, skip = kind
    place = list(widths).index(width)
    return {"color": COLOURS[int(skip)], "linestyle": LINES[place % len(LINES)], "linewidth": 1.6}


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    plain(axes)
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)


def kinds(records: Sequence[Record]) -> list[Kind]:
    """The kinds of networks that have records: first without skip-connections, by width."""
    return sorted({(record["width"], record["skip"]) for record in records}, key=lambda kind: (kind[1], kind[0]))


def _of(records: Sequence[Record], kind: Kind) -> list[Record]:
    return [record for record in records if (record["width"], record["skip"]) == kind]


def _accuracies(records: Sequence[Record], kind: Kind) -> list[float]:
    return [100 * record["accuracy"] for record in _of(records, kind)]


def _name(kind: Kind) -> str:
    return f"width {_fraction(kind[0])}{', skip' if kind[1] else ''}"


def _fraction(width: float) -> str:
    return f"1/{1 / width:g}" if width < 1 and (1 / width).is_integer() else f"{width:g}"


def _values(records: Sequence[Record], key: str) -> str:
    """The values of a key in the records, such as "14"."""
    return " or ".join(map(str, sorted({record[key] for record in records})))


def _cell(values: Sequence[float], digits: int) -> str:
    (average,), (deviation,) = over_networks([values])
    return mean_and_deviation(average, deviation, digits=digits)
