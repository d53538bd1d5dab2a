"""What an environment is, and a check that says in one sentence what one lacks (level 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl import policy as policies
from esrl.types import Array, EsrlError, Key, PyTree, seed_key

HORIZON = 1000  # steps after which an episode is cut off when the environment does not say


@runtime_checkable
class Env(Protocol):
    """A world for one lane, as pure JAX functions. No automatic reset and no time limit inside.

    Attributes:
      observation_space, action_space: Gymnasium spaces.
      horizon (optional): steps after which an episode is truncated; 1000 when left out.
      name (optional): what `esrl.make` would call it.

    A method `render(state) -> rgb array [H, W, 3]` is optional too.
    """

    observation_space: spaces.Space
    action_space: spaces.Space

    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        """`(state, observation)` of a new episode, random by key."""

    def step(self, state: PyTree, action: Array, key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        """`(state, observation, reward, terminated)`; reward a float scalar, terminated a bool scalar."""


class HostEnv(NamedTuple):
    """An environment that Python steps: Gymnasium's.

    Attributes:
      name: what `esrl.make` calls it.
      observation_space, action_space: of one lane.
      horizon: steps after which an episode is truncated.
      make_vec: `make_vec(lanes, twins) -> VectorLanes`, see `esrl.adapters.gymnasium_host`.
      make_one: `make_one(**kwargs) -> gymnasium.Env`, for rendering.
    """

    name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    horizon: int
    make_vec: Callable[..., Any]
    make_one: Callable[..., Any]


def name_of(env: Any) -> str:
    """The environment's name, or its class's."""
    return str(getattr(env, "name", None) or type(env).__name__)


def horizon_of(env: Any) -> int:
    """Steps after which an episode of this environment is cut off.

    Raises:
      EsrlError: a horizon that is not a positive whole number.
    """
    horizon = getattr(env, "horizon", HORIZON)
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise EsrlError(f"{name_of(env)}: horizon is {horizon!r}, but must be a whole number of at least 1")
    return int(horizon)


def check_contract(env: Any) -> None:
    """Checks spaces, signatures, shapes and types without running a step (abstract evaluation only).

    Raises:
      EsrlError: the first thing that is wrong, in one sentence that begins with the environment's name.
    """
    name = name_of(env)
    for attribute in ("observation_space", "action_space"):
        if not isinstance(getattr(env, attribute, None), spaces.Space):
            raise EsrlError(f"{name}: {attribute} is missing; set it to a gymnasium.spaces space")
    horizon_of(env)
    if isinstance(env, HostEnv):
        return
    for method, call in (("reset", "reset(key) -> (state, observation)"), ("step", "step(state, action, key) -> ...")):
        if not callable(getattr(env, method, None)):
            raise EsrlError(f"{name}: it has no method {method}; an environment needs {call}")
    key = jax.eval_shape(lambda: seed_key(0))
    state, observation = _outputs(name, "reset(key)", "(state, observation)", env.reset, key)
    _check_observation(name, "reset", env.observation_space, observation)
    action = policies.observation_zeros(env.action_space)
    what = "(state, observation, reward, terminated)"
    after, observation, reward, terminated = _outputs(
        name, "step(state, action, key)", what, env.step, state, action, key
    )
    _check_observation(name, "step", env.observation_space, observation)
    _check_state(name, state, after)
    if not hasattr(reward, "shape") or reward.shape != () or not jnp.issubdtype(reward.dtype, jnp.number):
        raise EsrlError(f"{name}: step returns a reward {_say(reward)}, but it must be a number: float32 scalar")
    if not hasattr(terminated, "shape") or terminated.shape != () or terminated.dtype != jnp.bool_:
        raise EsrlError(f"{name}: step returns terminated as {_say(terminated)}, but it must be a bool scalar")


def check_env(env: Any, steps: int = 100, seed: int = 0) -> None:
    """Checks an environment by its contract and by running it with random actions.

    Looked at: spaces, shapes, types; that observations lie in their space, rewards are finite, the same key gives the
    same episode, and different keys give different first states.

    Args:
      env: a JAX environment, or a host one from `esrl.make`.
      steps: steps to run.
      seed: of keys and actions.

    Raises:
      EsrlError: the first thing that is wrong, in one sentence.
    """
    check_contract(env)
    if isinstance(env, HostEnv):
        _check_host(env, steps, seed)
    else:
        _check_device(env, steps, seed)


def _check_device(env: Any, steps: int, seed: int) -> None:
    name = name_of(env)
    action = policies.observation_zeros(env.action_space)
    env.action_space.seed(seed)
    samples = [env.action_space.sample() for _ in range(min(steps, horizon_of(env)))]
    actions = jax.tree.map(lambda like, *xs: jnp.asarray(np.stack(xs), like.dtype), action, *samples)

    @jax.jit
    def play(key: Key) -> tuple[PyTree, PyTree, Array, Array]:
        state, first = env.reset(key)

        def body(carry: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
            state, live = carry
            action, t = x
            state, obs, reward, terminated = env.step(state, action, jax.random.fold_in(key, t))
            return (state, live & ~terminated), (obs, jnp.asarray(reward, jnp.float32), live)

        times = jnp.arange(len(samples), dtype=jnp.uint32)
        _, (seen, rewards, live) = jax.lax.scan(body, (state, jnp.bool_(True)), (actions, times))
        return first, seen, rewards, live

    keys = [jax.random.fold_in(seed_key(seed), i) for i in range(8)]
    played = [jax.device_get(play(key)) for key in keys]
    again = jax.device_get(play(keys[0]))
    for first, seen, rewards, live in played:
        length = int(np.sum(live))
        observations = [first, *[jax.tree.map(lambda x, i=i: x[i], seen) for i in range(length - 1)]]
        for t, observation in enumerate(observations):
            problem = _outside(env.observation_space, observation)
            if problem:
                raise EsrlError(f"{name}: the observation after {t} steps {problem}")
        bad = np.flatnonzero(~np.isfinite(rewards[:length]))
        if bad.size:
            raise EsrlError(f"{name}: the reward of step {bad[0] + 1} is {rewards[bad[0]]}; rewards must be finite")
    if any(
        not np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (played[0], again)), strict=True)
    ):
        raise EsrlError(
            f"{name}: the same key and actions gave two different episodes; use no randomness but the key's"
        )
    if getattr(env, "fixed_start", False):
        return
    firsts = [jax.tree.leaves(jax.device_get(jax.jit(env.reset)(key))) for key in keys]
    if all(all(np.array_equal(a, b) for a, b in zip(firsts[0], other, strict=True)) for other in firsts[1:]):
        raise EsrlError(
            f"{name}: eight keys gave the same first state; let reset(key) use its key, or set fixed_start = True"
        )


def _check_host(env: HostEnv, steps: int, seed: int) -> None:
    one = env.make_one()
    try:
        env.action_space.seed(seed)
        observation, _ = one.reset(seed=seed)
        for t in range(min(steps, env.horizon)):
            problem = _outside(env.observation_space, observation)
            if problem:
                raise EsrlError(f"{env.name}: the observation after {t} steps {problem}")
            try:
                observation, reward, terminated, truncated, _ = one.step(env.action_space.sample())
            except Exception as error:
                raise EsrlError(f"{env.name}: step {t + 1} raised {type(error).__name__}: {error}") from error
            if not np.isfinite(float(reward)):
                raise EsrlError(f"{env.name}: the reward of step {t + 1} is {reward}; rewards must be finite")
            if terminated or truncated:
                observation, _ = one.reset()
    finally:
        one.close()


def _say(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def _outputs(name: str, call: str, what: str, fn: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    try:
        out = jax.eval_shape(fn, *args)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        raise EsrlError(f"{name}: {call} cannot be traced by JAX: {reason}") from error
    number = what.count(",") + 1
    if not isinstance(out, tuple) or len(out) != number:
        given = f"{len(out)} values" if isinstance(out, tuple) else f"a {type(out).__name__}"
        raise EsrlError(f"{name}: {call} returns {given}, but must return {what}")
    return out


def _check_observation(name: str, where: str, space: spaces.Space, given: PyTree) -> None:
    needed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), policies.observation_zeros(space))
    if jax.tree.structure(needed) != jax.tree.structure(given):
        raise EsrlError(f"{name}: {where} gives an observation whose structure is not that of its space {space}")
    for want, got in zip(jax.tree.leaves(needed), jax.tree.leaves(given), strict=True):
        same_kind = jnp.issubdtype(want.dtype, jnp.floating) == jnp.issubdtype(got.dtype, jnp.floating)
        if want.shape != got.shape or not same_kind:
            raise EsrlError(f"{name}: {where} gives an observation {_say(got)}, but its space needs {_say(want)}")


def _check_state(name: str, before: PyTree, after: PyTree) -> None:
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise EsrlError(f"{name}: step returns a state of another structure than it was given; they must be the same")
    named = jax.tree_util.tree_flatten_with_path(before)[0]
    for (path, want), got in zip(named, jax.tree.leaves(after), strict=True):
        if (want.shape, want.dtype) != (got.shape, got.dtype):
            where = jax.tree_util.keystr(path) or "the state"
            raise EsrlError(
                f"{name}: step turns {where} of its state from {_say(want)} into {_say(got)}; keep it as it is"
            )


def _outside(space: spaces.Space, observation: PyTree) -> str:
    """What is wrong with an observation, or an empty string."""
    if isinstance(space, spaces.Dict):
        return next(filter(None, (_outside(sub, observation[name]) for name, sub in space.spaces.items())), "")
    if isinstance(space, spaces.Tuple):
        return next(filter(None, (_outside(s, o) for s, o in zip(space.spaces, observation, strict=True))), "")
    value = np.asarray(observation)
    if value.shape != space.shape:
        return f"has shape {value.shape}, but its space {space} needs {space.shape}"
    if np.issubdtype(value.dtype, np.floating) and not np.all(np.isfinite(value)):
        return "has an entry that is not finite"
    if isinstance(space, spaces.Box):
        slack = 1e-4 * (1 + np.abs(value.astype(np.float64)))
        if np.any(value < space.low - slack) or np.any(value > space.high + slack):
            return f"lies outside its space {space}"
        return ""
    return "" if space.contains(value.astype(space.dtype)) else f"lies outside its space {space}"
