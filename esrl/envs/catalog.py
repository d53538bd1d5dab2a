"""Names of environments, suite by suite, without importing the packages behind them, which takes seconds for some.

`names.json` has the names of one tested version of each package. Those of other versions, and of packages that
announce environments, are asked for once (`names_of` imports the package) and kept in the user's
cache folder. `python -m esrl.envs.catalog` writes `names.json` anew, from what is installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from esrl.core.errors import EsrlError, close_to, nearest, notice_once, reason_of
from esrl.envs import plugins


class Suite(NamedTuple):
    """A package of environments.

    Attributes:
      module: what is imported.
      install: what stands behind `pip install`.
      note: a clause about that.
      distribution: what the package index calls it, where that is not `module`.
    """

    module: str
    install: str
    note: str = ""
    distribution: str = ""


SUITES = {
    "brax": Suite("brax", "'esrl[brax]'"),
    "gymnasium": Suite("gymnasium", "'esrl[gymnasium]'"),
    "gymnax": Suite("gymnax", "'esrl[gymnax]'"),
    "navix": Suite("navix", "'esrl[navix]'"),
    "jumanji": Suite("jumanji", "'esrl[jumanji]'"),
    "craftax": Suite("craftax", "'esrl[craftax]'"),
    "playground": Suite("mujoco_playground", "'esrl[playground]'", distribution="playground"),
    "envpool": Suite("envpool", "'esrl[envpool]'"),
    "atari": Suite("ale_py", "'esrl[atari]'", "ale-py is under the GPL-2.0"),
}
# Suites in packages of their own, which announce themselves once they are installed.
PLUGINS = {
    "kinetix": Suite(
        "esrl_kinetix",
        "./envs/kinetix",
        "in the folder of esrl's repository and in an environment of its own: Kinetix 3 needs jax 0.9.0",
    ),
}
SHIPPED = Path(__file__).with_name("names.json")
_OLD_MUJOCO = {"Pusher-v4"}  # needs a MuJoCo below 3
_LONGEST = 1 << 22  # bytes of a file of names


def suites() -> list[str]:
    """Every suite that `make` knows: esrl's own, installed or not, and those that installed packages announce.

    Example:
      >>> "gymnasium" in suites()
      True
    """
    return list(dict.fromkeys([*SUITES, *PLUGINS, *plugins.suites(SUITES)]))


def installed(suite: str) -> bool:
    """Whether a suite's package is there; nothing is imported."""
    if suite in PLUGINS:
        return suite in plugins.suites()
    return suite not in SUITES or importlib.util.find_spec(SUITES[suite].module) is not None


def missing(suite: str) -> str:
    """What to do about a suite that is not installed, in one sentence."""
    _, install, note, _ = {**SUITES, **PLUGINS}[suite]
    return f"{suite} is not installed; install it with: pip install {install}" + (f" ({note})" if note else "")


def version(suite: str) -> str:
    """The version of the package behind a suite; its distribution's name as well, where the suite is announced."""
    if suite not in SUITES:
        return plugins.version(suite)
    module, _, _, distribution = SUITES[suite]
    try:
        return importlib.metadata.version(distribution or module)
    except importlib.metadata.PackageNotFoundError:
        return ""


def names_of(suite: str) -> list[str]:
    """A suite's environment names. Imports the package behind it and no other.

    Raises:
      EsrlError: it is not installed (the command is named), or cannot be imported.

    Example:
      >>> "gymnasium/phys2d/CartPole-v1" in names_of("gymnasium")
      True
    """
    if suite in SUITES:
        return gymnasium_names() if suite == "gymnasium" else adapter_of(suite).names()
    if not installed(suite):
        raise EsrlError(missing(suite))
    return plugins.names(suite)


def adapter_of(suite: str) -> ModuleType:
    """The adapter of a suite, whose package is there; it is imported.

    Raises:
      EsrlError: it is not installed, or cannot be imported.
    """
    if not installed(suite):
        raise EsrlError(missing(suite))
    try:
        adapter = importlib.import_module(f"esrl.envs.suites.{suite}")
        adapter.names()  # imports the package itself, which the adapter does when it is first needed
    except EsrlError:
        raise
    except ImportError as error:
        install = f"pip install {SUITES[suite].install}"
        raise EsrlError(f"{suite} cannot be imported ({error}); install it with: {install}") from error
    except Exception as error:  # versions that do not fit together fail in every way
        raise EsrlError(f"{suite} cannot be imported: {reason_of(error)}") from error
    return adapter


def gymnasium_names() -> list[str]:
    """Names of what can be made: not what only raises an error (MuJoCo v2 and v3), nor what other suites register."""
    import gymnasium

    return sorted(f"gymnasium/{name}" for name, spec in gymnasium.registry.items() if _can_make(name, spec.entry_point))


