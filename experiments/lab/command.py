"""The command line of a script: a dataclass whose fields are its words, by tyro."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parsed(kind: type[T], doc: str | None) -> T:
    """The words of the command line as a dataclass; what is wrong with them ends the script with one line.

    Args:
      kind: the dataclass; a comment behind a field is its help.
      doc: the script's docstring, which --help shows.
    """
    said, module = io.StringIO(), getattr(sys.modules["__main__"], "__spec__", None)
    prog = f"python -m {module.name}" if module else sys.argv[0]
    markers = tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, description=doc, config=markers)
    except SystemExit as left:
        if left.code in (0, None):
            raise
        # tyro frames what it says: a title, the error, a rule, and the help of an option
        lines = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]
        texts = (list(group) for text, group in itertools.groupby(lines, lambda line: bool(line.strip("─-"))) if text)
        sys.exit(" ".join(next(texts, [])).removesuffix(".") + f"; {prog} --help says what there is")


def at_least(arguments: Any, least: float, *names: str, strict: bool = False) -> None:
    """Leaves with a sentence for the first of some fields that is given and too small."""
    for name in names:
        given = getattr(arguments, name)
        if given is not None and (given <= least if strict else given < least):
            limit = f"above {least:g}" if strict else f"at least {least:g}"
            sys.exit(f"--{name.replace('_', '-')} is {given:g}, but must be {limit}")
