# SPDX-License-Identifier: BSD-3-Clause
"""The parts of pages that are made when the site is built: formulae, tables of options, docstrings as Markdown."""

import importlib.util
from dataclasses import fields
from types import ModuleType

import pytest
from here import ROOT

import rainbow_fast as rf


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    pytest.importorskip("latex2mathml", reason="needs the extra docs")
    return load("pages")


def test_formulae_become_mathml(pages: ModuleType) -> None:
    inline = pages.on_page_content(r'<p>a <span class="arithmatex">\(\hat\phi + 1\)</span> b</p>')
    assert inline.startswith('<p>a <math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert inline.endswith("</math> b</p>") and "arithmatex" not in inline and "phi" not in inline
    prime = pages.on_page_content("""<span class="arithmatex">\\(x'\\)</span>""")
    assert 'class="prime"' in prime
    block = pages.on_page_content('<div class="arithmatex">\\[\nx^2\n\\]</div>')
    assert 'display="block"' in block and "<msup>" in block


@pytest.mark.parametrize("name", ["FitOptions", "MethodOptions", "SampleOptions", "DataLimits", "Limits"])
def test_table_of_options_is_whole(pages: ModuleType, name: str) -> None:
    table = pages.on_page_content(f"<!-- options {name} -->")
    kind = getattr(rf, name)
    own = [f for f in fields(kind) if f.name in kind.__annotations__]
    assert table.count("<tr id=") == len(own) > 0
    assert all(f"<td><code>{f.name}</code></td>" in table for f in own)


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="needs the extra docs")
    text = "Sum :math:`x^2`.\n\nEquivalent to::\n\n    a::\n\n===  ===\na    b\n===  ===\n1    2\n===  ===\n\nEnd."
    assert load("docstrings").as_markdown(text) == (
        "Sum $x^2$.\n\nEquivalent to:\n\n    a:\n\n```text\n===  ===\na    b\n===  ===\n1    2\n===  ===\n```\n\nEnd."
    )
