"""Code that a run's folder names: it is run only where its owner named it, or says so.

A recipe may name an environment or a network as `path/to/file.py:Name` or `module:Name`. Whoever trains with it has
named it, and this machine remembers that. Of a folder that came from elsewhere it is refused, until `trust` is given:
making such an environment imports the file, and calls what it names.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from esrl.core.types import EsrlError, notice
from esrl.envs.references import is_file
from esrl.training.files import open_plain, read_bytes

_MEMORY = 1 << 20  # bytes of what is remembered, at most


def code_in(recipe: dict[str, Any]) -> list[str]:
    """The texts in a recipe that name code, without options, with the file or folder that it lies in.

    Args:
      recipe: its table, of which `env` and `policy` count.

    Example:
      >>> code_in({"env": "brax/hopper"}), code_in({"env": "no_such_module:Env?size=3"})
      ([], ['no_such_module:Env'])
    """
    env = str(recipe.get("env", "")).partition("?")[0]
    network = str(recipe.get("policy", {}).get("network", ""))
    # Whatever has a colon is imported by one way or another; names of suites have none.
    return [_whole(text.removeprefix("gymnasium/")) for text in dict.fromkeys((env, network)) if ":" in text]


def _whole(text: str) -> str:
    """A text with where its code lies: a module of that name may be another one in another folder."""
    path, _, name = text.rpartition(":")
    with contextlib.suppress(OSError, RuntimeError, ImportError, ValueError):  # no home folder, links that go round
        if is_file(text):
            return f"{Path(path).expanduser().resolve()}:{name}"
        found = PathFinder.find_spec(text.partition(":")[0].partition(".")[0], [*sys.path, os.getcwd()])
        places = [] if found is None else [found.origin, *(found.submodule_search_locations or ())]
        return " ".join([text, *(f"({Path(place).resolve()})" for place in places[:1] if place)])
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
        notice(f"{folder} names code, which is run, and trusted from now on: {', '.join(unknown)}")
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
