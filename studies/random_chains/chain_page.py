# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.random_chains` as a page with a table, and as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rainbow_fast.plots.axes import COLOURS, GREY, INK, MARKERS, blank_figure, plain
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTRODUCTION = """\
# Random chains

    python -m studies.random_chains cifar-10-batches-bin

![Measurements and theory, panel by panel](random_chains.png)

A random chain sends n samples through layer after layer of fresh Gaussian weights, of width d. V is the orthogonality
gap: 0 for orthogonal samples of equal length, `sqrt(1 - 1/n)` for parallel ones. Batch norm is the analysed one, which
scales each unit to length 1 over the samples, unless a panel says otherwise. The panels are the figures of the papers
on networks that are not trained, and four more. Only figures 5a and 5b on images read data.

Points are measured, bands are one standard deviation over runs. Black lines are theory, dashed grey lines are limits
or coarser theory. Theory is computed without sampling, except in figure 1 and in figure 5a on images.

"""
PANELS = {
    "1": (
        "Figure 1: two samples, width 32",
        "layer",
        "mean |cos|",
        "Without a norm two orthogonal samples become parallel, and with batch norm two almost parallel samples become "
        "almost orthogonal. Points are {runs:,} networks with explicit weights. Lines are the exact laws without "
        "weights (50,000 runs of the recursion of an angle, 20,000 of the Gram matrix). The dashed line is the mean "
        "field of infinite width until its stationary level; width 32 lags behind it, because few units tell "
        "the samples apart.",
    ),
    "2a": (
        "Figure 2a: collapsed start, n = 4",
        "layer",
        "mean log V",
        "The gap of almost parallel samples stays for some layers, falls geometrically, and stops at a level of order "
        "`d^(-1/2)` (dashed). The line is the root of the sum of squares of the mean field and this level. It "
        "falls too early, as in figure 1: at these widths the units that tell such samples apart are few.",
    ),
    "2b": (
        "Figure 2b: average over layers, n = 4",
        "log width",
        "log of mean V",
        "The published slope of -0.46 comes from the first layers after a collapsed start, which count in the average "
        "over all layers; after a burn-in of 50 layers the slope is -1/2. The lines average the theory of figure 2a, "
        "and its stationary level.",
    ),
    "5a, images": (
        "Figure 5a: perceptrons, 8 images",
        "layer (1: image)",
        "V",
        "Torch's batch norm (centred) keeps the gap small, and without a norm samples become parallel. The points are "
        "means over {batches} batches of 8 images of CIFAR-10 in {runs} networks of width {width}, the line the exact "
        "law without weights from the same images. The images are normalised by the constants of MNIST and pass a ReLU "
        "before the first weights, as in the published code; a block is ReLU, weights, norm. The published figure "
        "has one network: with batch norm its values are those here, and without a norm its .89 at layer 10 and .93 "
        "at layer 30 lie little more than one standard deviation of networks above their mean. Dashed: the level of a "
        "centred linear chain, and the largest gap.",
    ),
    "5b": (
        "Figure 5b: convolutions, reflected",
        "layer (1: image)",
        "V",
        "The same for convolutions of 3 x 3 with {width} channels and Xavier's weights of gain 1, padded by reflection "
        "as in the published code. Runs are {batches} batches in each of {conv_nets} networks. Without a norm the gap "
        "follows the kernel of infinitely many channels (line), which rises towards the largest value (dashed) so "
        "slowly that 30 layers do not reach it. The published claim that batch norm stabilises the gap holds only for "
        "the first layers: later the gap grows again. The samples do become orthogonal, as their gap at length 1 "
        "shows, but their lengths drift apart: batch norm of maps normalises over positions and samples together, and "
        "so does not hold the length of a sample.",
    ),
    "5b, zeros": (
        "Figure 5b: convolutions, zeros",
        "layer (1: image)",
        "V",
        "The same with the zeros around the maps of which the published caption speaks. It changes little.",
    ),
    "5a": (
        "Figure 5a without data, n = 8, width 100",
        "layer",
        "V",
        "Perceptrons without data. The start is synthetic with V = 0.7, so only the levels compare with the published "
        "ones. "
        "Dashed: the level .199 of a centred linear chain, and the largest gap .935. Dotted: the level .191 of ReLU "
        "from the simulation below.",
    ),
    "6": (
        "Figure 6: activations, n = 4",
        "log width",
        "log of mean |K - E K|",
        "The Gram matrix K concentrates at about `d^(-1/2)` for every activation, but the published claim that the "
        "activations hardly differ does not hold: the published figure shows one of them four times. The line is the "
        "closed form for the identity, which odd activations approach.",
    ),
    "ICLR 1": (
        "ICLR 2024, figure 1: n = d = 50",
        "layer",
        "mean log isometry gap",
        "With orthogonal weights and batch norm the isometry gap falls geometrically, by d/(d+2) a layer.",
    ),
    "ranks": (
        "Many samples, width 1024",
        "samples n",
        "effective rank",
        "The effective rank r follows `1/r = 1/n + n/(4d)`, and from `n = 2 sqrt d` on it stays at `sqrt d` (dashed).",
    ),
    "features": (
        "One layer of random features",
        "eigenvalue",
        "density",
        "The histogram of the eigenvalues of the Gram matrix of 600 features of ReLU, 300 samples of 150 units, "
        "follows the limiting density; one large eigenvalue in 300, that of the mean direction, lies outside.",
    ),
    "wide": (
        "Explicit weights, width {width:,}",
        "layer",
        "log V",
        "One chain with explicit weights of width {width:,} and n = 4 follows theory and the law without "
        "weights. Its weights are generated inside the product and never stored: a layer would take {gigabytes:.3g} GB "
        "in the float64 of the published code. It took {seconds:g} s of CPU time for {depth} layers, the first "
        "from 4 units, and a run without weights {short:g} s.",
    ),
}
TABLE = """\
## Numbers

*Expected* is what a correct implementation gives: numbers of a separate simulation in NumPy, which shares no code with
this library, to about one unit of the last digit or 0.01; for figure 5a on images it is read off the published figure,
to 0.02. *Measured* has one standard error over runs; runs of convolutions are networks. Theory is to first order in
n/d, except for figure 1, the orthogonal weights, the features and images; for figure 6 it is the slope of every
activation. Without a norm, theory of figure 5a without data is the limit of many layers. On images theory is the law of
networks of this width, and for convolutions that of infinitely many channels. For the features, the simulation had
another input, for which theory is 3.0740 and .7026.

"""
EXPECTED = {
    "batch norm, mean of layers 15 to 50": ".117",
    "no norm, layer 49": ".713",
    "no norm, mean of log sin at layer 50": "-.8195",
    "log V at width 32, layers 30 to 50": "-1.623",
    "log V at width 512, layers 30 to 50": "-3.027",
    "all layers, value at width 512": "-2.801",
    "all layers, slope": "-.468",
    "after burn-in, slope": "-.50 ± .01",
    "batch norm on images, layer 2": ".29",
    "batch norm on images, layer 3": ".235",
    "batch norm on images, layer 5": ".20",
    "batch norm on images, layer 30": ".19",
    "batch norm, layer 10 to 31": ".191",
    "no norm, layer 30": ".914",
    "tanh + 1, value at width 256": "-3.227",
    "tanh + 1, slope": "-.457",
    "tanh + 1, mean cosine at width 256": ".791",
    "ReLU, value at width 256": "-2.604",
    "ReLU, slope": "-.530",
    "ReLU, mean cosine at width 256": ".291",
    "tanh, value at width 256": "-2.637",
    "tanh, slope": "-.514",
    "tanh, mean cosine at width 256": "0",
    "sin, value at width 256": "-2.645",
    "sin, slope": "-.513",
    "sin, mean cosine at width 256": "0",
    "identity, value at width 256": "-2.640",
    "identity, slope": "-.512",
    "identity, mean cosine at width 256": "0",
    "slope of log gap per layer, layers 20 to 100": "-.0392",
    "effective rank, n = 16": "14.96",
    "effective rank, n = 32": "25.12",
    "effective rank, n = 64": "31.26",
    "effective rank, n = 128": "31.55",
    "mean of 1 / (eigenvalue + 0.1)": "3.086 ± .006",
    "mean of 1 / (eigenvalue + 1)": ".7025 ± .0003",
}


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    curves = [record for record in records if "curve" in record]
    lines = [INTRODUCTION + "## Panels\n"]
    for panel, (title, _, _, sentence) in _present(records).items():
        first = next(record for record in curves if record["panel"] == panel)
        words = first["setting"] | first
        if panel == "wide":
            words["gigabytes"] = 8 * first["width"] ** 2 / 1e9
        lines.append(_wrapped(f"- *{title}.* {sentence}".format(**words)))
    rows = [_row(record) for record in records if "number" in record]
    return "\n".join([*lines, "", TABLE + markdown(["panel", "number", "measured", "theory", "expected"], rows)])


