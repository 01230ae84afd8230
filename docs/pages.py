# SPDX-License-Identifier: BSD-3-Clause
"""What mkdocs changes in pages: formulae become MathML, which browsers draw without a script; tables of options.

<!-- options SampleOptions -->   in a page: the fields of that class, as rainbow_fast declares them
"""

from __future__ import annotations

import html
import re
from dataclasses import fields
from typing import Any

from latex2mathml.converter import convert

import rainbow_fast

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
PRIME = "<mi>&#x02032;"  # too small to see in fonts that are not made for formulae
OPTIONS = re.compile(r"<!-- options (\w+) -->")


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page."""
    return OPTIONS.sub(lambda match: options_table(match[1]), FORMULA.sub(_formula, content))


def options_table(name: str) -> str:
    """The options that a class of `rainbow_fast` declares itself, without those of its bases."""
    kind = getattr(rainbow_fast, name)
    inherited = {f.name for base in kind.__bases__ for f in getattr(base, "__dataclass_fields__", {}).values()}
    rows = "".join(
        f'<tr id="{name}.{f.name}"><td><code>{f.name}</code></td><td><code>{html.escape(str(f.type))}</code></td>'
        f"<td><code>{html.escape(repr(f.default))}</code></td><td>{html.escape(f.metadata['help'])}</td></tr>"
        for f in fields(kind)
        if f.name not in inherited
    )
    head = "<tr><th>option</th><th>type</th><th>default</th><th>what it does</th></tr>"
    return f'<div class="options"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _formula(match: re.Match[str]) -> str:
    display = "inline" if match[2] == "(" else "block"
    return convert(html.unescape(match[3]).strip(), display=display).replace(PRIME, f'<mi class="prime">{PRIME[4:]}')
