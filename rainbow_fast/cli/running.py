# SPDX-License-Identifier: BSD-3-Clause
"""Runs a command line: exit codes, and warnings and errors in one line each."""

from __future__ import annotations

import io
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

import torch
import typer
from rich.markup import escape
from torch import nn
from typer.main import get_command

from rainbow_fast import backend
from rainbow_fast.cli import terminal
from rainbow_fast.cli.former import present
from rainbow_fast.tables import one_line

USER_ERROR, INTERRUPTED = 2, 130  # exit codes
USERS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, OverflowError, MemoryError)
OUT_OF_MEMORY = (  # parts of torch's messages; the last two are for sizes that no machine has
    "can't allocate memory",
    "out of memory",
    "size calculation overflowed",
    "Overflow when unpacking",
)
CALL = nn.Module._call_impl.__code__  # every call of a module goes through this function
PACKAGE, TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
NETWORKS = PACKAGE / "networks"  # errors in these networks are reported as in the user's own networks


def run_app(app: typer.Typer, name: str) -> int:
    """Run a command line; returns its exit code: 0, 2 for an error of the user, 130 after Ctrl-C.

    An error of the user and Ctrl-C print one line. Errors of the user are errors that the package raises on purpose,
    errors of files and memory, and errors in the user's network. All other exceptions are bugs of the package, and are
    raised again.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # some terminals cannot print ±
    try:
        backend.check_isa()
        with terminal.warned():
            arguments = present(sys.argv[1:])
            code = get_command(app).main(arguments, prog_name=name, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (Exception, SystemExit) as error:
        message = _message(error)
        if message is None:
            raise
        if message:  # empty if typer has printed the help
            terminal.err().print(f"[red]Error:[/] {escape(one_line(message))}", soft_wrap=True)
        return USER_ERROR
    if code == INTERRUPTED:  # typer may turn Ctrl-C into this exit code
        terminal.err().print("Interrupted. The files in the output folder are complete.")
    return code


def _message(error: BaseException) -> str | None:
    """The message for the user; None if the error is not an error of the user."""
    if hasattr(error, "format_message"):  # usage errors of typer, which have no public base class in some versions
        return error.format_message()
    if _no_memory(error):
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        return f"not enough memory for {asked[1] if asked else 'data or widths of this size'}"
    layer = _raising_module(error.__traceback__)
    if layer is not None:
        return f"the network raised {type(error).__name__} in {layer}{_line_of(error)}: {_first_line(error)}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, USERS) or _raised_by_name(error):
        return str(error) or type(error).__name__
    return None


def _no_memory(error: BaseException) -> bool:
    torch_has_none = any(words in str(error) for words in OUT_OF_MEMORY)
    return type(error) is MemoryError or (isinstance(error, RuntimeError | TypeError) and torch_has_none)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or "no message"


def _raised_by_name(error: BaseException) -> bool:
    """Whether a `raise` statement of the package raised the error."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return any(_in_package(frame.filename) and (frame.line or "").startswith("raise ") for frame in last)


def _raising_module(trace: TracebackType | None) -> str | None:
    """The class of the innermost module that was being called; None if code of this package ran inside of it."""
    name = None
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code is CALL:
            name = type(frame.f_locals["self"]).__name__
        elif _in_package(frame.f_code.co_filename):
            name = None
    return name


def _in_package(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(PACKAGE) and not path.is_relative_to(NETWORKS)


def _line_of(error: BaseException) -> str:
    """The last line in the user's own files, as text; empty if only modules of torch ran."""
    frames = traceback.extract_tb(error.__traceback__)
    last = [f for f in frames if Path(f.filename).is_file() and not Path(f.filename).is_relative_to(TORCH)][-1:]
    return "".join(f", line {f.lineno} of {f.filename}" for f in last if not _in_package(f.filename))
