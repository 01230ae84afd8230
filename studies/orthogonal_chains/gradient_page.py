# SPDX-License-Identifier: BSD-3-Clause
"""Gradients against the depth as a page with a table, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rainbow_fast.plots.axes import COLOURS, GREY, INK, MARKERS, blank_figure, over_networks, plain
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks.chain_theory import haar_isometry_factor
from rainbow_fast.tables import markdown
from studies.orthogonal_chains.gradient_experiment import FEW, ORTHOGONAL, PLAIN
from studies.orthogonal_chains.gradient_theory import gaussian_growth
from studies.orthogonal_chains.normed_network import ACTIVATIONS, LAWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTRODUCTION = """\
# Orthogonal weights and batch norm

    python -m studies.orthogonal_chains cifar-10-batches-bin
    python -m studies.orthogonal_chains cifar-10-batches-bin --train-depths 100,500,1000 --rates 0.001 \\
        --images 50000 --epochs 1000

![Gradients against the depth, with theory](orthogonal_chains.png)

Batch norm keeps the samples of a deep network apart, but its gradients explode with the depth. Meterez, Joudaki,
Orabona, Immer, Raetsch and Daneshmand (ICLR 2024) prove that orthogonal weights keep them bounded in linear networks.
This page has their figures 3 and 4. The second command has the published sizes of the training; its number of epochs is
the default of the published code.

A network of depth L has L layers of linear step, norm and activation, of width {width}, and a linear step to ten
outputs. It has no biases. Weights are *Haar*, uniform orthogonal matrices, or *Gaussian* of variance 1/d. The batch has
as many images of CIFAR-10 as layers have units. The *norm without a mean* divides each unit by its root mean square
over the batch; this is the norm of the proofs. *Torch's norm* is centred, without parameters. With the published
*gain*, layer l = 0, 1, ... has the activation `f((l+1)^-0.4 t)`.

## Gradients before training

The figure shows the logarithm of the Frobenius norm of the gradient of the loss by W_1, the first square weights.
Points are means over {runs} draws of weights, and bars are one standard deviation. All depths of a draw have the same
first layers. Filled points are Haar weights, open ones Gaussian weights. Numbers are float64.

- *Figure 3.* The published claim holds: with Gaussian weights the gradient explodes, and with Haar weights it hardly
  changes from depth 5 to depth 1000. The growth with Gaussian weights is not linear in the depth: it becomes faster in
  the deepest networks. The dashed line is `log((n-1)/(n-2))/2` a layer, which holds for n samples in layers of infinite
  width; there is no theory here for n = d.
- *Orthogonal samples.* The line is theory, derived here, which is exact on average. A norm takes the diagonal off the
  product of gradient and activations. Its antisymmetric part passes all layers as it is; of the square of its symmetric
  part each layer leaves d/(d+2). So the gradient falls to a limit.
- *A quarter of the samples.* The claim needs as many samples as units: with a quarter of the images, gradients explode
  with Haar weights as well.
- *Isometry gap.* With Haar weights a layer changes the gap by exactly the mean over units of `log |z|^2`, z the unit
  before the norm. Here this identity holds up to {error:.0e}. The gap falls slowly at first, then by d/(d+2) a layer
  (line through the last point). The published bound on it, with the constant .015 of their figure 1, is much weaker: it
  falls by a factor e in {layers:,} layers. With Gaussian weights the gap grows.
- *Without gain.* Gradients of tanh and sin explode with both weights. The lines begin at the first point and have the
  growth `log(E f'(X)^2 / E f(X)^2)/2` a layer of wide layers, X standard normal.
- *With gain.* The published claim holds for Haar weights: gradients do not explode. The growth of layer l is
  `2/3 (l+1)^-1.6` or less, which has a finite sum, while the outputs shrink with the last gain; so theory (lines) says
  that gradients fall. It holds to about 0.1 for orthogonal samples, with the norm without a mean. From images gradients
  fall less, as their isometry gap is large in the first hundreds of layers. With Gaussian weights and the gain they
  explode.

These sentences are about the kept records. In the table, *measured* has one standard error over draws; theory of
Gaussian weights, and of tanh and sin, is that of wide layers.

