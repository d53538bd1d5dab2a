"""The training loop: generations that are logged, scored, saved and resumed, whatever the algorithm."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms.agent import Agent, Metrics, agent_text
from esrl.algorithms.es import quantiles
from esrl.cluster.opening import BLOCK_SIZES, Cluster, opened
from esrl.core import processes
from esrl.core.brief import options_text
from esrl.core.compile_time import compile_seconds
from esrl.core.options import Names, Option, checked, options_of
from esrl.core.sharding import here
from esrl.core.types import EsrlError, nearest, notice, reason_of, seed_key
from esrl.envs.base import name_of, on_device, recipe_name_of
from esrl.envs.faults import LIMIT, Faults
from esrl.envs.objectives import Objective
from esrl.training.advice import Advice
from esrl.training.agreement import agree, check_alike, read_by_first, seconds_of_first
from esrl.training.budget import Budget, Clock, Grid, Row
from esrl.training.curves import Kept
from esrl.training.evaluation import evaluate
from esrl.training.films import Films
from esrl.training.progress import Progress, watched
from esrl.training.provenance import made, say_what_is_lost
from esrl.training.recipe_table import MADE
from esrl.training.result import Result as Result
from esrl.training.run_folder import RunFolder, check_new
from esrl.training.stopping import Stop, Stopped
from esrl.training.trackers import Tracking

MOST_LOST = 100  # generations in a row without a finite gradient step
WITHOUT = Cluster()  # generations are played by the agent itself
MAX_FAILED = 0.5  # share of a generation's episodes that may fail in the environment


class Run:
    """A run, to be iterated over once: `(generation, state, metrics)` after each generation. See `iterate`.

    Everything that can be wrong with the arguments is said when this is made, not later.
    """

    def __init__(
        self,
        agent: Agent,
        budget: Budget,
        grid: Grid,
        *,
        seed: int,
        out: str | os.PathLike[str] | None,
        eval_episodes: int,
        eval_seed: int | None,
        checkpoint_every: int | None,
        keep: str,
        films: bool,
        stop_at_return: float | None,
        minutes: float | None,
        track: Any,
        on_env_error: str,
        max_failed: float,
        env_timeout: float,
        hyperparams: dict[str, float] | None,
        resume: bool,
        cluster: Cluster = WITHOUT,
    ) -> None:
        self.agent, self.budget, self.grid = agent, budget.check(), grid
        cluster.check(agent)
        if resume and out is None:
            raise EsrlError("to resume, give the run's folder as out")
        if checkpoint_every is not None and out is None:
            raise EsrlError("checkpoint_every is given, but no folder to keep checkpoints in; give out as well")
        self.seed = seed
        self.eval_episodes, self.eval_seed = eval_episodes, seed if eval_seed is None else eval_seed
        if films and out is None:
            raise EsrlError("films is given, but no folder to keep films in; give out as well")
        self.checkpoint_every, self.keep, self.films = checkpoint_every, keep, films
        self.stop_at_return, self.minutes, self.track = stop_at_return, minutes, track
        if stop_at_return is not None and not grid.num_evals:
            raise EsrlError("stop_at_return is given, but nothing is scored; give num_evals")
        if keep == "best" and not grid.num_evals:
            raise EsrlError('keep is "best", but nothing is scored; give num_evals, or keep "last" or "all"')
        unused = [name for name, given in (("early_evals", grid.early), ("eval_seed", eval_seed is not None)) if given]
        if unused and not grid.num_evals:
            notice(f"{' and '.join(unused)} changes nothing, since nothing is scored (num_evals is 0)")
        self._tracking = None if track is None else processes.at_first(lambda: Tracking(track))
        self.ended_by = ""  # why it ended before its budget did
        self.on_env_error, self.max_failed, self.env_timeout = on_env_error, max_failed, env_timeout
        self.hyperparams = check_hyperparams(agent, hyperparams or {})
        self._key = seed_key(seed)
        self.clock = Clock()  # what measures seconds; another may take its place before the run begins
        self._started = False
        self._lost = 0  # generations in a row without a finite gradient step
        self._faults: Faults | None = getattr(agent.env, "faults", None)  # where its lanes can fail one by one
        self._failed = 0  # episodes of this generation that did
        self._fitness: Any = None  # of the members of the last generation, on the host
        self.begun = False  # whether the folder was opened, and training began
        self.stop: Stop | None = None  # hears the signals that end it, where somebody listens
        self._asked, self._over = 0, False  # a signal that a process has heard, and whether the minutes are over
        self._open_cluster(cluster, out, resume)
        # An evolution strategy is timed in two parts. What is one program on the device stays one.
        self._in_parts = agent.kind == "evolution" or self._fleet is not None or not on_device(agent.env)
        check_alike(self.recipe(), self.agent.plan)
        # One process has the folder; the others hear from it what is read there, and what goes wrong.
        self.folder = None if out is None else processes.at_first(lambda: self._folder(out, resume, keep))
        self._films = Films(self.folder.films) if films and self.folder is not None else None

    def _folder(self, out: str | os.PathLike[str], resume: bool, keep: str) -> RunFolder:
        """The run's folder: a new one, or that of the run that goes on."""
        agent, recipe = self.agent, self.recipe()
        if not resume:
            folder = RunFolder.create(out, recipe | {MADE: made(recipe["env"])}, agent.env)
            say_what_is_lost(recipe, agent.options)
            folder.checkpoints.keep = keep
            return folder
        folder = RunFolder.existing(out)
        folder.checkpoints.keep = keep
        defaults = {name for name, option in options_of(iterate).items() if recipe.get(name) == option.default}
        left_out = defaults | (agent.in_force.keys() - agent.options.keys())
        folder.go_on(recipe, agent.env, left_out)
        return folder

    def _open_cluster(self, cluster: Cluster, out: str | os.PathLike[str] | None, resume: bool) -> None:
        """Lets workers play the generations, where they are to. Before a folder is made: it may not be possible."""
        self.cluster, self._fleet, self._close_fleet = cluster, None, lambda: None
        if processes.several():
            if cluster.asked:
                raise EsrlError(
                    "ray_address and the size of blocks are for one process; leave them out, or do not join others"
                )
            return
        if resume and out is not None and not any(getattr(cluster, name) for name in BLOCK_SIZES):
            before = RunFolder.existing(out).sizes(BLOCK_SIZES)  # which are part of the order of sums
            cluster = cluster._replace(**before)
        if not cluster.asked:
            return
        if out is not None and not resume:
            check_new(out)
        self.agent, self._fleet, self.cluster = opened(self.agent, cluster)
        self._fleet.seconds, self._fleet.tolerant = self.env_timeout, self.on_env_error == "fail"
        self._close_fleet = weakref.finalize(self, self._fleet.close)

    def __repr__(self) -> str:
        budget = options_text({name: value for name, value in self.budget._asdict().items() if value is not None})
        where = f"; in {self.folder.path}" if self.folder is not None else ""
        return f"Run({agent_text(self.agent)}; {budget}, seed={self.seed}{where})"

    def recipe(self) -> dict[str, Any]:
        """How to run this again, as plain data: what `recipe.toml` holds. Every option in force, defaults too."""
        run = {
            **{name: int(v) if name == "env_steps" and v else v for name, v in self.budget._asdict().items()},
            "seed": self.seed,
            "num_evals": self.grid.num_evals,
            "early_evals": self.grid.early,
            "eval_episodes": self.eval_episodes,
            "eval_seed": None if self.eval_seed == self.seed else self.eval_seed,
            "checkpoint_every": self.checkpoint_every,
            "keep": self.keep,
            "films": self.films,
            "stop_at_return": self.stop_at_return,
            "minutes": self.minutes,
            "track": self.track if isinstance(self.track, str) else None,
            "on_env_error": self.on_env_error,
            "max_failed": self.max_failed,
            "env_timeout": self.env_timeout,
            **{k: v for k, v in self.cluster._asdict().items() if v != WITHOUT._asdict()[k]},
        }
        # By its very type: an optax transformation is a tuple as well.
        plain = (bool, int, float, str, dict, type(None))
        in_force = {k: list(v) if type(v) is Names else v for k, v in self.agent.in_force.items()}
        options = {k: v if type(v) in (*plain, list) else "custom" for k, v in in_force.items()}
        # A schedule stays "custom": a value of the state only multiplies it.
        options |= {k: v for k, v in self.hyperparams.items() if options.get(k) != "custom"}
        return {
            "env": recipe_name_of(self.agent.env),
            "agent": self.agent.name,
            **{k: v for k, v in run.items() if v is not None},
            "policy": self.agent.policy.spec or {"network": "custom"},
            "options": {k: v for k, v in options.items() if v is not None},
        }

    def progress(self, state: Any) -> float:
        """The part of the budget that is used, 0 to 1."""
        return self.budget.used(int(state.env_steps), int(state.generation), self.clock.training)

    def __iter__(self) -> Iterator[tuple[int, Any, Metrics]]:
        if self._started:
            raise EsrlError("this run was made already; make another with esrl.iterate(...)")
        self._started = True
        return self._generations()

    def _check(self, folder: RunFolder | None) -> None:
        """Raises for a folder whose checkpoints are of another run."""
        if folder is not None and folder.checkpoints.generations():
            folder.checkpoints.check(self.agent.init, self._key)

    def _track(self) -> None:
        """Begins what a tracker is told."""
        if self._tracking is not None:
            where = None if self.folder is None else self.folder.path
            called = where.name if where is not None else f"{self.agent.name} on {name_of(self.agent.env)}"
            self._tracking.start(called, self.recipe(), where)

    def _generations(self) -> Iterator[tuple[int, Any, Metrics]]:
        compile_seconds()  # begins to listen: what compiles before the first call is not counted
        folder = self.folder
        processes.at_first(lambda: self._check(folder))
        state = self.agent.init(self._key)
        state = state._replace(**{name: jnp.float32(value) for name, value in self.hyperparams.items()})
        state, kept = read_by_first(state, None if folder is None else lambda state: self._restored(folder, state))
        self.clock = type(self.clock)(kept)
        last = kept or {}
        if int(state.generation) and not kept:  # its metrics are gone
            last = {"generation": int(state.generation), "env_steps": int(state.env_steps), **self.clock.row()}
        processes.at_first(self._track)
        if self.folder is not None:
            self.folder.status.begin(self.progress(state))
        ended: BaseException | None = None
        try:
            self._begun = time.monotonic()
            # A finished run is gone on with: its last row, and nothing more.
            if last and (self.progress(state) >= 1 or self._enough(last)):
                yield int(state.generation), state, last
            if not last:
                self._film(state, None)
            while self.progress(state) < 1 and not self._enough(last):
                before = self.progress(state)
                after, last = self._generation(state, first=not last)
                failed: EsrlError | None = None
                try:
                    if self.folder is not None:
                        self.folder.write(last, self._fitness if "eval_return_mean" in last else None)
                    state = after  # only now: whatever breaks off, a saved generation has its row
                    self._keep(before, state, last)
                except EsrlError as error:
                    failed = error
                self._agree(failed, after if "eval_return_mean" in last else None)
                yield int(state.generation), state, last
        except BaseException as error:
            gone = processes.lost(error)
            ended = gone or error
            if processes.several() and not isinstance(error, GeneratorExit):
                processes.abandon()
            if gone is not None:
                raise gone from error
            raise
        finally:
            if self._tracking is not None:
                self._tracking.end(finished=ended is None)
            try:
                if self.folder is not None:
                    self._end(self.folder, state, last, ended)
            finally:
                self._close_fleet()

    def _keep(self, before: float, state: Any, last: Row) -> None:
        """Logs and saves what is due after a generation, whose row is written."""
        if self._tracking is not None:
            self._tracking.log(last)
        if self.folder is None:
            return
        if self._checkpoint_due(before, state):
            self.folder.checkpoints.save(state, last.get("eval_return_mean"))
        self.folder.status.generation(int(state.generation), self.progress(state))
        if "eval_return_mean" in last:
            self.folder.redraw()
            self._film(state, last["eval_return_mean"])

    @property
    def heard(self) -> int:
        """The number of a signal that one of the processes has heard, 0 for none."""
        alone = not processes.several()
        return self.stop.asked if alone and self.stop is not None else self._asked

    def _agree(self, failed: EsrlError | None, state: Any) -> None:
        """Raises what failed in any process, and learns from all whether they go on; compares a state's parameters."""
        asked = self.stop.asked if self.stop is not None else 0
        self._asked, self._over = agree(asked, self._late(), failed, None if state is None else state.params)

    def _restored(self, folder: RunFolder, state: Any) -> tuple[Any, Row | None]:
        """The folder's last state and row, or the state that is given, and None; the folder is open then."""
        folder.hold()
        checkpoints = folder.checkpoints
        if not checkpoints.generations():
            folder.begin_anew()
        else:
            state = checkpoints.restore(state)
            checkpoints.set_aside_beyond(int(state.generation))
            if self.agent.kind != "evolution" and not on_device(self.agent.env):
                notice(
                    f"the worlds of {name_of(self.agent.env)} are Python's, and no checkpoint has them: every lane"
                    " begins a new episode, so this run ends other than it would have without the stop"
                )
        kept = folder.open(int(state.generation))
        self.begun = True
        missing = int(state.generation) - (kept or {}).get("generation", 0)
        if missing:
            notice(f"{folder.path} has no rows of its last {missing} generations: metrics.jsonl was cut short")
        return state, kept

    def _enough(self, last: Row) -> bool:
        """Whether the run ends before its budget does."""
        score = last.get("eval_return_mean")
        if self.stop_at_return is not None and score is not None and score >= self.stop_at_return:
            self.ended_by = f"the held-out return has reached {self.stop_at_return:g} (stop_at_return)"
        elif self._over if processes.several() else self._late():
            self.ended_by = f"{self.minutes:g} minutes are over"
        return bool(self.ended_by)

    def _late(self) -> bool:
        """Whether this process's minutes are over."""
        return self.minutes is not None and time.monotonic() - self._begun > 60 * self.minutes

    def _film(self, state: Any, score: float | None) -> None:
        """A film of the policy, where films are wanted. No clock runs: it is no part of training."""
        if self._films is not None and self.grid.num_evals:
            film = self._films.take(self.agent, here(state), score, self.eval_seed, self.env_timeout)
            if film and self.folder is not None:
                self.folder.film(film, int(state.env_steps))

    def _end(self, folder: RunFolder, state: Any, last: Row, ended: BaseException | None) -> None:
        """Saves and closes everything that can be; an error of one keeps no other from that."""
        with contextlib.ExitStack() as ending:
            ending.callback(folder.release)
            ending.push(lambda kind, error, trace: folder.status.end(self.progress(state), error or ended))
            ending.callback(folder.close)
            if not int(state.generation):
                return
            try:
                folder.checkpoints.save(state, last.get("eval_return_mean"))
                folder.checkpoints.settle()
            except EsrlError as error:
                place = folder.checkpoints.rescue(state)
                if place is None:
                    raise
                raise EsrlError(
                    f"{error}; the last state was saved to {place} instead: move it to {folder.checkpoints.folder}"
                    " before going on"
                ) from error

    def _generation(self, state: Any, first: bool) -> tuple[Any, Row]:
        try:
            after, row = self._tolerant(state, first)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise EsrlError(
                f"{name_of(self.agent.env)}: generation {int(state.generation) + 1} does not fit into memory"
                f" ({reason_of(error)}); fewer members or lanes take less, as do memory_gib and chunk_pairs"
            ) from error
        self._lost = self._lost + 1 if row.get("skipped_steps") == 1 else 0
        if self._lost >= MOST_LOST:
            raise EsrlError(
                f"{name_of(self.agent.env)}: not one gradient step of the last {MOST_LOST} generations was finite;"
                " lower the learning rate, or normalize observations"
            )
        return after, row

    def _tolerant(self, state: Any, first: bool) -> tuple[Any, Row]:
        if self._faults is None:
            return self._played(state, first)
        self._failed = 0
        with self._faults.tolerating(self.env_timeout, self.max_failed if self.on_env_error == "fail" else 0.0):
            after, row = self._played(state, first)
            self._count_faults()
        return after, row | {"env_faults": self._failed}

    def _count_faults(self) -> None:
        """Counts the faults since the last time: those of training and of an evaluation each by themselves."""
        if self._faults is not None:
            self._failed += self._faults.taken()

    def _played(self, state: Any, first: bool) -> tuple[Any, Row]:
        start = self._score(state) if first and self.grid.num_evals else {}
        before, steps_before = self.progress(state), int(state.env_steps)
        if self._in_parts:
            with self.clock.measure("rollout"):
                experience = jax.block_until_ready(self.agent.rollout(state))
            with self.clock.measure("update"):
                after, metrics = jax.block_until_ready(self.agent.update(state, experience))
        else:
            with self.clock.measure("step"):
                after, metrics = jax.block_until_ready(self.agent.step(state))
        if self.budget.seconds is not None:
            self.clock.training = seconds_of_first(self.clock.training)
        values = {name: _number(value) for name, value in jax.device_get(metrics).items()}
        # Ranks of nothing but NaN would be a step of zero, for ever and without a word.
        if values.pop("all_nonfinite", False):
            if self._faults is not None:
                self._faults.check()  # why it is so, where the environment failed
            number, why = int(after.generation), self._why_nothing()
            raise EsrlError(f"{name_of(self.agent.env)}: generation {number} has not one finite {why}")
        steps = int(after.env_steps)
        row: Row = {"generation": int(after.generation), "env_steps": steps}
        if hasattr(after, "padded_steps"):
            row["padded_steps"] = int(after.padded_steps)
        row |= values
        if self.agent.kind == "evolution":
            self._fitness = jax.device_get(experience.fitness)
            row |= quantiles(self._fitness)
            plan = self.agent.plan
            row |= {"noise_floats_per_member": plan.num_random, "dense_floats_per_member": plan.num_params}
        if self._fleet is not None:
            row |= self._fleet.metrics
        if start:
            row |= {name.replace("eval_", "start_"): value for name, value in start.items()}
        if self.grid.num_evals and self.grid.due(before, self.progress(after)):
            row |= self._score(after)
        row |= self.clock.row(steps - steps_before)  # last: an evaluation's seconds belong to its own row
        return after, row

    def _why_nothing(self) -> str:
        """What a generation has none of that is finite, and where to look."""
        if isinstance(self.agent.env, Objective):
            return "score; the objective gives NaN or infinity for each member"
        if self._faults is not None and self._faults.count:
            return "return; its episodes have failed (env_faults)"
        return "return; the environment's rewards are NaN or infinite (esrl.check_env says at which step)"

    def _score(self, state: Any) -> Row:
        self._count_faults()
        status = None if self.folder is None else self.folder.status
        if status is not None:
            status.evaluating()
        before = self.clock.evaluating
        with self.clock.measure("evaluate"):
            scored = evaluate(self.agent, state, self.eval_episodes, self.eval_seed)
        if status is not None:
            status.evaluated(self.clock.evaluating - before)
        self._count_faults()
        returns, sound = scored.returns, np.isfinite(scored.returns)
        if self._faults is not None and sound.any():
            returns = returns[sound]  # an episode whose environment failed says nothing of the policy
        return {
            "eval_return_mean": float(returns.mean()),
            "eval_return_std": float(returns.std()),
            "eval_length_mean": scored.length_mean,
        }

    def _checkpoint_due(self, before: float, state: Any) -> bool:
        after = self.progress(state)
        if after >= 1 or self.checkpoint_every is None:
            return self.grid.due(before, after)
        return int(state.generation) % self.checkpoint_every == 0


