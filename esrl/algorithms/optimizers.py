"""Optax optimizers with a unit learning rate, so that the rate stays a traced value of the state; and schedules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from esrl.core.options import shown
from esrl.core.runtime import lenient
from esrl.core.types import Array, EsrlError, PyTree, nearest
from esrl.envs.base import reason_of

Schedule = Callable[[Array], Array]
NAMES = (
    "adabelief",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "clipup",
    "lamb",
    "lion",
    "nadam",
    "radam",
    "rmsprop",
    "sgd",
    "yogi",
)


def make_optimizer(
    optimizer: str | optax.GradientTransformation,
    momentum: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    params: PyTree = None,
) -> optax.GradientTransformation:
    """An optimizer whose updates are to be multiplied by the learning rate.

    In optax's optimizers the rate is the last factor, so `rate * update(rate=1)` is the update at that rate. (rmsprop
    with momentum keeps its trace behind the rate; the two are equal while the rate is constant.)

    Args:
      optimizer: an optax name (`adam`, `adamw`, `sgd`, ...) or a gradient transformation.
      momentum: of `sgd` and `rmsprop`; the first decay rate `b1` of Adam and its kin.
      weight_decay: decoupled, in units of the learning rate; None is the optimizer's own default (only adamw, lamb and
        lion have one that is not zero).
      max_grad_norm: bound on the global norm of the gradient estimate.
      params: shapes of what it is for, by which a transformation of the user's is tried.

    Raises:
      EsrlError: unknown name, a momentum that the optimizer does not have or that stands beside a transformation, or a
        transformation that fails, as one does that needs more than gradients, its state and parameters.
    """
    parts = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
    decays_itself = False
    if isinstance(optimizer, str):
        if optimizer not in NAMES:
            raise EsrlError(f"unknown optimizer {optimizer!r}{nearest(optimizer, NAMES)}")
        if optimizer == "clipup" and max_grad_norm is not None:
            raise EsrlError("optimizer clipup takes the direction of a gradient alone; leave out max_grad_norm")
        constructor = clipup if optimizer == "clipup" else getattr(optax, optimizer)
        takes = inspect.signature(constructor).parameters
        given: dict[str, Any] = {}
        if momentum is not None:
            name = "momentum" if "momentum" in takes else "b1"
            if name not in takes:
                raise EsrlError(f"optimizer {optimizer} has no momentum; leave it out")
            given[name] = momentum
        decays_itself = "weight_decay" in takes and weight_decay is not None
        if decays_itself:
            given["weight_decay"] = weight_decay
        parts.append(constructor(learning_rate=1.0, **given))
    else:
        if momentum is not None:
            raise EsrlError("momentum is for an optimizer given by its name; put it into the optax transformation")
        _try(optimizer, params)
        parts.append(optimizer)
    if weight_decay and not decays_itself:
        # Behind the optimizer, so that the rate multiplies it too; minus, since its updates already point downhill.
        parts.append(optax.add_decayed_weights(-weight_decay))
    whole = optax.chain(*parts)
    # Adam and its kin raise a float to an integer count, which the user's strict promotion would refuse.
    return optax.GradientTransformationExtraArgs(whole.init, lenient(whole.update))


def clipup(learning_rate: float = 1.0, momentum: float = 0.9) -> optax.GradientTransformation:
    """ClipUp: momentum over gradients of unit length, its velocity bounded (Toklu et al., arXiv 2008.02387).

        v = momentum v + rate g / |g|,   v = v min(1, 2 rate / |v|),   W = W - v

    The bound is twice the rate, as the source advises. Where the rate changes over time the velocity keeps its units of
    the rate. A gradient of zero leaves the velocity to its momentum.

    Args:
      learning_rate: length of a step along a gradient.
      momentum: the part of the velocity that is kept.

    Example:
      >>> step, _ = clipup().update({"w": jnp.array([3.0, 4.0])}, clipup().init({"w": jnp.zeros(2)}))
      >>> np.allclose(step["w"], [-0.6, -0.8])
      True
    """

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params)

    def update(gradient: PyTree, velocity: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        length = optax.tree.norm(gradient)
        unit = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1.0), 0.0)
        velocity = jax.tree.map(lambda v, g: momentum * v + unit * g, velocity, gradient)
        bound = jnp.minimum(1.0, 2 / jnp.maximum(optax.tree.norm(velocity), 1e-30))
        velocity = jax.tree.map(lambda v: bound * v, velocity)
        return jax.tree.map(lambda v: -learning_rate * v, velocity), velocity

    return optax.GradientTransformation(init, update)


def _try(optimizer: optax.GradientTransformation, params: PyTree) -> None:
    """Raises `EsrlError` unless the transformation gives updates like the parameters, and its state stays alike."""

    def once(params: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        state = optimizer.init(params)
        updates, after = optimizer.update(params, state, params)
        return updates, state, after

    kinds = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
    try:
        updates, state, after = jax.eval_shape(lenient(once), params)
        alike = kinds(updates) == kinds(params) and kinds(state) == kinds(after)
    except Exception as error:
        raise EsrlError(
            "optimizer needs more than gradients, its state and parameters, or is no optimizer of these parameters:"
            f" its update raised {reason_of(error)}; take another one"
        ) from error
    if not alike:
        raise EsrlError("optimizer gives updates that are not like the parameters, or a state unlike the one before")


def base_rate(learning_rate: Any, optimizer: Any, default: float) -> Any:
    """The learning rate, or what it is when it is not given: 1 with an optax transformation, which has its own."""
    if learning_rate is not None:
        return learning_rate
    return default if isinstance(optimizer, str) else 1.0


def scheduled(name: str, value: Any) -> Callable[[Any], Array]:
    """From a state to the named value of its generation: what the state has, times the schedule where one is given.

    Raises:
      EsrlError: a schedule that fails, or gives something other than a number.
    """
    if not callable(value):
        return lambda state: getattr(state, name)
    value = lenient(value)
    try:
        first = jax.eval_shape(value, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise EsrlError(
            f"{name} is a schedule that fails: {reason_of(error)}; it takes a generation, an int32 of JAX, and gives a"
            " number"
        ) from error
    real = isinstance(first, jax.ShapeDtypeStruct) and any(
        jnp.issubdtype(first.dtype, kind) for kind in (jnp.integer, jnp.floating)
    )
    if not real or first.shape:
        raise EsrlError(f"{name} is a schedule that gives {shown(first)}, but must give one number")
    return lambda state: getattr(state, name) * jnp.asarray(value(state.generation.astype(jnp.int32)), jnp.float32)
