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
from studies.orthogonal_chains.gradient_experiment import ORTHOGONAL, PLAIN
from studies.orthogonal_chains.gradient_theory import gaussian_growth
from studies.orthogonal_chains.normed_network import LAWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTRODUCTION = ""
PUBLISHED = {
    "linear, Haar: at depth 1000": "flat",
    "linear, Gaussian: at depth 1000": "about 10",
}


@dataclass(frozen=True)
class Curve:
    """Points of a curve in a panel: values (runs, points), and lines of theory and of a limit, or None."""

    name: str
    x: np.ndarray
    values: np.ndarray
    theory: np.ndarray | None = None
    limit: np.ndarray | None = None


def page(records: Sequence[Record]) -> str:
    """The text of the page, up to the section on training."""
    draws = _draws(records, "Haar")
    introduction = INTRODUCTION.format(width=draws[0]["width"], runs=len(draws))
    rows = [
        [name, _measured(values), "-" if theory is None else f"{theory:.4f}", PUBLISHED.get(name, "-")]
        for name, values, theory in _numbers(records)
    ]
    return introduction + markdown(["log of the gradient", "measured", "theory", "published"], rows)


def figure(records: Sequence[Record]) -> Figure:
    """Gradients of linear networks, their isometry gaps, and gradients of others without and with gain."""
    drawn = blank_figure(11.4, 8.2)
    grid = drawn.subplots(2, 2).flatten()
    gradient = "log of the gradient by $W_1$"
    panels = [
        ("Figure 3: linear, norm without a mean", "depth", gradient, _linear(records)),
        ("Linear: isometry gap", "layer", "log of the isometry gap", _gaps(records)),
        ("Without gain, torch's norm", "depth", gradient, _curves(records, ("identity", "tanh", "sin"))),
        ("With gain, torch's norm", "depth", gradient, _curves(records, ("tanh, gain", "sin, gain"))),
    ]
    for axes, (title, x_label, y_label, curves) in zip(grid, panels, strict=True):
        for place, curve in enumerate(curves):
            _draw(axes, curve, place)
        plain(axes)
        axes.set_title(title, fontsize=12, color=INK)
        axes.set_xlabel(x_label, fontsize=11)
        axes.set_ylabel(y_label, fontsize=11)
        axes.legend(frameon=False, fontsize=9.5)
    return drawn


def _draw(axes: Axes, curve: Curve, place: int) -> None:
    """Points with bars of one standard deviation, and lines, each kind of which is named once."""
    mean, deviation = over_networks(curve.values.T)
    named = axes.get_legend_handles_labels()[1]
    axes.errorbar(
        curve.x, mean, np.nan_to_num(deviation), color=COLOURS[place], marker=MARKERS[place], markersize=5,
        linestyle="none", capsize=2.5, elinewidth=1.1, label=curve.name, zorder=2,
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
        Curve("Gaussian", depths, gaussian, limit=limit),
        Curve("Haar", depths, _values(records, "Haar", PLAIN)),
        Curve(f"Haar, {ORTHOGONAL}", depths, _values(records, "Haar", ORTHOGONAL), theory),
    ]


def _gaps(records: Sequence[Record]) -> list[Curve]:
    """The line has the slope of theory, and goes through the last point; it is drawn where the gap is below 1."""
    layers, curves = np.array(_draws(records, "Haar")[0]["layers"]), []
    for law in ("Gaussian", "Haar"):
        logs = _log_gaps(records, law)
        theory = logs.mean(0)[-1] + _slope(records) * (layers - layers[-1])
        curves.append(Curve(law, layers, logs, np.where(theory < 0, theory, np.nan) if law == "Haar" else None))
    return curves


def _curves(records: Sequence[Record], names: Sequence[str]) -> list[Curve]:
    """Theory is drawn for Haar weights, from the first point on."""
    curves = []
    for name in names:
        for law in LAWS:
            values = _values(records, law, name)
            theory = values.mean(0)[0] + _growth(records, name) if law == "Haar" else None
            curves.append(Curve(f"{name}, {law}", np.array(_draws(records, law)[0]["depths"]), values, theory))
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
        for law in LAWS:
            values = _values(records, law, name)
            change = values[:, -1] - values[:, 0]
            numbers.append((f"{name}, {law}: change, {depths[0]} to {last}", change, _growth(records, name)[-1]))
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
