# SPDX-License-Identifier: BSD-3-Clause
"""The torch.fx tracer that both ways of tracing share: one input, and which modules are one call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from rainbow_fast.joint_inputs import SplitInputs
from rainbow_fast.networks.scattering import LAYERS
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.tracing.wavelet_maps import AsComplex, ByChannel

OPEN = (  # modules of torch whose parts are sites
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
# Functions of einops. They read shapes, so each is one call; old versions have the first three.
EINOPS = ("rearrange", "repeat", "reduce", "pack", "unpack", "einsum")


class OneInput(fx.Tracer):
    """Traces a module as a function of the first argument of its forward. All others have their defaults.

    Args:
        leaves: classes of modules that are one call each, in addition to the modules of torch but those of `OPEN`.
    """

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        einops = sys.modules.get("einops")
        super().__init__(autowrap_functions=tuple(vars(einops)[name] for name in EINOPS if hasattr(einops, name)))
        self.leaves = leaves
        self.installed: set[nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, OPEN):
            return False
        einops = type(m).__module__.startswith("einops.")
        return (
            einops
            or isinstance(m, (SplitInputs, RandomFeatures, *LAYERS, ByChannel, AsComplex, *self.leaves))
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self.installed is None:
            self.installed = set(self.root.modules())
        if m not in self.installed:  # it is made in a forward: its functions are traced
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable, list[Any]]:
        name = next(iter(inspect.signature(self.root.forward).parameters))
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]
