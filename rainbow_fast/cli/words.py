# SPDX-License-Identifier: BSD-3-Clause
"""The options of the commands: options of the library, and options for files and data, which are declared here."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from rainbow_fast.arguments import integer
from rainbow_fast.cli.readers import READERS, names, numbers
from rainbow_fast.fields import Former, Options, option
from rainbow_fast.ops.gaussian import NETWORK_BITS
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.laws.marchenko_pastur import NOISE_EDGE
from rainbow_fast.rainbow.options import (
    METHODS,
    DataLimits,
    FitOptions,
    Limits,
    MethodOptions,
    SampleOptions,
)

BUDGET = "4G"
THREADS = 1024  # largest value of --threads
LARGEST_GRID = 100_000  # networks of one command

Words = dict[str, Any]  # the options of a command line: name -> value as given
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0)]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads (default: the number that torch chooses).")]


@dataclass(frozen=True)
class ModuleWords(Options):
    """Options for the user's own network, or one of a library."""

    module: str | None = option(
        None,
        "A function or class that makes the network, as package.module:name. The current folder is searched last.",
    )
    timm: str | None = option(
        None, "A network of timm by its name there, e.g. resnet18. Nothing is downloaded: see --weights."
    )
    torchvision: str | None = option(
        None, "A network of torchvision by its name there, e.g. resnet18. Nothing is downloaded: see --weights."
    )
    module_args: str | None = option(
        None,
        "Keyword arguments of --module, or of the network of --timm or --torchvision, as a JSON object, e.g. "
        "'{\"depth\": 20}' (default: none).",
    )
    pointwise_modules: Sequence[str] | None = option(
        None,
        "A module class of yours that applies one function to every number: package.module:Class. May be repeated.",
        former=Former("pointwise"),
    )


@dataclass(frozen=True)
class ReferenceWords(ModuleWords):
    """Options for the trained network of a command."""

    checkpoint: str | None = option(
        None, "A checkpoint that `rainbow-fast train` has written. Give it, --module, --timm or --torchvision."
    )
    weights: str | None = option(
        None,
        "File of safetensors or torch with weights of the network (default: those that it is made with).",
    )


@dataclass(frozen=True)
class SampleWords(Options):
    """Options for data; commands that need only shapes read one sample."""

    data: str | None = option(
        None,
        "Data of the network: digits, the folder of CIFAR-10's binary version, a folder with a sub-folder of images "
        "for each class, or arrays x.npy or x.npy,y.npy (default: digits, for a checkpoint that was trained on them).",
    )
    size: int | None = option(
        None,
        "Side in pixels that the largest square in the middle of each image of a folder is resized to (default: as "
        "timm or torchvision resize and crop images for their network; images of others are used as they are).",
    )
    mean: str | None = option(
        None,
        "Mean of each colour, which is subtracted from pixels between 0 and 1: three numbers separated by commas "
        "(default: those of the network of timm or torchvision, or of ImageNet).",
    )
    std: str | None = option(
        None,
        "Standard deviation of each colour, by which pixels are divided: three numbers separated by commas (default: "
        "those of the network of timm or torchvision, or of ImageNet).",
    )
    grey: bool = option(False, "Read images in one channel, as grey levels.")


@dataclass(frozen=True)
class DataWords(SampleWords):
    """Options for the alignment set and the held-out data."""

    holdout: str | None = option(
        None,
        "Data that errors and accuracies are measured on: a fraction of --data between 0 and 1, or other data in the "
        "same form as --data (default: the test set of digits or CIFAR-10, a fraction of 0.1 of other data).",
    )
    images: int = option(5000, "Largest number of samples to align on.", lambda name, value: integer(name, value, 1))


@dataclass(frozen=True)
class GridWords(Options):
    """Options for the networks to sample: all combinations of widths and methods, and the number of each."""

    factors: str | None = option(
        None,
        "Widths as multiples of the trained network's, separated by commas; inf is the limit of infinite "
        "width, a single network in closed form (default: 1,4,16).",
    )
    widths: str | None = option(
        None, "Widths as numbers of neurons of every site, or inf, separated by commas. Give them or --factors."
    )
    methods: str = option(
        ",".join(METHODS), f"Methods to sample by, separated by commas (default: {', '.join(METHODS)})."
    )
    networks: int = option(
        3,
        "Number of networks sampled for each width and method.",
        lambda name, value: integer(name, value, 1, 2**NETWORK_BITS),
    )


