# SPDX-License-Identifier: BSD-3-Clause
"""The commands, each once on small data: the files that they leave, and their messages for wrong words."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from runs import RESULTS, contents
from typer.main import get_command

from rainbow_fast import cli, plots
from rainbow_fast.cli import sampling, sources, training
from rainbow_fast.cli.app import app
from rainbow_fast.cli.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from rainbow_fast.data import digits
from rainbow_fast.io import read_records, write_whole
from rainbow_fast.networks import accuracy
from rainbow_fast.rainbow import chunks
from rainbow_fast.rainbow.model import fit
from rainbow_fast.rainbow.options import Limits, SampleOptions
from rainbow_fast.tracing import trace

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perceptron that is hardly trained."""
    path = tmp_path_factory.mktemp("checkpoint") / "mlp.safetensors"
    words = ["train", "mlp", "--widths", "12,8", "--epochs", "3", "--seed", "5", "--out", str(path)]
    assert get_command(app).main(words, standalone_mode=False) is None
    return path


def test_checkpoint_holds_the_architecture(checkpoint: Path) -> None:
    module, about = load_checkpoint(checkpoint)
    assert (about.architecture, about.arguments, about.data) == ("mlp", {"sizes": [64, 12, 8, 10]}, "digits")
    assert about.training["epochs"] == 3 and about.training["seed"] == 5
    images = training.load_images(about, None)
    assert about.accuracy == accuracy(module, images.x_test, images.y_test) > 0.3


