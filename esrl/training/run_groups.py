"""Runs read from their folders, in groups of those that differ by their seeds alone. Needs no JAX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esrl.core.brief import options_text
from esrl.core.errors import EsrlError
from esrl.core.names import todays
from esrl.training.curves import MOST
from esrl.training.logs import Metrics, Row
from esrl.training.recipe_file import read_table
from esrl.training.trackers import flat

_TABLES = ("policy", "options")
_BUDGETS = ("env_steps", "generations", "seconds")
_MOST_WORDS = 4  # values that a label names


class StoredRun(NamedTuple):
    """A run from its folder: its environment, agent, seed, what else shapes it (by flat names), and its rows."""

    path: Path
    env: str
    agent: str
    seed: Any
    options: dict[str, Any]
    rows: list[Row]


def read_run(path: Path) -> StoredRun:
    """A run; of a long one about a thousand rows, and those with a score.

    Raises:
      EsrlError: its files are no plain ones, or its recipe cannot be read.
    """
    recipe = todays(read_table(path / "recipe.toml"))
    options = {name: recipe[name] for name in _BUDGETS if name in recipe}
    for table in _TABLES:
        found = recipe.get(table, {})
        options |= flat(found) if isinstance(found, dict) else {}
    try:
        rows = Metrics(path / "metrics.jsonl").thinned(MOST, "eval_return_mean")
    except OSError as error:
        raise EsrlError(f"{path / 'metrics.jsonl'} cannot be read: {error.strerror or error}") from error
    env, agent = (str(recipe.get(name, "")) for name in ("env", "agent"))
    return StoredRun(path, env, agent or "eggroll", recipe.get("seed", 0), options, rows)


def grouped(runs: Iterable[StoredRun]) -> dict[str, list[StoredRun]]:
    """Runs of one environment by labels that say what differs; those in a group differ by their seeds alone."""
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        key = json.dumps([run.agent, run.options], sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    labels: dict[str, list[StoredRun]] = {}
    firsts = [members[0] for members in groups.values()]
    for members in groups.values():
        alike = [run for run in firsts if run.agent == members[0].agent]
        label = _label(members[0], alike)
        while label in labels:  # they differ in what a label does not name
            label += "'"
        labels[label] = members
    return labels


def _label(run: StoredRun, alike: Sequence[StoredRun]) -> str:
    """An agent's name, and the values in which it differs from others of that name."""
    names = [name for name in run.options if any(other.options.get(name) != run.options[name] for other in alike)]
    told = {name: run.options[name] for name in names[:_MOST_WORDS]}
    more = f" and {len(names) - _MOST_WORDS} more" if len(names) > _MOST_WORDS else ""
    return f"{run.agent}, {options_text(told)}{more}" if told else run.agent
