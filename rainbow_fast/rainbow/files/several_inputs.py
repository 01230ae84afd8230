# SPDX-License-Identifier: BSD-3-Clause
"""The inputs of a network as a file describes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rainbow_fast.joint_inputs import DTYPES, Input, JointInputs, with_joint_inputs


def of_inputs(reference: nn.Module, inputs: Sequence[Input], size: int, path: Path) -> nn.Module:
    """The network that takes the rows of these inputs, of so many bytes; the network itself if there are none.

    Raises:
        ValueError: they are no inputs, or not those of the network. The message names the file.
    """
    if not inputs:
        return reference
    names = {each.name for each in inputs}
    sized = all(each.dtype in DTYPES and min(each.shape, default=0) >= 0 for each in inputs)
    if len(names) < len(inputs) or not sized or size != JointInputs(tuple(inputs)).size:
        raise ValueError(f"path: {path} is damaged, it has the inputs {', '.join(map(repr, inputs))}")
    try:
        return with_joint_inputs(reference, JointInputs(tuple(inputs)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"path: {path} does not fit the reference: {error}") from None