def figure(records: Sequence[Record]) -> Figure:
    """The panels that have records, three in a row: nine without data, and twelve with it."""
    panels = _present(records)
    rows = len(panels) // 3
    drawn = blank_figure(14.4, 3.8 * rows)
    grid = drawn.subplots(rows, 3).flatten()
    for axes, (panel, (title, x_label, y_label, _)) in zip(grid, panels.items(), strict=True):
        curves = [record for record in records if record["panel"] == panel and "curve" in record]
        for place, record in enumerate(curves):
            _draw(axes, record, place)
        plain(axes)
        axes.set_title(title.format(**curves[0]["setting"]), fontsize=12, color=INK)
        axes.set_xlabel(x_label, fontsize=11)
        axes.set_ylabel(y_label, fontsize=11)
        _finish(axes, panel, curves)
        handles, labels = axes.get_legend_handles_labels()
        lines_last = sorted(range(len(labels)), key=lambda k: labels[k] not in [each["curve"] for each in curves])
        axes.legend([handles[k] for k in lines_last], [labels[k] for k in lines_last], frameon=False, fontsize=9.5)
    return drawn


def _draw(axes: Axes, record: Record, place: int) -> None:
    """Points and band of a curve, with theory over them; the first curve names the lines in the legend."""
    x, mean = np.array(record["x"]), np.array(record["mean"])
    colour, named = COLOURS[place], axes.get_legend_handles_labels()[1]
    axes.plot(
        x, mean, color=colour, marker=MARKERS[place], markersize=4 if len(x) > 20 else 5.5, linestyle="none",
        label=record["curve"], markevery=max(1, len(x) // 50), zorder=2,
    )  # fmt: skip
    if record["deviation"] is not None:
        spread = np.array(record["deviation"])
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.22, linewidth=0)
    if record["theory"] is not None:
        line = "theory, identity" if record["panel"] == "6" else "theory"
        axes.plot(x, record["theory"], color=INK, linewidth=1.3, zorder=3, label=None if line in named else line)
    if record["limit"] is not None:
        axes.plot(x, record["limit"], color=GREY, linewidth=1.2, linestyle="--", label="mean field")
    if "level" in record:
        label = None if "level" in named else "level"
        axes.axhline(record["level"], color=GREY, linewidth=1.1, linestyle="--", label=label)


