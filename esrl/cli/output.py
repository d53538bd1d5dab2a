"""What a command prints: a text for people, or one JSON object for programs."""

from __future__ import annotations

import json
import shutil
from typing import Any

from esrl.training.logs import finite

HELP = ("-h", "--help")


class Helped(SystemExit):
    """The help was printed. Any other exit is that of somebody's code."""


def width() -> int:
    """Characters of a line of a table."""
    return max(100, min(140, shutil.get_terminal_size((110, 24)).columns))


def plain_name(env: str) -> str:
    """An environment's name as that of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in env.partition("?")[0])


def tell(found: dict[str, Any], text: str, as_json: bool) -> int:
    """Prints what was found, as JSON or as a text for people."""
    if as_json:
        say_json(found)
    else:
        print(text)
    return 0


def say_json(found: dict[str, Any]) -> None:
    """Prints one JSON object; numbers that are not finite are null."""
    print(json.dumps(finite(found)))
