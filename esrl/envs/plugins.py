"""Environments of installed packages that announce themselves by an entry point in the group `esrl.envs`.

In the package's pyproject.toml, either a suite or one environment:

    [project.entry-points."esrl.envs"]
    mysuite = "mypackage.envs"          # with names() and make(name, **options)
    rocket = "mypackage.rocket:Rocket"  # an environment: its name is "rocket"
    "mysuite/Extra" = "mypackage.extra:Extra"
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from esrl.core.errors import EsrlError, reason_of
from esrl.envs.imports import check_known, construct, quiet

GROUP = "esrl.envs"


def announced(taken: Collection[str] = ()) -> dict[str, EntryPoint]:
    """The entry points by their names; nothing is imported.

    Args:
      taken: suites of esrl itself. What is announced under them is left out: no package changes what they mean.
    """
    found = entry_points(group=GROUP)
    return {point.name: point for point in found if point.name.partition("/")[0] not in taken}


def suites(taken: Collection[str] = ()) -> list[str]:
    """The suites that are announced: the part of each name in front of its `/`, or the whole name."""
    return sorted({name.partition("/")[0] for name in announced(taken)})


def version(suite: str) -> str:
    """The distributions behind a suite, as `my-package 1.2`."""
    points = [point for name, point in announced().items() if name.partition("/")[0] == suite]
    return ", ".join(sorted({f"{point.dist.name} {point.dist.version}" for point in points if point.dist is not None}))


def names(suite: str) -> list[str]:
    """Every environment of a suite by the name that `make` takes.

    Raises:
      EsrlError: a package that cannot be imported, or whose names() fails.
    """
    found: set[str] = set()
    for name, point in announced().items():
        if name.partition("/")[0] == suite:
            thing = load(point)
            found |= set(_listed(point, thing)) if _is_suite(thing) else {name}
    return sorted(found)


def make(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Makes what an announced name stands for.

    Args:
      name: one that `announced` has, or `suite/Name` of a suite.
      options: of the environment.

    Returns:
      What the suite's make(name, **options) returned, with no options left; or the announced class or object itself,
        with the options that are still to be given to it.

    Raises:
      EsrlError: a package that cannot be imported, a name that its suite does not have, or a make that fails.
    """
    suite, _, rest = name.partition("/")
    points = announced()
    if name in points:
        thing = load(points[name])
        if _is_suite(thing):  # the whole name was "suite"
            known = _listed(points[name], thing)
            raise EsrlError(f"{name} is a suite; say which environment, as {' or '.join(known[:2]) or name + '/Name'}")
        return thing, options
    if suite not in points or not _is_suite(thing := load(points[suite])):
        # Single environments may be announced as "suite/Name" without a suite of that name.
        near = [other.partition("/")[2] or other for other in names(suite)]
        check_known(suite, rest, near)
    known = _listed(points[suite], thing)
    check_known(suite, rest, [other.removeprefix(f"{suite}/") for other in known])
    return construct(name, lambda: thing.make(rest, **options)), {}


def load(point: EntryPoint) -> Any:
    """Imports what an entry point names.

    Raises:
      EsrlError: its package cannot be imported, or has no such thing.
    """
    try:
        with quiet():
            thing = point.load()
    except Exception as error:
        raise EsrlError(
            f"{point.name}, which the installed package {_distribution(point)} announces as {point.value}, cannot be"
            f" imported: {reason_of(error)}; repair that package or uninstall it"
        ) from error
    if isinstance(thing, ModuleType) and not _is_suite(thing):
        raise EsrlError(
            f"{point.name}, which the installed package {_distribution(point)} announces, is the module {point.value}"
            " without names() and make(name, **options); add them, or announce an environment as module:Class"
        )
    return thing


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "behind it"


def _is_suite(thing: Any) -> bool:
    """Whether it has names() and make(name, **options)."""
    return callable(getattr(thing, "names", None)) and callable(getattr(thing, "make", None))


def _listed(point: EntryPoint, suite: Any) -> list[str]:
    """A suite's names with its own name in front, whether it says it or not."""
    listed = construct(f"the list of {point.name}, of the installed package {_distribution(point)},", suite.names)
    prefix = f"{point.name}/"
    return [prefix + name.removeprefix(prefix) for name in listed]
