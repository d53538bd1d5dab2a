"""A whole generation beside the same rollout without noise: a part of throughput/run.py.

A generation is `agent.step`: noise, rollout, fitness shaping, contraction and update, one
compiled program, from the same state and in other worlds each time; timed is the call until its results are there.

"no noise" is the same rollout without anything else: as many lanes in the same worlds, as many at once on the same
devices, observation normalization and its sums as in training, but the unperturbed parameters in every lane, and no
update. Peers: evosax's Open_ES and brax's own ES on the environments that they have, see peers/es_generation.py.

Two states to start from: "fresh" parameters; and, for CartPole, "trained" ones, with sigma so small that every member
keeps the pole up to the horizon, so that both sides play episodes of the same length. Live steps are those before an
episode's end; all steps count those of masked lanes too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import esrl
from esrl.algorithms.es import world_keys
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.envs.base import max_episode_steps_of
from esrl.training.evaluation import act_all
from experiments.lab.recipes import FORMER
from experiments.lab.store import Row
from experiments.throughput.machine_limits import held
from experiments.throughput.part import Bench, Part
from experiments.throughput.timing import compiled, first, reason_of, rounded, spread

ENVS = {  # and members of a generation
    "gymnasium/phys2d/CartPole-v1": 2048,
    "gymnax/CartPole-v1": 2048,
    "navix/Navix-DoorKey-8x8-v0": 2048,
    "brax/ant": 1024,
}
TRAINED = ("gymnasium/phys2d/CartPole-v1",)  # also from trained parameters
KEY: tuple[str, ...] = ("env", "horizon", "start", "population", "side")
SPREAD = ("generation_seconds", "live_steps_per_second", "all_steps_per_second")
OF_NO_NOISE = ("fraction_of_no_noise", "fraction_of_no_noise_all_steps")
RANGES = tuple(f"{name}{end}" for name in (*SPREAD, *OF_NO_NOISE) for end in ("", "_lowest", "_highest"))
COLUMNS: tuple[str, ...] = ("network", "devices", "repeats", *RANGES, "masked", "live_steps_per_generation")
COLUMNS += ("compile_seconds", "peak_bytes", "noise_bytes")
CELLS = {
    "generation, s": ("generation_seconds", "[.3g]"),
    "live steps/s": ("live_steps_per_second", "[.3g]"),
    "of no noise": ("fraction_of_no_noise", "[.3g]"),
    "of no noise, all steps": ("fraction_of_no_noise_all_steps", "[.3g]"),
    "masked": ("masked", "%"),
    "compile s": ("compile_seconds", ".2g"),
    "peak MiB": ("peak_bytes", "MiB"),
    "noise MiB": ("noise_bytes", "MiB"),
}
REFERENCE = "no noise"
STEADY = 1e-4  # sigma of the trained state
HIDDEN = (256, 256, 256)


class Side(NamedTuple):
    """One of those that are compared on an environment.

    Attributes:
      call: plays a generation, and returns (live steps, all steps, 1), and its seconds where it measures them itself.
      compile_seconds, peak_bytes: of its program. noise_floats: random numbers of one generation. close: ends it.
    """

    call: Callable[[], tuple[float, ...]]
    compile_seconds: float
    peak_bytes: float | None
    noise_floats: int
    close: Callable[[], None] = lambda: None


def unperturbed(agent: esrl.Agent, pairs: int) -> Callable[[Any], tuple[Any, Any, Any]]:
    """`play(state) -> (lengths [P, 2, E], steps run [P], sums)` of a generation's rollout with no noise in any lane."""
    decide = act_all(agent)
    mesh = sharding.default_mesh(pairs)

    def play(args: tuple[Any, Any], ids: Any) -> tuple[tuple[Any, Any], Any]:
        state, key = args

        def act(context: Any, *lanes: Any) -> Any:
            return decide(context[0], *lanes)

        def draw(ids: Any) -> Any:
            return (), world_keys(key, ids, 2, agent.plan.lanes // (2 * pairs))

        carry, slots = agent.policy.carry, agent.plan.chunk
        played = agent.runner.stream(act, state, draw, ids, slots, carry, state.moments)
        return (played.lengths, played.steps), (played.sums, jnp.sum(played.returns))

    def rollout(state: Any) -> tuple[Any, Any, Any]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.generation + 1), 1)
        rows, sums = sharding.map_devices(play, (state, key), sharding.iota(pairs), mesh)
        return *rows, sums

    return rollout


