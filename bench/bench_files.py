# SPDX-License-Identifier: BSD-3-Clause
"""Files of tensors in memory (/dev/shm): read and written with checksums, against the safetensors library without.

"plain torch" is `torch.save` or `torch.load`; the best plain torch maps the file and copies. The library does less than
the job, and is no rival. The error is 0 if all bits are those that were written, else 1.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, entries
from safetensors.torch import load_file, save_file
from torch import Tensor

from rainbow_fast import tensor_files

LIBRARY = "safetensors, no checksums"
TENSORS, SIZE = 8, 2**22  # tensors in a file, numbers in a tensor


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"t{i}": torch.randn(SIZE, generator=generator) for i in range(TENSORS)}


def read(path: Path) -> dict[str, Tensor]:
    with tensor_files.opened(path) as file:
        return file.tensors()


def files(direction: str) -> Race:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    atexit.register(shutil.rmtree, folder)
    values = tensors()
    paths = {name: folder / name for name in ("ours", "library", "torch")}
    writers: dict[str, Callable[[], object]] = {
        "ours": lambda: tensor_files.write(paths["ours"], values, {}),
        "library": lambda: save_file(values, paths["library"]),
        "torch": lambda: torch.save(values, paths["torch"]),
    }
    readers: dict[str, Callable[[], dict[str, Tensor]]] = {
        "ours": lambda: read(paths["ours"]),
        "library": lambda: {name: t.clone() for name, t in load_file(paths["library"]).items()},
        "torch": lambda: torch.load(paths["torch"], weights_only=True),
        "mapped": lambda: {
            name: t.clone() for name, t in torch.load(paths["torch"], weights_only=True, mmap=True).items()
        },
    }
    for write in writers.values():
        write()

    def candidate(name: str) -> Candidate:
        def error(got: object) -> float:
            there = got if isinstance(got, dict) else readers[name]()
            return float(not all(torch.equal(there[key], t) for key, t in values.items()))

        return Candidate((readers if direction == "read" else writers)[name], error, part=name == "library")

    candidates = {OURS: candidate("ours"), PLAIN: candidate("torch"), LIBRARY: candidate("library")}
    if direction == "read":
        candidates[BEST] = candidate("mapped")
    return Race(
        f"files: {direction} {4 * TENSORS * SIZE / 1e6:.0f} MB",
        candidates,
        Floor(bytes=2 * 4 * TENSORS * SIZE),
        threads=1,
    )


bench_reading = entries(files, [("read",)], (OURS, PLAIN, BEST, LIBRARY))
bench_writing = entries(files, [("write",)], (OURS, PLAIN, LIBRARY))
