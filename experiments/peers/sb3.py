"""esrl's PPO against stable-baselines3's, on environments that Python steps: steps and seconds to a return.

    python -m experiments.peers.sb3                        # CartPole-v1 and Acrobot-v1, five seeds
    python -m experiments.peers.sb3 --only CartPole --seeds 1 --env-steps 20000

Both sides have the hyper-parameters that RL Baselines3 Zoo publishes for stable-baselines3, networks of 2x64 tanh with
outputs near zero at the start, Adam with epsilon 1e-5, and the same number of environment steps. Every so many steps
the mode of the policy is scored on the same 128 held-out episodes, through `esrl.evaluate` (stable-baselines3's weights
are read out for that); a run ends when that first reaches the threshold, or with its budget. Neither clock counts
scoring. `seconds` hold compiling, which only the first run of a process does; the table also says it by itself.

What remains different: stable-baselines3 steps its environments one by one (`DummyVecEnv`), esrl by Gymnasium's vector
entry point where there is one (CartPole-v1), else as Gymnasium's `SyncVectorEnv`; stable-baselines3 has orthogonal
weights, lets the clip range fall linearly on CartPole as its learning rate, and updates its normalization in every
step; with esrl both stay as they are within an iteration. PyTorch gets as many threads as `--threads` says.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import esrl
from esrl.core.types import Array, PyTree, seed_key
from experiments import script
from experiments.peers import common
from experiments.peers.common import Results, Row, Stopwatch, numbers


@dataclasses.dataclass(frozen=True)
class Line:
    """One environment.

    Attributes:
      threshold: held-out return to reach. env_steps: budget of a run. every: steps between scores.
      zoo: arguments of `stable_baselines3.PPO`; floats in `falling` go to 0 linearly over the budget.
      normalize: observations and rewards, by `VecNormalize` there.
    """

    threshold: float
    env_steps: float
    every: int
    num_envs: int
    zoo: dict[str, Any]
    falling: tuple[str, ...] = ()
    normalize: bool = False


SOURCE = "RL Baselines3 Zoo, hyperparams/ppo.yml; what it leaves out is stable-baselines3's default"
ZOO = ("n_steps", "batch_size", "gae_lambda", "gamma", "n_epochs", "ent_coef", "learning_rate", "clip_range")
LINES = {
    "CartPole-v1": Line(
        threshold=475.0,
        env_steps=1e5,
        every=2048,
        num_envs=8,
        zoo=dict(zip(ZOO, (32, 256, 0.8, 0.98, 20, 0.0, 1e-3, 0.2), strict=True)),
        falling=("learning_rate", "clip_range"),
    ),
    "Acrobot-v1": Line(
        threshold=-100.0,
        env_steps=1e6,
        every=8192,
        num_envs=16,
        zoo=dict(zip(ZOO, (256, 64, 0.94, 0.99, 4, 0.0, 3e-4, 0.2), strict=True)),
        normalize=True,
    ),
}


class Race:
    """A run's clock and its end: `over(state, steps)` scores when it is time to, and says whether to stop."""

    def __init__(self, line: Line, budget: float, score: Callable[[PyTree], float]) -> None:
        self.line, self.budget, self._score, self.watch = line, budget, score, Stopwatch()
        self._next, self.best = line.every, -np.inf
        self.row: Row = {}

    def over(self, state: Callable[[], PyTree], steps: int) -> bool:
        if self.row or (steps < self._next and steps < self.budget):
            return bool(self.row)
        self._next = steps - steps % self.line.every + self.line.every
        timed = common.times(self.watch, steps)
        with self.watch:
            now = self._score(state())
        self.best = max(self.best, now)
        if now >= self.line.threshold or steps >= self.budget:
            self.row = {"reached": int(now >= self.line.threshold), **timed, "return_mean": now, "best": self.best}
        return bool(self.row)


class Esrl:
    """esrl's side."""

    def __init__(self, name: str, env: Any, line: Line, budget: float) -> None:
        zoo = line.zoo
        self.agent = esrl.ppo(
            env,
            esrl.mlp((64, 64), "tanh", output_scale=0.01),
            num_envs=line.num_envs,
            num_steps=zoo["n_steps"],
            num_epochs=zoo["n_epochs"],
            num_minibatches=line.num_envs * zoo["n_steps"] // zoo["batch_size"],
            learning_rate=zoo["learning_rate"],
            anneal_steps=budget if "learning_rate" in line.falling else None,
            gamma=zoo["gamma"],
            gae_lambda=zoo["gae_lambda"],
            clip_eps=zoo["clip_range"],
            entropy_coef=zoo["ent_coef"],
            value_coef=0.5,
            max_grad_norm=0.5,
            normalize_observations=line.normalize,
            normalize_rewards=line.normalize,
            optimizer=optax.adam(1.0, eps=1e-5),
        )
        self.score = common.scorer(env, lambda: self.agent.act)

    def run(self, race: Race, seed: int) -> None:
        state = self.agent.init(seed_key(seed))
        while not race.over(partial(lambda x: x, state), int(state.env_steps)):
            state, _ = common.blocked(self.agent.step(state))


