"""Search spaces of study/tune.py: read from TOML, checked, sampled by Optuna, and the defaults nearest to them.

A file has tables [eggroll], [open_es], [ppo], [es] (shared by EGGROLL and OpenES) and [policy] (the network's keys,
shared by all). In them a list is a choice, `{low = 0.01, high = 0.5, log = true}` a range, anything else is fixed; a
fixed list is a choice of one, as `hidden = [[64, 64]]`. `one_of` is a choice between tables of fixed values, for keys
whose values do not all go together: `one_of = [{hidden = [], skip = false}, {hidden = [32], skip = true}]`.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from esrl.algorithms.es import ESState
from esrl.algorithms.ppo_agent import HYPERPARAMS
from esrl.core.options import options_of
from esrl.core.types import EsrlError, nearest
from esrl.training import recipe as recipes
from esrl.training.suite_defaults import ES, suite_defaults
from experiments.lab.recipes import PAPER, TYPE_WORDS, base_rate, checked, option_types, paper_options, policy_types
from experiments.lab.store import ROOT

FOLDER = ROOT / "experiments" / "study" / "spaces"
Space = dict[str, dict[str, Any]]  # {"policy": ..., "options": ...}, each key's value as in the file
PAPER_NAMES: dict[str, str] = {"rank_transform": "shaping", "deterministic_policy": "deterministic"}
ONE_OF = "one_of"
DIGITS = 4  # significant ones of a sampled number, so that a recipe holds exactly what was run


def read(name: str, agent: str) -> Space:
    """An agent's space: "paper", a file of study/spaces by its stem, or any TOML file.

    Raises:
      EsrlError: no such space, not TOML, an unknown table or option, or a range or choice that makes no sense.
    """
    recipes.agent_named(agent)
    if name == "paper":
        return paper(agent)
    path = FOLDER / f"{name}.toml" if not name.endswith(".toml") else Path(name)
    if not path.is_file():
        known = ["paper", *(found.stem for found in FOLDER.glob("*.toml"))]
        raise EsrlError(f"there is no search space {name}{nearest(name, known)}, or give a TOML file")
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EsrlError(f"{path} cannot be read as a search space: {error}") from error
    known = ["policy", "es", *recipes.AGENTS]
    for table, content in data.items():
        if table not in known or not isinstance(content, dict):
            raise EsrlError(f"{path}: {table!r} is no table of a search space{nearest(table, known)}")
    shared = data.get("es", {}) if agent in ES else {}
    if agent == "open_es":  # what only EGGROLL has
        shared = {
            k: v for k, v in shared.items() if k not in option_types("eggroll").keys() - option_types("open_es").keys()
        }
    space = {"policy": data.get("policy", {}), "options": shared | data.get(agent, {})}
    check(space, agent, str(path))
    return space


def paper(agent: str) -> Space:
    """The paper's space, its names and the rest of its configurations as in agents/paper/."""
    data = tomllib.loads(PAPER.read_text())
    given: dict[str, Any] = dict(data["search_space"]["es" if agent in ES else agent])
    if agent == "open_es":
        del given["rank"]
    each: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    for name, choices in given.items():
        own = PAPER_NAMES.get(name, name)
        for choice in choices:
            found = paper_options(agent, {"rank_transform": True, "deterministic_policy": True, name: choice})
            each.setdefault(own, []).append(found.pop(own))
            fixed |= {k: v for k, v in found.items() if k in ("averaging", "gradient_scale", "normalize_observations")}
            fixed |= {"normalize_rewards": found["normalize_rewards"]} if agent == "ppo" else {}
    protocol = data["protocol"]
    policy = {"network": "mlp", "hidden": [protocol["hidden"]], "activation": protocol["activation"]}
    space = {"policy": policy, "options": {**fixed, **each}}
    check(space, agent, "the paper's space")
    return space


def check(space: Space, agent: str, where: str) -> None:
    """Raises `EsrlError` for the first option that is unknown, or whose range or choices make no sense."""
    for table, known in (("policy", policy_types()), ("options", option_types(agent))):
        for name, given in space[table].items():
            place = f"{where}: {name} of [{agent if table == 'options' else table}]"
            if name == ONE_OF:
                if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
                    raise EsrlError(f"{place} is {given!r}, but must be a list of tables, one of which is taken")
                for each in given:
                    check(
                        {"policy": {}, "options": {}, table: {k: [v] for k, v in each.items()}},
                        agent,
                        f"{where}, {name}",
                    )
                continue
            if name not in known:
                raise EsrlError(f"{place} is unknown{nearest(name, known)}")
            kind = known[name]
            if isinstance(given, dict):
                _check_range(place, given, kind)
            elif isinstance(given, list):
                if not given:
                    raise EsrlError(f"{place} has no choices")
                for choice in given:
                    _check_value(place, choice, kind)
            else:
                _check_value(place, given, kind)


