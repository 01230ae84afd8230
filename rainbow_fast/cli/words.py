# SPDX-License-Identifier: BSD-3-Clause
"""The options of the commands: those of the library by their fields, and those of files and data, declared here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from rainbow_fast.arguments import integer
from rainbow_fast.fields import Former, Options, option
from rainbow_fast.rainbow.laws.marchenko_pastur import NOISE_EDGE
from rainbow_fast.rainbow.options import METHODS, FitOptions, SampleOptions

BUDGET = "4G"
SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9}

Words = dict[str, Any]  # options by name, as they were written


@dataclass(frozen=True)
class ModuleWords(Options):
    """A network of one's own."""

    module: str | None = option(None, "A function that makes the network: package.module:name.")
    module_args: str | None = option(None, "Its keyword arguments in JSON: '{\"depth\": 20}'.")
    pointwise_modules: Sequence[str] | None = option(
        None,
        "A module class of yours that applies one function to every number: package.module:Class. May be repeated.",
        former=Former("pointwise"),
    )


@dataclass(frozen=True)
class ReferenceWords(ModuleWords):
    """The network of a command."""

    checkpoint: str | None = option(None, "Written by `rainbow-fast train`; or --module.")
    weights: str | None = option(None, "The state dict of the module: .safetensors, .pt or .pth.")


@dataclass(frozen=True)
class SampleWords(Options):
    """Data, of which one sample may be enough."""

    data: str | None = option(None, "digits; the folder of CIFAR-10 or of one's images; x.npy,y.npy.")
    size: int | None = option(None, "Side in pixels that images of a folder are resized to.")
    mean: str | None = option(None, "Of each colour, 0 to 1 (default: ImageNet's).")
    std: str | None = option(None, "Of each colour (default: ImageNet's).")
    grey: bool = option(False, "Images in one channel.")


@dataclass(frozen=True)
class DataWords(SampleWords):
    """Data to align on and to measure on."""

    holdout: str | None = option(None, "A share of the data, or data in the same words.")
    images: int = option(5000, "Samples to align on, at most.", lambda name, value: integer(name, value, 1))


@dataclass(frozen=True)
class GridWords(Options):
    """Which networks are sampled: all combinations of widths and methods, and so many of each."""

    factors: str | None = option(None, "Widths over the reference's, separated by commas (default: 1,4,16).")
    widths: str | None = option(None, "Neurons of every site, in place of factors.")
    methods: str = option(",".join(METHODS), "Of paper, calibrated, regression; separated by commas.")
    networks: int = option(
        3, "Independent networks of each width and method.", lambda name, value: integer(name, value, 1)
    )


@dataclass(frozen=True)
class MachineWords(Options):
    """What it runs on."""

    threads: int | None = option(None, "Threads of the CPU (default: as torch chooses).")


# Of the library's options: what a grid has in the plural, and what has no words
GRID = ("width", "factor", "method", "network_index")
WORDLESS = ("storage_dtype", "resume_dir", "procrustes_iterations")
FLAGS = ("grey", "accuracy_profile", "align_flattened")


def command(*kinds: type[Options], argument: str | None = None) -> Callable[[Callable], Callable]:
    """Let a function of a context, a dict of words and its own parameters be a command of these options.

    Args:
        kinds: dataclasses of options; what a grid or nobody asks for by a word is left out.
        argument: of the options the one that is written without its name.
    """

    def decorate(function: Callable) -> Callable:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        shared = [_parameter(f, f.name == argument) for kind in kinds for f in spoken(kind)]

        def run(context: typer.Context, **kwargs: Any) -> Any:
            words = {p.name: kwargs.pop(p.name) for p in shared}
            if "pointwise_modules" in words:
                words["pointwise_modules"] = list(words["pointwise_modules"] or [])
            return function(context, words, **kwargs)

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (own[0], *own[2:], *shared)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return run

    return decorate


def spoken(kind: type[Options]) -> list[Field]:
    """The options of a kind that have a word on the command line; of data and modules the commands have their own."""
    without: tuple[str, ...] = GRID + WORDLESS
    if kind is FitOptions:
        without += tuple(f.name for own in (DataWords, ModuleWords) for f in fields(own))
    return [f for f in fields(kind) if f.name not in without]  # type: ignore[arg-type]


