# SPDX-License-Identifier: BSD-3-Clause
"""A run that is stopped, even by kill -9, and resumed ends with the bits of a run that was never stopped."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import Residual, build
from damage import resealed
from here import ROOT, threads
from stopping import Stop, stop_at
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast import backend
from rainbow_fast.rainbow.sampling.checkpoint import SITE

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]

CHUNK = 50  # of 90 and of 10 images: three chunks
NETWORKS = [
    {"factor": 2, "method": "calibrated", "classifier": "refit"},
    {"rank": 3, "accuracy_profile": True, "sites": ["relu_1", "relu_3"], "classifier": "refit_aligned", "seed": 1},
    {"width": 5, "law": "bootstrap", "smoothing": 0.5},
]
SITES = 4 + 2 + 4


def data(N: int = 100) -> tuple[Tensor, Tensor]:
    x = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(N) % 10


def model(**options) -> rf.RainbowModel:
    return rf.fit(build(Residual), data(), **({"batch_size": CHUNK} | options))


def same(a: list, b: list) -> bool:
    return all(
        list(one.state_dict()) == list(other.state_dict())
        and all(torch.equal(v, w) for v, w in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
        and report.to_dict() == other_report.to_dict()
        for (one, report), (other, other_report) in zip(a, b, strict=True)
    )


CHILD = """
import os, signal, sys, torch
sys.path[:0] = ["tests", "tests/helpers", "tests/rainbow/sampling"]
from test_resume import NETWORKS, model
torch.set_num_threads(1)
folder, at, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def progress(done, total, what):
    if done == at and how == "itself":
        os.kill(os.getpid(), signal.SIGKILL)
    if done == at:
        print("ready", flush=True)
        sys.stdin.read()  # until it is killed

