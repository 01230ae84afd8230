# SPDX-License-Identifier: BSD-3-Clause
"""Loads the trained networks of commands: checkpoints of `train`, or modules of the user or a library, and weights."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rainbow_fast.cli.checkpoints import About, load_checkpoint
from rainbow_fast.cli.model_libraries import Preprocessing, Timm, Torchvision
from rainbow_fast.cli.words import ModuleWords, ReferenceWords
from rainbow_fast.weights import load_state


@dataclass(frozen=True)
class Reference:
    """The trained network of a command.

    Attributes:
        module: the network.
        name: name of its architecture, for records.
        title: description of the network, for output.
        about: the description in its checkpoint; None if it is a module.
        preprocessing: how its library reads images for it; None if it is of no library.
    """

    module: nn.Module
    name: str
    title: str
    about: About | None = None
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class OwnModule:
    """A module of the user, by the name of the function or class that makes it."""

    name: str
    option: ClassVar[str] = "--module"

    @property
    def title(self) -> str:
        return self.name

    def factory(self) -> Callable[..., nn.Module]:
        """The function or class.

        Raises:
            ValueError: it cannot be imported.
        """
        function = _imported(self.option, self.name)

        def make(**arguments: Any) -> nn.Module:
            with _current_folder_last():
                return function(**arguments)

        return make

    def preprocessing(self, network: nn.Module) -> None:
        """None: a module does not say how it reads images."""


Maker = OwnModule | Timm | Torchvision


def load_reference(words: ReferenceWords, *, seed: int = 0) -> Reference:
    """The trained network of a command. A module without a file of weights is initialised from `seed`.

    Raises:
        ValueError, FileNotFoundError: options contradict each other, or a file or module cannot be loaded; the message
            names the option.
    """
    makers = _makers(words)
    sources = [maker.option for maker in makers] + (["a checkpoint"] if words.checkpoint is not None else [])
    if len(sources) != 1:
        wanted = "a checkpoint of `rainbow-fast train`, --module, --timm or --torchvision"
        raise ValueError(f"wanted one of these: {wanted}; got {' and '.join(sources) or 'none of them'}")
    if words.checkpoint is not None:
        for option, value in (("--module-args", words.module_args), ("--weights", words.weights)):
            if value is not None:
                raise ValueError(f"{option}: not wanted with a checkpoint, which has its own")
        trained, about = load_checkpoint(Path(words.checkpoint))
        return Reference(trained, about.architecture, str(about), about)
    (maker,) = makers
    network = _built(maker, words.module_args, seed)
    title = maker.title
    if words.weights is not None:
        _load("--weights", network, words.weights)
        title += f", {Path(words.weights).name}"
    return Reference(network, maker.title, title, preprocessing=maker.preprocessing(network))


def load_pair(a: str, b: str, words: ModuleWords) -> tuple[Reference, Reference]:
    """Two networks: from two checkpoints, or from two files of weights for one module.

    Raises:
        ValueError, FileNotFoundError: as `load_reference`.
    """
    makers = _makers(words)
    if len(makers) > 1:
        raise ValueError(f"{' and '.join(maker.option for maker in makers)}: wanted one of them")
    if not makers:
        first, second = (
            load_reference(ReferenceWords(checkpoint=path, module_args=words.module_args)) for path in (a, b)
        )
        return first, second
    pair = []
    for option, path in (("A", a), ("B", b)):
        network = _built(makers[0], words.module_args, 0)
        _load(option, network, path)
        own = makers[0].preprocessing(network)
        pair.append(Reference(network, makers[0].title, Path(path).name, preprocessing=own))
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


def _makers(words: ModuleWords) -> list[Maker]:
    """What the options name that makes a network; one at most, unless they contradict each other."""
    named: list[tuple[type[Maker], str | None]] = [
        (OwnModule, words.module), (Timm, words.timm), (Torchvision, words.torchvision)
    ]  # fmt: skip
    return [kind(name) for kind, name in named if name is not None]


def _built(maker: Maker, text: str | None, seed: int) -> nn.Module:
    """The network of a maker, in eval mode. `text` is the option `--module-args`."""
    option, name, factory = maker.option, maker.name, maker.factory()
    try:
        arguments = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--module-args: {text!r} is not JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"--module-args: wanted a JSON object, got {text!r}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = factory(**arguments)
    except (Exception, SystemExit) as error:  # code of the user or of a library may raise anything
        called = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{option}: {called} raised {type(error).__name__}: {first}") from error
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise ValueError(f"{option}: {name} returned {type(network).__name__}, wanted a module that is not compiled")
    if any(value.is_meta for value in network.state_dict().values()):
        raise ValueError(f"{option}: {name} returned a module on the meta device, wanted one with weights")
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
