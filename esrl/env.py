"""What an environment is, and a check that says in one sentence what one lacks (level 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.observations import observation_zeros, outside
from esrl.types import Array, EsrlError, Key, PyTree, seed_key

HORIZON = 1000  # steps after which an episode is cut off when the environment does not say


@runtime_checkable
class Env(Protocol):
    """A world for one lane, as pure JAX functions. No automatic reset and no time limit inside.

    Attributes:
      observation_space, action_space: Gymnasium spaces.
      horizon (optional): steps after which an episode is truncated; 1000 when left out.
      name (optional): what `esrl.make` would call it.
      fixed_start (optional): True when every episode begins in the same state; `check_env` asks otherwise.

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
      make_stream: `make_stream(lanes) -> StreamLanes`, lanes that begin a new episode when they are told to.
      make_one: `make_one(**kwargs) -> gymnasium.Env`, for rendering.
    """

    name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    horizon: int
    make_vec: Callable[..., Any]
    make_stream: Callable[[int], Any]
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
    action = observation_zeros(env.action_space)
    what = "(state, observation, reward, terminated)"
    out = _outputs(name, "step(state, action, key)", what, env.step, state, action, key)
    after, observation, reward, terminated = out
    _check_observation(name, "step", env.observation_space, observation)
    _check_state(name, state, after)
    if getattr(reward, "shape", None) != () or not jnp.issubdtype(reward.dtype, jnp.number):
        raise EsrlError(f"{name}: step returns a reward {_say(reward)}, but it must be one number, as float32[]")
    if getattr(terminated, "shape", None) != () or terminated.dtype != jnp.bool_:
        raise EsrlError(f"{name}: step returns terminated as {_say(terminated)}, but it must be bool[]")


def check_env(env: Any, steps: int = 100, seed: int = 0) -> None:
    """Checks an environment by its contract and by running it with random actions.

    Looked at: spaces, shapes, types; that observations lie in their space, rewards are finite, the same key gives the
    same episode, and different keys give different first states (unless the environment sets `fixed_start`).

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


# ---- running it -----------------------------------------------------------------------------------------------------


def _check_device(env: Any, steps: int, seed: int) -> None:
    keys = [jax.random.fold_in(seed_key(seed), i) for i in range(8)]
    play = _player(env, min(steps, horizon_of(env)), seed)
    played = [jax.device_get(play(key)) for key in keys]
    for _, first, seen, rewards, live in played:
        length = int(np.sum(live))
        observations = [first, *[jax.tree.map(lambda x, i=i: x[i], seen) for i in range(length - 1)]]
        for t, (observation, reward) in enumerate(zip(observations, rewards, strict=False)):
            _check_step(name_of(env), env.observation_space, observation, reward, t)
    if not _same(played[0], jax.device_get(play(keys[0]))):
        raise EsrlError(f"{name_of(env)}: the same key gave two different episodes; use no randomness but the key's")
    if not getattr(env, "fixed_start", False) and all(_same(played[0][0], other[0]) for other in played[1:]):
        advice = "let reset(key) use its key, or set fixed_start = True"
        raise EsrlError(f"{name_of(env)}: eight keys gave the same first state; {advice}")


def _player(env: Any, steps: int, seed: int) -> Callable[[Key], tuple[PyTree, ...]]:
    """`play(key) -> (first state, first observation, observations, rewards, live)` of an episode of random actions."""
    env.action_space.seed(seed)
    samples = [env.action_space.sample() for _ in range(steps)]
    like = observation_zeros(env.action_space)
    actions = jax.tree.map(lambda x, *xs: jnp.asarray(np.stack(xs), x.dtype), like, *samples)

    @jax.jit
    def play(key: Key) -> tuple[PyTree, ...]:
        state, first = env.reset(key)

        def body(carry: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
            state, live = carry
            action, t = x
            state, obs, reward, terminated = env.step(state, action, jax.random.fold_in(key, t))
            ended = jnp.asarray(terminated, bool)
            return (state, live & ~ended), (obs, jnp.asarray(reward, jnp.float32), live)

        times = jnp.arange(steps, dtype=jnp.uint32)
        _, (seen, rewards, live) = jax.lax.scan(body, (state, jnp.bool_(True)), (actions, times))
        return jax.tree.map(_plain, state), first, seen, rewards, live

    return play


def _check_host(env: HostEnv, steps: int, seed: int) -> None:
    one = env.make_one()
    call = "reset"
    try:
        env.action_space.seed(seed)
        observation, _ = one.reset(seed=seed)
        for t in range(min(steps, env.horizon)):
            seen, call = observation, f"step {t + 1}"
            observation, reward, terminated, truncated, _ = one.step(env.action_space.sample())
            _check_step(env.name, env.observation_space, seen, reward, t)
            if np.shape(terminated) or np.shape(truncated):
                raise EsrlError(
                    f"{env.name}: {call} returns an array as terminated or truncated; each must be one bool"
                )
            if terminated or truncated:
                call = "reset"
                observation, _ = one.reset()
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(f"{env.name}: {call} raised {_reason(error)}") from error
    finally:
        one.close()


def _check_step(name: str, space: spaces.Space, observation: PyTree, reward: Any, t: int) -> None:
    problem = outside(space, observation)
    if problem:
        raise EsrlError(f"{name}: the observation after {t} steps {problem}")
    if np.shape(reward) != ():
        raise EsrlError(f"{name}: the reward of step {t + 1} has shape {np.shape(reward)}, but must be one number")
    if not np.isfinite(float(reward)):
        raise EsrlError(f"{name}: the reward of step {t + 1} is {float(reward)}; rewards must be finite")


def _plain(x: Any) -> Any:
    """Random keys as the numbers that they hold."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _same(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.inexact)) for x, y in pairs)


# ---- tracing it -----------------------------------------------------------------------------------------------------


def _say(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _outputs(name: str, call: str, what: str, fn: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    try:
        out = jax.eval_shape(fn, *args)
    except Exception as error:
        raise EsrlError(f"{name}: {call} cannot be traced by JAX: {_reason(error)}") from error
    number = what.count(",") + 1
    if not isinstance(out, tuple) or len(out) != number:
        given = f"{len(out)} values" if isinstance(out, tuple) else f"a {type(out).__name__}"
        raise EsrlError(f"{name}: {call} returns {given}, but must return {what}")
    return out


def _check_observation(name: str, where: str, space: spaces.Space, given: PyTree) -> None:
    needed = observation_zeros(space)
    if jax.tree.structure(needed) != jax.tree.structure(given):
        raise EsrlError(f"{name}: {where} gives an observation whose structure is not that of its space {space}")
    for want, got in zip(jax.tree.leaves(needed), jax.tree.leaves(given), strict=True):
        if (want.shape, want.dtype) != (got.shape, got.dtype):
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
