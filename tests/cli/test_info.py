# SPDX-License-Identifier: BSD-3-Clause
"""Messages of the command line about the kernels: `info` without kernels, and a level that cannot run."""

from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from here import ROOT, fresh_python

pytest.importorskip("typer")

from rainbow_fast import backend

Run = Callable[..., tuple[int, str, str]]


def test_info_without_kernels_says_how_to_get_them(rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BUILD", backend.Build())
    monkeypatch.setattr(backend, "isa", None)
    code, out, _ = rainbow_fast("info")
    assert code == 0 and backend.WITHOUT_KERNELS in " ".join(out.split()) and "cpu: reference" in out


@pytest.mark.parametrize("refused", [True, False])
def test_info_says_if_the_system_refuses_the_matrix_unit(
    rainbow_fast: Run, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """As containers without tile registers do. Then the levels do not contain amx."""
    kernels = SimpleNamespace(levels=lambda: ["baseline", "avx2"], amx_is_refused=lambda: refused)
    monkeypatch.setattr(backend, "kernels", lambda: kernels)
    monkeypatch.setattr(backend, "isa", "avx2")
    code, out, _ = rainbow_fast("info")
    assert code == 0 and ("baseline, avx2; amx is refused by the system" in " ".join(out.split())) == refused


COMMANDS = """
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from rainbow_fast.cli import main
for words in sys.argv[1:]:
    sys.argv = ["rainbow-fast", *words.split()]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(repr((code, out.getvalue(), errors.getvalue())))
"""


def test_level_that_cannot_run_is_one_line(tmp_path: Path) -> None:
    """Of every command, in a process with this level."""
    commands = ["info", "--help", "train mlp"]
    text = fresh_python(COMMANDS, *commands, folder=tmp_path, RAINBOW_FAST_ISA="sse9", PYTHONPATH=str(ROOT))
    assert list(tmp_path.iterdir()) == []
    for _, line in zip(commands, text.splitlines(), strict=True):
        code, out, errors = literal_eval(line)
        assert (code, out) == (2, "") and errors.count("\n") == 1
        assert errors.startswith("Error: RAINBOW_FAST_ISA='sse9': this build on this machine can run ")