class Sb3:
    """stable-baselines3's side."""

    def __init__(self, name: str, env: Any, line: Line, budget: float) -> None:
        self.name, self.line, self.budget = name, line, budget
        self.score = common.scorer(env, lambda: _act)

    def run(self, race: Race, seed: int) -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.callbacks import BaseCallback
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

        class Scores(BaseCallback):
            def _on_rollout_start(self) -> None:  # after the gradient steps of the rollout before
                race.over(lambda: _weights(self.model), self.num_timesteps)

            def _on_step(self) -> bool:
                return not race.row

        def schedule(name: str) -> Any:
            value = self.line.zoo[name]
            return (lambda remaining: remaining * value) if name in self.line.falling else value

        envs = make_vec_env(self.name, n_envs=self.line.num_envs, seed=seed)
        if self.line.normalize:
            envs = VecNormalize(envs, gamma=self.line.zoo["gamma"])
        falling = {name: schedule(name) for name in ("learning_rate", "clip_range")}
        model = PPO("MlpPolicy", envs, seed=seed, device="cpu", **{**self.line.zoo, **falling})
        model.learn(int(self.budget), callback=Scores())
        race.over(lambda: _weights(model), model.num_timesteps)
        envs.close()


def _weights(model: Any) -> PyTree:
    """A stable-baselines3 policy as arrays: its layers, and what observations are normalized by."""
    layers = [x for x in model.policy.mlp_extractor.policy_net if hasattr(x, "weight")] + [model.policy.action_net]
    found = [
        (jnp.asarray(x.weight.detach().numpy().T.copy()), jnp.asarray(x.bias.detach().numpy().copy())) for x in layers
    ]
    normalizer = model.get_vec_normalize_env()
    if normalizer is None:
        return found, None
    mean, variance = normalizer.obs_rms.mean, normalizer.obs_rms.var + normalizer.epsilon
    return found, (jnp.asarray(mean, jnp.float32), jnp.asarray(np.sqrt(variance), jnp.float32))


def _act(state: PyTree, observation: Array, carry: PyTree, key: Array) -> tuple[Array, PyTree]:
    """The mode of such a policy."""
    layers, moments = state
    x = observation if moments is None else jnp.clip((observation - moments[0]) / moments[1], -10.0, 10.0)
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return jnp.argmax(x @ layers[-1][0] + layers[-1][1]).astype(jnp.int32), carry


def measure(results: Results, name: str, seeds: int, env_steps: float | None) -> None:
    """Races both sides in turn, seed by seed."""
    line, env = LINES[name], esrl.make(f"gymnasium/{name}")
    budget = int(env_steps or line.env_steps)
    sides = {who: partial(kind, name, env, line, budget) for who, kind in (("esrl", Esrl), ("sb3", Sb3))}
    results.compare(name, sides, budget, seeds, partial(_raced, line, budget))


def _raced(line: Line, budget: int, make: Callable[[], Any], seed: int) -> Row:
    race = Race(line, budget, lambda state: make().score(state))
    make().run(race, seed)
    return race.row


def table(results: Results) -> str:
    lines = []
    for (env, _, who), rows in common.grouped(results.read(), "env", "budget", "side").items():
        there = [row for row in rows if row["reached"] in (1, "1")]
        working = numbers(there, "seconds") - numbers(there, "seconds_compile")
        cells = [f"{LINES[env].threshold:g}", who, f"{len(there)} of {len(rows)}"]
        cells += [_range(numbers(there, "env_steps")), _range(working, 1), *common.largest(rows, "seconds_compile")]
        lines.append([env, *cells, common.rate_text(numbers(rows, "env_steps_per_second"))])
    head = ("environment", "return", "side", "seeds that reach it", "env steps, median [range]")
    return script.table([*head, "seconds, median [range]", "compile s", "steps/s"], lines)


def _range(x: np.ndarray, digits: int = 0) -> str:
    if not len(x):
        return "-"
    return f"{np.median(x):,.{digits}f} [{x.min():,.{digits}f}, {x.max():,.{digits}f}]"


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    threads: int = 1  # PyTorch's; more are slower with networks this small


def main() -> None:
    given = script.options(Options, __doc__)
    settings = {name: {**dataclasses.asdict(line), "source": SOURCE} for name, line in LINES.items()}
    results = Results(given.results / "sb3.csv", ("env", "side", "budget", "seed"), settings)
    if not given.table:
        import stable_baselines3  # noqa: F401  # not in the first run's time
        import torch

        torch.set_num_threads(given.threads)
    for name in given.chosen(LINES):
        measure(results, name, given.seeds, given.env_steps)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
