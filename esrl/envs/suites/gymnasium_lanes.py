"""Pools of Gymnasium environments in this process: one environment for each lane, or true vector environments."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array

from esrl.core.types import EsrlError, PyTree, reason_of
from esrl.envs.faults import WATCH, Fault, Hang, fault_of, hung, is_users, trial_limit
from esrl.envs.host_lanes import Outcome
from esrl.policies.spaces import outside, rows_of, seen, visible


class SyncPool:
    """Environments of one lane each, stepped one after the other.

    Each lane is seeded by itself, so the signs of a pair share their world by equal seeds. A lane whose environment
    raises, exits or hangs gets a reward of NaN and the end of its episode, and a new environment before its next one.

    Attributes:
      action_space: of a lane. faults: what failed and was not drained yet.
      seconds: that a call of an environment may take.
    """

    def __init__(self, name: str, make: Callable[[], gymnasium.Env], lanes: int) -> None:
        self.faults: list[Fault] = []
        self.seconds = trial_limit()
        self._name, self._make = name, make
        self._envs: list[gymnasium.Env] = []
        self._close = weakref.finalize(self, _close_all, self._envs)
        for lane in range(lanes):
            try:
                self._envs.append(make())
            except EsrlError:
                raise
            except Exception as error:
                if not lane:
                    raise
                raise EsrlError(
                    f"{name}: {lane} of {lanes} environments could be made, the next could not ({reason_of(error)});"
                    f" where no more may exist at once, give instances={lane}"
                ) from error
        self._space = visible(self._envs[0].observation_space)[0]
        self.action_space = self._envs[0].action_space
        self._steps = [0] * lanes
        self._failed: dict[int, Any] = {}  # the last observation of lanes whose episode failed

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        return self._batch([self._begin(lane, int(seeds[lane])) for lane in ids.tolist()])

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        lanes = ids.tolist()
        taken = rows_of(self.action_space, actions, lanes)
        rows = [self._step(lane, action) for lane, action in zip(lanes, taken, strict=True)]
        observations, rewards, terminated, truncated = zip(*rows, strict=True)
        return self._batch(observations), np.array(rewards), np.array(terminated), np.array(truncated)

    def skip(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        """Begins no episode in the lanes `ids`, whose environments cannot be asked: they fail in their first step."""
        self._failed |= {lane: self._blank() for lane in ids.tolist()}
        return self._batch([self._failed[lane] for lane in ids.tolist()])

    def close(self) -> None:
        self._close()

    def drain(self) -> list[Fault]:
        """What failed since the last call."""
        found, self.faults = self.faults, []
        return found

    def _begin(self, lane: int, seed: int) -> Any:
        self._steps[lane] = 0
        if lane in self._failed and not self._made_anew(lane):
            return self._failed[lane]
        try:
            WATCH.start(self.seconds, self._name)
            out = self._envs[lane].reset(seed=seed)
        except BaseException as error:
            WATCH.stop()
            return self._fail(lane, "reset", error, self._blank())
        finally:
            WATCH.stop()
        return observation_of(self._name, out)

    def _made_anew(self, lane: int) -> bool:
        """Puts a new environment in the place of a failed one. Where that fails as well, the next episode does."""
        try:
            WATCH.start(self.seconds, self._name)
            with contextlib.suppress(Exception):  # an environment that failed may fail again
                self._envs[lane].close()
            self._envs[lane] = self._make()
            self._failed.pop(lane)
        except BaseException as error:
            WATCH.stop()
            self._fail(lane, "making it anew", error, self._failed[lane])
        finally:
            WATCH.stop()
        return lane not in self._failed

    def _step(self, lane: int, action: Any) -> tuple[Any, float, bool, bool]:
        if lane in self._failed:
            return self._failed[lane], math.nan, True, False
        self._steps[lane] += 1
        try:
            WATCH.start(self.seconds, self._name)
            out = self._envs[lane].step(action)
        except BaseException as error:
            WATCH.stop()
            called = f"step {self._steps[lane]} of an episode"
            return self._fail(lane, called, error, self._blank()), math.nan, True, False
        finally:
            WATCH.stop()
        try:  # the usual case, at every step of every lane
            observation, reward, terminated, truncated, _ = out
            return observation, float(reward), bool(terminated), bool(truncated)
        except (TypeError, ValueError):
            return outcome_of(self._name, out, f"step {self._steps[lane]} of an episode")

    def _fail(self, lane: int, called: str, error: BaseException, observation: Any) -> Any:
        """Notes a lane's failure; returns the observation that stands for those it does not give."""
        if is_users(error):
            raise error
        called = f"{self._name}: {called}"
        self.faults.append(hung(called, self.seconds) if isinstance(error, Hang) else fault_of(called, error))
        self._failed[lane] = observation
        return observation

    def blank(self) -> PyTree:
        """An observation [1, ...] of zeros, which stands for one that was never given."""
        made: Any = create_empty_array(self._space, 1, fn=np.zeros)
        return made

    def _blank(self) -> Any:
        return jax.tree.map(lambda x: x[0], self.blank())

    def _batch(self, observations: Any) -> PyTree:
        """Observations as arrays [K, ...] of their space's types, whatever the environment gave."""
        arrays: Any = create_empty_array(self._space, len(observations))
        try:
            return concatenate(self._space, observations, arrays)
        except Exception as error:
            for observation in observations:
                problem = outside(self._space, seen(self._space, observation))
                if problem:
                    raise EsrlError(f"{self._name}: an observation {problem}") from error
            raise


