"""How long a run lasts, when it is scored, and what it has spent: one budget and one clock for every training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from esrl.core.compile_time import compile_seconds
from esrl.core.types import EsrlError

Row = dict[str, Any]


class Budget(NamedTuple):
    """What a run may use. The first of the three that is used up ends it.

    Attributes:
      env_steps: live environment steps. generations: of the agent.
      seconds: of training on the clock of the wall; compiling and evaluations do not count, so that every agent has the
        same, whatever it compiles.
    """

    env_steps: float | None = None
    generations: int | None = None
    seconds: float | None = None

    def check(self) -> Budget:
        """The budget; raises `EsrlError` unless at least one is given."""
        if self == Budget():
            raise EsrlError("how long to train is not said; give env_steps, generations or seconds")
        return self

    def used(self, env_steps: float, generations: int, seconds: float) -> float:
        """The part that is used, 0 to 1."""
        spent = zip((env_steps, generations, seconds), self, strict=True)
        return min(max(now / whole for now, whole in spent if whole is not None), 1.0)


class Grid(NamedTuple):
    """The parts of a budget after which a run is scored: `num_evals` evenly spaced ones, the last at its end.

    Attributes:
      num_evals: how many. early: further ones before the first of those, each at half the budget of the next, by which
        agents that differ much in speed are compared at equal steps.
    """

    num_evals: int = 20
    early: int = 0

    def due(self, before: float, after: float) -> bool:
        """Whether a point lies in the part of the budget that was just used, `before` < point <= `after`."""
        if after >= 1:
            return True
        parts = max(self.num_evals, 1)
        if int(after * parts) > int(before * parts):
            return True
        return any(before * parts < 0.5**k <= after * parts for k in range(1, self.early + 1))


class Clock:
    """Seconds of a run by what they went into; goes on from the last row of an earlier process."""

    def __init__(self, earlier: Row | None = None) -> None:
        row = earlier or {}
        self._begun = time.perf_counter() - (row.get("seconds") or 0.0)
        self._compiled = compile_seconds() - (row.get("seconds_compile") or 0.0)
        self.training = row.get("seconds_training") or 0.0
        self.evaluating = row.get("seconds_evaluate") or 0.0
        self._last: dict[str, float] = {}

    def busy(self) -> float:
        """A clock that stands still while this process has no core; that of the wall, on which it always has one."""
        return time.perf_counter()

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Times "rollout", "update" or "step" (parts of a generation), or "evaluate", without compiling."""
        begun, before, busy = time.perf_counter(), compile_seconds(), self.busy()
        yield
        whole = time.perf_counter() - begun
        share = min((self.busy() - busy) / max(whole, 1e-9), 1.0)
        spent = max(whole - (compile_seconds() - before), 0.0) * share
        if part == "evaluate":
            self.evaluating += spent
        else:
            self.training += spent
            self._last[part] = spent

    def row(self, fresh_steps: float | None = None) -> Row:
        """Seconds so far, and those of the last generation by part; its steps a second where its steps are given."""
        row = {
            "seconds": round(time.perf_counter() - self._begun, 4),
            "seconds_compile": round(compile_seconds() - self._compiled, 4),
            "seconds_training": round(self.training, 4),
            "seconds_evaluate": round(self.evaluating, 4),
            **{f"seconds_{part}": round(value, 6) for part, value in self._last.items()},
        }
        if fresh_steps is not None:
            row["env_steps_per_second"] = round(fresh_steps / max(sum(self._last.values()), 1e-9), 1)
        return row
