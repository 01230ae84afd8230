# SPDX-License-Identifier: BSD-3-Clause
"""What networks receive: numbers, or indices such as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rainbow_fast.data.dtypes import INTEGERS, as_numbers
from rainbow_fast.joint_inputs import DTYPES, MASKS, Input, JointInputs, is_plain, layout_of, with_joint_inputs
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.tracing.copies import copied
from rainbow_fast.tracing.random_state import untouched


def dtype_of_inputs(network: nn.Module, x: Tensor, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a network of this device and dtype receives samples.

    It is that of the network. It is int64 if the samples x are integers and the network does not run on them as
    numbers, because they are indices; the network runs on x only if x is of integers. It is uint8 for the rows of
    several inputs.
    """
    if layout_of(network) is not None:
        return torch.uint8
    if x.dtype not in INTEGERS:
        return dtype
    runs = (each for each in (dtype, torch.int64) if _runs(network, as_numbers(x, device, each)))
    return next(runs, dtype)


def taking(network: nn.Module, layout: JointInputs, names: tuple[str, str] = ("reference", "data")) -> nn.Module:
    """The network as it takes data of this layout: itself for a single first input, otherwise one that takes rows.

    Args:
        names: of the network and of the data, for messages.

    Raises:
        TypeError, ValueError: as `with_joint_inputs`; the message begins with one of the names.
    """
    if is_plain(layout, network):
        return network
    try:
        return with_joint_inputs(network, layout)
    except TypeError as error:
        raise TypeError(f"{names[0]}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{names[1]}: {error}") from None


def probes_for(network: nn.Module, samples: int, shape: Sequence[int]) -> Tensor:
    """A few samples, always the same ones: Gaussian numbers, or indices that all embeddings have."""
    layout = layout_of(network)
    if layout is not None:
        return layout.join({each.name: _probe(network, samples, each) for each in layout.inputs})
    zeros = next(p for p in network.parameters() if p.is_floating_point()).new_zeros(samples, *shape)
    indices = _indices(network, zeros.long())
    reads = _embeddings(network) and not _runs(network, zeros) and _runs(network, indices)
    return indices if reads else _numbers(zeros)


def _probe(network: nn.Module, samples: int, each: Input) -> Tensor:
    """One of several inputs: masks in which all positions count, indices, or numbers."""
    device = next(network.parameters()).device
    zeros = torch.zeros(samples, *each.shape, dtype=DTYPES[each.dtype], device=device)
    if zeros.is_floating_point():
        return _numbers(zeros)
    if str(each.name).endswith(MASKS) or zeros.dtype == torch.bool:
        return zeros if str(each.name).endswith(MASKS[1]) else zeros + zeros.new_ones(())
    return _indices(network, zeros)


def _numbers(zeros: Tensor) -> Tensor:
    """Gaussian numbers."""
    return gaussian(len(zeros), zeros[0].numel(), seed=0, device=zeros.device).view(zeros.shape).to(zeros.dtype)


def _indices(network: nn.Module, zeros: Tensor) -> Tensor:
    """Indices that all embeddings have: in each sample the same ones, such as an end of text, at other places."""
    places = torch.arange(zeros[0].numel(), device=zeros.device)
    moved = (places + torch.arange(len(zeros), device=zeros.device)[:, None]) % len(places)
    return (moved % min(_embeddings(network), default=1)).view(zeros.shape).to(zeros.dtype)


def as_float64(x: Tensor) -> Tensor:
    """x in float64, or x itself if it holds indices."""
    return x.double() if x.is_floating_point() else x


@torch.no_grad()
def _runs(network: nn.Module, x: Tensor) -> bool:
    with untouched(x.device):
        try:
            copied(network)(x)
        except (
            Exception,
            SystemExit,
        ):  # the user's code; where samples are used, an error says why
            return False
    return True


def _embeddings(network: nn.Module) -> list[int]:
    """The numbers of indices of the embeddings of a network."""
    return [m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