def _can_make(name: str, entry_point: Any) -> bool:
    if not isinstance(entry_point, str):  # Gymnasium registers functions that raise for what it has dropped
        return not getattr(entry_point, "__name__", "").startswith("_raise")
    others = {suite.module for suite in SUITES.values()} - {"gymnasium"}
    return name not in _OLD_MUJOCO and entry_point.partition(":")[0].partition(".")[0] not in others


@cache
def names(suite: str) -> list[str]:
    """A suite's environment names: known ones of the version that is installed, or else the package's own.

    Raises:
      EsrlError: it is not installed (the command is named), or its package cannot be imported.

    Example:
      >>> "gymnasium/phys2d/CartPole-v1" in names("gymnasium")
      True
    """
    if not installed(suite):
        raise EsrlError(missing(suite))
    known = known_names(suite)
    if known is not None:
        return known
    found = names_of(suite)
    place = _kept(suite)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.{os.getpid()}")
        beside.write_text(json.dumps(found))
        beside.replace(place)
    return found


def known_names(suite: str) -> list[str] | None:
    """A suite's names where they are known without an import, else None."""
    if suite == "gymnasium" and "gymnasium" in sys.modules:  # a script may have registered more
        return gymnasium_names()
    shipped = _shipped().get(suite)
    if shipped and shipped["version"] == _key(suite):
        return shipped["names"]
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_kept(suite).read_text()[:_LONGEST])
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
    return None


def spoken(name: str) -> str:
    """The whole name of an environment that is called without its suite, as LunarLander-v3; others as they are.

    Raises:
      EsrlError: several suites have one of that name; they are listed.
    """
    if "/" in name.partition("?")[0] or ":" in name or not name:
        return name
    bare, question, options = name.partition("?")
    found = [whole for whole in _everything() if whole.rpartition("/")[2] == bare]
    found = found or [whole for whole in _everything() if whole.rpartition("/")[2].lower() == bare.lower()]
    if not found:
        return name
    if len(found) > 1:
        raise EsrlError(f"several environments are called {bare}; say which: {', '.join(found)}")
    notice_once(f"{bare} is {found[0]}")
    return found[0] + question + options


def check_spelling(name: str) -> None:
    """Raises an EsrlError for a name that its suite does not have, where that is known without an import."""
    suite, _, rest = name.partition("?")[0].partition("/")
    if suite in ("gymnasium", "") or suite not in SUITES or not rest or not installed(suite):
        return  # Gymnasium's names may stand in modules that are still to be imported
    known = known_names(suite)
    if known and f"{suite}/{rest}" not in known:
        own = [whole.partition("/")[2] for whole in known]
        raise EsrlError(f"{suite} has no environment {rest!r}{nearest(rest, own)}")


def near_names(name: str) -> str:
    """A clause with names that are near an unknown one; no package is imported for it."""
    suite, slash, rest = name.partition("/")
    close = close_to(suite, suites()) if slash or suite in suites() else []
    if close and not rest:  # a suite's name without an environment
        return f"; {close[0]} is a suite, see its environments with: esrl envs {close[0]}"
    if slash and close:
        return f"; did you mean {close[0]}/{rest}?"
    return near_by_last_part(name, [*_everything(), *plugins.announced(SUITES)])


def near_by_last_part(name: str, known: list[str]) -> str:
    """A clause with names whose part behind the suite is near, in any case; where there are none, how to see them."""
    bare = {n.rsplit("/", 1)[-1].lower(): n for n in reversed(known)}  # of two alike, the suite that is listed first
    last = name.rsplit("/", 1)[-1].lower()
    guesses = [last] if last in bare else close_to(last, bare)
    if not guesses:
        return "; see the suites with: esrl envs"
    return f"; did you mean {' or '.join(bare[guess] for guess in guesses)}?"


def _everything() -> list[str]:
    """Every name of the suites that are installed, as far as it is known; Gymnasium's first."""
    there: Iterable[str] = (suite for suite in ("gymnasium", *SUITES) if installed(suite))
    return [name for suite in dict.fromkeys(there) for name in known_names(suite) or ()]


@cache
def _shipped() -> dict[str, dict]:
    return json.loads(SHIPPED.read_text())


def _key(suite: str) -> str:
    """What a suite's names depend on: its version, and what registers further environments with Gymnasium."""
    others = importlib.metadata.entry_points(group="gymnasium.envs") if suite == "gymnasium" else ()
    return " ".join([version(suite), *sorted({f"{o.dist.name}-{o.dist.version}" for o in others if o.dist})])


def _kept(suite: str) -> Path:
    """The file of names in the cache folder."""
    own = os.environ.get("ESRL_CACHE_DIR")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esrl"
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{suite}-{_key(suite)}")
    return base / "names" / f"{safe}.json"


def main() -> None:
    """Writes `names.json` from what is installed, and keeps what it has of other suites."""
    found = dict(_shipped())
    for suite in SUITES:
        if installed(suite):
            found[suite] = {"version": _key(suite), "names": names_of(suite)}
    lines = (f"{json.dumps(suite)}: {json.dumps(found[suite])}" for suite in SUITES if suite in found)
    SHIPPED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
