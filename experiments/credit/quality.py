"""How near the estimates of esrl are to the exact gradient of one surrogate, by layer.

    python -m experiments.credit.quality                # a table in Markdown, and results/quality.csv

One policy of an environment is trained for a while by `eggroll_ac`; then a fresh iteration is played, and every
estimate is made of the same recorded steps: PPO's clipped surrogate of the whole iteration, at the policy's parameters.
The exact gradient of it is had by backpropagation, as an oracle. What is printed is the cosine with it for each matrix
of the hidden layers, the mean over several draws of noise, and the standard deviation over them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import esrl
from esrl.core.types import seed_key
from experiments import script
from experiments.lab.store import Row, Store, results

ppo = importlib.import_module("esrl.algorithms.ppo")  # esrl.ppo is the agent

WORLDS = ("gymnasium/phys2d/Pendulum-v0", "navix/Navix-Dynamic-Obstacles-8x8-v0")
ESTIMATES: dict[str, dict[str, Any]] = {
    "noise alone, 1 pair": {"feedback": False},
    "noise alone, 8 pairs": {"feedback": False, "pairs": 8},
    "feedback alone": {"residual": 0.0},
    "feedback, residual 0.1": {"residual": 0.1},
    "feedback, residual 1": {"residual": 1.0},
    "feedback, residual 1, 8 pairs": {"residual": 1.0, "pairs": 8},
}


@dataclass
class Arguments:
    """The command line."""

    steps: tuple[int, ...] = (8192, 65536)  # recorded environment steps that an estimate is made of
    generations: int = 30  # that the policy was trained for before
    draws: int = 5


def measured(env: str, steps: int, generations: int, draws: int) -> list[Row]:
    """Cosines of every estimate on one environment."""
    base: dict[str, Any] = {"num_envs": steps // 64, "num_steps": 64, "num_minibatches": 8}
    trained = esrl.eggroll_ac(env, **base)
    state = trained.init(seed_key(0))
    for _ in range(generations):
        state, _ = trained.step(state)
    config, experience = trained.config, trained.rollout(state)
    rewards, _, _ = ppo.normalize_rewards(config, state, experience.trajectory)
    samples = ppo.make_samples(config, state, experience, rewards)
    samples = samples._replace(advantage=ppo.standardize(samples.advantage))
    exact = ppo.backpropagated(config, state.params, state.memory, state, samples, seed_key(0))[0]["actor"]["network"]
    rows: list[Row] = []
    for name, options in ESTIMATES.items():
        agent = esrl.eggroll_ac(env, **base, **options)
        memory = state.memory if options.get("feedback", True) else state.memory._replace(feedback=None)
        draw = jax.jit(
            lambda key, a=agent, m=memory: a.config.gradient(a.config, state.params, m, state, samples, key)[0]
        )
        for layer in ("Dense_0", "Dense_1"):
            cosines = [_cosine(draw(seed_key(i))["actor"]["network"][layer], exact[layer]) for i in range(draws)]
            own = {"env": env, "steps": steps, "estimate": name, "layer": layer}
            rows.append({**own, "cosine": float(np.mean(cosines)), "deviation": float(np.std(cosines))})
    return rows


def _cosine(first: Any, second: Any) -> float:
    a, b = first["kernel"].ravel(), second["kernel"].ravel()
    return float(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    table = Store(results("credit") / "quality.csv", key=("env", "steps"))
    for env, steps in table.missing([(env, steps) for env in WORLDS for steps in arguments.steps]):
        table.add(measured(env, steps, arguments.generations, arguments.draws))
    rows = table.read()
    print(script.table(["", "steps", "layer", *ESTIMATES]))
    for env in WORLDS:
        for steps in arguments.steps:
            for layer in ("Dense_0", "Dense_1"):
                here = [r for r in rows if (r["env"], r["steps"], r["layer"]) == (env, steps, layer)]
                found = {r["estimate"]: f"{r['cosine']:.2f} ± {r['deviation']:.2f}" for r in here}
                print(script.line([env, steps, layer, *(found.get(name, "–") for name in ESTIMATES)]))


if __name__ == "__main__":
    main()
