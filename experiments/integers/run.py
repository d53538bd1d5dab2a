"""What does a policy lose that is trained, and runs, in integers alone?

    python -m experiments.integers.run
    python -m experiments.integers.run --only gymnax/CartPole-v1 --seeds 0 1
    python -m experiments.integers.run --table

For each environment and seed three policies of one size (two hidden layers of 32; a linear skip, but on the double
pendulum), at as many environment steps each: `eggroll_int8`; `eggroll` on floats (tanh); and that float
policy quantized after training: weights, observations and activations rounded to int8 by powers of two, sums exact.
Scores are held-out, of 128 episodes. Each row is written to experiments/integers/results/learning.csv when it is done,
and a script that was killed goes on there. `--table` prints the table and runs nothing.

Bytes are those of the exported C, compiled by `cc -Os`: code and constants of the functions that act (`size`, text).
"""

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import esrl
from experiments import script
from experiments.lab.store import Store, results

GOALS = {
    "gymnax/CartPole-v1": 475,
    "gymnax/Acrobot-v1": -100,
    "brax/inverted_double_pendulum": 9000,
    "gymnasium/LunarLander-v3": 150,
    "brax/hopper": 1000,
}
STEPS = {
    "gymnax/CartPole-v1": 5e5,
    "gymnax/Acrobot-v1": 1e6,
    "brax/inverted_double_pendulum": 2e6,
    "gymnasium/LunarLander-v3": 1e6,
    "brax/hopper": 1e6,
}
LONG_STEPS: dict[str, Any] = {"sigma_shift": 3, "quantile": 1.0, "quantile_decay": 0.0, "averaging_shift": 3}
INTEGER: dict[str, dict[str, Any]] = {
    "gymnax/CartPole-v1": {"population": 64},
    "gymnax/Acrobot-v1": {"population": 64},
    "brax/inverted_double_pendulum": {"population": 8, **LONG_STEPS},
    "gymnasium/LunarLander-v3": {  # many members, since landings differ
        "population": 32,
        "sigma_shift": 2,
        "quantile": 1.0,
        "quantile_decay": 0.0,
        "averaging_shift": 4,
    },
    "brax/hopper": {  # and shorter steps
        "population": 16,
        "sigma_shift": 3,
        "quantile": 0.3,
        "quantile_decay": 0.01,
        "averaging_shift": 3,
    },
}
WITHOUT_SKIP = ("brax/inverted_double_pendulum",)
LIBRARY = '#include "policy.h"\nvoid act({}) {{ esrl_act({}); }}\n'


STORE = Store(results("integers") / "learning.csv", key=("env", "seed"))


@dataclass
class Options:
    """What is run."""

    only: list[str] | None = None
    """environments; all unless given"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of the runs"""
    table: bool = False
    """print the table, and run nothing"""


def trained(agent: esrl.Agent, seed: int, steps: float) -> tuple[Any, float]:
    """The agent's state after so many steps, and the seconds that it took, without compiling."""
    state = agent.init(jax.random.key(seed))
    state, _ = agent.step(state)
    jax.block_until_ready(state)
    began = time.perf_counter()
    while int(state.env_steps) < steps:
        state, _ = agent.step(state)
    jax.block_until_ready(state)
    return state, time.perf_counter() - began


