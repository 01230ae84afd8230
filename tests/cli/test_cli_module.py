# SPDX-License-Identifier: BSD-3-Clause
"""The commands with the user's own module, weights and data, and their messages for wrong ones."""

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from here import DATA, draw
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import rainbow_fast as rf
from rainbow_fast.cli import planning, readers, sources
from rainbow_fast.cli.grid import Job
from rainbow_fast.data import digits
from rainbow_fast.io import read_records
from rainbow_fast.networks import accuracy

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
CODE = """
from torch import nn

class Half(nn.Module):
    def forward(self, x):
        return x.clamp(min=0) / 2

def build(width=12, act="GELU"):
    act = Half() if act == "Half" else getattr(nn, act)()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), act, nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 10))

def deep(depth):
    middle = [layer for _ in range(depth - 1) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), *middle, nn.Linear(8, 10))

def mean():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def broken(width):
    raise KeyError("a word of its own")

def number(width):
    return 1
"""
CIFAR = ["--module", "own.model:mean", "--module-args", "{}"]  # takes images of CIFAR-10
MODEL = ["--module", "own.model:build", "--module-args", '{"width": 16}']
FEW = ["--images", 200, "--factors", "1,2", "--networks", 2, "--threads", 1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a package in it that is not installed."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "own"]:
        del sys.modules[name]


def network(width: int = 16, seed: int = 0) -> nn.Sequential:
    """That of the module, with other weights than it is made with."""
    first, second, last = nn.Linear(64, width), nn.Linear(width, 8), nn.Linear(8, 10)
    net = nn.Sequential(nn.Flatten(), first, nn.GELU(), second, nn.ReLU(), last)
    net.load_state_dict({k: draw(*v.shape, seed=seed + i) / 4 for i, (k, v) in enumerate(net.state_dict().items())})
    return net


def images(path: Path) -> Path:
    """A folder of 60 grey images of three classes, with all grey levels."""
    image = pytest.importorskip("PIL.Image")
    for label in range(3):
        (path / f"class{label}").mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (9, 11), dtype=np.uint8)
            image.fromarray(pixels).save(path / f"class{label}" / f"{number}.png")
    return path


def test_a_module_is_sampled_as_in_the_library(rainbow_fast: Run, folder: Path) -> None:
    """Weights of a parallel training script. One run samples all networks of a method; each has its own report."""
    net = network()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 3}, folder / "w.pt")
    arguments = [*MODEL, "--weights", "w.pt", "--data", "digits", *FEW, "--methods", "paper,calibrated", "--sites", "4"]
    code, out, err = rainbow_fast("sample", *arguments, "--out", "out")
    assert (code, err) == (0, "") and "activations are kept in memory" in out and "own.model:build, w.pt" in out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "figure.png", "report.json", "report.txt", "results.jsonl"
    ]  # fmt: skip
    x, y, x_test, y_test = digits()
    model = rf.fit(net, (x[:200], y[:200]), holdout=(x_test, y_test))
    wanted = [
        model.sample(method=method, factor=factor, network_index=number, sites=["4"])[1].to_dict() | {"storage": ""}
        for method in ("paper", "calibrated") for factor in (1, 2) for number in (0, 1)
    ]  # fmt: skip
    report = json.loads(Path("out/report.json").read_text())
    assert [each["report"] | {"storage": ""} for each in report["networks"]] == json.loads(json.dumps(wanted))
    assert report["networks"][1]["job"] == "paper, x1, network 1" and report["run"]["options"]["weights"] == "w.pt"
    records = read_records(Path("out/results.jsonl"))
    assert [(r["architecture"], r["data"], r["site"]) for r in records] == [("own.model:build", "digits", "4")] * 8
    assert records[0]["reference_accuracy"] == accuracy(net, x_test, y_test)
    assert Path("out/report.txt").read_text().count("kept 2: not among the sites asked for") == 8


