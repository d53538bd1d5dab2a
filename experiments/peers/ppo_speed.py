"""How fast is esrl's PPO beside rejax's and brax.training's, and where does an iteration's time go?

    python -m experiments.peers.ppo_speed                    # every line of ppo.py that is measured without --only
    python -m experiments.peers.ppo_speed --only CartPole --rounds 7
    python -m experiments.peers.ppo_speed --profile          # an iteration by its parts, and the largest operations

The settings are those of `ppo.LINES`, the same on both sides. Programs are compiled first; then the sides train in
turn, round by round, in one process. rejax's whole training is one program, brax.training's an epoch, so esrl has two
lines: `scanned`, many iterations in one program by `jax.lax.scan` of `agent.step`, and `called`, an iteration at a time
as `esrl.train` makes them. A round's ratio is a side's steps/s over the peer's in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

import esrl
from esrl.core.types import seed_key
from experiments import script
from experiments.lab.store import Row, Store
from experiments.peers import common, ppo
from experiments.peers.ppo_peers import Brax, Rejax

INSIDE = 50  # iterations of one scanned program, or as many as the budget has


@dataclass(frozen=True)
class Options:
    only: tuple[str, ...] = ()  # lines of this name, or that contain it
    rounds: int = 7
    env_steps: float = 2e5  # of each side in a round
    profile: bool = False


def called(agent: esrl.Agent, env_steps: float) -> Callable[[int], int]:
    """Training an iteration at a time: `train(seed) -> environment steps`."""
    agent.step(agent.init(seed_key(0)))  # compiles

    def train(seed: int) -> int:
        state = agent.init(seed_key(seed))
        while int(state.env_steps) < env_steps:
            state = common.blocked(agent.step(state)[0])
        return int(state.env_steps)

    return train


def scanned(agent: esrl.Agent, env_steps: float) -> Callable[[int], int]:
    """Training with many iterations in one program."""
    each = agent.config.lanes * agent.config.steps
    length = max(1, min(INSIDE, round(env_steps / each)))
    program = jax.jit(lambda state: jax.lax.scan(lambda s, _: (agent.step(s)[0], None), state, length=length)[0])
    common.blocked(program(agent.init(seed_key(0))))

    def train(seed: int) -> int:
        state = agent.init(seed_key(seed))
        while int(state.env_steps) < env_steps:
            state = common.blocked(program(state))
        return int(state.env_steps)

    return train


def sides(name: str, line: ppo.Line, env_steps: float) -> dict[str, Callable[[int], tuple[float, int]]]:
    """`run(seed) -> (seconds without compiling, environment steps)` of each side."""
    env = esrl.make(line.env)
    agent = ppo.agent_of(env, line)
    peer = (Rejax if name.startswith("rejax") else Brax)(env, line.config, int(env_steps))
    makers = {
        "peer": lambda seed: peer.train(seed)[1],
        "scanned": scanned(agent, env_steps),
        "called": called(agent, env_steps),
    }

    def timed(train: Callable[[int], int], seed: int) -> tuple[float, int]:
        watch = common.Stopwatch()
        steps = train(seed)
        whole, compiling = watch.seconds()
        return whole - compiling, steps

    return {who: partial(timed, train) for who, train in makers.items()}


def measure(name: str, options: Options) -> list[Row]:
    """Rounds of a line."""
    runs = sides(name, ppo.LINES[name], options.env_steps)
    for run in runs.values():
        run(0)  # what the first call does once
    rows = []
    for number in range(options.rounds):
        rates = {}
        for who, run in runs.items():
            seconds, steps = run(number)
            rates[who] = steps / seconds
        rows += [
            {"line": name, "round": number, "side": who, "env_steps_per_second": rate, "ratio": rate / rates["peer"]}
            for who, rate in rates.items()
        ]
        print(name, number, {who: round(rate) for who, rate in rates.items()}, flush=True)
    return rows


def profile(name: str, repeats: int = 20) -> None:
    """Milliseconds of an iteration: whole, rollout, update, and the parts of the update."""
    from esrl.algorithms import ppo as algorithm

    line = ppo.LINES[name]
    agent = ppo.agent_of(esrl.make(line.env), line)
    config, state = agent.config, agent.init(seed_key(0))
    for _ in range(3):
        state, _ = agent.step(state)
    experience = agent.rollout(state)
    rewards, *_ = jax.jit(partial(algorithm.normalize_rewards, config))(state, experience.trajectory)
    samples = jax.jit(partial(algorithm.make_samples, config))(state, experience, rewards)
    parts: dict[str, Callable[[], Any]] = {
        "iteration": lambda: agent.step(state),
        "rollout": lambda: agent.rollout(state),
        "update": lambda: agent.update(state, experience),
        "update: epochs": partial(jax.jit(partial(algorithm.update_epochs, config)), state, samples),
        "update: advantages": partial(jax.jit(partial(algorithm.make_samples, config)), state, experience, rewards),
    }
    rows = []
    for part, run in parts.items():
        common.blocked(run())
        found = []
        for _ in range(repeats):
            begun = time.perf_counter()
            common.blocked(run())
            found.append(1e3 * (time.perf_counter() - begun))
        rows.append([part, *(f"{x:.2f}" for x in np.quantile(found, [0.5, 0.1, 0.9]))])
    print(f"\n{name}\n\n" + script.table(["part", "ms", "10 %", "90 %"], rows))


def main() -> None:
    options = script.options(Options, __doc__)
    names = common.Options(only=options.only).chosen(n for n, line in ppo.LINES.items() if line.default or options.only)
    if options.profile:
        for name in names:
            profile(name)
        return
    store = Store(common.RESULTS / "ppo_speed.csv", key=("line", "round", "side"))
    for name in names:
        store.add(measure(name, options), replace=True)
    rows = []
    for (name, side), found in common.grouped(store.read(), "line", "side").items():
        rates, ratios = (common.numbers(found, column) for column in ("env_steps_per_second", "ratio"))
        rows.append(
            [
                name,
                side,
                f"{np.median(rates):,.0f}",
                f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]",
            ]
        )
    print("\n" + script.table(["line", "side", "env steps/s", "of the peer's"], rows))


if __name__ == "__main__":
    main()
