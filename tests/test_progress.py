# SPDX-License-Identifier: BSD-3-Clause
"""progress: a callback, True for a bar, None for silence."""

import io
import sys
import types

import pytest
import torch

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.progress import reported

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
NET = mlp((6, 8, 5, 2), seed=0)


@pytest.mark.parametrize("call", [rf.fit, rf.sample, lambda net, x, **words: rf.compare(net, net, x, **words)])
def test_callback_is_told_of_every_step(call):
    calls: list[tuple[int, int, str]] = []
    call(NET, X, progress=lambda *told: calls.append(told))
    assert calls and calls[-1][0] == calls[-1][1] and all(0 < done <= total and what for done, total, what in calls)


@pytest.mark.parametrize("silent", [None, False])
def test_nothing_is_shown_unless_asked(silent, capsys):
    rf.fit(NET, X, progress=silent)
    assert capsys.readouterr() == ("", "")


def test_true_shows_a_bar_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with reported(True) as report:
        assert report is not None
        report(1, 4, "moments")
        report(4, 4, "projection")
    assert "projection" in terminal.getvalue() and "100%" in terminal.getvalue()


def test_true_shows_a_bar_in_a_notebook(monkeypatch):
    pytest.importorskip("tqdm")
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    with reported(True) as report:
        assert report is not None
        report(1, 4, "moments")
    assert "moments" in shown.getvalue() and "1/4" in shown.getvalue()


@pytest.mark.parametrize(
    ("package", "notebook", "message"),
    [
        ("rich.progress", False, "progress=True in a terminal needs rich: pip install rich"),
        ("tqdm.auto", True, "progress=True in a notebook needs tqdm: pip install tqdm"),
    ],
)
def test_missing_package_is_named(monkeypatch, package, notebook, message):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}} if notebook else {})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=message):
        rf.fit(NET, X, progress=True)


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="progress: wanted a function, True or None, got str"):
        rf.fit(NET, X, progress="yes")
