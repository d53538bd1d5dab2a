"""Recipes as the tables that their files hold: by today's names and defaults, and compared."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from esrl.core.names import FORMER_DEFAULTS, FORMER_PPO, todays
from esrl.core.types import EsrlError
from esrl.training.suite_defaults import ES

FIXED = ("env", "agent", "seed", "block_pairs", "block_envs")  # what a run keeps, beside its tables
TABLES = ("policy", "options")
MADE = "made"  # a table of where the run comes from, which makes no difference


def with_former_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe in a run's folder in today's names; that of an older run with the defaults which it had then.

    Raises:
      EsrlError: its policy or options are no tables.
    """
    if not all(isinstance(recipe.get(table, {}), dict) for table in TABLES):
        raise EsrlError("[policy] and [options] of a run's recipe have to be tables")
    recipe = todays(recipe)
    options = recipe.get("options", {})
    if recipe.get("agent") == "ppo":
        # An optax transformation had a rate of its own.
        own = {k: v for k, v in FORMER_PPO.items() if k != "learning_rate" or options.get("optimizer") != "custom"}
        return recipe | {"options": own | options}
    if recipe.get("agent", "eggroll") not in ES or "averaging" in options:
        return recipe
    own = dict(FORMER_DEFAULTS)
    if options.get("optimizer") == "sgd":  # whose rate was that of the others
        own["learning_rate"] = 0.02
    policy = recipe.get("policy", {})
    linear = {"skip": False} if policy.get("network", "mlp") == "mlp" else {}
    return recipe | {"policy": linear | policy, "options": own | options}


def differences(
    old: dict[str, Any], new: dict[str, Any], left_out: Set[str] = frozenset()
) -> tuple[list[str], list[str]]:
    """What a run's recipe and that of the agent which is to go on with it say otherwise.

    Args:
      old, new: these.
      left_out: what has its default in the new one, which an old one may not say.

    Returns:
      What shapes the training, and must not differ; and what may.
    """
    fixed = [text for name in FIXED if (text := _differs(name, old, new))]
    fixed += [
        text
        for table in TABLES
        for name in dict.fromkeys([*old.get(table, {}), *new[table]])
        if name in old.get(table, {}) or name not in left_out
        if (text := _differs(name, old.get(table, {}), new[table], optional=table == "policy"))
    ]
    changed = [
        f"{name} {new.get(name, 'its default')} (was {old.get(name, 'its default')})"
        for name in dict.fromkeys([*old, *new])
        if name not in (*FIXED, *TABLES, MADE)
        and (name in old or name not in left_out)
        and old.get(name) != new.get(name)
    ]
    return fixed, changed


def _differs(name: str, old: dict[str, Any], new: dict[str, Any], optional: bool = False) -> str:
    """What two tables say of a value, where they differ; a value that `optional` tables lack is not compared."""
    if optional and not (name in old and name in new):
        return ""
    before, now = old.get(name), new.get(name)
    same = before == now or (name == "env" and _same_env(str(before), str(now)))
    return "" if same else f"{name}: the run has {_shown(before)}, you gave {_shown(now)}"


def _shown(value: Any) -> str:
    return "its default" if value is None else repr(value)


def _same_env(one: str, other: str) -> bool:
    """Whether two texts may name one class: with its file or module, or alone, as older recipes have it."""
    one, other = one.rpartition(":")[2], other.rpartition(":")[2]
    if "?" in one and "?" in other:
        return one == other
    return one.partition("?")[0].rpartition(".")[2] == other.partition("?")[0].rpartition(".")[2]
