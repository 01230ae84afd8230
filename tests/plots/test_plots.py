# SPDX-License-Identifier: BSD-3-Clause
"""The content of figures, read back from their axes."""

import math
import os
import sys
from itertools import pairwise

import numpy as np
import pytest

from rainbow_fast import plots
from rainbow_fast.plots.axes import GREY, spread, tidy_decades

pytest.importorskip("matplotlib")

ACCURACY = {"paper": [0.30, 0.35], "regression": [0.36, 0.41]}
ERROR = {"paper": [0.40, 0.30], "regression": [0.20, 0.05]}


def records(sites=("1", "3"), networks=(-0.01, 0.0, 0.01)) -> list[dict]:
    """Records of two methods at factors 1 and 4. `networks` has what is added to the accuracy of each network."""
    return [
        {"method": method, "factor": factor, "network": network, "site": site, "width": 512 * factor,
         "accuracy": ACCURACY[method][i] + change, "error": (j + 1) * ERROR[method][i] * (1 + 10 * change)}
        for method in ACCURACY
        for i, factor in enumerate((1, 4))
        for network, change in enumerate(networks)
        for j, site in enumerate(sites)
    ]  # fmt: skip


def curves(axes) -> dict[str, tuple]:
    """x, mean and standard deviation for each label, read from the lines and the error bars."""
    by_label = {}
    for container in axes.containers:
        line, _, (bars,) = container
        low, high = np.array([segment[:, 1] if len(segment) else (np.nan, np.nan) for segment in bars.get_segments()]).T
        by_label[container.get_label()] = (line.get_xdata(), line.get_ydata(), (high - low) / 2)
    return by_label


def test_points_are_means_and_bars_standard_deviations_over_networks():
    left, right = plots.accuracy_and_error(records()).axes
    shown = curves(left)
    assert list(shown) == ["paper", "regression"]
    for method, (x, mean, std) in shown.items():
        np.testing.assert_allclose(x, [1, 4])
        np.testing.assert_allclose(mean, 100 * np.array(ACCURACY[method]))
        np.testing.assert_allclose(std, [1, 1])
    shown = curves(right)
    assert list(shown) == ["paper, 1", "paper, 3", "regression, 1", "regression, 3"]
    np.testing.assert_allclose(shown["regression, 3"][1], [0.4, 0.1])
    np.testing.assert_allclose(shown["regression, 3"][2], [0.04, 0.01])


def test_axes_have_units_scales_and_the_factors_as_ticks():
    left, right = plots.accuracy_and_error(records(), title="on digits").axes
    assert left.get_ylabel() == "test accuracy (%)" and left.get_xlabel() == "width factor n/d"
    assert right.get_ylabel().startswith("held-out error") and right.get_xlabel() == "width factor n/d"
    assert (left.get_xscale(), left.get_yscale()) == ("log", "linear")
    assert (right.get_xscale(), right.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "4"]
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    assert left.get_figure().get_suptitle() == "on digits"


def test_reference_is_dashed_and_baselines_are_dotted():
    left, _ = plots.accuracy_and_error(records(), reference=0.426, baselines={"untrained": 0.1, "C = I": 0.2}).axes
    levels = {line.get_label(): (line.get_linestyle(), line.get_ydata()[0]) for line in left.lines}
    assert levels["trained"] == ("--", pytest.approx(42.6))
    assert levels["untrained"] == (":", pytest.approx(10)) and levels["C = I"] == (":", pytest.approx(20))
    low, high = left.get_ylim()
    assert low < 10 and high > 42.6


def test_every_curve_is_named_at_its_end_in_its_colour_and_names_do_not_overlap(tmp_path):
    figure = plots.accuracy_and_error(records(), reference=0.415, baselines={"second network": 0.412})
    left = figure.axes[0]
    assert {text.get_text() for text in left.texts} == {
        "paper 35.0", "regression 41.0", "second network 41.2", "trained 41.5"
    }  # fmt: skip
    (text_size,) = {text.get_fontsize() for text in left.texts}
    colours = {container.get_label(): container[0].get_color() for container in left.containers}
    assert {text.get_color() for text in left.texts if text.get_text().startswith("paper")} == {colours["paper"]}
    plots.save(figure, tmp_path / "figure.png", dpi=72)  # settles the layout
    centres = sorted(left.transData.transform((1, text.xyann[1]))[1] * 72 / figure.dpi for text in left.texts)
    assert all(above - below > 1.2 * text_size for below, above in pairwise(centres))


def test_colour_tells_the_method_in_both_panels_and_dashes_the_site():
    left, right = plots.accuracy_and_error(records()).axes
    colours = {container.get_label(): container[0].get_color() for container in left.containers}
    assert len(set(colours.values())) == 2
    for container in right.containers:
        method, site = container.get_label().split(", ")
        assert container[0].get_color() == colours[method]
        assert container[0].get_linestyle() == {"1": "-", "3": "--"}[site]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["site 1", "site 3"]


