"""Environment names that say how the environment was made."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_plus


def with_options(name: str, options: dict[str, Any]) -> str:
    """`name?key=value&key=value`, which `esrl.make` reads back; options that are None are left out."""
    given = {key: quote_plus(str(value), safe="/:,") for key, value in options.items() if value is not None}
    query = "&".join(f"{key}={text}" for key, text in given.items())
    return f"{name}?{query}" if query else name