@dataclass(frozen=True)
class MachineWords(Options):
    """Options for the machine."""

    threads: int | None = option(
        None,
        "Number of CPU threads (default: the number that torch chooses).",
        lambda name, value: None if value is None else integer(name, value, 1, THREADS),
    )


# Options of the library that are not options of commands: those that the grid sets, and others
GRID = ("width", "factor", "method", "network_index")
WORDLESS = ("storage_dtype", "resume_dir", "procrustes_iterations", "metric")
TYPES: Mapping[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
CODE = ("module", "pointwise_modules")  # name code that is run: a file cannot give them
FLAGS = ("grey", "accuracy_profile", "align_flattened")


def command(*kinds: type[Options], argument: str | None = None) -> Callable[[Callable], Callable]:
    """Turn a function into a command with these options.

    The function takes the context, a dict of the options (`Words`), and its own parameters, which become options too.

    Args:
        kinds: dataclasses of options; `spoken` says which of their fields become options of the command.
        argument: the option that is a positional argument; None for no such option.
    """

    def decorate(function: Callable) -> Callable:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        shared = [_parameter(f, PANELS[kind], f.name == argument) for kind in kinds for f in spoken(kind)]

        def run(context: typer.Context, **kwargs: Any) -> Any:
            words = {p.name: kwargs.pop(p.name) for p in shared}
            if "pointwise_modules" in words:
                words["pointwise_modules"] = list(words["pointwise_modules"] or [])
            return function(context, words, **kwargs)

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (own[0], *own[2:], *shared)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return flowing(run)

    return decorate


def flowing(command: Callable) -> Callable:
    """Join the lines of each paragraph of a docstring, because the help of a command wraps lines itself."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    command.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return command


def spoken(kind: type[Options]) -> list[Field]:
    """The fields of a dataclass of options that are options of commands.

    Commands declare their own options for data and modules in place of those of `FitOptions`.
    """
    without: tuple[str, ...] = GRID + WORDLESS
    if kind is FitOptions:
        without += tuple(f.name for own in (DataWords, ModuleWords) for f in fields(own))
    return [f for f in fields(kind) if f.name not in without]  # type: ignore[arg-type]


def read(kind: type[Options], words: Words) -> Any:
    """The dataclass `kind` with the values of a command line.

    Raises:
        ValueError: a value cannot be read, or is not valid; the message names the option.
    """
    return kind(**values(kind, words))


def check(words: Words, *kinds: type[Options]) -> None:
    """Check options that come from a file, as those of a command line are checked by being read.

    Args:
        words: all options of the commands with these dataclasses, by name.
        kinds: the dataclasses, with those of a grid.

    Raises:
        TypeError, ValueError: a value has another type than on a command line, or is not valid; the message names the
            option.
    """
    for f in (f for kind in kinds for f in spoken(kind)):
        _check_type(f, words[f.name])
    for kind in kinds:
        if kind is not SampleOptions:  # `grid` below reads them, once for each method
            read(kind, words)
    grid(words)


def _check_type(f: Field, value: Any) -> None:
    """Check that a value has the type that typer would give it."""
    if value is None and f.default is None:
        return
    kind = _type(f)
    one = next((one for one in TYPES if kind in (one, one | None)), None)
    if one is None:
        right = isinstance(value, list) and all(isinstance(each, str) for each in value)
    else:
        right = type(value) is one or (one is float and type(value) is int)
    if not right:
        wanted = "a list of texts" if one is None else TYPES[one]
        raise ValueError(f"{f.name}={reprlib.repr(value)}: wanted {wanted}")


def values(kind: type[Options], words: Words) -> dict[str, Any]:
    """The values for the fields of a dataclass of options, read from a command line."""
    own = {f.name: words[f.name] for f in spoken(kind) if f.name in words}
    return {name: READERS[name](word) if name in READERS and word is not None else word for name, word in own.items()}


def grid(words: Words) -> list[SampleOptions]:
    """The options of each network to sample, ordered by method, then by width."""
    chosen = read(GridWords, words)
    if chosen.factors is not None and chosen.widths is not None:
        raise ValueError("--factors and --widths: wanted one of the two")
    factors = "1,4,16" if chosen.factors is None else chosen.factors
    sizes: list[dict[str, Any]] = [{"factor": f} for f in numbers("--factors", factors, infinite=True)]
    if chosen.widths is not None:
        widths = numbers("--widths", chosen.widths, infinite=True)
        sizes = [{"width": INFINITE if width == INFINITE else int(width)} for width in widths]
    shared, methods = values(SampleOptions, words), names("--methods", chosen.methods)
    counts = [1 if INFINITE in size.values() else chosen.networks for size in sizes]  # the limit is not random
    total = len(methods) * sum(counts)
    if total > LARGEST_GRID:
        raise ValueError(f"--networks: wanted at most {LARGEST_GRID} networks of all widths and methods, got {total}")
    return [
        SampleOptions(method=method, network_index=network, **size, **shared)
        for method in methods
        for size, count in zip(sizes, counts, strict=True)
        for network in range(count)
    ]


def set_threads(words: Words) -> None:
    threads = read(MachineWords, words).threads
    if threads is not None:
        torch.set_num_threads(threads)


DEFAULTS = {"memory_budget": BUDGET}
HELP = {  # help of library options whose text on the command line differs from their value in Python
    "memory_budget": "Memory in bytes that the data may take, and again the activations of all samples between two "
    "sites: a number, or one with k, M or G behind it. What is larger is spilled to disk.",
    "rank": "Combine only the leading principal directions of z: this many of them, at most the width of the trained "
    f"network, or {NOISE_EDGE} for as many as the weights of the site have singular values above noise (default: all).",
    "sites": "Names of the sites to sample, separated by commas (default: all but output activations and gates).",
    "channel_axes": "The channel axis of the input of sites, in the place of the one that is found: name=1 or name=-1, "
    "the second or the last axis, separated by commas.",
    "classifier": "Fit a new classifier by ridge regression: refit, to the features of the last wide layer, all of "
    "which it holds in memory (at infinite width their kernel with --limit-rows images), or refit_aligned, to the "
    "aligned features. retrained trains all layers after the last wide layer, from the trained ones, on the aligned "
    "features (default: keep the trained classifier).",
}
OBJECT = re.compile(r",? or an? `\w+`( object)?")  # the words on objects, which options accept only in Python

# The panel of the help in which an option is shown, by the dataclass that declares it
PANELS: Mapping[type[Options], str] = {
    ModuleWords: "Trained network",
    ReferenceWords: "Trained network",
    SampleWords: "Data",
    DataWords: "Data",
    FitOptions: "Data",
    GridWords: "Sampled networks",
    SampleOptions: "Sampled networks",
    MethodOptions: "Method (each option replaces what the methods preset)",
    DataLimits: "Memory and threads",
    Limits: "Memory and threads",
    MachineWords: "Memory and threads",
}


METHOD = {f.name for f in fields(MethodOptions)}
METAVARS = {bool: "", bool | None: "", list[str] | None: "<str>"}  # replace the metavars that typer would show


def help_of(f: Field) -> str:
    """The help text of an option, in sentences."""
    text = HELP.get(f.name) or OBJECT.sub("", f.metadata["help"])
    return text[0].upper() + text[1:]


def _parameter(f: Field, panel: str, argument: bool) -> inspect.Parameter:
    """The parameter of a command for an option. The default is shown unless the help text mentions it."""
    default, help = DEFAULTS.get(f.name, f.default), help_of(f)
    about: dict[str, Any] = {"help": escape(help), "show_default": "default" not in help.lower()}
    if argument:
        shown: Any = typer.Argument(**about)
    else:
        if f.name in METHOD:
            panel = PANELS[MethodOptions]
        kind = _type(f)
        about |= {"rich_help_panel": panel} | ({"metavar": METAVARS[kind]} if kind in METAVARS else {})
        shown = typer.Option(*([flag(f.name)] if f.name in FLAGS else []), **about)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f.name, keyword, default=default, annotation=Annotated[_type(f), shown])


def flag(name: str) -> str:
    """An option as it is typed on the command line."""
    return f"--{name.replace('_', '-')}"


def _type(f: Field) -> Any:
    """The type of an option for typer: a list, a bool, a number, or text."""
    if f.name == "pointwise_modules":
        return list[str] | None
    for kind in (bool, int, float):
        if str(f.type).split(" ")[0] == kind.__name__ and f.name not in READERS:
            return kind if f.default is not None else kind | None
    return str | None
