# SPDX-License-Identifier: BSD-3-Clause
"""The finished sites of a sampling run in a folder, so that a run which was stopped goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend
from rainbow_fast.io import PART, sha256
from rainbow_fast.rainbow.network.packing import pack, unpack
from rainbow_fast.rainbow.network.rainbow_network import refit_site
from rainbow_fast.rainbow.options import Limits
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.report import SiteReport
from rainbow_fast.rainbow.sampling.sampled_site import SampledSite
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tensor_files import Format
from rainbow_fast.tracing.trace import Trace
from rainbow_fast.version import __version__

RUN = Format("rainbow_fast.run", 1, "sampling run")
SITE = Format("rainbow_fast.site", 1, "sampled site")
SHOWN = 4  # differences in a message
SIZES = ("width", "factor", "explained_variance", "sites")  # options that the widths and ranks of all sites stand for

Facts = dict[str, Any]


class Checkpoint:
    """A folder that holds one run: `run.safetensors`, which says what is sampled, and a file for each finished site of
    each network. Activations are not in it: they are computed again through the sampled sites, with the same bits.
    """

    def __init__(self, folder: Path, trace: Trace, run: str) -> None:
        self.folder, self.trace, self.run = folder, trace, run

    def write(self, lane: int, site: SampledSite) -> None:
        """Of the network in that lane."""
        header = {"of": self._of(lane, site), "report": asdict(site.report), "ridge": site.ridge}
        tensors: dict[str, Tensor] = {}
        for name in ("activation", "refit"):
            activation = getattr(site, name)
            if activation is not None:
                header[name], buffers = pack(activation)
                tensors |= {f"{name}.{b}": value for b, value in buffers.items()}
        SITE.write(self._path(lane, site), header, tensors)

    def read(self, lane: int, site: SampledSite) -> bool:
        """Fill in what `write` wrote of the site; False where it has not.

        Raises:
            ValueError: a file that is truncated, foreign, damaged, newer, or of another run; the message names it.
        """
        path = self._path(lane, site)
        if not path.exists():
            return False
        header, tensors = SITE.read(path, "resume_dir")
        try:
            if header["of"] != self._of(lane, site):
                raise ValueError(f"resume_dir: {path} belongs to another run, network or site")
            site.activation = unpack(site.site, header["activation"], tensors, "activation.", site.device)
            site.report, site.ridge = SiteReport(**header["report"]), header["ridge"]
            if "refit" in header:
                holder = refit_site(site.site, self.trace.tail(), flattened=header["refit"]["flattened"])
                site.refit = unpack(holder, header["refit"], tensors, "refit.", site.device)
        except (KeyError, TypeError) as error:
            raise ValueError(f"resume_dir: {path} is damaged ({error})") from None
        return True

    def _path(self, lane: int, site: SampledSite) -> Path:
        return self.folder / f"network-{lane - 1}-site-{site.site.index}.safetensors"

    def _of(self, lane: int, site: SampledSite) -> list[Any]:
        return [self.run, lane - 1, site.site.name]


@contextmanager
def opened(folder: str | os.PathLike[str], trace: Trace, facts: Facts) -> Iterator[Checkpoint]:
    """The run of these facts in a folder, which is made if it is not there, and is this process's own meanwhile.

    Raises:
        ValueError: the folder holds something else, or a run of other facts, or is in use; the message names it, and
            what differs.
        FileNotFoundError: the folder that it would be in is missing.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"resume_dir: {path} is no folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"resume_dir: no folder {path.parent} to make {path.name!r} in")
    path.mkdir(exist_ok=True)
    lock = os.open(path, os.O_RDONLY)  # it goes with the process, however that ends
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"resume_dir: {path} is in use by another run") from None
        _claim(path, facts)
        yield Checkpoint(path, trace, sha256(text=json.dumps(facts)))
    finally:
        os.close(lock)


def _claim(path: Path, facts: Facts) -> None:
    """Compare with the run that the folder holds; in an empty one, begin a run."""
    head = path / "run.safetensors"
    if not head.exists():
        others = [p.name for p in path.iterdir() if not p.name.endswith(PART)]
        if others:
            raise ValueError(
                f"resume_dir: {path} holds no sampling run but {min(others)!r}: wanted a new or empty folder"
            )
        RUN.write(head, facts, {})
        return
    there, _ = RUN.read(head, "resume_dir")
    facts = json.loads(json.dumps(facts))
    differing = [
        f"{name} ({_shown(there.get(name))} there, {_shown(facts.get(name))} here)"
        for name in {**there, **facts}
        if there.get(name) != facts.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ValueError(f"resume_dir: {path} holds another run: it differs in {'; '.join(differing[:SHOWN])}{more}")
    for part in path.glob(f".*{PART}"):  # of a process that was killed
        part.unlink()


def _shown(value: Any) -> str:
    return f"SHA-256 {value[7:19]}..." if isinstance(value, str) and value.startswith("sha256:") else repr(value)


def describe(prepared: Prepared, specs: Sequence[NetworkSpec], limits: Limits) -> Facts:
    """All that the bits of sampled networks and of their reports depend on."""
    trace, sites, align, held = prepared.trace, prepared.sites, prepared.align, prepared.held
    code = repr(trace.reference) + ("" if trace.graph is None else trace.graph.code)
    facts: Facts = {
        "package": __version__,
        "torch": torch.__version__,
        "instruction set": backend.isa,
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(align.device),
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
