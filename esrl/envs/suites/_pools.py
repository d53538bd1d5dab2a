"""Lanes of packages that step many worlds in C++: only the lanes that live are stepped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import HostEnv
from esrl.envs.suites.gymnasium_lanes import errors_of, keep_two

Outcome = tuple[PyTree, np.ndarray, np.ndarray, np.ndarray]


@runtime_checkable
class Pool(Protocol):
    """Worlds of L lanes. Every array has one row for each lane of `ids`, in their order."""

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        """Begins an episode in the lanes `ids` [K] with their uint32 seeds [K]; returns observations [K, ...]."""

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        """Steps the lanes `ids` [K]: observations [K, ...], rewards, terminated, truncated [K]."""


@runtime_checkable
class DrawnPool(Pool, Protocol):
    """Worlds that can be drawn."""

    def draw(self) -> np.ndarray:
        """A frame [H, W, 3] of the first lane."""


class _Lanes:
    """What lanes of a pool have in common: the last observations [L, ...], each lane's steps, errors as one sentence.

    Attributes:
      failed: whether the package raised an error; then no more can be asked of these lanes.
    """

    def __init__(self, name: str, pool: Pool, lanes: int, horizon: int) -> None:
        self.failed = False
        self._name, self._pool, self._horizon = name, pool, horizon
        self._seen: PyTree = None
        self._steps = np.zeros(lanes, np.int64)

    def _begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        begun = self._ask("reset", lambda: self._pool.begin(ids, seeds))
        self._steps[ids] = 0
        return self._merge(ids, begun)

    def _step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        """Rewards, terminated and truncated are those of `ids`; observations are every lane's."""
        chosen = actions if len(ids) == len(self._steps) else jax.tree.map(lambda x: np.asarray(x)[ids], actions)
        after, reward, terminated, truncated = self._ask("step", lambda: self._pool.step(ids, chosen))
        self._steps[ids] += 1
        over = (self._steps[ids] >= self._horizon) & ~terminated
        return self._merge(ids, after), np.asarray(reward, np.float64), terminated, truncated | over

    def _merge(self, ids: np.ndarray, part: PyTree) -> PyTree:
        """Every lane's observation; never written to again, as JAX may still be reading it."""

        def one(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            merged = old.copy()
            merged[ids] = new
            return merged

        self._seen = part if len(ids) == len(self._steps) else jax.tree.map(one, self._seen, part)
        return self._seen

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            with errors_of(self._name, what, [self._pool]):
                return call()
        except EsrlError:
            self.failed = True
            raise

    def close(self) -> None:
        """Lets go of the pool, which ends its threads."""
        del self._pool


class EpisodeLanes(_Lanes):
    """Lanes [P, S, E] that play one episode each; a lane that is done is not stepped. As `VectorLanes`."""

    def __init__(self, name: str, pool: Pool, shape: tuple[int, int, int], horizon: int) -> None:
        super().__init__(name, pool, int(np.prod(shape)), horizon)
        self.shape = shape
        self._live = np.zeros(int(np.prod(shape)), bool)

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Starts an episode in every lane; seeds [P, S, E]. Returns observations [L, ...]."""
        self._live[:] = True
        return self._begin(np.arange(self._live.size), seeds.ravel())

    def step(self, actions: PyTree) -> tuple[PyTree, np.ndarray, np.ndarray]:
        """One step of every live lane: observations [L, ...], rewards [L], ended [L]."""
        reward, ended = np.zeros(self._live.size), np.zeros(self._live.size, bool)
        ids = np.flatnonzero(self._live)
        if ids.size:
            _, reward[ids], terminated, truncated = self._step(ids, actions)
            ended[ids] = terminated | truncated
            self._live &= ~ended
        return self._seen, reward, ended


class ContinuedLanes(_Lanes):
    """Lanes [L], each of which begins a new episode when it is told to. As `StreamLanes`."""

    def __init__(self, name: str, pool: Pool, lanes: int, horizon: int) -> None:
        super().__init__(name, pool, lanes, horizon)
        self.lanes = lanes

    def begin(self, which: np.ndarray, seeds: np.ndarray) -> PyTree:
        """Begins an episode in the lanes of `which` [L] bool with their seeds [L]; returns every lane's observation."""
        return self._begin(np.flatnonzero(which), np.asarray(seeds)[which])

    def step(self, actions: PyTree) -> Outcome:
        """One step of every lane: observations [L, ...], rewards, terminated, truncated [L]."""
        return self._step(np.arange(self.lanes), actions)


class OneLane(gymnasium.Env):
    """A pool of one lane as a `gymnasium.Env`, for checks and for rendering."""

    def __init__(self, pool: Pool, env: HostEnv, draw: Callable[[], np.ndarray] | None) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.render_mode = None if draw is None else "rgb_array"
        self._lanes = ContinuedLanes(env.name, pool, 1, env.horizon)
        self._draw = draw

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[PyTree, dict]:
        super().reset(seed=seed)
        chosen = self.np_random.integers(2**32) if seed is None else seed
        return _first(self._lanes.begin(np.ones(1, bool), np.array([chosen], np.uint32))), {}

    def step(self, action: Any) -> tuple[PyTree, float, bool, bool, dict]:
        after, reward, terminated, truncated = self._lanes.step(jax.tree.map(lambda x: np.asarray(x)[None], action))
        return _first(after), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        return None if self._draw is None else self._draw()


def pool_env(
    name: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    horizon: int,
    make: Callable[..., Pool],
) -> HostEnv:
    """The host environment of a package's pools.

    Args:
      name: what `esrl.make` calls it.
      observation_space, action_space: of one lane.
      horizon: steps of an episode.
      make: `make(lanes, **kwargs) -> Pool`; the keyword arguments are those of `make_one`. With `render_mode` it is a
        `DrawnPool`.
    """

    def lanes(pairs: int, signs: int, episodes: int) -> EpisodeLanes:
        shape = (pairs, signs, episodes)
        return EpisodeLanes(name, make(int(np.prod(shape))), shape, horizon)

    def stream(number: int) -> ContinuedLanes:
        return ContinuedLanes(name, make(number), number, horizon)

    def one(**kwargs: Any) -> gymnasium.Env:
        pool = make(1, **kwargs)
        return OneLane(pool, env, cast(DrawnPool, pool).draw if kwargs.get("render_mode") else None)

    env = HostEnv(name, observation_space, action_space, horizon, keep_two(lanes), stream, one)
    return env


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)
