# SPDX-License-Identifier: BSD-3-Clause
"""The command `clean`: it removes and prints what killed runs have left, and nothing else."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from here import threads

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from rainbow_fast.cli.checkpoints import save_checkpoint
from rainbow_fast.cli.training import new_reference
from rainbow_fast.owner import Owner

Run = Callable[..., tuple[int, str, str]]
RESULTS = ["figure.png", "report.json", "report.txt", "results.jsonl"]
FEW = ["--images", "40", "--factors", "1", "--networks", "1", "--methods", "paper"]
GONE = 2**22 + 1  # above the largest number of a process


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(rainbow_fast: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, called "run" in the current folder."""
    about = new_reference("mlp", "digits", widths=(16,))
    save_checkpoint(about.build(), about, tmp_path / "it.safetensors")
    monkeypatch.chdir(tmp_path)
    with threads(1):
        assert rainbow_fast("sample", "it.safetensors", *FEW, "--out", "run")[0] == 0
        yield tmp_path / "run"


def state(run: Path, number: int) -> Path:
    """The state of a group of networks, as a killed run leaves it."""
    folder = run / f"unfinished-{number}"
    folder.mkdir()
    for name in ("run.safetensors", "network-0-site-0.safetensors", f".network-0-site-1.safetensors.{GONE}.part"):
        (folder / name).write_bytes(bytes(500))
    return folder


def test_a_folder_of_results(rainbow_fast: Run, run: Path) -> None:
    """What a run needs to go on is removed only by name of this folder; results and other files stay."""
    unfinished = state(run, 1)
    (run / f".report.json.{GONE}.part").write_bytes(bytes(300))
    (run / "unfinished-thoughts").mkdir()
    (run / "unfinished-2").mkdir()
    (run / "unfinished-2" / "notes.txt").write_text("mine")
    kept = [*RESULTS, "unfinished-2", "unfinished-thoughts"]
    before = contents(run)
    lines = ["run/unfinished-1 (1.5 kB)", f"run/.report.json.{GONE}.part (300 B)"]
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


def test_a_run_in_progress_is_not_touched(rainbow_fast: Run, run: Path) -> None:
    unfinished = state(run, 1)
    holder = os.open(run, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    for words in (["clean", "run"], ["sample", "--resume", "run"], ["sample", "it.safetensors", *FEW, "--out", "run"]):
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


def test_a_run_that_fails_before_it_samples_leaves_the_results(
    rainbow_fast: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rainbow_fast.cli import sampling

    def broken(*_: object) -> None:
        raise ValueError("data are not finite")

    whole = {name: (run / name).read_bytes() for name in RESULTS}
    monkeypatch.setattr(sampling, "fit_moments", broken)
    assert rainbow_fast("sample", "it.safetensors", *FEW, "--out", "run")[2] == "Error: data are not finite\n"
    assert {name: (run / name).read_bytes() for name in contents(run)} == whole
