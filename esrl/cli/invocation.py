"""Turn the arguments of the command line into the keyword arguments of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from esrl.cli.arguments import about, texts, values
from esrl.core.errors import EsrlError
from esrl.core.options import Option, arguments_of, options_of


def invocation(command: Callable[..., Any], argv: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command.

    A command is a function of one argument and of keyword-only ones, which are its flags; the docstring is its help.
    Where the first argument is called `recipe`, ENV and the flags of a recipe make it, and `given` are the names of
    those flags; where it is called `recipes`, it is one for each of the command's `agents`.

    Raises:
      EsrlError: anything unknown or unfit in the arguments, or in the recipe that they name.
      Helped: `--help` is among them, and was printed.
    """
    first = next(iter(inspect.signature(command).parameters.values()))
    own = options_of(command)
    if first.name == "recipe":
        from esrl.cli.recipes import recipe_of  # with JAX

        recipe, given = recipe_of(command, argv)
        told = {"given": tuple(given)} if "given" in inspect.signature(command).parameters else {}
        return {"recipe": recipe} | told | values(given, own)
    if first.name == "recipes":
        from esrl.cli.recipes import recipes_of

        found, given = recipes_of(command, argv)
        return {"recipes": found} | values(given, own)
    meanings = arguments_of(command.__doc__ or "")
    # A tuple is the default of an argument that may be given any number of times.
    kind = tuple if isinstance(first.default, tuple) else str
    argument = Option(first.name, kind, help=meanings[first.name])
    given = texts(command.__name__, argument, {"command": own.values()}, argv, about(command))
    if first.name not in given and first.default is first.empty:
        raise EsrlError(f"say {argument.help.rstrip('.')}, as: esrl {command.__name__} runs/first")
    return given | values(given, own)
