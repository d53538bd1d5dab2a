"""Options of evolution strategies: names, defaults, meanings, and which values make sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import optax
from jax.sharding import Mesh

from esrl.algorithms.agent import option
from esrl.algorithms.shaping import Shaping
from esrl.core.types import Array, EsrlError

Schedule = Callable[[Array], Array]
BASE_RATE = 0.02  # the learning rate unless given: better than 0.01 in experiments/README.md, "Defaults"


@dataclass(frozen=True)
class ESOptions:
    """Options that every evolution strategy has."""

    population: int = option(512, "members of a generation, 2P with antithetic pairs", int)
    sigma: float | Schedule = option(0.05, "standard deviation of each weight's perturbation", float)
    distribution: str = option("normal", 'of the random numbers: "normal", or "rademacher": +1 or -1, cheaper', str)
    noise_dtype: str = option(
        "float32", 'type that they are stored in: "float32", "bfloat16", or "int8" for rademacher', str
    )
    learning_rate: float | Schedule | None = option(
        None, f"of the optimizer; {BASE_RATE} unless given (1 for an optax transformation)", float
    )
    optimizer: str | optax.GradientTransformation = option("adam", "an optax optimizer's name", str)
    momentum: float | None = option(None, "of sgd and rmsprop; b1 of adam and its kin", float)
    weight_decay: float | None = option(None, "decoupled, in units of the learning rate", float)
    max_grad_norm: float | None = option(None, "bound on the global norm of the gradient estimate", float)
    sigma_decay: float = option(1.0, "factor on sigma for each generation", float)
    lr_decay: float = option(1.0, "factor on the learning rate for each generation", float)
    shaping: str | Shaping = option("centred_rank", "centred_rank, z_score, group, sign, none or leave_one_out", str)
    episodes_per_member: int = option(1, "episodes that a member's fitness is the mean of", int)
    antithetic: bool = option(True, "members come in pairs W + sigma E, W - sigma E with common random numbers", bool)
    step_scale: str = option(
        "plain",
        '"plain": gradient of the expected fitness; "paper": sqrt(N) mean(f sigma E), sqrt(N) sigma^2 times it',
        str,
    )
    normalize_observations: bool = option(True, "by running mean and variance, frozen within a generation", bool)
    reward_offset: float = option(
        0.0, "added to each step's reward for training only, as -1 against an alive bonus", float
    )
    deterministic: bool = option(True, "act by the mode of the policy rather than by sampling", bool)
    squash: str = option("tanh", 'how outputs meet the bounds of a Box action space: "tanh" or "clip"', str)
    precision: str = option(
        "float32", 'of the network\'s products: "float32" or "bfloat16"; parameters and all else are float32', str
    )
    chunk: int | None = option(None, "pairs that play at once on each device; by caches and memory unless given", int)
    memory: float | None = option(
        None, "GiB that pairs that play at once may take on each device; half of what it has unless given", float
    )
    mesh: Mesh | None = option(None, 'devices along one axis "pairs"; all that divide the pairs unless given')


@dataclass(frozen=True)
class OpenESOptions(ESOptions):
    """Options of OpenES: those of every evolution strategy."""


@dataclass(frozen=True)
class EggrollOptions(ESOptions):
    """Options of EGGROLL."""

    rank: int = option(1, "rank of each matrix's perturbation", int)
    thin: float | None = option(
        None,
        "matrices for which low rank adds more than this fraction of variance get dense noise; rademacher adds none",
        float,
    )


def check(options: ESOptions) -> None:
    """Raises `EsrlError` for the first option whose value makes no sense."""
    members = options.population
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise EsrlError(f"population is {members!r}, but must be a whole number of at least {1 + options.antithetic}")
    if options.antithetic and members % 2:
        raise EsrlError(
            f"population is {members}, but antithetic pairs need an even number; use {members + 1}, or antithetic=false"
        )
    if not isinstance(options.episodes_per_member, int) or options.episodes_per_member < 1:
        raise EsrlError(f"episodes_per_member is {options.episodes_per_member}, but must be at least 1")
    chunk = options.chunk
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise EsrlError(f"chunk is {chunk!r}, but must be a whole number of at least 1")
    for name in ("sigma", "learning_rate", "sigma_decay", "lr_decay", "memory"):
        value = getattr(options, name)
        if not (value is None or callable(value) or isinstance(value, (int, float))):
            raise EsrlError(f"{name} is {value!r}, but must be a number above 0")
        if value is not None and not callable(value) and not (value > 0 and math.isfinite(value)):
            raise EsrlError(f"{name} is {value}, but must be above 0")
    if options.step_scale not in ("plain", "paper"):
        raise EsrlError(f'step_scale is {options.step_scale!r}, but must be "plain" or "paper"')
    if options.shaping == "sign" and not options.antithetic:
        raise EsrlError("sign shaping compares the two members of a pair; it needs antithetic=true")
