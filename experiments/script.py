"""What the scripts share: options read from the command line, and tables in Markdown."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
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
            return tyro.cli(kind, description=text, config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone))
    except SystemExit as end:
        if end.code != 2:
            raise
        # a title, the error, a rule, and the help of an option; drawn with hyphens where the terminal has no more
        inside = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]
        texts = (list(lines) for text, lines in itertools.groupby(inside, lambda line: bool(line.strip("─-"))) if text)
        wrong(" ".join(next(texts, [])))


def wrong(sentence: str) -> NoReturn:
    """Ends the script because of what was asked of it: status 2, as argparse has it."""
    print(f"{sys.argv[0].rpartition('/')[2]}: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def at_least(given: Any, least: float, *names: str, strict: bool = False) -> None:
    """Ends the script if one of some options is given and too small."""
    for name in names:
        value = getattr(given, name)
        if value is not None and (value <= least if strict else value < least):
            limit = f"above {least:g}" if strict else f"at least {least:g}"
            wrong(f"--{name.replace('_', '-')} is {value:g}, but must be {limit}")


def shown(row: Mapping[str, Any], column: str, form: str) -> str:
    """A cell of a table: a number in a format; a dash where there is none.

    Args:
      form: one of Python's, "%", "MiB" for bytes, or as "[.3g]" for a median with its lowest and highest.
    """
    if row.get(column) in ("", None):
        return "–"
    if form.startswith("["):
        middle, low, high = (format(float(row[f"{column}{end}"]), form[1:-1]) for end in ("", "_lowest", "_highest"))
        return f"{middle} [{low}, {high}]"
    value = float(row[column])
    return f"{value / 2**20:.3g}" if form == "MiB" else f"{100 * value:.0f} %" if form == "%" else f"{value:{form}}"


def line(cells: Iterable[Any]) -> str:
    """One line of a Markdown table."""
    return "|" + "|".join(f" {cell} " if str(cell) else " " for cell in cells) + "|"


def table(head: Sequence[str], rows: Iterable[Iterable[Any]] = ()) -> str:
    """A Markdown table; pandas' own would pad its cells, and cannot be printed line by line."""
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])