def _check_range(place: str, given: dict[str, Any], kind: Any) -> None:
    numbers = [given.get(side) for side in ("low", "high")]
    if given.keys() - {"low", "high", "log"} or any(type(x) not in (int, float) for x in numbers):
        raise EsrlError(f"{place} is {given}, but a range is {{low = number, high = number, log = true or false}}")
    if kind not in (int, float):
        raise EsrlError(f"{place} is a range, but is no number; give a list of choices")
    low, high = float(given["low"]), float(given["high"])
    if not low < high or (given.get("log") and low <= 0) or not math.isfinite(high - low):
        raise EsrlError(
            f"{place} goes from {numbers[0]} to {numbers[1]}; low must be below high, and above 0 with log = true"
        )
    if kind is int and any(type(x) is not int for x in numbers):
        raise EsrlError(f"{place} is a whole number; so must low and high be")


def _check_value(place: str, value: Any, kind: Any) -> None:
    fits = (
        isinstance(value, (list, int)) if kind is tuple else type(value) in ((int, float) if kind is float else (kind,))
    )
    if not fits:
        hint = "; a list is a choice, so a list of widths is a choice of one: [[64, 64]]" if kind is tuple else ""
        raise EsrlError(f"{place} has the value {value!r}, but must be {TYPE_WORDS[kind]}{hint}")


def _fixed(given: Any) -> bool:
    return not isinstance(given, (list, dict)) or (isinstance(given, list) and len(given) == 1)


def _plain(value: Any) -> Any:
    """A choice as Optuna stores it: lists become texts."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def suggest(trial: Any, space: Space, env: str, agent: str) -> Space:
    """One configuration: what an Optuna trial takes from the space, over the defaults of the environment's suite."""
    fixed = space["options"].get("optimizer")
    suite_policy, suite_options = suite_defaults(env, agent, fixed if isinstance(fixed, str) else None)
    network = suite_policy.get("network", "mlp")
    if space["policy"].get("network", network) != network:  # its other keys are not for another network
        suite_policy = {}
    start = {"policy": suite_policy, "options": suite_options}
    kinds = option_types(agent)
    found: Space = {table: dict(values) for table, values in start.items()}
    for table, content in space.items():
        for name, given in content.items():
            key, kind = f"{table}.{name}", kinds.get(name) if table == "options" else None
            if _fixed(given):
                value = given[0] if isinstance(given, list) else given
            elif isinstance(given, list):
                plain = {_plain(choice): choice for choice in given}
                value = plain[trial.suggest_categorical(key, list(plain))]
                if name == ONE_OF:
                    found[table] |= value
                    continue
            elif kind is int:
                value = trial.suggest_int(key, given["low"], given["high"], log=given.get("log", False))
            else:
                value = trial.suggest_float(key, given["low"], given["high"], log=given.get("log", False))
                value = min(max(float(f"{value:.{DIGITS}g}"), given["low"]), given["high"])
            found[table][name] = float(value) if kind is float else value
    return found


def default(space: Space, env: str, agent: str) -> dict[str, Any]:
    """The parameters, as Optuna names and stores them, that are nearest to what `esrl train` takes by default."""
    fixed = space["options"].get("optimizer")
    fixed = fixed if isinstance(fixed, str) else None
    suite_policy, suite_options = suite_defaults(env, agent, fixed)
    own = {name: option.default for name, option in options_of(recipes.agent_named(agent)).items()}
    optimizer = fixed or suite_options.get("optimizer")
    own |= {"learning_rate": base_rate(agent, optimizer)}
    network = space["policy"].get("network", suite_policy.get("network", "mlp"))
    policy = recipes.policy_defaults(agent, network if isinstance(network, str) else network[0])
    start = {"policy": policy | suite_policy, "options": own | suite_options}
    found = {}
    for table, content in space.items():
        for name, given in content.items():
            if name == ONE_OF:  # the one that has most values in common with the defaults
                common = [sum(_same(start[table].get(k), v) for k, v in each.items()) for each in given]
                found[f"{table}.{name}"] = _plain(given[common.index(max(common))])
            elif not _fixed(given):
                found[f"{table}.{name}"] = _plain(_nearest(given, start[table].get(name)))
    return found


def _same(default: Any, value: Any) -> bool:
    return (list(default) if isinstance(default, tuple) else default) == value


def _nearest(given: Any, aim: Any) -> Any:
    """The value of a range or of choices that is nearest to an aim; the first choice where nothing is near."""
    if isinstance(given, dict):
        aim = given["low"] if aim is None else aim
        return min(max(aim, given["low"]), given["high"])
    aim = list(aim) if isinstance(aim, tuple) else aim
    if aim in given:
        return aim
    numbers = [x for x in given if type(x) in (int, float)]
    if numbers and type(aim) in (int, float):
        scale = math.log if min(*numbers, aim) > 0 else float
        return min(numbers, key=lambda x: abs(scale(x) - scale(aim)))
    return given[0]


def traced(agent: str) -> tuple[str, ...]:
    """The options that are values of an agent's state, so that one compiled program serves all of them."""
    names = ESState._fields if agent in ES else HYPERPARAMS
    return tuple(name for name in names if name in option_types(agent))


def split(agent: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Options that need a program of their own, and traced values.

    Raises:
      EsrlError: a value that makes no sense.
    """
    checked(agent, options)
    values = {k: v for k, v in options.items() if k in traced(agent)}
    return {k: v for k, v in options.items() if k not in values}, values
