# SPDX-License-Identifier: BSD-3-Clause
"""Lists the modules, functions and methods of torch that are non-linearities, poolings and normalisations of sites."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn import functional as F

from rainbow_fast.networks.scattering import ComplexBatchNorm2d, UnitNorm, Wavelets
from rainbow_fast.nn.expansion import POOLS, RandomFeatures
from rainbow_fast.tracing.graph import is_call

# Subclasses are not recognised: they may compute something else. Modules in KERNELS have fused kernels of that name.
KERNELS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
MODULES: tuple[type[nn.Module], ...] = (
    *KERNELS,
    nn.CELU,
    nn.ELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU6,
    nn.SELU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanhshrink,
)
FUNCTIONS: dict[Callable, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    F.leaky_relu: nn.LeakyReLU,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.celu: nn.CELU,
    F.elu: nn.ELU,
    F.hardsigmoid: nn.Hardsigmoid,
    F.hardswish: nn.Hardswish,
    F.hardtanh: nn.Hardtanh,
    F.logsigmoid: nn.LogSigmoid,
    F.mish: nn.Mish,
    F.relu6: nn.ReLU6,
    F.selu: nn.SELU,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    F.softplus: nn.Softplus,
    F.softsign: nn.Softsign,
}
# Operators in exported graphs whose arguments are those of the function.
OPERATORS: dict[str, Callable] = {
    f.__name__: f
    for f in (
        *(F.relu, F.leaky_relu, torch.tanh, F.gelu, F.silu, F.hardswish, F.hardtanh, F.mish, F.relu6, F.selu),
        *(torch.sigmoid, F.softplus, F.celu, F.hardsigmoid),
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
    )
}
METHODS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
POOL_FUNCTIONS: dict[Callable, type[nn.Module]] = {
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
    torch.max_pool1d: nn.MaxPool1d,
    torch.max_pool2d: nn.MaxPool2d,
    torch.max_pool3d: nn.MaxPool3d,
}
POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")  # of POOL_FUNCTIONS
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def nonlinearity_of(node: object, owner: fx.GraphModule, declared: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """The non-linearity that a node applies, as a new module; None if the node applies none."""
    if is_call(node, owner, (*MODULES, RandomFeatures, Wavelets, *declared)):
        return _called(node, owner)
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target in METHODS and len(node.args) == 1:
        return METHODS[str(node.target)]()
    return _made(node, FUNCTIONS)


def is_nonlinearity(node: fx.Node, owner: fx.GraphModule, declared: tuple[type[nn.Module], ...]) -> bool:
    """Whether a node calls a non-linearity of these lists, with any arguments."""
    if node.op == "call_method":
        return node.target in METHODS
    return _plain(node.target) in FUNCTIONS if node.op == "call_function" else is_call(node, owner, MODULES + declared)


def max_pooling(node: object, owner: fx.GraphModule) -> nn.Module | None:
    """The max-pooling that a node applies, as a new module; None if there is none, or if it also returns indices."""
    pool = _called(node, owner) if is_call(node, owner, POOLS) else _made(node, POOL_FUNCTIONS)
    return None if pool is None or pool.return_indices else pool


def unit_norm(node: object, owner: fx.GraphModule) -> nn.Module | None:
    """The division by the l2 norm over channels that a node applies, as a new module; None if the node applies none."""
    return _called(node, owner) if is_call(node, owner, (UnitNorm,)) else None


def standardisation(node: object, owner: fx.GraphModule) -> nn.Module | None:
    """The standardisation of maps of wavelets that a node applies, as a new module; None if the node applies none."""
    return _called(node, owner) if is_call(node, owner, (nn.BatchNorm2d, ComplexBatchNorm2d)) else None


def batch_norm(node: object, owner: fx.GraphModule) -> nn.Module | None:
    """The batch norm that a node applies, as a new module; None if the node applies none."""
    return _called(node, owner) if is_call(node, owner, NORMS) else None


def _plain(target: Any) -> Any:
    """The function of torch that a call in an exported graph is an operator of; other targets as they are."""
    return OPERATORS.get(target.overloadpacket.__name__, target) if isinstance(target, OpOverload) else target


def _called(node: object, owner: fx.GraphModule) -> nn.Module:
    assert isinstance(node, fx.Node)
    return copy.deepcopy(owner.get_submodule(str(node.target)))


def _made(node: object, kinds: dict[Callable, type[nn.Module]]) -> nn.Module | None:
    """The module that computes the same as a function call; None if an argument of the call is not a constant."""
    if not (isinstance(node, fx.Node) and node.op == "call_function"):
        return None
    kind = kinds.get(_plain(node.target))
    if kind is None:
        return None
    names = POOL_ARGUMENTS if kind in POOLS else tuple(inspect.signature(kind).parameters)
    arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    arguments = {name: value for name, value in arguments.items() if name not in ("input", "inplace")}
    return None if any(isinstance(value, fx.Node) for value in arguments.values()) else kind(**arguments)
