# SPDX-License-Identifier: BSD-3-Clause
"""Finished sites of a sampling run, saved in a folder, so that an interrupted run can continue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from rainbow_fast import backend
from rainbow_fast.formats import Format
from rainbow_fast.io import PART, sha256
from rainbow_fast.locks import locked
from rainbow_fast.ops.precision import in_force
from rainbow_fast.rainbow.network.packing import Packed, check_fits, pack, unpack
from rainbow_fast.rainbow.network.rainbow_network import refit_site
from rainbow_fast.rainbow.options import Limits
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.report import SiteReport
from rainbow_fast.rainbow.sampling.sampled_site import SampledSite
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.trace import Trace
from rainbow_fast.version import __version__

SHOWN = 4  # differences in a message
SIZES = ("width", "factor", "explained_variance", "sites")  # not compared: the widths and ranks of all sites are

Facts = dict[str, Any]


class PackedSampledSite(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The header of the file of a sampled site."""

    of: tuple[str, int, str]
    report: dict[str, Any]
    ridge: float | None
    activation: Packed
    refit: Packed | None = None


# Version 1 of both formats has no checksums, version 2 of a site no precision, version 3 no infinite width.
RUN = Format("rainbow_fast.run", 2, "sampling run", Facts, summed_since=2, key="run")
SITE = Format("rainbow_fast.site", 4, "sampled site", PackedSampledSite, summed_since=2, key="site")


class Checkpoint:
    """A folder that holds one sampling run.

    `run.safetensors` describes what is sampled. Every finished site of every network has one more file. Activations
    are not saved: a continued run computes them again through the sampled sites, with the same bits.
    """

    def __init__(self, folder: Path, trace: Trace, run: str) -> None:
        self.folder, self.trace, self.run = folder, trace, run

    def write(self, lane: int, site: SampledSite) -> None:
        """Write a finished site of the network in this lane."""
        packed: dict[str, Packed] = {}
        tensors: dict[str, Tensor] = {}
        for name in ("activation", "refit"):
            activation = getattr(site, name)
            if activation is not None:
                packed[name], buffers = pack(activation)
                tensors |= {f"{name}.{b}": value for b, value in buffers.items()}
        of, report = self._of(lane, site), asdict(site.report)
        header = PackedSampledSite(of=of, report=report, ridge=site.ridge, **packed)
        SITE.write(self._path(lane, site), header, tensors, "resume_dir")

    def read(self, lane: int, site: SampledSite) -> bool:
        """Fill `site` with what `write` has saved. Returns False if the site has no file.

        Raises:
            ValueError: the file is truncated, damaged, of another format, of a newer version, or of another run. The
                message names the file.
        """
        path = self._path(lane, site)
        if not path.exists():
            return False
        header, tensors = SITE.read(path, "resume_dir")
        if header.of != self._of(lane, site):
            raise ValueError(f"resume_dir: {path} belongs to another run, network or site")
        try:
            site.activation = unpack(site.site, header.activation, tensors, "activation.", site.device)
            check_fits(site.activation, site.own)
            site.report, site.ridge = SiteReport.from_dict(header.report, held_out=bool(site.held.count)), header.ridge
            if header.refit is not None:
                tail = self.trace.tail()
                holder = refit_site(site.site, tail, flattened=header.refit.flattened)
                site.refit = unpack(holder, header.refit, tensors, "refit.", site.device)
                check_fits(site.refit, site.own, outputs=tail.last.out_features)
        except (KeyError, ValueError) as error:
            raise ValueError(f"resume_dir: {path} is damaged ({error})") from None
        return True

    def _path(self, lane: int, site: SampledSite) -> Path:
        return self.folder / f"network-{lane - 1}-site-{site.site.index}.safetensors"

    def _of(self, lane: int, site: SampledSite) -> tuple[str, int, str]:
        return self.run, lane - 1, site.site.name


@contextmanager
def opened(folder: str | os.PathLike[str], trace: Trace, facts: Facts) -> Iterator[Checkpoint]:
    """Open the folder of a run, and lock it for this process until the end of the context.

    Args:
        folder: is made if it is missing.
        trace: of the reference.
        facts: the description of the run, from `describe`.

    Raises:
        ValueError: the folder holds other files or another run, or another process uses it. The message names the
            folder and the facts that differ.
        FileNotFoundError: the parent of the folder is missing.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"resume_dir: {path} is no folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"resume_dir: no folder {path.parent} to make {path.name!r} in")
    path.mkdir(exist_ok=True)
    with locked(path, "resume_dir"):
        _claim(path, facts)
        yield Checkpoint(path, trace, sha256(text=json.dumps(facts)))


def _claim(path: Path, facts: Facts) -> None:
    """Check that the folder holds the run of these facts; in an empty folder, begin that run."""
    head = path / "run.safetensors"
    if not head.exists():
        others = [p.name for p in path.iterdir() if not p.name.endswith(PART)]
        if others:
            raise ValueError(
                f"resume_dir: {path} holds no sampling run but {min(others)!r}: wanted a new or empty folder"
            )
        RUN.write(head, facts, {}, "resume_dir")
        return
    there, _ = RUN.read(head, "resume_dir")
    facts = msgspec.json.decode(msgspec.json.encode(facts))
    differing = [
        f"{name} ({_shown(there.get(name))} there, {_shown(facts.get(name))} here)"
        for name in {**there, **facts}
        if there.get(name) != facts.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ValueError(f"resume_dir: {path} holds another run: it differs in {'; '.join(differing[:SHOWN])}{more}")
    for part in path.glob(f".*{PART}"):  # unfinished files of a process that was killed
        part.unlink()


def _shown(value: Any) -> str:
    return f"SHA-256 {value[7:19]}..." if isinstance(value, str) and value.startswith("sha256:") else repr(value)


def describe(prepared: Prepared, specs: Sequence[NetworkSpec], limits: Limits) -> Facts:
    """Everything that the bits of the sampled networks and of their reports depend on."""
    trace, sites, align, held = prepared.trace, prepared.sites, prepared.align, prepared.held
    code = repr(trace.reference) + ("" if trace.graph is None else trace.graph.code)
    facts: Facts = {
        "package": __version__,
        "torch": str(torch.__version__),
        "instruction set": backend.isa,
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(align.device),
        "precision of torch": in_force(align.device),
        "weights of the reference": f"sha256:{prepared.fingerprint}",
        "code of the reference": sha256(text=code),
        "sites": [s.site.name for s in sites],
        "moments": sha256(t for s in sites for t in s.z.state_dict().values()),
        "activity": [s.activity for s in sites],
        "data": align.digests[0],
        "labels": align.digests[1],
        "held-out data": held.digests[0],
        "held-out labels": held.digests[1],
        "images of a chunk": align.size,
        "max_samples": prepared.max_samples,
        "storage_dtype": str(limits.storage_dtype),
        "networks": len(specs),
    }
    for number, spec in enumerate(specs):
        chosen = {"method": spec.options.method} | spec.options.to_dict() | {"widths": spec.widths}
        chosen["rank"] = {name: None if U is None else U.shape[1] for name, U in spec.directions.items()}
        chosen["directions"] = sha256(U for U in spec.directions.values() if U is not None)
        facts |= {f"{name} of network {number}": value for name, value in chosen.items() if name not in SIZES}
    return facts
