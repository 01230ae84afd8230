# SPDX-License-Identifier: BSD-3-Clause
"""Figures with a row for each site. They are read back from their axes, and drawn to check that no texts overlap."""

import math
from itertools import combinations

import numpy as np
import pytest

from rainbow_fast import plots
from rainbow_fast.plots.by_site import MOST_HEIGHT, MOST_NAMES, WIDTH

pytest.importorskip("matplotlib")

NAMES = [f"layer{stage}.{block}.activation_{k}" for stage in (1, 2, 3) for block in (0, 1, 2) for k in (1, 2)]


def aligned(names=("stem", *NAMES), **change) -> list[dict]:
    """Records whose numbers encode their place."""
    return [
        {"site": name, "similarity": 0.99 - 0.03 * i, "error": 0.01 * (i + 1), "error_centred": 0.02 * (i + 1),
         "held_out_error": 0.011 * (i + 1), "held_out_error_centred": 0.021 * (i + 1), "d": 16 + i, "M_rank": 16,
         "M_effective_rank": 2 + i, **change}
        for i, name in enumerate(names)
    ]  # fmt: skip


def costs(names=("stem", *NAMES)) -> list[dict]:
    return [
        {"site": name, "seconds": {"moments": 0.001 * (i + 1), "alignment": 0.002}, "peak_bytes": 3_000_000 * (i + 1)}
        for i, name in enumerate(names)
    ]


def channels(names=("stem", *NAMES)) -> list[dict]:
    return [{"name": name, "channels": 16 * (i + 1), "kept": None} for i, name in enumerate(names)]


FIGURES = {
    plots.alignment_by_site: aligned,
    plots.channels_by_site: channels,
    plots.cost_by_site: costs,
}


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xdata() for line in axes.lines}


