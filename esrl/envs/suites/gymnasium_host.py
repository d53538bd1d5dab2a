"""Gymnasium environments stepped by Python: registered ones, and the user's `gymnasium.Env` classes."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.envs.registration import load_env_creator

from esrl.core.runtime import cores
from esrl.core.types import EsrlError, notice_once, reason_of
from esrl.envs.base import MAX_EPISODE_STEPS, HostEnv, check_positive, max_episode_steps_of
from esrl.envs.faults import Faults
from esrl.envs.host_lanes import FewPool, Pool, Worlds, lanes_maker
from esrl.envs.processes import FORKED
from esrl.envs.suites._common import given, with_options
from esrl.envs.suites.gymnasium_lanes import SyncPool, VectorPool
from esrl.envs.suites.gymnasium_workers import WorkersPool
from esrl.policies.spaces import visible

MANY = 256  # lanes from which on "auto" takes a process for each core; fewer do not repay their start so soon
DEAR = 1e-3  # seconds of a step from which on fewer lanes repay it
# Processes at most of an environment that mostly waits (for a simulator, a network, a device): about 10 MiB each where
# they are forked, and many times that where each imports its packages.
WAITING = 64 if FORKED else 16
MODES = ("auto", "sync", "async", "vector", "workers")
MODES_OF_CLASSES = ("auto", "sync", "async", "workers")


def make(
    identifier: str,
    spec: Any,
    max_episode_steps: int | None = None,
    vectorization: str = "auto",
    workers: int | None = None,
    instances: int | None = None,
    **options: Any,
) -> HostEnv:
    """A registered Gymnasium environment, stepped on the host.

    Args:
      identifier: as Gymnasium registers it.
      spec: its `EnvSpec`.
      max_episode_steps: steps of an episode; the spec's own limit when left out.
      vectorization: "sync" (one process steps all lanes), "workers" (a few processes step a share of the lanes each),
        "async" (each lane has a process), "vector" (its vector entry point), or "auto": "vector" where there is one,
        else "workers" where a step takes a millisecond or there are 256 lanes, and it can be made there, else "sync".
      workers: processes of "workers"; as many as there are cores when left out.
      instances: environments that may exist at once (a licence, a port); more episodes than these are played one after
        another. As many as are wanted when left out.
      **options: arguments of `gymnasium.make`.

    Raises:
      EsrlError: unknown vectorization, or an environment that cannot be made (the reason is said).
    """
    vectorization = _checked_way(vectorization, workers)
    if vectorization == "vector" and spec.vector_entry_point is None:
        raise EsrlError(f"gymnasium/{identifier} has no vector entry point; use vectorization=sync or async")
    own = given(
        max_episode_steps=max_episode_steps,
        vectorization=None if vectorization == "auto" else vectorization,
        workers=workers,
        instances=instances,
    )
    name = with_options(f"gymnasium/{identifier}", own | options)
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    limited: dict[str, Any] = {**options, **limit}
    unchecked = {"disable_env_checker": True, **limited}  # esrl.check_env says it in one sentence
    alone = partial(gymnasium.make, spec, **unchecked)
    way = Way(vectorization, workers, instances)

    def true_vector(lanes: int) -> Any:
        # Its own limit may be below ours, so it is told; one that takes none is cut off by the lanes alone.
        own = limited if takes(spec.vector_entry_point, "max_episode_steps") else options
        with _silent():
            return gymnasium.make_vec(identifier, lanes, vectorization_mode="vector_entry_point", **own)

    def pool(shape: tuple[int, ...], together: bool) -> Pool:
        lanes = math.prod(shape)
        if (
            together
            and instances is None
            and vectorization in ("auto", "vector")
            and spec.vector_entry_point is not None
        ):
            try:
                return VectorPool(true_vector, shape)
            except Exception as error:  # such classes have many signatures
                if vectorization == "vector":
                    raise
                notice_once(
                    f"{name}: its vector entry point cannot be used ({reason_of(error)}); its lanes are stepped alone"
                )
        if vectorization == "vector":
            raise EsrlError(f"{name}: lanes that go on after an episode's end need vectorization=sync or async")
        return way.pool(name, alone, lanes)

    def one(**kwargs: Any) -> gymnasium.Env:
        taken = {k: v for k, v in kwargs.items() if k in spec.kwargs or takes(spec.entry_point, k)}
        return gymnasium.make(identifier, **unchecked, **taken)

    in_one_call = instances is None and vectorization in ("auto", "vector") and spec.vector_entry_point is not None
    return _host_env(name, one, pool, max_episode_steps, way, (lambda lanes: "") if in_one_call else way.text)


def from_class(
    cls: Callable[..., gymnasium.Env],
    name: str,
    max_episode_steps: int | None = None,
    vectorization: str = "auto",
    workers: int | None = None,
    instances: int | None = None,
    **options: Any,
) -> HostEnv:
    """A `gymnasium.Env` class, stepped on the host.

    Args:
      cls: makes an environment.
      name: what errors call it.
      max_episode_steps: steps of an episode; when left out what the object, its class or its spec says, or 1000.
      vectorization, workers, instances: as in `make`, without "vector".
      **options: arguments of the class.
    """

    way = Way(_checked_way(vectorization, workers, MODES_OF_CLASSES), workers, instances)

    one = partial(_instance, cls, options)  # no function inside of this one: other processes import it by its name

    def pool(shape: tuple[int, ...], together: bool) -> Pool:
        return way.pool(name, one, math.prod(shape))

    return _host_env(name, one, pool, max_episode_steps, way, way.text)


def _instance(cls: Callable[..., gymnasium.Env], options: dict[str, Any], **kwargs: Any) -> gymnasium.Env:
    return cls(**options, **{k: v for k, v in kwargs.items() if takes(cls, k)})


def _checked_way(vectorization: str, workers: int | None, modes: tuple[str, ...] = MODES) -> str:
    """The vectorization that is meant: workers alone mean "workers"."""
    if vectorization not in modes:
        raise EsrlError(f"vectorization is {vectorization!r}, but must be one of {', '.join(modes)}")
    if workers is None:
        return vectorization
    if not isinstance(workers, int) or workers < 1 or vectorization not in ("auto", "workers"):
        raise EsrlError(f"workers is {workers!r}, but must be a whole number of at least 1, with vectorization=workers")
    return "workers"


class Way:
    """In how many processes the lanes of an environment are stepped.

    Args:
      vectorization: "sync", "async", "workers", or what is left: as the cost of a step has it.
      workers: processes of "workers"; one for each core when left out.
      instances: environments that may exist at once, or None.
    """

    def __init__(self, vectorization: str, workers: int | None, instances: int | None = None) -> None:
        self._vectorization, self._workers, self.instances = vectorization, workers, instances
        self._cost = 0.0, 1.0
        self._few: Worlds | None = None

    def measure(self, pool: SyncPool) -> None:
        """Measures the cost of a step in a pool of one lane, where the way depends on it."""
        if self._vectorization == "auto":
            self._cost = _cost(pool)

    def pool(self, name: str, make_one: Callable[[], gymnasium.Env], lanes: int) -> Pool:
        """The pool of some lanes.

        Raises:
          EsrlError: the environment cannot be made, or not in other processes, where these were asked for.
        """
        if self.instances is not None:
            if self._few is None:  # one for all sets of lanes, so that no more worlds exist than are allowed
                self._few = Worlds(partial(self._pool, name, make_one, self.instances), self.instances)
            return FewPool(self._few, lanes)
        return self._pool(name, make_one, lanes)

    def text(self, lanes: int) -> str:
        """How so many lanes are stepped, and what a step takes where that was measured.

        Example:
          >>> Way("workers", 4).text(64)
          '64 lanes in 4 processes'
        """
        side_by_side = min(lanes, self.instances or lanes)
        number = self._processes(side_by_side)
        rounds = f", {side_by_side} at a time" if side_by_side < lanes else ""
        cost = f", {_milliseconds(self._cost[0])} a step" if self._cost[0] else ""
        return f"{lanes:,} lanes in {'one process' if number == 1 else f'{number} processes'}{rounds}{cost}"

    def _pool(self, name: str, make_one: Callable[[], gymnasium.Env], lanes: int) -> Pool:
        share = partial(_sync_pool, name, make_one)
        number = self._processes(lanes)
        if self._vectorization in ("async", "workers"):
            return WorkersPool(name, share, lanes, number)
        if number > 1:
            try:
                return WorkersPool(name, share, lanes, number)  # not silent: the processes inherit that
            except EsrlError as error:  # what cannot be sent to other processes is stepped in this one
                notice_once(f"{error}; so its {lanes} lanes are stepped in this process")
        return share(lanes)

    def _processes(self, lanes: int) -> int:
        """How many processes step so many lanes: as many as was said, or as repay their start."""
        if self._vectorization in ("async", "workers"):
            return min(lanes, lanes if self._vectorization == "async" else self._workers or cores())
        seconds, busy = self._cost
        if self._vectorization == "sync" or lanes < 2 or (seconds < DEAR and lanes < MANY):
            return 1
        return min(lanes, WAITING if seconds >= DEAR and busy < 0.5 else cores())


def _milliseconds(seconds: float) -> str:
    """A time in milliseconds, to two digits where it is short."""
    return f"{1000 * seconds:.1f} ms" if seconds >= DEAR else f"{1000 * seconds:.2g} ms"


def _cost(pool: SyncPool) -> tuple[float, float]:
    """Median seconds of a step of random actions, and the part of a step in which this thread had work to do.

    Whatever is wrong with the environment is said where it is played.
    """
    walls: list[float] = []
    works: list[float] = []
    one = np.arange(1)
    with contextlib.suppress(Exception), _silent():
        pool.begin(one, np.zeros(1, np.uint32))
        begun = time.perf_counter()
        while len(walls) < 50 and time.perf_counter() - begun < 0.3:
            action = jax.tree.map(lambda x: np.asarray(x)[None], pool.action_space.sample())
            wall, work = time.perf_counter(), time.thread_time()
            _, _, terminated, truncated = pool.step(one, action)
            if pool.faults:
                break
            works.append(time.thread_time() - work)
            walls.append(time.perf_counter() - wall)
            if terminated[0] or truncated[0]:
                pool.begin(one, np.zeros(1, np.uint32))
    if not walls:
        return 0.0, 1.0
    # On a busy machine other programs' turns look like waiting, so the step with the least of it says how it is.
    return statistics.median(walls), max(work / max(wall, 1e-9) for work, wall in zip(works, walls, strict=True))


def takes(entry_point: Any, argument: str) -> bool:
    """Whether an entry point, or what its text names, takes a keyword; one without a signature takes none."""
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    try:
        parameters = inspect.signature(creator).parameters
    except (TypeError, ValueError):
        return False
    named = argument in parameters and parameters[argument].kind is not inspect.Parameter.POSITIONAL_ONLY
    return named or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _limit(name: str, one: gymnasium.Env) -> int:
    """Steps after which an episode is cut off where the user does not say: what the object says, its spec, or 1000."""
    spec = getattr(one.spec, "max_episode_steps", None)  # None also where an environment never ends; lanes need one
    for holder in (one,) if spec else (one, one.unwrapped):
        if hasattr(holder, "max_episode_steps") or hasattr(holder, "horizon"):
            return max_episode_steps_of(holder, name)
    return int(spec or MAX_EPISODE_STEPS)


def _own_limit(one: gymnasium.Env) -> float:
    """Steps after which a TimeLimit that the environment was made with cuts its episodes off."""
    least = math.inf
    while isinstance(one, gymnasium.Wrapper):
        if isinstance(one, gymnasium.wrappers.TimeLimit):
            least = min(least, one._max_episode_steps)
        one = one.env
    return least


def _host_env(
    name: str,
    make_one: Callable[..., gymnasium.Env],
    make_pool: Callable[[tuple[int, ...], bool], Pool],
    max_episode_steps: int | None,
    way: Way,
    how: Callable[[int], str],
) -> HostEnv:
    for what, number in (("max_episode_steps", max_episode_steps), ("instances", way.instances)):
        if number is not None:
            check_positive(f"{name}: {what}", number)

    def single(**kwargs: Any) -> gymnasium.Env:
        with _silent():
            return make_one(**kwargs)

    try:
        one = single()
    except EsrlError:
        raise
    except (Exception, SystemExit) as error:
        needed = isinstance(error, gymnasium.error.DependencyNotInstalled)
        hint = "; install it with: pip install 'esrl[gymnasium]'" if needed else ""
        raise EsrlError(f"{name} cannot be made: {reason_of(error)}{hint}") from error
    limit = max_episode_steps or _limit(name, one)
    if (own := _own_limit(one)) < limit:
        notice_once(f"{name}: it ends its episodes after {own} steps by itself, before max_episode_steps={limit}")
    for space in ("observation_space", "action_space"):
        if not isinstance(getattr(one, space, None), gymnasium.spaces.Space):
            one.close()
            raise EsrlError(f"{name}: {space} is missing; set it to a gymnasium.spaces space")
    seen, hidden = visible(one.observation_space)
    for path, kind in hidden.items():
        notice_once(f"{name}: {path} is a {kind}, which no network here reads; the policy does not see it")

    with contextlib.closing(SyncPool(name, lambda: one, 1)) as pool:  # which closes it
        way.measure(pool)

    def limited(**kwargs: Any) -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(single(**kwargs), limit)

    faults = Faults()
    make_lanes = lanes_maker(name, make_pool, limit, faults)
    return HostEnv(
        name,
        seen,
        one.action_space,
        limit,
        make_lanes,
        limited,
        faults=faults,
        instances=way.instances,
        how=how,
    )


def _sync_pool(name: str, make_one: Callable[[], gymnasium.Env], lanes: int) -> SyncPool:
    """The pool of this process, or of a share in a process of its own."""
    with _silent():
        return SyncPool(name, make_one, lanes)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silences what MuJoCo prints from C for every instance (a line or two for each HalfCheetah).

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
