"""`esrl.objective`: anything that can be scored, in the place of an environment."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from esrl.core.options import Option, checked, shown
from esrl.core.types import EsrlError
from esrl.policies.spaces import observation_zeros

SHARED = ("population", "pair")


class Objective:
    """What `esrl.objective` gives: a score of a network, which stands where an environment does.

    One evaluation is the score of one member on one minibatch; it counts as an episode of one environment step.

    Attributes:
      fn: `fn(apply, key) -> score`, what is trained on.
      evaluate: the same for held-out scores.
      network: what is trained unless the agent is given another; None is the agent's own.
      observation_space: of one input of the network. action_space: of its outputs, numbers without bounds.
      shared: who has the same minibatches: the whole "population", or a "pair".
      name: what messages call it. recipe_name: what a recipe does.
      max_episode_steps: 1.
    """

    max_episode_steps = 1

    def __init__(
        self,
        fn: Callable[..., Any],
        network: Any,
        inputs: spaces.Space,
        outputs: int,
        evaluate: Callable[..., Any] | None,
        shared: str,
        name: str,
    ) -> None:
        self.fn, self.evaluate, self.network, self.shared = fn, evaluate or fn, network, shared
        self.observation_space = inputs
        self.action_space = spaces.Box(-np.inf, np.inf, (outputs,), np.float32)
        self.name = self.recipe_name = name
        # As a decorator it takes the function's place, whose module and name lead back to it.
        self.__module__, self.__qualname__ = fn.__module__, getattr(fn, "__qualname__", name)
        self.__doc__ = fn.__doc__

    def __repr__(self) -> str:
        return f"Objective({self.name}: {self.observation_space} -> {self.action_space.shape[0]} outputs)"

    def __call__(self, apply: Any, key: Any) -> Any:
        """The score: what is decorated stays a function."""
        return self.fn(apply, key)


@checked
def objective(
    fn: Callable[..., Any] | None = None,
    network: Any = None,
    *,
    inputs: Any,
    outputs: int,
    evaluate: Callable[..., Any] | None = None,
    shared: str = "population",
    name: str | None = None,
) -> Any:
    """Anything that can be scored, as what an evolution strategy trains on: it stands where an environment does.

    `fn` is pure JAX, but needs no derivative. It gets `apply`, the network of one member, and a key, from which it
    draws a minibatch; it returns one number, and higher is better:

        apply(inputs [*batch, *shape]) -> outputs [*batch, outputs]
        apply(inputs, carry) -> (outputs, carry)       a network with memory; `apply.start(*batch)` is its first carry

    `fn` may call `apply` any number of times, and in a `jax.lax.scan`. It is traced once for the whole population, so
    that a product with a weight matrix is one product for all members. Both members of a pair always get the same key.

    Args:
      fn: `fn(apply, key) -> score`. Left out, `objective` is a decorator.
      network: what is trained, as the agents take it, unless the agent is given one; None leaves it to the agent.
      inputs: one input of the network, without a batch: its shape (a whole number is a vector), or a Gymnasium space
        (`Discrete(256)` for bytes).
      outputs: numbers that the network gives for it.
      evaluate: `evaluate(apply, key) -> score`, for held-out scores, as on data that `fn` never takes. None is `fn`
        with keys that training never has.
      shared: who gets the same keys in a generation: "population" is every member, so that all see the same minibatches
        and whatever depends on them alone is computed once; "pair" gives each pair its own.
      name: what messages call it; None is the function's name.

    Returns:
      An `Objective`, for `esrl.eggroll`, `esrl.open_es`, `esrl.es` and `esrl.eggroll_int8`.

    Raises:
      EsrlError: a function that does not take `(apply, key)`, inputs that are neither a shape nor a space, no outputs.

    Example:
      >>> points = jnp.linspace(-1.0, 1.0, 32)[:, None]
      >>> @esrl.objective(inputs=1, outputs=1)
      ... def parabola(apply, key):
      ...     return -jnp.mean((apply(points) - points**2) ** 2)
      >>> agent = esrl.eggroll(parabola, esrl.mlp((16,)), population=32)
      >>> result = esrl.train(agent, generations=20, num_evals=0)
      >>> start = agent.init(jax.random.key(0))
      >>> esrl.evaluate(agent, result.state).return_mean > esrl.evaluate(agent, start).return_mean
      True
    """
    if fn is None:
        return lambda fn: objective(
            fn, network, inputs=inputs, outputs=outputs, evaluate=evaluate, shared=shared, name=name
        )
    called = str(name or getattr(fn, "__name__", type(fn).__name__))
    for role, function in (("fn", fn), ("evaluate", evaluate)):
        if function is not None and not takes_apply(function):
            raise EsrlError(f"{called}: {role} must take (apply, key), and return one number")
    if shared not in SHARED:
        raise EsrlError(f'{called}: shared is {shared!r}, but must be "population" or "pair"')
    Option("size", int).check(outputs, f"{called}: outputs")
    return Objective(fn, network, _space(called, inputs), outputs, evaluate, shared, called)


def unit_of(env: Any) -> tuple[str, str]:
    """What a step and an episode are called: of an objective both are an evaluation."""
    return ("evaluations", "evaluations") if isinstance(env, Objective) else ("steps", "episodes")


def takes_apply(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with `(apply, key)`."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # some written in C have no signature
        return True
    return True


def looks_undecorated(function: Any) -> bool:
    """Whether a function of a user's file is `fn(apply, key)`, which only lacks the sizes of its network."""
    if not inspect.isfunction(function):
        return False
    return [*inspect.signature(function).parameters][:1] == ["apply"]


def _space(called: str, inputs: Any) -> spaces.Space:
    """The space of one input."""
    if not isinstance(inputs, spaces.Space):
        try:
            shape = Option("hidden", tuple).check(inputs) if inputs != () else ()
        except EsrlError:
            raise EsrlError(
                f"{called}: inputs is {shown(inputs)}, but must be the shape of one input, as 64 or (28, 28, 1), or a"
                " Gymnasium space"
            ) from None
        inputs = spaces.Box(-np.inf, np.inf, tuple(shape), np.float32)
    try:
        observation_zeros(inputs)
    except EsrlError as error:
        raise EsrlError(f"{called}: inputs: {error}") from error
    return inputs