def row_names(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def boxes(figure) -> list:
    """The boxes of all texts and keys, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    keys = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    texts = [text for axes in figure.axes for text in [*axes.texts, axes.xaxis.label, axes.yaxis.label]]
    texts += figure.axes[0].get_yticklabels()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        texts += [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    texts += [figure._suptitle] if figure._suptitle else []
    return [thing.get_window_extent() for thing in [*keys, *texts]]


@pytest.mark.parametrize("make", FIGURES)
@pytest.mark.parametrize("count", [1, 19, 40], ids=str)
def test_texts_neither_overlap_nor_leave_the_page(make, count):
    names = [f"features.denseblock{i // 16}.denselayer{i % 16}.relu" for i in range(count)]
    if count == 19:
        names = ["stem", *NAMES]
    figure = make(FIGURES[make](names), title="method calibrated, 5000 samples, 1000 held out\naccuracy 90.0 %")
    width, height = figure.get_size_inches()
    assert width == WIDTH and height <= MOST_HEIGHT
    texts = boxes(figure)
    assert not [1 for a, b in combinations(texts, 2) if a.overlaps(b)]
    page = figure.bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in texts)


@pytest.mark.parametrize("make", FIGURES)
def test_sites_are_named_from_top_to_bottom(make):
    figure = make(FIGURES[make]())
    assert row_names(figure)[:3] == ["stem", "layer1.0.activation_1", "layer1.0.activation_2"]
    assert len(row_names(figure)) == 19
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > 18 and top < 0 and figure.axes[0].get_ylabel() == "site"


@pytest.mark.parametrize("make", FIGURES)
def test_of_many_sites_some_are_named_and_long_names_are_shortened(make):
    names = [f"features.denseblock{i // 16}.denselayer{i % 16}.relu" for i in range(100)]
    figure = make(FIGURES[make](names))
    assert figure.get_size_inches()[1] == MOST_HEIGHT
    assert len(row_names(figure)) == math.ceil(100 / 3) <= MOST_NAMES
    assert row_names(figure)[:2] == ["…" + name[-27:] for name in (names[0], names[3])]


def test_alignment_has_a_marker_for_each_site_and_number():
    similarity, errors, ranks = plots.alignment_by_site(aligned()).axes
    place = np.arange(19)
    (line,) = similarity.lines
    np.testing.assert_allclose(line.get_xdata(), 0.99 - 0.03 * place)
    np.testing.assert_array_equal(line.get_ydata(), place)
    curves = lines(errors)
    assert len(curves) == 4
    np.testing.assert_allclose(curves[r"held-out, over $\mathrm{E}|\varphi|^2$"], 0.011 * (place + 1))
    np.testing.assert_allclose(curves["alignment, over the variance"], 0.02 * (place + 1))
    assert lines(ranks).keys() == {"channels d", "rank of M", "effective rank of M"}
    np.testing.assert_allclose(lines(ranks)["effective rank of M"], place + 2)
    assert [axes.get_xlabel() for axes in (similarity, errors, ranks)] == [
        "similarity (0 to 1)", "relative squared error", "number of directions",
    ]  # fmt: skip
    assert [axes.get_xscale() for axes in (similarity, errors, ranks)] == ["linear", "log", "log"]
    assert similarity.get_xlim()[0] == 0 and similarity.get_xlim()[1] > 1
    assert [text.get_text() for text in errors.get_xticklabels()] == ["0.01", "0.1"]


def test_what_is_not_measured_has_no_marker():
    _, errors, _ = plots.alignment_by_site(aligned(held_out_error=None, held_out_error_centred=math.nan)).axes
    assert list(lines(errors)) == [r"alignment, over $\mathrm{E}|\varphi|^2$", "alignment, over the variance"]
    rows = aligned()
    rows[3]["error"] = math.nan
    _, errors, _ = plots.alignment_by_site(rows).axes
    error = lines(errors)[r"alignment, over $\mathrm{E}|\varphi|^2$"]
    assert np.isnan(error).tolist() == [i == 3 for i in range(19)] and errors.get_xscale() == "log"


def test_an_error_of_0_has_a_linear_axis():
    rows = aligned()
    rows[0]["error"] = 0.0
    assert plots.alignment_by_site(rows).axes[1].get_xscale() == "linear"


def test_sites_of_two_names_have_both():
    rows = [row | {"other": row["site"]} for row in aligned()]
    rows[1] |= {"site": "first", "other": "second"}
    assert row_names(plots.alignment_by_site(rows))[:2] == ["stem", "first / second"]


def test_channels_tell_what_is_kept():
    rows = channels(["first", "gate", "last"])
    rows[1]["kept"], rows[2]["kept"] = "a gate", "an output"
    (axes,) = plots.channels_by_site(rows, title="a title").axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths == {"sampled": [16], "kept": [32, 48]}
    assert [text.get_text() for text in axes.texts] == ["16", "32, kept: a gate", "48, kept: an output"]
    assert axes.get_xlabel() == "channels" and axes.figure.get_suptitle() == "a title"


def test_cost_stacks_the_passes_and_has_units():
    time, memory = plots.cost_by_site(costs(["a", "b", "c"]), rest=0.0005).axes
    bars = {container.get_label(): container for container in time.containers}
    np.testing.assert_allclose([bar.get_width() for bar in bars["moments"]], [1, 2, 3])
    np.testing.assert_allclose([bar.get_x() for bar in bars["alignment"]], [1, 2, 3])
    assert [text.get_text() for text in time.get_yticklabels()] == ["a", "b", "c", "rest of the run"]
    assert [bar.get_width() for bar in time.containers[-1]] == [pytest.approx(0.5)]
    assert time.get_xlabel() == "predicted time (ms)" and memory.get_xlabel() == "peak memory (MB)"
    np.testing.assert_allclose([bar.get_width() for bar in memory.containers[0]], [3, 6, 9])
    assert row_names(plots.cost_by_site(costs(["a"]))) == ["a"]


@pytest.mark.parametrize(
    "seconds, size, units",
    [(2.0, 5e12, ("s", "TB")), (1.0, 1e9, ("s", "GB")), (3e-7, 999, ("µs", "B")), (0.0, 0, ("µs", "B"))],
)
def test_units(seconds, size, units):
    figure = plots.cost_by_site([{"site": "a", "seconds": {"moments": seconds}, "peak_bytes": size}])
    assert [axes.get_xlabel().split("(")[1][:-1] for axes in figure.axes] == list(units)


def test_notebooks_show_a_figure():
    assert plots.channels_by_site(channels())._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", FIGURES)
def test_records_are_checked(make):
    with pytest.raises(ValueError, match="records: wanted at least one site, got none"):
        make([])
    row = FIGURES[make]()[0]
    for key in row:
        with pytest.raises(ValueError, match=f"records: record 1 lacks {key}$"):
            make([row, {name: value for name, value in row.items() if name != key}])


def test_too_many_passes():
    seconds = {f"pass {i}": 1.0 for i in range(7)}
    with pytest.raises(ValueError, match="records: at most 6 passes can be told apart, got 7"):
        plots.cost_by_site([{"site": "a", "seconds": seconds, "peak_bytes": 1}])
