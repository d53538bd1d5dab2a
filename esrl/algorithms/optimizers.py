"""Optax optimizers with a unit learning rate, so that the rate stays a traced value of the state."""

from __future__ import annotations

import inspect

import optax

from esrl.core.types import EsrlError, nearest

NAMES = ("adabelief", "adagrad", "adam", "adamax", "adamw", "lamb", "lion", "nadam", "radam", "rmsprop", "sgd", "yogi")


def make_optimizer(
    optimizer: str | optax.GradientTransformation,
    momentum: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
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

    Raises:
      EsrlError: unknown name, a momentum that the optimizer does not have, or values below 0.
    """
    for name, value in (("momentum", momentum), ("weight_decay", weight_decay), ("max_grad_norm", max_grad_norm)):
        if value is not None and not value >= 0:
            raise EsrlError(f"{name} is {value}, but must be at least 0")
    parts = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
    decays_itself = False
    if isinstance(optimizer, str):
        if optimizer not in NAMES:
            raise EsrlError(f"unknown optimizer {optimizer!r}{nearest(optimizer, NAMES)}")
        constructor = getattr(optax, optimizer)
        takes = inspect.signature(constructor).parameters
        given: dict[str, float | None] = {}
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
        parts.append(optimizer)
    if weight_decay and not decays_itself:
        # Behind the optimizer, so that the rate multiplies it too; minus, since its updates already point downhill.
        parts.append(optax.add_decayed_weights(-weight_decay))
    return optax.chain(*parts)
