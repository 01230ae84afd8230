# SPDX-License-Identifier: BSD-3-Clause
"""Poisoned memory, guard zones, and the data that some tests need."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from here import DATA, threads
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._device import _device_constructors

from rainbow_fast import cli

GUARD = 64  # elements on either side: at least a cache line in any dtype


def poison(tensor: Tensor) -> Tensor:
    """Fill a tensor with a value that no kernel should leave in it: NaN, or the smallest integer."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        tensor.detach().fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.detach().fill_(torch.iinfo(tensor.dtype).min)
    return tensor


def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*args, **kwargs) -> Tensor:
        tensor = allocate(*args, **kwargs)
        traced = torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)  # a fill would be an op of the graph
        return tensor if traced else poison(tensor)

    return allocate_poisoned


_device_constructors()  # torch remembers the functions that `with torch.device(...)` acts on: those before poisoning

# Made once, so that a function compiled in one test is not compiled again in the next.
POISONED = [
    (owner, name, poisoned(getattr(owner, name)))
    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ]
]


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised tensors are full of NaN, so that a kernel that forgets an entry is found."""
    if "unpoisoned" not in request.keywords:
        for owner, name, replacement in POISONED:
            monkeypatch.setattr(owner, name, replacement)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread is enough for small data, and faster if other programs run at the same time."""
    with threads(1):
        yield


@pytest.fixture
def guarded() -> Iterator[Callable[..., Tensor]]:
    """``guarded(*shape, dtype=...)``: a poisoned tensor inside a larger one, whose rim must be unchanged at the end."""
    allocated = []

    def allocate(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        whole = torch.full((torch.Size(shape).numel() + 2 * GUARD,), 7, dtype=dtype)
        allocated.append(whole)
        return poison(whole[GUARD:-GUARD]).view(shape)

    yield allocate
    for whole in allocated:
        assert (whole[:GUARD] == 7).all() and (whole[-GUARD:] == 7).all(), "written outside of the output"


@pytest.fixture(scope="session")
def list_of_fonts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A list of fonts of matplotlib for this session. Commands print warnings if the list of the user is broken."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True, stderr=subprocess.DEVNULL)
        yield


@pytest.fixture(scope="module")
def finished(list_of_fonts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and "run", the results of a network that `rainbow-fast` sampled from it."""
    from runs import finished_run  # needs the packages of the command line

    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a finished run; it is called "run" in the current folder, where its checkpoint is as well."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "here"))
    with threads(1):
        yield tmp_path / "here" / "run"


@pytest.fixture
def rainbow_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`rainbow_fast("sample", ...)` runs the command in this process and returns its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rainbow-fast", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 in its published binary version: the folder ``cifar-10-batches-bin``."""
    unpack = DATA / "cifar10" / "unpack.py"
    if not unpack.exists():
        pytest.skip("no CIFAR-10: RAINBOW_FAST_DATA names the folder that holds cifar10/unpack.py")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, unpack, folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "cifar-10-batches-bin"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