def test_sample(rainbow_fast: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--factors", "1,2.5", "--methods", "paper,calibrated", "--networks", 2, "--images", 500]
    code, out, err = rainbow_fast("sample", checkpoint, *arguments, "--out", tmp_path / "new" / "folder")
    assert (code, err) == (0, "")
    assert "calibrated" in out and "x2.5" in out and "±" in out
    folder = tmp_path / "new" / "folder"
    assert contents(folder) == RESULTS
    records = read_records(folder / "results.jsonl")
    keys = [(r["method"], r["factor"], r["network"], r["site"]) for r in records]
    assert keys == [(m, f, n, s) for m in ("paper", "calibrated") for f in (1, 2.5) for n in (0, 1) for s in ("2", "4")]
    wide = records[-2]
    assert (wide["d"], wide["n"], wide["images"], wide["held_out_images"]) == (12, 30, 500, 360)
    assert 0 < wide["error"] < 1 and 0 < wide["accuracy"] < 1
    assert wide["reference_accuracy"] == load_checkpoint(checkpoint)[1].accuracy
    assert (folder / "report.txt").read_text().count("law=orthonormal") == 4
    assert (folder / "figure.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("widths", [["--factors", "1,inf"], ["--widths", "9,inf"]])
def test_infinite_width(rainbow_fast: Run, checkpoint: Path, tmp_path: Path, widths: list[str]) -> None:
    """A single network of each method; the run goes on after it has been stopped, and is planned."""
    pytest.importorskip("scipy")
    arguments = [*widths, "--methods", "paper,calibrated", "--networks", 2, "--images", 300]
    code, out, err = rainbow_fast("sample", checkpoint, *arguments, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "xinf" in out
    reports = [each["report"] for each in json.loads((tmp_path / "report.json").read_text())["networks"]]
    assert [report["sites"][0]["route"] == "limit" for report in reports] == 2 * [False, False, True]
    model = fit(load_checkpoint(checkpoint)[0], tuple(t[:300] for t in digits()[:2]), holdout=digits()[2:])
    _, report = model.sample(factor=math.inf)
    assert reports[2]["accuracy"] == report.accuracy
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    records = read_records(tmp_path / "results.jsonl")
    assert '"n": "inf"' in (tmp_path / "results.jsonl").read_text() and {r["n"] for r in records} >= {math.inf}
    plots.save(plots.accuracy_and_error(records), tmp_path / "again.png")
    assert rainbow_fast("sample", "--resume", tmp_path)[0] == 0
    code, out, _ = rainbow_fast("plan", checkpoint, *arguments, "--json")
    costs = json.loads(out)["costs"]
    assert code == 0 and [cost["sites"][0]["route"] for cost in costs] == 2 * ["kept", "limit"]
    assert [cost["networks"] for cost in costs] == [2, 1, 2, 1]
    size = widths[0].removeprefix("--").removesuffix("s")
    assert [cost[size] for cost in costs][1::2] == [cost["sites"][0]["n"] for cost in costs][1::2] == 2 * ["inf"]


def test_commands_have_every_option_of_the_library(rainbow_fast: Run, checkpoint: Path, tmp_path: Path) -> None:
    """All options, except those that a grid has in the plural and those without words, have the library's defaults."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    plural = {"width": "widths", "factor": "factors", "method": "methods", "network_index": "networks"}
    for name in ("sample", "plan"):
        words = {parameter.name for parameter in commands[name].params}
        for f in (*fields(SampleOptions), *fields(Limits)):
            assert plural.get(f.name, f.name) in words or f.name in ("storage_dtype", "resume_dir")
    options = ["--law", "bootstrap", "--smoothing", 0.25, "--scale", "nuclear", "--no-recalibrate", "--sites", "4"]
    few = ["--methods", "calibrated", "--factors", 2, "--networks", 1, "--images", 300]
    code, _, err = rainbow_fast("sample", checkpoint, *options, *few, "--out", tmp_path)
    assert code == 0, err
    module, _ = load_checkpoint(checkpoint)
    x, y, x_test, y_test = digits()
    model = fit(module, (x[:300], y[:300]), holdout=(x_test, y_test))
    keywords = {"law": "bootstrap", "smoothing": 0.25, "scale": "nuclear", "recalibrate": False, "sites": ["4"]}
    _, report = model.sample(method="calibrated", factor=2, **keywords)
    [network] = json.loads((tmp_path / "report.json").read_text())["networks"]
    assert network["report"] | {"storage": ""} == json.loads(report.to_json()) | {"storage": ""}


def test_sample_is_reproducible_and_takes_widths(rainbow_fast: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--widths", "16", "--methods", "paper", "--networks", 1, "--rank", 4, "--out", tmp_path]
    assert rainbow_fast("sample", checkpoint, *arguments)[0] == 0
    first = (tmp_path / "results.jsonl").read_text()
    assert [(r["n"], r["rank"], r["factor"]) for r in read_records(tmp_path / "results.jsonl")] == [
        (16, 4, 32 / 20)
    ] * 2
    assert rainbow_fast("sample", checkpoint, *arguments)[0] == 0
    assert (tmp_path / "results.jsonl").read_text() == first


def test_plan(rainbow_fast: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes the options of `sample` and prints the sizes of its run. It writes nothing."""
    arguments = ["--factors", "2,2.5", "--methods", "paper,regression", "--networks", 2, "--images", 500, "--rank", 5]
    monkeypatch.chdir(tmp_path)
    code, out, err = rainbow_fast("plan", checkpoint, *arguments, "--data", "digits", "--out", "out")
    assert (code, err) == (0, "") and contents(tmp_path) == []
    assert "regression x2.5" in out and "8 networks, fitted once: " in out
    code, out, _ = rainbow_fast("plan", checkpoint, *arguments, "--json")
    read = json.loads(out)
    assert code == 0 and {cost["networks"] for cost in read["costs"]} == {2} and out.count("\n") == 1
    assert rainbow_fast("sample", checkpoint, *arguments, "--out", tmp_path)[0] == 0
    records = [record for record in read_records(tmp_path / "results.jsonl") if record["network"] == 0]
    sites = [cost | site for cost in read["costs"] for site in cost["sites"]]
    for record, site in zip(records, sites, strict=True):
        for name in ("method", "factor", "site", "d", "n", "rank", "samples", "images"):
            assert record[name] == site[name]
        assert record["held_out_images"] == site["held_out_images"]


def test_plan_knows_the_numbers_of_images(rainbow_fast: Run, tmp_path: Path) -> None:
    """Those of CIFAR-10 without the images."""
    assert sources.COUNTS["digits"] == tuple(map(len, digits()[::2]))
    about = training.new_reference("cnn", "cifar10", grey=False)
    save_checkpoint(about.build(), about, tmp_path / "it")
    code, out, _ = rainbow_fast(
        "plan", tmp_path / "it", "--widths", 8, "--images", 10**6, "--methods", "paper", "--json"
    )
    assert code == 0
    assert [(cost["images"], cost["held_out_images"]) for cost in json.loads(out)["costs"]] == [(50_000, 10_000)]


def test_demo(rainbow_fast: Run, tmp_path: Path) -> None:
    code, out, _ = rainbow_fast("demo", "--out", tmp_path)
    assert code == 0
    assert contents(tmp_path) == ["cnn", "cnn.safetensors", "mlp", "mlp.safetensors"]
    for name in ("mlp", "cnn"):
        assert contents(tmp_path / name) == RESULTS
        records = read_records(tmp_path / name / "results.jsonl")
        assert len(records) == 3 * 4 * 3 * 2 + 2 * (name == "mlp")  # and the two sites of infinite width
        best = [r["accuracy"] for r in records if r["method"] == "regression" and r["factor"] == 16]
        assert min(best) > records[0]["reference_accuracy"] - 0.03 > 0.9
    assert f"{tmp_path / 'cnn'}: results.jsonl, report.txt, report.json, figure.png" in out


def test_info(rainbow_fast: Run) -> None:
    code, out, _ = rainbow_fast("info")
    assert code == 0
    assert torch.__version__ in out and "cpu, reference" in out and "RAINBOW_FAST_ISA" in out


def test_no_command_prints_the_help(rainbow_fast: Run) -> None:
    code, out, err = rainbow_fast()
    assert code == 2 and "compare" in out and err == ""


@pytest.mark.parametrize(
    "words, message",
    [
        (["bogus"], "No such command"),
        (["sample"], "wanted one of these: a checkpoint of `rainbow-fast train`, --module, --timm or"),
        (["sample", "nowhere.safetensors"], "checkpoint: no checkpoint of `rainbow-fast train` at nowhere.safetensors"),
        (["sample", "{file}", "--methods", "papr"], "method='papr': wanted one of paper, calibrated, regression"),
        (["sample", "{file}", "--factors", "1,x"], "--factors: wanted numbers above 0, separated by commas; got '1,x'"),
        (["sample", "{file}", "--factors", "inf,-inf"], "--factors: wanted numbers above 0, separated by commas"),
        (["sample", "{file}", "--factors", "inf", "--methods", "regression"], "alignment='regression' has no limit"),
        (["sample", "{file}", "--factors", "2,2"], "--factors: wanted each number once, got '2,2'"),
        (["sample", "{file}", "--widths", "2.5"], "--widths: wanted whole numbers above 0"),
        (["sample", "{file}", "--widths", "2", "--factors", "1"], "--factors and --widths: wanted one of the two"),
        (["sample", "{file}", "--data", "elsewhere"], "--data: the checkpoint was trained on digits, got 'elsewhere'"),
        (["sample", "{file}", "--align-flattened"], "align_flattened=True: no sampled site feeds a Flatten"),
        (["plan", "nowhere.safetensors"], "checkpoint: no checkpoint of `rainbow-fast train` at nowhere.safetensors"),
        (["plan", "{file}", "--widths", "2.5"], "--widths: wanted whole numbers above 0"),
        (["plan", "{file}", "--methods", "papr"], "method='papr': wanted one of paper, calibrated, regression"),
        (["plan", "{file}", "--align-flattened"], "align_flattened=True: no sampled site feeds a Flatten"),
        (["train", "mlp", "--data", "elsewhere"], "no file elsewhere/data_batch_1.bin"),
        (["train", "mlp", "--epochs", "0"], "epochs=0: wanted epochs >= 1"),
        (["train", "mlp", "--out", "elsewhere/mlp.safetensors"], "--out: no folder elsewhere"),
        (["train", "mlp", "--lr", "1e9"], "loss"),
        (["reproduce", "elsewhere"], "reproduce: it is a study now; in a checkout of the sources call `python -m"),
        (["resnet20", "elsewhere", "--networks", "2"], "resnet20: it is a study now; in a checkout of the sources"),
        (["convergence"], "convergence: it is a study now; in a checkout of the sources call `python -m studies.conv"),
        (["sample", "{file}", "--fator", "4"], "No such option: --fator"),
        (["sites", "{file}", "--holdout", "0.2"], "No such option: --holdout"),
        (["compare", "{file}", "{file}", "--weights", "w.pt"], "No such option: --weights"),
        (["sample", "{file}", "--law", "uniform"], "law='uniform': wanted one of gaussian, orthonormal, bootstrap, id"),
        (["plan", "{file}", "--ridge", "0.1"], "ridge=0.1 with alignment='polar': wanted alignment='regression'"),
    ],
)
def test_wrong_words_cost_one_line(
    rainbow_fast: Run,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = rainbow_fast(*(word.format(file=checkpoint) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and message in err and err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_wrong_checkpoints_are_named(tmp_path: Path, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    path = tmp_path / "some.safetensors"
    for data, message in [
        (whole[:-1], "is not a whole safetensors file"),
        (whole.replace(CHECKPOINT.name.encode(), b"x" * len(CHECKPOINT.name)), "holds no checkpoint"),
        (whole.replace(b'"version":"2"', b'"version":"9"'), "has version 9"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"some.safetensors {message}"):
            load_checkpoint(path)


def test_cifar10_checkpoint_needs_its_folder(rainbow_fast: Run, tmp_path: Path) -> None:
    about = training.new_reference("mlp", "cifar10", widths=(12, 8))
    save_checkpoint(about.build(), about, tmp_path / "it")
    code, _, err = rainbow_fast("sample", tmp_path / "it", "--out", tmp_path)
    assert code == 2 and "--data: the checkpoint was trained on CIFAR-10, wanted the folder" in err


def test_a_site_that_is_constant_has_no_error_and_leaves_a_gap(rainbow_fast: Run, tmp_path: Path) -> None:
    about = training.new_reference("mlp", "digits", widths=(12, 8))
    module = about.build()
    torch.nn.init.zeros_(module[3].weight)
    save_checkpoint(module, about, tmp_path / "it")
    words = "--methods", "calibrated", "--factors", "1", "--networks", "1", "--images", "200"
    code, out, err = rainbow_fast("sample", tmp_path / "it", *words, "--out", tmp_path / "out")
    assert code == 0, err
    errors = [record["error"] for record in read_records(tmp_path / "out" / "results.jsonl")]
    assert errors[0] > 0 and errors[1] is None and (tmp_path / "out" / "figure.png").is_file()
    (tmp_path / "out" / "figure.png").unlink()
    assert rainbow_fast("sample", "--resume", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "figure.png").is_file()


def test_network_and_data_are_prepared_and_hashed_once(
    rainbow_fast: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(owner: ModuleType, name: str) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(f"{owner.__name__}.{name}") or function(*a, **k))

    counted(sampling, "prepare")
    counted(trace, "fingerprint")
    counted(chunks, "sha256")
    words = "--methods", "paper,calibrated", "--factors", "1,2", "--networks", "2", "--images", "200"
    assert rainbow_fast("sample", checkpoint, *words, "--out", tmp_path / "out")[0] == 0
    once = ["rainbow_fast.cli.sampling.prepare", "rainbow_fast.tracing.trace.fingerprint"]
    samples_and_labels = ["rainbow_fast.rainbow.chunks.sha256"] * 4  # of the alignment set and of the held-out data
    assert sorted(calls) == sorted(once + samples_and_labels)


def test_missing_extras_are_named(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert rainbow_fast("demo")[2] == 'Error: plots need matplotlib: pip install "rainbow_fast[plots]"\n'
    for name in ("typer", "rich"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = rainbow_fast("demo")
    assert code == 2 and err == 'Error: rainbow-fast needs typer and rich: pip install "rainbow_fast[cli]"\n'


INTERRUPTED = """  # by the signal of Ctrl-C, once a state of the second pass has been written
import os, signal
from rainbow_fast.cli import main
replace = os.replace
def interrupt(source, target):
    replace(source, target)
    if "unfinished-10/network-6-" in str(target):
        signal.raise_signal(signal.SIGINT)
os.replace = interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
main()
"""


def test_an_interrupted_run_goes_on(rainbow_fast: Run, checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of `sample`, in another process; resumed, it ends with the bits of an undisturbed run."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["sample", checkpoint, "--methods", "paper,regression", "--factors", "1,8", "--networks", 5]
    words += ["--images", 100, "--threads", 1, "--out"]
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, words), str(out)],
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == "Interrupted. The files in the output folder are complete.\n"
    assert contents(out) == ["report.json", "results.jsonl", "unfinished-10"]
    there = (out / "results.jsonl").read_text()
    code, _, err = rainbow_fast(*words, out)
    assert code == 2 and f"--out: {out} holds a run that was stopped: wanted --resume, or another folder" in err
    code, _, err = rainbow_fast("sample", "--resume", out, "--networks", 4)
    assert code == 2 and f"--networks: the run in {out} has 5, got 4" in err
    code, printed, err = rainbow_fast("sample", "--resume", out)
    assert code == 0, err
    assert contents(out) == RESULTS and "regression" in printed
    assert rainbow_fast(*words, whole)[0] == 0
    for name in ("results.jsonl", "report.json", "report.txt"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert (out / "results.jsonl").read_text().startswith(there) and len(there.splitlines()) == 2 * 10


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old" and contents(tmp_path) == ["file"]
