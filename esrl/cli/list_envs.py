"""List environments, suite by suite, for a person or a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esrl.cli.output import tell
from esrl.core.errors import EsrlError
from esrl.envs.catalog import names, near_by_last_part, suites, version
from esrl.envs.references import is_file, is_module

if TYPE_CHECKING:
    from esrl.cli.inspection import Inspection

Listing = dict[str, Any]


def envs(pattern: str = "", *, json: bool = False) -> int:
    """List environments, or show one.

    Lists the suites that are installed and how to install the others; the names in a suite; or one environment: its
    spaces, the size of a policy, and how fast a random policy steps it here.

    Args:
      pattern: a suite or a part of a name, in any case, lists names; a whole name, or file.py:Class, shows that one.
      json: end with one JSON object on standard output.
    """
    if is_one(pattern):
        from esrl.cli.inspection import inspect_env  # with JAX
        from esrl.core.runtime import check_jax, configure
        from esrl.envs.registry import make

        configure()
        check_jax()
        shown = inspect_env(make(pattern))
        return tell(shown._asdict(), inspection_text(shown), json)
    found = listing(pattern)
    return tell(found, as_text(found, whole=bool(pattern)), json)


def is_one(pattern: str) -> bool:
    """Whether a text is the whole name of one environment: `file.py:Class`, `module:Name`, or a listed name.

    `?options` may follow.
    """
    name = pattern.partition("?")[0]
    if name.endswith(".py") or is_file(name) or is_module(name) or is_module(name.removeprefix("gymnasium/")):
        return True
    suite = name.partition("/")[0]
    return suite in suites() and name in _names(suite)


def listing(pattern: str = "") -> dict[str, Listing]:
    """Finds names that contain a text, in any case: `{suite: {version, names}}`, or `{suite: {missing: sentence}}`.

    A text that begins with a suite's name is looked up in that suite first. If it is found there, no other suite is
    imported.

    Raises:
      EsrlError: nothing contains the text; near names are offered.
    """
    part = pattern.lower()
    own = [suite for suite in suites() if part.startswith(suite.lower())] if part else []
    for among in ([own] if own else []) + (
        [suites()] if not any(part.startswith(f"{suite}/") for suite in own) else []
    ):
        found = {suite: _entry(suite, part) for suite in among}
        shown = {k: v for k, v in found.items() if not part or v.get("names") or (k in own and "missing" in v)}
        if shown:
            return shown
    known = [name for suite in own or suites() for name in _names(suite)]
    raise EsrlError(f"no environment's name contains {pattern!r}{near_by_last_part(pattern, known)}")


def as_text(found: dict[str, Listing], whole: bool) -> str:
    """A listing as text: one line for each suite, or every name where `whole` is true."""
    if not whole:
        return _overview(found)
    lines = []
    for suite, entry in found.items():
        if "missing" in entry:
            lines.append(f"{suite}: {entry['missing']}")
        else:
            lines += [f"{suite} {entry['version']} ({len(entry['names'])})".replace("  ", " ")]
            lines += [f"  {name}" for name in entry["names"]]
    return "\n".join(lines)


def inspection_text(found: Inspection) -> str:
    """An inspection as text."""
    by = "the device (JAX)" if found.stepped_by == "device" else "Python"
    measured = f"{found.lanes} lanes x {found.steps} steps"
    rows = {
        "observation": found.observation_space,
        "action": found.action_space,
        "time limit": f"{found.max_episode_steps:,} steps",
        "action mask": "yes" if found.action_mask else "no",
        "stepped by": by,
        "parameters": f"{found.parameters:,} in an mlp of 3 x 256",
        "compiling": f"{found.seconds_compile:.1f} s (less when it was compiled before)",
        "speed": f"{found.steps_per_second:,.0f} steps/s of a random policy ({measured})",
    }
    return "\n".join([found.name, *(f"  {name:12s} {text}" for name, text in rows.items())])


def _overview(found: dict[str, Listing]) -> str:
    there = {suite: entry for suite, entry in found.items() if "names" in entry}
    width = max((len(suite) for suite in found), default=0)
    lines = []
    for suite, entry in there.items():
        example = f"as {entry['names'][0]}" if entry["names"] else ""
        lines.append(
            f"{suite:{width}s}  {entry['version']:12s} {len(entry['names']):5d} environments  {example}".rstrip()
        )
    missing = [f"{suite:{width}s}  {entry['missing']}" for suite, entry in found.items() if "missing" in entry]
    name = next((suite for suite in ("brax", *there) if suite in there), "brax")
    example = there[name]["names"][0] if name in there and there[name]["names"] else "brax/hopper"
    return "\n".join(
        [*lines, *missing, "", f"Names: esrl envs {name}. One environment, its speed: esrl envs {example}"]
    )


def _entry(suite: str, part: str) -> Listing:
    try:
        found = [name for name in names(suite) if part in name.lower()]
    except EsrlError as error:
        return {"missing": str(error)}
    return {"version": version(suite), "names": found}


def _names(suite: str) -> list[str]:
    return _entry(suite, "").get("names", [])
