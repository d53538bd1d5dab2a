"""Check that an environment is pure: its methods are functions only when they keep nothing on the object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from esrl.core.jaxprs import operations
from esrl.core.types import EsrlError, PyTree, seed_key
from esrl.policies.spaces import observation_zeros

_DEPTH = 4  # of lists in lists, and of environments in environments
_ADVICE = "an environment has no memory of its own, so keep that in the state that reset and step return"


def check_pure(env: Any, name: str) -> int:
    """Traces reset and step once more, and compares what the object holds before and after.

    What the very first call put there is allowed: tables that are worked out once, for example.

    Args:
      env: an environment that has passed `check_contract`.
      name: what errors call it.

    Returns:
      The number of operations of reset and step together.

    Raises:
      EsrlError: a method that changes an attribute, or leaves a traced value in one; it is named.
    """
    key = jax.eval_shape(lambda: seed_key(0))
    action = observation_zeros(env.action_space)
    # Lambdas, as JAX does not trace a function again that it knows.
    count, state = _traced(env, name, "reset", lambda key: env.reset(key), key)
    more, _ = _traced(env, name, "step", lambda *args: env.step(*args), state[0], action, key)
    return count + more


def _traced(env: Any, name: str, method: str, call: Callable[..., Any], *args: Any) -> tuple[int, PyTree]:
    before = {own: [_mark(x) for x in _leaves(value)] for own, value in _attributes(env).items()}
    traced, shapes = jax.make_jaxpr(call, return_shape=True)(*args)
    after = {own: [_mark(x) for x in _leaves(value)] for own, value in _attributes(env).items()}
    check_traced(env, name, method)
    changed = sorted(own for own in before.keys() | after.keys() if before.get(own) != after.get(own))
    if changed:
        raise EsrlError(f"{name}: {method} changes self.{changed[0]}; {_ADVICE}")
    return operations(traced.jaxpr), shapes


def check_traced(env: Any, name: str, method: str) -> None:
    """Refuses an environment that holds values of a trace, which mean nothing once it is over.

    Args:
      env: the environment. name: what errors call it. method: the one that was traced.

    Raises:
      EsrlError: it names an attribute with such a value.
    """
    for own, value in sorted(_attributes(env).items()):
        if any(isinstance(x, jax.core.Tracer) for x in _leaves(value)):
            raise EsrlError(f"{name}: {method} stores a traced value in self.{own}; {_ADVICE}")


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object holds by name, itself or by its classes; methods and properties are left out."""
    found: dict[str, Any] = {}
    for cls in reversed(type(thing).__mro__[:-1]):
        held = {name: x for name, x in vars(cls).items() if not name.startswith("_")}
        found |= {name: x for name, x in held.items() if not (callable(x) or hasattr(type(x), "__get__"))}
    return found | getattr(thing, "__dict__", {})


def _leaves(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """What a value is made of: entries of containers, and attributes of an environment that is wrapped."""
    parts: list[Any] | None = None
    if isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, set):
        parts = sorted(value, key=repr)
    elif isinstance(value, dict):
        parts = [part for entry in value.items() for part in entry]
    elif _is_env(value):
        parts = [part for entry in _attributes(value).items() for part in entry]
    if parts is None or depth == 0:
        yield value
        return
    yield len(parts)
    for part in parts:
        yield from _leaves(part, depth - 1)


def _mark(leaf: Any) -> Any:
    """What a leaf is now, so that it can be compared with what it is later."""
    if leaf is None or isinstance(leaf, (bool, int, float, str, bytes)):
        return repr(leaf)
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.tobytes()
    if isinstance(leaf, np.random.Generator):
        return repr(leaf.bit_generator.state)
    return {id(leaf): leaf}  # any other object is equal to itself alone; the mark keeps it, so its id is not used again


def _is_env(value: Any) -> bool:
    """Whether something is an environment that this one wraps."""
    methods = ("step", "transition", "step_env")
    return not isinstance(value, type) and any(callable(getattr(type(value), name, None)) for name in methods)
