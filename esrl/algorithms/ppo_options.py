"""Options of PPO: names, defaults, meanings, and which values make sense."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import optax

from esrl.algorithms.agent import option
from esrl.core.types import EsrlError


@dataclass(frozen=True)
class PPOOptions:
    """Options of PPO."""

    num_envs: int = option(64, "environments that are stepped side by side", int)
    num_steps: int = option(64, "steps of each environment in an iteration", int)
    num_epochs: int = option(4, "passes over an iteration's steps", int)
    num_minibatches: int = option(
        8, "parts of a pass, one gradient step each; whole sequences for a recurrent policy", int
    )
    learning_rate: float = option(3e-4, "of the optimizer", float)
    anneal_steps: float | None = option(
        None, "environment steps over which the learning rate falls linearly to 0; constant unless given", float
    )
    gamma: float = option(0.99, "discount of one step", float)
    gae_lambda: float = option(0.95, "of the advantage estimates", float)
    clip_eps: float = option(0.2, "how far a choice's probability ratio counts from 1", float)
    entropy_coef: float = option(0.0, "weight of the entropy bonus", float)
    value_coef: float = option(0.5, "weight of the value loss, half the mean squared error", float)
    clip_value: bool = option(False, "clip the value's change by clip_eps as well", bool)
    max_grad_norm: float | None = option(0.5, "bound on the gradient's global norm", float)
    normalize_advantages: bool = option(True, "to mean 0 and deviation 1 in each minibatch", bool)
    normalize_observations: bool = option(True, "by running mean and variance, frozen within an iteration", bool)
    normalize_rewards: bool = option(True, "by the deviation of the running discounted return", bool)
    reward_scale: float = option(1.0, "factor on every reward that is trained on", float)
    critic: str | Any = option("separate", '"separate" network, or "shared" with the policy', str)
    optimizer: str | optax.GradientTransformation = option("adam", "an optax optimizer's name", str)
    weight_decay: float | None = option(None, "decoupled, in units of the learning rate", float)
    deterministic: bool = option(True, "evaluate and act by the mode of the policy rather than by sampling", bool)
    squash: str = option("clip", 'how choices meet the bounds of a Box action space: "tanh" or "clip"', str)
    precision: str = option(
        "float32", 'of the network\'s products: "float32" or "bfloat16"; parameters and all else are float32', str
    )


# Values of the state: any of them can differ between the runs of one compiled program.
TRACED = ("learning_rate", "gamma", "gae_lambda", "clip_eps", "entropy_coef", "value_coef")


def check(options: PPOOptions) -> None:
    """Raises `EsrlError` for the first option whose value makes no sense."""
    for name in ("num_envs", "num_steps", "num_epochs", "num_minibatches"):
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EsrlError(f"{name} is {value!r}, but must be a whole number of at least 1")
    for name in ("gamma", "gae_lambda"):
        value = getattr(options, name)
        if not 0 <= value <= 1:
            raise EsrlError(f"{name} is {value}, but must lie in 0 .. 1")
    for name in ("learning_rate", "clip_eps", "reward_scale", "anneal_steps"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise EsrlError(f"{name} is {value}, but must be above 0")
    for name in ("entropy_coef", "value_coef"):
        value = getattr(options, name)
        if not (value >= 0 and math.isfinite(value)):
            raise EsrlError(f"{name} is {value}, but must be at least 0")


def check_minibatches(options: PPOOptions, recurrent: bool) -> None:
    """Raises `EsrlError` unless the minibatches divide what an iteration gives."""
    parts, steps = options.num_minibatches, options.num_envs * options.num_steps
    if recurrent and options.num_envs % parts:
        raise EsrlError(
            f"a recurrent policy learns from whole sequences, and num_envs={options.num_envs} of them cannot be split"
            f" into num_minibatches={parts}; use {_divisor(options.num_envs, parts)}"
        )
    if not recurrent and steps % parts:
        raise EsrlError(
            f"num_envs x num_steps = {steps} steps cannot be split into num_minibatches={parts};"
            f" use {_divisor(steps, parts)}"
        )


def _divisor(whole: int, near: int) -> int:
    """The divisor of a whole number that is nearest to a number."""
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - near))