def _number(value: Any) -> int | float:
    number = np.asarray(value).item()
    return int(number) if isinstance(number, (int, np.integer)) else float(number)


def check_hyperparams(agent: Agent, given: dict[str, Any]) -> dict[str, float]:
    """The values as Python numbers.

    Raises:
      EsrlError: a name that is no traced value of the agent's state, or a value that makes no sense.
    """
    for name in given:
        if name not in agent.hyperparams:
            raise EsrlError(f"{name!r} is no traced value of {agent.name}{nearest(str(name), agent.hyperparams)}")
    return {name: Option(name, float).check(value) for name, value in given.items()}


@checked
def iterate(
    agent: Agent,
    *,
    env_steps: float | None = None,
    generations: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    num_evals: int = 20,
    early_evals: int = 0,
    eval_episodes: int = 128,
    eval_seed: int | None = None,
    checkpoint_every: int | None = None,
    keep: str = "last",
    films: bool = False,
    stop_at_return: float | None = None,
    minutes: float | None = None,
    track: Any = None,
    on_env_error: str = "fail",
    max_failed: float = MAX_FAILED,
    env_timeout: float = LIMIT,
    ray_address: str | None = None,
    workers: int | None = None,
    broadcast: str = "parameters",
    block_pairs: int | None = None,
    block_envs: int | None = None,
    block_timeout: float | None = None,
    close_at: float = 1.0,
    hyperparams: dict[str, float] | None = None,
    resume: bool = False,
) -> Run:
    """Trains an agent one generation at a time: `for generation, state, metrics in esrl.iterate(...)`.

    Nothing runs until then. Breaking off the loop, Ctrl-C and errors leave everything so far saved in `out`.

    Args:
      agent: from `esrl.eggroll` or another constructor.
      env_steps: live environment steps to train for; the generation that reaches them is the last.
      generations: generations to train for.
      seconds: seconds of training; compiling and evaluations do not count. The first of the three budgets that is used
        up ends the run.
      seed: seed of everything random.
      out: folder to create for the run; None keeps nothing.
      num_evals: times that the unperturbed parameters, or their average, are scored, spread evenly over the budget, and
        once at the start.
      early_evals: further evaluations before the first of those, each at half the budget of the next.
      eval_episodes: held-out episodes of each evaluation.
      eval_seed: seed of the held-out worlds; None is `seed`.
      checkpoint_every: generations between checkpoints of the whole state; None makes one with each evaluation.
      keep: checkpoints to keep: the last two ("last"), also the one with the highest held-out score ("best"), or "all".
      films: make a short film of the unperturbed policy at each evaluation, in `out`/films: the first, the best and the
        last are kept. It takes a part of a second to seconds each, which the clock of training does not count.
      stop_at_return: end the run once an evaluation's mean return is this or more.
      minutes: end the run after so many minutes of this process, compiling and evaluations too; it can go on later.
      track: a tracker to log to as well: "wandb", "mlflow", "trackio", or an object with `start`, `log` and `end`
        (`esrl.training.trackers.Tracker`).
      on_env_error: what an error, an exit or a hang of a Gymnasium environment means: its episode counts as failed
        ("fail"; the metric env_faults counts them), or the run stops ("stop").
      max_failed: share of a generation's episodes that may fail so; above it the run stops.
      env_timeout: seconds that a reset or a step of a Gymnasium environment may take; one that takes longer has failed.
      ray_address: let workers of Ray play the generations: "local" starts Ray on this machine, "auto" or HOST:PORT is a
        cluster that this machine is a node of (`esrl[ray]`; every agent but random). None plays them in this process.
      workers: workers of Ray, of one core each; None is as many as the cluster has cores, also of nodes that join.
      broadcast: what workers are told in each generation: the "parameters", or the last fitness alone ("scalars"), from
        which each of them repeats the update.
      block_pairs: pairs that are played and summed together; it decides the order of sums, but of integers, which have
        none. None is half of a worker's share, and without ray_address the whole population.
      block_envs: as block_pairs, for ppo and eggroll_ac: environments that are stepped and summed together. None is
        half of a worker's share (all of it, where Python steps them), and without ray_address all of num_envs.
      block_timeout: seconds that a block may take before its worker is replaced; None follows what blocks have taken.
      close_at: part of the pairs with which a generation is closed; those that are missing get weight 0. Evolution
        strategies only, as is "scalars".
      hyperparams: values of the state that differ from the agent's own (`agent.hyperparams` names them).
      resume: go on with the run in `out`; it ends as if it had never stopped, bit for bit on the same devices.

    Raises:
      EsrlError: no budget, values that make no sense, a folder that exists or cannot be written; while running: every
        member's return not finite, or an environment's own error.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> for generation, state, metrics in esrl.iterate(agent, generations=3, num_evals=0):
      ...     print(generation, metrics["env_steps"] == int(state.env_steps))
      1 True
      2 True
      3 True
    """
    return Run(
        agent,
        Budget(env_steps, generations, seconds),
        Grid(num_evals, early_evals),
        seed=seed,
        out=out,
        eval_episodes=eval_episodes,
        eval_seed=eval_seed,
        checkpoint_every=checkpoint_every,
        keep=keep,
        films=films,
        stop_at_return=stop_at_return,
        minutes=minutes,
        track=track,
        on_env_error=on_env_error,
        max_failed=max_failed,
        env_timeout=env_timeout,
        hyperparams=hyperparams,
        resume=resume,
        cluster=Cluster(ray_address, workers, broadcast, block_pairs, block_timeout, close_at, block_envs),
    )


