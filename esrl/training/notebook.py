"""Progress in a notebook: one output of a cell that is written anew, so that a long run does not flood the page."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_SECONDS = 0.3  # between two writings
_LINES = 24  # that stand above the live one; of more, the first ones and the last


def in_notebook() -> bool:
    """Whether standard output is a notebook's: a kernel of Jupyter runs this process, and it alone."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class NotebookLine:
    """A live line below lines that stay, in one output.

    Args:
      text: gives the live line.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        from IPython.display import display

        self._text = text
        self._lines: list[str] = []
        self._written = time.monotonic()
        self._handle: Any = display(self._bundle(), raw=True, display_id=True)

    def say(self, text: str) -> None:
        """Adds a line that stays."""
        self._lines.append(text)
        self.refresh()

    def refresh(self, always: bool = False) -> None:
        """Writes the output anew, unless that was done a moment ago."""
        now = time.monotonic()
        if always or now - self._written >= _SECONDS:
            self._written = now
            self._handle.update(self._bundle(), raw=True)

    def stop(self) -> None:
        """Writes what there is for the last time."""
        self.refresh(always=True)

    def _bundle(self) -> dict[str, str]:
        lines = self._lines
        if len(lines) > _LINES:
            left_out = len(lines) - _LINES
            lines = [*lines[:4], f"({left_out} lines left out)", *lines[4 - _LINES :]]
        return {"text/plain": "\n".join([*lines, self._text()])}
