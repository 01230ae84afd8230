# SPDX-License-Identifier: BSD-3-Clause
"""The command `rainbow-fast`: train, sample, plan, sites, compare, clean, random, demo, info."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit with code 0, with 2 and one line on an error of the user, or with 130 on Ctrl-C."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(f'Error: rainbow-fast needs {" and ".join(missing)}: pip install "rainbow_fast[cli]"', file=sys.stderr)
        sys.exit(2)
    from rainbow_fast.cli.app import app
    from rainbow_fast.cli.running import run_app

    sys.exit(run_app(app, "rainbow-fast"))
