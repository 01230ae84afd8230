# SPDX-License-Identifier: BSD-3-Clause
"""Docstrings as Markdown: `::` before code, simple tables and formulae in roles are replaced by Markdown."""

from __future__ import annotations

import inspect
import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":math:`([^`]*)`")
RULE = re.compile(r"^=+(?:  +=+)+$")


def as_markdown(text: str) -> str:
    """A docstring with the marks of reStructuredText replaced. Nothing else in it changes."""
    lines: list[str] = []
    inside = False
    for line in ROLE.sub(r"$\1$", inspect.cleandoc(text)).splitlines():
        if RULE.match(line.strip()) and not inside:
            lines += ["```text", line]
            inside = True
        elif inside and not line.strip():
            lines += ["```", line]
            inside = False
        else:
            lines.append(line[:-1] if line.endswith("::") and not inside else line)
    return "\n".join([*lines, "```"] if inside else lines)


class Docstrings(Extension):
    """Called by griffe with each object that it reads."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
