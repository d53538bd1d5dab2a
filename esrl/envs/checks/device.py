"""Check an environment that JAX steps, by running it; every sentence says what to change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree, seed_key
from esrl.envs.base import max_episode_steps_of, name_of, reason_of
from esrl.envs.checks import purity
from esrl.policies.policy import MASK
from esrl.policies.random_policy import random_policy
from esrl.policies.spaces import outside, subspaces

_EPISODES = 8
_FEW = 3  # steps in which one program's rounding cannot have grown into a difference from another's
_CHEAP = 300  # operations of reset and step that may be run one by one: each is compiled by itself


class _Played(NamedTuple):
    """An episode of random actions: `state` and `first` of its reset, then arrays [T, ...].

    Attributes:
      state, first: the state (random keys as numbers) and the observation of the reset.
      seen: observations after each step. rewards: float32. ended: what `terminated` was.
      live: whether the episode had not ended before the step.
      counters: every whole number in the state after each step.
    """

    state: PyTree
    first: PyTree
    seen: PyTree
    rewards: Array
    ended: Array
    live: Array
    counters: list[Array]


def check_device(env: Any, steps: int, seed: int) -> None:
    """Runs eight episodes of random actions on the device, and looks at them.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence.
    """
    name, act = name_of(env), random_policy(env)
    operations = purity.check_pure(env, name)
    keys = [jax.random.fold_in(seed_key(seed), i) for i in range(_EPISODES)]
    play = jax.jit(partial(_play, env, act, min(steps, max_episode_steps_of(env))))
    played = [jax.device_get(play(key)) for key in keys]
    for one in played:
        check_step(name, env.observation_space, env.action_space, one.first, one.rewards[0], 0)
    for one in played:
        _check_episode(name, env.observation_space, env.action_space, one)
    if not _same(played[0], jax.device_get(play(keys[0]))):  # bit for bit: it is the same program
        raise EsrlError(f"{name}: the same key gave two different episodes; use no randomness but the key's")
    if not getattr(env, "fixed_start", False) and all(_same(played[0].state, one.state) for one in played[1:]):
        advice = "let reset(key) use its key, or set fixed_start = True"
        raise EsrlError(f"{name}: eight keys gave the same first state; {advice}")
    if max_episode_steps_of(env) > 1 and all(one.ended[0] for one in played):
        limit = "where one step is all there is, set max_episode_steps = 1"
        advice = f"terminated must be true only where an episode ends ({limit})"
        raise EsrlError(f"{name}: every episode ends at its first step; {advice}")
    _check_own_reset(env, name, keys, played)
    if operations <= _CHEAP:
        _check_by_hand(env, name, act, keys[0], played[0])
    _check_lanes(env, name, act, keys[:4], played[:4])


def _play(env: Any, act: Callable[[PyTree, Key], PyTree], steps: int, key: Key) -> _Played:
    def body(now: PyTree, t: Array) -> tuple[PyTree, PyTree]:
        state, observation, live = now
        at = jax.random.fold_in(key, t)
        state, observation, reward, terminated = env.step(state, act(observation, jax.random.fold_in(at, 1)), at)
        ended = jnp.asarray(terminated, bool)
        happened = observation, jnp.asarray(reward, jnp.float32), ended, live, _counters(state)
        return (state, observation, live & ~ended), happened

    state, first = env.reset(key)
    times = jnp.arange(steps, dtype=jnp.uint32)
    _, happened = jax.lax.scan(body, (state, first, jnp.bool_(True)), times)
    return _Played(jax.tree.map(_plain, state), first, *happened)


def _counters(state: PyTree) -> list[Array]:
    return [x for x in jax.tree.leaves(state) if jnp.shape(x) == () and jnp.issubdtype(jnp.result_type(x), jnp.integer)]


# ---- what one episode shows -----------------------------------------------------------------------------------------


def _check_episode(name: str, space: spaces.Space, actions: spaces.Space, played: _Played) -> None:
    length = int(np.sum(played.live))
    at = partial(_at, played.seen)
    observations = [played.first, *map(at, range(length - 1))]
    for t, (observation, reward) in enumerate(zip(observations, played.rewards, strict=False)):
        check_step(name, space, actions, observation, reward, t)
    # Steps after the end count for nothing, but 0 * nan is nan: what is not finite would spread to sums.
    for t in range(length - 1, len(played.rewards)):
        arrays = [x for x in jax.tree.leaves(at(t)) if np.issubdtype(x.dtype, np.floating)]
        if not all(np.isfinite(x).all() for x in [*arrays, played.rewards[t]]):
            after = f"{t + 1 - length} steps after the end" if t >= length else "at the end"
            advice = "lanes that are done are stepped on until all are, so keep observations and rewards finite"
            raise EsrlError(f"{name}: something is not finite {after} of an episode; {advice}")


def check_step(
    name: str, space: spaces.Space, actions: spaces.Space, observation: PyTree, reward: Any, t: int, strict: bool = True
) -> None:
    """Looks at the observation before step t and the reward of the step.

    Raises:
      EsrlError: an observation outside its space, a mask that allows nothing, or a reward that is not a finite number.
    """
    problem = outside(space, observation, strict)
    if problem:
        raise EsrlError(f"{name}: the observation after {t} steps {problem}")
    if isinstance(space, spaces.Dict) and MASK in space.spaces:
        parts = mask_parts(actions, observation[MASK])
        empty = next((i for i, part in enumerate(parts) if not part.any()), None)
        if empty is not None:
            entry = f" for entry {empty} of the action" if len(parts) > 1 else ""
            advice = "end the episode (terminated) where there is nothing to do, or allow an action that does nothing"
            raise EsrlError(f"{name}: the {MASK} after {t} steps allows no action{entry}; {advice}")
    if np.shape(reward) != ():
        raise EsrlError(f"{name}: the reward of step {t + 1} has shape {np.shape(reward)}, but must be one number")
    if not np.isfinite(float(reward)):
        raise EsrlError(f"{name}: the reward of step {t + 1} is {float(reward)}; rewards must be finite")


def mask_parts(actions: spaces.Space, mask: PyTree) -> list[np.ndarray]:
    """A mask as bools, one array for each choice of the action; parts of a Dict without a mask are left out."""
    if isinstance(actions, (spaces.Dict, spaces.Tuple)):
        named = ((sub, mask[key]) for key, sub in subspaces(actions).items() if key in mask or isinstance(mask, tuple))
        return [part for sub, own in named for part in mask_parts(sub, own)]
    mask = np.ravel(mask) > 0
    sizes = np.ravel(actions.nvec) if isinstance(actions, spaces.MultiDiscrete) else [mask.size]
    return np.split(mask, np.cumsum(sizes)[:-1])


def _check_own_reset(env: Any, name: str, keys: list[Key], played: list[_Played]) -> None:
    """Refuses a step that begins the next episode by itself: its counter goes back, or it observes a fresh reset."""
    ends = [(key, one, int(np.sum(one.live)) - 1) for key, one in zip(keys, played, strict=True) if one.ended.any()]
    if not ends:
        return
    advice = "leave that to esrl, and return the last state and observation of the episode"
    words = f"{name}: step begins the next episode by itself where one ends; {advice}"
    if all(any(_went_back(np.asarray(x), t) for x in one.counters) for _, one, t in ends):
        raise EsrlError(words)
    firsts = [one.first for one in played]
    if any(_same(a, b) for i, a in enumerate(firsts) for b in firsts[:i]):
        return  # a first observation that others share says little
    reset = jax.jit(lambda key: env.reset(key)[1])

    def fresh(key: Key, one: _Played, t: int) -> bool:
        at = jax.random.fold_in(key, np.uint32(t))
        # Keys that a step would make a new world from: its own, or one of a split of it.
        candidates = [at, *jax.random.split(at), *jax.random.split(at, 3)]
        seen, before = _at(one.seen, t), one.first if t == 0 else _at(one.seen, t - 1)
        is_first = _same(seen, one.first) and not _same(before, one.first)
        return is_first or any(_same(seen, jax.device_get(reset(key))) for key in candidates)

    if len(ends) > 1 and all(fresh(*end) for end in ends[:3]):
        raise EsrlError(words)


def _went_back(counter: np.ndarray, t: int) -> bool:
    """Whether a whole number that grew by one with every step before t fell at step t."""
    grown = np.diff(counter[:t].astype(np.int64))
    return t >= 3 and bool(np.all(grown == 1) and counter[t] < counter[0])


# ---- the same by other means ----------------------------------------------------------------------------------------


def _check_lanes(env: Any, name: str, act: Callable[..., Array], keys: list[Key], played: list[_Played]) -> None:
    """Lanes side by side, by `jax.vmap`, are the episodes one by one."""
    few = min(_FEW, len(played[0].rewards))
    try:
        together = jax.device_get(jax.jit(jax.vmap(partial(_play, env, act, few)))(jnp.stack(keys)))
    except Exception as error:
        advice = "use only JAX functions (a callback needs vmap_method)"
        raise EsrlError(f"{name}: jax.vmap cannot run several lanes of it: {reason_of(error)}; {advice}") from error
    for lane, alone in enumerate(played):
        if not alike(_begin(alone, few), _begin(_at(together, lane), few)):
            advice = "no lane may depend on the others, or on how many there are"
            raise EsrlError(f"{name}: several lanes under jax.vmap are not the same episodes as one by one; {advice}")


def _check_by_hand(env: Any, name: str, act: Callable[..., Array], key: Key, played: _Played) -> None:
    """Reset and step run operation by operation: twice with the same arguments, and beside the compiled ones."""
    few = min(_FEW, int(np.sum(played.live)))
    advice = "use no randomness but the key's, and nothing that an earlier call left behind"

    def twice(method: str, *args: Any) -> Any:
        try:
            out, again = (jax.tree.map(jnp.asarray, getattr(env, method)(*args)) for _ in range(2))
        except Exception as error:
            raise EsrlError(f"{name}: {method} raised {reason_of(error)} when it was run without jax.jit") from error
        if not _same(jax.tree.map(_plain, out), jax.tree.map(_plain, again)):
            raise EsrlError(f"{name}: {method} with the same arguments gave two different results; {advice}")
        return out

    state, first = twice("reset", key)
    rows = []
    observation = first
    for t in range(few):
        at = jax.random.fold_in(key, np.uint32(t))
        state, observation, reward, ended = twice("step", state, act(observation, jax.random.fold_in(at, 1)), at)
        rows.append((observation, jnp.asarray(reward, jnp.float32), jnp.asarray(ended, bool)))
    seen, rewards, ended = jax.tree.map(lambda *xs: np.stack(xs), *rows)
    by_hand = played._replace(first=jax.device_get(first), seen=seen, rewards=rewards, ended=ended)
    if not alike(_begin(played, few), _begin(by_hand, few)):
        raise EsrlError(f"{name}: compiled by jax.jit it plays another episode than operation by operation; {advice}")


def _begin(played: _Played, few: int) -> PyTree:
    """First observation, then observations, rewards and ends of the first steps."""
    cut = jax.tree.map(lambda x: x[:few], (played.seen, played.rewards, played.ended))
    return played.first, cut


def _at(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)


def _plain(x: Any) -> Any:
    """Random keys as the numbers that they hold."""
    return jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else jnp.asarray(x)


def _same(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.inexact)) for x, y in pairs)


def alike(a: PyTree, b: PyTree) -> bool:
    """Equal but for the rounding of floats."""

    def one(x: np.ndarray, y: np.ndarray) -> bool:
        if not np.issubdtype(x.dtype, np.floating):
            return bool(np.array_equal(x, y))
        # Another program orders sums otherwise, and a few steps of chaos make that larger than one rounding.
        return bool(np.allclose(x, y, rtol=1e-3, atol=1e-3 * max(1.0, float(np.max(np.abs(x), initial=0.0)))))

    return all(one(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
