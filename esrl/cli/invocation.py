"""What `esrl train` and `esrl describe` are asked for: a recipe, with the flags laid over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esrl.cli.arguments import HELP, Flag, Groups, raw, values
from esrl.core.types import EsrlError, nearest
from esrl.training.recipe import AGENTS, NETWORK_KEYS, NETWORKS, Recipe, agent_named, policy_defaults, read
from esrl.training.run_folder import RunFolder
from esrl.training.suite_defaults import suite_defaults

_BUDGET = 1e6  # environment steps when no budget is given
_RESUMABLE = ("resume", "json", "dry_run", "env_steps", "generations")  # what a run that goes on may still be told

JSON = Flag("json", bool, "end with one JSON object on standard output", False)
TARGET = Flag(
    "env",
    str,
    "an environment, as brax/hopper, gymnasium/CartPole-v1 or path/to/file.py:Class; or a recipe, as"
    " agents/brax/hopper/eggroll.toml, which the flags then override",
    metavar="ENV",
)
_FOLDERS = (
    Flag("out", Path, "folder for the run; runs/ENV-AGENT-seedN-TIME unless given", metavar="DIR"),
    Flag("resume", Path, "go on with the run in this folder; it ends as if it had never stopped", metavar="DIR"),
    Flag("dry_run", bool, "say what the run would take (memory, compiling, steps/s), and train nothing", False),
    JSON,
)


class Invocation(NamedTuple):
    """A run as the command line describes it.

    Attributes:
      recipe: with all flags laid over it.
      out: `--out`. resume: `--resume`. json: `--json`. dry_run: `--dry-run`.
      groups: the flags that this run takes, for its help.
    """

    recipe: Recipe
    out: Path | None
    resume: Path | None
    json: bool
    dry_run: bool
    groups: Groups


def invocation(argv: Sequence[str]) -> Invocation:
    """Reads the arguments behind `esrl train` or `esrl describe`; `--help` among them is passed over.

    Raises:
      EsrlError: anything unknown or unfit in them, or in the recipe that they name.
    """
    every = [*_run_flags(Recipe("")), *_network_flags(Recipe("")), *_FOLDERS]
    every += [flag for agent in AGENTS for flag in _option_flags(Recipe("", agent))]
    given = raw([a for a in argv if a not in HELP], every, TARGET.name)
    recipe = _base(given)
    run, network, options = _run_flags(recipe), _network_flags(recipe), _option_flags(recipe)
    known = {flag.name for flag in (*run, *network, *options, *_FOLDERS, TARGET)}
    for name in given:
        if name not in known:
            raise EsrlError(f"agent {recipe.agent} has no option {name}{nearest(name, known)}")
    recipe = recipe.override(values(given, run), values(given, network), values(given, options))
    if recipe.env_steps is None and recipe.generations is None:
        recipe = dataclasses.replace(recipe, env_steps=_BUDGET)
    folders = values(given, _FOLDERS)
    shown = [flag for flag in network if flag.name in ("network", *policy_defaults(recipe.agent, recipe.network))]
    groups: Groups = {"run": [*run, *_FOLDERS], "network": shown, f"options of {recipe.agent}": options}
    told = (folders.get("json", False), folders.get("dry_run", False))
    return Invocation(recipe, folders.get("out"), folders.get("resume"), *told, groups)


def _base(given: dict[str, Any]) -> Recipe:
    """The recipe that the flags are laid over: that of a run to go on with, of a file, or an empty one."""
    target, resume = given.get(TARGET.name), given.get("resume")
    if resume is not None:
        fixed = [target or "--" + name.replace("_", "-") for name in given if name not in _RESUMABLE]
        if fixed:
            raise EsrlError(f"a run goes on as it began; leave out {fixed[0]} with --resume")
        return read(RunFolder.existing(resume).recipe)
    agent, network = ({k: v for k, v in given.items() if k == name} for name in ("agent", "network"))
    if target is not None and target.endswith(".toml"):
        return read(target).override(agent, network)
    recipe = Recipe(target or "").override(agent)
    policy, options = suite_defaults(recipe.env, recipe.agent)
    return dataclasses.replace(recipe, policy=policy, options=options).override({}, network)


# ---- flags ----------------------------------------------------------------------------------------------------------


def _run_flags(recipe: Recipe) -> list[Flag]:
    agent = Flag("agent", str, f"algorithm: {', '.join(AGENTS)}", recipe.agent)
    return [agent, *(_of(f, getattr(recipe, f.name)) for f in dataclasses.fields(Recipe) if f.metadata)]


def _network_flags(recipe: Recipe) -> list[Flag]:
    defaults = policy_defaults(recipe.agent, recipe.network) | recipe.policy
    network = Flag("network", str, f"{', '.join(NETWORKS)}, or path/to/file.py:Name", recipe.network)
    return [network, *(Flag(key, kind, text, defaults.get(key)) for key, (kind, text) in NETWORK_KEYS.items())]


def _option_flags(recipe: Recipe) -> list[Flag]:
    fields = dataclasses.fields(agent_named(recipe.agent).options)
    return [_of(f, recipe.options.get(f.name, f.default)) for f in fields if f.metadata["plain"] is not None]


def _of(field: dataclasses.Field, default: Any) -> Flag:
    kind, text = field.metadata["plain"], field.metadata["help"]
    return Flag(field.name, kind, text, default, optional=field.default is None)
