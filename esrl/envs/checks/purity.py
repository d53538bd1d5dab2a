"""Whether an environment's methods keep anything on the object: then they are not functions."""

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


class _It:
    """Stands for an object that is only itself."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _It) and self.it is other.it

    __hash__ = None  # type: ignore[assignment]


def check(env: Any, name: str) -> int:
    """Traces reset and step once more, and looks at what the object holds before and after.

    Values that were put there by the very first call, such as tables worked out once, are no memory.

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
    count, state = _traced(env, name, "reset", lambda key: env.reset(key), key)
    more, _ = _traced(env, name, "step", lambda *args: env.step(*args), state[0], action, key)
    return count + more


def _traced(env: Any, name: str, method: str, call: Callable[..., Any], *args: Any) -> tuple[int, PyTree]:
    before = _held(env)
    traced, shapes = jax.make_jaxpr(call, return_shape=True)(*args)
    after = _held(env)
    changed = sorted(own for own in before.keys() | after.keys() if before.get(own) != after.get(own))
    check_traced(env, name, method)
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
    stale = sorted(own for own, value in _attributes(env).items() if any(_tracers(value, _DEPTH)))
    if stale:
        raise EsrlError(f"{name}: {method} stores a traced value in self.{stale[0]}; {_ADVICE}")


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object holds by name, itself or by its classes; methods and properties are left out."""
    found: dict[str, Any] = {}
    for cls in reversed(type(thing).__mro__[:-1]):
        found |= {name: x for name, x in vars(cls).items() if not (name.startswith("_") or _is_method(x))}
    return found | getattr(thing, "__dict__", {})


def _is_method(value: Any) -> bool:
    return callable(value) or hasattr(type(value), "__get__")


def _held(thing: Any) -> dict[str, Any]:
    return {name: _frozen(value, _DEPTH) for name, value in _attributes(thing).items()}


def _frozen(value: Any, depth: int) -> Any:
    """What a value is now, so that it can be compared with what it is later."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if depth and isinstance(value, (list, tuple)):
        return [_frozen(part, depth - 1) for part in value]
    if depth and isinstance(value, dict):
        return [(repr(key), _frozen(part, depth - 1)) for key, part in value.items()]
    if isinstance(value, set):
        return sorted(map(repr, value))
    if depth and _is_world(value):
        return {name: _frozen(part, depth - 1) for name, part in _attributes(value).items()}
    return _It(value)


def _tracers(value: Any, depth: int) -> Iterator[bool]:
    if isinstance(value, jax.core.Tracer):
        yield True
    elif depth and isinstance(value, dict):
        for part in value.values():
            yield from _tracers(part, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _tracers(part, depth - 1)
    elif depth and _is_world(value):
        for part in _attributes(value).values():
            yield from _tracers(part, depth - 1)


def _is_world(value: Any) -> bool:
    """Whether something is an environment that this one wraps."""
    methods = ("step", "transition", "step_env")
    return not isinstance(value, type) and any(callable(getattr(type(value), name, None)) for name in methods)
