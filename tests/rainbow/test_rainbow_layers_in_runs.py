# SPDX-License-Identifier: BSD-3-Clause
"""Networks of rainbow layers in files, resumed runs, plans, comparisons and reports."""

import json

import pytest
import torch
from networks_of_rainbow_layers import F64, NETS, built, rows
from stopping import Stop, stop_when
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.nn import RandomFeatures
from rainbow_fast.rainbow.report import Report

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]
Y = torch.arange(200) % 3


@pytest.fixture(scope="module", params=NETS)
def fitted(request) -> tuple[str, nn.Module, Tensor, rf.RainbowModel]:
    net, x = built(request.param)
    return request.param, net, x, rf.fit(net, (x, Y), holdout=0)


def test_files(fitted, tmp_path) -> None:
    kind, net, x, model = fitted
    network, _ = model.sample(factor=2, law="bootstrap")
    rf.save(network, tmp_path / "network.safetensors")
    assert torch.equal(rf.load(tmp_path / "network.safetensors", net)(x), network(x))
    rf.save_model(model, tmp_path / "model.safetensors")
    other = NETS[kind][0]().to(F64)  # other weights
    for part in other.modules():
        if isinstance(part, RandomFeatures):
            part.key[0] += 1
    loaded = rf.load_model(tmp_path / "model.safetensors", other)
    assert torch.equal(loaded.sample(factor=2, law="bootstrap")[0](x), network(x))
    with pytest.raises(ValueError, match="was sampled from another reference"):
        rf.load(tmp_path / "network.safetensors", other.eval())


def test_a_stopped_run_goes_on(tmp_path) -> None:
    net, x = built("rows")
    stop = stop_when(lambda done, total, what: what.startswith("1.features"))
    with pytest.raises(Stop):
        rf.sample(net, x, factor=2, resume_dir=tmp_path / "run", progress=stop)
    network, report = rf.sample(net, x, factor=2, resume_dir=tmp_path / "run")
    wanted, other = rf.sample(net, x, factor=2)
    assert torch.equal(network(x), wanted(x)) and report.sites[0].random_features
    assert [s.error for s in report.sites] == [s.error for s in other.sites]


MACHINE = rf.Machine(*[1e9] * 7)


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 3},
        {"factor": 3, "method": "calibrated"},
        {"factor": 0.5, "method": "regression"},
        {"law": "bootstrap", "smoothing": 0.5},
        {"law": "identity"},
        {"factor": 2, "classifier": "refit", "rank": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["maps", "maps normalised", "rows", "tokens"])
def test_plans_are_those_of_the_run(kind: str, options: dict, tmp_path) -> None:
    if kind == "tokens" and "classifier" in options:
        options = options | {"classifier": "refit_aligned"}
    net, x = built(kind)
    model = rf.fit(net, (x, Y))
    cost, (network, report) = model.plan(**options, machine=MACHINE), model.sample(**options)
    for site, real in zip(cost.sites, report.sites, strict=True):
        for name in ("index", "site", "d", "n", "rank", "samples", "route"):
            assert getattr(site, name) == getattr(real, name), name
    rf.save(network, tmp_path / "it")
    raw = (tmp_path / "it").read_bytes()
    assert cost.disk_bytes == len(raw) - 8 - int.from_bytes(raw[:8], "little")


def test_plans_count_the_random_features_of_the_reference() -> None:
    """n r products for each of 200 rows, once at sampled sites, and for both networks at a later site that is kept."""
    net, x = built("rows")
    sizes = [(4, 6, 15), (12, 15, 7), (5, 7, 12)]  # r, in, n
    layers, features = ([2 * r * m for r, m, _ in sizes], [2 * r * n for r, _, n in sizes])
    cost = rf.plan(net, x, factor=2, machine=MACHINE)
    references = [site.work["reference"].flops for site in cost.sites]
    assert references == [200 * (layers[0] + features[0]), *(200 * (2 * layers[k] + features[k]) for k in (1, 2))]
    kept = rf.plan(net, x, factor=2, machine=MACHINE, sites=["0.features", "2.features"]).sites[1].work["reference"]
    assert kept.flops == 200 * (2 * layers[1] + 2 * features[1] + 2 * layers[2] + features[2])
    ranked = rf.plan(net, x, factor=2, machine=MACHINE, explained_variance=0.5)
    assert ranked.rest["fit"].flops == 180 * (sum(layers) + sum(features)), "the pass of fit over 180 rows"


def test_comparison() -> None:
    """Two networks of rainbow layers; one with itself has no error."""
    net, x = built("rows")
    assert all(site.error < 1e-20 for site in rf.compare(net, net, x).sites)  # a square of float64's rounding
    other = rows()
    torch.manual_seed(5)
    for layer in list(other)[:3]:
        layer.reset_parameters()
    comparison = rf.compare(net, other.to(F64), x)
    assert [site.d for site in comparison.sites] == [15, 7, 12] and all(site.error > 0 for site in comparison.sites)


def test_reports() -> None:
    net, x = built("skip")
    _, report = rf.sample(net, x, factor=2)
    assert [site.random_features for site in report.sites] == [False, True, True]
    line = "random features of the reference, whose law is exact: second.features, third.features"
    assert line in str(report)
    stored = json.loads(report.to_json())
    assert [site["random_features"] for site in stored["sites"]] == [False, True, True]
    assert Report.from_dict(stored).to_dict() == report.to_dict()
    for site in stored["sites"]:
        del site["random_features"]
    older = Report.from_dict(stored)
    assert not any(site.random_features for site in older.sites) and line not in str(older)
