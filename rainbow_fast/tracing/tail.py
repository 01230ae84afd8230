# SPDX-License-Identifier: BSD-3-Clause
"""The layers after the last site: average pooling and Flatten, then the classifier, if it can be refit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from rainbow_fast.tracing.graph import NOTHING_TO_DO, is_call, is_function
from rainbow_fast.tracing.site import Site, is_flatten
from rainbow_fast.tracing.wavelet_maps import ByFilter

AVERAGES = (
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)


@dataclass(frozen=True, eq=False)
class Tail:
    """The layers after the last site. The outputs of the network are ``last(between(phi))``.

    Attributes:
        between: maps the activations phi (N, d, *space) of the last site to one row of features for each sample.
        last: the classifier.
        name: the dotted name of the classifier.
        others: the layers between that are no average pooling and no Flatten, by their kinds. Without them, `between`
            is linear and treats all channels alike.
        trainable: the names of the modules of `between` that have parameters or buffers of the reference.
    """

    between: fx.GraphModule
    last: nn.Linear
    name: str
    others: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether a layer of `between` has parameters."""
        return any(True for name in self.trainable for _ in self.between.get_submodule(name).parameters())

    def layers(self) -> dict[str, nn.Module]:
        """The layers of the tail that training changes, by their names: those of `trainable`, then the classifier."""
        return {name: self.between.get_submodule(name) for name in self.trainable} | {self.name: self.last}

    def features(self, phi: Tensor) -> int:
        """How many inputs of the classifier one channel of phi gives; each position that is not pooled is one.

        Raises:
            ValueError: the number of features is not proportional to the number of channels.
        """
        each = []
        for channels in (1, 2):
            x = phi.new_zeros(1, channels, *phi.shape[2:])
            try:
                each.append(self.between(x).shape[1])
            except RuntimeError:
                each.append(0)
        if each[0] == 0 or each[1] != 2 * each[0]:
            raise ValueError(
                f"classifier: it can be refit only if the layers before it accept any number of channels; those "
                f"before {self.name!r} accept only {phi.shape[1]}"
            )
        return each[0]

    def keeps_constants(self, phi: Tensor) -> bool:
        """Whether `between` maps ones to ones. Average pooling with zero padding does not."""
        ones = phi.new_ones(1, 1, *phi.shape[2:])
        return bool((self.between(ones) - 1).abs().max() < 1e-5)


def of(graph: fx.GraphModule | None, sites: Sequence[Site]) -> Tail:
    """The tail of a network with this graph and these sites.

    Raises:
        ValueError: there is no graph, the network does not end in a Linear, or that Linear reads more than the
            activations of the last site.
    """
    if graph is None:
        raise ValueError("classifier: it can be refit only in a network that torch.fx can trace")
    place = next(iter(graph.graph.find_nodes(op="call_module", target=sites[-1].name)))
    output = next(iter(graph.graph.find_nodes(op="output")))
    nodes = list(graph.graph.nodes)
    after = nodes[nodes.index(place) + 1 : -1]
    end = output.args[0]
    last = graph.get_submodule(str(end.target)) if isinstance(end, fx.Node) and end.op == "call_module" else None
    between = [node for node in after if node is not end]
    affine = f"{sites[-1].name}_following"
    told = [node for node in after if not (_sizes(node) or is_call(node, graph, (ByFilter,)))]
    kinds = tuple(_kind(node, graph, affine) for node in told)
    reads = {source for node in between for source in node.all_input_nodes} - {place, *after}
    if not isinstance(last, nn.Linear) or end not in after or reads:
        raise ValueError(
            "classifier: only a Linear at the very end can be refit, if it reads the last site alone; "
            f"after the last site come {', '.join(kinds) or 'no layers'}"
        )
    body = fx.Graph()
    copies = {place: body.placeholder("phi")}
    for node in between:
        copies[node] = body.node_copy(node, lambda n: copies[n])
    body.output(copies[end.all_input_nodes[0]])
    others = () if all(_averages(node, graph) for node in between) else kinds
    calls = dict.fromkeys(str(node.target) for node in between if node.op == "call_module" and node.target != affine)
    trainable = tuple(name for name in calls if graph.get_submodule(name).state_dict())
    return Tail(fx.GraphModule(graph, body).eval(), last, str(end.target), others, trainable)


def _averages(node: fx.Node, owner: fx.GraphModule) -> bool:
    if node.op == "call_module":
        module = owner.get_submodule(str(node.target))
        return isinstance(module, (_AvgPoolNd, _AdaptiveAvgPoolNd, *NOTHING_TO_DO)) or is_flatten(node, owner)
    if is_function(node, ("mean",), (torch.mean,)):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
        dims = dims if isinstance(dims, tuple | list) else (dims,)
        return bool(dims) and all(isinstance(d, int) and d not in (0, 1) for d in dims)
    return _sizes(node) or is_flatten(node, owner) or is_function(node, (), (*AVERAGES, F.dropout, F.dropout2d))


def _sizes(node: fx.Node) -> bool:
    """Whether a node only reads or indexes a shape."""
    if is_function(node, ("size", "dim"), (getattr,)):
        return True
    return is_function(node, (), (operator.getitem,)) and _sizes(node.all_input_nodes[0])


def _kind(node: fx.Node, owner: fx.GraphModule, affine: str) -> str:
    if node.target == affine:
        return "affine part of a normalisation"
    if node.op == "call_module":
        return type(owner.get_submodule(str(node.target))).__name__
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