"""
BOUND = 0.015  # the gap is at most its first value times exp(-l / k), with k = BOUND d^2 (1 + d gap)
PUBLISHED = {
    "linear, Haar: at depth 1000": "flat",
    "linear, Gaussian: at depth 1000": "about 10",
}


SHAPED = [f"{name}, gain{more}" for name in ("tanh", "sin") for more in ("", f", {ORTHOGONAL}")]


@dataclass(frozen=True)
class Curve:
    """Points of a curve in a panel: values (runs, points), and lines of theory and of a limit, or None."""

    name: str
    colour: int
    x: np.ndarray
    values: np.ndarray
    theory: np.ndarray | None = None
    limit: np.ndarray | None = None


def page(records: Sequence[Record]) -> str:
    """The text of the page, up to the section on training."""
    draws = _draws(records, "Haar")
    error = max(record["identity_error"] for record in draws)
    width, gap = draws[0]["width"], float(np.mean([record["isometry_gaps"][0] for record in draws]))
    layers = round(BOUND * width**2 * (1 + width * gap), -3)
    introduction = INTRODUCTION.format(width=width, runs=len(draws), error=error, layers=round(layers))
    rows = [
        [name, _measured(values), "-" if theory is None else f"{theory:.4f}", PUBLISHED.get(name, "-")]
        for name, values, theory in _numbers(records)
    ]
    return introduction + markdown(["logarithm", "measured", "theory", "published"], rows)


def figure(records: Sequence[Record]) -> Figure:
    """Gradients of linear networks, their isometry gaps, and gradients of others without and with gain."""
    drawn = blank_figure(11.4, 8.2)
    grid = drawn.subplots(2, 2).flatten()
    gradient = "log of the gradient by $W_1$"
    panels = [
        ("Figure 3: linear, norm without a mean", "depth", gradient, _linear(records)),
        ("Linear: isometry gap", "layer", "log of the isometry gap", _gaps(records)),
        ("Without gain, torch's norm", "depth", gradient, _curves(records, ("identity", "tanh", "sin"))),
        ("With gain, torch's norm", "depth", gradient, _curves(records, SHAPED)),
    ]
    for axes, (title, x_label, y_label, curves) in zip(grid, panels, strict=True):
        for curve in curves:
            _draw(axes, curve)
        plain(axes)
        axes.set_title(title, fontsize=12, color=INK)
        axes.set_xlabel(x_label, fontsize=11)
        axes.set_ylabel(y_label, fontsize=11)
        axes.legend(frameon=False, fontsize=9.5)
    depths = _draws(records, "Haar")[0]["depths"]
    grid[-1].set_xscale("log")
    grid[-1].set_xticks(depths, [str(depth) for depth in depths])
    grid[-1].set_xticks([], minor=True)
    return drawn


def _draw(axes: Axes, curve: Curve) -> None:
    """Points with bars of one standard deviation, open ones for Gaussian weights; a kind of line is named once."""
    mean, deviation = over_networks(curve.values.T)
    named = axes.get_legend_handles_labels()[1]
    colour = COLOURS[curve.colour]
    axes.errorbar(
        curve.x, mean, np.nan_to_num(deviation), color=colour, marker=MARKERS[curve.colour], markersize=5.5,
        markerfacecolor="white" if "Gaussian" in curve.name else colour, linestyle="none", capsize=2.5,
        elinewidth=1.1, label=curve.name, zorder=2,
    )  # fmt: skip
    if curve.theory is not None:
        label = None if "theory" in named else "theory"
        axes.plot(curve.x, curve.theory, color=INK, linewidth=1.2, label=label, zorder=3)
    if curve.limit is not None:
        axes.plot(curve.x, curve.limit, color=GREY, linewidth=1.2, linestyle="--", label="infinite width", zorder=1)


def _linear(records: Sequence[Record]) -> list[Curve]:
    draws = _draws(records, "Haar")
    depths = np.array(draws[0]["depths"])
    gaussian = _values(records, "Gaussian", PLAIN)
    limit = gaussian.mean(0)[0] + gaussian_growth(draws[0]["width"]) * (depths - depths[0])
    theory = np.array([record["theory"] for record in draws]).mean(0)
    return [
        Curve("Gaussian", 0, depths, gaussian, limit=limit),
        Curve("Haar", 0, depths, _values(records, "Haar", PLAIN)),
        Curve(f"Haar, {ORTHOGONAL}", 3, depths, _values(records, "Haar", ORTHOGONAL), theory),
        Curve(f"Haar, {FEW}", 4, depths, _values(records, "Haar", FEW)),
    ]


def _gaps(records: Sequence[Record]) -> list[Curve]:
    """The line has the slope of theory, and goes through the last point; it is drawn where the gap is below 1."""
    layers, curves = np.array(_draws(records, "Haar")[0]["layers"]), []
    for law in ("Gaussian", "Haar"):
        logs = _log_gaps(records, law)
        theory = logs.mean(0)[-1] + _slope(records) * (layers - layers[-1])
        curves.append(Curve(law, 0, layers, logs, np.where(theory < 0, theory, np.nan) if law == "Haar" else None))
    return curves


def _curves(records: Sequence[Record], names: Sequence[str]) -> list[Curve]:
    """Both laws. Theory begins at the first point: that of orthogonal samples if they are measured, or of Haar weights.

    Names with `ORTHOGONAL` have Haar weights only.
    """
    curves = []
    depths = np.array(_draws(records, "Haar")[0]["depths"])
    for name in names:
        activation = name.split(", ")[0]
        for law in LAWS:
            if law == "Gaussian" and ORTHOGONAL in name:
                continue
            values = _values(records, law, name)
            alone = f"{name}, {ORTHOGONAL}" not in names
            theory = values.mean(0)[0] + _growth(records, name) if law == "Haar" and alone else None
            colour = list(ACTIVATIONS).index(activation) + (3 if ORTHOGONAL in name else 0)
            label = name.replace(", gain", "").replace(activation, f"{activation}, {law}", 1)
            curves.append(Curve(label, colour, depths, values, theory))
    return curves


def _numbers(records: Sequence[Record]) -> list[tuple[str, np.ndarray, float | None]]:
    """Name, values by draw, and theory of each number of the table."""
    draws = _draws(records, "Haar")
    depths = draws[0]["depths"]
    first, last = depths[-2:]
    numbers: list[tuple[str, np.ndarray, float | None]] = []
    for law in LAWS:
        numbers.append((f"linear, {law}: at depth {last}", _values(records, law, PLAIN)[:, -1], None))
    ends = float(np.mean([record["theory"][-1] for record in draws]))
    numbers.append((f"linear, Haar, {FEW}: at depth {last}", _values(records, "Haar", FEW)[:, -1], None))
    numbers.append((f"linear, Haar, {ORTHOGONAL}: at depth {last}", _values(records, "Haar", ORTHOGONAL)[:, -1], ends))
    slopes = {("linear", law): _values(records, law, PLAIN) for law in LAWS}
    slopes |= {(name, law): _values(records, law, name) for name in ("tanh", "sin") for law in LAWS}
    for (name, law), values in slopes.items():
        theory = (_growth(records, name)[-1] - _growth(records, name)[-2]) / (last - first)
        if (name, law) == ("linear", "Gaussian"):
            theory = gaussian_growth(draws[0]["width"])
        a_layer = (values[:, -1] - values[:, -2]) / (last - first)
        numbers.append((f"{name}, {law}: growth a layer, {first} to {last}", a_layer, theory))
    for name in ("tanh, gain", "sin, gain"):
        cases = [("Haar, " + ORTHOGONAL, "Haar", f"{name}, {ORTHOGONAL}")] + [(law, law, name) for law in LAWS]
        for label, law, case in cases:
            values = _values(records, law, case)
            change = values[:, -1] - values[:, 0]
            numbers.append((f"{name}, {label}: change, {depths[0]} to {last}", change, _growth(records, name)[-1]))
    layers, logs = np.array(draws[0]["layers"]), _log_gaps(records, "Haar")
    late = layers >= layers[-1] / 2
    numbers.append((
        f"isometry gap, Haar: growth a layer, {layers[late][0]} to {layers[-1]}",
        np.polyfit(layers[late], logs[:, late].T, 1)[0],
        _slope(records),
    ))  # fmt: skip
    return numbers


def _growth(records: Sequence[Record], name: str) -> np.ndarray:
    """The growth by theory at each depth since the first one; zero for linear networks."""
    by_name = {record["theory_of"]: record["growth"] for record in records if "theory_of" in record}
    name = name.removesuffix(f", {ORTHOGONAL}")
    return np.array(by_name.get(name, np.zeros(len(_draws(records, "Haar")[0]["depths"]))))


def _slope(records: Sequence[Record]) -> float:
    return math.log(haar_isometry_factor(_draws(records, "Haar")[0]["width"]))


def _log_gaps(records: Sequence[Record], law: str) -> np.ndarray:
    """(runs, layers)."""
    return np.log([record["isometry_gaps"] for record in _draws(records, law)])


def _values(records: Sequence[Record], law: str, name: str) -> np.ndarray:
    """(runs, depths)."""
    return np.array([record["log_gradients"][name] for record in _draws(records, law)])


def _draws(records: Sequence[Record], law: str) -> list[Record]:
    return [record for record in records if record.get("law") == law]


def _measured(values: np.ndarray) -> str:
    """The mean and its standard error, if there are several draws."""
    error = f" ± {values.std(ddof=1) / math.sqrt(len(values)):.1g}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{error}"
