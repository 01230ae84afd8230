# SPDX-License-Identifier: BSD-3-Clause
"""Layers for other numbers of channels, with new parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# Subclasses are not recognised: they may compute something else.
WRITERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
OVER_LAST = (nn.LayerNorm, nn.RMSNorm)
NORMS: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, *OVER_LAST),
)
CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the dimensions of their maps


def resized(module: Any, x: Tensor, outputs: int | None) -> nn.Module | None:
    """A module of the same kind, with new parameters, that takes x; None if it takes x as it is.

    Args:
        module: a layer or a normalisation.
        x: a batch.
        outputs: channels that it writes; None keeps their number. A normalisation has those of x.

    Raises:
        ValueError: there is none with these channels.
    """
    if type(module) in WRITERS:
        return _writer(module, x, outputs)
    if type(module) in NORMS:
        return _norm(module, x)
    return None


def geometry(conv: Any) -> dict[str, Any]:
    """The arguments of an ungrouped convolution beside its channels and its bias."""
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {name: getattr(conv, name) for name in names}


def _writer(module: Any, x: Tensor, outputs: int | None) -> nn.Module | None:
    weight, is_conv = module.weight, isinstance(module, _ConvNd)
    inputs, before = (x.shape[1], module.in_channels) if is_conv else (x.shape[-1], module.in_features)
    outputs = len(weight) if outputs is None else outputs
    if (inputs, outputs) == (before, len(weight)):
        return None
    if is_conv and module.groups > 1:
        raise ValueError(f"groups={module.groups} with {inputs} instead of {before} channels of input: wanted groups=1")
    how = {"bias": module.bias is not None, "device": weight.device, "dtype": weight.dtype}
    return type(module)(inputs, outputs, **how, **(geometry(module) if is_conv else {}))


def _norm(module: Any, x: Tensor) -> nn.Module | None:
    if isinstance(module, OVER_LAST):
        before: tuple[int, ...] = tuple(module.normalized_shape)
        after = tuple(x.shape[-len(before) :])
    else:
        before = (module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features,)
        after = tuple(x.shape[1:2])
    if before == after:
        return None
    if len(before) > 1:
        raise ValueError(
            f"normalized_shape={before} with an input of {tuple(x.shape[1:])}: wanted one of channels only"
        )
    values = [*module.parameters(), *module.buffers()]
    how: dict[str, Any] = {"eps": module.eps, "device": x.device, "dtype": values[0].dtype if values else None}
    if isinstance(module, _NormBase):
        how |= {name: getattr(module, name) for name in ("momentum", "affine", "track_running_stats")}
    elif isinstance(module, nn.GroupNorm):
        return nn.GroupNorm(module.num_groups, after[0], affine=module.affine, **how)
    else:
        how["elementwise_affine"] = module.elementwise_affine
    if isinstance(module, nn.LayerNorm):
        how["bias"] = module.bias is not None
    return type(module)(after[0], **how)
