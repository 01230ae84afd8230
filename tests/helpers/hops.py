# SPDX-License-Identifier: BSD-3-Clause
"""The number of frames of the package between a call of `sample` and each kernel, the most over methods.

    python tests/helpers/hops.py

Frames of torch and of the caller do not count. Four parts of a run are listed separately: its passes over the data,
the layers between two sites, the solvers of regression, and the checks, which call the finished network as a user
would.
"""

import traceback
from typing import Any

import torch

import rainbow_fast as rf
from rainbow_fast import backend
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.alignment.regression import SOLVERS, Regression

OPTIONS: list[dict[str, Any]] = [
    {"method": "paper"},
    {"method": "paper", "factor": 1},
    {"method": "calibrated"},
    *({"method": "regression", "alignment": Regression(solver=solver)} for solver in SOLVERS),
    {"law": "bootstrap"},
    {"law": "white"},
    {"alignment": "polar_complete"},
    {"classifier": "refit"},
]
PASSES, SOLVER, CHECKS = "passes", "solver of regression", "checks of the finished network"
LAYERS = "layers between sites"
PART_OF = {
    "rainbow/alignment/regression.py solve": SOLVER,
    "rainbow/sampling/run.py assembled": CHECKS,
    "rainbow/network/wide_layer.py __call__": LAYERS,
}
NO_KERNELS = ("levels", "amx_is_refused", "advise_huge_pages")


class Spy:
    """The compiled kernels; each call notes how many frames of the package are above it."""

    def __init__(self, kernels: Any) -> None:
        self.kernels, self.stacks = kernels, dict[tuple[str, str], list[str]]()

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.kernels, name)
        if not callable(kernel) or name in NO_KERNELS:
            return kernel

        def noted(*args: Any, **kwargs: Any) -> Any:
            frames = [f for f in traceback.extract_stack()[:-1] if "/rainbow_fast/" in f.filename]
            stack = [f"{f.filename.rpartition('/rainbow_fast/')[2]} {f.name}" for f in frames]
            key = name, next((PART_OF[frame] for frame in stack if frame in PART_OF), PASSES)
            if len(stack) > len(self.stacks.get(key, ())):
                self.stacks[key] = stack
            return kernel(*args, **kwargs)

        return noted


def stacks() -> dict[tuple[str, str], list[str]]:
    """The longest stack for each kernel and part of a run."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    before, spy = backend.BUILD, Spy(backend.BUILD.cpu)
    backend.BUILD = before._replace(cpu=spy)
    try:
        for options in OPTIONS:
            rf.sample(mlp((6, 8, 5, 2), seed=0), (x, y), **({"factor": 4} | options))
    finally:
        backend.BUILD = before
    return spy.stacks


if __name__ == "__main__":
    for (kernel, part), stack in sorted(stacks().items(), key=lambda item: (item[0][1], -len(item[1]))):
        print(f"{len(stack):3}  {kernel}, {part}: {' > '.join(stack)}")
