# SPDX-License-Identifier: BSD-3-Clause
"""Files of fitted models: the weights of the reference, the moments of its sites, and the data to align on."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from rainbow_fast.arguments import integer
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.fields import renamed
from rainbow_fast.formats import Format
from rainbow_fast.joint_inputs import Input, layout_of
from rainbow_fast.rainbow.chunks import Data, runs_channels_last
from rainbow_fast.rainbow.files.several_inputs import of_inputs
from rainbow_fast.rainbow.inputs import dtype_of_inputs
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.moments import CENTERS, KEYS
from rainbow_fast.rainbow.network.packing import Positive, copied
from rainbow_fast.rainbow.options import FitOptions
from rainbow_fast.rainbow.prepare import Prepared, chunk_size, site_shapes
from rainbow_fast.rainbow.site_statistics import SiteStatistics, warn_if_few
from rainbow_fast.tracing.same_function import FEW, check
from rainbow_fast.tracing.trace import checked, trace

SETS = ("alignment", "held_out")  # names of the two data sets in a file


class PackedStatistics(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the header of the file says of a site; `activity` is None if it is not a number."""

    name: str
    layers: list[str]
    d: Positive
    z_shape: list[Positive]
    phi_shape: list[Positive]
    activity: float | None = None


class ModelHeader(msgspec.Struct, forbid_unknown_fields=True):
    """The header of the file of a model."""

    sites: list[PackedStatistics]
    max_samples: Positive
    holdout_seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    inputs: list[Input] = []


# Version 1 has sums about 0, without centers; version 2 has no checksums; version 3 has one input only.
MODEL = Format("rainbow_fast.model", 4, "rainbow model", ModelHeader, summed_since=3, key="model")


def save_model(model: RainbowModel, path: str | os.PathLike[str], *, probe: int | None = None) -> None:
    """Write a fitted model to a safetensors file. The write is atomic: either the whole file is written or none.

    THE FILE CONTAINS YOUR DATA: the samples of the alignment set and the held-out samples, in their own dtype, with
    their labels. It also contains the weights of the reference, and the moments of every site over the whole alignment
    set. To share a sampled network without data, use `rainbow_fast.save`.

    Args:
        model: the result of `fit`.
        path: the file.
        probe: keep at most this number of samples of each of the two sets, the first ones. None (default) keeps all;
            networks that are sampled later then have the same bits.

    Raises:
        TypeError: `model` is not a `RainbowModel`, or `probe` is not an integer.
        ValueError: `probe` is below 1, or the model has several references; or `path` is a folder, a device or a pipe.
        FileNotFoundError: the folder of `path` is missing.
        OSError: the folder of `path` cannot be written into, or its disk is full.
    """
    if not isinstance(model, RainbowModel):
        raise TypeError(f"model: wanted a RainbowModel, got {type(model).__name__}")
    if model.prepared.trace.references > 1:
        raise ValueError(f"model: fitted to {model.prepared.trace.references} references, wanted one")
    probe, prepared = None if probe is None else integer("probe", probe, 1), model.prepared
    tensors = {f"reference.{name}": copied(value) for name, value in model.reference.state_dict().items()}
    for s in model.sites:
        tensors |= {f"sites.{s.site.index}.{name}": copied(value) for name, value in s.z.state_dict().items()}
    for name, data in zip(SETS, (prepared.align, prepared.held), strict=True):
        tensors[f"{name}.x"] = copied(data.samples(0, probe))
        if data.labels is not None:
            tensors[f"{name}.labels"] = copied(data.labels[:probe])
    joint = prepared.align.joint
    inputs = [] if joint is None else list(joint.inputs)
    header = ModelHeader([_about(s) for s in model.sites], prepared.max_samples, prepared.holdout_seed, inputs)
    MODEL.write(Path(path), header, tensors)


