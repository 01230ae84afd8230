# SPDX-License-Identifier: BSD-3-Clause
"""The options that several commands share, and what their words mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import torch
import typer

from rainbow_fast.cli.experiment import Job
from rainbow_fast.rainbow.parts import METHODS, resolve
from rainbow_fast.rainbow.plan import NOISE_EDGE
from rainbow_fast.rainbow.sampling.storage import KINDS

ALL_METHODS = ",".join(METHODS)
BUDGET = "4G"
SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9}

# Of the network
Checkpoint = Annotated[str | None, typer.Argument(help="Written by `rainbow-fast train`; or --module.")]
Module = Annotated[str | None, typer.Option(help="A function that makes the network: package.module:name.")]
ModuleArgs = Annotated[str | None, typer.Option(help="Its keyword arguments in JSON: '{\"depth\": 20}'.")]
Weights = Annotated[str | None, typer.Option(help="Its state dict: .safetensors, .pt or .pth.")]
Pointwise = Annotated[
    list[str] | None, typer.Option(help="A non-linearity of one's own: package.module:Class. May be repeated.")
]
# Of the data
Data = Annotated[str | None, typer.Option(help="digits; the folder of CIFAR-10 or of one's images; x.npy,y.npy.")]
Holdout = Annotated[str | None, typer.Option(help="A share of the data, or data in the same words.")]
Aligned = Annotated[int, typer.Option("--images", help="To align on, at most.", min=1)]
Size = Annotated[int | None, typer.Option(help="Side in pixels that images of a folder are resized to.", min=1)]
Mean = Annotated[str | None, typer.Option(help="Of each colour, 0 to 1 (default: ImageNet's).")]
Std = Annotated[str | None, typer.Option(help="Of each colour (default: ImageNet's).")]
Grey = Annotated[bool, typer.Option("--grey", help="Images in one channel.")]
# Of the sampled networks
Factors = Annotated[str | None, typer.Option(help="Widths over the reference's (default: 1,4,16).")]
Widths = Annotated[str | None, typer.Option(help="Neurons of every site, in place of factors.")]
Methods = Annotated[str, typer.Option(help="Of paper, calibrated, regression.")]
Networks = Annotated[int, typer.Option(help="Of each width and method.", min=1)]
Rank = Annotated[str | None, typer.Option(help=f"Combine that many directions only; or {NOISE_EDGE}.")]
Align = Annotated[str, typer.Option(help="channels, or flattened before a Flatten.")]
Classifier = Annotated[str | None, typer.Option(help="refit or refit_aligned (default: the trained).")]
SiteNames = Annotated[str | None, typer.Option("--sites", help="Those to sample, e.g. a,b (default: all).")]
Seed = Annotated[int, typer.Option(help="Of all random numbers.", min=0)]
# Of the machine
Budget = Annotated[str, typer.Option(help="Bytes for what waits between two sites: 500M, 2G.")]
Kept = Annotated[str | None, typer.Option(help="Where it waits: memory, file or recompute (default: as fits).")]
Threads = Annotated[int | None, typer.Option(help="Threads of the CPU (default: as torch chooses).", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object in place of the table.")]


@dataclass(frozen=True)
class Given:
    """The options of `sample`, which `plan` takes too, as they were written."""

    checkpoint: str | None
    module: str | None
    module_args: str | None
    weights: str | None
    pointwise: Sequence[str] | None
    data: str | None
    holdout: str | None
    images: int
    size: int | None
    mean: str | None
    std: str | None
    grey: bool
    factors: str | None
    widths: str | None
    methods: str
    networks: int
    rank: str | None
    align: str
    classifier: str | None
    sites: str | None
    seed: int
    memory_budget: str
    storage: str | None
    threads: int | None

    @classmethod
    def of(cls, context: typer.Context) -> Given:
        """Those of the command that runs."""
        given = {field.name: context.params[field.name] for field in fields(cls)}
        return cls(**given | {"pointwise": list(given["pointwise"] or [])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def budget(self) -> int:
        """In bytes."""
        return memory(self.memory_budget)

    def jobs(self) -> list[Job]:
        """The networks to sample, by method, then by width."""
        if self.factors is not None and self.widths is not None:
            raise ValueError("--factors and --widths: wanted one of the two")
        check_storage(self.storage)
        sizes: list[dict[str, Any]] = [{"factor": f} for f in numbers("--factors", self.factors or "1,4,16")]
        if self.widths is not None:
            sizes = [{"width": int(width)} for width in numbers("--widths", self.widths)]
        methods = names("--methods", self.methods)
        for method in methods:
            resolve(method)
        options: dict[str, Any] = {"rank": _rank(self.rank), "align": self.align, "classifier": self.classifier}
        options["sites"] = None if self.sites is None else names("--sites", self.sites)
        return [Job(m, size, n, self.seed, options) for m in methods for size in sizes for n in range(self.networks)]


def names(option: str, text: str) -> list[str]:
    """Separated by commas, each once."""
    found = [part.strip() for part in text.split(",")]
    if "" in found or len(set(found)) < len(found):
        raise ValueError(f"{option}: wanted names separated by commas, each once; got {text!r}")
    return found


def numbers(option: str, text: str, *, once: bool = True) -> list[float]:
    """Above 0, separated by commas, each once unless they may repeat; whole ones of `--widths`."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    whole = option == "--widths"
    if not found or any(not 0 < n < math.inf or (whole and n != int(n)) for n in found):
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(f"{option}: wanted {kind} above 0, separated by commas; got {text!r}")
    if once and len(set(found)) < len(found):
        raise ValueError(f"{option}: wanted each number once, got {text!r}")
    return found


def memory(text: str) -> int:
    """Bytes."""
    number, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    try:
        found = float(number) * factor
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"--memory-budget: wanted bytes, as a number with k, M or G behind it; got {text!r}")
    return int(found)


def check_storage(text: str | None) -> None:
    if text not in (None, *KINDS):
        raise ValueError(f"--storage: wanted one of {', '.join(KINDS)}; got {text!r}")


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _rank(text: str | None) -> int | str | None:
    if text is None or text == NOISE_EDGE:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--rank: wanted a whole number above 0, or {NOISE_EDGE}; got {text!r}")
    return int(text)
