# SPDX-License-Identifier: BSD-3-Clause
"""Values of options from the text of a command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rainbow_fast.rainbow.laws.marchenko_pastur import NOISE_EDGE

SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9}


def names(option: str, text: str) -> list[str]:
    """Names that are separated by commas; each may occur once."""
    parts = [part.strip() for part in text.split(",")]
    if "" in parts or len(set(parts)) < len(parts):
        raise ValueError(f"{option}: wanted names separated by commas, each once; got {text!r}")
    return parts


def numbers(option: str, text: str, *, once: bool = True, infinite: bool = False) -> list[float]:
    """Numbers above 0 that are separated by commas; integers for `--widths`. With `once`, each may occur once.

    With `infinite`, "inf" is one of them.
    """
    try:
        parsed = [float(part) for part in text.split(",")]
    except ValueError:
        parsed = []
    whole = option == "--widths"
    finite = [n for n in parsed if not (infinite and n == math.inf)]
    if not parsed or any(not 0 < n < math.inf or (whole and n != int(n)) for n in finite):
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(f"{option}: wanted {kind} above 0, separated by commas; got {text!r}")
    if once and len(set(parsed)) < len(parsed):
        raise ValueError(f"{option}: wanted each number once, got {text!r}")
    return parsed


def memory(text: str) -> int:
    """A number of bytes from text such as 4G."""
    number, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    try:
        parsed = float(number) * factor
    except ValueError:
        parsed = math.nan
    if not 0 <= parsed < math.inf:
        raise ValueError(f"--memory-budget: wanted bytes, as a number with k, M or G behind it; got {text!r}")
    return int(parsed)


def rank(text: str) -> int | str:
    """The value of --rank: a number of directions, or the name of the noise edge."""
    if text == NOISE_EDGE:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--rank: wanted a whole number above 0, or {NOISE_EDGE}; got {text!r}")
    return int(text)


def channel_axes(text: str) -> dict[str, int]:
    """The value of --channel-axes."""
    parts = [part.rpartition("=") for part in names("--channel-axes", text)]
    if any(not name or axis not in ("1", "-1") for name, _, axis in parts):
        raise ValueError(f"--channel-axes: wanted name=1 or name=-1, separated by commas; got {text!r}")
    return {name: int(axis) for name, _, axis in parts}


READERS: Mapping[str, Callable[[str], Any]] = {
    "memory_budget": memory,
    "rank": rank,
    "sites": lambda text: names("--sites", text),
    "channel_axes": channel_axes,
    "output": lambda text: int(text) if text.isdecimal() else text,
}
