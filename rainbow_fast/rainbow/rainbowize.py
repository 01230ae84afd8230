# SPDX-License-Identifier: BSD-3-Clause
"""From a network to one of the same architecture with rainbow layers, which is trained and then sampled."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from rainbow_fast.arguments import between, integer
from rainbow_fast.data.batching import batches, rows_of
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.rainbow.inputs import dtype_of_inputs
from rainbow_fast.rainbow.narrowing import RANK, Narrowing, checked_rank, input_of
from rainbow_fast.rainbow.rebuilding import Building, Plan, unused
from rainbow_fast.rainbow.spec import choose_sites
from rainbow_fast.tracing.channel_axis import Numbered
from rainbow_fast.tracing.copies import copied
from rainbow_fast.tracing.find import Found, find_sites
from rainbow_fast.tracing.graph import CannotTrace, capture, scope
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.trace import checked

DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}
EXPAND = between(0, math.inf, "a finite number above 0", open_low=True, open_high=True)


def rainbowize(
    module: nn.Module,
    x: object,
    *,
    rank: int | float | Mapping[str, int | float] = RANK,
    expand: float = 4,
    seed: int = 0,
    sites: Sequence[str] | None = None,
) -> nn.Module:
    r"""A network of the same architecture with rainbow layers, to be trained and then sampled by `sample`.

    At each chosen site, where the module computes ``phi = sigma(z)`` with d channels, the new network has::

        phi = sigma(G z / sqrt(r)),    z of r channels, phi of n = round(expand d) channels

    G (n, r) is Gaussian and fixed: a `rainbow_fast.nn.RandomFeatures` with this seed, and the site's place among all
    sites as its stream. What writes z gets r channels, with the operations between: layers, normalisations, pooling,
    sums. Where a Linear or a Conv2d stands directly before sigma, both become one `rainbow_fast.nn.RainbowLinear` or
    `RainbowConv2d`, with a bias if the layer has one. Max-pooling directly after sigma becomes the ``pool`` of the
    random features. What
    reads phi takes n channels. Everything else stays as it is.

    The network is not a copy of a trained one: all layers get new weights, from torch's global generator. Weights that
    write z are those of `RainbowLinear`, which keep the mean square of activations; biases start at 0. All other
    modules are initialised by their `reset_parameters`. Parameters of modules without one keep their values.

    Between a layer and its activation:

    - Batch norm normalises the r channels of z. In eval mode it is part of W and its bias, so that the n neurons are
      still independent samples of one Gaussian.
    - Max-pooling chooses among positions of the r channels of z, not of the n neurons.
    - A sum ``z = a + b`` has r channels. An operand that no layer writes, such as phi of another site on the skip of a
      residual network, gets a trained projection to r channels: a Linear or a convolution of size 1, without bias, and
      initialised as the others. It takes the place of a shortcut that adds channels of zeros.

    A sum that no chosen site reads keeps its channels; a trained projection gives them to an operand that has others.
    Sites that read the same sum, or another normalisation of it, have one z and therefore one rank.

    Args:
        module: the network, of one input; its graph is found as in `sites`. Dropout stays; anything else that a forward
            does in training only is left out. It is not changed.
        x: a batch (N, ...), or data as in `fit`; one sample is read, for the shapes.
        rank: r, the same for all sites that share z. An int, at most the inputs of a neuron in `module` (if several
            layers write z, of the layer with the most); or a fraction of d as a float, and r is then rounded, at least
            1 and at most that number; or a dict of these by site, 0.25 for sites that it does not name. 0.25 by
            default.
        expand: n / d; n is at least 1. 4 by default.
        seed: of G, 0 <= seed < 2^63. 0 by default.
        sites: names of the chosen sites, as `rainbow_fast.sites` lists them; by default all that it says are sampled.

    Returns:
        The network in training mode, with the device and the dtypes of the module: an `nn.Sequential` if it is a
        chain of modules, else an `fx.GraphModule`. Modules keep their names, and random features have that of their
        site; a Sequential has "_" for the dots in them, and a pair has the name of its layer. Outputs keep their
        shapes. A `nn.PReLU` at a chosen site becomes the leaky_relu of its present slope.

    Raises:
        TypeError: `module` is not an nn.Module, or a scripted one; an argument has another type.
        ValueError: an argument is outside its range; torch.fx cannot trace the module, or it has no site; `sites` or
            `rank` names something else; `sites` leaves out a site that reads the same sum as a chosen one. Or a chosen
            site cannot be a rainbow layer: it is one already, no kernel has its activation, z is not written by an
            ungrouped Linear or convolution. Or another part cannot take the new numbers of channels, such as a view
            with a size as a number, a grouped convolution, or a tied weight. The message names the site or the part.

    Source: the law of weights of Guth, Menard, Rochette and Mallat (JMLR 2024), section 2, as layers; White, Chaudhary,
    Wolf, Lajoie and Harris, "Learning stochastic rainbow networks" (2024).
    """
    module = checked(module, "module")
    expand, seed = EXPAND("expand", expand), integer("seed", seed, 0, 2**63 - 1)
    if not isinstance(rank, Mapping):
        checked_rank(rank, ())
    example = _example(module, x)
    with untouched(example.device):
        try:
            owner, _ = capture(copied(module), (), example)
        except CannotTrace as reason:
            raise ValueError(f"module: torch.fx cannot trace it ({reason})") from None
        _dropouts_as_modules(owner)
        places, left, _ = find_sites(owner, (), example)
        if not places:
            reasons = "".join(f"; {each.name!r}: {each.reason}" for each in left)
            raise ValueError(f"module: no site, wanted at least one pointwise non-linearity{reasons}")
        try:
            numbered = Numbered(owner, example)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"x: the module does not run on a sample of {tuple(example.shape)}: {error}") from error
    chosen = choose_sites(places, sites)
    ranks = checked_rank(rank, [each.site.name for each in chosen])
    others = [each for each in places if each not in chosen]
    narrowing = Narrowing(owner, chosen, others, numbered.shapes, numbered.axes)
    narrowing.set_ranks(ranks)
    plan = Plan(owner, narrowing, numbered, {each.site.name: _neurons(each, numbered, expand) for each in chosen}, seed)
    plan.rewrite()
    Building(plan, example)
    owner.graph.lint()
    return _as_chain(owner).train()


def _example(module: nn.Module, x: object) -> Tensor:
    """One sample of x as the module takes it."""
    like = next(module.parameters(), None)
    if like is None:
        raise ValueError("module: no parameters, wanted a network with linear layers")
    first = rows_of(next(iter(batches(x, name="x")))[0], 0, 1)
    if isinstance(first, dict):
        raise ValueError(f"x: inputs {', '.join(map(repr, first))}, wanted one tensor")
    return as_numbers(first, like.device, dtype_of_inputs(module, first, like.device, like.dtype))


def _dropouts_as_modules(owner: fx.GraphModule) -> None:
    """Let dropout functions, which a graph in eval mode has switched off, be modules, which training switches on."""
    for node in [node for node in owner.graph.nodes if node.op == "call_function" and node.target in DROPOUTS]:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        if bound.arguments["training"] is not False:
            continue
        name = unused(owner, f"{scope(node)}.dropout".lstrip("."))
        owner.add_submodule(name, DROPOUTS[node.target](bound.arguments["p"]).eval())
        with owner.graph.inserting_after(node):
            called = owner.graph.call_module(name, (bound.arguments["input"],))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        owner.graph.erase_node(node)


def _neurons(place: Found, numbered: Numbered, expand: float) -> int:
    z = input_of(place)
    return max(round(expand * numbered.shapes[z][numbered.axes[z]]), 1)


def _as_chain(owner: fx.GraphModule) -> nn.Module:
    """The modules of a graph in order, if it calls one after the other, each once; else the graph, without its tracer.

    A graph that knows a tracer of its own class cannot be unpickled.
    """
    source, *nodes, output = owner.graph.nodes
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for node in nodes:
        name = str(node.target).replace(".", "_")
        if node.op != "call_module" or node.args != (source,) or node.kwargs or name in parts:
            break
        source, parts[name] = node, owner.get_submodule(str(node.target))
    if output.args == (source,):
        return nn.Sequential(parts)
    graph = fx.Graph()
    graph.output(graph.graph_copy(owner.graph, {}))
    return fx.GraphModule(owner, graph)
