# SPDX-License-Identifier: BSD-3-Clause
"""What `plan` predicts: counts, compared with counts by hand; sizes, with real runs; memory, with a process."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.ops.polar import polar_flops
from rainbow_fast.rainbow.planning.cost import Work
from rainbow_fast.tables import duration, quantity

RATES = dict(kernels=4e9, activations=1e9, layers=2e9, polar=1e9, float64=1e9, pooling=1e8, copy=8e9)
MACHINE = rf.Machine(**RATES)
X = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MAPS = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore:site")


def small_cnn() -> nn.Sequential:
    return cnn((1, 4, 6), kernel_size=3, stride=1, image_size=8, classes=2, seed=0)


def pooled_cnn(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), *extra, nn.Flatten(), nn.Linear(36, 2))


def flops(site) -> dict[str, float]:
    return {name: work.flops for name, work in site.work.items() if work.flops}


def test_flops_of_a_perceptron_by_hand():
    """90 samples to align on and 10 held out; the widths 8 and 5 become 20 and 12."""
    cost = rf.plan(mlp((6, 8, 5, 2), seed=0), (X, Y), width={"2": 20, "4": 12}, machine=MACHINE)
    assert flops(cost.sites[0]) == {
        "reference": 2 * 6 * 8 * 100,  # once: reference and sampled network are still the same
        "moments": 2 * 90 * 20 * (8 + 8) + 2 * 90 * 20 * (8 + 1),  # and the share of active neurons
        "alignment": polar_flops((8, 20)),
        "projection": 2 * 100 * 20 * (8 + 8),
    }
    assert flops(cost.sites[1]) == {
        "reference": 2 * 8 * 5 * 100 * 2,
        "moments": 2 * 90 * 12 * (5 + 5) + 2 * 90 * 12 * (5 + 1),
        "alignment": polar_flops((5, 12)),
        "projection": 2 * 100 * 12 * (5 + 5),
    }
    assert {name: work.flops for name, work in cost.rest.items()} == {
        "reference": 0,
        "accuracy": 2 * 5 * 2 * 90 * 2,
        "held-out accuracy": 2 * 5 * 2 * 10 * 2,
    }
    ranked = rf.plan(mlp((6, 8, 5, 2), seed=0), (X, Y), rank=3, machine=MACHINE).rest
    assert ranked["fit"].flops == 2 * (6 * 8 + 8 * 5) * 90, "only directions need a pass of their own"
    assert ranked["fit, moments"].flops == 90 * (8 * 9 + 5 * 6)
    assert cost.flops == sum(sum(flops(s).values()) for s in cost.sites) + sum(w.flops for w in cost.rest.values())
    first, second = cost.sites
    assert (first.A_bytes, second.A_bytes) == (4 * 8 * 20, 4 * 5 * 12)
    assert (first.in_flight_bytes, second.in_flight_bytes) == (4 * 100 * 8 * 2, 4 * 100 * 8 * 2)


def test_flops_of_maps_by_hand():
    """6 x 6 and 4 x 4 positions. Of 3240 and 1440 samples, every 5th and every 3rd is taken."""
    cost = rf.plan(small_cnn(), MAPS, max_samples=1000, factor=2, machine=MACHINE)
    assert [site.samples for site in cost.sites] == [648, 480]
    first, second = map(flops, cost.sites)
    seen = 90 * 36 // 5  # at most 2048 samples give the share of active neurons: every 5th, coprime with 36
    assert first["moments"] == 2 * 648 * 8 * (4 + 4) + 2 * seen * 8 * (4 + 1)
    assert first["projection"] == 2 * 100 * 36 * 8 * (4 + 4)
    assert first["reference"] == 2 * 9 * 4 * 36 * 100
    assert second["reference"] == 2 * 9 * 4 * 6 * 16 * 100 * 2
    assert second["alignment"] == polar_flops((6, 12))


@pytest.mark.parametrize("flattened, rows, columns", [(False, 4, 8), (True, 4 * 9, 8 * 9)])
def test_pooled_features_are_made_at_all_positions(flattened, rows, columns):
    samples = 90 if flattened else 90 * 9
    [site] = rf.plan(pooled_cnn(), MAPS, factor=2, align_flattened=flattened, machine=MACHINE).sites
    seen = -(-90 * 36 // 5)
    activity = 2 * seen * 8 * (4 + 1)
    images = {"moments": 90, "projection": 100}
    assert flops(site)["moments"] == 2 * 90 * 36 * 8 * 4 + 2 * samples * rows * columns + activity
    assert flops(site)["projection"] == 2 * 100 * 36 * 8 * 4 + 2 * 100 * (36 * 72 if flattened else 9 * 4 * 8)
    assert [site.work[name].pooled for name in images] == [n * 8 * 36 for n in images.values()]
    assert site.A_bytes == 4 * rows * columns


def test_regression_is_quadratic_in_width():
    def site(n, images=100, d=8):
        return rf.plan(mlp((6, d, 2)), X, images=images, width=n, method="regression", machine=MACHINE).sites[0]

    once = 2 * 90 * 20 * (8 + 8) + 2 * 90 * 20 * 9 + 2 * 90 * 20 * 8
    assert flops(site(20))["moments"] == once + 90 * 20 * 21, "one triangle of the second moment"
    assert flops(site(20))["solve"] == 20**3 / 3 + 2 * 8 * 20**2
    paper = rf.plan(mlp((6, 8, 2)), X, width=4000, machine=MACHINE)
    many = 100_000
    assert 8 * 4000**2 <= site(4000, many, 64).float64_bytes < 1.1 * 8 * 4000**2, "solved in the memory of S"
    assert site(40_000, many).float64_bytes < 8 * 40_000**2 / 4, "products with S, where it does not fit"
    assert flops(site(40_000, many))["moments"] > 5 * 2 * 90_000 * 40_000 * 2 * (8 + 8)
    assert site(4000).float64_bytes < 40 * 8 * 8 * 4000, "the kernel of 90 samples"
    assert flops(site(4000))["solve"] == 90**3 / 3 + 2 * 8 * 90 * (90 + 4000)
    assert site(8000, many, 64).float64_bytes / site(4000, many, 64).float64_bytes == pytest.approx(4, rel=0.05)
    assert site(4000, many).float64_bytes < 8 * 4000**2 / 4, "S would fit, but products are faster with 8 channels"
    assert paper.peak_bytes < 4_000_000


def test_a_refit_classifier_by_hand():
    """Two Gram matrices of 20 features, over 72 and 90 samples; seven ridges and one; both networks once more."""
    cost = rf.plan(mlp((6, 8, 5, 2)), (X, Y), width=20, classifier="refit", machine=MACHINE)
    solves = 7 * (20**3 / 3 + 2 * 2 * (20**2 + 72 * 20)) + 20**3 / 3 + 2 * 2 * (20**2 + 90 * 20)
    assert cost.rest["classifier"].flops == pytest.approx(2 * 20**2 * (72 + 90) + solves)
    assert cost.sites[1].work["projection"].flops == 2 * 100 * 20 * (5 + 5) + 2 * 90 * 20 * 5, "features that are kept"
    assert cost.rest["held-out accuracy"].flops == 10 * 2 * (5 * 2 * 2 + 6 * 8 + 8 * 5)
    assert cost.rest["held-out accuracy, features"].flops == 10 * 2 * 20 * (8 + 8 + 5 + 5)
    narrow = rf.plan(mlp((6, 8, 5, 2)), (X, Y), width=4, classifier="refit", machine=MACHINE)
    assert [site.route for site in narrow.sites] == ["kept", "wide"]
    assert narrow.rest["held-out accuracy, features"].flops == 10 * 2 * 4 * (8 + 8 + 5 + 5), "the network is fused"


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_features_that_are_measured(norm, part):
    """With a norm, the scale needs A phi' of all samples. If M uses a part of the samples, the error needs it too."""

    def last(net, **options):
        return rf.plan(net.eval(), MAPS, machine=MACHINE, **options).sites[-1].work["projection"].flops

    options = {"max_samples": 50} if part else {}
    once = last(pooled_cnn())  # held-out data, and all others in one chunk, on which the network is checked
    net = pooled_cnn(nn.BatchNorm2d(4, affine=False)) if norm else pooled_cnn()
    assert last(net, **options) == pytest.approx(once * (100 + 90 * (norm + part)) / 100)


