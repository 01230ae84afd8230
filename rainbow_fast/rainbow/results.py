# SPDX-License-Identifier: BSD-3-Clause
"""The base class of all results with a row for each site: text, HTML, JSON, a DataFrame and a figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from rainbow_fast.io import dumps
from rainbow_fast.tables import aligned, html_lines, html_table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Results(ABC):
    """Base of results with a row for each site.

    `print` gives a table of text; a notebook shows the same table in HTML.
    """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All results as numbers, strings, lists and dicts."""

    @abstractmethod
    def plot(self) -> Figure:
        """One figure with a row for each site.

        Raises:
            ImportError: matplotlib is missing.
        """

    def to_json(self) -> str:
        """`to_dict` as one line of JSON; NaN is null, infinite numbers are "inf"."""
        return dumps(self.to_dict())

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` of one row a site, in order of execution.

        Columns have the names of the site's attributes. A column without any value is NaN, such as the held-out error
        if no data was held out.

        Raises:
            ImportError: pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        frame = pandas.DataFrame(self._records())
        return frame.astype({name: float for name in frame if frame[name].isna().all()})

    @abstractmethod
    def _records(self) -> list[dict[str, Any]]:
        """A flat record of each site: the rows of the DataFrame."""

    @abstractmethod
    def _cells(self) -> list[list[str]]:
        """The table as text: its heading, then its rows."""

    def _above(self) -> list[str]:
        """Lines above the table."""
        return []

    def _below(self) -> list[str]:
        """Lines below the table."""
        return []

    def __str__(self) -> str:
        above = self._above()
        return "\n".join([*above, *[""] * bool(above), *aligned(self._cells()), *self._below()])

    def _repr_html_(self) -> str:
        return html_lines(self._above()) + html_table(*self._cells()) + html_lines(self._below())
