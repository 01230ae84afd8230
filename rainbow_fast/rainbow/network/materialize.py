# SPDX-License-Identifier: BSD-3-Clause
"""Conversion of a sampled network to a plain wide module."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from rainbow_fast.networks.scattering import UnitNorm, Wavelets
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.rainbow.kinds import Pointwise, Wavelet
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.affine import Affine, Term, linear_of, norm_of
from rainbow_fast.tracing.graph import CannotTrace, capture, is_function, passes_on
from rainbow_fast.tracing.nonlinearities import NORMS
from rainbow_fast.tracing.site import is_flatten
from rainbow_fast.tracing.tail import AVERAGES
from rainbow_fast.tracing.wavelet_maps import ByFilter, order_by_channel

PADDED_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@torch.no_grad()
def materialize(body: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Convert the body of a `RainbowNetwork` to a module of standard PyTorch layers.

    Args:
        body: of the network.
        x: an input, for the shapes and the dtype.

    Returns:
        The module, and by the name of each site the layer of the module that gives the site's wide features. The module
        is a Sequential if the body is a chain of layers, otherwise a `torch.fx.GraphModule`. If torch.fx cannot trace
        the body, it is a copy of the body with a Sequential in the place of each sampled site.
    """
    try:
        owner, _ = capture(body, (RainbowActivation,), x[:1])
    except CannotTrace:
        return _swapped(body, x)
    ShapeProp(owner).propagate(x)
    return _Writer(owner, x).run()


def _swapped(body: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, nn.Module]]:
    inputs: dict[RainbowActivation, Tensor] = {}
    sites = [module for module in body.modules() if isinstance(module, RainbowActivation)]
    handles = [site.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]})) for site in sites]
    try:
        body(x)
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in body.named_modules()}
    written, features = {}, {}
    for site, z in inputs.items():
        written[id(site)], layers = materialize(nn.Sequential(site), z)
        features[names[site]] = layers["0"]
    return copy.deepcopy(body, written), features


