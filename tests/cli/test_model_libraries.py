# SPDX-License-Identifier: BSD-3-Clause
"""Networks of timm and torchvision by name, with packages of these names that stand in for them.

The real ones are not installed for tests. What `Framing` does is compared with their transforms in tests/data.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from here import draw, fresh_python
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

import rainbow_fast as rf
from rainbow_fast.cli import model_libraries
from rainbow_fast.cli.model_libraries import Preprocessing, Timm, Torchvision
from rainbow_fast.cli.sources import Pixels
from rainbow_fast.data import image_folder
from rainbow_fast.data.image_file import Framing
from rainbow_fast.io import read_records

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]
TIMM = """
from torch import nn

def list_models():
    return ["plain", "plain_large", "squash", "border", "wide"]

def is_model(name):
    return name.partition(".")[0] in list_models()

def create_model(name, pretrained, checkpoint_path=None, width=4):
    assert not pretrained and checkpoint_path is None
    middle = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*middle, nn.Linear(width, 3))
    network.kind = name.partition(".")[0]
    return network
"""
TIMM_DATA = """
def resolve_model_data_config(network):
    size = (3, 6, 9) if network.kind == "wide" else (3, 6, 6)
    mode = network.kind if network.kind in ("squash", "border") else "center"
    of_colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return {"input_size": size, "crop_mode": mode, "crop_pct": 0.7, "interpolation": "bicubic"} | of_colours
"""
TORCHVISION = """
import enum
from types import SimpleNamespace
from torch import nn

def plain(*, weights="DEFAULT", width=4):
    assert weights is None
    middle = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*middle, nn.Linear(width, 3))

def pixelwise(*, weights="DEFAULT", weights_backbone="DEFAULT"):
    assert weights is weights_backbone is None
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))

def boxes(*, weights="DEFAULT"):
    return pixelwise(weights=weights, weights_backbone=None)

BUILDERS = {"plain": plain, "pixelwise": pixelwise, "boxes": boxes}
list_models, get_model_builder = lambda: list(BUILDERS), BUILDERS.__getitem__

class Interpolation(enum.Enum):
    BILINEAR = "bilinear"

def get_model_weights(name):
    own = {"crop_size": [6], "resize_size": [8], "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    own |= {"interpolation": Interpolation.BILINEAR}
    if name == "pixelwise":
        own |= {"resize_size": [8]}
        del own["crop_size"]
    own = {} if name == "boxes" else own
    return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(**own)))
"""
WITHOUT_OPERATORS = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""
OWN = {
    "--timm": {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "size": 6, "resize": 8, "interpolation": "bicubic"},
    "--torchvision": {"mean": (0.1, 0.2, 0.3), "std": (1, 2, 3), "size": 6, "resize": 8, "interpolation": "bilinear"},
}  # fmt: skip
FEW = ["--images", 20, "--factors", "1,2", "--networks", 1, "--methods", "paper", "--threads", 1]


def remove_modules() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with images of several sizes; the packages are installed elsewhere."""
    for name, files in {
        "timm": {"__init__": TIMM, "data": TIMM_DATA},
        "torchvision": {"__init__": "from torchvision import models\n", "models": TORCHVISION},
    }.items():
        (tmp_path / "installed" / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "installed" / name / f"{file}.py").write_text(text)
    image = pytest.importorskip("PIL.Image")
    for number in range(24):
        path = tmp_path / "here" / "pictures" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = 9 + number % 4, 11 - number % 3, 3
        image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)).save(path)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("timm", "torchvision")}
    remove_modules()
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    remove_modules()
    sys.modules.update(before)


