"""Many runs in one compiled program: seeds, and values that are traced rather than compiled in."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms.agent import Agent
from esrl.core import processes
from esrl.core.brief import options_text
from esrl.core.options import checked, shown
from esrl.core.statistics import interquartile_mean, interval
from esrl.core.tables import Rows, frame
from esrl.core.types import Array, Count, EsrlError, Key, PyTree, seed_key
from esrl.envs.base import name_of, on_device
from esrl.training.budget import Budget, Clock, Grid, Row
from esrl.training.curves import Curve, curve, draw_groups, inline, new_axes
from esrl.training.evaluation import held_out_keys, play_episodes
from esrl.training.loop import check_hyperparams


class Many(NamedTuple):
    """What came out of many runs. A notebook shows it with their curves.

    Attributes:
      rows: one for each run and evaluation: `run`, `seed`, the values that were set, `generation`, `env_steps`,
        `seconds` and `seconds_compile` (of all runs together, so far), `eval_return_mean`, `eval_return_std`, and the
        last generation's metrics. Rows with `env_steps` 0 are of the start.
      states: the runs' final states, stacked along a new first axis; `state_of(i)` takes one out.
      agent: what was trained. runs: for each run its number, its seed, and the values that were set.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> many = esrl.train_many(agent, seeds=[3, 4], generations=2, num_evals=1)
      >>> [row["seed"] for row in many.final], many.plot().get_ylabel()
      ([3, 4], 'held-out return')
    """

    rows: list[Row]
    states: Any
    agent: Agent
    runs: list[Row]

    def __repr__(self) -> str:
        returns = [row["eval_return_mean"] for row in self.final if "eval_return_mean" in row]
        low, high = interval(returns)
        around = f" [{low:.1f}, {high:.1f}]" if len(returns) > 1 else ""
        reached = f", return {interquartile_mean(returns):.1f}{around}" if returns else ""
        steps = max((row["env_steps"] for row in self.final), default=0)
        what = f"{self.agent.name} on {name_of(self.agent.env)}: {self.agent.plan.num_params:,} weights"
        return f"Many({len(self.final)} runs of {what}, {steps:,} environment steps each{reached})"

    @property
    def final(self) -> Rows:
        """A table of where each run ended: `seed`, the values that were set, `env_steps`, and its held-out return."""
        last = {row["run"]: row for row in self.rows}
        names = ("env_steps", "eval_return_mean", "eval_return_std")
        ends = [{name: row[name] for name in names if name in row} for _, row in sorted(last.items())]
        return Rows({**self._named(run), **end} for run, end in zip(self.runs, ends, strict=True))

    def to_dataframe(self) -> Any:
        """Every row as a `pandas.DataFrame`.

        Raises:
          EsrlError: pandas is not installed.
        """
        return frame(self.rows, "Many.to_dataframe")

    def plot(self, ax: Any = None, x: str = "env_steps", label: str | None = None) -> Any:
        """Draws the interquartile mean of the held-out returns over seeds, with its 95 % interval; a line for each
        combination of the values that were set.

        Args:
          ax: matplotlib's axes to draw on; None makes new ones.
          x: what the curves are over: "env_steps" or "generations".
          label: of the line in the legend; the agent's name unless given.

        Returns:
          The axes.

        Raises:
          EsrlError: matplotlib is not installed, another x, or runs that were not scored.
        """
        if x not in ("env_steps", "generations"):
            raise EsrlError(f"x is {x!r}, but must be env_steps or generations: the runs share one clock")
        if not self._scored():
            raise EsrlError("the runs have no held-out scores to draw; train with num_evals")
        title = None if ax is not None else f"{self.agent.name} on {name_of(self.agent.env)}"
        ax = new_axes(ax)
        draw_groups(ax, self._groups(x, self.agent.name if label is None else label), title, x)
        return ax

    def _groups(self, x: str, label: str) -> dict[str, list[Curve]]:
        groups: dict[str, list[Curve]] = {}
        for run in self.runs:
            values = options_text({name: value for name, value in self._named(run).items() if name != "seed"})
            rows = [row for row in self.rows if row["run"] == run["run"]]
            groups.setdefault(", ".join(filter(None, (label, values))), []).append(curve(rows, x))
        return groups

    @staticmethod
    def _named(run: Row) -> Row:
        return {name: value for name, value in run.items() if name != "run"}

    def _repr_html_(self) -> str:
        name = self.agent.name
        drawn = inline(lambda ax: draw_groups(ax, self._groups("env_steps", name))) if self._scored() else ""
        return f"<p>{html.escape(repr(self))}</p>{drawn}"

    def _scored(self) -> bool:
        return any("eval_return_mean" in row for row in self.rows)

    def state_of(self, run: int) -> Any:
        """The final state of one run, as `agent.step`, `esrl.evaluate` and the like take it."""
        return jax.tree.map(lambda x: x[run], self.states)


@checked
def train_many(
    agent: Agent,
    seeds: Sequence[int],
    *,
    hyperparams: dict[str, Sequence[float]] | None = None,
    env_steps: float | None = None,
    generations: int | None = None,
    num_evals: int = 20,
    early_evals: int = 0,
    eval_episodes: int = 128,
    batch_size: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Many:
    """Trains an agent several times in one compiled program, which holds for every seed and every traced value.

    Each run ends as `esrl.train` would end it with that seed and those values, but for one thing: a generation without
    one finite return ends nothing here, and is seen in `nonfinite`. A run that has used up its budget stands still
    while others go on.

    Args:
      agent: on a JAX environment.
      seeds: one for each run.
      hyperparams: for each name in `agent.hyperparams` (evolution strategies: `sigma`, `learning_rate`; PPO:
        `learning_rate`, `gamma`, `gae_lambda`, `clip_eps`, `entropy_coef`, `value_coef`), a value for each run.
      env_steps, generations, num_evals, early_evals, eval_episodes: as in `esrl.iterate`, for every run. Runs of one
        program share the clock, so that there is no budget of seconds.
      batch_size: runs that are vmapped together; the others follow. All of them unless given, but one on a CPU, where
        side by side they would only push each other out of its caches.
      progress: called after each generation with the part of their budget that the runs have used, 0 to 1, on average.

    Raises:
      EsrlError: an environment that Python steps, no seeds or budget, an unknown value, or lists of other lengths.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> many = esrl.train_many(agent, seeds=[0, 1], hyperparams={"sigma": [0.03, 0.1]}, generations=2, num_evals=1)
      >>> [(row["seed"], row["sigma"]) for row in many.rows if row["generation"] == 2]
      [(0, 0.03), (1, 0.1)]
    """
    if processes.several():
        raise EsrlError("train_many trains in one process; take esrl.train after esrl.join")
    budget, grid = Budget(env_steps, generations).check(), Grid(num_evals, early_evals)
    values = _checked(agent, seeds, hyperparams or {})
    runs = len(seeds)
    # On a CPU one run after the other: side by side they would push each other out of its caches.
    width = batch_size or (1 if jax.local_devices()[0].platform == "cpu" else runs)
    each = partial(jax.lax.map, batch_size=None if width == 1 else width)

    @jax.jit
    def start(keys: Key, values: dict[str, Array]) -> PyTree:
        return each(lambda x: agent.init(x[0])._replace(**x[1]), (keys, values))

    @jax.jit
    def step(states: PyTree, going: Array) -> tuple[PyTree, PyTree]:
        def one(x: tuple[PyTree, Array]) -> tuple[PyTree, PyTree]:
            state, going = x
            after, metrics = agent.step(state)
            # A run that has used up its budget is stepped with the others, and stays where it was.
            return jax.tree.map(partial(jnp.where, going), after, state), metrics

        return each(one, (states, going))

    play = jax.jit(lambda states, keys: each(lambda x: play_episodes(agent, x[0], x[1])[0], (states, keys)))

    clock = Clock()
    keys = jnp.stack([seed_key(seed) for seed in seeds])
    states = start(keys, {name: jnp.asarray(v, jnp.float32) for name, v in values.items()})
    # Each run has the held-out worlds that `esrl.train` gives its seed.
    worlds = jnp.stack([held_out_keys(seed, eval_episodes) for seed in seeds])
    known = [{"run": i, "seed": int(s), **{k: v[i] for k, v in values.items()}} for i, s in enumerate(seeds)]
    rows: list[Row] = []
    used = np.zeros(runs)
    if num_evals:
        _report(rows, known, states, {}, play(states, worlds), range(runs), clock)
    while (used < 1).any():
        going, before = used < 1, used
        with clock.measure("step"):
            states, metrics = jax.block_until_ready(step(states, jnp.asarray(going)))
        spent = zip(_steps(states.env_steps).tolist(), states.generation.tolist(), strict=True)
        used = np.array([budget.used(steps, generation, clock.training) for steps, generation in spent])
        due = [i for i in range(runs) if going[i] and grid.due(before[i], used[i])]
        if due:
            returns = play(states, worlds) if num_evals else None
            _report(rows, known, states, jax.device_get(metrics), returns, due, clock)
        if progress is not None:
            progress(float(used.mean()))
    return Many(rows, states, agent, known)


def _steps(counts: Count) -> np.ndarray:
    return (np.asarray(counts.hi).astype(np.uint64) << np.uint64(32)) + np.asarray(counts.lo).astype(np.uint64)


def _report(
    rows: list[Row], known: list[Row], states: PyTree, metrics: PyTree, returns: Array | None, which: Any, clock: Clock
) -> None:
    """Adds a row for each run of `which`."""
    steps, generations = _steps(states.env_steps), np.asarray(states.generation)
    scores = None if returns is None else np.asarray(returns, np.float64)
    for i in which:
        row: Row = {name: np.asarray(value)[i].item() for name, value in metrics.items()}
        row |= {**known[i], "generation": int(generations[i]), "env_steps": int(steps[i]), **clock.row()}
        if scores is not None:
            row |= {"eval_return_mean": float(scores[i].mean()), "eval_return_std": float(scores[i].std())}
        rows.append(row)


def _checked(agent: Agent, seeds: Sequence[int], hyperparams: dict[str, Sequence[float]]) -> dict[str, list[float]]:
    """The values of every run; raises `EsrlError` for what `train_many` says."""
    if not on_device(agent.env):
        raise EsrlError(
            f"{name_of(agent.env)} is stepped by Python, which one program cannot hold; use esrl.train for each seed"
        )
    if not seeds:
        raise EsrlError("no seeds are given; give one for each run, as range(5)")
    found = {}
    for name, values in hyperparams.items():
        many = hasattr(values, "__len__") and getattr(values, "ndim", 1) != 0 and not isinstance(values, str)
        if not many or len(values) != len(seeds):
            given = f"{len(values)} values" if many else f"the value {shown(values)}"
            raise EsrlError(f"{name} has {given} for {len(seeds)} runs; give one for each run")
        found[name] = [check_hyperparams(agent, {name: value})[name] for value in values]
    return found