def test_many_sites_are_thinned_to_first_middle_and_last_or_to_those_named():
    many = records(sites=("a", "b", "c", "d", "e"))
    assert list(curves(plots.accuracy_and_error(many).axes[1]))[:3] == ["paper, a", "paper, c", "paper, e"]
    assert list(curves(plots.accuracy_and_error(many, sites=["d"]).axes[1])) == ["paper, d", "regression, d"]


def test_more_sites_than_the_second_panel_shows_have_a_third():
    """All sites in order, at the largest factor."""
    figure = plots.accuracy_and_error(records(sites=("a", "b", "c", "d", "e")))
    x, mean, std = curves(figure.axes[2])["paper"]
    np.testing.assert_allclose(x, [1, 2, 3, 4, 5])
    np.testing.assert_allclose(mean, 0.3 * np.arange(1, 6))
    np.testing.assert_allclose(std, 0.03 * np.arange(1, 6))
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == ["1", "5"]
    assert figure.axes[2].get_title() == "held-out error, n/d = 4"
    assert len(plots.accuracy_and_error(records(sites=("a", "b", "c"))).axes) == 2


def test_without_accuracies_errors_alone_with_the_names_of_the_methods():
    (axes,) = plots.accuracy_and_error([row | {"accuracy": None} for row in records()]).axes
    assert list(curves(axes)) == ["paper, 1", "paper, 3", "regression, 1", "regression, 3"]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["site 1", "site 3", "paper", "regression"]


def test_infinite_width_is_a_point_apart_and_a_line():
    """At four times the largest factor, or at 1; and the third panel says it."""
    limits = [row | {"factor": np.inf} for row in records(sites=("1", "3", "5", "7"), networks=(0.0,))]
    errors = {"paper": 0.01, "regression": 0.02}
    limits = list({(r["method"], r["site"]): r | {"error": errors[r["method"]]} for r in limits}.values())
    for rows, place in ((records(sites=("1", "3", "5", "7")) + limits, 16), (limits, 1)):
        figure = plots.accuracy_and_error(rows)
        figure.canvas.draw()
        assert figure.axes[1].get_xticklabels()[-1].get_text() == "\u221e"
        points = [line for line in figure.axes[1].lines if list(line.get_xdata()) == [place]]
        assert [line.get_ydata()[0] for line in points] == 3 * [0.01] + 3 * [0.02]
        assert points[0].get_linestyle() == "None"
        across = [line for line in figure.axes[1].lines if list(line.get_xdata()) == [0, 1]]
        assert [line.get_ydata()[0] for line in across] == 3 * [0.01] + 3 * [0.02]
        assert figure.axes[2].get_title() == "held-out error, n/d = \u221e"


def test_one_network_has_no_bar():
    left, _ = plots.accuracy_and_error(records(networks=(0.0,))).axes
    assert all(np.isnan(std).all() for _, _, std in curves(left).values())


def test_spread_keeps_order_and_distance_and_moves_no_more_than_needed():
    assert spread([1.0, 5.0], 1.0) == [1.0, 5.0]
    assert spread([1.0, 1.0, 9.0], 2.0) == [0.0, 2.0, 9.0]
    assert spread([0.0, 0.1, 0.2], 1.0) == pytest.approx([-0.9, 0.1, 1.1])


def changed(**change) -> list[dict]:
    return [{**records()[0], **change}, *records()[1:]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"records": []}, "records: wanted at least one, got none"),
        ({"records": [{"method": "paper"}]}, "records: record 0 lacks factor, network, site, accuracy, error"),
        ({"records": changed(factor=0)}, "records: record 0 has factor 0, wanted a number above 0"),
        ({"records": changed(accuracy=42.6)}, "records: record 0 has accuracy 42.6, wanted a fraction, 0 to 1"),
        ({"records": changed(error=None)}, "records: record 0 has error None, wanted a number from 0, or NaN"),
        ({"records": changed(error=-0.1)}, "records: record 0 has error -0.1, wanted a number from 0, or NaN"),
        ({"records": changed(error=float("inf"))}, "records: record 0 has error inf, wanted a number from 0, or NaN"),
        ({"records": records() + records()[:1]}, "records: record 24 repeats method, factor, network and site"),
        ({"records": changed(accuracy=0.5)}, "records: record 1 gives its network another accuracy"),
        ({"records": [{**records()[0], "method": str(i)} for i in range(7)]}, "records: at most 6 methods .*, got 7"),
        ({"records": records(), "reference": 42.6}, "reference: wanted an accuracy as a fraction, 0 to 1, got 42.6"),
        ({"records": records(), "baselines": {"C = I": 24}}, "C = I: wanted an accuracy as a fraction, 0 to 1, got 24"),
        ({"records": [*records(), records()[0] | {"accuracy": None}]}, "some have an accuracy, record 24 differs"),
        ({"records": records(), "sites": ["2"]}, r"sites: wanted one to 3 of \['1', '3'\], got \['2'\]"),
    ],
)
def test_accuracy_and_error_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_and_error(**arguments)


