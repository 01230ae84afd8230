# SPDX-License-Identifier: BSD-3-Clause
"""The command `rainbow-fast`: train, sample, plan, sites, compare, demo, info."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit: 0, or 2 with one line on what the user got wrong, or 130 after Ctrl-C."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(f'Error: rainbow-fast needs {" and ".join(missing)}: pip install "rainbow_fast[cli]"', file=sys.stderr)
        sys.exit(2)
    from rainbow_fast.cli.app import app
    from rainbow_fast.cli.running import run_app

    sys.exit(run_app(app, "rainbow-fast"))
