"""Lanes of Gymnasium environments: vector environments that play one episode each, or that go on and on."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from esrl.core.types import EsrlError, PyTree


class Park(gymnasium.Wrapper):
    """Plays one episode for each seeded reset, then stands still.

    A lane that is done costs nothing: after its end the environment is not stepped, whatever the vector environment
    does, until a reset brings a new seed. An error inside the environment is said with the step that it happened in.
    """

    def __init__(self, env: gymnasium.Env, name: str = "") -> None:
        super().__init__(env)
        self._name = name or type(env.unwrapped).__name__
        self._parked = True
        self._last: Any = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        if seed is None and self._last is not None:
            return self._last, {}
        self._parked, self._steps = False, 0
        self._last, _ = self._try("reset", lambda: self.env.reset(seed=seed, options=options))
        return self._last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if self._parked:
            return self._last, 0.0, False, False, {}
        self._steps += 1
        out = self._try(f"step {self._steps} of an episode", lambda: self.env.step(action))
        self._last, reward, terminated, truncated, *_ = out
        self._parked = bool(terminated or truncated)
        return self._last, float(reward), bool(terminated), bool(truncated), {}

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise EsrlError(f"{self._name}: {what} raised {type(error).__name__}: {error}") from error


class VectorLanes:
    """Lanes [P, S, E] of one environment as vector environments.

    Sync and async ones seed each lane by itself, so the signs of a pair share their world by equal seeds. A true vector
    environment has one generator for all its lanes; there each sign is a vector environment of its own, and both get
    the same seed.

    Attributes:
      shape: (P, S, E).
      failed: whether an environment raised an error; then no more can be asked of these lanes.
    """

    def __init__(self, name: str, make: Callable[[int], Any], shape: tuple[int, int, int], true_vector: bool) -> None:
        self.shape = shape
        self.failed = False
        self._name = name
        self._twins = shape[1] if true_vector else 1
        self._true_vector = true_vector
        lanes = int(np.prod(shape)) // self._twins
        self._envs = [make(lanes) for _ in range(self._twins)]
        self._close = weakref.finalize(self, close, self._envs)

    def _split(self, x: np.ndarray) -> list[np.ndarray]:
        if self._twins == 1:
            return [x]
        pairs, signs, episodes = self.shape
        by_sign = x.reshape(pairs, signs, episodes, *x.shape[1:]).swapaxes(0, 1)
        return [part.reshape(pairs * episodes, *x.shape[1:]) for part in by_sign]

    def _join(self, parts: list[Any]) -> Any:
        if self._twins == 1:
            return parts[0]
        if isinstance(parts[0], dict):
            return {name: self._join([part[name] for part in parts]) for name in parts[0]}
        if isinstance(parts[0], tuple):
            return tuple(self._join(list(column)) for column in zip(*parts, strict=True))
        pairs, signs, episodes = self.shape
        stacked = np.stack([np.asarray(part).reshape(pairs, episodes, *part.shape[1:]) for part in parts], axis=1)
        return stacked.reshape(pairs * signs * episodes, *parts[0].shape[1:])

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Starts an episode in every lane; seeds [P, S, E]. Returns observations [L, ...]."""
        flat = seeds.ravel()
        with self._errors("reset"):
            if not self._true_vector:
                return self._envs[0].reset(seed=[int(seed) for seed in flat])[0]
            parts = zip(self._envs, self._split(flat), strict=True)
            return self._join([env.reset(seed=int(part[0]))[0] for env, part in parts])

    def step(self, actions: Any) -> tuple[PyTree, np.ndarray, np.ndarray]:
        """One step of every lane: observations [L, ...], rewards [L], ended [L]; only live lanes mean anything."""
        with self._errors("step"):
            results = [env.step(part) for env, part in zip(self._envs, self._split(actions), strict=True)]
        observation, reward, terminated, truncated = (self._join([r[i] for r in results]) for i in range(4))
        return observation, np.asarray(reward, np.float64), np.asarray(terminated | truncated)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            with errors_of(self._name, what, self._envs):
                yield
        except BaseException:  # Ctrl-C as well: nobody knows which lanes were stepped
            self.failed = True
            raise

    def close(self) -> None:
        """Closes the vector environments."""
        self._close()


class StreamLanes:
    """Lanes [L] of one environment, each of which begins a new episode when it is told to.

    Attributes:
      lanes: L.
      failed: whether an environment raised an error; then no more can be asked of these lanes.
    """

    def __init__(self, name: str, env: Any) -> None:
        self.lanes = int(env.num_envs)
        self.failed = False
        self._name = name
        self._env = env
        self._close = weakref.finalize(self, close, [env])

    def begin(self, which: np.ndarray, seeds: np.ndarray) -> PyTree:
        """Begins an episode in the lanes of `which` [L] bool with their seeds [L]; returns every lane's observation."""
        options = None if which.all() else {"reset_mask": which}
        given = [int(seed) if begins else None for seed, begins in zip(seeds, which, strict=True)]
        return self._ask("reset", lambda: self._env.reset(seed=given, options=options))[0]

    def step(self, actions: Any) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray]:
        """One step of every lane: observations [L, ...], rewards, terminated, truncated [L]."""
        observation, reward, terminated, truncated, _ = self._ask("step", lambda: self._env.step(actions))
        return observation, np.asarray(reward, np.float64), np.asarray(terminated), np.asarray(truncated)

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            with errors_of(self._name, what, [self._env]):
                return call()
        except BaseException:
            self.failed = True
            raise


def keep_two(make: Callable[[int, int, int], Any]) -> Callable[[int, int, int], Any]:
    """`make(pairs, signs, episodes)` that keeps the last two lanes it made: the population's and an evaluation's."""
    made: dict[tuple[int, int, int], Any] = {}

    def lanes(pairs: int, signs: int, episodes: int) -> Any:
        shape = (pairs, signs, episodes)
        if shape in made and made[shape].failed:
            made.pop(shape).close()
        if shape not in made:
            while len(made) >= 2:
                made.pop(next(iter(made))).close()
            made[shape] = make(*shape)
        return made[shape]

    return lanes


@contextlib.contextmanager
def errors_of(name: str, what: str, envs: list[Any]) -> Iterator[None]:
    """Says an error in one sentence."""
    try:
        with _unlogged(envs):
            yield
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(f"{name}: {what} of its lanes raised {type(error).__name__}: {error}") from error


def close(envs: list[Any]) -> None:
    """Closes vector environments, whatever state they are in."""
    kill = {"terminate": True} if isinstance(envs[0], gymnasium.vector.AsyncVectorEnv) else {}
    for env in envs:
        with contextlib.suppress(Exception), _unlogged(envs):
            env.close(**kill)


@contextlib.contextmanager
def _unlogged(envs: list[Any]) -> Iterator[None]:
    """Keeps off standard error what Gymnasium logs beside an exception when processes step the lanes."""
    level = gymnasium.logger.min_level
    if isinstance(envs[0], gymnasium.vector.AsyncVectorEnv):
        gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    try:
        yield
    finally:
        gymnasium.logger.min_level = level


def park(name: str, env: gymnasium.Env) -> Park:
    """The environment parked; in a process of its own it leaves Ctrl-C to the process that steps it."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Park(env, name)