def test_cost_is_linear():
    """In width, depth and samples. Nothing is sampled, so a million neurons take no time."""

    def cost(depth=2, n=1000, images=100):
        net, options = mlp([16] * (depth + 1) + [2]), dict(width=n, max_samples=2**40, machine=MACHINE)
        return rf.plan(net, torch.zeros(1, 16), images=images, **options)

    for name in ("moments", "projection"):
        assert cost(n=10**6).sites[1].work[name].flops == 1000 * cost(n=1000).sites[1].work[name].flops
        more, less = (cost(images=m).sites[1].work[name].flops for m in (10**6, 10**5))
        assert more == pytest.approx(10 * less, rel=0.05), "but for the share of active neurons"
    assert cost(n=10**6).sites[1].A_bytes == 1000 * cost(n=1000).sites[1].A_bytes
    assert cost(images=10**6).sites[1].in_flight_bytes == 10**4 * cost(images=100).sites[1].in_flight_bytes
    depths = [cost(depth=j) for j in (2, 3, 4)]
    for what in ("flops", "seconds", "disk_bytes"):
        two, three, four = (getattr(c, what) for c in depths)
        assert four - three == pytest.approx(three - two) and three > two
    stays = (depths[2].peak_bytes - depths[1].peak_bytes) / 2  # in a small run, as much is kept after it is freed
    assert stays == depths[1].sites[0].disk_bytes, "only A stays of a site"


