# SPDX-License-Identifier: BSD-3-Clause
"""The memory that `rainbow-fast plan` says, against what `rainbow-fast sample` takes; only what is used is read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from here import fresh_python
from memory import without_kept

from rainbow_fast.cli.sources import Pixels, open_source, split_data
from rainbow_fast.data import cifar10

RUN = """
import atexit
from memory import status
from rainbow_fast.cli import main
import rainbow_fast.cli.app

before = status("VmRSS")
atexit.register(lambda: print(status("VmHWM") - before))
main()
"""
NETWORK = ["--module", "rainbow_fast.networks:cnn", "--module-args", '{"channels": [3, 32, 64]}', "--threads", "1"]


def command(folder: Path, *words: str) -> tuple[str, int]:
    """The output of a command in a process of its own, and the bytes that it grew by."""
    *printed, grown = fresh_python(RUN, *words, folder=folder, MALLOC_MMAP_THRESHOLD_=str(2**20)).splitlines()
    return "\n".join(printed), int(grown)


def write_records(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        np.random.default_rng(seed).integers(0, 10, (10_000, 3_073), dtype=np.uint8).tofile(folder / name)


@pytest.mark.parametrize(
    "holdout, files",
    [
        (None, ["data_batch_1.bin", "test_batch.bin"]),
        ("0.1", ["data_batch_1.bin"]),
        ("other", ["data_batch_1.bin"]),
    ],
)
def test_only_the_images_that_are_used_are_read(tmp_path, monkeypatch, holdout, files):
    """The files of the others are missing. What is read takes the memory that is planned."""
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "own", *files)
    write_records(tmp_path / "other", "test_batch.bin")
    (tmp_path / "other" / "data_batch_1.bin").touch()
    split = split_data(open_source("--data", "own", Pixels()), holdout, 300, Pixels())
    (x, y), held = split.load()
    count = 300 if holdout != "0.1" else 300 + split.held
    wanted = cifar10("own", images=count, test_images=0)
    assert torch.equal(x, wanted.x_train) and torch.equal(y, wanted.y_train)
    parts = [x, y]
    if holdout != "0.1":
        of_test = cifar10("own" if holdout is None else "other", images=0)
        assert torch.equal(held[0], of_test.x_test) and torch.equal(held[1], of_test.y_test)
        parts += held
    assert split.memory(None) == split.memory(10) == sum(part.untyped_storage().nbytes() for part in parts)


def test_samples_beyond_the_budget_lie_in_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((100, 8), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(100, np.int64))
    for words, budget, bytes_ in (("x.npy", None, 3200), ("x.npy", 3199, 0), ("x.npy,{}/y.npy", 3199, 800)):
        data = f"{tmp_path}/{words.format(tmp_path)}"
        assert split_data(open_source("--data", data, Pixels()), "0.5", 100, Pixels()).memory(budget) == bytes_


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("networks", [1, 3])
def test_plan_says_what_sample_takes(tmp_path, networks):
    """Of 60,000 images of CIFAR-10, 2,000 are aligned on. `plan` itself takes what the libraries do.

    Within 15 %. Every block of a megabyte is a separate mapping, so that nothing that is freed is kept.
    """
    pytest.importorskip("matplotlib")
    write_records(tmp_path, *(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
    words = [*NETWORK, "--data", ".", "--images", "2000", "--methods", "paper", "--networks", str(networks)]
    planned, of_libraries = command(tmp_path, "plan", *words, "--factors", "2", "--json")
    _, taken = command(tmp_path, "sample", *words, "--factors", "2", "--out", "out")
    peak, taken = json.loads(planned)["peak_bytes"], taken - of_libraries
    assert 0.85 < without_kept(peak) / taken < 1.15, (peak, taken)
