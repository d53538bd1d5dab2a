"""Code that a run's folder names: it is run only where its owner named it, or says so.

A recipe may name an environment or a network as `path/to/file.py:Name` or `module:Name`. Whoever trains with it has
named it, and this machine remembers that. Of a folder that came from elsewhere it is refused, until `trust` is given:
making such an environment imports the file, and calls what it names.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from esrl.core.types import EsrlError, notice
from esrl.envs.references import is_file, is_module
from esrl.training.files import open_plain, read_bytes

_MEMORY = 1 << 20  # bytes of what is remembered, at most


def code_in(recipe: dict[str, Any]) -> list[str]:
    """The texts in a recipe that name code, without options, files by their whole paths.

    Args:
      recipe: its table, of which `env` and `policy` count.

    Example:
      >>> code_in({"env": "brax/hopper"}), code_in({"env": "minigrid:MiniGrid-Empty-5x5-v0"})
      ([], ['minigrid:MiniGrid-Empty-5x5-v0'])
    """
    env = str(recipe.get("env", "")).partition("?")[0]
    network = str(recipe.get("policy", {}).get("network", ""))
    named = dict.fromkeys((env, env.removeprefix("gymnasium/"), network))
    return [_whole(text) for text in named if is_file(text) or is_module(text)]


def _whole(text: str) -> str:
    path, _, name = text.rpartition(":")
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, links that go round
        return f"{Path(path).expanduser().resolve()}:{name}" if is_file(text) else text
    return text


def check_code(recipe: dict[str, Any], folder: str | os.PathLike[str], trust: bool) -> None:
    """Says what code a run's folder names, before it is run.

    Args:
      recipe: the folder's. folder: its path, for the sentence.
      trust: it may be run, and is remembered.

    Raises:
      EsrlError: it may not, and nobody here has named it before.
    """
    unknown = [text for text in code_in(recipe) if text not in _remembered()]
    if unknown and not trust:
        raise EsrlError(
            f"{folder} names code, which would be run: {', '.join(unknown)}; read it, and if you trust it give"
            " --trust (in Python: trust=True)"
        )
    if unknown:
        notice(f"{folder} names code, which is run: {', '.join(unknown)}")
        remember(recipe)


def remember(recipe: dict[str, Any]) -> None:
    """Remembers that the owner of this machine's account has named the code of a recipe."""
    new = [text for text in code_in(recipe) if text not in _remembered()]
    with contextlib.suppress(OSError, EsrlError):  # no home folder that can be written: it will be asked for again
        if new:
            path = _memory()
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                os.write(file, "".join(f"{text}\n" for text in new if "\n" not in text).encode())
            finally:
                os.close(file)


def _remembered() -> set[str]:
    with contextlib.suppress(OSError, EsrlError, RuntimeError, UnicodeDecodeError):
        return set(read_bytes(_memory(), _MEMORY).decode().splitlines())
    return set()


def _memory() -> Path:
    """The file that remembers, where programs keep such things."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "esrl" / "named_code"