def test_undefined_errors_leave_gaps():
    """The error of a site whose activations are constant is NaN."""
    some = [{**row, "error": float("nan")} if row["site"] == "1" else row for row in records()]
    for rows in (some, [{**row, "error": float("nan")} for row in records()]):
        figure = plots.accuracy_and_error(rows)
        figure.canvas.draw()
        drawn = {label for label in curves(figure.axes[1]) if not label.startswith("_")}
        assert drawn == {f"{row['method']}, {row['site']}" for row in rows if row["error"] == row["error"]}


def test_plots_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install \"rainbow_fast\[plots\]\""):
        plots.accuracy_and_error(records())


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_save_writes_whole_files_only(tmp_path, monkeypatch, suffix, start):
    figure, path = plots.accuracy_and_error(records()), tmp_path / f"figure{suffix}"
    plots.save(figure, path)
    before = path.read_bytes()
    assert before.startswith(start)

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plots.save(figure, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_save_refuses_an_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"path: wanted a name that ends in .png, .pdf or .svg, got figure.doc"):
        plots.save(plots.accuracy_and_error(records()), tmp_path / "figure.doc")


def panels() -> list[plots.Panel]:
    kernel = np.array([[0.4, 0.1, 0.02], [0.2, 0.06, 0.04]])
    first = plots.Curve("site 2", "kernel", kernel, (0.0, 12.8, 1.0))
    second = plots.Curve("site 4", "kernel", 2 * kernel)
    noise = plots.Curve("site 2", "two samples", 2 * kernel)
    level = plots.Curve("site 4", "error", 0.2 + kernel, (0.2, 12.8, 1.0))
    return [plots.Panel("kernels", [first, second, noise], {"theory": 1.0}), plots.Panel("aligned", [level])]


def test_convergence_shows_means_fits_limits_and_slopes():
    figure = plots.convergence([32, 128, 512], panels(), title="on digits")
    left, right = figure.axes
    assert (left.get_xscale(), left.get_yscale(), left.get_title()) == ("log", "log", "kernels")
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["$2^{5}$", "$2^{7}$", "$2^{9}$"]
    lines = {container.get_label(): container[0] for container in left.containers}
    assert list(lines) == ["site 2, kernel", "site 4, kernel", "site 2, two samples"]
    np.testing.assert_allclose(lines["site 4, kernel"].get_ydata(), [0.6, 0.16, 0.06])
    assert lines["site 2, kernel"].get_color() == lines["site 2, two samples"].get_color()
    fits = [line for line in left.lines if len(line.get_xdata()) == 200]
    assert len(fits) == 1 and fits[0].get_ydata()[[0, -1]] == pytest.approx([0.4, 0.025])
    (theory,) = [line for line in left.lines if line.get_color() == GREY]
    assert theory.get_ydata()[0] / theory.get_ydata()[-1] == pytest.approx(16)
    assert [text.get_text() for text in left.texts] == ["$n^{-1}$ theory"]
    assert not [line for line in left.lines if line.get_linestyle() == ":"]  # e_inf = 0
    (limit,) = [line for line in right.lines if line.get_linestyle() == ":"]
    assert limit.get_ydata()[0] == 0.2 and limit.get_color() == lines["site 4, kernel"].get_color()
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["site 2", "site 4", "kernel", "two samples"]


@pytest.mark.parametrize(
    "groups, message",
    [
        ([], "panels: wanted curves of one to 6 groups, got 0"),
        ([plots.Panel("empty", []), *panels()], "panels: 'empty' has 0 kinds of curves, wanted one to 3"),
        ([plots.Panel("p", [plots.Curve("s", "k", np.ones((2, 4)))])], r"panels: 'p': wanted errors \(networks, 3\)"),
        ([plots.Panel("p", [plots.Curve("s", "k", np.zeros((2, 3)))])], r"panels: 'p': wanted errors .* above 0"),
    ],
)
def test_convergence_refuses(groups, message):
    with pytest.raises(ValueError, match=message):
        plots.convergence([32, 128, 512], groups)


def test_figures_one_below_the_other_have_one_width():
    with pytest.raises(ValueError, match=r"figures: wanted at least one, all of one width, got widths \[\]"):
        plots.stacked([])


@pytest.mark.parametrize("value", [0.01, math.nextafter(0.01, 0), math.nextafter(0.01, 1), 0.03, 5.0])
def test_a_decade_around_a_single_number(value: float) -> None:
    """Also if its logarithm rounds to that of a power of ten."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.plot([1], [value], "o")
    axes.set_yscale("log")
    axes.set_ylim(value, value * (1 + 1e-12))
    tidy_decades(axes)
    low, high = axes.get_ylim()
    assert low <= value <= high and low < high and {low, high} <= set(axes.get_yticks())
