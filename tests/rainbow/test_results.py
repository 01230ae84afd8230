# SPDX-License-Identifier: BSD-3-Clause
"""Results with a row for each site: as text, HTML, JSON, a DataFrame and a figure."""

import html
import json
import math
import re
import sys

import pytest
import torch
from torch import nn

import rainbow_fast as rf
from rainbow_fast.io import dumps
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.results import Results

X = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
KINDS = ("report", "comparison", "sites", "cost")

pytestmark = pytest.mark.filterwarnings("ignore:site")


@pytest.fixture(scope="module")
def results() -> dict[str, Results]:
    a, b = (mlp((6, 8, 5, 2), seed=seed) for seed in (0, 1))
    machine = rf.Machine(*[1e9] * 7)
    return {
        "report": rf.sample(a, (X, Y), factor=2)[1],
        "comparison": rf.compare(a, b, X),
        "sites": rf.sites(a, X),
        "cost": rf.plan(a, (X, Y), factor=2, machine=machine),
    }


def rows(result: Results) -> list:
    return list(result) if isinstance(result, tuple) else list(result.sites)


class Named(nn.Module):
    """A network whose site has a name that HTML would read as a tag."""

    def __init__(self) -> None:
        super().__init__()
        for name, module in (("first", nn.Linear(6, 8)), ("<b>", nn.ReLU()), ("last", nn.Linear(8, 2))):
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.get_submodule("<b>")(self.first(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dict_is_valid_json_with_a_dict_for_each_site(results, kind):
    result = results[kind]
    read = json.loads(dumps(result.to_dict()))
    assert read == result.to_dict() == json.loads(result.to_json())
    name = "name" if kind == "sites" else "site"
    assert [site[name] for site in read["sites"]] == ["2", "4"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_has_the_numbers_of_each_site(results, kind):
    pytest.importorskip("pandas")
    frame = results[kind].to_pandas()
    assert len(frame) == 2
    for (_, row), site in zip(frame.iterrows(), rows(results[kind]), strict=True):
        for name, value in vars(site).items():
            if name == "kept":
                assert value is None and math.isnan(row[name])
            elif name != "work":
                assert row[name] == value


def test_the_frame_of_a_cost_has_columns_for_each_pass(results):
    pytest.importorskip("pandas")
    cost = results["cost"]
    frame = cost.to_pandas()
    for (_, row), site in zip(frame.iterrows(), cost.sites, strict=True):
        for name, work in site.work.items():
            assert row[f"{name}_flops"] == work.flops and row[f"{name}_seconds"] == work.seconds(cost.machine)
        assert row["seconds"] == site.seconds(cost.machine)
    assert frame.seconds.sum() + cost.rest_seconds == pytest.approx(cost.seconds)


def test_a_number_that_was_not_measured_is_nan_in_a_frame():
    pytest.importorskip("pandas")
    _, report = rf.sample(mlp((6, 8, 5, 2), seed=0), X, holdout=0)
    frame = report.to_pandas()
    assert frame.held_out_error.dtype == float and frame.held_out_error.isna().all()
    assert frame.error.tolist() == [site.error for site in report.sites]


def test_without_pandas(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for result in results.values():
        with pytest.raises(ImportError, match="to_pandas needs pandas: pip install pandas"):
            result.to_pandas()


def test_without_matplotlib(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for result in results.values():
        with pytest.raises(ImportError, match=r"plots need matplotlib: pip install \"rainbow_fast\[plots\]\""):
            result.plot()


@pytest.mark.parametrize("kind", KINDS)
def test_html_has_the_words_of_the_text(results, kind):
    page = results[kind]._repr_html_()
    words = html.unescape(re.sub("<[^>]+>", " ", page)).split()
    assert words == str(results[kind]).split()
    heading, *body = re.findall("<tr>.*?</tr>", page)
    assert len(body) == len(rows(results[kind])) + 2 * (kind == "cost")  # the rest, and all
    assert {row.count("<td>") for row in body} == {heading.count("<th>")}


def test_html_is_escaped():
    net = Named()
    for result in (
        rf.sample(net, X, sites=["<b>"])[1],
        rf.compare(net, net, X),
        rf.sites(net, X),
        rf.plan(net, X, machine=rf.Machine(*[1e9] * 7)),
    ):
        assert "<b>" in str(result)
        assert "<td>&lt;b&gt;</td>" in result._repr_html_() and "<b>" not in result._repr_html_()
    report = rf.sample(mlp((6, 8, 5, 2), seed=0), X)[1]
    report.kept = {"<i>": "a & b"}
    assert "kept &lt;i&gt;: a &amp; b" in report._repr_html_() and "<i>" not in report._repr_html_()


def test_a_report_shows_similarity_errors_and_ranks(results):
    pytest.importorskip("matplotlib")
    report = results["report"]
    figure = report.plot()
    similarity, errors, ranks = figure.axes
    (line,) = similarity.lines
    assert line.get_xdata().tolist() == [site.similarity for site in report.sites]
    assert [text.get_text() for text in similarity.get_yticklabels()] == ["2", "4"]
    values = [line.get_xdata().tolist() for line in errors.lines]
    names = ("error", "held_out_error", "error_centred", "held_out_error_centred")
    assert values == [[getattr(site, name) for site in report.sites] for name in names]
    assert [line.get_xdata().tolist() for line in ranks.lines][1] == [site.M_rank for site in report.sites]
    accuracy, reference = (100 * report.accuracy[name] for name in ("held_out", "reference_held_out"))
    assert figure.get_suptitle() == (
        f"method paper, 90 samples, 10 held out\naccuracy {accuracy:.1f} %, "
        f"trained network {reference:.1f} % (held-out data)"
    )
    _, plain = rf.sample(mlp((6, 8, 5, 2), seed=0), (X, Y), holdout=0)
    assert plain.plot().get_suptitle().endswith("% (alignment data)") and len(plain.plot().axes[1].lines) == 2


def test_a_comparison_shows_similarity_and_errors(results):
    pytest.importorskip("matplotlib")
    comparison = results["comparison"]
    similarity, errors, _ = comparison.plot().axes
    assert similarity.lines[0].get_xdata().tolist() == [site.similarity for site in comparison.sites]
    assert errors.lines[1].get_xdata().tolist() == [site.held_out_error for site in comparison.sites]
    assert comparison.plot().get_suptitle() == "90 samples, 10 held out"


def test_sites_show_their_channels():
    pytest.importorskip("matplotlib")
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.Sigmoid())
    figure = rf.sites(net, X).plot()
    (axes,) = figure.axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths == {"sampled": [4], "kept": [3]} and figure.get_suptitle() == "sites: 1 sampled, 1 kept"
    with pytest.raises(ValueError, match=r"sites: channels are unknown without data, wanted sites\(reference, data\)"):
        rf.sites(net).plot()
    with pytest.raises(ValueError, match="records: wanted at least one site, got none"):
        rf.sites(nn.Linear(6, 4), X).plot()


def test_a_cost_shows_seconds_and_memory(results):
    pytest.importorskip("matplotlib")
    cost = results["cost"]
    time, memory = cost.plot().axes
    unit = {"s": 1, "ms": 1e-3, "µs": 1e-6}[time.get_xlabel().split("(")[1][:-1]]
    ends = [max(bar.get_x() + bar.get_width() for bars in time.containers[:-1] for bar in [bars[i]]) for i in (0, 1)]
    assert [unit * end for end in ends] == pytest.approx([site.seconds(cost.machine) for site in cost.sites])
    assert unit * time.containers[-1][0].get_width() == pytest.approx(cost.rest_seconds)
    assert [1e3 * bar.get_width() for bar in memory.containers[0]] == pytest.approx([s.peak_bytes for s in cost.sites])
    assert memory.get_xlabel() == "peak memory (kB)"
