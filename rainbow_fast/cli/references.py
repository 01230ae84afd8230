# SPDX-License-Identifier: BSD-3-Clause
"""Loads the trained networks of commands: checkpoints of `train`, or the user's own modules and weights."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rainbow_fast.cli.checkpoints import About, load_checkpoint
from rainbow_fast.cli.words import ModuleWords, ReferenceWords
from rainbow_fast.weights import load_state


@dataclass(frozen=True)
class Reference:
    """The trained network of a command.

    Attributes:
        module: the network.
        name: name of its architecture, for records.
        title: description of the network, for output.
        about: the description in its checkpoint; None if it is the user's own module.
    """

    module: nn.Module
    name: str
    title: str
    about: About | None = None


def load_reference(words: ReferenceWords, *, seed: int = 0) -> Reference:
    """The trained network of a command. A module without a file of weights is initialised from `seed`.

    Raises:
        ValueError, FileNotFoundError: options contradict each other, or a file or module cannot be loaded; the message
            names the option.
    """
    if (words.checkpoint is None) == (words.module is None):
        raise ValueError("wanted a checkpoint of `rainbow-fast train`, or --module; one of the two")
    if words.checkpoint is not None:
        for option, value in (("--module-args", words.module_args), ("--weights", words.weights)):
            if value is not None:
                raise ValueError(f"{option}: wanted only with --module, a checkpoint has its own")
        trained, about = load_checkpoint(Path(words.checkpoint))
        return Reference(trained, about.architecture, str(about), about)
    assert words.module is not None
    network = _built(words.module, words.module_args, seed)
    if words.weights is None:
        return Reference(network, words.module, words.module)
    _load("--weights", network, words.weights)
    return Reference(network, words.module, f"{words.module}, {Path(words.weights).name}")


def load_pair(a: str, b: str, words: ModuleWords) -> tuple[Reference, Reference]:
    """Two networks: from two checkpoints, or from two files of weights for one module."""
    if words.module is None:
        first, second = (
            load_reference(ReferenceWords(checkpoint=path, module_args=words.module_args)) for path in (a, b)
        )
        return first, second
    pair = []
    for option, path in (("A", a), ("B", b)):
        network = _built(words.module, words.module_args, 0)
        _load(option, network, path)
        pair.append(Reference(network, words.module, Path(path).name))
    return pair[0], pair[1]


def pointwise_kinds(names: Sequence[str] | None) -> tuple[type[nn.Module], ...]:
    """The classes named by `--pointwise-modules`."""
    kinds = []
    for name in names or ():
        kind = _imported("--pointwise-modules", name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"--pointwise-modules: {name!r} is {type(kind).__name__}, wanted a class of modules")
        kinds.append(kind)
    return tuple(kinds)


def _load(option: str, network: nn.Module, text: str) -> None:
    """Load the weights that an option names into a network."""
    load_state(network, Path(text), option)


def _built(name: str, text: str | None, seed: int) -> nn.Module:
    """The network that the function `name` returns, in eval mode. `text` is the option `--module-args`."""
    factory = _imported("--module", name)
    try:
        arguments = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--module-args: {text!r} is not JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"--module-args: wanted a JSON object, got {text!r}")
    try:
        with torch.random.fork_rng(devices=[]), _current_folder_last():
            torch.manual_seed(seed)
            network = factory(**arguments)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        called = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"--module: {called} raised {type(error).__name__}: {first}") from error
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise ValueError(f"--module: {name} returned {type(network).__name__}, wanted a module that is not compiled")
    if any(value.is_meta for value in network.state_dict().values()):
        raise ValueError(f"--module: {name} returned a module on the meta device, wanted one with weights")
    return network.eval()


def _imported(option: str, name: str) -> Any:
    """Import an object by its name ``package.module:name``. The current folder is searched last."""
    module, _, inside = name.partition(":")
    if not module or not inside:
        raise ValueError(f"{option}: wanted package.module:name, got {name!r}")
    try:
        with _current_folder_last():
            target = importlib.import_module(module)
            for part in inside.split("."):
                target = getattr(target, part)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        source = getattr(sys.modules.get(module), "__file__", None)
        where = "" if source is None else f"; {module} is {source}"
        raise ValueError(f"{option}: {name!r} cannot be imported ({type(error).__name__}: {error}){where}") from error
    return target


@contextmanager
def _current_folder_last() -> Iterator[None]:
    """A context in which modules of the current folder can be imported, if no installed one has the same name."""
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
