"""A network as the policy of an environment: from an observation to an action."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnasium import spaces

from esrl.core.jaxprs import path_name
from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.policies import integer_statistics
from esrl.policies.heads import Head, head
from esrl.policies.networks import mlp
from esrl.policies.spaces import MASK, normalizable_leaves, observation_zeros, subspaces
from esrl.policies.user_network import network as as_network
from esrl.policies.user_network import started

_NEVER = -1e9  # the logit of an action that is not allowed: finite, so that gradients and entropies are


class Policy(NamedTuple):
    """A policy of an environment.

    Attributes:
      init: `init(key) -> params`: `{"network": ...}` and, to sample Box actions, `"log_std"` [gaussians of the head].
      apply: `apply(params, obs, carry) -> ((output, log_std), carry)` for one lane: `finish` of what `network` gives.
      network: `network(params, obs, carry) -> (output, carry)`, the network alone.
      finish: `finish(params, obs, output) -> (output, log_std)`: the action mask, and the spread of Box actions.
      action: `action((output, log_std), key) -> action`.
      head: what an output means.
      carry: the carry at the start of an episode, for one lane.
      observation: shapes and dtypes of one observation.
      normalizable: for each observation leaf, whether it may be normalized.
      spec: what a recipe says of the network.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, PyTree, PyTree], tuple[tuple[Array, Array | None], PyTree]]
    network: Callable[[PyTree, PyTree, PyTree], tuple[Array, PyTree]]
    finish: Callable[[PyTree, PyTree, Array], tuple[Array, Array | None]]
    action: Callable[[tuple[Array, Array | None], Key], PyTree]
    head: Head
    carry: PyTree
    observation: PyTree
    normalizable: PyTree
    spec: dict[str, Any]


def bind(
    network: Any,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    deterministic: bool = True,
    squash: str = "tanh",
    extra: int = 0,
    integer: bool = False,
) -> Policy:
    """A network as the policy of an environment with these spaces.

    Args:
      network: a `Network`, or whatever `esrl.network` takes; None is `mlp()`.
      observation_space, action_space: Gymnasium spaces of one lane.
      deterministic: act by the mode (argmax, mean) rather than by sampling.
      squash: how outputs meet the bounds of a Box action space: "tanh" or "clip".
      extra: outputs that the network gives beyond those of the action space; the policy ignores them.
      integer: the network is one of integers, which sees observations as `integer_statistics.quantized` gives them.

    An observation Dict with an entry `action_mask` (see `action_mask`) has its mask applied to the logits: an action
    that is not allowed has probability zero. The network sees the mask as well, as a part of the observation.

    Raises:
      EsrlError: a network that cannot take the observation, whose output does not fit the action space, or that has no
        float parameters (with `integer` no int8 ones, or an operation of floats, which is named); an action mask that
        does not fit the action space.
    """
    chosen = mlp() if network is None else as_network(network)
    actions = head(action_space, squash)
    observation = observation_zeros(observation_space)
    size = actions.size + extra
    normalized = normalizable_leaves(observation_space, chosen.flat, chosen.one_hot)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), observation)
    if integer:  # from here on, what the network sees
        observation = integer_statistics.quantized(None, observation, normalized)
    bound = started(chosen.bind(observation, size, observation_space=observation_space), chosen.start)
    allowed = action_mask(observation_space, action_space)
    sampled = actions.gaussians > 0 and not deterministic

    def init(key: Key) -> PyTree:
        params = {"network": bound.init(key)}
        return {**params, "log_std": jnp.zeros(actions.gaussians)} if sampled else params

    def network_alone(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Any, PyTree]:
        return bound.apply(params["network"], obs, carry)

    def finish(params: PyTree, obs: PyTree, output: Any) -> tuple[Any, Array | None]:
        if allowed is not None:
            # Before sampling and before the mode, so that every agent obeys the mask without knowing of it.
            logits = masked(output[: actions.size], allowed(obs))
            output = jnp.concatenate([logits, output[actions.size :]])
        return output, params.get("log_std")

    def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[tuple[Any, Array | None], PyTree]:
        output, carry = network_alone(params, obs, carry)
        return finish(params, obs, output), carry

    def action(output: tuple[Array, Array | None], key: Key) -> PyTree:
        out = output[0][: actions.size]
        return actions.mode(out) if deterministic else actions.sample(out, output[1], key)

    _check_output(init, apply, observation, bound.carry, size, action_space, extra, integer)
    spec = chosen.spec or {}
    return Policy(init, apply, network_alone, finish, action, actions, bound.carry, shapes, normalized, spec)


def action_mask(observation_space: spaces.Space, action_space: spaces.Space) -> Callable[[PyTree], Array] | None:
    """Where an observation says which actions are allowed, or None when it does not.

    Args:
      observation_space: a Dict space with an entry `action_mask` has a mask; 1 (or True) is an allowed action.
      action_space: Discrete n needs a mask of n entries, MultiDiscrete one of sum(nvec), first action first. A Dict
        needs a Dict of masks, without those of parts in which everything is allowed; a Tuple needs a Tuple of masks.

    Returns:
      `mask(observation) -> bool [size of the logits]`.

    Raises:
      EsrlError: a mask of another size, or for an action space without logits of choices.
    """
    if not isinstance(observation_space, spaces.Dict) or MASK not in observation_space.spaces:
        return None
    allowed = _allowed(observation_space[MASK], action_space)
    return lambda observation: allowed(observation[MASK])


