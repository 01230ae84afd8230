# SPDX-License-Identifier: BSD-3-Clause
"""Refuses widths whose matrices are larger than the memory of the machine, before anything is drawn."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from rainbow_fast.rainbow.alignment.regression import Regression
from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.options import SampleOptions, alignment_of, law_of
from rainbow_fast.rainbow.planning.sizes import Sizes
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.rainbow.spec import choose_sites, choose_widths
from rainbow_fast.tables import quantity

ADDRESSES = 2**63 - 1  # bytes that an index can reach


def check_room(
    prepared: Prepared, networks: Sequence[SampleOptions], available: Callable[[torch.device], int] | None = None
) -> None:
    """Check that the machine has the memory for what sampling these networks together holds at least.

    At each site this is M in float64, the matrix of a regression, and A of the sites before it in all networks. None of
    them can be left out or lie on disk, so that a run that this refuses would run out of memory. Random weights, which
    are not stored, and activations, which may wait on disk, are not counted.

    Args:
        networks: the options of the networks.
        available: returns the bytes of memory of a device; None (default) for `memory_of`.

    Raises:
        ValueError: the memory is too small. The message names the option, the site, and both numbers of bytes.
    """
    limit = (available or memory_of)(prepared.align.device)
    plans = []
    for options in networks:
        options = options.resolved
        chosen = choose_sites(prepared.sites, options.sites)
        widths = choose_widths(chosen, options.width, options.factor, law_of(options))
        plans.append((options, widths))
    kept = 0
    for statistics in prepared.sites:
        name = statistics.site.name
        for place, (options, widths) in enumerate(plans):
            if name not in widths:
                continue
            needed, A = _least(prepared, statistics, options, widths[name])
            if kept + needed > limit:
                which = f"networks[{place}]: " if len(plans) > 1 else ""
                raise ValueError(
                    f"{which}{_option(options)}: site {name!r} with {widths[name]} neurons needs at least "
                    f"{quantity(kept + needed)}B of memory, {quantity(limit)}B are available: wanted a smaller width"
                )
            kept += A


def memory_of(device: torch.device) -> int:
    """The memory of a device in bytes; 2^63 - 1 if it is not known.

    For the CPU, this is the physical memory and the swap space, within the limits of this process (its control groups
    and RLIMIT_AS).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_bytes() if device.type == "cpu" else ADDRESSES


def machine_bytes(root: Path = Path("/")) -> int:
    """The memory that this process can have at most, in bytes, with swap; `root` is the root of the file system."""
    limits = [ADDRESSES]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return min(limits)
    swap = _swap(root / "proc/meminfo")
    if swap is None:
        return min(limits)
    return min(*limits, physical + swap, *_control_groups(root, swap))


def _least(prepared: Prepared, statistics: SiteStatistics, options: SampleOptions, n: int) -> tuple[int, int]:
    """Bytes that a site with n neurons needs at least while it is sampled, and the bytes of its A."""
    align, site = prepared.align, statistics.site
    flattened = options.align_flattened and site.feeds_flatten
    positions, full = statistics.positions, options.alignment_blocks == "full"
    rows, columns = statistics.shape_of_A(n, flattened=flattened, full=full)
    sizes = Sizes(align.count, prepared.held.count, align.size, align.dtype.itemsize, 0, prepared.max_samples)
    samples = align.count if flattened else sizes.samples(positions)
    if n == INFINITE:
        m = min(options.limit_rows, samples)
        return 8 * (rows * m + (m**2 if m < samples else 0)), 8 * rows * m
    alignment, square = alignment_of(options), 0
    if isinstance(alignment, Regression):
        fused = kind_of(site).fused and not flattened
        solver = alignment.chosen(columns, samples, rows if fused else None, paired=site.paired)
        square = {"summed": columns, "kernel": samples}.get(solver, 0)
    return 8 * (rows * columns + square**2), sizes.A_itemsize * rows * columns


def _option(options: SampleOptions) -> str:
    if options.width is not None:
        return f"width={options.width}"
    return "width of the reference" if options.factor is None else f"factor={options.factor}"


def _swap(meminfo: Path) -> int | None:
    """Bytes of swap space; None if the system does not say."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("SwapTotal:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _control_groups(root: Path, swap: int) -> Iterator[int]:
    """The limits of the control groups that this process belongs to, with swap; of versions 1 and 2 of the kernel."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.swap.max")
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "")
        else:
            continue
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            if folder == mount.parent:
                break
            memory = _number(folder / names[0])
            if memory is not None:
                allowed = _number(folder / names[1]) if names[1] else None
                yield memory + (swap if allowed is None else min(swap, allowed))


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no file, or no number in it ("max")."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
