# SPDX-License-Identifier: BSD-3-Clause
"""The argument `progress` of long functions: a callback, or True for a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, str], None]  # progress(done, total, what)


@contextmanager
def reported(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """A context that gives the function to call with the progress, or None if nothing is shown.

    Args:
        progress: called as ``progress(done, total, what)``; the total may change from one stage to the next. True shows
            a progress bar, by tqdm in notebooks and by rich in terminals. None or False shows nothing.

    Raises:
        TypeError: `progress` is something else.
        ImportError: the package for the bar is not installed; the message says how to install it.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with _tqdm_bar() if _in_notebook() else _rich_bar() as bar:
            yield bar
    elif callable(progress):
        yield progress
    else:
        raise TypeError(f"progress: wanted a function, True or None, got {type(progress).__name__}")


def _in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def _tqdm_bar() -> Iterator[Progress]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True in a notebook needs tqdm: pip install tqdm") from None
    with tqdm(total=1, leave=False) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description(what, refresh=False)
            bar.refresh()

        yield show


@contextmanager
def _rich_bar() -> Iterator[Progress]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        raise ImportError("progress=True in a terminal needs rich: pip install rich") from None
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
