"""Turn the arguments of the command line into the keyword arguments of a command, a recipe among them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esrl.cli.arguments import HELP, Groups, dashed, texts
from esrl.core.options import Option, arguments_of, options_of
from esrl.core.types import EsrlError
from esrl.envs.registry import check_again
from esrl.training.budget import Budget
from esrl.training.recipe import (
    AGENTS,
    NETWORK_KEYS,
    Recipe,
    agent_named,
    policy_defaults,
    read,
    run_keys,
    todays_value,
)
from esrl.training.run_folder import RunFolder
from esrl.training.suite_defaults import suite_defaults
from esrl.training.trust import check_code

_RUN = {"agent": Option("agent", str, help=f"algorithm: {', '.join(AGENTS)}")} | run_keys()
_BUDGET = 1e6  # environment steps when no budget is given
_RESUMABLE = ("resume", "trust", "json", "dry_run", *Budget._fields)  # what a run that goes on may still be told
TARGET = Option(
    "env",
    str,
    help="an environment, as brax/hopper, gymnasium/CartPole-v1 or path/to/file.py:Class; or a recipe, as"
    " agents/brax/hopper/eggroll.toml, which the flags then override",
)


def invocation(command: Callable[..., Any], argv: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command.

    A command is a function of one argument and of keyword-only ones, which are its flags; the docstring is its help.
    Where the first argument is called `recipe`, ENV and the flags of a recipe make it.

    Raises:
      EsrlError: anything unknown or unfit in the arguments, or in the recipe that they name.
      SystemExit: `--help` is among them, and was printed.
    """
    first = next(iter(inspect.signature(command).parameters.values()))
    own = options_of(command)
    if first.name == "recipe":
        recipe, given = _recipe(command, argv)
        return {"recipe": recipe} | _values(given, own)
    meanings = arguments_of(command.__doc__ or "")
    # A tuple is the default of an argument that may be given any number of times.
    kind = tuple if isinstance(first.default, tuple) else str
    argument = Option(first.name, kind, help=meanings[first.name])
    given = texts(command.__name__, argument, {"command": own.values()}, argv, _about(command))
    if first.name not in given and first.default is first.empty:
        raise EsrlError(f"say {argument.help.rstrip('.')}, as: esrl {command.__name__} runs/first")
    return given | _values(given, own)


def _about(command: Callable[..., Any]) -> str:
    return inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]


def _values(given: dict[str, Any], options: dict[str, Option]) -> dict[str, Any]:
    """The values of those flags that were given."""
    return {
        name: option.read(todays_value(name, given[name]), dashed(name))
        for name, option in options.items()
        if name in given
    }


# ---- recipes --------------------------------------------------------------------------------------------------------


def _recipe(command: Callable[..., Any], argv: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with all flags laid over it, and every flag that was given.

    Which flags there are depends on the agent, and which defaults the help shows on the recipe. So the flags of every
    agent are parsed first, to find these two.
    """
    own, plain = options_of(command), [a for a in argv if a not in HELP]
    every = {name: option for agent in AGENTS for name, option in _plain_options(agent).items()}
    anything = own | _RUN | NETWORK_KEYS | every
    given = texts(command.__name__, TARGET, {"any": anything.values()}, plain)
    recipe = _base(given)
    options = _plain_options(recipe.agent)
    known = own | _RUN | NETWORK_KEYS | options
    for name in given:
        if name not in known and name != TARGET.name:
            see = f"esrl {command.__name__} --agent {recipe.agent} --help"
            raise EsrlError(f"agent {recipe.agent} has no option {name}; see what it has with: {see}")
    recipe = recipe.override(_values(given, _RUN), _values(given, NETWORK_KEYS), _values(given, options))
    if len(plain) < len(argv):
        texts(command.__name__, TARGET, {"command": own.values(), **_groups(recipe)}, ["--help"], _about(command))
    if all(getattr(recipe, name) is None for name in Budget._fields):
        recipe = dataclasses.replace(recipe, env_steps=_BUDGET)
    return recipe, given


def _base(given: dict[str, Any]) -> Recipe:
    """The recipe that the flags are laid over: that of a run to go on with, of a file, or an empty one."""
    target, resume = given.get(TARGET.name), given.get("resume")
    if resume is not None:
        fixed = [target or dashed(name) for name in given if name not in _RESUMABLE]
        if fixed:
            raise EsrlError(f"a run goes on as it began; leave out {fixed[0]} with --resume")
        recipe = read(RunFolder.existing(resume).recipe, run=True)
        check_again(recipe.env)
        check_code(vars(recipe), resume, "trust" in given)
        return recipe
    agent, network = ({k: v for k, v in given.items() if k == name} for name in ("agent", "network"))
    if target is not None and target.endswith(".toml"):
        in_folder = Path(target).name == "recipe.toml"  # of a run, which may have come from elsewhere
        recipe = read(target, run=in_folder)
        if in_folder:
            check_code(vars(recipe), target, "trust" in given)
        return recipe.override(agent, network)
    recipe = Recipe(target or "").override(agent)
    policy, options = suite_defaults(recipe.env, recipe.agent)
    return dataclasses.replace(recipe, policy=policy, options=options).override({}, network)


def _plain_options(agent: str) -> dict[str, Option]:
    """The options of an agent that can be given as text."""
    return {name: option for name, option in options_of(agent_named(agent)).items() if option.type is not None}


def _groups(recipe: Recipe) -> Groups:
    """The flags that apply to a recipe, its values as their defaults."""
    own = policy_defaults(recipe.agent, recipe.network, recipe.policy.get("hidden"))
    policy = {"network": recipe.network} | own | recipe.policy
    options = {name: option.default for name, option in _plain_options(recipe.agent).items()} | recipe.options

    def shown(known: dict[str, Option], values: dict[str, Any]) -> list[Option]:
        return [option._replace(default=values[name]) for name, option in known.items() if name in values]

    return {
        "run": shown(_RUN, vars(recipe)),
        "network": shown(NETWORK_KEYS, policy),
        recipe.agent: shown(_plain_options(recipe.agent), options),
    }
