# SPDX-License-Identifier: BSD-3-Clause
"""Records of runs that were edited or damaged: one line that names the file, and nothing is computed or written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


from rainbow_fast.cli import sampling
from rainbow_fast.cli.checkpoints import save_checkpoint
from rainbow_fast.cli.training import new_reference

Run = Callable[..., tuple[int, str, str]]


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, run: Path, message: str) -> None:
    def never(*_: object) -> None:
        pytest.fail("read data before the record was refused")

    before = files(run)
    monkeypatch.setattr(sampling, "fit_moments", never)
    code, out, err = rainbow_fast("sample", "--resume", "run")
    assert (code, out) == (2, "") and err.startswith(f"Error: {message}") and err.count("\n") == 1
    assert files(run) == before


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("factors", [1], "factors=[1]: wanted text"),
        ("methods", None, "methods=None: wanted text"),
        ("methods", "papr", "method='papr': wanted one of paper, calibrated, regression"),
        ("networks", "x", "networks='x': wanted an integer"),
        ("networks", True, "networks=True: wanted an integer"),
        ("networks", 0, "networks=0: wanted 1 <= networks <= 1048576"),
        ("images", 1.5, "images=1.5: wanted an integer"),
        ("grey", "no", "grey='no': wanted true or false"),
        ("keep_mean", 1, "keep_mean=1: wanted true or false"),
        ("ridge", "1", "ridge='1': wanted a number"),
        ("pointwise_modules", "os:system", "pointwise_modules='os:system': wanted a list of texts"),
        ("pointwise_modules", [1], "pointwise_modules=[1]: wanted a list of texts"),
        ("scratch_dir", "/nowhere", "scratch_dir: no folder /nowhere"),
        ("holdout", "nowhere", "--holdout: 'nowhere' is no data: wanted digits"),
        ("size", 8, "--size: a checkpoint, which has its own, does not take it"),
        (
            "checkpoint",
            "nowhere.safetensors",
            "checkpoint: no checkpoint of `rainbow-fast train` at nowhere.safetensors",
        ),
        ("align_flattened", True, "network 1 does not have the options of the run"),
        ("memory_budget", "all", "--memory-budget: wanted bytes, as a number with k, M or G behind it; got 'all'"),
        ("threads", 10**9, "threads=1000000000: wanted 1 <= threads <= 1024"),
        ("seed", [[[[[[[[1]]]]]]]], "seed=[[[[[["),
    ],
)
def test_options_of_a_file_are_checked(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, run: Path, option: str, value: object, message: str
) -> None:
    whole = report(run)
    whole["run"]["options"][option] = value
    (run / "report.json").write_text(json.dumps(whole))
    refused(rainbow_fast, monkeypatch, run, f"--resume: run/report.json: {message}")


def test_later_options_of_a_file_are_named_with_it(rainbow_fast: Run, run: Path) -> None:
    whole = report(run)
    whole["run"]["options"]["align_flattened"] = True  # contradicts the network
    (run / "report.json").write_text(json.dumps(whole | {"networks": []}))
    code, out, err = rainbow_fast("sample", "--resume", "run")
    assert (code, out) == (2, "")
    assert err == "Error: --resume: run/report.json: align_flattened=True: no sampled site feeds a Flatten\n"


NONE, NO_REPORTS = "holds no run of `sample`", "holds no reports of `sample`"
OTHER = "network 1 does not have the options of the run"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda whole: whole.update(run=[]), NONE),
        (lambda whole: whole.pop("run"), NONE),
        (lambda whole: whole["run"].update(options=[["seed", 1]]), NONE),
        (lambda whole: whole["run"].update(reference=None), NONE),
        (lambda whole: whole["run"]["options"].update(extra=1), "was written by another version, whose options differ"),
        (lambda whole: whole["run"]["options"].pop("seed"), "was written by another version, whose options differ"),
        (lambda whole: whole.update(networks=3), NONE),
        (lambda whole: whole.update(networks=[3]), NO_REPORTS),
        (lambda whole: whole.update(networks=[{"report": {}}]), NO_REPORTS),
        (lambda whole: whole["networks"][0]["report"].update(options=3), NO_REPORTS),
        (lambda whole: whole["networks"][0]["report"].update(sites=[{"site": "2"}]), NO_REPORTS),
        (lambda whole: whole["networks"][0]["report"].update(unknown=1), NO_REPORTS),
        (lambda whole: whole["networks"][0]["report"]["options"].update(law="mine"), NO_REPORTS),
        (lambda whole: whole["networks"][0]["report"].update(storage="\x1b[31m"), "has control characters in a text"),
        (lambda whole: whole["run"]["options"].update(weights="a\x9b"), "has control characters in a text"),
        (lambda whole: whole["networks"].extend(2 * whole["networks"]), "holds 3 networks, wanted at most 1"),
        (lambda whole: whole["networks"][0].update(job="paper, x2, network 0"), OTHER),
        (lambda whole: whole["networks"][0]["report"]["options"].update(seed=7), OTHER),
        (lambda whole: whole["run"]["options"].update(seed=7), OTHER),
    ],
)  # fmt: skip
def test_reports_of_a_file_are_checked(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, run: Path, edit: Callable[[Any], object], message: str
) -> None:
    whole = report(run)
    edit(whole)
    (run / "report.json").write_text(json.dumps(whole))
    begin = "--resume: run/report.json"
    refused(rainbow_fast, monkeypatch, run, f"{begin} {message}" if message != OTHER else f"{begin}: {message}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "run/report.json is not JSON (Input data was truncated"),
        ("[" * 10**5, "run/report.json holds no run of `sample` (Expected `object`, got `array`)"),
        ('{"run":' * 10**5, "run/report.json holds no run of `sample` (Object contains unknown field"),
        ('{"networks":' + "[" * 10**5, "run/report.json is not JSON (maximum recursion depth exceeded"),
        ("1" * 10**4, "run/report.json holds no run of `sample` (Number out of range"),
        ("\udcff", "run/report.json is not JSON (JSON is malformed: invalid character"),
        ("[]", "run/report.json holds no run of `sample`"),
    ],
    ids=["empty", "deep", "deep run", "deep networks", "long", "bytes", "list"],
)
def test_damaged_files_are_named(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, run: Path, text: str, message: str
) -> None:
    (run / "report.json").write_text(text, errors="surrogateescape")
    refused(rainbow_fast, monkeypatch, run, f"--resume: {message}")


def test_a_pipe_is_no_record(rainbow_fast: Run, run: Path) -> None:
    """It would never end."""
    (run / "report.json").unlink()
    os.mkfifo(run / "report.json")
    assert rainbow_fast("sample", "--resume", "run")[2] == "Error: --resume: no run of `sample` in run\n"


def test_a_file_that_shows_another_network_is_refused(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    about = new_reference("mlp", "digits", widths=(16,))
    module = about.build()
    torch.nn.init.zeros_(module[-1].weight)
    save_checkpoint(module, about, run.parent / "it.safetensors")
    refused(rainbow_fast, monkeypatch, run, "--resume: the run in run has a network with other weights")