_FIVE = "(observation, reward, terminated, truncated, info)"


def observation_of(name: str, out: Any) -> Any:
    """The observation in what `reset` returned.

    Raises:
      EsrlError: it is not `(observation, info)`.
    """
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], (dict, type(None))):
        return out[0]
    raise EsrlError(f"{name}: reset returns {_many(out)}, but must return (observation, info), info a dict")


def outcome_of(name: str, out: Any, called: str) -> tuple[Any, float, bool, bool]:
    """Observation, reward, terminated and truncated in what `step` returned; arrays of one entry are numbers.

    Raises:
      EsrlError: it is not `(observation, reward, terminated, truncated, info)`, or one of them is of another kind.
    """
    if not isinstance(out, tuple) or len(out) != 5:
        old = "; truncated is new since Gymnasium 0.26" if isinstance(out, tuple) and len(out) == 4 else ""
        raise EsrlError(f"{name}: {called} returns {_many(out)}, but must return {_FIVE}{old}")
    plain = []
    for what, value in zip(("reward", "terminated", "truncated"), out[1:4], strict=True):
        kind = float if what == "reward" else bool
        try:
            if isinstance(value, str):  # bool("no") is True
                raise TypeError
            plain.append(kind(np.asarray(value).item()))
        except (TypeError, ValueError) as error:
            said = f"an array {list(np.shape(value))}" if np.shape(value) else repr(value)
            raise EsrlError(f"{name}: {called} returns {said} as {what}, but it must be one {kind.__name__}") from error
    return (out[0], *plain)


def _many(out: Any) -> str:
    return f"{len(out)} values" if isinstance(out, tuple) else f"a {type(out).__name__}"


class VectorPool:
    """True vector environments: one for each sign of a pair, of lanes [P, S, E] that all begin together.

    Such an environment has one generator of random numbers for all its lanes, so a lane cannot be seeded by itself.
    The signs of a pair see the same worlds because each sign's environment gets the same seed. Lanes that are done are
    stepped on with the others: there is no way to leave them out.
    """

    def __init__(self, make: Callable[[int], Any], shape: tuple[int, ...]) -> None:
        self._pairs, signs, self._episodes = shape
        self._envs: list[Any] = []
        self._close = weakref.finalize(self, _close_all, self._envs)  # also of those made before one that fails
        for _ in range(signs):
            self._envs.append(make(self._pairs * self._episodes))

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        # One seed decides all lanes of an environment: its first lane's, which is the same for each sign.
        parts = zip(self._envs, self._by_sign(seeds), strict=True)
        begun = (observation_of("a vector of lanes", env.reset(seed=int(part[0]))) for env, part in parts)
        return self._lanes([self._seen(env, x) for env, x in zip(self._envs, begun, strict=True)])

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        by_sign = jax.tree.map(self._by_sign, actions)
        stepped = []
        for i, env in enumerate(self._envs):
            out = env.step(jax.tree.map(lambda x, i=i: x[i], by_sign))
            if not isinstance(out, tuple) or len(out) != 5:
                raise EsrlError(f"step of a vector of lanes returns {_many(out)}, but must return {_FIVE}")
            flat = [np.asarray(x).reshape(self._pairs * self._episodes) for x in out[1:4]]
            stepped.append((self._seen(env, out[0]), *flat))
        return jax.tree.map(lambda x: x[ids], self._lanes(stepped))

    def close(self) -> None:
        self._close()

    @staticmethod
    def _seen(env: Any, observations: PyTree) -> PyTree:
        return seen(visible(env.single_observation_space)[0], observations)

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