def counted(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("build", [small_cnn, pooled_cnn])
@pytest.mark.parametrize(
    "options",
    [
        dict(factor=3),
        dict(factor=3, method="calibrated"),
        dict(factor=2, rank=2, align_flattened=True),
    ],
    ids=str,
)
def test_projections_are_those_that_a_network_counts(build, options):
    """The features of all 100 images, in one chunk, in addition to the layers of the reference."""
    model = rf.fit(build(), MAPS)
    network, _ = model.sample(**options)
    planned = sum(site.work["projection"].flops for site in model.plan(machine=MACHINE, **options).sites)
    assert planned == counted(lambda: network(MAPS)) - counted(lambda: build()(MAPS))


@pytest.mark.filterwarnings("ignore:site .* samples for")
def test_flops_of_few_samples():
    model = rf.fit(mlp((6, 120, 2), seed=0), torch.randn(20, 6), holdout=0)
    few, complete = (
        flops(model.plan(machine=MACHINE, alignment=name).sites[0])["alignment"] for name in ("polar", "polar_complete")
    )
    assert few == 6 * 120 * 120 * 28 + 4 * 120 * 28**2 + polar_flops((28, 120)), "20 samples and 8 spare columns"
    assert complete == polar_flops((120, 120))


@pytest.mark.parametrize(
    "method, factor, routes",
    [
        ("paper", 20, ["fused", "fused"]),
        ("calibrated", 20, ["fused", "fused"]),
        ("calibrated", 0.5, ["kept", "kept"]),
        ("paper", 0.9, ["kept", "wide"]),
    ],
)
def test_flops_are_those_of_a_run(method, factor, routes):
    """A run has a little more: centers from 32 samples, and 32 images on which the network is checked."""
    model = rf.fit(mlp((6, 8, 5, 2), seed=0), torch.randn(5000, 6))
    cost = model.plan(factor=factor, method=method, machine=MACHINE)
    assert [site.route for site in cost.sites] == routes
    planned = cost.flops
    assert planned == pytest.approx(counted(lambda: model.sample(factor=factor, method=method)), rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        dict(factor=3),
        dict(factor=3, method="calibrated"),
        dict(factor=0.5, method="calibrated", rank=3),
        dict(width={"1": 9}, law="bootstrap", smoothing=0.5),
        dict(factor=2, method="regression", align_flattened=True),
        dict(factor=3, classifier="refit"),
        dict(factor=3, classifier="refit_aligned", sites=["1"]),
        dict(explained_variance=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", [False, True], ids=["cnn", "norm"])
def test_sizes_are_those_of_the_run(options, norm, tmp_path):
    """Samples, ranks and widths are those of the report; bytes are those on disk, without the header."""
    net = small_cnn() if not norm else pooled_cnn(nn.BatchNorm2d(4, affine=False)).eval()
    data = MAPS, (MAPS.mean((1, 2, 3)) > 0).long()
    model = rf.fit(net, data, max_samples=1000)
    cost = model.plan(**options, machine=MACHINE)
    network, report = model.sample(**options)
    for site, real in zip(cost.sites, report.sites, strict=True):
        for name in ("index", "site", "d", "n", "rank", "samples", "route"):
            assert getattr(site, name) == getattr(real, name)
    assert (cost.images, cost.held_out_images) == (report.samples, report.held_out_samples)
    rf.save(network, tmp_path / "it")
    raw = (tmp_path / "it").read_bytes()
    assert cost.disk_bytes == len(raw) - 8 - int.from_bytes(raw[:8], "little")


def test_only_shapes_are_read():
    net = mlp((6, 8, 5, 2), seed=0)
    options = dict(factor=4, rank=3, classifier="refit", accuracy_profile=True, machine=MACHINE)
    cost = rf.plan(net, (X, Y), **options)
    assert rf.plan(net, (torch.zeros(1, 6), Y[:1]), images=100, **options) == cost
    assert rf.plan(net, (X[:90], Y[:90]), holdout=(X[90:], Y[90:]), **options) == cost
    fitted = rf.fit(net, (X, Y)).plan(**options)
    assert fitted.sites == cost.sites and fitted.fit_seconds == 0
    assert fitted.seconds + cost.fit_seconds == pytest.approx(cost.seconds)
    assert rf.fit(net, (X, Y)).plan(images=90, **options) == fitted
    assert rf.plan(net.double(), (X, Y), **options).sites[0].A_bytes == 2 * cost.sites[0].A_bytes


def test_what_waits_elsewhere_takes_no_memory(tmp_path):
    net = small_cnn()
    options = dict(factor=3, batch_size=10, machine=MACHINE)
    memory = rf.plan(net, MAPS, **options)
    file = rf.plan(net, MAPS, memory_budget=1000, scratch_dir=str(tmp_path), resume_dir=tmp_path / "run", **options)
    rounded = rf.plan(net, MAPS, storage_dtype=torch.bfloat16, **options)
    assert [s.in_flight_bytes for s in file.sites] == [0, 0] and file.peak_bytes < memory.peak_bytes
    assert [2 * s.in_flight_bytes for s in rounded.sites] == [s.in_flight_bytes for s in memory.sites]
    with pytest.raises(ValueError, match="storage='disk': wanted None or one of memory, file, recompute"):
        rf.plan(net, MAPS, storage="disk", **options)


def test_sites_that_are_not_sampled_pass_on_their_work():
    """The layers before them count for the next sampled site, or separately if none follows."""
    net = mlp((6, 8, 5, 2), seed=0)
    assert flops(rf.plan(net, X, sites=["4"], machine=MACHINE).sites[0])["reference"] == 2 * 100 * (6 * 8 + 8 * 5)
    assert rf.plan(net, X, sites=["2"], machine=MACHINE).rest["reference"].flops == 2 * 100 * 8 * 5 * 2


def test_seconds_are_those_of_the_slower():
    assert Work(8e9, features=1e9, bytes=8e9).seconds(MACHINE) == 8 / 4 + 1
    assert Work(8e9, "polar", bytes=80e9).seconds(MACHINE) == 10
    cost = rf.plan(mlp((6, 8, 2)), X, factor=4, machine=MACHINE)
    twice = rf.plan(mlp((6, 8, 2)), X, factor=4, machine=rf.Machine(**{name: 2 * r for name, r in RATES.items()}))
    assert cost.seconds == pytest.approx(2 * twice.seconds)


def test_measured_rates():
    before = torch.get_rng_state()
    machine = rf.Machine.measure(torch.float64, "gelu")
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < rf.plan(mlp((6, 8, 2)).double(), X, factor=4, machine=machine).seconds
    assert rf.plan(mlp((6, 8, 2)), X).machine != machine


def test_table_and_json():
    cost = rf.plan(mlp((6, 8, 5, 2)), X, width=2000, machine=MACHINE)
    lines = str(cost).splitlines()
    assert lines[0].startswith("method paper, 90 samples, 10 held out: ") and " B at the peak" not in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["site", "2", "4", "rest", "all"]
    assert "2000" in lines[3] and len({len(line) for line in lines[2:]}) == 1
    read = json.loads(cost.to_json())
    assert read["sites"][1]["work"]["moments"]["flops"] == cost.sites[1].work["moments"].flops
    assert (read["seconds"], read["machine"]) == (cost.seconds, RATES)


def test_numbers_for_a_person():
    assert [duration(s) for s in (0, 0.00123, 0.5, 9.87, 12.3, 12_345)] == ["0", "0.0012", "0.5", "9.9", "12", "12345"]
    numbers = (0, 0.5, 7, 999.4, 999.6, 12_345, 3.2e9, 4e15, 5e18)
    assert [quantity(n) for n in numbers] == ["0 ", "0.5 ", "7 ", "999 ", "1 k", "12.3 k", "3.2 G", "4 P", "5e+03 P"]


# Errors


@pytest.mark.parametrize(
    "options",
    [
        dict(width=0),
        dict(width={"3": 5}),
        dict(width=5, factor=2),
        dict(factor=-1),
        dict(rank=0),
        dict(explained_variance=2),
        dict(method="papr"),
        dict(smoothing=0.5),
        dict(seed=-1),
        dict(sites=["nowhere"]),
        dict(align_flattened=True),
        dict(classifier="new"),
        dict(classifier="refit"),
        dict(accuracy_profile=True),
    ],
    ids=str,
)
def test_errors_are_those_of_sample(options):
    net = mlp((6, 8, 5, 2), seed=0)
    with pytest.raises(ValueError) as wanted:
        rf.sample(net, X, **options)
    for run in (rf.fit(net, X).plan, lambda **keywords: rf.plan(net, X, **keywords)):
        with pytest.raises(ValueError) as came:
            run(machine=MACHINE, **options)
        assert str(came.value) == str(wanted.value)


@pytest.mark.parametrize("run", [rf.fit, rf.plan])
def test_errors_of_the_data_are_those_of_fit(run):
    net = mlp((6, 8, 5, 2))
    with pytest.raises(ValueError, match="holdout=1.5: wanted data, a number of samples"):
        run(net, X, holdout=1.5)
    with pytest.raises(ValueError, match="max_samples=0: wanted max_samples >= 1"):
        run(net, X, max_samples=0)
    with pytest.raises(TypeError, match="reference: wanted an nn.Module, got function"):
        run(lambda x: x, X)
    with pytest.warns(UserWarning, match="90 samples for 200 channels"):
        run(mlp((6, 200, 2)), X)


def test_own_errors():
    net = mlp((6, 8, 5, 2), bias=True)
    for images, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        for plan in (lambda **keywords: rf.plan(net, X, **keywords), rf.fit(net, X).plan):
            with pytest.raises(error, match=f"images={images}: wanted (images >= 1|an integer)"):
                plan(images=images)
    with pytest.raises(TypeError, match="machine: wanted a Machine or None, got dict"):
        rf.plan(net, X, machine=RATES)
    for plan in (lambda **keywords: rf.plan(net, X, **keywords), rf.fit(net, X).plan):
        with pytest.raises(TypeError, match="progress: no such option"):
            plan(progress=print)
    with pytest.raises(ValueError, match=r"explained_variance=0.5: site '2' has no moments before fit: wanted a rank"):
        rf.plan(net, X, explained_variance=0.5, machine=MACHINE)
    assert rf.plan(mlp((6, 8, 5, 2)), X, explained_variance=0.5, machine=MACHINE).sites[0].rank < 8, (
        "known from the weights"
    )
    for rate in (0, -1.0, float("inf"), float("nan"), "fast", True):
        with pytest.raises(ValueError, match=f"copy={rate!r}: wanted a finite number above 0"):
            rf.Machine(**(RATES | {"copy": rate}))
    with pytest.raises(TypeError, match="width_of_bus"):
        rf.Machine(**RATES, width_of_bus=64)
