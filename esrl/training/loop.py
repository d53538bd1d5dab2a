"""Training: a loop over generations that logs, scores, saves and resumes, whatever the algorithm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from esrl.algorithms.agent import Agent, Metrics
from esrl.core.compile_time import compile_seconds
from esrl.core.types import EsrlError, seed_key
from esrl.envs.base import name_of
from esrl.training import checkpoint
from esrl.training.evaluation import evaluate
from esrl.training.run_folder import Row, RunFolder


class Result(NamedTuple):
    """Where a run ended: the agent's state, the last row of metrics, and the run's folder (None without one)."""

    state: Any
    metrics: Metrics
    out: Path | None


def check_budget(env_steps: float | None, generations: int | None) -> None:
    """Raises `EsrlError` unless at least one of both budgets is given, and each that is is at least 1."""
    if env_steps is None and generations is None:
        raise EsrlError("how long to train is not said; give env_steps or generations")
    for name, value in (("env_steps", env_steps), ("generations", generations)):
        if value is not None and not value >= 1:
            raise EsrlError(f"{name} is {value}, but must be at least 1")


class Training:
    """A run. Iterate over it for `(generation, state, metrics)` after each generation, or call `run()`.

    See `train` for the arguments. Everything that can be wrong with them is said when this is made, not later.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        env_steps: float | None,
        generations: int | None,
        seed: int,
        out: str | Path | None,
        evaluations: int,
        evaluate_episodes: int,
        checkpoint_every: int | None,
        resume: bool,
    ) -> None:
        check_budget(env_steps, generations)
        for name, value, least in (
            ("evaluations", evaluations, 0),
            ("evaluate_episodes", evaluate_episodes, 1),
            ("checkpoint_every", checkpoint_every, 1),
        ):
            if value is not None and value < least:
                raise EsrlError(f"{name} is {value}, but must be at least {least}")
        if resume and out is None:
            raise EsrlError("to resume, give the run's folder as out")
        self.agent = agent
        self.env_steps = None if env_steps is None else int(env_steps)
        self.generations = generations
        self.seed = seed
        self.evaluations = evaluations
        self.evaluate_episodes = evaluate_episodes
        self.checkpoint_every = checkpoint_every
        self._whole = not agent.plan.noise_floats and agent.pure is not None  # nothing between rollout and update
        self._key = seed_key(seed)
        self._started = False
        self.folder: RunFolder | None = None
        if out is not None:
            self.folder = RunFolder.existing(out) if resume else RunFolder.create(out, self.recipe())

    def recipe(self) -> dict[str, Any]:
        """How to run this again, as plain data: what `recipe.toml` holds."""
        run = {
            "env_steps": self.env_steps,
            "generations": self.generations,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "evaluate_episodes": self.evaluate_episodes,
            "checkpoint_every": self.checkpoint_every,
        }
        plain = (bool, int, float, str, list, tuple)
        options = {k: v if isinstance(v, plain) else "custom" for k, v in self.agent.options.items()}
        return {
            "env": name_of(self.agent.env),
            "agent": self.agent.name,
            **{k: v for k, v in run.items() if v is not None},
            "policy": self.agent.policy.spec or {"network": "custom"},
            "options": {k: v for k, v in options.items() if v is not None},
        }

    def progress(self, state: Any) -> float:
        """The part of the budget that is used, 0 to 1."""
        parts = []
        if self.env_steps is not None:
            parts.append(int(state.env_steps) / self.env_steps)
        if self.generations is not None:
            parts.append(int(state.generation) / self.generations)
        return min(max(parts), 1.0)

    def run(self) -> Result:
        """Trains to the end of the budget."""
        last: tuple[int, Any, Metrics] = (0, None, {})
        for last in self:  # noqa: B007
            pass
        return Result(last[1], last[2], self.folder.path if self.folder else None)

    def __iter__(self) -> Iterator[tuple[int, Any, Metrics]]:
        if self._started:
            raise EsrlError("this training was run already; make another with esrl.train(...)")
        self._started = True
        return self._generations()

    def _generations(self) -> Iterator[tuple[int, Any, Metrics]]:
        compile_seconds()
        state = self.agent.init(self._key)
        before: list[Row] = []
        if self.folder is not None:
            if checkpoint.generations(self.folder.checkpoints):
                state = checkpoint.restore(self.folder.checkpoints, state)
            before = self.folder.open(int(state.generation))
        clock = _Clock(before[-1] if before else {})
        last = before[-1] if before else {}
        try:
            if self.progress(state) >= 1 and before:
                yield int(state.generation), state, last
            while self.progress(state) < 1:
                done = self.progress(state)
                after, last = self._generation(state, clock, first=not last)
                if self.folder is not None:
                    self.folder.write(last)
                state = after  # only now: whatever breaks off, a saved generation has its row
                if self.folder is not None and self._due(done, state, self.checkpoint_every):
                    checkpoint.save(self.folder.checkpoints, state)
                yield int(state.generation), state, last
        finally:
            if self.folder is not None:
                if int(state.generation):
                    checkpoint.save(self.folder.checkpoints, state)
                self.folder.close()

    def _generation(self, state: Any, clock: _Clock, first: bool) -> tuple[Any, Row]:
        start = self._score(state) if first and self.evaluations else {}
        done, steps_before = self.progress(state), int(state.env_steps)
        clock.start()
        if self._whole:
            after, metrics = jax.block_until_ready(self.agent.step(state))
            clock.stop("step")
        else:
            batch = jax.block_until_ready(self.agent.rollout(state))
            clock.stop("rollout")
            after, metrics = jax.block_until_ready(self.agent.update(state, batch))
            clock.stop("update")
        values = {name: _number(value) for name, value in jax.device_get(metrics).items()}
        if values.pop("all_nonfinite", False):
            raise EsrlError(
                f"{name_of(self.agent.env)}: generation {int(after.generation)} has not one finite return; the"
                " environment's rewards are NaN or infinite (esrl.check_env says at which step)"
            )
        steps = int(after.env_steps)
        plan = self.agent.plan
        row: Row = {"generation": int(after.generation), "env_steps": steps, **clock.row(steps, steps - steps_before)}
        if hasattr(after, "padded_steps"):
            row["padded_steps"] = int(after.padded_steps)
        row |= values
        if plan.noise_floats:
            row |= {"noise_floats_per_member": plan.noise_floats, "dense_floats_per_member": plan.weights}
        if start:
            row["start_return_mean"] = start["eval_return_mean"]
        if self._due(done, after, None) and self.evaluations:
            row |= self._score(after)
        return after, row

    def _score(self, state: Any) -> Row:
        scored = evaluate(self.agent, state, self.evaluate_episodes, self.seed)
        return {
            "eval_return_mean": scored.return_mean,
            "eval_return_std": scored.return_std,
            "eval_length_mean": scored.length_mean,
        }

    def _due(self, before: float, state: Any, every: int | None) -> bool:
        """Whether something that happens `evaluations` times a run, or every so many generations, is due now."""
        after = self.progress(state)
        if after >= 1:
            return True
        if every is not None:
            return int(state.generation) % every == 0
        parts = max(self.evaluations, 1)
        return int(after * parts) > int(before * parts)


