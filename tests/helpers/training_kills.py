# SPDX-License-Identifier: BSD-3-Clause
"""Kills a run of `rainbow-fast train` before each of its file operations, lets it go on, and compares the files.

python tests/helpers/training_kills.py FOLDER STEP [WORD]...

trains an mlp with the words, and prints a JSON object: the number of operations, how many of them were tried, how often
the training went on from a state, and what was wrong. Every run is a process of its own, forked from this one. Every
STEP-th operation is tried. A file that is being written is also left half written.
"""

import json
import signal
import sys
from pathlib import Path

from here import differing_bits
from kills import prepared, run, warmed
from runs import contents

from rainbow_fast.cli.checkpoints import CHECKPOINT
from rainbow_fast.io import PREFIX

OUT = "net.safetensors"
STATE = f"{OUT}.training"


OTHERS = ("errors.txt", "scratch")  # what the helper itself puts into the folder


def same_checkpoint(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same description and the same bits. The order in their headers is not fixed."""
    if not (one.exists() and other.exists()):
        return False
    (about, tensors), (others_about, others) = (CHECKPOINT.read(path) for path in (one, other))
    return (
        about == others_about
        and tensors.keys() == others.keys()
        and all(differing_bits(value, others[name]) == 0 for name, value in tensors.items())
    )


def main() -> None:
    folder, step = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    command = ["train", *sys.argv[3:], "--threads", "1", "--out", OUT]
    warmed(folder / "warm", command)
    whole, case = prepared(folder / "whole"), folder / "case"
    operations = run(whole, command, counted=True)
    names = [name for name in contents(whole) if name.endswith(".safetensors")]
    wrong: dict[int, list[str]] = {}
    tried, resumed = range(1, operations + 1, step), 0
    for at in tried:
        prepared(case)
        code = run(case, command, at=at)
        faults = [] if code == -signal.SIGKILL else [f"was not killed, but ended with {code}"]
        resumed += (case / STATE).exists()
        if code := run(case, command):
            faults.append(f"went on, and ended with {code}: {(case / 'errors.txt').read_text()}")
        left = [name for name in contents(case) if name not in OTHERS and not name.startswith(PREFIX)]
        if left != names:
            faults.append(f"left {left}, wanted {names}")
        faults += [f"another {name}" for name in names if not same_checkpoint(case / name, whole / name)]
        if faults:
            wrong[at] = faults
    counts = {"operations": operations, "tried": len(tried), "resumed": resumed}
    print(json.dumps(counts | {"files": names, "wrong": wrong}))


if __name__ == "__main__":
    main()