where = {"storage": "file", "scratch_dir": os.path.dirname(folder), "resume_dir": folder}
made = model().sample_many(NETWORKS, progress=progress, **where)
torch.save([network.state_dict() for network, _ in made], sys.argv[4])
print([report.to_json() for _, report in made])
"""


def child(folder: Path, at: int, how: str) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), str(at), how, str(folder.parent / "made.pt")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


@pytest.mark.slow
def test_killed_again_and_again_and_resumed(tmp_path):
    """Stopped at the first tick, in the second pass of the fifth site, and from outside at the last site. The last
    child ends with the same result as this process in one go."""
    folder, total = tmp_path / "run", SITES * 5  # two passes over two chunks, one over the held-out data
    finished = []
    for at, how in ((1, "itself"), (23, "itself"), (total - 1, "outside")):
        process = child(folder, at, how)
        if how == "outside":
            assert process.stdout.readline() == "ready\n"
            process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        finished.append(len(list(folder.glob("network-*"))))
    assert finished == [0, 4, SITES - 1]
    last = child(folder, -1, "never")
    printed, _ = last.communicate()
    assert last.returncode == 0
    whole = model().sample_many(NETWORKS, storage="file")
    for (network, _), state in zip(whole, torch.load(tmp_path / "made.pt"), strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert printed.strip() == str([report.to_json() for _, report in whole])


def test_stopped_anywhere(tmp_path):
    """Stopped at many ticks, each time from the beginning. The accuracy profile and refit classifiers are the same."""
    fitted = model()
    whole = fitted.sample_many(NETWORKS[:2])
    for at in range(1, 6 * 5 + 1, 4):
        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            fitted.sample_many(NETWORKS[:2], resume_dir=folder, progress=stop_at(at))
        assert len(list(folder.glob("network-*"))) == (at - 1) // 5
        assert same(fitted.sample_many(NETWORKS[:2], resume_dir=folder), whole)


@pytest.mark.parametrize("storage", ["memory", "recompute"])
@pytest.mark.parametrize("storage_dtype", [None, torch.bfloat16], ids=str)
def test_a_finished_run_is_read(tmp_path, storage, storage_dtype):
    """The same if activations are rounded or computed again, for which the sites that were read are needed."""
    fitted, ticks = model(), []
    options = dict(storage=storage, storage_dtype=storage_dtype)
    whole = fitted.sample_many(NETWORKS, resume_dir=tmp_path, **options)
    assert same(whole, fitted.sample_many(NETWORKS, **options))
    for path in tmp_path.glob("network-*-site-[13].safetensors"):
        path.unlink()
    again = fitted.sample_many(NETWORKS, resume_dir=tmp_path, progress=lambda *tick: ticks.append(tick), **options)
    assert same(again, whole)
    assert [done for done, _, _ in ticks] == list(range(1, SITES * 5 + 1)) and ticks[0][1] == SITES * 5
    assert sum("read" in what for _, _, what in ticks) == 4 * 5


def test_one_sample_resumes_as_well(tmp_path):
    x, y = data()
    network, report = rf.sample(build(Residual), (x, y), factor=2, batch_size=CHUNK, resume_dir=tmp_path / "run")
    assert same(
        [(network, report)],
        [rf.sample(build(Residual), (x, y), factor=2, batch_size=CHUNK, resume_dir=str(tmp_path / "run"))],
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder in which a run has been stopped after its first site. Tests write only to copies of it."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Stop), threads(1):
        model().sample(factor=2, resume_dir=folder, progress=stop_at(9))
    return folder


def other_weights() -> rf.RainbowModel:
    net = build(Residual)
    nn.init.zeros_(net.fc2.bias)
    return rf.fit(net, data(), batch_size=CHUNK)


def other_code() -> rf.RainbowModel:
    net = build(Residual)
    net.bn1.eps = 1e-3
    return rf.fit(net, data(), batch_size=CHUNK)


def other_data(which: int, at: int) -> rf.RainbowModel:
    """Another number in the images or labels, of the first sample, which is aligned on, or of a held-out one."""
    samples, split = data(), model().prepared
    held = split.held.index
    assert held is not None
    samples[which][int(held[at]) if at < 0 else at] += 1
    samples[1].remainder_(10)
    return rf.fit(build(Residual), samples, batch_size=CHUNK)


@pytest.mark.parametrize(
    "make, options, message",
    [
        (
            other_weights,
            {},
            r"differs in weights of the reference \(SHA-256 \w{12}... there, SHA-256 \w{12}... here\)$",
        ),
        (other_code, {}, "differs in code of the reference .*; moments"),
        (lambda: other_data(0, 0), {}, "differs in moments .*; activity .*; data"),
        (lambda: other_data(0, -1), {}, r"differs in held-out data \("),
        (lambda: other_data(1, 0), {}, r"differs in labels \("),
        (lambda: other_data(1, -1), {}, r"differs in held-out labels \("),
        (lambda: model(max_samples=1000), {}, r"differs in moments .*; max_samples \(400000 there, 1000 here\)"),
        (model, {"factor": 3}, r"differs in widths of network 0 \({'relu': 12, .*} there, {'relu': 18, .*} here\)"),
        (model, {"factor": 2, "seed": 1}, r"differs in seed of network 0 \(0 there, 1 here\)$"),
        (model, {"factor": 2, "rank": 3}, r"differs in rank of network 0 \(.*\); directions of network 0"),
        (model, {"factor": 2, "scale": "optimal"}, r"differs in scale of network 0 \('sqrt' there, 'optimal' here\)$"),
        (model, {"factor": 2, "method": "calibrated"}, "differs in method of network 0 .*; and 4 more$"),
        (model, {"factor": 2, "classifier": "refit"}, r"differs in classifier of network 0 \(None there, 'refit' here"),
        (model, {"factor": 2, "storage_dtype": torch.bfloat16}, r"differs in storage_dtype \('None' there, 'torch.bfl"),
    ],
    ids=lambda value: value[12:32] if isinstance(value, str) else "",
)
def test_another_run_is_refused_by_what_differs(begun, make, options, message):
    fitted = make()
    with pytest.raises(ValueError, match=f"resume_dir: {begun} holds another run: it {message}"):
        fitted.sample(resume_dir=begun, progress=never, **({"factor": 2} | options))


def never(*_) -> None:
    pytest.fail("computed before it was refused")


def test_another_machine_is_refused_by_what_differs(begun, tmp_path, monkeypatch):
    fitted = model()
    with pytest.raises(ValueError, match=r"it differs in networks \(1 there, 2 here\)"):
        fitted.sample_many([{"factor": 2}] * 2, resume_dir=begun)
    with threads(2), pytest.raises(ValueError, match=r"it differs in threads \(1 there, 2 here\)$"):
        fitted.sample(factor=2, resume_dir=begun)
    for owner, name, value, message in (
        (backend, "isa", "sse", rf"it differs in instruction set \({backend.isa!r} there, 'sse' here\)$"),
        (torch, "__version__", "2.99.0", rf"it differs in torch \('{torch.__version__}' there, '2.99.0' here\)$"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message.replace("+", r"\+")):
            patch.setattr(owner, name, value)
            fitted.sample(factor=2, resume_dir=begun, progress=never)
    folder = shutil.copytree(begun, tmp_path / "run")
    assert same([fitted.sample(factor=2)], [fitted.sample(factor=2, resume_dir=folder)])


def test_folders_that_are_refused(begun, tmp_path):
    fitted = model()

    def refused(folder: Path, message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            fitted.sample(factor=2, resume_dir=folder, progress=never)

    refused(tmp_path / "missing" / "run", "resume_dir: no folder .*missing to make 'run' in", FileNotFoundError)
    (tmp_path / "notes.txt").write_text("mine")
    refused(tmp_path / "notes.txt", "resume_dir: .*notes.txt is no folder")
    refused(tmp_path, "resume_dir: .* holds no sampling run but 'notes.txt': wanted a new or empty folder")
    (tmp_path / "notes.txt").unlink()

    head = tmp_path / "run.safetensors"
    whole = (begun / "run.safetensors").read_bytes()
    for data, message in (
        (whole[:-1], "run.safetensors is not a whole safetensors file"),
        (whole.replace(b'"version":"2"', b'"version":"3"'), "run.safetensors has version 3, this package .* up to 2"),
        (
            whole.replace(b"rainbow_fast.run", b"rainbow_fast.ran"),
            "run.safetensors holds no sampling run: its format is",
        ),
    ):
        head.write_bytes(data)
        refused(tmp_path, f"resume_dir: .*{message}")
    head.unlink()

    def twice(*_) -> None:
        refused(tmp_path, "resume_dir: .* is in use by another run")
        raise Stop

    with pytest.raises(Stop):
        fitted.sample(factor=2, resume_dir=tmp_path, progress=twice)


def test_site_files_that_are_refused(begun, tmp_path):
    fitted = model()
    folder = shutil.copytree(begun, tmp_path / "run")
    path = folder / "network-0-site-0.safetensors"
    whole = path.read_bytes()

    def refused(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"resume_dir: .*network-0-site-0.safetensors {message}"):
            fitted.sample(factor=2, resume_dir=folder)

    refused(whole[:-1], "is not a whole safetensors file")
    refused(whole.replace(b'"version":"4"', b'"version":"5"'), "has version 5, this package reads versions up to 4")
    refused(whole.replace(b"rainbow_fast.site", b"rainbow_fast.sate"), "holds no sampled site: its format is")
    refused(whole.replace(b"similarity", b"similarita"), "is damaged")
    fitted.sample(factor=2, seed=1, resume_dir=tmp_path / "other")
    refused((tmp_path / "other" / path.name).read_bytes(), "belongs to another run, network or site")
    refused((tmp_path / "other" / "run.safetensors").read_bytes(), "holds no sampled site")
    path.write_bytes(whole)
    resealed(path, SITE, text="{}")
    refused(path.read_bytes(), "is damaged: its header cannot be read")
    path.write_bytes(whole)
    resealed(path, SITE, lambda header: header | {"report": header["report"] | {"n": "many"}})
    refused(path.read_bytes(), "is damaged .a site's report: Expected `int . float`, got `str`")


def test_what_a_killed_process_left_half_written_is_removed(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    (folder / ".network-0-site-1.safetensors.1.part").write_bytes(b"half")
    fitted = model()
    assert same([fitted.sample(factor=2, resume_dir=folder)], [fitted.sample(factor=2)])
    assert not list(folder.glob(".*"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".run.safetensors.1.part").write_bytes(b"half")
    assert same([fitted.sample(factor=2, resume_dir=tmp_path / "new")], [fitted.sample(factor=2)])


def test_a_write_that_fails_leaves_what_was_there(begun, tmp_path, monkeypatch):
    folder = shutil.copytree(begun, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "fsync", full)
        model().sample(factor=2, resume_dir=folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
