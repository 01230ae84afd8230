# SPDX-License-Identifier: BSD-3-Clause
"""The study of learned scattering networks: small trainings on noise, an interruption, its page, its words."""

from pathlib import Path

import pytest
import torch
from stopping import Stop

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

import studies.scattering.__main__ as command
from rainbow_fast.data import Images
from rainbow_fast.io import read_records
from studies.scattering import scattering_experiment, scattering_page
from studies.scattering.scattering_experiment import Setting, files, run, settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def noise() -> Images:
    x, y = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10
    return Images(x, y, x[:20], y[:20])


def test_the_first_seed_of_all_comes_first() -> None:
    chosen = settings([0.25, 0.5], [0.125], 2, 100, 5, 3)
    assert [(s.width, s.skip, s.seed, s.epochs) for s in chosen] == [
        (0.25, False, 0, 5), (0.5, False, 0, 5), (0.125, True, 0, 3),
        (0.25, False, 1, 5), (0.5, False, 1, 5), (0.125, True, 1, 3),
    ]  # fmt: skip


def test_the_study_on_noise_goes_on_within_a_training(
    noise: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in the second network, after an epoch; the records are those of a whole run but for the times."""
    wanted = settings([1 / 32, 1 / 64], [1 / 64], 1, 40, 3, 2)
    command.study(noise, tmp_path / "whole", wanted)
    measured, calls = scattering_experiment.accuracy, []

    def stopping(*arguments: object) -> float:
        calls.append(arguments)
        if len(calls) == 4 + 2:  # three epochs and the end of the first network, then two epochs
            raise Stop
        return measured(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(scattering_experiment, "accuracy", stopping)
        with pytest.raises(Stop):
            command.study(noise, tmp_path / "part", wanted)
    left = sorted(path.name for path in files(wanted[1], tmp_path / "part"))
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["records.jsonl", *left]
    assert len(read_records(tmp_path / "part" / "records.jsonl")) == 1
    trained = []
    train = scattering_experiment.train
    monkeypatch.setattr(scattering_experiment, "train", lambda *a, **k: trained.append(k["epochs"]) or train(*a, **k))
    command.study(noise, tmp_path / "part", wanted)
    assert trained == [3, 2]
    records = [read_records(tmp_path / name / "records.jsonl") for name in ("whole", "part")]
    for whole, part in zip(*records, strict=True):
        assert whole.pop("cpu_seconds") >= 0 and part.pop("cpu_seconds") >= 0
        assert whole == part and len(whole["losses"]) == len(whole["accuracies"]) == whole["epochs"]
        assert 0 <= whole["accuracy"] <= 1
    names = ["records.jsonl", "scattering.md", "scattering.png"]
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == names
    page = (tmp_path / "part" / "scattering.md").read_text()
    for record in records[0]:
        name = f"| width 1/{1 / record['width']:g}{', skip' if record['skip'] else ''} | {record['parameters']:,} | 1 |"
        assert page.count(name) == 1
    assert (tmp_path / "part" / "scattering.png").read_bytes().startswith(b"\x89PNG")


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one colour for each class: the loss falls far below that of chance, log 10."""
    monkeypatch.setitem(scattering_experiment.TRAINING, "batch_size", 15)  # so that 80 steps are enough
    y = torch.arange(200) % 10
    x = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x += 3 * torch.randn(10, 3, generator=torch.Generator().manual_seed(1))[y][:, :, None, None]
    setting = Setting(1 / 16, False, 0, 150, 8)
    record = run(setting, Images(x[:150], y[:150], x[150:], y[150:]), lambda share, what: None, tmp_path)
    assert record["losses"][-1] < 1 < record["losses"][0] and record["accuracy"] > 0.6


def test_sentences_compare_with_the_earlier_runs() -> None:
    def record(width: float, skip: bool, accuracy: float) -> dict:
        return {
            "width": width, "skip": skip, "seed": 0, "images": 20_000, "epochs": 2, "parameters": 9, "losses": [2, 1],
            "accuracies": [0.1, 0.2], "accuracy": accuracy, "cpu_seconds": 7,
        }  # fmt: skip

    page = scattering_page.page([record(1 / 8, False, 0.672), record(1 / 8, True, 0.75), record(1, False, 0.8)])
    assert "- *width 1/8*: 0.1 points from the earlier run: in agreement." in page
    assert "- *width 1/8, skip*: 2.7 points from the earlier run: not in agreement." in page
    assert "- *Skip-connections* at width 1/8: 7.8 points more." in page
    assert "| width 1 | 9 | 1 | 2.00 | 1.00 | 80.0 | - |" in page


def test_wrong_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in [
        (["--plain-widths", "0"], "--plain-widths: wanted numbers above 0, separated by commas; got '0'"),
        (["--skip-widths", "x"], "--skip-widths: wanted numbers above 0, separated by commas; got 'x'"),
        (["empty"], "no file empty/data_batch_1.bin"),
    ]:
        monkeypatch.setattr("sys.argv", ["it", *words])
        assert command.run_app(command.app, "it") == 2
        assert message in capsys.readouterr().err