def _finish(axes: Axes, panel: str, curves: Sequence[Record]) -> None:
    """What only one panel has: a guide, or the ends of an axis."""
    if panel == "ranks":
        axes.axhline(math.sqrt(1024), color=GREY, linewidth=1.1, linestyle="--", label="$\\sqrt{d}$")
        axes.set_xscale("log", base=2)
        axes.set_xticks(curves[0]["x"], [f"{x:g}" for x in curves[0]["x"]])
    if panel == "5a":
        axes.axhline(0.191, color=INK, linewidth=1.3, linestyle=":", label="ReLU, expected")
    if panel.startswith("5"):
        axes.set_ylim(0, 1)
    if panel == "features":
        axes.set_yscale("log")
        axes.set_ylim(bottom=3e-3)


def _present(records: Sequence[Record]) -> dict[str, tuple[str, str, str, str]]:
    present = {record["panel"] for record in records}
    return {panel: words for panel, words in PANELS.items() if panel in present}


def _row(record: Record) -> list[str]:
    error, theory = record["error"], record["theory"]
    measured = _digits(record["mean"]) + ("" if error is None else f" ± {error:.1g}")
    return [
        record["panel"],
        record["number"],
        measured,
        "-" if theory is None else _digits(theory),
        EXPECTED.get(record["number"], "-"),
    ]


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _wrapped(text: str) -> str:
    """Lines of at most 120 letters, indented as an item of a list."""
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
