"""Command-line flags as data: read them, turn them into values, and say what they mean.

A flag that is not given is not in the result, so that what a recipe says stands until a flag overrides it.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from esrl.core.types import EsrlError, nearest

HELP = ("-h", "--help")
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH", tuple: "N ..."}
_WORDS = {int: "a whole number", float: "a number", tuple: "whole numbers"}


class Flag(NamedTuple):
    """One flag, `--name VALUE`.

    Attributes:
      name: as a recipe spells it, `env_steps`; on the command line it is `--env-steps`.
      kind: bool (`--name` and `--no-name`), int, float, str, Path, or tuple (any number of whole numbers).
      help: what it means, without capital and full stop.
      default: shown in the help; None shows nothing.
      optional: whether "none" may be given.
      choices: the only values that a str may have, or () for any.
      metavar: how the help calls the value; "" chooses by kind.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    optional: bool = False
    choices: tuple[str, ...] = ()
    metavar: str = ""

    @property
    def dashed(self) -> str:
        return "--" + self.name.replace("_", "-")


Groups = dict[str, Sequence[Flag]]  # a heading and its flags


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise EsrlError(message.removeprefix("argument "))


def raw(argv: Sequence[str], flags: Iterable[Flag], positional: str | None = None) -> dict[str, Any]:
    """What was given, by name, values still as text (bool for bool flags, a list for tuples).

    Args:
      argv: the arguments behind the command's name, without `-h` and `--help`.
      flags: every flag that may be there. Of two of the same name, the first decides how many values it takes.
      positional: the name of the one argument that is not a flag; None when there is none.

    Raises:
      EsrlError: an unknown flag (near ones are offered), or one without its value.
    """
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    if positional is not None:
        parser.add_argument(positional, nargs="?")
    known = {flag.name: flag for flag in reversed(list(flags))}
    for flag in known.values():
        if flag.kind is bool:
            parser.add_argument(flag.dashed, dest=flag.name, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(flag.dashed, dest=flag.name, nargs="*" if flag.kind is tuple else None)
    given, extra = parser.parse_known_args(list(argv))
    unknown = next((e for e in extra if e.startswith("--")), None)
    if unknown is not None:
        name = unknown.partition("=")[0]
        raise EsrlError(f"unknown flag {name}{nearest(name, [flag.dashed for flag in known.values()])}")
    if extra:
        raise EsrlError(f"unexpected argument {extra[0]!r}")
    return vars(given)


def values(given: dict[str, Any], flags: Iterable[Flag]) -> dict[str, Any]:
    """The flags' values among what `raw` gave; names that no flag has are left out.

    Raises:
      EsrlError: a value that is not of its flag's kind, or none of its choices.
    """
    return {flag.name: _value(flag, given[flag.name]) for flag in flags if flag.name in given}


def _value(flag: Flag, text: Any) -> Any:
    if flag.kind is bool:
        return text
    if flag.optional and text == "none":
        return None
    if flag.choices and text not in flag.choices:
        raise EsrlError(f"{flag.dashed} is {text!r}, but must be one of {', '.join(flag.choices)}")
    try:
        return tuple(int(part) for part in text) if flag.kind is tuple else flag.kind(text)
    except ValueError as error:
        shown = " ".join(text) if flag.kind is tuple else text
        raise EsrlError(f"{flag.dashed} is {shown!r}, but must be {_WORDS[flag.kind]}") from error


def help_text(usage: str, about: str, argument: Flag | None, groups: Groups) -> str:
    """The help of a command: usage, a sentence, and every flag with its default in brackets."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    lines = [f"usage: {usage}", "", *textwrap.wrap(about, width), ""]
    if argument is not None:
        lines += [*_entry(argument.metavar, argument.help, width), ""]
    for heading, flags in groups.items():
        if flags:
            lines += [f"{heading}:", *(line for flag in flags for line in _entry(_left(flag), _right(flag), width)), ""]
    return "\n".join(lines).rstrip()


def _left(flag: Flag) -> str:
    if flag.kind is bool:
        return flag.dashed.replace("--", "--[no-]", 1) if flag.default is not False else flag.dashed
    return f"{flag.dashed} {flag.metavar or '|'.join(flag.choices) or _METAVARS[flag.kind]}"


def _right(flag: Flag) -> str:
    if flag.default is None or flag.default is False:
        return flag.help
    default = flag.default
    if default is True:
        shown = "on"
    else:
        shown = " ".join(map(str, default)) if isinstance(default, (tuple, list)) else f"{default}"
    return f"{flag.help} [{shown}]"


def _entry(left: str, right: str, width: int) -> list[str]:
    indent = " " * 28
    body = textwrap.wrap(right, width, initial_indent=indent, subsequent_indent=indent)
    if len(left) > 24:
        return [f"  {left}", *body]
    return [f"  {left:26s}{body[0].strip()}", *body[1:]]
