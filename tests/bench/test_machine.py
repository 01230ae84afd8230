# SPDX-License-Identifier: BSD-3-Clause
"""The head of a table: CPU, caches, instructions."""

from pathlib import Path

import torch
from machine import caches, cpu, machine

from rainbow_fast import backend

CACHES = [  # level, type, size, processors
    ("1", "Data", "48K", "0"),
    ("1", "Instruction", "32K", "0"),
    ("2", "Unified", "1024K", "0,32"),
    ("3", "Unified", "32768K", "0-7,32-39"),
]


def written(folder: Path) -> tuple[Path, Path]:
    for number, values in enumerate(CACHES):
        index = folder / f"index{number}"
        index.mkdir(parents=True)
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
            (index / name).write_text(value + "\n")
    information = folder / "cpuinfo"
    information.write_text("processor\t: 0\nmodel name\t: A CPU\nprocessor\t: 1\nmodel name\t: Another\n")
    return information, folder


def test_caches_name_size_and_sharing(tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    assert (
        caches(folder) == "L1 48 KiB per processor, L2 1 MiB shared by 2 processors, L3 32 MiB shared by 16 processors"
    )


def test_caches_without_a_size_are_left_out(tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    (folder / "index0" / "size").unlink()
    (folder / "index2" / "shared_cpu_list").unlink()
    assert caches(folder) == "L2 1 MiB per processor, L3 32 MiB shared by 16 processors"


def test_head_names_cpu_caches_and_instructions(tmp_path: Path) -> None:
    head = machine(*written(tmp_path))
    assert head.startswith("A CPU, ") and "L3 32 MiB" in head
    assert f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), kernels {backend.isa}" in head


def test_head_without_files_of_linux(tmp_path: Path) -> None:
    assert cpu(tmp_path / "none") in machine(tmp_path / "none", tmp_path / "none")
    assert caches(tmp_path / "none") == "caches unknown"