class _Writer:
    """Goes through the graph of a body and writes the graph of the new network.

    Each node of the body has a value: a node of the new graph, in the coordinates of the reference, or an `Affine` map
    that has not been written yet. Linear layers, sums, concatenations and averages over space are combined with the
    affine map. For all other operations the arguments are written first, and the operation is copied.
    """

    def __init__(self, owner: fx.GraphModule, x: Tensor) -> None:
        self.owner, self.device = owner, x.device
        self.dtype = next(p.dtype for p in itertools.chain(owner.parameters(), (x,)) if p.is_floating_point())
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Affine | fx.Node] = {}
        self.layers = nn.ModuleDict()
        self.features: dict[str, nn.Module] = {}
        self.prefix = "wide"
        while hasattr(owner, self.prefix):
            self.prefix += "_"
        owner.add_submodule(self.prefix, self.layers)

    def run(self) -> tuple[nn.Module, dict[str, nn.Module]]:
        done: set[fx.Node] = set()
        for node in self.owner.graph.nodes:
            self.values[node] = value = self._value(node)
            done.add(node)
            if len(node.users) > 1 and isinstance(value, Affine) and not (value.pointwise and len(value.terms) == 1):
                self._written(node)  # otherwise every reader would compute it again
            for x in node.all_input_nodes:
                if x.users.keys() <= done:
                    del self.values[x]
        network = fx.GraphModule(self.owner, self.graph)
        network.graph.eliminate_dead_code()
        network.delete_all_unused_submodules()
        network.recompile()
        kept: dict[int, Any] = {id(layer): layer for layer in self.layers.values()}  # shared, everything else is copied
        network = copy.deepcopy(network, kept)
        nodes = list(network.graph.nodes)
        chain = all(node.args == (before,) and not node.kwargs for before, node in itertools.pairwise(nodes))
        if chain and all(node.op == "call_module" for node in nodes[1:-1]):
            parts = (network.get_submodule(str(node.target)) for node in nodes[1:-1])
            return nn.Sequential(*parts).eval(), self.features
        return network.eval(), self.features

    def _value(self, node: fx.Node) -> Affine | fx.Node:
        module = self.owner.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, RainbowActivation):
            return self._wavelets(node, module) if isinstance(module.kind, Wavelet) else self._site(node, module)
        if isinstance(module, RandomFeatures):
            return self._random_features(node, module)
        x = node.all_input_nodes[0] if node.all_input_nodes else node
        same = is_flatten(node, self.owner) and _shape(node) == _shape(x)
        if passes_on(node, self.owner) or same or is_function(node, (), (torch.view_as_real,)):
            return self.values[x]  # wavelets take complex maps here, not pairs
        value: Affine | fx.Node | None = None
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd):
            value = self._linear(node, module)
        elif isinstance(module, (*NORMS, ByFilter)):
            value = self._of_each_channel(node, module)
        elif is_function(node, ("add",), (operator.add, torch.add)):
            value = self._sum(node)
        elif is_function(node, (), (torch.cat, torch.concat, torch.concatenate)):
            value = self._concatenation(node)
        elif is_function(node, (), (F.pad,)):
            value = self._padding(node)
        elif is_function(node, ("size",), (getattr,)):
            value = self._size(node)
        else:
            value = self._average(node, module)
        return self.graph.node_copy(node, self._written) if value is None else value

    # Operations that can be combined with an affine map. None: the operation needs written arguments.

    def _site(self, node: fx.Node, site: RainbowActivation) -> Affine:
        assert site.A is not None and isinstance(site.kind, Pointwise)
        z = node.all_input_nodes[0]
        form = self._form(z, len(_shape(z)) - 1 if site.axis == -1 else 1)
        if site.gain is not None and site.bias is not None:
            form = form.scaled(site.gain.double(), site.bias.double())
        P = site.scale * site.A.double()
        offset = P.new_zeros(len(P)) if site.offset is None else site.offset.double()
        # The offset is the weight of a neuron that is 1 before sigma, so that zero padding also sets it to zero.
        one = float(site.kind.sigma(P.new_ones(1, 1, dtype=self.dtype)))
        constant = site.offset is not None and not site.flattened and one != 0
        wide = self._write(form.mixed(site.effective_rows(), constant=constant), f"{node.name}_map")
        for layer in (site.kind.before, site.kind.sigma, site.kind.after):
            if layer is not None:
                self.features[str(node.target)] = features = copy.deepcopy(layer)
                wide = self._call(features, wide, node.name)
        if site.flattened:
            wide = self._call(nn.Flatten(), wide, node.name)
            if form.axis > 1:  # in A, the positions of a neuron are adjacent
                P = P.view(len(P), site.n, -1).transpose(1, 2).flatten(1)
            return Affine((Term(wide, P),), offset, 1, 2)
        if constant:
            P, offset = torch.cat([P, (offset / one).unsqueeze(1)], 1), torch.zeros_like(offset)
        return Affine((Term(wide, P),), offset, form.axis, form.dims)

    def _wavelets(self, node: fx.Node, site: RainbowActivation) -> Affine:
        assert site.A is not None and isinstance(site.kind, Wavelet)
        kind, form = site.kind, self._form(node.all_input_nodes[0], 1)
        if kind.paired:  # the node has pairs, its value complex numbers
            form = replace(form, bias=form.bias.to(torch.complex128), dims=4)
        if site.gain is not None and site.bias is not None:
            form = form.scaled(site.gain.double(), site.bias.double() * (1 + 1j) if kind.paired else site.bias.double())
        wide = self._write(form.mixed(site.effective_rows(), constant=False), f"{node.name}_map")
        wide = self._call(UnitNorm(), wide, node.name) if kind.divides else wide
        self.features[str(node.target)] = features = Wavelets(kind.bank, kind.skip)
        wide = self._call(features, wide, node.name)
        A = site.A.double()
        if kind.complex_weights:  # from (Re A; Im A)
            A = torch.complex(*A.chunk(2, -2))
        if A.dim() == 3:  # a matrix for each feature
            F, d, n = A.shape
            A = torch.diag_embed(A.permute(1, 2, 0)).permute(0, 2, 1, 3).reshape(d * F, n * F)
        order = order_by_channel(site.n, kind.features, A.device).argsort()
        bias = A.new_zeros(len(A), dtype=torch.complex128 if kind.paired else torch.float64)
        if site.offset is not None:
            bias = torch.view_as_complex(site.offset.double()) if kind.paired else site.offset.double()
        return Affine((Term(wide, (site.scale * A)[:, order]),), bias, 1, 4)

    def _random_features(self, node: fx.Node, module: RandomFeatures) -> fx.Node:
        """Random features that are not sampled, with their own neurons."""
        x = node.all_input_nodes[0]
        G = gaussian(module.n, module.rank, seed=module.key, dtype=torch.float64, device=self.device)
        form = self._form(x, len(_shape(x)) - 1 if module.axis == -1 else 1)
        wide = self._write(form.mixed(module.factor * G, constant=False), f"{node.name}_map")
        phi = self._call(module.sigma, wide, node.name)
        return phi if module.pool is None else self._call(copy.deepcopy(module.pool), phi, node.name)

    def _linear(self, node: fx.Node, module: nn.Linear | _ConvNd) -> Affine | None:
        x = node.all_input_nodes[0]
        dims = len(_shape(x))
        if isinstance(module, _ConvNd) and (module.groups > 1 or dims != module.weight.dim()):
            return None
        layer, axis = linear_of(module), dims - 1 if isinstance(module, nn.Linear) else 1
        form = self._form(x, axis)
        if not form.pointwise or (form.bias.any() and not layer.keeps_constants):
            self._written(x)
            form = self._form(x, axis)
        return form.then(layer)

    def _of_each_channel(self, node: fx.Node, module: nn.Module) -> Affine | None:
        value = self.values[node.all_input_nodes[0]]
        if not isinstance(value, Affine) or value.axis != 1:
            return None
        if isinstance(module, ByFilter):
            order = order_by_channel(len(value.bias) // module.features, module.features, value.bias.device)
            return value.permuted(order.argsort())
        return value.scaled(*norm_of(module))

    def _sum(self, node: fx.Node) -> Affine | None:
        terms = [term for term in node.args if isinstance(term, fx.Node)]
        forms = [value for term in terms if isinstance(value := self.values[term], Affine)]
        if len(terms) < 2 or not forms or node.kwargs or _shape(terms[0]) != _shape(terms[1]):
            return None
        return self._form(terms[0], forms[-1].axis).plus(self._form(terms[1], forms[-1].axis))

    def _concatenation(self, node: fx.Node) -> Affine | None:
        parts: Any = node.args[0]
        if not isinstance(parts, tuple | list) or not all(isinstance(part, fx.Node) for part in parts):
            return None
        dim = _given(node, ("tensors", "dim")).get("dim", 0)
        axes = {value.axis for part in parts if isinstance(value := self.values[part], Affine)}
        if len(axes) != 1 or not isinstance(dim, int) or dim % len(_shape(node)) not in axes:
            return None
        if not self._read_by(node, (nn.Linear, _ConvNd, *NORMS, RainbowActivation)):
            return None  # each part is written separately
        before, total, forms = 0, _shape(node)[dim], []
        for part in parts:
            form = self._form(part, *axes)
            forms.append(form.padded(before, total - before - len(form.bias)))
            before += len(form.bias)
        joined = forms[0]
        for form in forms[1:]:
            joined = joined.plus(form)
        return joined

    def _padding(self, node: fx.Node) -> Affine | None:
        """Padding with channels of zeros."""
        value, arguments = self.values[node.all_input_nodes[0]], _given(node, ("input", "pad", "mode", "value"))
        pad = arguments["pad"]
        if (
            not isinstance(value, Affine)
            or not isinstance(pad, tuple | list)
            or arguments.get("mode", "constant") != "constant"
            or arguments.get("value")
        ):
            return None
        place = 2 * (value.dims - 1 - value.axis)  # pairs are listed from the last axis on
        if not all(isinstance(p, int) for p in pad) or any(pad[:place]) or any(pad[place + 2 :]):
            return None
        before, after = pad[place : place + 2] or (0, 0)
        return value.padded(before, after) if min(before, after) >= 0 else None

    def _size(self, node: fx.Node) -> fx.Node | None:
        """The number of images, read from the source of a term."""
        value = self.values[node.all_input_nodes[0]]
        first = node.args[1:] == (0,) or (
            node.args[1:] in ((), ("shape",))
            and all(is_function(user, (), (operator.getitem,)) and user.args[1] == 0 for user in node.users)
        )
        return self._on(node, value.terms[0]) if isinstance(value, Affine) and first else None

    def _average(self, node: fx.Node, module: nn.Module | None) -> Affine | None:
        """Averages, strides and Flatten act alike on all channels, so they are applied to the sources."""
        value = self.values[node.all_input_nodes[0]] if node.all_input_nodes else None
        if not isinstance(value, Affine) or not value.pointwise:
            return None
        axis, positions, layer = value.axis, 1, None
        if _over_space(node, value):
            axis -= sum(dim % value.dims < axis for dim in _dims(node)) * (len(_shape(node)) < value.dims)
        elif is_flatten(node, self.owner) and axis == 1 and _row_each(node) and self._read_by(node, (nn.Linear,)):
            positions, layer = math.prod(_shape(node.all_input_nodes[0])[2:]), nn.Flatten()
        elif not (_pools(node, module, value) or _takes_positions(node, value)):
            return None
        terms = tuple(
            Term(self._on(node, term) if layer is None else self._call(layer, term.source, node.name), term.weight)
            for term in value.terms
        )
        return Affine(terms, value.bias, axis, len(_shape(node)), positions)

    def _read_by(self, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
        """Whether only modules of these kinds read a value."""
        for user in node.users:
            module = self.owner.get_submodule(str(user.target)) if user.op == "call_module" else None
            if not (isinstance(module, kinds) or (passes_on(user, self.owner) and self._read_by(user, kinds))):
                return False
        return True

    # The new graph.

    def _form(self, node: fx.Node, axis: int) -> Affine:
        """A value as an affine map with channels along `axis`; a written value becomes the identity map of its node."""
        value = self.values[node]
        if isinstance(value, Affine) and value.axis == axis:
            return value
        dtype = torch.complex128 if node.meta["tensor_meta"].dtype.is_complex else torch.float64
        zero = torch.zeros(_shape(node)[axis], dtype=dtype, device=self.device)
        return Affine((Term(self._written(node), None),), zero, axis, len(_shape(node)))

    def _written(self, node: fx.Node) -> fx.Node:
        value = self.values[node]
        if isinstance(value, Affine):
            self.values[node] = value = self._write(value, node.name)
        return value

    def _write(self, form: Affine, name: str) -> fx.Node:
        parts = [
            source if layer is None else self._call(layer, source, name) for source, layer in form.layers(self.dtype)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.call_function(operator.add, (total, part))
        return total

    def _call(self, layer: nn.Module, source: fx.Node, name: str) -> fx.Node:
        unique, count = name, 0
        while unique in self.layers:
            count += 1
            unique = f"{name}_{count}"
        self.layers[unique] = layer
        return self.graph.call_module(f"{self.prefix}.{unique}", (source,))

    def _on(self, node: fx.Node, term: Term) -> fx.Node:
        """Apply the operation of a node to the source of a term."""
        x = node.all_input_nodes[0]
        return self.graph.node_copy(node, lambda n: term.source if n is x else self._written(n))


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["tensor_meta"].shape


def _dims(node: fx.Node) -> tuple[Any, ...]:
    dims = _given(node, ("input", "dim")).get("dim", ())
    return tuple(dims) if isinstance(dims, tuple | list) else (dims,)


def _pools(node: fx.Node, module: nn.Module | None, value: Affine) -> bool:
    """Whether a node averages each channel of a feature map. With a bias, it must not average padded zeros."""
    kind: Any = node.target if module is None else type(module)
    if not isinstance(module, _AvgPoolNd | _AdaptiveAvgPoolNd) and kind not in AVERAGES:
        return False
    batch = int(kind.__name__[-2]) + 2 == value.dims  # otherwise torch would take the images for channels
    padded = isinstance(module, _AvgPoolNd) or kind in PADDED_AVERAGES
    return batch and value.axis == 1 and not (padded and value.bias.any())


def _over_space(node: fx.Node, value: Affine) -> bool:
    """Whether a node is a mean over axes other than the batch axis and the channel axis."""
    if not is_function(node, ("mean",), (torch.mean,)) or "dtype" in node.kwargs:
        return False
    dims = _dims(node)
    return bool(dims) and all(isinstance(d, int) and d % value.dims not in (0, value.axis) for d in dims)


def _row_each(flat: fx.Node) -> bool:
    """Whether a Flatten gives one row for each image."""
    return len(_shape(flat)) == 2 and _shape(flat)[0] == _shape(flat.all_input_nodes[0])[0]


def _takes_positions(node: fx.Node, value: Affine) -> bool:
    """Whether a node slices only the positions of a feature map: all images, channels and axes are kept."""
    if not is_function(node, (), (operator.getitem,)):
        return False
    index: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    whole = all(index[axis] == slice(None) for axis in (0, value.axis) if axis < len(index))
    return whole and len(index) <= value.dims and all(isinstance(part, slice) for part in index)


def _given(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a call, by name."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
