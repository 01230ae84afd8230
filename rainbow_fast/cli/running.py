# SPDX-License-Identifier: BSD-3-Clause
"""Running a command line: exit codes, and errors in one line."""

from __future__ import annotations

import typer
from rich.markup import escape
from typer.main import get_command

from rainbow_fast.cli import terminal

USER_ERROR, INTERRUPTED = 2, 130  # exit codes


def run_app(app: typer.Typer, name: str) -> int:
    """The exit code of a command line. A mistake of the user is one line; an interruption too."""
    try:
        code = get_command(app).main(prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return _refuse(str(error))
    except Exception as error:  # typer's own, of usage: it has no public base class in all versions
        if not hasattr(error, "format_message"):
            raise
        return _refuse(error.format_message())
    if code == INTERRUPTED:
        terminal.err().print("Interrupted. What stands in the output folder is whole.")
    return code or 0


def _refuse(message: str) -> int:
    if message:  # none where typer has printed the help
        terminal.err().print(f"[red]Error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
    return USER_ERROR
