# SPDX-License-Identifier: BSD-3-Clause
"""The networks that commands are given: checkpoints of `train`, or anyone's modules with their weights."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rainbow_fast.cli.checkpoints import About, load_checkpoint
from rainbow_fast.cli.words import ModuleWords, ReferenceWords

HOLDERS = ("state_dict", "model")  # under which training scripts put a state dict
PREFIX = "module."  # of nn.DataParallel
COUNTER = ".num_batches_tracked"  # of a batch norm: older files lack it, and eval mode does not read it
SHOWN = 4  # problems in a message


@dataclass(frozen=True)
class Reference:
    """A network.

    Attributes:
        name: of its architecture, for records; title: for people.
        about: of a checkpoint.
    """

    module: nn.Module
    name: str
    title: str
    about: About | None = None


def load_reference(words: ReferenceWords, *, seed: int = 0) -> Reference:
    """The network of a command; one without weights is initialised from `seed`.

    Raises:
        ValueError, FileNotFoundError: options that do not go together, or cannot be followed; the message names it.
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
    load_state("--weights", network, words.weights)
    return Reference(network, words.module, f"{words.module}, {Path(words.weights).name}")


def load_pair(a: str, b: str, words: ModuleWords) -> tuple[Reference, Reference]:
    """Two checkpoints; or two files of weights of one module."""
    if words.module is None:
        first, second = (
            load_reference(ReferenceWords(checkpoint=path, module_args=words.module_args)) for path in (a, b)
        )
        return first, second
    pair = []
    for option, path in (("A", a), ("B", b)):
        network = _built(words.module, words.module_args, 0)
        load_state(option, network, path)
        pair.append(Reference(network, words.module, Path(path).name))
    return pair[0], pair[1]


def pointwise_kinds(names: Sequence[str] | None) -> tuple[type[nn.Module], ...]:
    """The classes that `--pointwise` names."""
    found = []
    for name in names or ():
        kind = _imported("--pointwise", name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"--pointwise: {name!r} is {type(kind).__name__}, wanted a class of modules")
        found.append(kind)
    return tuple(found)


def load_state(option: str, module: nn.Module, file: str) -> None:
    """Read a state dict into a module: all of it, or an error that names the keys that differ.

    Tensors alone are read of the file. A dict that holds the state dict as "state_dict" or "model" is looked into, and
    "module." is taken off where all keys begin with it.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {path}")
    state: Any = _read(option, path)
    for holder in HOLDERS:
        if isinstance(state, Mapping) and isinstance(state.get(holder), Mapping):
            state = state[holder]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{option}: {path} holds no state dict of tensors")
    if all(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    wanted = module.state_dict()
    state = {name: value for name, value in wanted.items() if name.endswith(COUNTER)} | dict(state)
    problems = [f"it lacks {name}" for name in wanted if name not in state]
    problems += [f"it has {name}, which the network has not" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{option}: {path} does not fit the network: {'; '.join(problems[:SHOWN])}{more}")
    module.load_state_dict(state)


def _read(option: str, path: Path) -> Any:
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{option}: wanted a file .safetensors, .pt or .pth; got {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # of other versions of pickle, which are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(path, "cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{option}: {path} is not a whole safetensors file ({error})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{option}: {path} is no file of tensors alone that torch has written ({first})") from error


def _built(name: str, text: str | None, seed: int) -> nn.Module:
    """What the function of that name returns, in eval mode."""
    factory = _imported("--module", name)
    try:
        arguments = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--module-args: {text!r} is not JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"--module-args: wanted a JSON object, got {text!r}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = factory(**arguments)
    except Exception as error:  # it is the user's own code
        called = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        raise ValueError(f"--module: {called} raised {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"--module: {name} returned {type(network).__name__}, wanted a module")
    return network.eval()


def _imported(option: str, name: str) -> Any:
    """What a name ``package.module:name`` stands for; the current folder is looked into first."""
    module, _, inside = name.partition(":")
    if not module or not inside:
        raise ValueError(f"{option}: wanted package.module:name, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in inside.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the user's own code
        raise ValueError(f"{option}: {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    return found
