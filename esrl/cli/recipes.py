"""The recipe that the flags of a command make: its environment or file, the flags of its agent laid over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esrl.cli.arguments import Groups, about, dashed, texts, values
from esrl.cli.output import HELP
from esrl.cluster.opening import BLOCK_SIZES, Cluster
from esrl.core import processes
from esrl.core.errors import EsrlError, notice
from esrl.core.joining import join
from esrl.core.options import Option, options_of
from esrl.envs.catalog import check_spelling, spoken
from esrl.envs.registry import check_again
from esrl.envs.suites._common import options_in, with_options
from esrl.training.budget import Budget
from esrl.training.recipe import (
    AGENTS,
    NETWORK_KEYS,
    Recipe,
    agent_named,
    policy_defaults,
    read,
    run_keys,
)
from esrl.training.recipe_table import FIXED
from esrl.training.run_folder import RunFolder
from esrl.training.suite_defaults import suite_defaults
from esrl.training.trust import check_code

RUN = {"agent": Option("agent", str, help=f"algorithm: {', '.join(AGENTS)}")} | run_keys()
del RUN["workers"]  # a flag of the environment's, unless Ray is to play
_BUDGET = 1e6  # environment steps when no budget is given
_JOINING = ("distributed", "coordinator", "processes", "process_id")  # how processes find each other
PLAYERS = ("ray_address", "workers", "broadcast", "block_timeout")  # who plays, which changes no number
_WITHOUT_RAY = {k: v for k, v in Cluster._field_defaults.items() if k not in ("ray_address", *BLOCK_SIZES)}
_RESUMABLE = (  # what a run that goes on may still be told
    *(*_JOINING, *PLAYERS),
    *("resume", "trust", "json", "dry_run", *Budget._fields),
    *(name for name in run_keys() if name not in FIXED),
)
OF_ENV = {  # options of the environment that have flags; they become a part of its name
    option.name: option
    for option in (
        Option("max_episode_steps", int, help="steps after which an episode is cut off"),
        Option("vectorization", str, help="how Gymnasium's lanes are stepped: auto, sync, async, vector, workers"),
        Option("workers", int, help="processes that step Gymnasium's lanes; with --ray-address, workers of Ray"),
        Option("instances", int, help="environments that may exist at once (a licence, a port)"),
    )
}
TARGET = Option(
    "env",
    str,
    help="an environment, as brax/hopper, gymnasium/CartPole-v1 or path/to/file.py:Class; or a recipe, as"
    " agents/brax/hopper/eggroll.toml, which the flags then override",
)


def recipe_of(command: Callable[..., Any], argv: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with all flags laid over it, and every flag that was given.

    Which flags there are depends on the agent, and which defaults the help shows on the recipe. So the flags of every
    agent are parsed first, to find these two.
    """
    own, plain = options_of(command), [a for a in argv if a not in HELP]
    given = _given(command, plain)
    if len(plain) == len(argv) and "dry_run" not in given:  # help and a dry run are for one process alone
        _join(values(given, {name: own[name] for name in _JOINING if name in own}))
    recipe = _base(given)
    options = plain_options(recipe.agent)
    known = own | RUN | OF_ENV | NETWORK_KEYS | options
    for name in given:
        if name not in known and name != TARGET.name:
            see = f"esrl {command.__name__} --agent {recipe.agent} --help"
            raise EsrlError(f"agent {recipe.agent} has no option {name}; see what it has with: {see}")
    recipe = _overridden(recipe, given)
    if len(plain) < len(argv):
        texts(command.__name__, TARGET, {"command": own.values(), **_groups(recipe)}, ["--help"], about(command))
    return _with_budget(recipe), given


def recipes_of(command: Callable[..., Any], argv: Sequence[str]) -> tuple[list[Recipe], dict[str, Any]]:
    """A recipe for each of the command's `agents`, and every flag that was given.

    A flag of some agents is laid over their recipes alone, and a notice says so.
    """
    own, plain = options_of(command), [a for a in argv if a not in HELP]
    given = _given(command, plain)
    told = own["agents"].read(given["agents"], "--agents") if "agents" in given else own["agents"].default
    agents = list(dict.fromkeys(map(_agent_spoken, told)))
    each = {agent: plain_options(agent) for agent in agents}
    if "agent" in given or not agents:
        raise EsrlError(f"say which agents to compare, as: esrl {command.__name__} brax/hopper --agents eggroll ppo")
    shared = own | RUN | OF_ENV | NETWORK_KEYS
    if len(plain) < len(argv):
        groups = {heading: flags for heading, flags in _groups(_base(given)).items() if heading not in AGENTS}
        groups["run"] = [flag for flag in groups["run"] if flag.name != "agent"]
        groups["network"] = [flag._replace(default=None) for flag in groups["network"]]  # agents have their own
        texts(command.__name__, TARGET, {"command": own.values(), **groups}, ["--help"], about(command))
    for name in given:
        if name not in shared and name != TARGET.name:
            having = [agent for agent in agents if name in each[agent]]
            if not having:
                raise EsrlError(f"none of {', '.join(agents)} has the option {name}")
            if len(having) < len(agents):
                notice(f"{dashed(name)} is an option of {', '.join(having)} alone, and goes there")
    found = []
    for agent in agents:
        known = {TARGET.name, *shared, *each[agent]}
        part = {name: value for name, value in given.items() if name in known} | {"agent": agent}
        found.append(_with_budget(_overridden(_base(part), part)))
    return found, given


