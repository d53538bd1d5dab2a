"""Docstrings as the reference takes them.

* `a, b: text` in a list of names is an entry for each of them.
* An agent's `**shared` line stands for the options of another constructor; they are those of the imported function.
* `Example:` is a section of code.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

ENTRY = re.compile(r"^(\s+)((?:\*{0,2}\w+,\s+)+\*{0,2}\w+): (.*)$", re.MULTILINE)
BROKEN = re.compile(r"((?:^|\n)\s+(?:\w+, )*\w+,)\n\s+((?:\w+, )*\w+: )")  # a list of names over two lines


class Docstrings(griffe.Extension):
    """Rewrites them while the objects are collected."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if "**shared:" in text:
            module, _dot, name = obj.path.rpartition(".")
            text = inspect.cleandoc(getattr(importlib.import_module(module), name).__doc__)
        text = ENTRY.sub(_split, BROKEN.sub(r"\1 \2", text))
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _split(entry: re.Match[str]) -> str:
    return "\n".join(f"{entry[1]}{name.strip()}: {entry[3]}" for name in entry[2].split(","))
