# SPDX-License-Identifier: BSD-3-Clause
"""Studies: experiments whose results are pages in docs/. Each is run by `python -m studies.NAME`."""

from pathlib import Path

from rainbow_fast.io import read_records
from rainbow_fast.rainbow.report import Record


def kept_records(path: Path) -> list[Record]:
    """The records of results that are stored in the folder of a study.

    Raises:
        FileNotFoundError: there are none; the message says what the study needs instead.
    """
    records = read_records(path)
    if not records:
        raise FileNotFoundError(f"no records are kept in {path}: wanted the data, to make them")
    return records
