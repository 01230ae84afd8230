# SPDX-License-Identifier: BSD-3-Clause
"""The page and the figure of kernel regression on CIFAR-10, from their records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rainbow_fast.plots.axes import (
    COLOURS,
    CURVE,
    GREY,
    INK,
    MARKERS,
    blank_figure,
    draw_curve,
    dress,
    over_networks,
    placed,
    statistics,
)
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.kernels.kernel_experiment import LEARNED, OTHERS, REFIT, SAMPLED, TRAINED, WHITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"mlp": "Perceptron 1024-512-256-10", "cnn": "Convolutional network"}
PAGE = """\
# Kernel regression on CIFAR-10

    python -m studies.kernels FOLDER

![Accuracy against the width](kernels.png)

A perceptron is trained on the first {trained} images of CIFAR-10, in grey. From it, networks are sampled by the method
"paper", with finite and with infinite width. Numbers are accuracies in percent on {tested} test images, with the
standard deviation over networks. The choice of the test images gives each accuracy a standard error of about
{error:.1f} points.

- *{white}*: kernel regression with the kernel of an untrained network of infinite width (NNGP).
- *{learned}*: kernel regression with the kernel of infinite width and the learned covariances, `SiteKernel` of the last
  site.
- *{sampled}*: sampled networks with the trained classifier.
- *{refit}*: with a new classifier, which ridge regression fits. At infinite width it is kernel regression with
  the centred kernel of *{learned}*, and another fifth chooses the ridge.

Networks are aligned on, and regressions fitted to, the first images of the training set. A fifth of these images
chooses the ridge, which is then used for all of them. The ridge is relative to the mean diagonal of K.

**Whose labels the covariances have seen.** The trained network has seen the labels of {trained} images, and so have the
learned covariances and the trained classifier. The images that the regression is fitted to are some of these, and so
are those that choose the ridge. So *{learned}* against *{white}* compares kernels, not methods with the same data. For
*{others}*, the regression is fitted to as many images that the network was not trained on.

{tables}"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    first = records[0]
    names = {"white": WHITE, "learned": LEARNED, "others": OTHERS, "sampled": SAMPLED, "refit": REFIT}
    architectures = dict.fromkeys(record["architecture"] for record in records)
    tables = "\n".join(_section([r for r in records if r["architecture"] == name]) for name in architectures)
    error = 100 * (first["accuracy"] * (1 - first["accuracy"]) / first["tested"]) ** 0.5
    counts = {name: f"{first[name]:,}" for name in ("trained", "tested")}
    return PAGE.format(**names, **counts, error=error, tables=tables)


def _section(records: list[Record]) -> str:
    """The tables of one architecture."""
    name, images = KINDS[records[0]["architecture"]], records[0]["images"]
    single = [
        [r["arm"], f"{100 * r['accuracy']:.1f}", f"{r['ridge']:g}" if "ridge" in r else ""]
        for arm in (TRAINED, WHITE, LEARNED, OTHERS)
        for r in records
        if r["arm"] == arm
    ]
    wide = [r for r in records if "factor" in r]
    factors = sorted({r["factor"] for r in wide})
    rows = []
    for arm in (SAMPLED, REFIT):
        cells = []
        for factor in factors:
            (mean,), (std,) = over_networks(
                [[r["accuracy"] for r in wide if r["arm"] == arm and r["factor"] == factor]]
            )
            cells.append(f"{100 * mean:.1f}" + ("" if math.isnan(std) else f" ± {100 * std:.1f}"))
        rows.append([arm, *cells])
    sizes = ["infinite" if factor == math.inf else f"x{factor:g}" for factor in factors]
    return "\n".join(
        [
            f"## {name}\n\nAligned on, and fitted to, {images:,} images.\n",
            markdown(["", "accuracy", "ridge"], single),
            markdown(["", *sizes], rows),
        ]
    )


def figure(records: Sequence[Record]) -> Figure:
    """A panel for each architecture: accuracy against the width, and those of the kernels as lines."""
    architectures = list(dict.fromkeys(record["architecture"] for record in records))
    drawn = blank_figure(5.4 * len(architectures), 4.4)
    for axes, name in zip(drawn.subplots(1, len(architectures), squeeze=False)[0], architectures, strict=True):
        mine = [r for r in records if r["architecture"] == name]
        rows, infinite = placed([r for r in mine if "factor" in r])
        dress(axes, sorted({r["factor"] for r in rows}), infinite)
        for arm, colour, marker in zip((SAMPLED, REFIT), COLOURS, MARKERS, strict=False):
            x, mean, std = statistics([r for r in rows if r["arm"] == arm], "accuracy")
            look = {"label": arm, "color": colour, "marker": marker}
            draw_curve(axes, (x, 100 * mean, 100 * std), infinite, **look, **CURVE)
        lines = {TRAINED: (INK, "--"), LEARNED: (COLOURS[2], "-"), OTHERS: (COLOURS[2], "-."), WHITE: (GREY, ":")}
        for arm, (colour, line) in lines.items():
            (level,) = (r["accuracy"] for r in mine if r["arm"] == arm)
            axes.axhline(100 * level, color=colour, linestyle=line, linewidth=1.4, label=arm, zorder=1)
        axes.set_title(KINDS[name], fontsize=11.5, color=INK)
        axes.set_ylabel("test accuracy (%)", fontsize=11.5)
        axes.legend(fontsize=9.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return drawn
