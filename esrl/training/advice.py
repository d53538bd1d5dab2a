"""What to change where an evolution strategy learnt nothing, by what its generations measured of their estimates."""

from __future__ import annotations

import math
from typing import Any

import jax

from esrl.algorithms.agent import Agent
from esrl.envs.objectives import Objective
from esrl.training.suite_defaults import ES

_MIN_GENERATIONS = 20  # fewer say nothing yet
_MOSTLY_TIED = 0.5
_CHANCE = 0.1  # agreement below which chance decides
_MANY = 512  # members for which a step may wait


class Advice:
    """Hears every generation's metrics of a run, and says what to change if its return did not rise.

    It says nothing of other agents than `eggroll`, `open_es` and `es` with pairs, of objectives, and of runs that are
    short, that went on from a checkpoint or that were not scored.
    """

    def __init__(self, agent: Agent, episodes: int) -> None:
        self._agent = agent
        self._episodes = episodes  # of each evaluation
        self._start: tuple[float, float] | None = None  # held-out returns: mean and standard deviation
        self._later: list[tuple[float, float]] = []
        self._generations = 0
        self._sums: dict[str, tuple[float, int]] = {}  # of what the signal measured

    def hear(self, row: dict[str, Any]) -> None:
        """One generation's metrics."""
        self._generations += 1
        for name in ("tied", "agreement"):
            if name in row and math.isfinite(value := float(row[name])):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value, count + 1)
        for when in ("start", "eval"):
            mean, spread = row.get(f"{when}_return_mean"), row.get(f"{when}_return_std")
            if mean is not None and spread is not None and math.isfinite(mean) and math.isfinite(spread):
                if when == "start":
                    self._start = mean, spread
                else:
                    self._later.append((mean, spread))

    def text(self) -> str | None:
        """The sentence, or None where there is nothing to say."""
        fits = self._agent.name in ES and not isinstance(self._agent.env, Objective) and "tied" in self._sums
        if not fits or self._start is None or not self._later or self._generations < _MIN_GENERATIONS:
            return None
        start, spread = self._start
        # Two standard errors of the difference between two means of that many episodes.
        if any(mean - start > 2 * math.hypot(spread, std) / math.sqrt(self._episodes) for mean, std in self._later):
            return None
        found = {name: total / count for name, (total, count) in self._sums.items()}
        in_force = self._agent.in_force
        if found["tied"] >= _MOSTLY_TIED:
            why = f"in {found['tied']:.0%} of the pairs both members were equally good, which tells nothing"
            change = ["a larger sigma"]
            if (in_force.get("max_population") or in_force.get("population", _MANY)) < _MANY:
                change.append(f"max_population={_MANY}")
            if not in_force.get("weight_decay"):  # parameters that grow end where nothing changes what is done
                change.append("weight_decay=0.01")
            if in_force.get("deterministic"):
                change.append("deterministic=False")
        elif "agreement" not in found:
            why = "with one episode for each member nothing tells whether chance decided between them"
            change = ["episodes_per_member=2"]
        elif found["agreement"] < _CHANCE:
            why = f"chance decides which member of a pair is better (agreement {found['agreement']:.2f})"
            change = ["more episodes_per_member", "a larger population or sigma"]
        else:
            why = f"though the estimates have a signal (agreement {found['agreement']:.2f})"
            change = ["more env_steps", "another learning_rate"]
        if not jax.tree.leaves(self._agent.policy.carry):  # which eggroll_ac does not take
            change.append("the agent eggroll_ac, which assigns credit to every step")
        return f"the return did not rise: {why}; try {', or '.join(change)}"
