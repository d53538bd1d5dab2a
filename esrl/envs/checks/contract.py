"""Check the contract of an environment without running a step: spaces, signatures, shapes and types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from gymnasium import spaces

from esrl.core.errors import place_of
from esrl.core.types import EsrlError, PyTree, seed_key
from esrl.envs.base import max_episode_steps_of, name_of, on_device, reason_of
from esrl.envs.checks.purity import check_traced
from esrl.envs.objectives import Objective
from esrl.policies.heads import head
from esrl.policies.policy import action_mask
from esrl.policies.spaces import observation_zeros

# JAX's errors where Python or NumPy ask for the value of a traced array, and what to write in place of what asked.
_INSTEAD = {
    jax.errors.NonConcreteBooleanIndexError: "use jnp.where(mask, x, 0) instead of x[mask]",
    jax.errors.TracerBoolConversionError: "use jnp.where or jax.lax.cond for if, and jax.lax.while_loop for while",
    jax.errors.TracerArrayConversionError: "use jax.numpy instead of NumPy",
    jax.errors.TracerIntegerConversionError: "use jax.lax.fori_loop for a loop, and jnp.asarray(x)[i] for x[i]",
    jax.errors.ConcretizationTypeError: "use jax.numpy instead of float(), int() and .item()",
}


def check_contract(env: Any) -> None:
    """Checks spaces, signatures, shapes and types without running a step (abstract evaluation only).

    Raises:
      EsrlError: the first thing that is wrong, in one sentence that begins with the environment's name.
    """
    name = name_of(env)
    if isinstance(env, Objective):
        raise EsrlError(f"{name} is an objective, which has no steps; train it by eggroll, open_es, es or eggroll_int8")
    if not hasattr(env, "reset") and not hasattr(env, "observation_space") and on_device(env):
        raise EsrlError(f"{name} is no environment; give a name, a class, an object, or a function that makes one")
    for attribute in ("observation_space", "action_space"):
        if not isinstance(getattr(env, attribute, None), spaces.Space):
            raise EsrlError(f"{name}: {attribute} is missing; set it to a gymnasium.spaces space")
    max_episode_steps_of(env)
    try:
        observation_zeros(env.observation_space)
        head(env.action_space)
        action_mask(env.observation_space, env.action_space)
    except EsrlError as error:
        raise EsrlError(f"{name}: {error}") from error
    if not on_device(env):  # Python's reset and step have no types that could be seen without running them
        return
    for method, call in (("reset", "reset(key) -> (state, observation)"), ("step", "step(state, action, key) -> ...")):
        if not callable(getattr(env, method, None)):
            raise EsrlError(f"{name}: it has no method {method}; an environment needs {call}")
    key = jax.eval_shape(lambda: seed_key(0))
    # Abstract evaluation finds shapes and types without compiling anything, so this costs milliseconds.
    state, observation = _outputs(name, "reset(key)", "(state, observation)", env.reset, key)
    check_traced(env, name, "reset")
    _check_observation(name, "reset", env.observation_space, observation)
    action = observation_zeros(env.action_space)
    what = "(state, observation, reward, terminated)"
    out = _outputs(name, "step(state, action, key)", what, env.step, state, action, key)
    check_traced(env, name, "step")
    after, observation, reward, terminated = out
    _check_observation(name, "step", env.observation_space, observation)
    _check_state(name, state, after)
    if getattr(reward, "shape", None) != () or not _is_real(reward.dtype):
        raise EsrlError(f"{name}: step returns a reward {_say(reward)}, but it must be one number, as float32[]")
    if getattr(terminated, "shape", None) != () or terminated.dtype != jnp.bool_:
        raise EsrlError(f"{name}: step returns terminated as {_say(terminated)}, but it must be bool[]")


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _say(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def _outputs(name: str, call: str, what: str, fn: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    try:
        out = jax.eval_shape(fn, *args)
    except Exception as error:
        advice = f"; {_INSTEAD[type(error)]}" if type(error) in _INSTEAD else ""
        raise EsrlError(
            f"{name}: {call} cannot be traced by JAX: {reason_of(error).rstrip('.')}{place_of(error)}{advice}"
        ) from error
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
    # A loop in a compiled program carries the state, and its types may not change from step to step.
    for (path, want), got in zip(named, jax.tree.leaves(after), strict=True):
        if (want.shape, want.dtype) != (got.shape, got.dtype):
            part = jax.tree_util.keystr(path)
            whose = f"{part} of its state" if part else "its state"
            raise EsrlError(f"{name}: step turns {whose} from {_say(want)} into {_say(got)}; keep it as it is")
