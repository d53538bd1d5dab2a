"""Rows as a table for people: in a terminal as text, in a notebook as HTML, for pandas as a frame."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from esrl.core.extras import import_extra


class Rows(list[dict[str, Any]]):
    """A list of rows, each a dict from a column's name to its value, that shows itself as a table.

    Example:
      >>> Rows([{"seed": 0, "return": 487.25}, {"seed": 1, "return": 500.0}])
      seed  return
         0   487.2
         1   500.0
    """

    def __repr__(self) -> str:
        return aligned(self)

    def _repr_html_(self) -> str:
        names, cells = _cells(self)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
          EsrlError: pandas is not installed.
        """
        return frame(self, "to_dataframe")


def frame(rows: Sequence[dict[str, Any]], purpose: str) -> Any:
    """Rows as a `pandas.DataFrame`; `purpose` is what an error says that needs pandas."""
    return import_extra("pandas", "experiments", purpose).DataFrame(list(rows))


def aligned(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a text whose columns stand below their names; numbers to the right."""
    names, cells = _cells(rows)
    if not names:
        return "no rows"
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    numeric = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names]

    def line(texts: Sequence[str]) -> str:
        places = zip(texts, widths, numeric, strict=True)
        return "  ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in places).rstrip()

    return "\n".join([line(names), *map(line, cells)])


def _cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [[shown_number(row.get(name)) for name in names] for row in rows]


def shown_number(value: Any) -> str:
    """A value in a cell: whole numbers with commas, others with four digits or one decimal, None as a hyphen.

    Example:
      >>> shown_number(100352), shown_number(487.25), shown_number(0.05), shown_number((1.0, 2.5)), shown_number(None)
      ('100,352', '487.2', '0.05', '[1.0, 2.5]', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(shown_number, value))}]"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