def _given(command: Callable[..., Any], plain: Sequence[str]) -> dict[str, Any]:
    """The flags in some arguments, of whatever agent, and ENV."""
    every = {name: option for agent in AGENTS for name, option in plain_options(agent).items()}
    anything = options_of(command) | RUN | OF_ENV | NETWORK_KEYS | every
    given = texts(command.__name__, TARGET, {"any": anything.values()}, plain)
    if "agent" in given:
        given["agent"] = _agent_spoken(given["agent"])
    if TARGET.name in given and not given[TARGET.name].endswith(".toml"):
        given[TARGET.name] = spoken(given[TARGET.name])
        check_spelling(given[TARGET.name])
    return given


def _join(told: dict[str, Any]) -> None:
    """Joins the other processes, where a flag asks for it: before JAX is used, and before a folder is read."""
    asked = told.pop("distributed", bool(told))
    if told and not asked:
        raise EsrlError(f"{dashed(next(iter(told)))} is given, but --no-distributed too; leave one out")
    if asked:
        join(**told)


def _resumed(folder: str, trusted: bool) -> Recipe:
    """The recipe of a run to go on with."""
    recipe = read(RunFolder.existing(folder).recipe, run=True)
    check_again(recipe.env)
    check_code(vars(recipe), folder, trusted)
    return recipe


def _overridden(recipe: Recipe, given: dict[str, Any]) -> Recipe:
    """The recipe with the values of flags laid over it."""
    of_env, run = values(given, OF_ENV), values(given, RUN)
    if run.get("ray_address", recipe.ray_address) is not None:
        run |= {name: of_env.pop(name) for name in ("workers",) if name in of_env}
    elif "ray_address" in run:  # none, for a run that goes on without Ray
        run = _WITHOUT_RAY | run
    if of_env:
        name, _, query = recipe.env.partition("?")
        recipe = dataclasses.replace(recipe, env=with_options(name, options_in(query) | of_env))
    options = values(given, plain_options(recipe.agent))
    return recipe.override(run, values(given, NETWORK_KEYS), options)


def _with_budget(recipe: Recipe) -> Recipe:
    if all(getattr(recipe, name) is None for name in Budget._fields):
        return dataclasses.replace(recipe, env_steps=_BUDGET)
    return recipe


def _agent_spoken(name: str) -> str:
    """An agent's name from how people write it: PPO, OpenES, eggroll-ac."""
    plain = {agent.replace("_", ""): agent for agent in AGENTS}
    return plain.get(name.lower().replace("-", "").replace("_", ""), name)


def _base(given: dict[str, Any]) -> Recipe:
    """The recipe that the flags are laid over: that of a run to go on with, of a file, or an empty one."""
    target, resume = given.get(TARGET.name), given.get("resume")
    if resume is not None:
        fixed = [target or dashed(name) for name in given if name not in _RESUMABLE]
        if fixed:
            raise EsrlError(f"a run goes on as it began; leave out {fixed[0]} with --resume")
        return Recipe(**processes.from_first(lambda: dataclasses.asdict(_resumed(resume, "trust" in given))))
    agent, network = ({k: v for k, v in given.items() if k == name} for name in ("agent", "network"))
    if target is not None and target.endswith(".toml"):
        in_folder = Path(target).name == "recipe.toml"  # of a run, which may have come from elsewhere
        recipe = read(target, run=in_folder)
        if in_folder:
            check_code(vars(recipe), target, "trust" in given)
        return recipe.override(agent, network)
    recipe = Recipe(target or "").override(agent)
    policy, options = suite_defaults(recipe.env, recipe.agent, given.get("optimizer"))
    return dataclasses.replace(recipe, policy=policy, options=options).override({}, network)


def plain_options(agent: str) -> dict[str, Option]:
    """The options of an agent that can be given as text."""
    return {name: option for name, option in options_of(agent_named(agent)).items() if option.type is not None}


def _groups(recipe: Recipe) -> Groups:
    """The flags that apply to a recipe, its values as their defaults."""
    own = policy_defaults(recipe.agent, recipe.network, recipe.policy.get("hidden"), recipe.policy.get("dtype"))
    policy = {"network": recipe.network} | own | recipe.policy
    options = {name: option.default for name, option in plain_options(recipe.agent).items()} | recipe.options

    def shown(known: dict[str, Option], values: dict[str, Any]) -> list[Option]:
        return [option._replace(default=values[name]) for name, option in known.items() if name in values]

    return {
        "run": shown(RUN, vars(recipe)),
        "environment": list(OF_ENV.values()),
        "network": shown(NETWORK_KEYS, policy),
        recipe.agent: shown(plain_options(recipe.agent), options),
    }