class _Clock:
    """Seconds of a run, split into compiling, rollout and update; goes on from a row of an earlier process."""

    def __init__(self, row: Row) -> None:
        self._compile0 = compile_seconds() - row.get("seconds_compile", 0.0)
        self._begun = time.perf_counter() - row.get("seconds", 0.0)
        self._last: dict[str, float] = {}
        self._mark = (0.0, 0.0)

    def start(self) -> None:
        self._mark = (time.perf_counter(), compile_seconds())

    def stop(self, part: str) -> None:
        now = (time.perf_counter(), compile_seconds())
        self._last[part] = max(now[0] - self._mark[0] - (now[1] - self._mark[1]), 0.0)
        self._mark = now

    def row(self, steps: int, fresh: int) -> Row:
        """Times so far; `env_steps_per_second` is of this generation, without compiling."""
        seconds = time.perf_counter() - self._begun
        working = sum(self._last.values())
        return {
            "seconds": round(seconds, 4),
            "seconds_compile": round(compile_seconds() - self._compile0, 4),
            **{f"seconds_{part}": round(value, 6) for part, value in self._last.items()},
            "env_steps_per_second": round(fresh / max(working, 1e-9), 1),
        }


def _number(value: Any) -> int | float:
    number = np.asarray(value).item()
    return int(number) if isinstance(number, (int, np.integer)) else float(number)


def train(
    agent: Agent,
    *,
    env_steps: float | None = None,
    generations: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    evaluations: int = 20,
    evaluate_episodes: int = 128,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> Training:
    """Trains an agent: `for generation, state, metrics in esrl.train(...)`, or `esrl.train(...).run()`.

    Nothing runs until then. Breaking off the loop, Ctrl-C and errors leave everything so far saved in `out`.

    Args:
      agent: from `esrl.eggroll` or another constructor.
      env_steps: live environment steps to train for; the generation that reaches them is the last.
      generations: or so many generations; the first of both budgets that is used up ends the run.
      seed: of everything random.
      out: folder to create for the run; None keeps nothing.
      evaluations: times that the unperturbed parameters are scored, spread evenly over the run (and once at the start).
      evaluate_episodes: held-out episodes of each.
      checkpoint_every: generations between checkpoints of the whole state; None makes one with each evaluation.
      resume: go on with the run in `out`; it ends as if it had never stopped, bit for bit on the same devices.

    Raises:
      EsrlError: no budget, values that make no sense, a folder that exists or cannot be written; while running: every
        member's return not finite, or an environment's own error.
    """
    return Training(
        agent,
        env_steps=env_steps,
        generations=generations,
        seed=seed,
        out=out,
        evaluations=evaluations,
        evaluate_episodes=evaluate_episodes,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
