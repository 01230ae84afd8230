# SPDX-License-Identifier: BSD-3-Clause
"""Finds the sites of a graph, and the non-linearities that are no sites."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from rainbow_fast.networks.scattering import Wavelets
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.tracing.channel_axis import Numbered, named
from rainbow_fast.tracing.formulas import Formula, find_formulas, in_unit_interval, is_factor
from rainbow_fast.tracing.graph import is_function, module_of, passes_on, scope
from rainbow_fast.tracing.nonlinearities import (
    NORMS,
    batch_norm,
    max_pooling,
    nonlinearity_of,
    standardisation,
    unit_norm,
)
from rainbow_fast.tracing.operations import name_of, of_input
from rainbow_fast.tracing.site import FLATTENS, Site, is_flatten, is_linear, make
from rainbow_fast.tracing.wavelet_sites import has_complex_weights, is_paired, reason_kept

MAPS = (_ConvNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _MaxPoolNd, nn.BatchNorm2d, nn.BatchNorm3d, nn.Flatten)
MOVING = (*FLATTENS, "transpose", "unflatten", "squeeze", "unsqueeze", "mean", "sum", "chunk", "split")


@dataclass(frozen=True)
class Left:
    """A non-linearity of the input's values that is no site, and runs as it is.

    Attributes:
        name: as of a site.
        function: name of its class, or of its function.
        reason: why it is no site.
        place: the number of sites before it.
    """

    name: str
    function: str
    reason: str
    place: int


@dataclass(frozen=True)
class Found:
    """A site with its nodes in a graph.

    Attributes:
        site: the site.
        z: its input.
        nodes: what it replaces (pooling, non-linearity, pooling, normalisation), the last one its output.
    """

    site: Site
    z: fx.Node
    nodes: list[fx.Node]


def find_sites(
    owner: fx.GraphModule,
    declared: tuple[type[nn.Module], ...],
    example: Tensor | None = None,
    channel_axes: Mapping[str, int] | None = None,
) -> tuple[list[Found], list[Left], dict[fx.Node, tuple[int, ...]]]:
    """The sites of a graph in order of execution; the non-linearities that are no sites; and the shapes of all nodes.

    Args:
        owner: the graph, as `capture` returns it.
        declared: the user's own classes of pointwise modules.
        example: one sample; without it, channel axes are only known directly after layers.
        channel_axes: channel axes by name of the site, which count in the place of what is found.

    Raises:
        ValueError: `channel_axes` names an axis that z does not have, or that is neither the second nor the last.
    """
    by_name = dict(channel_axes or {})
    axes = Axes(owner, example)
    data = of_input(owner.graph)
    formulas = {each.nodes[-1]: each for each in find_formulas(owner, axes.shapes, declared)}
    inside = {node for each in formulas.values() for node in each.nodes}
    calls = Counter(node.target for node in owner.graph.nodes if node.op == "call_module")
    taken: set[fx.Node] = set()
    names: set[str] = set()
    sites: list[Found] = []
    left: list[Left] = []
    for node in list(owner.graph.nodes):
        formula = formulas.get(node)
        if node not in data or node in taken or (formula is None and node in inside):
            continue
        sigma = nonlinearity_of(node, owner, declared) if formula is None else formula.sigma
        if sigma is None and formula is None:
            reason = _reason_for_layer(node, owner)
            if reason is not None:
                left.append(Left(_unique(_name(node), names), _function_name(node, owner), reason, len(sites)))
            continue
        core = [node] if formula is None else list(formula.nodes)
        name = _unique(_name(node, sigma if formula is not None else None), names)
        z = node.all_input_nodes[0] if formula is None else formula.z
        parts, z = _parts(core, z, sigma, owner, taken, axes)
        norm = _norm(parts[-1], sigma, owner)
        if name in by_name:
            axes.give(z, by_name.pop(name), name, sigma)
        reason = formula.reason if formula is not None and formula.reason else by_channel(sigma)
        reason = reason or reason_kept(sigma, z, owner) or axes.unknown(z, sigma)
        if sigma is None or reason is not None:
            function = _function_name(node, owner) if sigma is None or formula is None else type(sigma).__name__
            left.append(Left(name, function, str(reason), len(sites)))
            continue
        taken.update(parts)
        once = all(part.op == "call_module" and calls[part.target] == 1 for part in parts)
        modules = tuple(str(part.target) for part in parts) if once else None
        site = _site(len(sites), name, sigma, core, z, parts, owner, modules, axes.of(z, norm is not None, sigma), data)
        sites.append(Found(site, z, parts))
    if by_name:
        wanted = ", ".join([each.site.name for each in sites] + [other.name for other in left])
        raise ValueError(f"channel_axes: {min(by_name)!r} is no non-linearity of the network, wanted one of {wanted}")
    return sites, left, axes.shapes


class Axes:
    """The channel axes of tensors in a graph, by `channel_axis.Numbered`; without an example, by the layer before."""

    def __init__(self, owner: fx.GraphModule, example: Tensor | None) -> None:
        self.owner = owner
        try:
            self.numbered = None if example is None else Numbered(owner, example)
        except (Exception, SystemExit):  # the network does not run on one sample; where it is used, an error says why
            self.numbered = None
        self.shapes = {} if self.numbered is None else self.numbered.shapes

    def of(self, z: fx.Node, normalised: bool = False, sigma: nn.Module | None = None) -> int | None:
        """1 or -1, or None if it is not known. The channels of a normalised z (N, d) are axis 1.

        `sigma` is the non-linearity that reads z. Random features name the axis themselves.
        """
        own = _own_axis(sigma)
        if self.numbered is None:
            if own is not None:
                return None if normalised and own == -1 else own
            return _axis(z, self.owner, normalised)
        dims, axis = len(self.shapes[z]), self.numbered.axes.get(z)
        if dims == 2:
            return None if normalised else -1
        if own is not None:
            return own
        return None if axis is None else named(axis, dims)

    def give(self, z: fx.Node, axis: int, name: str, sigma: nn.Module | None = None) -> None:
        """Set the axis of z, which `sigma` reads."""
        if self.numbered is None:
            return
        dims = len(self.shapes[z])
        if isinstance(sigma, RandomFeatures) and dims > 2 and axis != sigma.axis:
            raise ValueError(f"channel_axes: {axis!r} for site {name!r}, whose random features have axis {sigma.axis}")
        if not isinstance(axis, int) or not -dims <= axis < dims or (dims > 2 and named(axis % dims, dims) is None):
            raise ValueError(
                f"channel_axes: {axis!r} for site {name!r} with z of shape {self.shapes[z]}: wanted 1 or -1, the "
                "second or the last axis"
            )
        self.numbered.axes[z] = axis % dims

    def unknown(self, z: fx.Node, sigma: nn.Module | None = None) -> str | None:
        """Why z has no channels that can be sampled; None if it has. `sigma` is the non-linearity that reads z."""
        if self.numbered is None:
            return None
        shape, axis = self.shapes.get(z, ()), self.numbered.axes.get(z)
        if len(shape) < 2:
            return f"z has shape {shape}, no channels"
        if _own_axis(sigma) is not None:
            return None
        if len(shape) == 2:
            return "z has a single channel" if shape[1] == 1 else None
        if axis is None:
            return f"the channel axis of z, of shape {shape}, is not known"
        if named(axis, len(shape)) is None:
            return f"channels are axis {axis} of z, of shape {shape}, wanted the second or the last"
        return None


def _own_axis(sigma: nn.Module | None) -> int | None:
    """The channel axis of z that a non-linearity names itself; None if it names none."""
    return sigma.axis if isinstance(sigma, RandomFeatures) else 1 if isinstance(sigma, Wavelets) else None


def by_channel(sigma: nn.Module | None) -> str | None:
    """The reason why an activation with parameters by channel, or with hooks, is no site; None for others."""
    if isinstance(sigma, nn.PReLU) and sigma.num_parameters != 1:
        return "it has parameters by channel"
    if isinstance(sigma, RandomFeatures) and (sigma._forward_hooks or sigma._forward_pre_hooks):
        return "it has hooks, which new neurons would not run"
    return None


def _reason_for_layer(node: fx.Node, owner: fx.GraphModule) -> str | None:
    """Why a layer with non-linearities inside is no site; None if it has none."""
    module = module_of(node, owner)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "a recurrent layer, whose non-linearities run inside of it"
    if isinstance(module, nn.GLU) or is_function(node, (), (F.glu,)):
        return "a gated linear unit, whose gate and factor run inside of it"
    return None


def _function_name(node: fx.Node, owner: fx.GraphModule) -> str:
    module = module_of(node, owner)
    return name_of(node) if module is None else type(module).__name__


def _parts(
    core: list[fx.Node],
    z: fx.Node,
    sigma: nn.Module | None,
    owner: fx.GraphModule,
    taken: set[fx.Node],
    axes: Axes,
) -> tuple[list[fx.Node], fx.Node]:
    """The nodes of a site with this non-linearity: with pooling and normalisation; and the input of the site."""
    parts = list(core)
    if isinstance(sigma, Wavelets):
        divided = z not in taken and unit_norm(z, owner) is not None and len(z.users) == 1
        following = list(core[-1].users)
        standardised = len(following) == 1 and standardisation(following[0], owner) is not None
        return [*[z] * divided, *core, *following[:standardised]], z.all_input_nodes[0] if divided else z
    expansion = sigma if isinstance(sigma, RandomFeatures) else None  # of pooled channels it is another function
    if expansion is None and z not in taken and max_pooling(z, owner) is not None and len(z.users) == 1:
        if axes.of(z.all_input_nodes[0]) == 1:
            parts.insert(0, z)
            z = z.all_input_nodes[0]
    maps = axes.of(z, sigma=sigma) == 1  # with another axis, pooling would mix neurons
    pooled = expansion is not None and expansion.pool is not None
    flat = len(axes.shapes.get(z, (0, 0))) == 2
    poolings = (max_pooling,) if maps and not pooled else ()
    for kind in (*poolings, batch_norm) if maps or flat else ():
        following = list(parts[-1].users)
        if len(following) == 1 and following[0].op != "output" and kind(following[0], owner) is not None:
            parts.append(following[0])
    return parts, z


def _name(node: fx.Node, formula: nn.Module | None = None) -> str:
    if node.op == "call_module":
        return str(node.target)
    function = name_of(node) if formula is None or isinstance(formula, Formula) else type(formula).__name__.lower()
    return f"{scope(node)}.{function}".lstrip(".")


def _unique(name: str, names: set[str]) -> str:
    unique, count = name, 0
    while unique in names:
        count += 1
        unique = f"{name}_{count}"
    names.add(unique)
    return unique


def _site(
    index: int,
    name: str,
    sigma: nn.Module,
    core: list[fx.Node],
    z: fx.Node,
    parts: list[fx.Node],
    owner: fx.GraphModule,
    modules: tuple[str, ...] | None,
    axis: int | None,
    data: set[fx.Node],
) -> Site:
    place = parts.index(core[-1])
    before = after = None
    if parts[0] is not core[0]:
        before = (unit_norm if isinstance(sigma, Wavelets) else max_pooling)(parts[0], owner)
    if len(parts) > place + 1:
        after = max_pooling(parts[place + 1], owner)
    norm = _norm(parts[-1], sigma, owner)
    norm, affine = (None, None) if norm is None else _split(norm)
    phi = parts[-1]
    return make(
        index,
        name,
        sigma,
        before=before,
        after=after,
        norm=norm,
        following=affine,
        axis=axis,
        writer=_writer(z, owner),
        feeds_flatten=affine is None and not isinstance(sigma, Wavelets) and _feeds_flatten(phi, owner),
        output=not _reaches_linear(phi, owner),
        gate=_is_gate(sigma, phi, owner, data),
        modules=None if isinstance(sigma, Wavelets) else modules,
        paired=isinstance(sigma, Wavelets) and bool(is_paired(z, owner)),
        complex_weights=isinstance(sigma, Wavelets) and has_complex_weights(z, owner),
    )


def _norm(node: fx.Node, sigma: nn.Module | None, owner: fx.GraphModule) -> nn.Module | None:
    """The normalisation at the end of a site, as a new module; None without one."""
    return (standardisation if isinstance(sigma, Wavelets) else batch_norm)(node, owner)


def _split(norm: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """Split a batch norm into its normalisation and its affine part (None if it has none); both are batch norms."""
    if not isinstance(norm, NORMS) or not norm.affine:
        return norm, None
    affine = copy.deepcopy(norm)
    assert affine.running_mean is not None and affine.running_var is not None
    with torch.no_grad():
        norm.weight.fill_(1)
        norm.bias.zero_()
        affine.running_mean.zero_()
        affine.running_var.fill_(1)
    affine.eps = torch.finfo(torch.float32).tiny  # 1 + eps rounds to 1; torch 2.11 refuses eps = 0
    return norm, affine.eval()


def _axis(z: fx.Node, owner: fx.GraphModule, normalised: bool) -> int | None:
    """The channel axis of z, by the layers that write it: 1 after a convolution, -1 after a Linear."""
    module = module_of(z, owner)
    if isinstance(module, RandomFeatures):
        return None if normalised and module.axis == -1 else module.axis
    if isinstance(module, nn.Linear):
        return None if normalised else -1  # the channels of a batch norm are axis 1, those of a Linear the last axis
    if isinstance(module, MAPS):
        return 1
    if isinstance(module, nn.BatchNorm1d):  # its input is (N, d) or (N, d, length)
        return 1 if _axis(z.all_input_nodes[0], owner, False) == 1 else None
    if z.op in ("placeholder", "get_attr"):
        return None
    if is_function(z, (), (F.linear,)):
        return -1
    if is_function(z, (), (F.conv1d, F.conv2d, F.conv3d, F.avg_pool2d, F.adaptive_avg_pool2d)):
        return 1
    if is_function(z, ("permute",), (torch.permute,)):
        return _moved(z, _axis(z.all_input_nodes[0], owner, False))
    if is_function(z, MOVING, (torch.flatten, torch.transpose, torch.reshape, torch.mean, operator.getitem)):
        return None
    axes = {_axis(source, owner, False) for source in z.all_input_nodes if source.op != "get_attr"} - {None}
    return axes.pop() if len(axes) == 1 else None


def _moved(node: fx.Node, axis: int | None) -> int | None:
    """Where a permutation puts the channel axis: 1, or -1 for the last axis; None for any other place."""
    arguments = node.args[1:]
    dims = [d for d in (arguments[0] if isinstance(arguments[0], tuple | list) else arguments) if isinstance(d, int)]
    if axis is None or len(dims) < 2:
        return None
    now = [d % len(dims) for d in dims].index(axis % len(dims))
    return {len(dims) - 1: -1, 1: 1}.get(now)


def _writer(z: fx.Node, owner: fx.GraphModule) -> nn.Linear | _ConvNd | None:
    module = module_of(z, owner)
    return module if isinstance(module, nn.Linear | _ConvNd) and module.bias is None else None


def _readers(phi: fx.Node, owner: fx.GraphModule) -> list[fx.Node]:
    """The nodes that use phi. Nodes that return phi unchanged are replaced by their own readers."""
    readers: list[fx.Node] = []
    for user in phi.users:
        readers += _readers(user, owner) if user.op != "output" and passes_on(user, owner) else [user]
    return readers


def _feeds_flatten(phi: fx.Node, owner: fx.GraphModule) -> bool:
    readers = [node for node in _readers(phi, owner) if not is_function(node, ("size", "dim"), (getattr,))]
    return len(readers) == 1 and is_flatten(readers[0], owner)


def _reaches_linear(phi: fx.Node, owner: fx.GraphModule) -> bool:
    seen, waiting = {phi}, [phi]
    while waiting:
        for user in waiting.pop().users:
            if is_linear(user, owner):
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def _is_gate(sigma: nn.Module, phi: fx.Node, owner: fx.GraphModule, data: set[fx.Node]) -> bool:
    """Whether phi is a factor of another activation, and lies between 0 and 1 after scalings by constants."""
    scalings = is_factor(phi, owner, data)
    return scalings is not None and (
        isinstance(sigma, nn.Sigmoid | nn.Hardsigmoid) or in_unit_interval(sigma, scalings)
    )
