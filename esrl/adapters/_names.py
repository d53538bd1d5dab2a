"""Environment names that say how the environment was made."""

from __future__ import annotations

from typing import Any


def with_options(name: str, options: dict[str, Any]) -> str:
    """`name?key=value&key=value`, which `esrl.make` reads back; options that are None are left out."""
    query = "&".join(f"{key}={value}" for key, value in options.items() if value is not None)
    return f"{name}?{query}" if query else name
