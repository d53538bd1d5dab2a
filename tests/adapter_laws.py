"""What every adapter must show: all agents train on it, and its episodes are the package's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import esrl
from esrl.core.types import seed_key
from esrl.training import stored_spaces

AGENTS = ("eggroll", "open_es", "ppo")
EPISODES = 100


def train_two_generations(name: str, agent: str, **options: Any) -> None:
    """Trains an agent for two steps on an environment; parameters must change and stay finite.

    The time limit should be short (`name?max_episode_steps=20`), so that compiling is all that this costs.
    """
    small = (
        {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 1} if agent == "ppo" else {"population": 8}
    )
    made = getattr(esrl, agent)(name, esrl.mlp((8,)), **{**small, **options})
    told = stored_spaces.spaces_in(stored_spaces.stored(made.env) or b"")
    assert told[1:3] == (made.env.observation_space, made.env.action_space)
    state = made.init(seed_key(0))
    before = jax.device_get(state.params)
    for _ in range(2):
        state, _ = made.step(state)
    after = jax.device_get(state.params)
    leaves = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert all(np.isfinite(x).all() for _, x in leaves)
    if agent == "ppo" or np.ptp(np.asarray(made.rollout(state).returns)) > 0:  # equal returns give no update: law 1
        assert any((x != y).any() for x, y in leaves)


def random_actions(env: Any, seed: int, steps: int) -> list[Any]:
    """Actions [steps] from the action space, the same for the same seed."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(steps)]


def episodes(
    reset: Callable[..., tuple[Any, Any]], step: Callable[..., tuple[Any, Any, Any, Any]], actions: Any, keys: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards [E, T], ends [E, T] and live [E, T] of episodes with these actions [E, T, ...] and keys [E].

    `reset(key) -> (state, observation)`, `step(state, action, key) -> (state, observation, reward, ended)`; step t gets
    `fold_in(key, t)`. Nothing after an episode's end counts: rewards and ends are zero there.
    """

    def one(key: Any, actions: Any) -> tuple[Any, Any, Any]:
        state, _ = reset(key)

        def body(carry: Any, x: Any) -> tuple[Any, Any]:
            state, live = carry
            action, t = x
            state, _, reward, ended = step(state, action, jax.random.fold_in(key, t))
            ended = jnp.asarray(ended, bool).reshape(())
            reward = jnp.asarray(reward, jnp.float32).reshape(())
            return (state, live & ~ended), (jnp.where(live, reward, 0.0), ended & live, live)

        number = jax.tree.leaves(actions)[0].shape[0]
        times = jnp.arange(number, dtype=jnp.uint32)
        return jax.lax.scan(body, (state, jnp.bool_(True)), (actions, times))[1]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return tuple(np.asarray(x) for x in jax.jit(jax.vmap(one))(keys, actions))  # type: ignore[return-value]


def assert_same_episodes(
    env: Any,
    reset: Callable[..., tuple[Any, Any]],
    step: Callable[..., tuple[Any, Any, Any, Any]],
    steps: int,
    number: int = EPISODES,
    exact: bool = True,
) -> None:
    """Random episodes of an esrl environment and of the package's own functions: same rewards, ends and returns.

    Args:
      env: from `esrl.make`.
      reset, step: the package's own, given the same typed keys; `ended` is termination alone (not the time limit).
      steps: steps of each episode, at most (the time limit of the package must not come before).
      number: of episodes.
      exact: rewards must be equal to the bit; otherwise to 1e-5 of themselves.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(seed_key(7), i))(jnp.arange(number, dtype=jnp.uint32))
    flat = random_actions(env, 0, number * steps)
    actions = jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs).reshape(number, steps, *np.shape(xs[0]))), *flat)
    mine = episodes(env.reset, env.step, actions, keys)
    own = episodes(reset, step, actions, keys)
    compare = (
        np.testing.assert_array_equal if exact else lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    )
    compare(mine[0], own[0])
    np.testing.assert_array_equal(mine[1], own[1])
    np.testing.assert_array_equal(mine[2], own[2])
    compare(mine[0].sum(axis=1), own[0].sum(axis=1))


class Playing:
    """One episode in every lane of shape (P, S, E), of an environment that Python steps.

    Attributes:
      lanes: the `HostLanes`.
    """

    def __init__(self, env: Any, *shape: int) -> None:
        self.lanes = env.make_lanes(shape, together=True)

    def reset(self, seeds: Any) -> Any:
        """Begins an episode in every lane; seeds [P, S, E]. Returns observations [L, ...]."""
        self._live = np.ones(seeds.size, bool)
        return self.lanes.begin(self._live, seeds.ravel())

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """One step of the lanes that live: observations [L, ...], rewards [L], ended [L]."""
        observations, rewards, terminated, truncated = self.lanes.step(actions, self._live)
        ended = terminated | truncated
        self._live = self._live & ~ended
        return observations, rewards, ended


def seeds_of_generations(env: Any, population: int, episodes: int) -> list[set[int]]:
    """Seeds of the worlds of two generations and of an evaluation, of an environment that Python steps."""
    given: list[Any] = []

    def watched(shape: tuple[int, ...], together: bool = False) -> Any:
        lanes = env.make_lanes(shape, together)
        if "begin" not in vars(lanes):
            begin = lanes.begin
            lanes.begin = lambda which, seeds: (given.append(seeds), begin(which, seeds))[1]
        return lanes

    agent = esrl.eggroll(env._replace(make_lanes=watched), esrl.mlp((4,)), population=population, episodes_per_member=1)
    state = agent.init(seed_key(0))
    for _ in range(2):
        state, _ = agent.step(state)
    esrl.evaluate(agent, state, episodes=episodes)
    return [set(seeds.tolist()) for seeds in given[:3]]
