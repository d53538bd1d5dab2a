"""The one error of bad input, notices, and near names. Imports no package, so that a refusal takes no second."""

from __future__ import annotations

import contextlib
import difflib
import sys
import traceback as tracebacks
from collections.abc import Iterable
from functools import cache


class EsrlError(ValueError):
    """Bad input, said in one sentence: what was given, what is needed, what to change."""


def reason_of(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def place_of(error: BaseException) -> str:
    """The line that raised an error, as " (file, line 3)": of code outside of packages where its traceback has some.

    Called by who caught it, whose own line does not count; "" where nothing lies below that.
    """
    frames = tracebacks.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    outside = [frame for frame in frames if "/jax/" not in frame.filename]  # of packages, the one that called JAX
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in (own or outside)[-1:])


def notice(text: str) -> None:
    """Says something on standard error that stops nothing."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"esrl: notice: {text}", file=sys.stderr)


notice_once = cache(notice)  # of each text, in a process


def close_to(given: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names that are near a name, nearest first."""
    return difflib.get_close_matches(given, sorted(known), n=limit, cutoff=0.5)


def nearest(given: str, known: Iterable[str], limit: int = 3) -> str:
    """A `; did you mean ...?` clause for an unknown name, or the known names when nothing is near."""
    known = sorted(known)
    close = close_to(given, known, limit)
    if close:
        *others, last = close
        return f"; did you mean {' or '.join([', '.join(others), last] if others else [last])}?"
    return f"; known: {', '.join(known)}" if known else ""
