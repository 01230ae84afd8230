# SPDX-License-Identifier: BSD-3-Clause
"""The command `clean`: it removes and prints what killed runs have left, and nothing else."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from runs import FEW, RESULTS, contents

from rainbow_fast.cli import sampling
from rainbow_fast.owner import Owner

Run = Callable[..., tuple[int, str, str]]
GONE = replace(Owner.here(), process=2**22 + 1)  # above the largest number of a process


def state(run: Path, number: int) -> Path:
    """The state of a group of networks, as a killed run leaves it."""
    folder = run / f"unfinished-{number}"
    folder.mkdir()
    for name in ("run.safetensors", "network-0-site-0.safetensors", f".rainbow_fast-{GONE}-0123.part"):
        (folder / name).write_bytes(bytes(500))
    return folder


def test_a_folder_of_results(rainbow_fast: Run, run: Path) -> None:
    """What a run needs to go on is removed only by name of this folder; results and other files stay."""
    unfinished = state(run, 1)
    (run / f".rainbow_fast-{GONE}-4567.part").write_bytes(bytes(300))
    (run / "unfinished-thoughts").mkdir()
    (run / "unfinished-2").mkdir()
    (run / "unfinished-2" / "notes.txt").write_text("mine")
    kept = [*RESULTS, "unfinished-2", "unfinished-thoughts"]
    before = contents(run)
    lines = ["run/unfinished-1 (1.5 kB)", f"run/.rainbow_fast-{GONE}-4567.part (300 B)"]
    code, out, err = rainbow_fast("clean", "run", "--dry-run")
    assert (code, out, err) == (0, "".join(f"would be removed: {line}\n" for line in lines), "")
    assert contents(run) == before
    code, out, err = rainbow_fast("clean", "run")
    assert (code, out, err) == (0, "".join(f"removed: {line}\n" for line in lines), "")
    assert contents(run) == sorted(kept) and not unfinished.exists()
    assert rainbow_fast("clean", "run") == (0, "run: nothing to remove\n", "")


def test_a_folder_of_temporary_files(rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = (tmp_path / f"rainbow_fast-{owner}-abcdefgh" for owner in (
        replace(Owner.here(), started=1), Owner.here()
    ))  # fmt: skip
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "activations").write_bytes(bytes(2_500_000))
    for words in ([], [tmp_path]):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        copy = shutil.copytree(dead, tmp_path / "copy")
        code, out, err = rainbow_fast("clean", *words)
        assert (code, err) == (0, "")
        assert out == f"removed: {dead} (2.5 MB)\nkept, it is in use: {alive}\n"
        assert contents(tmp_path) == sorted(["copy", alive.name])
        copy.rename(dead)


def test_what_cannot_be_removed_is_said(rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / f"rainbow_fast-{replace(Owner.here(), started=1)}-abcdefgh"
    dead.mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert rainbow_fast("clean", tmp_path) == (0, f"could not be removed: {dead} (0 B)\n", "")


def test_a_run_in_progress_is_not_touched(rainbow_fast: Run, run: Path) -> None:
    unfinished = state(run, 1)
    holder = os.open(run, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    cleans = [["clean", "run"], ["clean", "run", "--dry-run"]]
    for words in (*cleans, ["sample", "--resume", "run"], ["sample", "it.safetensors", *FEW, "--out", "run"]):
        code, out, err = rainbow_fast(*words)
        option = {"clean": "folder"}.get(words[0], "--resume" if "--resume" in words else "--out")
        said = "holds a run that was stopped" if option == "--out" else "is in use by another run"
        assert (code, out) == (2, "") and err.startswith(f"Error: {option}: run {said}")
    os.close(holder)
    assert contents(unfinished) != [] and contents(run) == sorted([*RESULTS, "unfinished-1"])


def test_no_folder_is_an_error(rainbow_fast: Run, tmp_path: Path) -> None:
    code, out, err = rainbow_fast("clean", tmp_path / "nowhere")
    assert (code, out, err) == (2, "", f"Error: folder: no folder {tmp_path / 'nowhere'}\n")


# What `sample` does with what was left


def test_a_finished_run_loses_its_state_when_it_is_resumed(rainbow_fast: Run, run: Path) -> None:
    """It was killed after its last group; files that follow from the record are written again, whatever they hold."""
    whole = {name: (run / name).read_bytes() for name in RESULTS}
    for spoiled in ("results.jsonl", "report.txt", "figure.png"):
        state(run, 0)
        (run / spoiled).write_bytes(b"half")
        code, _, err = rainbow_fast("sample", "--resume", "run")
        assert (code, err) == (0, "") and {name: (run / name).read_bytes() for name in contents(run)} == whole


def test_half_a_state_does_not_cost_the_results(rainbow_fast: Run, run: Path) -> None:
    """A new run there is checked before anything is deleted: a finished one may be replaced, a stopped one may not."""
    whole = {name: (run / name).read_bytes() for name in RESULTS}
    (state(run, 0) / "run.safetensors").unlink()
    assert rainbow_fast("sample", "it.safetensors", *FEW, "--out", "run")[0] == 0
    assert {name: (run / name).read_bytes() for name in contents(run)} == whole
    (state(run, 1) / "run.safetensors").unlink()
    code, _, err = rainbow_fast("sample", "it.safetensors", *FEW, "--out", "run")
    assert code == 2 and "--out: run holds a run that was stopped: wanted --resume, or another folder" in err
    assert {name: (run / name).read_bytes() for name in RESULTS} == whole


def test_a_run_that_was_stopped_between_two_groups_is_not_replaced(rainbow_fast: Run, run: Path) -> None:
    """It has no state at that moment, but a finished network, whose record says that another one was asked for."""
    more = ["sample", "it.safetensors", *FEW, "--networks", "2", "--memory-budget", "0", "--out", "run"]
    assert rainbow_fast(*more)[0] == 0
    whole = {name: (run / name).read_bytes() for name in RESULTS}
    report = json.loads(whole["report.json"])
    del report["networks"][1]
    (run / "report.json").write_text(json.dumps(report))
    code, _, err = rainbow_fast(*more)
    assert code == 2 and "--out: run holds a run that was stopped: wanted --resume, or another folder" in err
    assert rainbow_fast("sample", "--resume", "run")[0] == 0
    assert {name: (run / name).read_bytes() for name in contents(run)} == whole


def test_a_run_with_many_options_is_resumed(rainbow_fast: Run, run: Path) -> None:
    """Its reports hold the options as the method completes them."""
    options = ["--methods", "paper,regression", "--widths", "5,9", "--rank", "4", "--sites", "2", "--seed", "3"]
    options += [
        "--classifier",
        "refit",
        "--accuracy-profile",
        "--no-recalibrate",
        "--holdout",
        "0.3",
        "--data",
        "digits",
    ]
    few = ["--images", "40", "--networks", "2", "--threads", "1"]
    code, _, err = rainbow_fast("sample", "it.safetensors", *few, *options, "--out", "run")
    assert code == 0, err
    whole = {name: (run / name).read_bytes() for name in RESULTS}
    (run / "report.txt").unlink()
    code, _, err = rainbow_fast("sample", "--resume", "run", "--rank", "4", "--widths", "5,9")
    assert code == 0 and {name: (run / name).read_bytes() for name in contents(run)} == whole, err


def test_a_run_that_fails_before_it_samples_leaves_the_results(
    rainbow_fast: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("data are not finite")

    whole = {name: (run / name).read_bytes() for name in RESULTS}
    monkeypatch.setattr(sampling, "fit_moments", broken)
    assert rainbow_fast("sample", "it.safetensors", *FEW, "--out", "run")[2] == "Error: data are not finite\n"
    assert {name: (run / name).read_bytes() for name in contents(run)} == whole