def test_files_of_weights(rainbow_fast: Run, folder: Path) -> None:
    """Each spelling gives the same network; without weights it is made from the seed."""
    net = network()
    save_file(net.state_dict(), folder / "w.safetensors")
    torch.save({"model": net.state_dict()}, folder / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        arguments = [*MODEL, "--weights", name, "--data", "digits", *FEW, "--methods", "paper", "--out", f"of {name}"]
        assert rainbow_fast("sample", *arguments)[0] == 0
    first, second = (Path(f"of {name}", "results.jsonl").read_text() for name in ("w.safetensors", "w.pth"))
    assert first == second
    plain = [*MODEL, "--data", "digits", *FEW, "--methods", "paper", "--seed", 3, "--out"]
    assert rainbow_fast("sample", *plain, "a")[0] == rainbow_fast("sample", *plain, "b")[0] == 0
    assert Path("a/results.jsonl").read_text() == Path("b/results.jsonl").read_text() != first


def test_images_of_a_folder_and_arrays(rainbow_fast: Run, folder: Path) -> None:
    """The numbers of samples, shares and second sources; arrays without labels have no accuracy."""
    images(folder / "pictures")
    arguments = [*MODEL, "--grey", "--size", 8, "--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3", "--methods", "paper"]
    arguments += ["--data", "pictures", "--factors", 1, "--networks", 1]
    assert rainbow_fast("sample", *arguments, "--images", 36, "--holdout", "0.25", "--out", "out")[0] == 0
    [first, _] = read_records(Path("out/results.jsonl"))
    assert (first["data"], first["images"], first["held_out_images"]) == ("pictures", 36, 12)
    assert 0 <= first["accuracy"] <= 1
    assert rainbow_fast("sample", *arguments, "--holdout", "pictures", "--out", "out")[0] == 0
    [first, _] = read_records(Path("out/results.jsonl"))
    assert (first["images"], first["held_out_images"]) == (60, 60)
    np.save("x.npy", draw(90, 64).numpy())
    np.save("y.npy", np.arange(90) % 10)
    arguments = [*MODEL, "--methods", "paper,calibrated", "--factors", "1,2", "--networks", 2]
    code, out, _ = rainbow_fast("sample", *arguments, "--data", "x.npy", "--out", "out")
    records = read_records(Path("out/results.jsonl"))
    assert (
        code == 0
        and {r["accuracy"] for r in records} == {None}
        and "accuracy" not in Path("out/report.txt").read_text()
    )
    assert {(r["images"], r["held_out_images"]) for r in records} == {(81, 9)}
    code, out, _ = rainbow_fast(
        "plan", *arguments, "--data", "x.npy,y.npy", "--holdout", "x.npy", "--images", 50, "--json"
    )
    assert [(cost["images"], cost["held_out_images"]) for cost in json.loads(out)["costs"]] == [(50, 90)] * 4


def test_the_budget_puts_activations_into_files(rainbow_fast: Run) -> None:
    """The option changes no number, only how many networks are sampled together."""
    arguments = [*MODEL, "--data", "digits", *FEW, "--methods", "paper"]
    assert rainbow_fast("sample", *arguments, "--out", "a")[0] == 0
    code, out, _ = rainbow_fast("sample", *arguments, "--memory-budget", "10k", "--out", "b")
    assert code == 0 and "activations are kept in files" in out
    assert Path("a/results.jsonl").read_text() == Path("b/results.jsonl").read_text()
    code, out, _ = rainbow_fast("plan", *arguments, "--memory-budget", "10k")
    assert "one at a time; activations are kept in files" in out
    code, out, _ = rainbow_fast("plan", *arguments, "--storage", "recompute")
    assert "up to 4 networks of a method together; activations are computed again" in out


def test_groups_are_of_one_method_and_fit() -> None:
    class Cost:
        disk_bytes = 10

    jobs = [
        Job(rf.SampleOptions(method=m, factor=1, network_index=n)) for m in ("paper", "calibrated") for n in range(3)
    ]

    def sizes(budget: int) -> list[int]:
        return [len(group) for group in planning.groups(jobs, [Cost()] * 6, 100, budget)]

    assert sizes(10**6) == [3, 3] and sizes(0) == [1] * 6
    assert sizes(320) == [2, 1, 2, 1] and sizes(319) == [1] * 6  # 100 of the reference, 110 of each


def test_pointwise_modules_of_ones_own(rainbow_fast: Run) -> None:
    arguments = ["--module", "own.model:build", "--module-args", '{"act": "Half"}', "--data", "digits"]
    assert "Half" not in rainbow_fast("sites", *arguments)[1]
    code, out, _ = rainbow_fast("sites", *arguments, "--pointwise-modules", "own.model:Half")
    assert code == 0 and out.splitlines()[1].split() == ["2", "Half", "12", "12", "12", "yes"]
    assert (
        rainbow_fast("sample", *arguments, *FEW, "--methods", "paper", "--pointwise-modules", "own.model:Half")[0] == 0
    )
    assert {r["site"] for r in read_records(Path("rainbow-sample/results.jsonl"))} == {"2", "4"}


def test_sites_without_data_and_in_json(rainbow_fast: Run) -> None:
    code, out, _ = rainbow_fast("sites", *MODEL, "--json")
    assert code == 0 and [(s["name"], s["activation"], s["channels"]) for s in json.loads(out)] == [
        ("2", "GELU", None), ("4", "ReLU", None)
    ]  # fmt: skip


def test_compare_takes_two_files_of_weights(rainbow_fast: Run, folder: Path) -> None:
    nets = [network(seed=seed) for seed in (0, 10)]
    for name, net in zip("ab", nets, strict=True):
        torch.save(net.state_dict(), folder / f"{name}.pt")
    arguments = ["compare", "a.pt", "b.pt", *MODEL, "--data", "digits", "--images", 300]
    code, out, _ = rainbow_fast(*arguments, "--json")
    x, y, x_test, y_test = digits()
    wanted = rf.compare(*nets, (x[:300], y[:300]), holdout=(x_test, y_test))
    assert code == 0 and json.loads(out) == wanted.to_dict()
    code, out, _ = rainbow_fast(*arguments)
    assert code == 0 and wanted.table() in out and "A: a.pt\nB: b.pt\n300 samples, 360 held out" in out


def test_deep_networks_have_a_panel_and_a_table_for_all_their_sites(rainbow_fast: Run) -> None:
    arguments = ["--module", "own.model:deep", "--module-args", '{"depth": 19}', "--data", "digits", *FEW]
    code, out, _ = rainbow_fast("sample", *arguments, "--methods", "paper")
    assert code == 0 and "the first and the last of 19 sites; report.txt has them all" in out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    report = Path("rainbow-sample/report.txt").read_text().splitlines()
    assert len(report) == 4 * (1 + 2 + 3 + 1 + 19 + 2) + 2 * 3 or report.count("") > 0
    assert sum(line.split()[:1] == ["38"] for line in report) == 4  # its last site, in each of the four networks


def test_bytes_have_suffixes() -> None:
    assert [readers.memory(text) for text in ("500", "1.5k", "3M", "2G")] == [500, 1500, 3 * 10**6, 2 * 10**9]


def test_a_share_is_taken_beside_the_images_to_align_on() -> None:
    source = sources.Source(
        "some", 1000, 0, lambda: (draw(1, 3), None), lambda count, test: ((draw(count, 3), None), None)
    )
    for images, share in ((90, 0.1), (7, 0.37), (500, 0.5), (2000, 0.1)):
        split = sources.split_data(source, str(share), images, sources.Pixels())
        (x, _), holdout = split.load()
        assert (len(x) - holdout, holdout) == (split.aligned, split.held) and split.aligned == min(images, 900)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--weights", "w.pt"], "--weights: not wanted with a checkpoint, which has its own"),
        (["--module-args", "{}"], "--module-args: not wanted with a checkpoint"),
        (
            ["--module", "own.model:build"],
            "wanted one of these: a checkpoint of `rainbow-fast train`, --module, --timm",
        ),
        (["--mean", "1,1,1"], "--mean: a checkpoint, which has its own, does not take it"),
    ],
)
def test_options_of_modules_do_not_go_with_checkpoints(rainbow_fast: Run, words: list[str], message: str) -> None:
    assert rainbow_fast("train", "mlp", "--widths", "4,4", "--epochs", 1, "--out", "it")[0] == 0
    code, out, err = rainbow_fast("sample", "it", *words)
    assert (code, out) == (2, "") and err.startswith(f"Error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--module", "own.model"], "--module: wanted package.module:name, got 'own.model'"),
        (["--module", "own.nothing:build"], "--module: 'own.nothing:build' cannot be imported (ModuleNotFoundError"),
        (["--module", "own.model:nothing"], "--module: 'own.model:nothing' cannot be imported (AttributeError"),
        (["--module", "own.model:broken"], "--module: own.model:broken(width=16) raised KeyError: 'a word of its own'"),
        (["--module", "own.model:number"], "--module: own.model:number returned int, wanted a module"),
        (["--module-args", "{width"], "--module-args: '{width' is not JSON"),
        (["--module-args", "[1]"], "--module-args: wanted a JSON object, got '[1]'"),
        (["--module-args", '{"depth": 2}'], "--module: own.model:build(depth=2) raised TypeError"),
        (["--weights", "nowhere.pt"], "--weights: no file nowhere.pt"),
        (["--weights", "w.bin"], "--weights: w.bin cannot be read as a file of tensors"),
        (["--weights", "pickled.pt"], "--weights: pickled.pt cannot be read as a file of tensors"),
        (["--weights", "cut.pt"], "--weights: cut.pt cannot be read as a file of tensors"),
        (["--weights", "cut.safetensors"], "--weights: cut.safetensors is not a whole safetensors file"),
        (["--weights", "list.pt"], "--weights: list.pt holds no state dict"),
        (["--weights", "other.pt"], "--weights: other.pt does not fit the network: missing 5.bias; unexpected extra"),
        (["--weights", "wide.pt"], "1.weight has shape (20, 64), wanted (16, 64)"),
        (["--pointwise-modules", "own.model:build"], "--pointwise-modules: 'own.model:build' is function, wanted a cl"),
        (["--data", "nowhere"], "--data: 'nowhere' is no data: wanted digits, the folder of CIFAR-10 or"),
        (["--data", "own"], "--data: no sub-folder in own"),
        (["--data", "half", *CIFAR], "--data: no file half/test_batch.bin; wanted the binary version of CIFAR-10"),
        (["--data", "x.npy,nowhere.npy"], "--data: y_path: no file nowhere.npy"),
        (["--data", "x.npy"], "--data: the network does not take a sample of shape (3,)"),
        (["--holdout", "1.5"], "--holdout: wanted a share above 0 and below 1, or data; got 1.5"),
        (["--holdout", "0.001", "--images", "50"], "--holdout: a share 0.001 of 50 samples is none"),
        (["--holdout", "nowhere"], "--holdout: 'nowhere' is no data"),
        (["--size", "8"], "--size: digits does not take it"),
        (["--data", "x.npy", "--grey"], "--grey: an array does not take it"),
        (["--data", "own", "--mean", "1,2"], "--mean: wanted three finite numbers separated by commas, got '1,2'"),
        (["--data", "own", "--mean", "1,nan,1"], "--mean: wanted three finite numbers separated by commas, got"),
        (["--data", "own", "--std", "1,inf,1"], "--std: wanted three finite positive numbers separated by commas, got"),
        (["--data", "own", "--std", "1,2,0"], "--std: wanted three finite positive numbers separated by commas, got"),
        (["--memory-budget", "2X"], "--memory-budget: wanted bytes, as a number with k, M or G behind it; got '2X'"),
        (["--memory-budget", "-1"], "--memory-budget: wanted bytes"),
        (["--storage", "disk"], "storage='disk': wanted None or one of memory, file, recompute"),
        (["--rank", "0"], "--rank: wanted a whole number above 0, or marchenko_pastur; got '0'"),
        (["--rank", "marchenko_pastur"], "rank='marchenko_pastur': site '2' is not written by one bias-free linear"),
        (["--sites", "2,,4"], "--sites: wanted names separated by commas, each once; got '2,,4'"),
        (["--sites", "2,5"], "sites: '5' is not a site that can be sampled: wanted some of 2, 4"),
        (["--classifier", "new"], "classifier='new': wanted None, 'refit', 'refit_aligned' or 'retrained'"),
        (["--resume", "nowhere"], "--resume: no run of `sample` in nowhere"),
    ],
)  # fmt: skip
def test_wrong_words_cost_one_line_and_write_nothing(
    rainbow_fast: Run, folder: Path, words: list[str], message: str
) -> None:
    state = network().state_dict()
    (folder / "pickled.pt").write_bytes(pickle.dumps(network))
    (folder / "w.bin").write_bytes(b"")
    torch.save(state, folder / "w.pt")
    (folder / "cut.pt").write_bytes((folder / "w.pt").read_bytes()[:-30])
    (folder / "cut.safetensors").write_bytes(b"cut")
    torch.save([1], folder / "list.pt")
    torch.save({k: v for k, v in state.items() if k != "5.bias"} | {"extra": torch.zeros(1)}, folder / "other.pt")
    torch.save(network(width=20).state_dict(), folder / "wide.pt")
    np.save("x.npy", np.zeros((50, 3), dtype=np.float32))
    (folder / "half").mkdir()
    (folder / "half" / "data_batch_1.bin").write_bytes(bytes(10_000 * 3_073))
    before = sorted(folder.rglob("*.*"))
    code, out, err = rainbow_fast("sample", *MODEL, "--data", "digits", *words, "--out", "out")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and message in err and err.count("\n") == 1
    assert [path for path in sorted(folder.rglob("*.*")) if "__pycache__" not in path.parts] == before