def no_noise(agent: esrl.Agent, state: Any) -> Side:
    """The side without noise."""
    pairs = agent.plan.lanes // 2
    program, seconds = compiled(jax.jit(unperturbed(agent, pairs)), state)
    number = _numbers(state)

    def call() -> tuple[float, ...]:
        lengths, steps, _ = jax.block_until_ready(program(number()))
        per_pair = lengths[0].size
        return float(np.asarray(lengths, np.int64).sum()), float(np.asarray(steps, np.int64).sum()) * per_pair, 1.0

    return Side(call, seconds, held(program, agent.plan.devices), 0)


def trained_by(agent: esrl.Agent, state: Any) -> Side:
    """An agent's generations from a state."""
    place = jax.tree.leaves(state)[0].sharding
    program, seconds = compiled(jax.jit(agent.step, out_shardings=place), state)
    number = _numbers(state)
    before = np.array([int(state.env_steps), int(state.padded_steps)], np.int64)

    def call() -> tuple[float, ...]:
        after, _ = jax.block_until_ready(program(number()))
        live, padded = np.array([int(after.env_steps), int(after.padded_steps)], np.int64) - before
        return float(live), float(live + padded), 1.0

    floats = agent.plan.num_random * agent.plan.lanes // 2
    return Side(call, seconds, held(program, agent.plan.devices), floats)


def _numbers(state: Any) -> Callable[[], Any]:
    """The same state at the next generation, each time it is called: other worlds and other noise."""
    generations = iter(range(1, 2**31))
    place = state.generation.sharding
    return lambda: state._replace(generation=jax.device_put(np.uint32(next(generations)), place))


def trained_state(env: Any, generations: int = 100) -> Any:
    """Parameters and observation statistics with which every episode is as long as the horizon.

    Raises:
      RuntimeError: there are none after so many generations.
    """
    agent = esrl.eggroll(env, esrl.mlp(HIDDEN), population=128, learning_rate=0.02, **FORMER)
    state = agent.init(seed_key(0))
    for generation in range(1, generations + 1):
        state, _ = agent.step(state)
        if generation % 5 == 0:
            played = agent.rollout(state._replace(sigma=jnp.full_like(state.sigma, STEADY)))
            if int(np.min(played.lengths)) == max_episode_steps_of(env):
                return state
    raise RuntimeError(f"episodes end early after {generations} generations")


def shortened(env: Any, name: str, horizon: int | None) -> Any:
    """The environment of this name, with a horizon where its own is longer."""
    if not horizon or max_episode_steps_of(env) <= horizon:
        return env
    return esrl.make(f"{name}{'&' if '?' in name else '?'}max_episode_steps={horizon}")


def sides(env: Any, population: int, start: str, peers: bool) -> dict[str, Callable[[], Side]]:
    """What is compared on an environment, each made when it is called.

    Args:
      env: from `esrl.make`.
      population: members of a generation.
      start: "fresh" or "trained".
      peers: whether other libraries take part, where they have the environment.
    """
    trained = trained_state(env) if start == "trained" else None

    def begun(agent: esrl.Agent) -> Any:
        state = agent.init(seed_key(0))
        if trained is None:
            return state
        taken = state._replace(params=trained.params, moments=trained.moments, sigma=jnp.float32(STEADY))
        return jax.device_put(taken, state.generation.sharding)

    def eggroll(rank: int) -> esrl.Agent:
        return esrl.eggroll(env, esrl.mlp(HIDDEN), population=population, rank=rank, **FORMER)

    def of(agent: esrl.Agent) -> Side:
        return trained_by(agent, begun(agent))

    def plain() -> Side:
        agent = eggroll(1)
        return no_noise(agent, begun(agent))

    found: dict[str, Callable[[], Side]] = {
        "no noise": plain,
        "EGGROLL, rank 1": lambda: of(eggroll(1)),
        "EGGROLL, rank 4": lambda: of(eggroll(4)),
        "OpenES": lambda: of(esrl.open_es(env, esrl.mlp(HIDDEN), population=population, **FORMER)),
    }
    if peers and start == "fresh":
        from experiments.peers.es_generation import peer_sides

        found |= peer_sides(env, population, HIDDEN)
    return found


