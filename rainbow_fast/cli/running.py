# SPDX-License-Identifier: BSD-3-Clause
"""Running a command line: exit codes, warnings and errors, each in one line."""

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

from rainbow_fast.cli import terminal
from rainbow_fast.cli.former import present

USER_ERROR, INTERRUPTED = 2, 130  # exit codes
USERS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, OverflowError, MemoryError)
OUT_OF_MEMORY = (  # torch's words; the last two of sizes that no machine has
    "can't allocate memory",
    "out of memory",
    "size calculation overflowed",
    "Overflow when unpacking",
)
CALL = nn.Module._call_impl.__code__  # every call of a module goes through it
PACKAGE, TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
NETWORKS = PACKAGE / "networks"  # those networks are called as anyone's


def run_app(app: typer.Typer, name: str) -> int:
    """The exit code of a command line: 0, 2 for an error of the user's, 130 after Ctrl-C; both write one line.

    Errors of the user's are those that the package raises by name, those of files and memory, and whatever the user's
    network raises when it is called. Any other exception is a fault of the package, and is raised.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a terminal that has no ±
    try:
        with terminal.warned():
            arguments = present(sys.argv[1:])
            code = get_command(app).main(arguments, prog_name=name, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (Exception, SystemExit) as error:
        message = _message(error)
        if message is None:
            raise
        if message:  # none where typer has printed the help
            terminal.err().print(f"[red]Error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
        return USER_ERROR
    if code == INTERRUPTED:  # typer may turn Ctrl-C into it
        terminal.err().print("Interrupted. What stands in the output folder is whole.")
    return code


def _message(error: BaseException) -> str | None:
    """What the user is told; None for an error that is not the user's."""
    if hasattr(error, "format_message"):  # typer's own, of usage: it has no public base class in all versions
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
    """Whether a line of the package raises it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return any(_in_package(frame.filename) and (frame.line or "").startswith("raise ") for frame in last)


def _raising_module(trace: TracebackType | None) -> str | None:
    """The class of the innermost module that was being called, unless something of this package ran inside of it."""
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
    """The last line of a file of the user's, in words; nothing where a network is made of torch's modules alone."""
    frames = traceback.extract_tb(error.__traceback__)
    last = [f for f in frames if Path(f.filename).is_file() and not Path(f.filename).is_relative_to(TORCH)][-1:]
    return "".join(f", line {f.lineno} of {f.filename}" for f in last if not _in_package(f.filename))
