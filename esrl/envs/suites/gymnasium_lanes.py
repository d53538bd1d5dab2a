"""Pools of Gymnasium environments in this process: one environment for each lane, or true vector environments."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array

from esrl.core.types import EsrlError, PyTree
from esrl.envs.host_lanes import Outcome
from esrl.policies.spaces import row


class SyncPool:
    """Environments of one lane each, stepped one after the other.

    Each lane is seeded by itself, so the signs of a pair share their world by equal seeds. An error inside an
    environment is said with the step that it happened in.
    """

    def __init__(self, name: str, make: Callable[[], gymnasium.Env], lanes: int) -> None:
        self._name = name
        self._envs = [make() for _ in range(lanes)]
        self._steps = [0] * lanes
        self._close = weakref.finalize(self, _close_all, self._envs)

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        return self._batch([self._begin(lane, int(seeds[lane])) for lane in ids.tolist()])

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        space = self._envs[0].action_space
        rows = [self._step(lane, row(space, actions, lane)) for lane in ids.tolist()]
        observations, rewards, terminated, truncated = zip(*rows, strict=True)
        return self._batch(observations), np.array(rewards), np.array(terminated), np.array(truncated)

    def close(self) -> None:
        self._close()

    def _begin(self, lane: int, seed: int) -> Any:
        self._steps[lane] = 0
        try:
            return self._envs[lane].reset(seed=seed)[0]
        except Exception as error:
            raise EsrlError(f"{self._name}: reset raised {type(error).__name__}: {error}") from error

    def _step(self, lane: int, action: Any) -> tuple[Any, float, bool, bool]:
        self._steps[lane] += 1
        try:
            observation, reward, terminated, truncated, _ = self._envs[lane].step(action)
            return observation, float(reward), bool(terminated), bool(truncated)
        except Exception as error:
            said = f"step {self._steps[lane]} of an episode raised {type(error).__name__}: {error}"
            raise EsrlError(f"{self._name}: {said}") from error

    def _batch(self, observations: Any) -> PyTree:
        """Observations as arrays [K, ...] of their space's types, whatever the environment gave."""
        space = self._envs[0].observation_space
        arrays: Any = create_empty_array(space, len(observations))
        return concatenate(space, observations, arrays)


class VectorPool:
    """True vector environments: one for each sign of a pair, of lanes [P, S, E] that all begin together.

    Such an environment has one generator of random numbers for all its lanes, so a lane cannot be seeded by itself.
    The signs of a pair see the same worlds because each sign's environment gets the same seed. Lanes that are done are
    stepped on with the others: there is no way to leave them out.
    """

    def __init__(self, make: Callable[[int], Any], shape: tuple[int, ...]) -> None:
        self._pairs, signs, self._episodes = shape
        self._envs = [make(self._pairs * self._episodes) for _ in range(signs)]
        self._close = weakref.finalize(self, _close_all, self._envs)

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        # One seed decides all lanes of an environment: its first lane's, which is the same for each sign.
        parts = zip(self._envs, self._by_sign(seeds), strict=True)
        return self._lanes([env.reset(seed=int(part[0]))[0] for env, part in parts])

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        by_sign = jax.tree.map(self._by_sign, actions)
        stepped = [env.step(jax.tree.map(lambda x, i=i: x[i], by_sign))[:4] for i, env in enumerate(self._envs)]
        return jax.tree.map(lambda x: x[ids], self._lanes(stepped))

    def close(self) -> None:
        self._close()

    def _by_sign(self, x: np.ndarray) -> np.ndarray:
        """Arrays of all lanes as [S, P E, ...]."""
        rest = x.shape[1:]
        signs = len(self._envs)
        by_sign = x.reshape(self._pairs, signs, self._episodes, *rest).swapaxes(0, 1)
        return by_sign.reshape(signs, self._pairs * self._episodes, *rest)

    def _lanes(self, parts: list[Any]) -> Any:
        """What each sign's environment gave, as arrays of all lanes."""

        def one(*arrays: np.ndarray) -> np.ndarray:
            rest = arrays[0].shape[1:]
            stacked = np.stack([x.reshape(self._pairs, self._episodes, *rest) for x in arrays], axis=1)
            return stacked.reshape(-1, *rest)

        return jax.tree.map(one, *parts)


def _close_all(envs: list[Any]) -> None:
    for env in envs:
        with contextlib.suppress(Exception):  # an environment that failed may fail again
            env.close()