def network(seed: int = 0) -> nn.Sequential:
    """That of both libraries, with weights of its own."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.load_state_dict({k: draw(*v.shape, seed=seed + i) / 4 for i, (k, v) in enumerate(net.state_dict().items())})
    return net.eval()


@pytest.mark.parametrize("option", OWN)
def test_a_network_of_a_library_is_sampled_as_in_python(rainbow_fast: Run, folder: Path, option: str) -> None:
    """With the weights of a file, and images as its library reads them."""
    torch.save(network().state_dict(), folder / "w.pt")
    words = [option, "plain", "--weights", "w.pt", "--data", "pictures", "--holdout", "0.25", *FEW, "--out", "out"]
    code, out, err = rainbow_fast("sample", *words)
    assert (code, err) == (0, "") and f"{option[2:]}:plain, w.pt" in out
    model = rf.fit(network(), image_folder("pictures", **OWN[option]), holdout=6)
    wanted = [model.sample(method="paper", factor=factor)[1].to_dict() | {"storage": ""} for factor in (1, 2)]
    report = json.loads(Path("out/report.json").read_text())
    assert [each["report"] | {"storage": ""} for each in report["networks"]] == json.loads(json.dumps(wanted))
    assert {r["architecture"] for r in read_records(Path("out/results.jsonl"))} == {f"{option[2:]}:plain"}


@pytest.mark.parametrize("option", OWN)
def test_other_commands_take_them(rainbow_fast: Run, folder: Path, option: str) -> None:
    code, out, _ = rainbow_fast("sites", option, "plain", "--data", "pictures", "--module-args", '{"width": 5}')
    assert code == 0 and out.splitlines()[1].split() == ["1", "ReLU", "5", "5x4x4", "5x4x4", "yes"]
    assert rainbow_fast("plan", option, "plain", "--data", "pictures", *FEW)[0] == 0
    for seed, name in ((0, "a.pt"), (9, "b.pt")):
        torch.save(network(seed).state_dict(), folder / name)
    words = ["compare", "a.pt", "b.pt", option, "plain", "--data", "pictures", "--holdout", "0.25", "--json"]
    code, out, _ = rainbow_fast(*words)
    wanted = rf.compare(network(), network(9), image_folder("pictures", **OWN[option]), holdout=6)
    assert code == 0 and json.loads(out) == wanted.to_dict()


def test_without_weights_they_are_made_from_the_seed(rainbow_fast: Run) -> None:
    words = ["sample", "--timm", "plain.a_tag", "--data", "pictures", *FEW]
    for seed, out in ((3, "a"), (3, "b"), (4, "c")):
        assert rainbow_fast(*words, "--seed", seed, "--out", out)[0] == 0
    prints = [json.loads(Path(out, "report.json").read_text())["run"]["reference"] for out in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_a_run_goes_on_without_its_name_typed_again(rainbow_fast: Run, folder: Path) -> None:
    """A name of a list of an installed library is not code of the user. Names outside of the list are refused."""
    assert rainbow_fast("sample", "--timm", "plain", "--data", "pictures", *FEW, "--out", "out")[0] == 0
    whole = Path("out/results.jsonl").read_text()
    Path("out/results.jsonl").unlink()
    code, _, err = rainbow_fast("sample", "--resume", "out")
    assert (code, err) == (0, "") and Path("out/results.jsonl").read_text() == whole
    code, _, err = rainbow_fast("sample", "--resume", "out", "--timm", "plain_large")
    assert (code, err) == (2, "Error: --timm: the run in out has 'plain', got 'plain_large'\n")
    report = json.loads(Path("out/report.json").read_text())
    for options, message in (
        ({"timm": "hf_hub:some/net"}, "--timm: timm has no network 'hf_hub:some/net', "),
        ({"timm": ["plain"]}, "timm=['plain']: wanted text"),
        ({"torchvision": "plain"}, "wanted one of these: a checkpoint"),
    ):
        changed = report | {"run": report["run"] | {"options": report["run"]["options"] | options}}
        Path("out/report.json").write_text(json.dumps(changed))
        code, _, err = rainbow_fast("sample", "--resume", "out")
        assert code == 2 and err.startswith(f"Error: --resume: out/report.json: {message}")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "wanted one of these: a checkpoint of `rainbow-fast train`, --module, --timm or --torchvision; got none"),
        (["--timm", "plain", "--torchvision", "plain"], "--timm or --torchvision; got --timm and --torchvision"),
        (["--timm", "plain", "--module", "a:b"], "--timm or --torchvision; got --module and --timm"),
        (["it.safetensors", "--timm", "plain"], "--timm or --torchvision; got --timm and a checkpoint"),
        (["--timm", "plian"], "--timm: timm has no network 'plian', did you mean plain"),
        (["--timm", "hf_hub:some/network"], "--timm: timm has no network 'hf_hub:some/network', wanted one of timm's"),
        (["--torchvision", "Plain"], "--torchvision: torchvision has no network 'Plain', did you mean plain?"),
        (["--torchvision", "zzz"], "--torchvision: torchvision has no network 'zzz', wanted one of torchvision's l"),
        (["--timm", "plain", "--module-args", '{"pretrained": true}'], "--timm: plain(pretrained=True) raised TypeEr"),
        (["--timm", "plain", "--module-args", '{"checkpoint_path": "w.pt"}'], "multiple values for keyword argument"),
        (["--torchvision", "plain", "--module-args", '{"weights": "DEFAULT"}'], "multiple values for keyword argument"),
        (["--torchvision", "pixelwise", "--module-args", '{"weights_backbone": "DEFAULT"}'], "multiple values for key"),
        (["--timm", "plain", "--weights", "w.pt"], "--weights: no file w.pt"),
        (["--timm", "wide"], "--size: wanted, timm:wide (3 x 6 x 9, bicubic, crop mode center) has none that applies"),
        (["--timm", "border"], "--size: wanted, timm:border (3 x 6 x 6, bicubic, crop mode border) has none"),
        (["--torchvision", "pixelwise"], "--size: wanted, torchvision:pixelwise (SimpleNamespace) has none that"),
        (["--torchvision", "boxes", "--size", 6], "--mean: wanted, torchvision:boxes (SimpleNamespace) has none that"),
    ],
)  # fmt: skip
def test_messages_name_the_option(rainbow_fast: Run, words: list[str], message: str) -> None:
    code, out, err = rainbow_fast("sample", *words, "--data", "pictures")
    assert (code, out) == (2, "") and err.startswith("Error: ") and message in err and err.count("\n") == 1


def test_two_origins_of_a_pair_are_refused(rainbow_fast: Run) -> None:
    code, _, err = rainbow_fast("compare", "a.pt", "b.pt", "--timm", "plain", "--module", "a:b", "--data", "pictures")
    assert (code, err) == (2, "Error: --module and --timm: wanted one of them\n")


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_libraries_that_are_missing_or_broken_are_named(
    rainbow_fast: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder.parent / "installed" / name / "__init__.py").write_text("raise AttributeError('of another torch')\n")
    code, _, err = rainbow_fast("sites", f"--{name}", "plain")
    assert code == 2
    assert err == f"Error: --{name}: {name} cannot be imported (AttributeError: of another torch)\n"
    monkeypatch.setattr(model_libraries, "find_spec", lambda _: None)
    code, _, err = rainbow_fast("sites", f"--{name}", "plain")
    assert (code, err) == (2, f"Error: --{name}: needs {name}, which is not installed: pip install {name}\n")


def test_options_replace_what_the_library_does() -> None:
    """A size replaces all that it does to sizes; arrays and digits take none of it, CIFAR-10 only its numbers."""
    own = Preprocessing("it", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), Framing(6, (8, 8), "bicubic"))
    folder, numbers = ("size", "mean", "std", "grey"), {"mean": own.mean, "std": own.std, "grey": False}
    assert Pixels(own=own).of("", *folder) == numbers | {"size": 6, "resize": (8, 8), "interpolation": "bicubic"}
    assert Pixels(size=4, own=own).of("", *folder) == numbers | {"size": 4}
    replaced = Pixels(mean="0,0,0", std="1,1,1", own=own).of("CIFAR-10", *folder[1:])
    assert replaced == {"mean": (0, 0, 0), "std": (1, 1, 1), "grey": False}
    assert Pixels(own=own).of("CIFAR-10", *folder[1:]) == numbers and Pixels(own=own).of("digits") == {}


def test_what_a_library_says_of_images() -> None:
    assert [Timm(name).preprocessing(Timm(name).factory()()).framing for name in ("plain", "squash", "border")] == [
        Framing(6, 8, "bicubic"), Framing(6, (8, 8), "bicubic"), None
    ]  # fmt: skip
    said = [Torchvision(name).preprocessing(network()) for name in ("plain", "pixelwise", "boxes")]
    assert [each.framing for each in said] == [Framing(6, 8, "bilinear"), None, None]
    assert [each.mean for each in said] == [(0.1, 0.2, 0.3), (0.1, 0.2, 0.3), None]


def test_torchvision_is_imported_beside_a_torch_without_its_operators(folder: Path) -> None:
    """In processes of their own, in which they are declared. timm imports torchvision, too."""
    installed = folder.parent / "installed"
    for library in ("torchvision", "timm"):
        with open(installed / library / "__init__.py", "r+") as file:
            text = file.read()
            file.seek(0)
            file.write(WITHOUT_OPERATORS + text)
    code = f"""
import os, sys
sys.path.insert(0, {str(installed)!r})
from rainbow_fast.cli.model_libraries import *
for kind in (Timm, Torchvision):
    if os.fork() == 0:
        print(type(kind("plain").factory()()).__name__, flush=True)
        break
    os.wait()
"""
    assert fresh_python(code, OMP_NUM_THREADS="1").split() == ["Sequential", "Sequential"]