def read(kind: type[Options], words: Words) -> Any:
    """The options of a kind from what was written.

    Raises:
        ValueError: a word that cannot be read, or an option that refuses it; the message names it.
    """
    return kind(**values(kind, words))


def values(kind: type[Options], words: Words) -> dict[str, Any]:
    """The values of the options of a kind, each read from its word."""
    own = {f.name: words[f.name] for f in spoken(kind) if f.name in words}
    return {name: READERS[name](word) if name in READERS and word is not None else word for name, word in own.items()}


def grid(words: Words) -> list[SampleOptions]:
    """The networks to sample, by method, then by width."""
    chosen = read(GridWords, words)
    if chosen.factors is not None and chosen.widths is not None:
        raise ValueError("--factors and --widths: wanted one of the two")
    sizes: list[dict[str, Any]] = [{"factor": f} for f in numbers("--factors", chosen.factors or "1,4,16")]
    if chosen.widths is not None:
        sizes = [{"width": int(width)} for width in numbers("--widths", chosen.widths)]
    shared = values(SampleOptions, words)
    return [
        SampleOptions(method=method, network_index=network, **size, **shared)
        for method in names("--methods", chosen.methods)
        for size in sizes
        for network in range(chosen.networks)
    ]


def set_threads(words: Words) -> None:
    if words["threads"] is not None:
        torch.set_num_threads(words["threads"])


def names(option: str, text: str) -> list[str]:
    """Separated by commas, each once."""
    parts = [part.strip() for part in text.split(",")]
    if "" in parts or len(set(parts)) < len(parts):
        raise ValueError(f"{option}: wanted names separated by commas, each once; got {text!r}")
    return parts


def numbers(option: str, text: str, *, once: bool = True) -> list[float]:
    """Above 0, separated by commas, each once unless they may repeat; whole ones of `--widths`."""
    try:
        parsed = [float(part) for part in text.split(",")]
    except ValueError:
        parsed = []
    whole = option == "--widths"
    if not parsed or any(not 0 < n < math.inf or (whole and n != int(n)) for n in parsed):
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(f"{option}: wanted {kind} above 0, separated by commas; got {text!r}")
    if once and len(set(parsed)) < len(parsed):
        raise ValueError(f"{option}: wanted each number once, got {text!r}")
    return parsed


def memory(text: str) -> int:
    """Bytes."""
    number, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    try:
        parsed = float(number) * factor
    except ValueError:
        parsed = math.nan
    if not 0 <= parsed < math.inf:
        raise ValueError(f"--memory-budget: wanted bytes, as a number with k, M or G behind it; got {text!r}")
    return int(parsed)


def rank(text: str) -> int | str:
    """A number of directions, or the name of the edge."""
    if text == NOISE_EDGE:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--rank: wanted a whole number above 0, or {NOISE_EDGE}; got {text!r}")
    return int(text)


READERS: Mapping[str, Callable[[str], Any]] = {
    "memory_budget": memory,
    "rank": rank,
    "sites": lambda text: names("--sites", text),
}
DEFAULTS = {"memory_budget": BUDGET}
HINTS = {"sites": " Separated by commas.", "memory_budget": " 500M, 2G."}


def _parameter(f: Field, argument: bool) -> inspect.Parameter:
    """The parameter of a command that stands for an option."""
    flag, help = f"--{f.name.replace('_', '-')}", escape(f.metadata["help"] + HINTS.get(f.name, ""))
    if argument:
        shown: Any = typer.Argument(help=help)
    elif f.name in FLAGS:
        shown = typer.Option(flag, help=help)
    else:
        shown = typer.Option(help=help)
    default = DEFAULTS.get(f.name, f.default)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f.name, keyword, default=default, annotation=Annotated[_type(f), shown])


def _type(f: Field) -> Any:
    """What typer makes of the word: a list, a bool, a number, or text."""
    if f.name == "pointwise_modules":
        return list[str] | None
    for kind in (bool, int, float):
        if str(f.type).split(" ")[0] == kind.__name__ and f.name not in READERS:
            return kind if f.default is not None else kind | None
    return str | None
