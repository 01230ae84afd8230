# SPDX-License-Identifier: BSD-3-Clause
"""Old names of options. They still work in this release, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

RENAMED = {"--pointwise": "--pointwise-modules"}
ALIGN, FLATTENED = "--align", {"flattened": ["--align-flattened"], "channels": []}


def present(arguments: Sequence[str]) -> list[str]:
    """The same command line with the new names of options.

    Warns:
        FutureWarning: an old name is used.
    """
    now: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        words = [argument]
        if name in RENAMED:
            words = [RENAMED[name] + equals + value]
        elif name == ALIGN:
            value = value if equals else next(waiting, "")
            words = FLATTENED.get(value, [argument] if equals else [argument, value])
        if name in RENAMED or (name == ALIGN and value in FLATTENED):
            shown = " ".join(words) or "left out"
            warnings.warn(
                f"{name}: this option is now {shown}; the old name will be removed in the next release",
                FutureWarning,
                stacklevel=2,
            )
        now += words
    return now
