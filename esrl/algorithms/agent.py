"""What an agent is: all that train, evaluate, checkpoint and log ever see."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple, TypeVar

from jax.sharding import Mesh

from esrl.core import sharding
from esrl.core.types import Array, EsrlError, Key, PyTree, nearest
from esrl.perturbation.noise import Leaf
from esrl.policies.policy import Policy
from esrl.rollouts.types import Runner

Metrics = dict[str, Any]
Options = TypeVar("Options")
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


class Plan(NamedTuple):
    """What a generation consists of, known before it runs.

    Attributes:
      lanes: episodes of a generation (of PPO: environments side by side).
      leaves: how each parameter is perturbed (empty for agents that perturb nothing).
      noise_floats: random numbers that a member's perturbation takes. weights: how many there are to be trained.
      chunk: pairs (lanes, for agents that perturb nothing) at once on each device. devices: how many there are.
      memory: what a generation takes on each device, by what it is for (empty where that is not known before).
      noise_bytes: that a member's perturbation is stored in.
    """

    lanes: int
    leaves: tuple[Leaf, ...] = ()
    noise_floats: int = 0
    weights: int = 0
    chunk: int = 0
    devices: int = 1
    noise_bytes: int = 0
    memory: tuple[Any, ...] = ()


class Pure(NamedTuple):
    """An agent as pure, untransformed functions, for `jax.jit`, `jax.vmap` and `jax.lax.map`.

    Attributes:
      init: `init(key) -> state`. step: `step(state) -> (state, metrics)`.
      values: names of float32 scalars in a state that may differ between runs of one program.
    """

    init: Callable[[Key], Any]
    step: Callable[[Any], tuple[Any, Metrics]]
    values: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Agent:
    """An algorithm bound to an environment, as functions of its state.

    A state is what the next step needs, metrics are what an observer wants. `step` is `update` after `rollout`; they
    are there by themselves so that an observer can time them.

    Attributes:
      name: what the command line calls it, "eggroll".
      env: the environment.
      policy: the policy bound to it.
      runner: plays its episodes.
      init: `init(key) -> state`. A state has at least `generation`, `env_steps` (a `Count`) and `params`.
      step: `step(state) -> (state, metrics)`, one generation; on JAX environments one compiled program.
      rollout: `rollout(state) -> batch`, one generation's experience.
      update: `update(state, batch) -> (state, metrics)`.
      act: `act(state, observation, carry, key) -> (action, carry)` for one lane, with the unperturbed parameters.
      plan: sizes known before running.
      options: what was given to the constructor and differs from its defaults.
      pure: the same without compilation, or None when Python steps the environment.
    """

    name: str
    env: Any
    policy: Policy
    runner: Runner
    init: Callable[[Key], Any]
    step: Callable[[Any], tuple[Any, Metrics]]
    rollout: Callable[[Any], Any]
    update: Callable[[Any, Any], tuple[Any, Metrics]]
    act: Callable[[Any, PyTree, PyTree, Key], tuple[Array, PyTree]]
    plan: Plan
    options: dict[str, Any] = field(default_factory=dict)
    pure: Pure | None = None


def compiled(
    init: Callable[[Key], Any],
    rollout: Callable[[Any], Any],
    update: Callable[[Any, Any], tuple[Any, Metrics]],
    mesh: Mesh,
    jittable: bool,
    values: tuple[str, ...],
) -> dict[str, Any]:
    """`init`, `step`, `rollout`, `update` and `pure` of an `Agent`, from pure functions and the devices they run on."""
    place = partial(sharding.compiled, mesh=mesh)

    def step(state: Any) -> tuple[Any, Metrics]:
        return update(state, rollout(state))

    functions = {"init": place(init), "update": place(update)}
    if not jittable:
        learn = functions["update"]
        return {**functions, "rollout": rollout, "step": lambda state: learn(state, rollout(state))}
    return {**functions, "rollout": place(rollout), "step": place(step), "pure": Pure(init, step, values)}


def option(default: Any, help: str, plain: Any = None) -> Any:
    """A field of an agent's options: its default, what it means, and its type in recipes and on the command line.

    Args:
      default: used when the option is not given.
      help: one or two sentences with units; the command line shows them.
      plain: the type of the option in a recipe; None when only Python code can give it.
    """
    return field(default=default, metadata={"help": help, "plain": plain})


def read_options(cls: type[Options], given: dict[str, Any]) -> Options:
    """Options from keyword arguments.

    Raises:
      EsrlError: an unknown name; near ones are offered.
    """
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise EsrlError(f"unknown option {name!r}{nearest(name, known)}")
    return cls(**given)


def takes_options(cls: type) -> Callable[[Constructor], Constructor]:
    """Gives a constructor with `**options` the signature that it really has, and its docstring their meanings."""

    def decorate(constructor: Constructor) -> Constructor:
        own = [p for p in inspect.signature(constructor).parameters.values() if p.kind is not p.VAR_KEYWORD]
        named = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(cls)]
        constructor.__signature__ = inspect.Signature([*own, *named])  # type: ignore[attr-defined]
        meanings = "".join(f"        {f.name}: {f.metadata['help']}.\n" for f in fields(cls))
        marker = "      **options: by keyword:\n"
        constructor.__doc__ = (constructor.__doc__ or "").replace(marker, marker + meanings)
        return constructor

    return decorate


def changed_options(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults, in order."""
    found = {}
    for f in fields(options):
        value = getattr(options, f.name)
        same = value is f.default or (type(value) is type(f.default) and value == f.default)
        if f.default is MISSING or not same:
            found[f.name] = value
    return found
