# SPDX-License-Identifier: BSD-3-Clause
"""What the machine of a table is: its CPU and caches, the instructions that torch and ours use, and its load."""

import os
import platform
from pathlib import Path

import torch

from rainbow_fast import backend

INFORMATION = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cpu(information: Path = INFORMATION) -> str:
    """The model's name, as lscpu gives it."""
    text = information.read_text() if information.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _threads(text: str) -> int:
    """How many processors a list such as "0-3,8" names."""
    ends = [part.split("-") for part in text.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def caches(folder: Path = CACHES) -> str:
    """The data caches of the first processor: level, size, and how many processors share it.

    "caches unknown" if Linux does not say them. `folder` has a folder `index*` for each cache, with the files `level`,
    `type`, `size` and `shared_cpu_list`. A cache without a size in KiB is left out.
    """
    named = []
    for index in sorted(folder.glob("index*")):
        texts = {path.name: path.read_text().strip() for path in index.iterdir() if path.is_file()}
        if texts.get("type") == "Instruction" or not texts.get("size", "").endswith("K") or "level" not in texts:
            continue
        sharing, kib = _threads(texts.get("shared_cpu_list", "0")), int(texts["size"][:-1])
        whose = f"shared by {sharing} processors" if sharing > 1 else "per processor"
        named.append(f"L{texts['level']} {f'{kib // 1024} MiB' if kib >= 1024 else f'{kib} KiB'} {whose}")
    return ", ".join(named) or "caches unknown"


def machine(information: Path = INFORMATION, folder: Path = CACHES) -> str:
    """One line: CPU, cores, caches, GPU, load of the last minute, version of torch, levels of instructions.

    The level of torch is the one that it reports for its own kernels. The products in its libraries may use another.
    """
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    load = [f"load {os.getloadavg()[0]:.1f}"] if hasattr(os, "getloadavg") else []
    versions = f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), kernels {backend.isa}"
    return "; ".join([f"{cpu(information)}, {os.cpu_count()} cores", caches(folder), *gpu, *load, versions])
