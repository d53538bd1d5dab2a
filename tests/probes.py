"""Small environments whose best return is known, and a network to go with them."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

Key = jax.Array


class Probe:
    """One step unless said otherwise; the observation is a random sign."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space: ClassVar[spaces.Space] = spaces.Discrete(2)
    max_episode_steps = 1
    name = "probe"

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        observation = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)[None]
        return (observation, jnp.int32(0)), observation

    def step(self, state: Any, action: jax.Array, key: Key) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        observation, time = state
        reward = self.reward(observation[0], action, time)
        return (observation, time + 1), observation, jnp.asarray(reward, jnp.float32), jnp.bool_(False)

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array | float:
        raise AssertionError("a probe says its reward")


class Constant(Probe):
    """Reward 1 whatever happens."""

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> float:
        return 1.0


class Terminating(Probe):
    """One step, which ends in a terminal state; reward 1. Its value is 1, whatever the discount."""

    max_episode_steps = 10

    def step(self, state: Any, action: jax.Array, key: Key) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        state, observation, reward, _ = super().step(state, action, key)
        return state, observation, reward, jnp.bool_(True)

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array | float:
        return 1.0


class SignIsValue(Terminating):
    """Like `Terminating`, but the reward is the observation: values of the two observations are -1 and 1."""

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array:
        return seen


class LaterReward(Probe):
    """Two steps, told apart by the observation (0, then 1); reward 1 after the second, which is terminal."""

    max_episode_steps = 10

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        return jnp.int32(0), jnp.zeros(1)

    def step(self, state: Any, action: jax.Array, key: Key) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        last = state == 1
        return state + 1, jnp.ones(1), last.astype(jnp.float32), last


class ActionMatters(Probe):
    """Reward 1 for action 1, else 0."""

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array:
        return (action == 1).astype(jnp.float32)


class ActionDependsOnObservation(Probe):
    """Reward 1 when the action is the sign that is seen."""

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array:
        return ((action == 1) == (seen > 0)).astype(jnp.float32)


class Delayed(Probe):
    """The first action decides the reward of the third step."""

    max_episode_steps = 3

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        return (jnp.int32(-1), jnp.int32(0)), jnp.zeros(1)

    def step(self, state: Any, action: jax.Array, key: Key) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        first, time = state
        first = jnp.where(time == 0, action.astype(jnp.int32), first)
        reward = jnp.where((time == 2) & (first == 1), 1.0, 0.0)
        return (first, time + 1), jnp.zeros(1), reward, jnp.bool_(False)


class Memory(Probe):
    """The sign is seen in the first step only, and asked for in the third."""

    max_episode_steps = 3

    def step(self, state: Any, action: jax.Array, key: Key) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        observation, time = state
        right = (action == 1) == (observation[0] > 0)
        reward = jnp.where((time == 2) & right, 1.0, 0.0)
        return (observation, time + 1), jnp.zeros(1), reward, jnp.bool_(False)


class Target(Probe):
    """A continuous action that is to match twice the observation, in [-2, 2]; reward is minus the squared distance."""

    action_space: ClassVar[spaces.Space] = spaces.Box(-4.0, 4.0, (1,), np.float32)

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array:
        return -((action[0] - 2 * seen) ** 2)


class ChoiceAndTarget(Probe):
    """A Dict of a choice, which is to be the sign that is seen, and of a number, which is to match it; best is 0."""

    action_space: ClassVar[spaces.Space] = spaces.Dict(choice=spaces.Discrete(2), number=spaces.Box(-2.0, 2.0, (1,)))

    def reward(self, seen: jax.Array, action: Any, time: jax.Array) -> jax.Array:
        wrong = (action["choice"] == 1) != (seen > 0)
        return -wrong.astype(jnp.float32) - (action["number"][0] - seen) ** 2


class Walk(Probe):
    """A random walk of up to 20 steps with random ends: rewards, lengths and observations that depend on everything."""

    max_episode_steps = 20

    def reset(self, key: Key) -> tuple[Any, jax.Array]:
        place = jax.random.uniform(key, (1,), minval=-0.5, maxval=0.5)
        return (place, jnp.int32(0)), place

    def step(self, state: Any, action: jax.Array, key: Key) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        place, time = state
        noise = 0.2 * jax.random.normal(key, (1,))
        place = place + 0.1 * (2 * action.astype(jnp.float32) - 1) + noise
        return (place, time + 1), place, -jnp.abs(place[0]), jnp.abs(place[0]) > 1


class Broken(Probe):
    """Reward NaN wherever action 1 is taken in a world whose sign is positive."""

    def reward(self, seen: jax.Array, action: jax.Array, time: jax.Array) -> jax.Array:
        return jnp.where((action == 1) & (seen > 0), jnp.nan, jnp.where(seen > 0, jnp.inf, 1.0))