@renamed(pointwise="pointwise_modules")
def load_model(
    path: str | os.PathLike[str],
    reference: nn.Module,
    *,
    pointwise_modules: Iterable[type[nn.Module]] = (),
    channel_axes: Mapping[str, int] | None = None,
    output: str | int | None = None,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
) -> RainbowModel:
    """Read a fitted model that `save_model` has written. Nothing is unpickled.

    Args:
        path: the file.
        reference: a network of the same architecture, on the device to compute on. It is copied, and the copy gets the
            weights of the file, in their dtype. The weights of `reference` are not used.
        pointwise_modules, channel_axes, output, metric: as in `fit`.

    Raises:
        FileNotFoundError: there is no file at `path`.
        TypeError: `reference` is not an nn.Module.
        ValueError: the file is truncated, damaged, of another format or of a newer version; or `reference` has other
            parameters, buffers or sites than the file, or does not depend on its input alone, as `fit` requires. The
            message names them.

    Warns:
        UserWarning: an older version wrote the file, without checksums; or it has fewer samples for a site than twice
            its channels, so that the alignment over-fits.
    """
    reference = checked(reference, "reference")
    path = Path(path)
    header, tensors = MODEL.read(path)
    prefix = "reference."
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    network = _with_weights(reference, state, path)
    first = next(network.parameters())
    device, dtype = first.device, first.dtype.to_real()
    try:
        x = {name: tensors[f"{name}.x"] for name in SETS}
        labels = {name: tensors.get(f"{name}.labels") for name in SETS}
        _check_data(x, labels, path)
        network = of_inputs(network, header.inputs, math.prod(x["alignment"].shape[1:]), path)
        inputs = dtype_of_inputs(network, x["alignment"][:1], device, dtype)
        example = as_numbers(x["alignment"][:1], device, inputs)
        kinds = tuple(pointwise_modules)
        traced = trace(network, example, kinds, channel_axes=channel_axes)
        sites = site_shapes(traced, example)
        _check_sites(sites, header, path)
        for s, about in zip(sites, header.sites, strict=True):
            _load_moments(s, tensors, path)
            s.activity = math.nan if about.activity is None else about.activity
            if not (s.site.output or s.site.gate):
                warn_if_few(s.site.name, len(x["alignment"]) * s.positions, s.channels)
    except KeyError as error:
        raise ValueError(f"path: {path} is damaged, it has no {error.args[0]!r}") from None
    size = chunk_size(sites, example)
    last = runs_channels_last([traced], example)
    data = [
        Data(x[k], None if y is None else y.to(device), size, device, dtype, None, last, inputs, layout_of(network))
        for k, y in labels.items()
    ]
    options = FitOptions(
        max_samples=header.max_samples,
        pointwise_modules=kinds,
        channel_axes=channel_axes,
        output=output,
        metric=metric,
    )
    prepared = Prepared(traced, ((network, traced),), sites, data[0], data[1], options, header.holdout_seed)
    counts = None if output is None else prepared.score.of
    outputs = check(network, traced, data[0].chunk(0)[:FEW], kinds, counts=counts)
    for name, each in zip(SETS, data, strict=True):
        if each.labels is not None:
            try:
                prepared.score.check(each.labels, outputs, name)
            except (TypeError, ValueError) as error:
                raise ValueError(f"path: {path} does not fit reference, output or metric: {error}") from None
    return RainbowModel(prepared)


def _about(s: SiteStatistics) -> PackedStatistics:
    """The properties that a site has in every network of the architecture, and its activity."""
    layers = [type(layer).__name__ for layer in s.site.reference]
    return PackedStatistics(
        name=s.site.name,
        layers=layers,
        d=s.d,
        z_shape=list(s.z_shape),
        phi_shape=list(s.phi_shape),
        activity=s.activity,
    )


def _check_sites(sites: Iterable[SiteStatistics], header: ModelHeader, path: Path) -> None:
    described = [_about(s) for s in sites]
    names = [[about.name for about in each] for each in (described, header.sites)]
    if names[0] != names[1]:
        raise ValueError(f"reference: its sites are {', '.join(names[0])}, those of {path} {', '.join(names[1])}")
    for mine, expected in zip(described, header.sites, strict=True):
        for key in ("layers", "d", "z_shape", "phi_shape"):
            here, there = getattr(mine, key), getattr(expected, key)
            if here != there:
                raise ValueError(f"reference: site {expected.name!r} has {key} {here}, that of {path} has {there}")


def _load_moments(s: SiteStatistics, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the moments of a site from the tensors of a file."""
    of_site = f"sites.{s.site.index}."
    keys = KEYS + (CENTERS if f"{of_site}{CENTERS[0]}" in tensors else ())
    state = {key: tensors[of_site + key].to(s.device) for key in keys}
    if state["cross"].shape != (s.d, s.d) or any(
        t.dtype != torch.float64 for key, t in state.items() if key != "count"
    ):
        raise ValueError(f"path: {path} is damaged: site {s.site.name!r} wanted moments of {s.d} channels, float64")
    if state["count"].dtype != torch.int64 or state["count"].numel() != 1 or state["count"] < 1:
        raise ValueError(f"path: {path} is damaged: site {s.site.name!r} has no number of samples")
    try:
        s.z.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"path: {path} is damaged: site {s.site.name!r}: {error}") from error


def _check_data(x: Mapping[str, Tensor], labels: Mapping[str, Tensor | None], path: Path) -> None:
    """Check that the alignment set and the held-out samples in a file are samples and labels."""
    first = x[SETS[0]]
    if first.dim() < 1 or not len(first) or x[SETS[1]].shape[1:] != first.shape[1:]:
        raise ValueError(f"path: {path} is damaged: its samples have shapes {[tuple(t.shape) for t in x.values()]}")
    for name, y in labels.items():
        if y is not None and y.shape[:1] != x[name].shape[:1]:
            raise ValueError(f"path: {path} is damaged: its labels are {y.dtype} of shape {tuple(y.shape)}")


def _with_weights(reference: nn.Module, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """A copy of a network with other weights, in the dtype of these weights. Shared parameters stay shared."""
    network = copy.deepcopy(reference)
    own = network.state_dict(keep_vars=True)
    missing, foreign = [n for n in own if n not in state], [n for n in state if n not in own]
    if missing or foreign:
        what = f"{missing[0]!r}, which {path} has not" if missing else f"no {foreign[0]!r}, which {path} has"
        raise ValueError(f"reference: it has {what}: wanted the architecture that was saved")
    for name, value in state.items():
        if own[name].shape != value.shape:
            shapes = tuple(own[name].shape), tuple(value.shape)
            raise ValueError(f"reference: {name!r} has shape {shapes[0]}, that of {path} has {shapes[1]}")
        own[name].data = value.to(own[name].device)
    return network