@checked
def train(
    agent: Agent,
    *,
    env_steps: float | None = None,
    generations: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    num_evals: int = 20,
    early_evals: int = 0,
    eval_episodes: int = 128,
    eval_seed: int | None = None,
    checkpoint_every: int | None = None,
    keep: str = "last",
    films: bool = False,
    stop_at_return: float | None = None,
    minutes: float | None = None,
    track: Any = None,
    on_env_error: str = "fail",
    max_failed: float = MAX_FAILED,
    env_timeout: float = LIMIT,
    ray_address: str | None = None,
    workers: int | None = None,
    broadcast: str = "parameters",
    block_pairs: int | None = None,
    block_envs: int | None = None,
    block_timeout: float | None = None,
    close_at: float = 1.0,
    hyperparams: dict[str, float] | None = None,
    resume: bool = False,
    progress: bool | None = None,
    on_generation: Callable[[int, Any, Metrics], Any] | None = None,
) -> Result:
    """Trains an agent to the end of its budget and returns where it ended.

    Errors leave everything so far saved in `out`. Ctrl-C, SIGTERM and SIGHUP stop it after the generation under way,
    with everything saved, and raise `KeyboardInterrupt`; a second one leaves at once, without that generation.

    Args:
      agent: from `esrl.eggroll` or another constructor.
      env_steps, generations, seconds: the budgets, as in `esrl.iterate`; the first that is used up ends the run.
      seed, out, num_evals, early_evals, eval_episodes, eval_seed, checkpoint_every, keep, films, stop_at_return,
        minutes, track, on_env_error, max_failed, env_timeout, ray_address, workers, broadcast, block_pairs,
        block_envs, block_timeout, close_at, hyperparams, resume: as in `esrl.iterate`.
      progress: show a line of progress; None shows it where a person looks, on a terminal or in a notebook.
      on_generation: called as `on_generation(generation, state, metrics)` after each generation.

    Raises:
      EsrlError: as `esrl.iterate`.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=64, sigma=0.1)
      >>> result = esrl.train(agent, env_steps=5e4, num_evals=1)
      >>> result.metrics["eval_return_mean"] > result.metrics["return_mean"] / 2
      True
    """
    given = {name: value for name, value in locals().items() if name not in ("progress", "on_generation")}
    run = iterate(**given)
    shown = Progress() if (watched() if progress is None else progress) and processes.is_first() else None
    return finish(run, shown, on_generation)


