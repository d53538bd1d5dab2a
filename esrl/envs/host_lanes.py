"""Lanes of environments that Python steps: one protocol, whichever package steps the worlds.

A `Pool` is what a package brings: worlds, of which those with the numbers `ids` are begun or stepped. `HostLanes` adds
what all packages need: the last observation of each lane, the time limit, errors as one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from esrl.core.types import EsrlError, PyTree, reason_of
from esrl.envs.faults import Faults, Hang

Outcome = tuple[PyTree, np.ndarray, np.ndarray, np.ndarray]  # observations, rewards, terminated, truncated

KEPT = 2  # sets of lanes that an environment keeps: the population's, and an evaluation's


@runtime_checkable
class Pool(Protocol):
    """Worlds of L lanes. What is returned has new arrays with K rows, one for each lane of `ids` [K], in their order.

    `ids` ascend. `seeds` and `actions` have a row for every lane. A pool whose environments may fail one by one has
    `drain() -> list[Fault]` as well, and a number `seconds` that a call of an environment may take.
    """

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        """Begins an episode in the lanes `ids` with their seeds [L] (uint32); returns observations [K, ...]."""

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        """Steps the lanes `ids` by actions [L, ...]: observations [K, ...], rewards, terminated, truncated [K]."""

    def close(self) -> None:
        """Ends processes and threads, and frees what the worlds hold."""


class Worlds:
    """At most K worlds, which several sets of lanes share; made when they are first asked for, and again once closed.

    Attributes:
      most: K. holder: the set of lanes that began the last episodes.
    """

    def __init__(self, make: Callable[[], Any], most: int) -> None:
        self.most, self._make = most, make
        self.holder: Any = None
        self._pool: Any = None

    @property
    def pool(self) -> Any:
        """The pool of them."""
        if self._pool is None:
            self._pool = self._make()
        return self._pool

    def close(self) -> None:
        """Ends what there is."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None