def test_a_run_is_not_resumed_with_other_weights(rainbow_fast: Run, folder: Path) -> None:
    torch.save(network().state_dict(), folder / "w.pt")
    arguments = [*MODEL, "--weights", "w.pt", "--data", "digits", *FEW, "--methods", "paper", "--out", "out"]
    assert rainbow_fast("sample", *arguments)[0] == 0
    there = Path("out/results.jsonl").read_text()
    again = ["sample", "--resume", "out", *MODEL]
    assert rainbow_fast(*again)[0] == 0 and Path("out/results.jsonl").read_text() == there
    assert "--out and --resume: wanted one of the two" in rainbow_fast(*again, "--out", "out")[2]
    torch.save(network(seed=5).state_dict(), folder / "w.pt")
    code, _, err = rainbow_fast(*again)
    assert code == 2 and "--resume: the run in out has a network with other weights" in err


@pytest.mark.parametrize("a, b, message", [("a.pt", "b.pt", "A: no file a.pt"), ("w.pt", "b.pt", "B: no file b.pt")])
def test_compare_names_the_file(rainbow_fast: Run, folder: Path, a: str, b: str, message: str) -> None:
    torch.save(network().state_dict(), folder / "w.pt")
    code, _, err = rainbow_fast("compare", a, b, *MODEL, "--data", "digits")
    assert (code, err) == (2, f"Error: {message}\n")


def test_a_published_network_on_its_own_images(rainbow_fast: Run, cifar10_folder: Path) -> None:
    weights = DATA / "resnet20_cifar10" / "resnet20.pt"
    if not weights.exists():
        pytest.skip("no weights: RAINBOW_FAST_DATA names the folder that holds resnet20_cifar10/resnet20.pt")
    arguments = ["--module", "rainbow_fast.networks:resnet_cifar", "--module-args", '{"depth": 20}']
    arguments += ["--weights", weights, "--data", cifar10_folder, "--holdout", "0.3", "--images", 30]
    arguments += ["--factors", "1", "--networks", 1]
    code, _, err = rainbow_fast("sample", *arguments, "--methods", "calibrated", "--out", "out")
    assert code == 0, err
    records = read_records(Path("out/results.jsonl"))
    assert len(records) == 19 and records[0]["reference_accuracy"] > 0.7  # 0.913 of all images; of these 12 at least 9
