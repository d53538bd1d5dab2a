"""Gymnasium environments stepped by Python, all lanes of the population in one vector call."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from esrl.core.runtime import cores
from esrl.core.types import EsrlError
from esrl.envs.base import MAX_EPISODE_STEPS, HostEnv
from esrl.envs.suites import gymnasium_lanes
from esrl.envs.suites._names import with_options
from esrl.envs.suites._suite import check_horizon
from esrl.envs.suites.gymnasium_lanes import Park, StreamLanes, VectorLanes, keep_two, park
from esrl.envs.suites.gymnasium_workers import WorkersVectorEnv

MANY = 256  # lanes from which on "auto" takes a process for each core; fewer do not repay their start so soon
MODES = ("auto", "sync", "async", "vector", "workers")


def host(
    name: str,
    make_one: Callable[..., gymnasium.Env],
    make_vec: Callable[..., Any],
    horizon: int | None,
    true_vector: bool,
) -> HostEnv:
    """A host environment from functions that make one, and that make a vector of n lanes.

    `make_vec(n, by_hand)` makes lanes that are reset one by one, when they are told to, if `by_hand` is true.
    """
    check_horizon(name, horizon)
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
    limit = horizon or getattr(one.spec, "max_episode_steps", None) or MAX_EPISODE_STEPS

    def lanes(pairs: int, signs: int, episodes: int) -> VectorLanes:
        return VectorLanes(name, partial(make_vec, by_hand=False), (pairs, signs, episodes), true_vector)

    def stream(number: int) -> StreamLanes:
        return StreamLanes(name, make_vec(number, by_hand=True))

    def single(**kwargs: Any) -> gymnasium.Env:
        with _quiet():
            return make_one(**kwargs)

    return HostEnv(name, one.observation_space, one.action_space, int(limit), keep_two(lanes), stream, single)


def make(
    identifier: str,
    spec: Any,
    horizon: int | None = None,
    vectorization: str = "auto",
    workers: int | None = None,
    **options: Any,
) -> HostEnv:
    """A registered Gymnasium environment, stepped on the host.

    Args:
      identifier: as Gymnasium registers it.
      spec: its `EnvSpec`.
      horizon: steps of an episode; the spec's own limit when left out.
      vectorization: "sync" (one process steps all lanes), "workers" (a few processes step a share of the lanes each),
        "async" (each lane has a process), "vector" (its vector entry point), or "auto": "vector" where there is one,
        else "workers" from 256 lanes on where there are cores and it can be made there, else "sync".
      workers: processes of "workers"; as many as there are cores when left out.
      **options: arguments of `gymnasium.make`.

    Raises:
      EsrlError: unknown vectorization, or an environment that cannot be made (the reason is said).
    """
    if vectorization not in MODES:
        raise EsrlError(f"vectorization is {vectorization!r}, but must be one of {', '.join(MODES)}")
    if vectorization == "vector" and spec.vector_entry_point is None:
        raise EsrlError(f"gymnasium/{identifier} has no vector entry point; use vectorization=sync or async")
    if workers is not None and (vectorization != "workers" or not isinstance(workers, int) or workers < 1):
        raise EsrlError(f"workers is {workers!r}, but must be a whole number of at least 1, with vectorization=workers")
    true_vector = vectorization == "vector" or (vectorization == "auto" and spec.vector_entry_point is not None)
    given = {"horizon": horizon, "vectorization": None if vectorization == "auto" else vectorization}
    given = {**given, "workers": workers, **options}
    name = with_options(f"gymnasium/{identifier}", given)
    limited: dict[str, Any] = {**options, **({} if horizon is None else {"max_episode_steps": horizon})}
    unchecked = {"disable_env_checker": True, **limited}  # esrl.check_env says it in one sentence

    def vector(lanes: int, by_hand: bool) -> Any:
        if true_vector and not by_hand:
            with _quiet():
                return gymnasium.make_vec(identifier, lanes, vectorization_mode="vector_entry_point", **limited)
        if by_hand and vectorization == "vector":
            raise EsrlError(f"{name}: lanes that go on after an episode's end need vectorization=sync or async")
        kwargs: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED} if by_hand else {}
        if vectorization == "workers" or (vectorization == "auto" and lanes >= MANY and cores() > 1):
            share = partial(_share, name, spec, unchecked, kwargs)
            with contextlib.suppress(*(() if vectorization == "workers" else (EsrlError,))):
                return WorkersVectorEnv(name, share, lanes, workers or cores())  # not quiet: the processes inherit that
        if vectorization == "async":
            preload = multiprocessing.get_context("forkserver").set_forkserver_preload
            preload([gymnasium_lanes.__name__])  # else each lane imports it
            kwargs["context"] = "forkserver"  # JAX has threads, so a plain fork may hang
            return _lanes(name, identifier, lanes, "async", unchecked, kwargs)
        return _lanes(name, identifier, lanes, "sync", unchecked, kwargs)

    def one(**kwargs: Any) -> gymnasium.Env:
        return gymnasium.make(identifier, **{**unchecked, **kwargs})

    return host(name, one, vector, horizon, true_vector)


def _lanes(name: str, of: Any, lanes: int, mode: str, options: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Gymnasium's own vector environment of parked lanes, of an identifier or of a spec."""
    extra: dict[str, Any] = {"wrappers": (partial(park, name),), "vector_kwargs": kwargs}
    with _quiet():
        return gymnasium.make_vec(of, lanes, vectorization_mode=mode, **extra, **options)


def _share(name: str, spec: Any, options: dict[str, Any], kwargs: dict[str, Any], lanes: int) -> Any:
    """The lanes of one process."""
    return _lanes(name, spec, lanes, "sync", options, kwargs)


def from_class(cls: Callable[..., gymnasium.Env], name: str, horizon: int | None = None, **options: Any) -> HostEnv:
    """A stateful `gymnasium.Env` class, stepped on the host."""

    limit: int = getattr(cls, "horizon", MAX_EPISODE_STEPS) if horizon is None else horizon

    def one(**kwargs: Any) -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(cls(**options, **kwargs), limit)

    def vector(lanes: int, by_hand: bool) -> Any:
        reset = AutoresetMode.DISABLED if by_hand else AutoresetMode.NEXT_STEP
        with _quiet():
            return gymnasium.vector.SyncVectorEnv([lambda: Park(one(), name)] * lanes, autoreset_mode=reset)

    return host(name, one, vector, limit, False)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps off the terminal what MuJoCo prints from C for every instance (a line or two for each HalfCheetah).

    What Python writes to standard error, its warnings, still comes through.
    """
    try:
        saved = [os.dup(1), os.dup(2)]
    except OSError:
        yield
        return
    sys.stdout.flush()
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    try:
        with open(os.dup(saved[1]), "w") as errors, contextlib.redirect_stderr(errors):
            yield
    finally:
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