class FewPool:
    """L lanes of which at most K are played at a time, by the K worlds of another pool.

    A lane is given a world when its episode begins, so those that begin together share no world. Where all lanes have
    one (L at most K), each keeps its own.
    """

    def __init__(self, worlds: Worlds, lanes: int) -> None:
        self._worlds = worlds
        self._world = np.arange(lanes) % worlds.most  # of each lane
        self.seconds: float = worlds.pool.seconds

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        self._worlds.holder = self
        if len(self._world) > self._worlds.most:
            self._world[ids] = np.arange(len(ids))
        return self._asked().begin(self._world[ids], self._by_world(ids, seeds))

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        return self._asked().step(self._world[ids], jax.tree.map(lambda x: self._by_world(ids, x), actions))

    @property
    def taken(self) -> bool:
        """Whether another set of lanes has begun episodes in the worlds since this one did."""
        return self._worlds.holder is not self

    def drain(self) -> list[Any]:
        """What failed since the last call."""
        return self._worlds.pool.drain()

    def close(self) -> None:
        """Ends the worlds; other sets of lanes make them again when they are stepped."""
        self._worlds.close()

    def _asked(self) -> Any:
        pool = self._worlds.pool
        pool.seconds = self.seconds
        return pool

    def _by_world(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows of all lanes [L, ...] as rows of the worlds [K, ...]."""
        found = np.zeros((self._worlds.most, *rows.shape[1:]), rows.dtype)
        found[self._world[ids]] = rows[ids]
        return found


class HostLanes:
    """Lanes [L] of one environment; each plays an episode from `begin` until it ends.

    Attributes:
      failed: whether a call was broken off; then no more can be asked of these lanes.
    """

    def __init__(self, name: str, pool: Pool, lanes: int, max_episode_steps: int, faults: Faults | None = None) -> None:
        self.failed = False
        self._faults = Faults() if faults is None else faults
        self._drain = getattr(pool, "drain", list)
        self._name, self._pool, self._limit = name, pool, max_episode_steps
        self._observations: PyTree = None
        self._steps = np.zeros(lanes, np.int64)

    @property
    def taken(self) -> bool:
        """Whether the worlds have begun other episodes since, where sets of lanes share them."""
        return getattr(self._pool, "taken", False)

    def begin(self, which: np.ndarray, seeds: np.ndarray) -> PyTree:
        """Begins an episode in the lanes of `which` [L] bool with their seeds [L]; returns every lane's observation."""
        ids = np.flatnonzero(which)
        begun = self._ask("reset", lambda: self._pool.begin(ids, np.asarray(seeds)))
        self._faults.begun += ids.size
        self._steps[ids] = 0
        return self._merge(ids, begun)

    def step(self, actions: PyTree, live: np.ndarray) -> Outcome:
        """One step of the lanes of `live` [L] bool: observations [L, ...], rewards, terminated, truncated [L].

        The others stand still: their observation is their last, their reward 0, and they end no more.
        """
        ids, lanes = np.flatnonzero(live), len(self._steps)
        self._faults.lanes = max(self._faults.lanes, lanes)
        reward, terminated, truncated = np.zeros(lanes), np.zeros(lanes, bool), np.zeros(lanes, bool)
        if ids.size:
            out = self._ask("step", lambda: self._pool.step(ids, actions))
            after, reward[ids], terminated[ids], truncated[ids] = out
            self._merge(ids, after)
            self._steps[ids] += 1
            # An episode that ends by itself on the last step that it is allowed has terminated, and was not cut off.
            truncated = (truncated | (live & (self._steps >= self._limit))) & ~terminated
        return self._observations, reward, terminated, truncated

    def close(self) -> None:
        """Closes the worlds."""
        self._pool.close()

    def _merge(self, ids: np.ndarray, rows: PyTree) -> PyTree:
        def one(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            merged = old.copy()  # JAX may still be reading the old array
            merged[ids] = new
            return merged

        whole = len(ids) == len(self._steps)
        if self._observations is None and not whole:  # the first of several rounds
            lanes = len(self._steps)
            self._observations = jax.tree.map(lambda x: np.zeros((lanes, *x.shape[1:]), x.dtype), rows)
        self._observations = rows if whole else jax.tree.map(one, self._observations, rows)
        return self._observations

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            if hasattr(self._pool, "seconds"):
                self._pool.seconds = self._faults.seconds
            answer = call()
            self._faults.add(self._drain())
            return answer
        except BaseException as error:  # Ctrl-C as well: nobody knows which lanes were stepped
            self.failed = True
            if isinstance(error, (Hang, SystemExit)):  # raised behind a call, or where lanes cannot fail one by one
                why = "took too long" if isinstance(error, Hang) else f"called exit ({error})"
                raise EsrlError(f"{self._name}: {what} of its lanes {why}") from error
            if not isinstance(error, Exception) or (isinstance(error, EsrlError) and str(error).startswith(self._name)):
                raise
            if isinstance(error, EsrlError):
                raise EsrlError(f"{self._name}: {error}") from error
            raise EsrlError(f"{self._name}: {what} of its lanes raised {reason_of(error)}") from error


def lanes_maker(
    name: str, make_pool: Callable[[tuple[int, ...], bool], Pool], max_episode_steps: int, faults: Faults | None = None
) -> Callable[..., HostLanes]:
    """`make_lanes(shape, together=False)` of a `HostEnv`, from `make_pool(shape, together)`.

    `shape` is (L,), or (P, S, E) of the pairs, signs and episodes of a population; lanes are flat either way.
    `together` lanes always begin all at once. They are made once for each shape, and the last two sets of them are
    kept; a set that failed is replaced. All of them count their `faults` together.
    """
    kept: dict[tuple[int, ...], HostLanes] = {}

    def make_lanes(shape: tuple[int, ...], together: bool = False) -> HostLanes:
        if shape in kept and kept[shape].failed:
            kept.pop(shape).close()
        if together and shape in kept:
            return kept[shape]
        while together and len(kept) >= KEPT:
            kept.pop(next(iter(kept))).close()  # before others are made, so that no more than two are there at a time
        try:
            pool = make_pool(shape, together)
        except EsrlError:
            raise
        except Exception as error:
            raise EsrlError(f"{name}: its lanes cannot be made: {reason_of(error)}") from error
        lanes = HostLanes(name, pool, math.prod(shape), max_episode_steps, faults)
        if together:
            kept[shape] = lanes
        return lanes

    return make_lanes
