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
from rainbow_fast.random_networks import orthogonality_gap
from studies.random_chains import image_chains
from studies.random_chains.__main__ import RECORDS, app, study
from studies.random_chains.chain_page import EXPECTED, PANELS

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
    names = ["random_chains.md", "random_chains.png", "records.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names
    records = read_records(out / "records.jsonl")
    numbers = {record["number"]: record for record in records if "number" in record}
    assert set(EXPECTED) <= set(numbers) and {record["panel"] for record in records} == set(PANELS)
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
        ("slope of log gap per layer, layers 20 to 100", 0.003),
        ("mean of 1 / (eigenvalue + 1)", 0.003),
    ):
        assert numbers[name]["mean"] == pytest.approx(numbers[name]["theory"], abs=tolerance), name
    page = (out / "random_chains.md").read_text()
    assert all(page.count(f"*{title.format(width=500)}.*") == 1 for title, *_ in PANELS.values())
    assert (out / "random_chains.png").read_bytes().startswith(b"\x89PNG")


def test_kept_numbers_are_the_expected_ones() -> None:
    """Within three standard errors and 0.01, which is sampling of the expected ones.

    One unit of the last digit for slopes, 0.02 for what was read off a figure or had another input, 1 % for ranks
    above 10.
    """
    numbers = {record["number"]: record for record in read_records(RECORDS) if "number" in record}
    for name, expected in EXPECTED.items():
        value = float(expected.split(" ")[0])
        unit = 10.0 ** -len(expected.split(" ")[0].rpartition(".")[2])
        read_off = "on images" in name or name.startswith("mean of 1 /")  # off a figure; another input
        slack = 0.01 * value if value > 10 else 0.02 if read_off else unit if "slope" in name else 0.01
        tolerance = 3 * (numbers[name]["error"] or 0) + slack
        assert numbers[name]["mean"] == pytest.approx(value, abs=tolerance), name


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random_chains.md", "random_chains.png"]


def test_short_averages_cost_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said, err = run(monkeypatch, capsys, "--layers", "50", "--out", str(tmp_path / "out"))
    assert (code, said) == (2, "") and "--layers" in err and not (tmp_path / "out").exists()
