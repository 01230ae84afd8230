# SPDX-License-Identifier: BSD-3-Clause
"""The content of figures of gaps, read back from their axes."""

import numpy as np
import pytest

from rainbow_fast import plots

pytest.importorskip("matplotlib")

VALUES = np.array([[1.0, 2.0, np.nan], [3.0, 2.0, 1.0]])


def test_panels_have_means_bands_and_levels():
    curve = plots.GapCurve("standard", [0, 1, 2], VALUES)
    other = plots.GapCurve("new", [0, 1], VALUES[:1, :2])
    panels = [
        plots.GapPanel("loss", "epoch", "loss (nats)", [curve, other], {"chance": 2.3}),
        plots.GapPanel("gap", "epoch", "gap", [other]),
        plots.GapPanel("sites", "site", "gap", [other], names=["1", "a.very.long.name.of.a.site"]),
    ]
    figure = plots.gap_panels(panels, columns=2, title="on noise")
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    loss, gap, sites = figure.axes[:3]
    lines = {line.get_label(): line for line in loss.lines}
    np.testing.assert_allclose(lines["standard"].get_ydata(), [2, 2, 1])  # the last point has one run
    np.testing.assert_allclose(lines["new"].get_ydata(), [1, 2])
    assert lines["chance"].get_ydata()[0] == 2.3 and lines["chance"].get_linestyle() == "--"
    [band] = loss.collections  # one run has no band
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(2 - 2**0.5) and heights.max() == pytest.approx(2 + 2**0.5)
    assert gap.lines[0].get_color() == lines["new"].get_color()
    assert [text.get_text() for text in sites.get_xticklabels()] == ["1", "…long.name.of.a.site"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["standard", "new", "chance"]
    assert figure.get_suptitle() == "on noise" and loss.get_ylabel() == "loss (nats)"


def test_bars_and_theory():
    values = np.concatenate([VALUES, np.full((2, 1), np.nan)], 1)
    panel = plots.GapPanel(
        "loss",
        "depth",
        "",
        [plots.GapCurve("new", [15, 30, 45, 60], values)],
        theory={"law": ([15, 60], [1, 2])},
        bars=True,
    )
    figure = plots.gap_panels([panel])
    [axes] = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["new"].get_ydata(), [2, 2, 1, np.nan])
    assert list(lines["law"].get_ydata()) == [1, 2] and lines["law"].get_color() == "#222222"
    [bars] = axes.collections  # no band
    [bar] = [path.vertices[:, 1] for path in bars.get_paths()[:1]]
    assert sorted(bar) == pytest.approx([2 - 2**0.5, 2 + 2**0.5])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["new", "law"]


def test_gaps_by_site():
    curves = {"z": [("1", (0.2, 0.4)), ("3", (0.5, 0.5))], "outputs": [("out", (0.9, 0.7))]}
    [axes] = plots.gap_by_site(curves, levels={"parallel": 0.99}, title="a network").axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["z"] == ([0, 1], pytest.approx([0.3, 0.5])) and lines["outputs"] == ([2], pytest.approx([0.8]))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "3", "out"]
    assert axes.get_title() == "a network" and axes.get_ylabel() == "orthogonality gap"


def test_refused():
    with pytest.raises(ValueError, match="^panels: wanted curves of one to 6 names, got 0"):
        plots.gap_panels([])
    names = [plots.GapCurve(str(n), [0], np.ones((1, 1))) for n in range(7)]
    with pytest.raises(ValueError, match="^panels: wanted curves of one to 6 names, got 7"):
        plots.gap_panels([plots.GapPanel("", "", "", names)])
    wrong = plots.GapCurve("a", [0, 1], np.ones(2))
    with pytest.raises(ValueError, match=r"^panels: 'loss': wanted values \(runs, 2\), got \(2,\)"):
        plots.gap_panels([plots.GapPanel("loss", "", "", [wrong])])
    for curves in ({}, {"z": []}):
        with pytest.raises(ValueError, match="^curves: wanted at least one, each with at least one site"):
            plots.gap_by_site(curves)
    with pytest.raises(ValueError, match="^curves: wanted one to 6, got 7"):
        plots.gap_by_site({str(n): [("1", (1.0,))] for n in range(7)})
