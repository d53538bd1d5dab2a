"""Gymnasium environments stepped by Python, all lanes of the population in one vector call."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from esrl.adapters._names import with_options
from esrl.env import HORIZON, HostEnv
from esrl.types import EsrlError, PyTree

MODES = ("auto", "sync", "async", "vector")


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
        self._close = weakref.finalize(self, _close, self._envs)

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
        """Says an error in one sentence."""
        try:
            with _unlogged(self._envs):
                yield
        except Exception as error:
            self.failed = True
            if isinstance(error, EsrlError):
                raise
            raise EsrlError(f"{self._name}: {what} of its lanes raised {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Closes the vector environments."""
        self._close()


def _close(envs: list[Any]) -> None:
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


def _park(name: str, env: gymnasium.Env) -> Park:
    """The environment parked; in a process of its own it leaves Ctrl-C to the process that steps it."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Park(env, name)


def host(
    name: str,
    make_one: Callable[..., gymnasium.Env],
    make_vec: Callable[[int], Any],
    horizon: int | None,
    true_vector: bool,
) -> HostEnv:
    """A host environment from functions that make one, and that make a vector of n lanes."""
    if horizon is not None and horizon < 1:
        raise EsrlError(f"{name}: horizon is {horizon}, but must be at least 1")
    try:
        with _quiet():
            one = make_one()
            one.close()
    except EsrlError:
        raise
    except Exception as error:
        hint = (
            "; install it with: pip install 'esrl[gymnasium]'"
            if isinstance(error, gymnasium.error.DependencyNotInstalled)
            else ""
        )
        raise EsrlError(f"{name} cannot be made: {type(error).__name__}: {_first_line(error)}{hint}") from error
    limit = horizon or getattr(one.spec, "max_episode_steps", None) or HORIZON
    made: dict[tuple[int, ...], VectorLanes] = {}

    def lanes(pairs: int, signs: int, episodes: int) -> VectorLanes:
        shape = (pairs, signs, episodes)
        if shape in made and made[shape].failed:
            made.pop(shape).close()
        if shape not in made:
            while len(made) >= 2:  # the population's and an evaluation's
                made.pop(next(iter(made))).close()
            with _quiet():
                made[shape] = VectorLanes(name, make_vec, shape, true_vector)
        return made[shape]

    return HostEnv(name, one.observation_space, one.action_space, int(limit), lanes, make_one)


def make(
    identifier: str, spec: Any, horizon: int | None = None, vectorization: str = "auto", **options: Any
) -> HostEnv:
    """A registered Gymnasium environment, stepped on the host.

    Args:
      identifier: as Gymnasium registers it.
      spec: its `EnvSpec`.
      horizon: steps of an episode; the spec's own limit when left out.
      vectorization: "auto" (its vector entry point where it has one, else "sync"), "sync", "async" or "vector".
      **options: arguments of `gymnasium.make`.

    Raises:
      EsrlError: unknown vectorization, or an environment that cannot be made (the reason is said).
    """
    if vectorization not in MODES:
        raise EsrlError(f"vectorization is {vectorization!r}, but must be one of {', '.join(MODES)}")
    if vectorization == "vector" and spec.vector_entry_point is None:
        raise EsrlError(f"gymnasium/{identifier} has no vector entry point; use vectorization=sync or async")
    true_vector = vectorization == "vector" or (vectorization == "auto" and spec.vector_entry_point is not None)
    mode = "vector_entry_point" if true_vector else "async" if vectorization == "async" else "sync"
    given = {"horizon": horizon, "vectorization": None if vectorization == "auto" else vectorization, **options}
    name = with_options(f"gymnasium/{identifier}", given)
    limited: dict[str, Any] = {**options, **({} if horizon is None else {"max_episode_steps": horizon})}
    unchecked = {"disable_env_checker": True, **limited}  # esrl.check_env says it in one sentence

    def vector(lanes: int) -> Any:
        if true_vector:
            return gymnasium.make_vec(identifier, lanes, vectorization_mode=mode, **limited)
        extra: dict[str, Any] = {"wrappers": (partial(_park, name),)}
        if mode == "async":
            multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # else each lane imports it
            extra["vector_kwargs"] = {"context": "forkserver"}  # JAX has threads, so a plain fork may hang
        return gymnasium.make_vec(identifier, lanes, vectorization_mode=mode, **extra, **unchecked)

    def one(**kwargs: Any) -> gymnasium.Env:
        return gymnasium.make(identifier, **{**unchecked, **kwargs})

    return host(name, one, vector, horizon, true_vector)


def from_class(cls: Callable[..., gymnasium.Env], name: str, horizon: int | None = None, **options: Any) -> HostEnv:
    """A stateful `gymnasium.Env` class, stepped on the host."""

    limit: int = getattr(cls, "horizon", HORIZON) if horizon is None else horizon

    def one(**kwargs: Any) -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(cls(**options, **kwargs), limit)

    def vector(lanes: int) -> Any:
        return gymnasium.vector.SyncVectorEnv([lambda: Park(one(), name)] * lanes)

    return host(name, one, vector, limit, False)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps off standard output what MuJoCo prints from C for every instance (one line for each HalfCheetah)."""
    try:
        saved = os.dup(1)
    except OSError:
        yield
        return
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
