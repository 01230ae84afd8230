# SPDX-License-Identifier: BSD-3-Clause
"""The study of random chains, once, with short averages, a small width of explicit weights, and images of noise."""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rainbow_fast.cli.running import run_app
from rainbow_fast.io import read_records
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.random_networks import orthogonality_gap
from studies.random_chains import distance_measurements, image_chains
from studies.random_chains.__main__ import RECORDS, app, study
from studies.random_chains.chain_measurements import Effort
from studies.random_chains.chain_page import EXPECTED, PANELS
from studies.random_chains.exponent_measurements import largest_score, log_singular_values
from studies.random_chains.talk_page import TALK

pytestmark = pytest.mark.usefixtures("one_thread")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["random_chains", *words])
    before = torch.get_num_threads()
    code = run_app(app, "random_chains")
    torch.set_num_threads(before)
    return code, *capsys.readouterr()


def noise(folder: Path) -> Path:
    """A folder of CIFAR-10 whose pixels are noise."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, 3073), dtype=np.uint8)
    pixels[:, 0] %= 10
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        pixels.tofile(folder / f"{name}.bin")
    return folder


@pytest.mark.slow
def test_the_study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cifar10 = noise(tmp_path / "data")
    words = [str(cifar10), "--width", "500", "--layers", "100", "--threads", "1", "--seed", "3", "--out", str(out)]
    words += ["--batches", "2", "--channels", "12", "--conv-nets", "2"]
    code, said, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "") and "random_chains.md" in said
    names = ["random_chains.md", "random_chains.png", "random_talk.png", "records.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names
    records = read_records(out / "records.jsonl")
    numbers = {record["number"]: record for record in records if "number" in record}
    assert set(EXPECTED) <= set(numbers) and {record["panel"] for record in records} == set(PANELS | TALK)
    for record in records:
        if "curve" in record:
            columns = [record[name] for name in ("mean", "deviation", "theory", "limit") if record[name] is not None]
            assert all(len(column) == len(record["x"]) and all(map(math.isfinite, column)) for column in columns)
    # levels within sampling of 20 runs or more; theory is to first order in n / d
    for name, tolerance in (
        ("batch norm, mean of layers 15 to 50", 0.01),
        ("log V at width 512, layers 30 to 50", 0.04),
        ("log V at width 32, layers 30 to 50", 0.06),
        ("after burn-in, slope", 0.03),
        ("identity, slope", 0.03),
        ("n = d = 50, slope of log gap per layer, layers 20 to 100", 0.003),
        ("n = d = 100, slope of log gap per layer, layers 20 to 100", 0.003),
        ("mean of 1 / (eigenvalue + 1)", 0.003),
        ("mean square of all 168 scores", 5 * math.sqrt(2 / 168)),
        ("singular values above round-off, width 32, 60 layers", 1),
        ("batch norm, W at width 128, layers 30 to 50", 0.004),
        ("batch norm, n = 4, value at width 512", 0.06),
        ("4 W^2 over n V^2, width 128", 0.03),
    ):
        assert numbers[name]["mean"] == pytest.approx(numbers[name]["theory"], abs=tolerance), name
    page = (out / "random_chains.md").read_text()
    assert all(page.count(f"*{title.format(width=500)}.*") == 1 for title, *_ in (PANELS | TALK).values())
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in names[1:3])


def test_kept_numbers_are_the_expected_ones() -> None:
    """Within three standard errors and 0.01, which is sampling of the expected ones.

    One unit of the last digit for slopes, 0.02 for what was read off a figure or had another input, 1 % for ranks
    above 10. The rates of the isometry gap are of first order in the gap: 5 %, as the largest eigenvalue of the
    start is 1 + 0.005 d / 4, and decays slowly.
    """
    numbers = {record["number"]: record for record in read_records(RECORDS) if "number" in record}
    for name, expected in EXPECTED.items():
        value = float(expected.split(" ")[0])
        unit = 10.0 ** -len(expected.split(" ")[0].rpartition(".")[2])
        read_off = "on images" in name or name.startswith("mean of 1 /")  # off a figure; another input
        slack = 0.01 * value if value > 10 else 0.02 if read_off else unit if "slope" in name else 0.01
        slack = -0.05 * value if "slope of log gap" in name else slack
        tolerance = 3 * (numbers[name]["error"] or 0) + slack
        assert numbers[name]["mean"] == pytest.approx(value, abs=tolerance), name


def test_kept_numbers_of_the_talk_are_those_of_theory() -> None:
    """Errors are standard errors; scores have exact ones. What the theory leaves out stands at each tolerance."""
    records = read_records(RECORDS)
    numbers = {record["number"]: record for record in records if "number" in record and record["panel"] in TALK}
    assert len(numbers) == 18
    off = {name: each["mean"] - each["theory"] for name, each in numbers.items()}
    for name in numbers:
        if name.startswith("mean square"):
            assert abs(off[name]) < 4 * numbers[name]["error"], name
    largest = numbers["largest of all 168 scores"]
    assert largest["mean"] < 4.5 and largest["theory"] == pytest.approx(largest_score(168), rel=1e-9)
    for d, layers in ((8, 200), (32, 60)):  # near the limit a singular value is above it in some runs only
        assert abs(off[f"singular values above round-off, width {d}, {layers} layers"]) < 1
    for width in (32, 128):  # terms of the order n / d, which shrink with the width
        assert 0 < off[f"4 W^2 over n V^2, width {width}"] < 3 * 4 / width
        distance = numbers[f"batch norm, W at width {width}, layers 30 to 50"]
        assert abs(distance["mean"] / distance["theory"] - 1) < 4 / width + 3 * distance["error"] / distance["theory"]
    for n in (4, 8):
        name = f"batch norm, n = {n}, value at width 512"
        assert abs(off[name]) < n / 512 + 4 * numbers[name]["error"]
    for name in ("no norm, n = 4, layer 50, value at width 512", "no norm, W at width 32, layer 50"):
        assert abs(off[name]) < 4 * numbers[name]["error"], name
    gaps = [record for record in records if record["panel"] == "distances and gaps" and "curve" in record]
    assert all((np.array(each["mean"]) <= np.array(each["limit"])).all() for each in gaps)


def test_curves_by_layer_follow_the_exact_law() -> None:
    """The kept means over 200 networks, in every layer: K correlated z-scores, all below 4.5."""
    curves = [record for record in read_records(RECORDS) if record["panel"] == "distances" and "curve" in record]
    assert len(curves) == 3
    for each in curves:
        spread, off = np.array(each["deviation"]), np.array(each["mean"]) - np.array(each["theory"])
        moved = spread > 1e-4  # near the collapsed start nothing varies: float64 has six digits of W there
        assert (abs(off[moved]) < 4.5 * spread[moved] / math.sqrt(each["runs"]) * math.sqrt(1 + 200 / 2000)).all()
        assert (abs(off[~moved]) < 1e-3).all()


def test_the_wide_chain_follows_the_law_without_weights() -> None:
    """At width 100,000, log V after the last layer is one draw of the law, whose mean and deviation are of a few runs.

    So their difference has the deviation of the law times sqrt(1 + 1 / runs): four of these.
    """
    records = read_records(RECORDS)
    curves = {each["curve"]: each for each in records if each["panel"] == "wide" and "curve" in each}
    explicit, law = curves["explicit weights"], curves["law without weights"]
    assert explicit["width"] == 100_000 and explicit["x"][-1] == explicit["depth"] == 8
    deviation = law["deviation"][-1] * math.sqrt(1 + 1 / law["runs"])
    assert abs(explicit["mean"][-1] - law["mean"][-1]) < 4 * deviation


def test_largest_scores() -> None:
    """Half of the largest of 50 absolute values of normal numbers are below it: 4 standard deviations of 4000 draws."""
    draws = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs().amax(1)
    assert float((draws < largest_score(50)).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))


def test_singular_values_of_a_product() -> None:
    """Those of the product of the weights, where float64 holds them; the sum of logarithms is log|det|."""
    d, layers = 5, 6
    product = torch.eye(d, dtype=torch.float64)
    for layer in range(layers):
        product = gaussian(d, d, seed=4, stream=layer, dtype=torch.float64) / math.sqrt(d) @ product
    expected = torch.linalg.svdvals(product).log()
    torch.testing.assert_close(log_singular_values(d, layers, 4), expected, rtol=0, atol=1e-10)  # eps times 1e5


def test_distances_of_the_talk() -> None:
    """A batch norm keeps W at its level; orthogonal samples leave it; and W by layer is that of the same samples."""
    records = {each["curve"]: each for each in distance_measurements.distances_and_gaps(Effort(layers=100))[:3]}
    assert list(records) == ["batch norm, width 32", "batch norm, width 128", "no norm, width 32"]
    for each in records.values():
        V, W = np.array(each["x"]), np.array(each["mean"])
        assert len(V) == 4 * 50 and (np.diff(V) >= 0).all() and (W <= 2 * V).all()
        small = V < 0.1  # W = V there, for n = 4, up to terms of the order of V, 1/10
        assert (abs(W[small] / V[small] - 1) < 0.2).all()


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """What has a record with the same setting is not measured again; the rest is."""
    calls: list[str] = []

    def measured(name: str) -> list[dict]:
        calls.append(name)
        return [{"panel": name}]

    def todo(second: int) -> list:
        return [("a", {"seed": 0}, partial(measured, "a")), ("b", {"seed": second}, partial(measured, "b"))]

    study(todo(0)[:1], tmp_path)
    whole = study(todo(0), tmp_path)
    assert calls == ["a", "b"] and [record["setting"] for record in whole] == [{"seed": 0}] * 2
    assert study(todo(0), tmp_path) == whole and calls == ["a", "b"]
    assert study(todo(1), tmp_path)[1]["setting"] == {"seed": 1} and calls == ["a", "b", "b"]
    assert study(todo(0), tmp_path) == whole and calls == ["a", "b", "b"]  # both settings are kept


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_infinitely_many_channels(padding: str) -> None:
    """The mean of V over wide networks of two blocks, and pixel by pixel the mean over the window by hand."""
    images = torch.rand(1, 3, 2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theory = image_chains.infinite_channels(images, padding, blocks=2)[0]
    mode = "constant" if padding == "zeros" else "reflect"
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1), mode=mode)
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # the first convolution is linear in the patches
    flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(1)
    assert float(theory[1]) == pytest.approx(float(orthogonality_gap(flat)), rel=1e-12)  # rounding
    gaps = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = images[0]
        for _ in range(2):
            weight = torch.randn(256, x.shape[1], 3, 3, generator=generator, dtype=torch.float64)
            x = torch.nn.functional.conv2d(torch.nn.functional.pad(x.relu(), (1, 1, 1, 1), mode=mode), weight)
        gaps.append(float(orthogonality_gap(x.flatten(1))))
    error = np.std(gaps) / len(gaps) ** 0.5
    assert error < 0.003
    assert np.mean(gaps) == pytest.approx(float(theory[2]), abs=4 * error + 0.002)  # order 1/256 of the channels


def test_batch_norm_of_maps_makes_samples_orthogonal_but_not_of_one_length() -> None:
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    effort = image_chains.ImageEffort(batches=2, width=16, nets=2, conv_nets=2)
    records = image_chains.convolutions("5b", effort, images)
    last = {record["curve"]: record["mean"][-1] for record in records if "curve" in record}
    assert last["batch norm, length 1"] < 0.7 * last["batch norm"] < last["no norm"]
    numbers = [record for record in records if "number" in record]
    assert len(numbers) == 9 and all((record["theory"] is None) == ("batch" in record["number"]) for record in numbers)


def test_the_page_from_kept_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(monkeypatch, capsys, "--page", "--out", str(tmp_path))
    assert (code, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "random_chains.md", "random_chains.png", "random_talk.png"
    ]  # fmt: skip


def test_short_averages_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said, err = run(monkeypatch, capsys, "--layers", "50", "--out", str(tmp_path / "out"))
    assert (code, said) == (2, "") and "--layers" in err and not (tmp_path / "out").exists()
