"""Parse flags and print their help with tyro; say errors in one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import dropwhile, takewhile
from typing import Annotated, Any, TypedDict

from esrl.cli.output import HELP, Helped
from esrl.core.errors import EsrlError, nearest, notice_once
from esrl.core.extras import import_extra
from esrl.core.names import called_here, todays_name, todays_value
from esrl.core.options import Names, Option

_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", tuple: "N ...", Names: "NAME ..."}
Groups = Mapping[str, Iterable[Option]]  # a heading and its flags


def dashed(name: str) -> str:
    """An option's name as a flag."""
    return "--" + name.replace("_", "-")


def texts(command: str, argument: Option, groups: Groups, argv: Sequence[str], about: str = "") -> dict[str, Any]:
    """Parses `argv`. Returns only what was given, by name: a text, a tuple of texts (for lists), or a bool.

    Args:
      command: its name. argument: the positional argument. groups: the flags. about: the first sentences of the help.

    Raises:
      EsrlError: an unknown flag (near names are offered), a flag without its value, or an argument too many.
      Helped: `argv` has `--help`, and the help was printed.
    """
    tyro = import_extra("tyro", "cli", "the command line")
    typed_dict: Any = TypedDict  # mypy wants its fields written out
    # A TypedDict that is not total gets no key for a flag that was left out. A dataclass would get its default, which
    # would then override the recipe.
    fields = {heading: typed_dict(heading, _fields(tyro, flags), total=False) for heading, flags in groups.items()}
    kind: Any = tuple[str, ...] if argument.type is tuple else str
    positional = {argument.name: Annotated[tyro.conf.Positional[kind], _arg(tyro, argument, argument.name.upper())]}
    every = typed_dict("every", positional | fields, total=False)
    plain = _todays(argv, [flag.name for flags in groups.values() for flag in flags])
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            found = tyro.cli(
                every,
                prog=f"esrl {command}",
                description=about,
                args=plain,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code:
            raise EsrlError(_sentence(errors.getvalue())) from None
        raise Helped from None
    given = {name: value for name, value in found.items() if name == argument.name}
    return given | {name: value for heading in groups for name, value in found[heading].items()}


def _fields(tyro: Any, flags: Iterable[Option]) -> dict[str, Any]:
    # tyro leaves numbers as texts. `Option.read` checks them, so that flags and recipes have the same rules and errors.
    kinds: dict[Any, Any] = {bool: bool, tuple: tuple[str, ...], Names: tuple[str, ...]}
    return {f.name: Annotated[kinds.get(f.type, str), _arg(tyro, f, _METAVARS.get(f.type))] for f in flags}


def _arg(tyro: Any, option: Option, metavar: str | None) -> Any:
    return tyro.conf.arg(metavar=metavar, help=option.help, help_behavior_hint=_default(option.default))


def _default(value: Any) -> str:
    """The default in brackets, nothing for None."""
    if isinstance(value, bool):
        value = "on" if value else "off"
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    return "" if value is None else f"[{value}]"


def _todays(argv: Sequence[str], known: Sequence[str]) -> list[str]:
    """The arguments, old names of flags replaced by today's.

    Raises:
      EsrlError: a flag that is neither.
    """
    found = []
    for text in argv:
        flag, equals, value = text.partition("=")
        if not flag.startswith("--") or flag in HELP:
            found.append(text)
            continue
        start = "--no-" if flag.startswith("--no-") else "--"
        name = todays_name(flag.removeprefix(start).replace("-", "_"), known)
        if here := called_here(name, known):
            notice_once(f"{flag} is called {dashed(here)} here")
            name = here
        if name not in known:
            raise EsrlError(f"unknown flag {flag}{nearest(flag, map(dashed, known))}")
        found.append(start + dashed(name)[2:] + equals + value)
    return found


def _sentence(box: str) -> str:
    """The sentence in an error box of tyro: the lines below the title, up to a rule."""
    # Where standard output is not UTF-8, tyro leaves out the frame and draws rules with hyphens.
    lines = [re.sub(r"[│╭╮╰╯─]|^\s*-+\s*$", "", line).strip() for line in box.splitlines()[1:]]
    said = " ".join(takewhile(bool, dropwhile(lambda line: not line, lines)))
    said = said.replace("Unrecognized options:", "unexpected argument:").removesuffix(".")
    return said[:1].lower() + said[1:]


def about(command: Callable[..., Any]) -> str:
    """What a command's docstring says before its arguments."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]


def values(given: dict[str, Any], options: dict[str, Option]) -> dict[str, Any]:
    """The values of those flags that were given."""
    return {
        name: option.read(todays_value(name, given[name]), dashed(name))
        for name, option in options.items()
        if name in given
    }
