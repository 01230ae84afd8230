# SPDX-License-Identifier: BSD-3-Clause
"""The state of a training after an epoch, in a file, so that an interrupted training can go on with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from rainbow_fast.formats import Format
from rainbow_fast.io import sha256
from rainbow_fast.weights import problems

Facts = dict[str, Any]


class TrainingHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header of a file: what is trained on what, and the number of epochs that are done."""

    facts: Facts
    epoch: int


TRAINING = Format("rainbow_fast.training", 1, "training", TrainingHeader, summed_since=1, key="training")


class TrainingState:
    """All that changes during a training: parameters, buffers, velocities, and the states of random numbers.

    Attributes:
        path: the file.
        facts: the arguments that the bits depend on.
        module: the network.
        optimiser: of stochastic gradient descent, over the parameters of `module`.
        order: the generator of the order of the images and of their augmentation.
    """

    def __init__(
        self, path: Path, facts: Facts, module: nn.Module, optimiser: torch.optim.SGD, order: torch.Generator
    ) -> None:
        """
        Raises:
            FileNotFoundError, ValueError: no file can be made at `path`.
        """
        if not path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint: no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise ValueError(f"checkpoint: {path} is no file")
        self.path, self.facts, self.module, self.optimiser, self.order = path, facts, module, optimiser, order

    def write(self, epoch: int) -> None:
        """Write the state after `epoch` epochs, completely or not at all.

        Raises:
            OSError: as `io.whole`.
        """
        tensors = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        for name, value in self.module.named_parameters():
            velocity = self.optimiser.state.get(value, {}).get("momentum_buffer")
            if velocity is not None:
                tensors[f"velocity.{name}"] = velocity
        tensors |= {f"random.{name}": state for name, state in self._random()}
        TRAINING.write(self.path, TrainingHeader(self.facts, epoch), tensors, "checkpoint")

    def read(self) -> int:
        """Go back to the state in the file. Returns the number of epochs that are done; 0 if there is no file.

        Raises:
            ValueError: the file is damaged or holds no training, a training of another network, or one with other
                arguments; the message names the first differences. Nothing is changed then.
        """
        if not self.path.exists():
            return 0
        header, tensors = TRAINING.read(self.path, "checkpoint")
        state = _part(tensors, "module.")
        differing = problems(state, self.module.state_dict())
        if differing:
            more = f"; and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise ValueError(f"checkpoint: {self.path} is of another network: {differing[0]}{more}")
        facts = msgspec.json.decode(msgspec.json.encode(self.facts))
        other = [
            f"{name} ({_shown(header.facts.get(name))} there, {_shown(facts.get(name))} here)"
            for name in header.facts | facts
            if header.facts.get(name) != facts.get(name)
        ]
        if other:
            raise ValueError(f"checkpoint: {self.path} is of another training: it differs in {', '.join(other)}")
        velocities, random = _part(tensors, "velocity."), _part(tensors, "random.")
        self.module.load_state_dict(state)
        for name, value in self.module.named_parameters():
            if name in velocities:
                self.optimiser.state[value]["momentum_buffer"] = velocities[name].to(value.device)
        self.order.set_state(random["order"])
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"], self._device())
        return header.epoch

    def _random(self) -> Iterator[tuple[str, Tensor]]:
        yield "order", self.order.get_state()
        yield "cpu", torch.get_rng_state()
        if self._device().type == "cuda":
            yield "cuda", torch.cuda.get_rng_state(self._device())

    def _device(self) -> torch.device:
        return next((value.device for value in self.module.parameters()), torch.device("cpu"))


def facts_of(x: Tensor, y: Tensor, module: nn.Module, arguments: Facts) -> Facts:
    """What the bits of a training depend on, beside its initial weights and the machine."""
    dtypes = sorted({str(value.dtype) for value in module.state_dict().values()})
    return {**arguments, "dtypes": dtypes, "images": sha256([x]), "labels": sha256([y])}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _shown(value: Any) -> str:
    return f"SHA-256 {value[7:19]}..." if isinstance(value, str) and value.startswith("sha256:") else repr(value)
