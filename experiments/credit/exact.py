"""How near every estimate of esrl comes to the exact gradient of the return, on two worlds that can be differentiated.

    python -m experiments.credit.exact                  # whatever is missing; a table, and results/exact.png
    python -m experiments.credit.exact --table          # only print what is there

The exact gradient is that of the undiscounted return of the policy's mode, by backpropagation through whole episodes of
the world itself, which only an oracle can do. Every estimate has the same policy and as many environment steps. The
policy is fresh, or has been trained for a while. Estimates that need a critic have one that was trained on this policy
for thirty iterations, so that estimates are compared and not critics; feedback has learned as long.

"hidden" is the cosine of all layers but the last one, whose gradient the agents with a critic have in closed form. The
dotted line is what P antithetic pairs of dense noise could reach in as many dimensions D as the network has parameters,
were fitness linear and without chance: sqrt(P / (P + D + 1)).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from gymnasium import spaces

import esrl
from esrl.algorithms import weight_windows
from esrl.core.types import Array, Key, PyTree, seed_key
from experiments import script
from experiments.lab import figures, pool
from experiments.lab.store import Row, Store, results

ppo = importlib.import_module("esrl.algorithms.ppo")  # esrl.ppo is the agent
es = importlib.import_module("esrl.algorithms.es")


class Point:
    """A mass on a line that a force is to bring to rest at 0; nothing in it is cut off."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-np.inf, np.inf, (1,))
    max_episode_steps = 100
    name = "point"

    def reset(self, key: Key) -> tuple[Array, Array]:
        state = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return state, state

    def step(self, state: Array, action: Array, key: Key) -> tuple[Array, Array, Array, Array]:
        place, speed = state
        force = action[0]
        reward = -(place**2 + 0.1 * speed**2 + 0.1 * force**2)
        state = jnp.stack([place + 0.1 * speed, 0.95 * speed + 0.1 * force])
        return state, state, reward, jnp.bool_(False)


WORLDS: dict[str, Any] = {"gymnax/Pendulum-v1": "gymnax/Pendulum-v1", "point": Point}
# Without LayerNorm, whose derivative grows without bound as the state comes to rest at 0.
NETWORK = esrl.mlp((64, 64), "tanh", output_scale=0.1)
COMMON: dict[str, Any] = {"normalize_observations": False, "squash": "clip"}
LEARNER: dict[str, Any] = {**COMMON, "num_steps": 128, "num_minibatches": 8}
WHOLE: dict[str, Any] = {**COMMON, "sigma": 0.05, "episodes_per_member": 1}
ESTIMATES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole episodes, rank 1": ("eggroll", WHOLE),
    "whole episodes, dense": ("open_es", WHOLE),
    "windows of 16 steps, rank 1": ("eggroll_ac", {**LEARNER, "noise_space": "weights", "sigma": 0.05}),
    "aligned, 1 pair": ("eggroll_ac", {**LEARNER, "feedback": False}),
    "aligned, 8 pairs": ("eggroll_ac", {**LEARNER, "feedback": False, "pairs": 8}),
    "aligned, feedback": ("eggroll_ac", LEARNER),
    "aligned, feedback alone": ("eggroll_ac", {**LEARNER, "residual": 0.0}),
    "backpropagated surrogate": ("eggroll_ac", {**LEARNER, "gradient": "backprop"}),
}
TRAINED = {"fresh": 0, "later": 12}  # iterations of 8,192 steps that the policy was trained for
READY = 30  # iterations in which critic and feedback learn, the policy held


@dataclass
class Arguments:
    """The command line."""

    steps: tuple[int, ...] = (8192, 65536)
    draws: int = 6  # of everything random in an estimate: noise, worlds, actions
    table: bool = False