# ---- measuring ------------------------------------------------------------------------------------------------------


def run_generation(bench: Bench, add: Callable[[Row], None]) -> None:
    """Every environment from every start: its sides in turn."""
    for name in bench.options.envs or ENVS:
        for start in ("fresh", "trained") if name in TRAINED else ("fresh",):
            for row in compare(name, start, bench):
                add(row)
            jax.clear_caches()


def compare(name: str, start: str, bench: Bench) -> list[Row]:
    """The rows of one environment and start."""
    options = bench.options
    population = options.generation_population or ENVS.get(name, 1024)
    common = {"env": name, "horizon": "", "start": start, "population": population, "side": "all"}
    try:
        env = shortened(esrl.make(name), name, options.horizon)
        makers = sides(env, population, start, options.peers)
    except Exception as error:
        return [{**common, "left_out": reason_of(error)}]
    rows: dict[str, Row] = {}
    made: dict[str, Side] = {}
    once: dict[str, float] = {}
    for side, make in makers.items():
        rows[side] = row = {
            **common,
            "horizon": max_episode_steps_of(env),
            "side": side,
            "network": "x".join(map(str, HIDDEN)),
        }
        row["devices"] = len(jax.local_devices())
        try:
            one = make()
            row |= {"compile_seconds": rounded(one.compile_seconds, 3), "noise_bytes": 4 * one.noise_floats}
            row["peak_bytes"] = "" if one.peak_bytes is None else int(one.peak_bytes)
            if (one.peak_bytes or 0) > bench.ceilings.memory:
                raise MemoryError(f"would hold {(one.peak_bytes or 0) / 2**30:.3g} GiB")
            once[side] = first(one.call)
        except Exception as error:
            row["left_out"] = reason_of(error)
            continue
        made[side] = one
    _timed(rows, made, once, bench)
    for one in made.values():
        one.close()
    return list(rows.values())


def _timed(rows: dict[str, Row], made: dict[str, Side], once: dict[str, float], bench: Bench) -> None:
    """Times the sides in turn and adds what was found to their rows."""
    calls = {side: one.call for side, one in made.items()}
    found = bench.turns(calls, once)
    rates = {}
    for side, windows in found.items():
        seconds, live, every, number = windows[:, :4].T
        seconds = windows[:, 4] if windows.shape[1] > 4 else seconds  # brax's ES measures its own
        rates[side] = live / seconds, every / seconds
        row = rows[side]
        row |= {"repeats": len(seconds), **spread("generation_seconds", seconds / number)}
        row |= {**spread("live_steps_per_second", rates[side][0]), **spread("all_steps_per_second", rates[side][1])}
        row["masked"] = rounded(1 - live.sum() / every.sum(), 4)
        row["live_steps_per_generation"] = int(np.median(live / number))
    for side, both in rates.items() if REFERENCE in rates else ():
        for column, mine, plain in zip(OF_NO_NOISE, both, rates[REFERENCE], strict=True):
            shared = min(len(mine), len(plain))  # windows of the same turn are compared
            rows[side] |= spread(column, mine[:shared] / plain[:shared], 4)


NAMES = {"environment": "env", **{name: name for name in KEY[1:]}}
GENERATION = Part(run_generation, KEY, COLUMNS, NAMES, CELLS)
