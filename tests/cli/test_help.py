# SPDX-License-Identifier: BSD-3-Clause
"""The help of every command and study: it has sentences, each default once, and options in panels."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.main import get_command

from rainbow_fast.cli import words
from rainbow_fast.cli.app import app
from rainbow_fast.rainbow.options import FitOptions, Limits, MethodOptions, SampleOptions
from studies.batch_norms.__main__ import app as batch_norms
from studies.cifar10.__main__ import app as cifar10
from studies.convergence.__main__ import app as convergence
from studies.normalisers.__main__ import app as normalisers
from studies.orthogonal_chains.__main__ import app as orthogonal_chains
from studies.rainbow_layers.__main__ import app as rainbow_layers
from studies.random_chains.__main__ import app as random_chains
from studies.random_networks.__main__ import app as random_networks
from studies.resnet20.__main__ import app as resnet20
from studies.scattering.__main__ import app as scattering

Run = Callable[..., tuple[int, str, str]]
STUDIES = {
    "studies.batch_norms": batch_norms,
    "studies.cifar10": cifar10,
    "studies.convergence": convergence,
    "studies.normalisers": normalisers,
    "studies.orthogonal_chains": orthogonal_chains,
    "studies.rainbow_layers": rainbow_layers,
    "studies.random_chains": random_chains,
    "studies.random_networks": random_networks,
    "studies.resnet20": resnet20,
    "studies.scattering": scattering,
}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command; a group, and those in it by both names."""
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        if not command.hidden:
            yield name, command
            yield from ((f"{name} {inner}", each) for inner, each in getattr(command, "commands", {}).items())
    for name, study in STUDIES.items():
        yield name, get_command(study)


PARAMETERS = [
    (f"{name} {parameter.name}", parameter.help or "")
    for name, command in commands()
    for parameter in command.params
    if not getattr(parameter, "hidden", False)
]


def is_sentence(text: str) -> bool:
    """A sentence begins with a capital, ends with a full stop, and has three words or more."""
    return bool(re.match(r"[A-Z]", text)) and text.endswith(".") and len(text.split()) >= 3


def test_what_a_sentence_is() -> None:
    assert is_sentence("Number of networks (default 3).")
    for text in ("", "of each width and method.", "Of SGD.", "Number of networks sampled"):
        assert not is_sentence(text)


def test_all_commands_are_looked_at() -> None:
    assert {name for name, _ in commands()} == {
        "train", "sample", "plan", "sites", "compare", "clean", "random", "random lyapunov", "random spectrum",
        "random chain", "random measure", "demo", "info",
        *STUDIES
    }  # fmt: skip
    assert len(PARAMETERS) > 100


def test_the_help_of_every_option_is_a_sentence() -> None:
    assert [(name, text) for name, text in PARAMETERS if not is_sentence(text)] == []


def test_the_help_of_every_command_is_sentences() -> None:
    """Its paragraphs have no line breaks, so that they fill the width of the terminal."""
    paragraphs = [(name, text) for name, command in commands() for text in command.help.split("\n\n")]
    assert [(name, text) for name, text in paragraphs if not is_sentence(text) or "\n" in text] == []


@pytest.mark.parametrize(
    "name", ["train", "sample", "plan", "sites", "compare", "random chain", "random measure", "demo"]
)
def test_the_help_says_each_default_once(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "2000")  # a line for each option
    code, out, err = rainbow_fast(*name.split(), "--help")
    options = [line for line in out.splitlines() if line.lstrip("│* ").startswith("--")]
    assert (code, err) == (0, "") and len(options) > 2
    for line in options:
        assert line.count("default") <= 1, line


def test_options_stand_in_panels(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = rainbow_fast("sample", "--help")
    titles = re.findall(r"^╭─ (.*?) ─+╮$", out, re.MULTILINE)
    assert titles == ["Arguments", "Options", *dict.fromkeys(words.PANELS[kind] for kind in (
        words.ModuleWords, words.DataWords, words.GridWords, MethodOptions, Limits
    ))]  # fmt: skip
    method = out.index("─ Method")
    assert out.index("--seed") < method < out.index("--law") < out.index("--scale") < out.index("─ Memory")


def test_every_kind_of_options_has_a_panel() -> None:
    for kind in (FitOptions, SampleOptions, MethodOptions, Limits, words.MachineWords):
        assert kind in words.PANELS


def test_the_help_of_a_library_option_is_told_in_words_of_the_command_line() -> None:
    [law] = [f for f in words.spoken(SampleOptions) if f.name == "law"]
    assert "gaussian" in words.help_of(law) and "`Law`" not in words.help_of(law)
    [rank] = [f for f in words.spoken(SampleOptions) if f.name == "rank"]
    assert "dict" in rank.metadata["help"] and "dict" not in words.help_of(rank)


def test_docstrings_lose_their_line_breaks_but_keep_their_paragraphs() -> None:
    def command() -> None:
        """One
        sentence.

        Two of
        them. Here.
        """

    assert words.flowing(command).__doc__ == "One sentence.\n\nTwo of them. Here."
