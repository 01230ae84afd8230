# SPDX-License-Identifier: BSD-3-Clause
"""A call of every public op for exported modules, compiled functions and CUDA graphs; and the table of docs/guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from here import draw
from torch import Tensor

import rainbow_fast as rf

KEY = rf.key(3, stream=1)
X, MAPS, PAIR = draw(6, 5), draw(3, 2, 7, 6), (draw(6, 5), draw(6, 4))
Axes = dict[int, str]  # the axes of an argument whose sizes may change, with the names of the sizes


class Case(NamedTuple):
    """A call of an op. Its result is one tensor, which holds all results of the op."""

    call: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]
    axes: tuple[Axes, ...]  # of each argument; the others, such as keys, keep their sizes
    by_hand: str = "yes"  # whether `torch.cuda.graph` captures a call: "yes", "after a first call" or "no"
    by_compile: str = "no"  # whether torch.compile captures it with mode="reduce-overhead"

    def other_arguments(self) -> tuple[Tensor, ...]:
        """Arguments of other sizes, with another key."""
        others = list(self.arguments)
        for place, axes in enumerate(self.axes):
            for axis in axes:
                others[place] = torch.cat([others[place], 1 + others[place]], axis)
        return tuple(t + torch.tensor([1, 0, 0, 0]) if t is KEY else t for t in others)

    def sizes(self) -> str:
        return ", ".join(dict.fromkeys(name for axes in self.axes for name in axes.values()))


def joined(results: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.double().flatten() for t in results])


def tile(op: Callable[..., Tensor]) -> Case:
    """`like` gives the sizes of the tile, and its device."""
    return Case(
        lambda like, key: op(like.shape[0], like.shape[1], seed=key, device=like.device),
        (X, KEY),
        ({0: "rows", 1: "cols"},),
    )


SAMPLES, SIZES = {0: "N", 1: "r"}, {0: "n"}
CASES: dict[str, Case] = {
    "gaussian": tile(rf.gaussian),
    "uniform": tile(rf.uniform),
    "cross_covariance": Case(
        lambda x, y: rf.cross_covariance(x, [y, 2 * y], activation="relu", center=True)[0],
        PAIR,
        ({1: "d"}, {1: "m"}),
        by_compile="yes",
    ),
    "cross_covariance_": Case(
        lambda x: rf.cross_covariance_(x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64), x),
        (X,),
        ({0: "N", 1: "d"},),
        by_compile="yes",
    ),
    "polar": Case(lambda M: joined(rf.polar(M)), (X,), ({0: "d", 1: "m"},), by_hand="no"),
    "polar_": Case(lambda M: joined(rf.polar_(M.clone())), (X,), ({0: "d", 1: "m"},), by_hand="no"),
    "sample_project_align": Case(
        lambda L, like, key: rf.sample_project_align(like.shape[0], L, seed=key),
        (X, draw(7), KEY),
        ({0: "r", 1: "m"}, SIZES),
    ),
    "sample_project_align_": Case(
        lambda L, like, key: rf.sample_project_align_(L.new_zeros(like.shape[0], L.shape[1]), L, seed=key),
        (X, draw(7), KEY),
        ({0: "r", 1: "m"}, SIZES),
    ),
    "random_features": Case(
        lambda u, like, key: rf.random_features(u, like.shape[0], seed=key), (X, draw(7), KEY), (SAMPLES, SIZES)
    ),
    "random_features_covariance": Case(
        lambda u, like, key: joined(rf.random_features_covariance(2 * u, u, like.shape[0], seed=key)),
        (X, draw(7), KEY),
        (SAMPLES, SIZES),
    ),
    "random_features_projection": Case(
        lambda u, A, key: rf.random_features_projection(u, A, seed=key),
        (X, draw(3, 9), KEY),
        (SAMPLES, {0: "d", 1: "n"}),
    ),
    "wavelet_modulus": Case(
        rf.wavelet_modulus, (MAPS,), ({0: "N", 1: "c", 2: "H", 3: "W"},), by_hand="after a first call"
    ),
}

HEAD = """\
| op | `torch.export` | sizes that may change | `torch.compile` | `torch.cuda.graph` | graph of `reduce-overhead` |
| --- | --- | --- | --- | --- | --- |
"""


def table() -> str:
    """The table of docs/guide/graphs.md."""
    return HEAD + "".join(
        f"| `{name}` | yes | {case.sizes()} | yes | {case.by_hand} | {case.by_compile} |\n"
        for name, case in CASES.items()
    )
