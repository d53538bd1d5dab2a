"""Host-stepped Gymnasium: env steps/s of a whole training against the bare `make_vec` loop on as many lanes.

    python -m experiments.throughput.host_speed Acrobot-v1 CartPole-v1

Both are run in turn in one process, several times; the median ratio and its range are printed. The bare loop takes
random actions and resets by itself. Training counts live steps only, and all its time: noise, network, stepping and
update. Written to experiments/throughput/results/host_speed.csv, with a JSON beside it.
"""

import time
from dataclasses import dataclass

import gymnasium
import jax
import numpy as np
from tyro.conf import Positional

import esrl
from esrl.core.types import seed_key
from experiments import script
from experiments.lab.recipes import FORMER
from experiments.lab.store import Row, Store, results
from experiments.throughput.timing import spread


def bare(identifier: str, lanes: int, steps: int) -> float:
    """Steps/s of the vector environment alone."""
    envs = gymnasium.make_vec(identifier, lanes)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(16)]
    envs.reset(seed=0)
    begun = time.perf_counter()
    for t in range(steps):
        envs.step(actions[t % 16])
    seconds = time.perf_counter() - begun
    envs.close()
    return lanes * steps / seconds


def measure(identifier: str, lanes: int, hidden: tuple[int, ...], repeats: int) -> Row:
    """Training and bare loop in turn."""
    network = esrl.mlp(hidden, "tanh")
    agent = esrl.eggroll(f"gymnasium/{identifier}", network, population=lanes, sigma=0.1, learning_rate=0.05, **FORMER)
    state = agent.init(seed_key(0))
    state, _ = agent.step(state)  # compiles
    rows = []
    for _ in range(repeats):
        before, begun = int(state.env_steps), time.perf_counter()
        while time.perf_counter() - begun < 5:
            state, _ = jax.block_until_ready(agent.step(state))
        trained = (int(state.env_steps) - before) / (time.perf_counter() - begun)
        rows.append((trained, bare(identifier, lanes, max(20, 60_000 // lanes))))
    return {
        "env": identifier,
        "lanes": lanes,
        "hidden": "x".join(map(str, hidden)),
        "training_steps_per_second": float(np.median([a for a, _ in rows])),
        "bare_steps_per_second": float(np.median([b for _, b in rows])),
        **spread("ratio", [a / b for a, b in rows]),
        "padded_part": float(int(state.padded_steps) / (int(state.padded_steps) + int(state.env_steps))),
    }


@dataclass(frozen=True)
class Options:
    envs: Positional[tuple[str, ...]] = ()  # of Gymnasium
    lanes: int = 64
    hidden: tuple[int, ...] = (32, 32)
    repeats: int = 5


def main() -> None:
    given = script.options(Options, __doc__)
    if not given.envs:
        script.wrong("name an environment of Gymnasium")
    esrl.configure()
    store = Store(results("throughput") / "host_speed.csv", ("env",))
    for identifier in given.envs:
        row = measure(identifier, given.lanes, given.hidden, given.repeats)
        print(
            f"{identifier}, {row['lanes']} lanes: training {row['training_steps_per_second']:,.0f} steps/s, bare"
            f" make_vec {row['bare_steps_per_second']:,.0f} steps/s, ratio {script.shown(row, 'ratio', '[.2f]')}",
            flush=True,
        )
        store.add([row], replace=True)


if __name__ == "__main__":
    main()