def size_of(whole: esrl.Trained) -> int:
    """Bytes of the exported program; 0 without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        made = esrl.export(whole, to="c", out=Path(folder) / "c")
        head = (made / "policy.h").read_text().partition("static inline void esrl_act(")[2].partition(")")[0]
        names = [part.split("[")[0].split()[-1].lstrip("*") for part in head.split(",")]
        (made / "act.c").write_text(LIBRARY.format(head, ", ".join(names)))
        try:
            subprocess.run(["cc", "-std=c99", "-Os", "-c", "act.c"], cwd=made, check=True)
            told = subprocess.run(["size", "act.o"], cwd=made, check=True, capture_output=True, text=True).stdout
        except FileNotFoundError:
            return 0
        text, data = told.splitlines()[1].split()[:2]
        return int(text) + int(data)


def power_of_two(x: Any) -> Any:
    """The smallest power of two with which a tensor fits into int8."""
    return 2.0 ** np.ceil(np.log2(max(float(jnp.max(jnp.abs(x))), 1e-9) / 127))


def quantized(agent: esrl.Agent, state: Any) -> tuple[esrl.Agent, Any]:
    """The float policy with weights, observations and activations rounded to int8 by powers of two."""
    assert agent.acts_by is not None
    weights = agent.acts_by(state)["network"]

    def rounded(x: Any, unit: float) -> Any:
        return jnp.clip(jnp.round(x / unit), -127, 127) * unit

    params = jax.tree.map(lambda w: rounded(w, power_of_two(w)), weights)

    def network(params: Any, observation: Any) -> Any:
        seen = x = rounded(jnp.ravel(observation).astype(jnp.float32), 1 / 32)
        for i in range(2):
            layer = params[f"Dense_{i}"]
            x = rounded(jnp.tanh(x @ layer["kernel"] + layer["bias"]), 1 / 128)
        last = params["Dense_2"]
        output = x @ last["kernel"] + last["bias"]
        return output + seen @ params["Skip"]["kernel"] if "Skip" in params else output

    made = esrl.eggroll(agent.env, esrl.network(network, params=params), **agent.options)
    start = made.init(jax.random.key(0))
    return made, start._replace(params={"network": params}, average={"network": params}, moments=state.moments)


def measure(env: str, seed: int) -> list[dict[str, Any]]:
    """The three policies of a seed."""
    made = []
    alone = env in WITHOUT_SKIP
    start: dict[str, Any] = {"output_scale": 1.0 if alone else 0.25, "skip": not alone}  # of both networks
    integer, real = (
        esrl.mlp((32, 32), name, dtype=kind, **start) for name, kind in (("saturate", "int8"), ("tanh", "float32"))
    )
    for arm, agent in (("int8", esrl.eggroll_int8(env, integer, **INTEGER[env])), ("float", esrl.eggroll(env, real))):
        state, seconds = trained(agent, seed, STEPS[env])
        row = {"env": env, "seed": seed, "arm": arm, "return": round(esrl.evaluate(agent, state).return_mean, 1)}
        row |= {"env_steps": int(state.env_steps), "generations": int(state.generation), "seconds": round(seconds, 1)}
        made.append(row | {"bytes": size_of(esrl.Trained(agent, state))})
    score = esrl.evaluate(*quantized(agent, state)).return_mean
    return [*made, made[-1] | {"arm": "quantized", "return": round(score, 1), "seconds": None, "bytes": None}]


def table() -> str:
    """Means over seeds with the lowest and highest, and bytes."""
    found = STORE.read()
    lines = []
    for env, goal in GOALS.items():
        cells = [f"`{env}`", f"{STEPS[env]:.0e}".replace("e+0", "e"), str(goal)]
        for arm in ("int8", "float", "quantized"):
            scores = [float(row["return"]) for row in found if row["env"] == env and row["arm"] == arm]
            some = f"{np.mean(scores):.0f} [{min(scores):.0f}, {max(scores):.0f}] ({len(scores)})" if scores else "–"
            cells.append(some)
        for arm in ("int8", "float"):
            sizes = [int(row["bytes"]) for row in found if row["env"] == env and row["arm"] == arm and row["bytes"]]
            cells.append(f"{max(sizes):,}" if sizes else "–")
        lines.append(cells)
    head = ("environment", "steps", "wanted", "int8", "float", "quantized after", "bytes of int8", "bytes of float")
    return script.table(head, lines)


def main() -> None:
    given = script.options(Options, __doc__)
    if not given.table:
        with STORE.alone():
            for env, seed in STORE.missing([(env, seed) for env in given.only or GOALS for seed in given.seeds]):
                STORE.add(measure(env, seed), about={"recipe": {"steps": STEPS, "options": INTEGER}})
                print(env, seed, flush=True)
    print(table())


if __name__ == "__main__":
    main()
