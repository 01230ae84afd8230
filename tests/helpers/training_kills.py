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

from kills import prepared, run, warmed
from runs import contents

OUT = "net.safetensors"
STATE = f"{OUT}.training"


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
        left = [name for name in contents(case) if name != "errors.txt" and not name.startswith(".rainbow_fast-")]
        if left != names:
            faults.append(f"left {left}, wanted {names}")
        faults += [f"another {name}" for name in names if (case / name).read_bytes() != (whole / name).read_bytes()]
        if faults:
            wrong[at] = faults
    counts = {"operations": operations, "tried": len(tried), "resumed": resumed}
    print(json.dumps(counts | {"files": names, "wrong": wrong}))


if __name__ == "__main__":
    main()
