# SPDX-License-Identifier: BSD-3-Clause
"""The record of a run of `sample`, the file report.json: what was asked for, and the reports so far."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from rainbow_fast.cli import words as o
from rainbow_fast.fields import Options
from rainbow_fast.io import dumps, write_whole
from rainbow_fast.rainbow.options import SampleOptions
from rainbow_fast.rainbow.report import Report
from rainbow_fast.tables import CONTROL

NAME = "report.json"


@dataclass(frozen=True)
class RunRecord:
    """What the file holds.

    Attributes:
        path: the file.
        options: the options of the run, as given on its command line.
        reference: SHA-256 of the weights of the trained network.
        networks: a dict with a name, "job", and a report, "report", for each finished network; not checked yet.
    """

    path: Path
    options: o.Words
    reference: str
    networks: list[Any]

    @property
    def folder(self) -> Path:
        return self.path.parent


class _Run(msgspec.Struct, forbid_unknown_fields=True):
    """What was asked for: the options, SHA-256 of the weights of the trained network, and how many networks."""

    options: o.Words
    reference: str
    networks: int = 0


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """The types of what the file holds."""

    run: _Run
    networks: list[Any]


def write_record(folder: Path, run: Any, networks: list[dict[str, Any]]) -> None:
    """Write the record, completely or not at all."""
    write_whole(folder / NAME, dumps({"run": run, "networks": networks}, indent=1) + "\n")


def check_record(folder: Path) -> None:
    """Check that a folder has a record.

    Raises:
        ValueError: there is none.
    """
    if not (folder / NAME).is_file():
        raise ValueError(f"--resume: no run of `sample` in {folder}")


def read_record(folder: Path, here: o.Words, *kinds: type[Options]) -> RunRecord:
    """Read the record in a folder, and check the options in it as those of a command line.

    Args:
        folder: the folder.
        here: the options of this command line, whose names the record must have.
        kinds: the dataclasses that declare the options.

    Raises:
        ValueError: the folder has no record; it is damaged, or of another version, or an option is not valid. The
            message names the file.
        OSError: the file cannot be read.
    """
    check_record(folder)
    path = folder / NAME
    content = _content(path)
    options = content.run.options
    if options.keys() != here.keys():
        different = reprlib.repr(min(options.keys() ^ here.keys()))
        raise ValueError(f"--resume: {path} was written by another version, whose options differ in {different}")
    try:
        o.check(options, *kinds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--resume: {path}: {error}") from error
    return RunRecord(path, options, content.run.reference, content.networks)


def reports(there: RunRecord, jobs: Sequence[tuple[str, SampleOptions]]) -> list[Report]:
    """The reports in a record.

    Args:
        there: the record.
        jobs: for each network in it, the name and the options that it must have.

    Raises:
        ValueError: a report is damaged, or is that of another network; the message names the file.
    """
    return [
        _report(there.path, number, *each)
        for number, each in enumerate(zip(there.networks, jobs, strict=True), start=1)
    ]


def _report(path: Path, number: int, network: Any, job: tuple[str, SampleOptions]) -> Report:
    try:
        name, report = network["job"], Report.from_dict(network["report"])
        options = job[1].resolved
        if options.precision is None:  # the network was sampled at the precision that was in force
            options = replace(options, precision=report.options.precision)
        same = (name, report.options.to_dict()) == (job[0], options.to_dict())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"--resume: {path} holds no reports of `sample`") from error
    if not same:
        raise ValueError(f"--resume: {path}: network {number} does not have the options of the run")
    return report


@contextmanager
def named(there: RunRecord | None) -> Iterator[None]:
    """A context in which errors of what a record holds name its file; None stands for no record.

    Raises:
        ValueError: in place of a ValueError, a TypeError or a FileNotFoundError.
    """
    try:
        yield
    except (TypeError, ValueError, FileNotFoundError) as error:
        if there is None:
            raise
        raise ValueError(f"--resume: {there.path}: {error}") from error


def counts(folder: Path) -> tuple[int, int]:
    """The number of finished networks in a folder, and of all networks of its run; 0 where that is not known."""
    path = folder / NAME
    try:
        content = _content(path) if path.is_file() else None
    except ValueError:
        content = None
    return (0, 0) if content is None else (len(content.networks), content.run.networks)


def _content(path: Path) -> _Content:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
        texts = _texts([content.run.options, content.run.reference, content.networks])
    except msgspec.ValidationError as error:
        raise ValueError(f"--resume: {path} holds no run of `sample` ({error})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"--resume: {path} is not JSON ({error})") from error
    if any(CONTROL.search(text) for text in texts):
        raise ValueError(f"--resume: {path} has control characters in a text")
    return content


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value that was read from JSON."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
