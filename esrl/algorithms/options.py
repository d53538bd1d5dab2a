"""Options of agents: their constructors, and what was given to them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import numpy as np
from gymnasium import spaces

from esrl.core.names import FORMER_DEFAULTS
from esrl.core.options import arguments_of, checked, options_of
from esrl.core.runtime import check_jax, configure
from esrl.core.types import notice_once
from esrl.envs.base import name_of
from esrl.policies.spaces import map_space

Constructor = TypeVar("Constructor", bound=Callable[..., Any])

_SHARED = re.compile(r" {6}\*\*shared: as in `esrl\.\w+`:\n")  # a line of a docstring that `agent_constructor` fills in


def agent_constructor(shares: Callable[..., Any] | None = None) -> Callable[[Constructor], Constructor]:
    """Decorates the constructor of an agent: its arguments are `checked`, and then whether JAX has a device.

    Args:
      shares: a constructor with more to say: the line `**shared` of the docstring becomes what that of `shares` says of
        the arguments that both have.
    """

    def decorate(constructor: Constructor) -> Constructor:
        doc, signature = constructor.__doc__ or "", inspect.signature(constructor)
        own = signature.parameters
        told = arguments_of(doc)
        lines = [
            f"      {name}: {text}\n"
            for name, text in arguments_of(shares.__doc__ or "" if shares else "").items()
            if name in own and name not in told
        ]

        @wraps(constructor)
        def ready(*args: Any, **given: Any) -> Any:
            configure()
            check_jax()
            agent = constructor(*args, **given)
            bound = signature.bind(*args, **given)
            bound.apply_defaults()
            if "squash" in own and bound.arguments["squash"] != own["squash"].default:
                _say_what_is_not_squashed(agent.env)
            every = {name: bound.arguments[name] for name, p in own.items() if p.kind is p.KEYWORD_ONLY}
            call = (made, dict(bound.arguments))
            return dataclasses.replace(agent, in_force=every | agent.in_force, call=call)

        made = checked(ready)
        made.__doc__ = _SHARED.sub(lambda _: "".join(lines), doc)
        return made  # type: ignore[return-value]

    return decorate


def _say_what_is_not_squashed(env: Any) -> None:
    """Says that squash does nothing where no action is a real number. No error: a run's recipe may hold it."""

    def real(space: spaces.Space) -> bool:
        return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)

    if not any(jax.tree.leaves(map_space(real, env.action_space))):
        notice_once(f"{name_of(env)}: squash changes nothing, since no action there is a Box of real numbers")


def changed_options(constructor: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options among what was given that differ from their defaults, or once had others, in order."""
    known = options_of(constructor)
    always = FORMER_DEFAULTS if "averaging" in known else {}

    def same(value: Any, default: Any) -> bool:
        return value is default or (type(value) is type(default) and value == default)

    return {
        name: given[name]
        for name, option in known.items()
        if name in given and (name in always or not same(given[name], option.default))
    }
