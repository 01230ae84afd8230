# SPDX-License-Identifier: BSD-3-Clause
"""Which samples networks are aligned on, and which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.data.dtypes import IGNORED
from rainbow_fast.data.gather import gather
from rainbow_fast.joint_inputs import JointInputs, padded
from rainbow_fast.rainbow.options import DataLimits, FitOptions


@dataclass(frozen=True)
class Part:
    """Some samples of a data set: the rows `index` of x and y, or all of them if there is no index.

    `inputs` is the layout of several inputs in the rows x; None for one input.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor | None = None
    inputs: JointInputs | None = None

    @property
    def first(self) -> Tensor:
        """The first sample, (1, ...)."""
        return self.x[:1] if self.index is None else self.x[self.index[:1].to(self.x.device)]

    def labels_on(self, device: torch.device) -> Tensor | None:
        """The labels of these samples."""
        if self.y is None:
            return None
        return (self.y if self.index is None else self.y[self.index.to(self.y.device)]).to(device)


Split = tuple[Part, Part]


def split(
    data: object, options: FitOptions, limits: DataLimits, *, labelled: bool = True, only_shapes: bool = False
) -> Split:
    """Split the data into samples to align on and samples that are held out. Both keep the order of the data.

    Args:
        data: as in `fit`; what this function has returned comes back unchanged.
        options: `images`, `holdout` and `holdout_seed` are read.
        labelled: whether labels are used.
        only_shapes: numbers of samples matter, not which. `options.images` may then be more than there are.

    Raises:
        TypeError, ValueError: data that cannot be used; a holdout of other shapes, or of all samples.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Part) for part in data):
        return data
    where: dict[str, Any] = {"memory_budget": limits.memory_budget, "scratch": limits.scratch_dir}
    where |= {"labelled": labelled, "classes": options.metric is None}
    x, y, inputs = gather(data, "data", **where)
    if options.images is not None and only_shapes:
        x, y = repeat(x, options.images), None if y is None else repeat(y, options.images)
    elif options.images is not None:
        x, y = x[: options.images], None if y is None else y[: options.images]
    if not isinstance(options.holdout, int | float | np.number):
        x_held, y_held, inputs_held = gather(options.holdout, "holdout", **where)
        if (inputs is None) != (inputs_held is None) or (inputs is None and x_held.shape[1:] != x.shape[1:]):
            got, wanted = (str(i or tuple(t.shape[1:])) for i, t in ((inputs_held, x_held), (inputs, x)))
            raise ValueError(f"holdout: samples of shape {got}, wanted {wanted} as in data")
        if inputs is not None and inputs_held is not None and inputs != inputs_held:
            wide = inputs.wider(inputs_held)
            if wide is None:
                raise ValueError(f"holdout: samples of {inputs_held}, wanted {inputs} as in data")
            x, y = _padded(x, y, inputs, wide)
            x_held, y_held = _padded(x_held, y_held, inputs_held, wide)
            inputs = wide
        return Part(x, y, inputs=inputs), Part(x_held, y_held, inputs=inputs)
    count = _number_held(options.holdout, len(x))
    if only_shapes or count == 0:
        kept = len(x) - count
        labels = (None, None) if y is None else (y[:kept], y[kept:])
        return Part(x[:kept], labels[0], inputs=inputs), Part(x[kept:], labels[1], inputs=inputs)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(options.holdout_seed), device="cpu")
    return Part(x, y, order[count:].sort().values, inputs), Part(x, y, order[:count].sort().values, inputs)


def _padded(x: Tensor, y: Tensor | None, inputs: JointInputs, wide: JointInputs) -> tuple[Tensor, Tensor | None]:
    """Samples and labels of positions, padded to the lengths of another layout."""
    shapes = {each.name: each.shape for each in wide.inputs}
    longer = {each.shape[0]: shapes[each.name][0] for each in inputs.masks}
    if y is not None and y.dim() > 1 and y.dtype == torch.int64 and y.shape[1] in longer:
        y = padded(y, (longer[y.shape[1]], *y.shape[2:]), IGNORED)
    return wide.join(wide.padded(inputs.named(x))), y


def repeat(x: Tensor, images: int) -> Tensor:
    """Views of the first sample, `images` of them, which take no memory.

    Raises:
        TypeError, ValueError: `images` is no integer of at least 1.
    """
    images = integer("images", images, 1)
    return x[:1].expand(images, *x.shape[1:])


def _number_held(holdout: Any, samples: int) -> int:
    """How many samples are held out; at least one is left to align on."""
    count = int(holdout) if isinstance(holdout, int | np.integer) else int(samples * holdout)
    if count >= samples:
        raise ValueError(f"holdout={holdout}: data has {samples} samples, wanted at least one more than are held out")
    return count