def finish(
    run: Run, progress: Progress | None = None, on_generation: Callable[[int, Any, Metrics], Any] | None = None
) -> Result:
    """Runs a run to its end, with a line of progress where one is given."""
    out = run.folder.path if run.folder else None
    state: Any = None
    metrics: Metrics = {}
    kept, advice = Kept(), Advice(run.agent, run.eval_episodes)
    if progress is not None:
        progress.start(run.agent, out)
    run.stop = stop = Stop(notice if progress is None else progress.say)
    try:
        # Closed here, not when it is collected: whoever catches an error finds everything saved.
        generations: Any = iter(run)
        with stop, closing(generations):
            for generation, state, metrics in generations:
                kept.add(metrics)
                advice.hear(metrics)
                if progress is not None:
                    progress.show(metrics, run.progress(state))
                if on_generation is not None:
                    on_generation(generation, state, metrics)
                if run.heard:
                    break
    except BaseException as error:
        if processes.several():
            processes.abandon()
        # What an interrupt becomes depends on what it met: JAX makes an error of one in a callback.
        if stop.times > 1 and not isinstance(error, KeyboardInterrupt):
            raise Stopped(stop.asked) from error
        raise
    finally:
        if progress is not None:
            progress.stop()
    if run.heard and run.progress(state) < 1:
        raise Stopped(run.heard)
    if progress is not None:
        if run.ended_by:
            progress.say(run.ended_by)
        progress.end(metrics, out)
        if (text := advice.text()) is not None:
            progress.say(text)
    rows = kept.rows()
    if run.folder is not None and rows and rows[0]["generation"] > 1:  # it went on
        rows = [row for row in run.folder.rows() if row["generation"] < rows[0]["generation"]] + rows
    return Result(run.agent, state, metrics, out, rows)
