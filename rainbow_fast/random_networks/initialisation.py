# SPDX-License-Identifier: BSD-3-Clause
"""Initial weights that whiten the activations of a batch, layer by layer: they do once what batch norm does always."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from rainbow_fast.arguments import between, flag, integer, one_of, tensor
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.gaussian import MOST
from rainbow_fast.rainbow.inputs import dtype_of_inputs
from rainbow_fast.random_networks.whitening import FACTORS, SCALES, Inputs, Whitening
from rainbow_fast.tracing.copies import copied
from rainbow_fast.tracing.graph import CannotTrace, capture
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.trace import checked

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NAMED = 6  # most layers that a message names


def init_orthogonal_(
    module: nn.Module,
    batch: Tensor,
    *,
    exponent: float = 1.0,
    factor: str = "identity",
    gain: float = 1.0,
    scale: str = "rms",
    eps: float = 1e-5,
    keep_bias: bool = False,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    r"""Overwrite the weights of linear and convolutional layers by ones that orthogonalise the activations of a batch.

        W = gamma Q (H^T H + eps m I)^(-exponent / 2)

    H (rows, inputs) holds the inputs of the layer on the batch: one row for each sample, for each position of a sample
    (a Linear of sequences), or for each patch (a convolution). m is the mean eigenvalue of H^T H. Layers come in the
    order of the forward, and H is what the layers before it, which have their new weights, compute. With exponent 1,
    all singular values of the outputs H W^T are equal; with exponent 1/2, they are proportional to the square roots of
    those of H. The orthogonality gap of the outputs is below that of H in both cases, in layers with at least as many
    outputs as inputs, unless H is orthogonal already.

    With fewer outputs than inputs, Q has orthonormal rows, which span the leading eigenvectors of H^T H, so that what
    is said of singular values holds for those. With more outputs than inputs, Q has orthonormal columns.

    A grouped convolution is one such layer for each group, which reads the patches of its own channels: H^T H and Q are
    block diagonal, m and gamma are those of all groups. The outputs of a group are orthogonalised, and with exponent 1
    the singular values of all groups are equal; outputs of different groups stay as correlated as their inputs. A
    depthwise convolution with one output a channel reads the leading eigenvector of the patches of each channel.

    The module is traced by torch.fx. Batch norms are not overwritten. Those in train mode use the statistics of the
    batch, as in training, and those in eval mode their running ones, which do not change. Dropout is off.

    Args:
        module: any network of one input that torch.fx can trace. Layers of class `nn.Linear`, `nn.Conv1d` and
            `nn.Conv2d` are initialised, with any kernel, stride, dilation, padding and groups.
        batch: (n, ...) samples, as the network receives them. Each layer needs at least min(inputs, outputs) rows,
            those of one group.
        exponent: above 0 and at most 1. 1 (default) whitens; 1/2 is the published equation.
        factor: Q. ``"identity"`` (default): the matrix nearest to the identity, so that the outputs are the polar
            factor of H, up to gamma (ZCA whitening). A layer with more outputs than inputs has a Haar factor instead,
            as some of its outputs would be zero otherwise. ``"haar"``: a uniformly random orthogonal matrix; gradients
            of deep networks then grow from layer to layer (`docs/random_networks.md`). ``"slice"``: as in the published
            code, the whitened first rows of H, one for each output. This Q is not orthogonal, and needs as many rows as
            outputs. ``"polar_slice"``: the polar factor of that slice, the orthogonal matrix that the paper's text
            speaks of and that is nearest to the published one.
        gain: the root mean square of the outputs of a layer on the batch, or their Frobenius norm (`scale`). 1 by
            default.
        scale: ``"rms"`` (default) or ``"frobenius"``, as in the published code.
        eps: what is added to H^T H, relative to its mean eigenvalue. Directions of H whose singular value is below
            sqrt(eps) times the root mean square one are not brought to the size of the others, so that noise and units
            that are hardly ever active are not amplified by more than 1 / sqrt(eps). 1e-5 by default. 0 is exact, and
            needs an H of full rank min(inputs, outputs).
        keep_bias: keep the biases of the layers; by default they become zero.
        layers: names of the layers to initialise; None (default) for all.
        seed: of the Haar factors, 0 <= seed < 2^63.

    Returns:
        `module`, with the dtypes, devices and keys of the state dict that it had. Two calls with the same seed and the
        same number of threads give the same bits. Gradients are not recorded, and no random state changes.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `batch` is empty, not finite, or has too few samples; an option is out of its range; torch.fx cannot
            trace the module; there is no layer to initialise; `layers` names no layer, or one that is left; H is zero
            or not finite, lacks rank with ``eps=0``, or begins with rows of zeros where a slice is taken; or weights
            overflow their dtype. Nothing is overwritten then.

    Warns:
        UserWarning: with ``layers=None``, layers are left as they are: transposed and 3-d convolutions, layers whose
            weight is computed or belongs to several layers, layers that the forward does not call as modules, and
            layers of other classes. The warning names them.

    Source: Daneshmand, Joudaki and Bach, "Batch normalization orthogonalizes representations in deep random networks"
    (NeurIPS 2021), section 5 and equation 6, with an orthogonal Q. The published code takes ``factor="slice",
    scale="frobenius"``, exponent 1 for perceptrons and 1/2 for convolutions, no eps, and leaves the first and the last
    layer.
    """
    module = checked(module, "module")
    whitening = Whitening(
        exponent=between(0, 1, "0 < exponent <= 1", open_low=True)("exponent", exponent),
        factor=one_of("factor", factor, FACTORS),
        eps=between(0, math.inf, "0 <= eps < infinity", open_high=True)("eps", eps),
        gain=between(0, math.inf, "0 < gain < infinity", open_low=True, open_high=True)("gain", gain),
        scale=one_of("scale", scale, SCALES),
        seed=integer("seed", seed, 0, MOST["seed"]),
    )
    flag("keep_bias", keep_bias)
    x = _checked_batch(module, batch)
    left = _left(module)
    wanted = _wanted(module, layers, left)
    network = copied(module)
    pairs = zip(network.modules(), module.modules(), strict=True)
    training = [ours for ours, theirs in pairs if isinstance(ours, _BatchNorm) and theirs.training]
    with torch.no_grad(), untouched(x.device):
        try:
            root = nn.Sequential(network) if isinstance(network, LAYERS) else network  # a layer alone is not traced
            graph, _ = capture(root, example=x[:1])
        except CannotTrace as reason:
            raise ValueError(f"module: torch.fx cannot trace it ({reason})") from None
        for part in training:  # the copy and its graph are in eval mode
            part.train()
        run = _Run(graph, network, wanted, whitening, keep_bias)
        run(x)
    missed = {name: "the forward does not call it as a module" for name in wanted if name not in run.done}
    _check_missed(missed if layers is not None else {}, run.done, left | missed)
    with torch.no_grad():
        for name in run.done:
            layer, other = module.get_submodule(name), network.get_submodule(name)
            for old, new in zip(layer.parameters(recurse=False), other.parameters(recurse=False), strict=True):
                old.copy_(new)
    if layers is None and left | missed:
        warnings.warn(f"init_orthogonal_: layers left as they are: {_listed(left | missed)}", stacklevel=2)
    return module


class _Run(fx.Interpreter):
    """Runs a graph on a batch, and initialises each wanted layer when its first call comes."""

    def __init__(
        self, graph: fx.GraphModule, network: nn.Module, wanted: list[str], whitening: Whitening, keep_bias: bool
    ) -> None:
        super().__init__(graph)
        self.whitening, self.keep_bias = whitening, keep_bias
        self.names = {network.get_submodule(name): name for name in wanted}
        self.places = {name: place for place, name in enumerate(wanted)}
        self.done: list[str] = []

    def __call__(self, x: Tensor) -> None:
        self.args_iter = iter([x])
        for node in self.graph.nodes:  # `run` would start a thread, for a bar of progress
            self.env[node] = self.run_node(node)
            for read in self.user_to_last_uses.get(node, []):
                del self.env[read]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(str(target))
        name = self.names.get(layer)
        if name is not None and name not in self.done:
            groups = _inputs(layer, args[0] if args else kwargs["input"])
            weight = self.whitening.weight(groups, len(layer.weight) // len(groups), self.places[name], name)
            layer.weight.copy_(weight.view_as(layer.weight))
            if not bool(layer.weight.isfinite().all()):
                raise ValueError(f"layer {name!r}: weights of {weight.abs().max():.2g} overflow {layer.weight.dtype}")
            if layer.bias is not None and not self.keep_bias:
                layer.bias.zero_()
            self.done.append(name)
        return super().call_module(target, args, kwargs)


def _inputs(layer: nn.Module, x: Tensor) -> list[Inputs]:
    """The rows that a layer multiplies by its weights: samples and positions, or the patches of each group."""
    if isinstance(layer, nn.Linear):
        H = x.reshape(-1, x.shape[-1]).double()
        return [Inputs(len(H), H.shape[1], lambda: cross_covariance(H), lambda count: H[:count], x.dtype)]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    maps, padding = x.double(), layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        maps, padding = F.pad(maps, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.kernel_size)
    window = [tuple(sizes) for sizes in (layer.kernel_size, layer.stride, padding, layer.dilation)]
    if maps.dim() == 3:  # (n, inputs, length), as a map with one row
        maps, window = maps.unsqueeze(2), [(none, *sizes) for none, sizes in zip((1, 1, 0, 1), window, strict=True)]
    return [_patches(part.contiguous(), window, x.dtype) for part in maps.chunk(layer.groups, 1)]


def _patches(maps: Tensor, window: list[tuple[int, ...]], dtype: torch.dtype) -> Inputs:
    """The patches of maps (n, channels, height, width), for a window of kernel, stride, padding and dilation."""
    kernel, stride, pads, dilation = window

    def unfolded(some: Tensor) -> Tensor:
        return F.unfold(some, kernel, dilation, pads, stride)  # (n, channels kernel, positions)

    def moments() -> Tensor:
        if all(len(set(sizes)) == 1 for sizes in window):
            return cross_covariance(maps, patch=(kernel[0], stride[0], pads[0], dilation[0]))
        return cross_covariance(unfolded(maps))

    def first(count: int) -> Tensor:
        return unfolded(maps[: -(-count // positions)]).transpose(1, 2).flatten(0, 1)[:count]

    positions = unfolded(maps[:1, :1]).shape[2]
    return Inputs(len(maps) * positions, maps.shape[1] * math.prod(kernel), moments, first, dtype)


def _checked_batch(module: nn.Module, batch: Any) -> Tensor:
    """The batch as the module receives it."""
    batch = tensor("batch", batch)
    if batch.dim() < 2 or len(batch) == 0:
        raise ValueError(f"batch has shape {tuple(batch.shape)}: wanted samples (n, ...), n > 0")
    if batch.is_complex():
        raise TypeError(f"batch is {batch.dtype}: wanted real numbers, or integers")
    if batch.is_floating_point() and not bool(batch.isfinite().all()):
        raise ValueError("batch is not finite")
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is None:
        raise ValueError("module: no parameters, wanted a network with linear or convolutional layers")
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"module: parameter {name!r} has no shape yet, wanted a module that has been called")
    dtype = dtype_of_inputs(module, batch[:1], like.device, like.dtype)
    return as_numbers(batch, like.device, dtype)


def _left(module: nn.Module) -> dict[str, str]:
    """The layers with a matrix of weights that are not initialised, with the reason."""
    owners = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    left = {}
    for name, part in module.named_modules():
        if not isinstance(part, _ConvNd | nn.Linear):
            own = [p for p in part.parameters(recurse=False) if p.dim() > 1]
            if own and not isinstance(part, nn.Embedding | nn.EmbeddingBag):
                left[name] = f"parameters of class {type(part).__name__}"
        elif "weight" not in part._parameters:
            left[name] = "its weight is computed from other parameters"
        elif owners[id(part.weight)] > 1:
            left[name] = "its weight belongs to several layers"
        elif not isinstance(part, LAYERS):
            left[name] = f"of class {type(part).__name__}"
    return left


def _wanted(module: nn.Module, layers: Iterable[str] | None, left: dict[str, str]) -> list[str]:
    """The names of the layers to initialise, in the order of the module."""
    names = [name for name, part in module.named_modules() if isinstance(part, LAYERS) and name not in left]
    if layers is None:
        if not names:
            reasons = f": {_listed(left)}" if left else ""
            raise ValueError(f"module: no layer to initialise, wanted a Linear or a convolution{reasons}")
        return names
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"layers={layers!r}: wanted names of layers, such as {names[:2]}")
    chosen = list(layers)
    for name in chosen:
        if name in left:
            raise ValueError(f"layers: layer {name!r} cannot be initialised: {left[name]}")
        if name not in names:
            raise ValueError(f"layers: no layer {name!r}, wanted some of {', '.join(map(repr, names)) or 'none'}")
    if not chosen:
        raise ValueError("layers: none, wanted at least one name, or None for all")
    return [name for name in names if name in chosen]


def _check_missed(missed: dict[str, str], done: list[str], left: dict[str, str]) -> None:
    if missed:
        raise ValueError(f"layers: cannot be initialised: {_listed(missed)}")
    if not done:
        raise ValueError(f"module: no layer to initialise, wanted a Linear or a convolution: {_listed(left)}")


def _listed(left: dict[str, str]) -> str:
    texts = [f"{name!r} ({reason})" for name, reason in list(left.items())[:NAMED]]
    return ", ".join(texts) + (f" and {len(left) - NAMED} more" if len(left) > NAMED else "")
