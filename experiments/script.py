"""What the scripts share: options read from the command line, and tables in Markdown."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

Options = TypeVar("Options")


def options(kind: type[Options], text: str | None) -> Options:
    """The command line as a dataclass: a flag for each field, its comment is its help.

    What cannot be read ends the script with one line, rather than with tyro's box.

    Args:
      kind: the dataclass. text: what --help says first.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, description=text)
    except SystemExit as end:
        if end.code != 2:
            raise
        inside = (line.strip("│ ") for line in said.getvalue().splitlines()[1:])
        wrong(" ".join(itertools.takewhile(lambda line: not line.startswith(("─", "╰")), inside)))


def wrong(sentence: str) -> NoReturn:
    """Ends the script because of what was asked of it: status 2, as argparse has it."""
    print(f"{sys.argv[0].rpartition('/')[2]}: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def line(cells: Iterable[Any]) -> str:
    """One line of a Markdown table."""
    return "|" + "|".join(f" {cell} " if str(cell) else " " for cell in cells) + "|"


def table(head: Sequence[str], rows: Iterable[Iterable[Any]] = ()) -> str:
    """A Markdown table; pandas' own would pad its cells, and cannot be printed line by line."""
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])
