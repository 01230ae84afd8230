# SPDX-License-Identifier: BSD-3-Clause
"""The finished sites of a sampling run in a folder, so that a run which was stopped goes on where it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainbow_fast import backend
from rainbow_fast.rainbow.files.container import PART, Format
from rainbow_fast.rainbow.files.network_file import pack, unpack
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.rainbow_network import fingerprint, refit_site
from rainbow_fast.rainbow.plan import Plan
from rainbow_fast.rainbow.report import SiteReport
from rainbow_fast.rainbow.sampling.flight import Data
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.trace import Site, Trace

RUN = Format("rainbow_fast.run", 1, "sampling run")
SITE = Format("rainbow_fast.site", 1, "sampled site")
HASHED = 2**24  # numbers of a tensor at a time
SHOWN = 4  # differences in a message

Facts = dict[str, Any]


@dataclass
class Finished:
    """A sampled site with its report; at the last one, where the classifier is refit, also with that and its ridge."""

    activation: RainbowActivation
    report: SiteReport
    refit: RainbowActivation | None = None
    ridge: float | None = None


class Checkpoint:
    """A folder that holds one run: `run.safetensors`, which says what is sampled, and a file for each finished site of
    each network. Activations are not in it: they are computed again through the sampled sites, with the same bits.
    """

    def __init__(self, folder: Path, trace: Trace, run: str) -> None:
        self.folder, self.trace, self.run = folder, trace, run

    def write(self, number: int, site: Site, done: Finished) -> None:
        """Of the network of that number."""
        header = {"of": self._of(number, site), "report": asdict(done.report), "ridge": done.ridge}
        tensors: dict[str, Tensor] = {}
        for name in ("activation", "refit"):
            activation = getattr(done, name)
            if activation is not None:
                header[name], buffers = pack(activation)
                tensors |= {f"{name}.{b}": value for b, value in buffers.items()}
        SITE.write(self._path(number, site), header, tensors)

    def read(self, number: int, site: Site, device: torch.device) -> Finished | None:
        """What `write` wrote, None where it has not.

        Raises:
            ValueError: a file that is truncated, foreign, damaged, newer, or of another run; the message names it.
        """
        path = self._path(number, site)
        if not path.exists():
            return None
        header, tensors = SITE.read(path, "resume")
        try:
            if header["of"] != self._of(number, site):
                raise ValueError(f"resume: {path} belongs to another run, network or site")
            activation = unpack(site, header["activation"], tensors, "activation.", device)
            done = Finished(activation, SiteReport(**header["report"]), ridge=header["ridge"])
            if "refit" in header:
                holder = refit_site(site, self.trace.tail(), flattened=header["refit"]["flattened"])
                done.refit = unpack(holder, header["refit"], tensors, "refit.", device)
        except (KeyError, TypeError) as error:
            raise ValueError(f"resume: {path} is damaged ({error})") from None
        return done

    def _path(self, number: int, site: Site) -> Path:
        return self.folder / f"network-{number}-site-{site.index}.safetensors"

    def _of(self, number: int, site: Site) -> list[Any]:
        return [self.run, number, site.name]


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
        raise ValueError(f"resume: {path} is no folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"resume: no folder {path.parent} to make {path.name!r} in")
    path.mkdir(exist_ok=True)
    lock = os.open(path, os.O_RDONLY)  # it goes with the process, however that ends
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"resume: {path} is in use by another run") from None
        _claim(path, facts)
        yield Checkpoint(path, trace, hashlib.sha256(json.dumps(facts).encode()).hexdigest())
    finally:
        os.close(lock)


def _claim(path: Path, facts: Facts) -> None:
    """Compare with the run that the folder holds; in an empty one, begin a run."""
    head = path / "run.safetensors"
    if not head.exists():
        others = [p.name for p in path.iterdir() if not p.name.endswith(PART)]
        if others:
            raise ValueError(f"resume: {path} holds no sampling run but {min(others)!r}: wanted a new or empty folder")
        RUN.write(head, facts, {})
        return
    there, _ = RUN.read(head, "resume")
    facts = json.loads(json.dumps(facts))
    differing = [
        f"{name} ({_shown(there.get(name))} there, {_shown(facts.get(name))} here)"
        for name in {**there, **facts}
        if there.get(name) != facts.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise ValueError(f"resume: {path} holds another run: it differs in {'; '.join(differing[:SHOWN])}{more}")
    for part in path.glob(f".*{PART}"):  # of a process that was killed
        part.unlink()


def _shown(value: Any) -> str:
    return f"SHA-256 {value[7:19]}..." if isinstance(value, str) and value.startswith("sha256:") else repr(value)


def describe(
    trace: Trace,
    statistics: Sequence[SiteStatistics],
    plans: Sequence[Plan],
    align: Data,
    held: Data,
    *,
    max_samples: int,
    storage_dtype: torch.dtype | None,
) -> Facts:
    """All that the bits of sampled networks and of their reports depend on."""
    facts: Facts = {
        "package": _version(),
        "torch": torch.__version__,
        "instruction set": backend.isa,
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(align.device),
        "weights of the reference": f"sha256:{fingerprint(trace.reference)}",
        "code of the reference": _sha256(
            text=repr(trace.reference) + ("" if trace.graph is None else trace.graph.code)
        ),
        "sites": [s.site.name for s in statistics],
        "moments": _sha256(t for s in statistics for t in s.z.state_dict().values()),
        "activity": [s.activity for s in statistics],
        "data": _sha256([align.x]),
        "labels": None if align.labels is None else _sha256([align.labels]),
        "held-out data": _sha256([held.x]),
        "held-out labels": None if held.labels is None else _sha256([held.labels]),
        "images of a chunk": align.size,
        "max_samples": max_samples,
        "storage_dtype": str(storage_dtype),
        "networks": len(plans),
    }
    for number, plan in enumerate(plans):
        options = {f.name: getattr(plan, f.name) for f in fields(plan)}
        directions = options.pop("directions").items()
        options["rank"] = {name: None if U is None else U.shape[1] for name, U in directions}
        options["directions"] = _sha256(U for _, U in directions if U is not None)
        options |= asdict(options.pop("parts"))
        facts |= {f"{name} of network {number}": value for name, value in options.items()}
    return facts


def _version() -> str | None:
    try:
        return version("rainbow_fast")
    except PackageNotFoundError:
        return None


def _sha256(tensors: Iterable[Tensor] = (), text: str = "") -> str:
    """Of dtypes, shapes and values."""
    digest = hashlib.sha256(text.encode())
    for t in tensors:
        digest.update(f"{t.dtype} {tuple(t.shape)}\n".encode())
        rows = t.detach() if t.dim() else t.detach().view(1)
        for part in rows.split(max(HASHED // max(rows[:1].numel(), 1), 1)):
            digest.update(part.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"