def exact(env: Any, policy: Any, network: PyTree, seed: int, episodes: int = 512) -> PyTree:
    """The gradient of the mean undiscounted return of the policy's mode, by backpropagation through the world."""

    def episode(network: PyTree, key: Key) -> Array:
        def step(now: tuple[PyTree, PyTree], key: Key) -> tuple[tuple[PyTree, PyTree], Array]:
            state, observation = now
            (output, _), _ = policy.apply({"network": network}, observation, policy.carry)
            state, observation, reward, _ = env.step(state, policy.head.mode(output), key)
            return (state, observation), reward.astype(jnp.float32)

        first, *rest = jax.random.split(key, env.max_episode_steps + 1)
        return jnp.sum(jax.lax.scan(step, env.reset(first), jnp.stack(rest))[1])

    keys = jax.random.split(seed_key(seed), episodes)
    return jax.jit(jax.grad(lambda w: jnp.mean(jax.vmap(partial(episode, w))(keys))))(network)


def learner(world: Any, steps: int, options: dict[str, Any]) -> esrl.Agent:
    """An actor-critic whose iteration has so many steps."""
    return esrl.eggroll_ac(world, NETWORK, num_envs=steps // LEARNER["num_steps"], **options)


def policy_of(world: Any, iterations: int) -> PyTree:
    """The parameters of actor and critic after some iterations of training."""
    agent = learner(world, 8192, ESTIMATES["backpropagated surrogate"][1])
    state = agent.init(seed_key(0))
    for _ in range(iterations):
        state, _ = agent.step(state)
    return state.params


def ready(world: Any, options: dict[str, Any], params: PyTree) -> Any:
    """The state of an agent whose critic and feedback have learned from a policy that was held."""
    agent = learner(world, 8192, options)
    state = agent.init(seed_key(1))._replace(params=params)
    for _ in range(READY):
        state, _ = agent.step(state)
        state = state._replace(params={**state.params, "actor": params["actor"]})
    return state


def whole(
    world: Any, agent_name: str, options: dict[str, Any], network: PyTree, steps: int, draws: int
) -> list[PyTree]:
    """Estimates from whole episodes."""
    pairs = max(steps // esrl.make(world).max_episode_steps // 2, 1)
    agent = getattr(esrl, agent_name)(world, NETWORK, population=2 * pairs, **options)
    found = []
    for seed in range(draws):
        state = agent.init(seed_key(100 + seed))._replace(params={"network": network})
        halves = es.estimate(agent.config, state, agent.rollout(state).fitness)
        found.append(jax.tree.unflatten(jax.tree.structure(network), [-a - b for a, b in zip(*halves, strict=True)]))
    return found


def stepwise(world: Any, options: dict[str, Any], known: Any, steps: int, draws: int) -> list[PyTree]:
    """Estimates from steps in lanes that live on, with the critic and the feedback of `known`."""
    agent = learner(world, steps, options)
    config = agent.config

    @jax.jit
    def estimate(state: Any) -> PyTree:
        experience = agent.rollout(state)
        rewards, _, _ = ppo.normalize_rewards(config, state, experience.trajectory)
        if config.estimate is not None:
            return weight_windows.estimate(config.estimate.args[0], config, state, experience, rewards)
        samples = ppo.make_samples(config, state, experience, rewards)
        samples = samples._replace(advantage=ppo.standardize(samples.advantage))
        found = config.gradient(config, state.params, state.memory, state, samples, state.key)[0]
        return found["actor"]["network"]

    found = []
    for seed in range(draws):
        state = agent.init(seed_key(100 + seed))
        memory = known.memory if config.estimate is None else state.memory
        state = state._replace(params=known.params, memory=memory, reward_moments=known.reward_moments)
        # Lanes that have been played for a while are spread over their episodes.
        state = state._replace(lanes=agent.rollout(state).lanes, generation=state.generation + 1)
        found.append(jax.tree.map(jnp.negative, estimate(state)))
    return found


def measured(name: str, steps: int, policy: str, draws: int) -> list[Row]:
    """Cosines of every estimate in one world, for one policy and number of steps."""
    world = WORLDS[name]
    params = policy_of(world, TRAINED[policy])
    network = params["actor"]["network"]
    bound = learner(world, 8192, LEARNER).policy
    env = esrl.make(world)
    aims = [exact(env, bound, network, seed) for seed in (0, 1)]
    aim = jax.tree.map(lambda a, b: (a + b) / 2, *aims)
    own = {"env": name, "steps": steps, "policy": policy}
    rows: list[Row] = []
    print(f"{name}, {policy}: the exact one, of two halves of the episodes: {cosine(*aims):.4f}", flush=True)
    for label, (agent, options) in ESTIMATES.items():
        if agent == "eggroll_ac":
            found = stepwise(world, options, ready(world, options, params), steps, draws)
        else:
            found = whole(world, agent, options, network, steps, draws)
        row: Row = {**own, "estimate": label}
        for part, layers in (("whole", list(network)), ("hidden", list(network)[:-1])):
            each = [cosine([one[k] for k in layers], [aim[k] for k in layers]) for one in found]
            row |= {part: float(np.mean(each)), f"{part}_deviation": float(np.std(each))}
        rows.append(row)
        print(rows[-1], flush=True)
    return rows


def cosine(first: PyTree, second: PyTree) -> float:
    """The cosine of two trees of arrays."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (first, second))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def dimensions(name: str) -> int:
    """Parameters of the network in a world."""
    agent = learner(WORLDS[name], 8192, LEARNER)
    params = jax.eval_shape(agent.policy.init, jax.eval_shape(lambda: seed_key(0)))["network"]
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def draw(rows: list[Row]) -> None:
    """The figure: a column for each world and policy, a line for each estimate; all layers above, the hidden below."""
    figures.begin()
    panels = [(name, policy) for name in WORLDS for policy in TRAINED]
    figure, axes = plt.subplots(2, len(panels), figsize=(2.7 * len(panels), 5.6), sharey=True, sharex=True)
    for column, (name, policy) in enumerate(panels):
        here = [r for r in rows if (r["env"], r["policy"]) == (name, policy)]
        steps = sorted({float(r["steps"]) for r in here})
        pairs = [s / esrl.make(WORLDS[name]).max_episode_steps / 2 for s in steps]
        bound = [math.sqrt(p / (p + dimensions(name) + 1)) for p in pairs]
        for axis, part in zip(axes[:, column], ("whole", "hidden"), strict=True):
            for label in ESTIMATES:
                own = [r for r in here if r["estimate"] == label]
                found = sorted(tuple(float(r[k]) for k in ("steps", part, f"{part}_deviation")) for r in own)
                if found:
                    axis.errorbar(*zip(*found, strict=True), marker="o", ms=3, lw=1.2, capsize=2, label=label)
            axis.plot(steps, bound, ls=":", color="0.3", label="dense noise, at best")
            axis.axhline(0, color="0.7", lw=0.6)
        axes[0][column].set(title=f"{name}, {policy}", xscale="log")
        axes[1][column].set(xlabel="environment steps")
        axes[1][column].set_xticks(steps, [f"{number:,.0f}" for number in steps], minor=False)
        axes[1][column].minorticks_off()
    axes[0][0].set_ylabel("cosine, all layers")
    axes[1][0].set_ylabel("cosine, hidden layers")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
    figure.tight_layout()
    figures.save(figure, results("credit") / "exact.png", bbox_inches="tight")


def main() -> None:
    """The script."""
    arguments = script.options(Arguments, __doc__)
    table = Store(results("credit") / "exact.csv", key=("env", "steps", "policy"))
    wanted = [(e, n, p) for p in TRAINED for n in arguments.steps for e in WORLDS]
    with pool.stoppable("what was measured is kept"):
        for name, steps, policy in [] if arguments.table else table.missing(wanted):
            table.add(measured(name, steps, policy, arguments.draws))
    rows = table.read()
    print(script.table(["", "policy", "steps", "layers", *ESTIMATES]))
    for name, policy in [(e, p) for e in WORLDS for p in TRAINED]:
        for steps, part in [(n, part) for n in arguments.steps for part in ("whole", "hidden")]:
            here = [r for r in rows if (r["env"], r["steps"], r["policy"]) == (name, steps, policy)]
            found = {r["estimate"]: f"{r[part]:.2f} ± {r[f'{part}_deviation']:.2f}" for r in here}
            print(script.line([name, policy, steps, part, *(found.get(label, "–") for label in ESTIMATES)]))
    if rows:
        draw(rows)


if __name__ == "__main__":
    main()