def _allowed(mask: spaces.Space, actions: spaces.Space) -> Callable[[PyTree], Array]:
    """`allowed(mask) -> bool [size of the logits]`, for a mask of this space."""
    if isinstance(actions, (spaces.Dict, spaces.Tuple)):
        own, given = subspaces(actions), subspaces(mask)
        # A Dict names its entries, so one without a mask can be told from the others.
        missing = set() if isinstance(actions, spaces.Tuple) else set(own) - set(given)
        if type(mask) is not type(actions) or set(given) | missing != set(own):
            raise EsrlError(f"{MASK} must be nested as action space {actions} is, but its space is {mask}")
        reads = {key: _allowed(sub, own[key]) for key, sub in given.items()}
        sizes = {key: head(own[key]).size for key in missing}
        return lambda mask: jnp.concatenate(
            [jnp.ones(sizes[key], bool) if key in missing else reads[key](mask[key]) for key in own]
        )
    if not isinstance(actions, (spaces.Discrete, spaces.MultiDiscrete)):
        raise EsrlError(f"{MASK} is for Discrete and MultiDiscrete actions, but the action space is {actions}")
    size = head(actions).size
    if mask.shape is None or math.prod(mask.shape) != size:
        raise EsrlError(f"{MASK} has shape {mask.shape}, but action space {actions} needs {size} entries")
    return lambda mask: jnp.ravel(mask) > 0


def masked(logits: Array, allowed: Array) -> Array:
    """Logits [size] with those of what is not `allowed` [size] so low that it is never drawn."""
    integer = jnp.issubdtype(logits.dtype, jnp.integer)
    never = max(int(_NEVER), int(jnp.iinfo(logits.dtype).min)) if integer else _NEVER
    return jnp.where(allowed, logits, jnp.asarray(never, logits.dtype))


def _check_output(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    observation: PyTree,
    carry: PyTree,
    size: int,
    action_space: spaces.Space,
    extra: int,
    integer: bool,
) -> None:
    key = jax.random.key(0, impl="threefry2x32")
    try:
        params = jax.eval_shape(init, key)
        _check_types(params, integer)
        (output, _), after = jax.eval_shape(apply, params, observation, carry)
    except EsrlError:
        raise
    except Exception as error:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", observation)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise EsrlError(
            f"the policy cannot take one observation {shapes} (no batch axis): {type(error).__name__}: {reason}"
        ) from error
    shape = getattr(output, "shape", None)
    if shape != (size,):
        given = f"shape {shape}" if shape is not None else f"a {type(output).__name__}"
        more = f" and {extra} more" if extra else ""
        raise EsrlError(f"the policy's output has {given}, but action space {action_space}{more} needs shape ({size},)")
    before = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), carry)
    if jax.tree.map(lambda x: (x.shape, x.dtype), after) != before:
        raise EsrlError("the policy's carry changes its shape or type from one step to the next; it must stay as given")
    if not jax.tree.leaves(params):
        raise EsrlError("the policy has no parameters, so there is nothing to train")
    if integer:
        found = float_operation(jax.make_jaxpr(apply)(params, observation, carry).jaxpr)
        if found:
            raise EsrlError(f"the network cannot be integer: {found}; {_INTEGER}")
        found = unbounded_product(jax.make_jaxpr(apply)(params, observation, carry).jaxpr)
        if found:
            raise EsrlError(f"the network cannot be integer: {found}")


_INTEGER = 'use esrl.mlp, esrl.gru or esrl.cnn with dtype="int8", or a function of int8 arrays'


def _check_types(params: PyTree, integer: bool) -> None:
    """Raises `EsrlError` unless every parameter is a float, or with `integer` an int8."""
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path_name(path).removeprefix("network/")
        if integer and x.dtype != jnp.int8:
            raise EsrlError(f"the network cannot be integer: its parameter {name} is {x.dtype}; {_INTEGER}")
        if not integer and not jnp.issubdtype(x.dtype, jnp.floating):
            more = "; the agent eggroll_int8 trains int8 parameters" if x.dtype == jnp.int8 else ""
            raise EsrlError(f"the policy has a parameter of type {x.dtype}; every parameter must be a float{more}")


def float_operation(jaxpr: Any) -> str:
    """The first operation of a program that gives or takes floats, in words; empty where there is none."""

    def said(eqn: Any) -> str:
        kinds = [var.aval.dtype for var in (*eqn.outvars, *eqn.invars)]
        wrong = [kind for kind in kinds if jnp.issubdtype(kind, jnp.inexact)]
        return f"its operation {eqn.primitive.name} is of {wrong[0]}" if wrong else ""

    return _first(jaxpr, said)


def unbounded_product(jaxpr: Any) -> str:
    """The first product that is not of int8 numbers summed in int32, in words; empty where there is none.

    The bound on sums, and the product of a population, take operands of at most 127 and sums of 32 bits for granted.
    """

    def said(eqn: Any) -> str:
        if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
            return ""
        wide = [var.aval.dtype for var in eqn.invars if var.aval.dtype != jnp.int8]
        if wide:
            return f"its {eqn.primitive.name} takes {wide[0]}, and its sum could overflow; saturate to int8 before it"
        if eqn.outvars[0].aval.dtype != jnp.int32:
            return f"its {eqn.primitive.name} sums in int8; give it preferred_element_type=jnp.int32"
        return ""

    return _first(jaxpr, said)


def _first(jaxpr: Any, said: Callable[[Any], str]) -> str:
    """What is first said of a program's operations; what stands inside of a call says more than the call."""
    for eqn in jaxpr.eqns:
        inner = [
            getattr(part, "jaxpr", part)
            for value in eqn.params.values()
            for part in (value if isinstance(value, (tuple, list)) else (value,))
        ]
        found = next(filter(None, (_first(part, said) for part in inner if hasattr(part, "eqns"))), "") or said(eqn)
        if found:
            return found
    return ""
