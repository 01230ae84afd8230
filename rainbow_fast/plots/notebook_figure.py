# SPDX-License-Identifier: BSD-3-Clause
"""A figure that notebooks show without pyplot. Importing this file needs matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A `matplotlib.figure.Figure` that is shown as the value of a notebook's cell; pyplot need not be imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
