"""Recipes that differ in one thing and another: options by name, typed as a recipe types them, and what they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import esrl
from esrl.algorithms import eggroll_ac_agent, es_agents, ppo_agent, shaping
from esrl.algorithms.optimizers import make_optimizer
from esrl.core.names import FORMER_DEFAULTS, near_option
from esrl.core.options import options_of
from esrl.core.types import nearest
from esrl.training import recipe as recipes
from esrl.training.suite_defaults import ES, suite_defaults
from experiments.lab.store import ROOT

PAPER = ROOT / "experiments" / "paper" / "rl.toml"  # the paper's configurations and its search space
TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}
# What the speeds here were measured with: options whose defaults changed since.
FORMER: dict[str, Any] = {name: value for name, value in FORMER_DEFAULTS.items() if name != "population"}
# Options that OpenES does not have, and the chunk, whose size another noise and population has no use for.
ONLY_EGGROLL = ("rank", "max_excess_variance", "chunk_pairs")


def base_recipe(
    env: str, agent: str, path: Path | None, run: dict[str, Any], policy: dict[str, Any] | None = None
) -> esrl.Recipe:
    """The recipe of a file, complete; without one, the agent with its suite's defaults and 1e6 steps.

    Args:
      env: the environment, whatever the file says.
      run: fields to lay over it.
      policy: [policy] where there is neither a file nor a suite's default.

    Raises:
      EsrlError: a file that is no recipe of this agent, or has no budget of env_steps.
    """
    if path is not None:
        recipe = recipes.read(path)
        if recipe.agent != agent:
            raise esrl.EsrlError(f"{path} is a recipe of {recipe.agent}, not of {agent}")
    else:
        of_policy, options = suite_defaults(env, agent)
        recipe = esrl.Recipe(env, agent, env_steps=1e6, policy=of_policy or policy or {}, options=options)
    recipe = recipe.override({"env": env, **run})
    if recipe.env_steps is None:
        raise esrl.EsrlError(f"{path} has no budget of env_steps; give --env-steps")
    return complete(dataclasses.replace(recipe, generations=None, checkpoint_every=None, seed=0))


def complete(recipe: esrl.Recipe) -> esrl.Recipe:
    """The recipe with every default of agent and network written out, so that it stays what it is when they change.

    Raises:
      EsrlError: an unknown option, or a value that makes no sense.
    """
    options = checked(recipe.agent, recipe.options)
    if options["learning_rate"] is None:
        options["learning_rate"] = base_rate(recipe.agent, options.get("optimizer"))
    make_optimizer(*(options.get(k) for k in ("optimizer", "momentum", "weight_decay", "max_grad_norm")))
    if "shaping" in options:
        shaping.by_name(options["shaping"])
    recipes.network_from(recipe.policy)
    own = recipes.policy_defaults(recipe.agent, recipe.network, recipe.policy.get("hidden"))
    policy = {"network": recipe.network} | own | recipe.policy
    policy = {name: list(v) if isinstance(v, tuple) else v for name, v in policy.items()}
    return dataclasses.replace(recipe, options={k: v for k, v in options.items() if v is not None}, policy=policy)


def base_rate(agent: str, optimizer: str | None = None) -> float:
    """The learning rate that an agent has with an optimizer, or with its own, unless it is given one."""
    if agent not in ES:
        return (eggroll_ac_agent if agent == "eggroll_ac" else ppo_agent).BASE_RATE
    own = recipes.agent_named(agent)
    return es_agents.RATES.get(optimizer or options_of(own)["optimizer"].default, es_agents.BASE_RATE)


def varied(recipe: esrl.Recipe, values: dict[str, Any]) -> esrl.Recipe:
    """The complete recipe with other values of options and of keys of [policy]; None takes an option out.

    Rank is a text: "dense" makes it OpenES, which has the options of EGGROLL but `rank` and what goes with it.
    """
    values, agent, options = dict(values), recipe.agent, dict(recipe.options)
    rank = values.pop("rank", None)
    if rank is not None:
        agent = "open_es" if rank == "dense" else "eggroll"
        options |= {} if rank == "dense" else {"rank": int(rank)}
    policy = recipe.policy | {k: v for k, v in values.items() if is_policy(k)}
    options |= {k: v for k, v in values.items() if not is_policy(k)}
    if agent == "open_es":
        options = {k: v for k, v in options.items() if k not in ONLY_EGGROLL}
    elif "population" in values:
        options.pop("chunk_pairs", None)
    options = {k: v for k, v in options.items() if v is not None}
    return complete(dataclasses.replace(recipe, agent=agent, policy=policy, options=options))


def value(recipe: esrl.Recipe, name: str) -> Any:
    """What an option, or a key of [policy], is in a complete recipe: a list as "64x64", None where there is none.

    Rank is a text, "dense" for OpenES.
    """
    if name == "rank":
        return "dense" if recipe.agent == "open_es" else _text(recipe.options.get(name))
    found = recipe.policy.get(name) if is_policy(name) else recipe.options.get(name)
    return "x".join(map(str, found)) if isinstance(found, list) else found


def typed(agent: str, name: str, text: str) -> Any:
    """A value of an option, or of a key of [policy], from a text: "none", "true", "0.5", "64x64".

    Raises:
      EsrlError: no such name, or no such value.
    """
    known = option_types(agent) | policy_types()
    if name not in known:
        raise esrl.EsrlError(f"{name!r} is neither an option of {agent} nor a key of [policy]{nearest(name, known)}")
    kind = known[name]
    if text == "none" and not is_policy(name) and name != "shaping":
        return None
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return [int(width) for width in text.split("x")] if kind is tuple else kind(text)
    except (KeyError, ValueError):
        words = "widths as 64x64" if kind is tuple else TYPE_WORDS[kind]
        raise esrl.EsrlError(f"{name} is {text!r}, but must be {words}") from None


def is_policy(name: str) -> bool:
    """Whether a name is a key of [policy] rather than an option."""
    return name in policy_types()


def option_types(agent: str) -> dict[str, Any]:
    """The type of each option that a recipe can give."""
    return {name: o.type for name, o in options_of(recipes.agent_named(agent)).items() if o.type is not None}


def policy_types() -> dict[str, Any]:
    """The type of each key of [policy]."""
    return {"network": str} | {name: option.type for name, option in recipes.NETWORK_KEYS.items()}


def checked(agent: str, options: dict[str, Any]) -> dict[str, Any]:
    """Every option of an agent that a recipe can give, the defaults of those that are not given included.

    Raises:
      EsrlError: an unknown option, or a value that makes no sense.
    """
    known = options_of(recipes.agent_named(agent))
    for name in options:
        if name not in known:
            raise esrl.EsrlError(f"{agent} has no option {name!r}{near_option(name, known)}")
    found = {name: o.default for name, o in known.items() if o.type is not None} | options
    return {name: known[name].check(value) for name, value in found.items()}


def paper_options(agent: str, given: dict[str, Any]) -> dict[str, Any]:
    """An agent's options as esrl names them, from those of the paper's tables (experiments/paper/rl.toml)."""
    if agent == "ppo":
        return {**given, "normalize_observations": True, "normalize_rewards": False}
    own = {k: v for k, v in given.items() if k not in ("deterministic_policy", "rank_transform")}
    own["deterministic"] = given["deterministic_policy"]
    own["shaping"] = "centered_rank" if given["rank_transform"] else "z_score"
    return {**own, "averaging": 0.0, "gradient_scale": "paper", "normalize_observations": False}


def own_recipe(env: str, agent: str) -> Path | None:
    """The environment's own recipe for an agent, in agents/, if it has one."""
    path = ROOT / "agents" / env.partition("?")[0] / f"{agent}.toml"
    return path if path.exists() else None


def _text(found: Any) -> str | None:
    return None if found is None else str(found)
