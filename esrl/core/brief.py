"""Short forms of what holds arrays and functions, for `repr`: nobody wants to read a hundred thousand weights."""

from __future__ import annotations

import math
from typing import Any

_LONGEST = 60  # characters of a value


def weights_of(params: Any) -> int:
    """How many numbers are in a tree of arrays."""
    import jax  # here: options are told without it

    return sum(math.prod(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(params))


def state_text(state: Any) -> str:
    """A state of an agent in one line, also where it is traced by JAX, or several that are stacked.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,), skip=False), population=8)
      >>> agent.init(jax.random.key(0))
      ESState(generation 0, 0 environment steps, 114 weights)
    """
    name, weights = type(state).__name__, weights_of(state.params)
    try:
        done = f"generation {int(state.generation)}, {int(state.env_steps):,} environment steps"
        return f"{name}({done}, {weights:,} weights)"
    except Exception:  # traced, stacked, without values, deleted: a text there has to be
        shape = getattr(state.generation, "shape", ())
        if not shape:
            return f"{name}(without values, {weights:,} weights)"
        return f"{name}({math.prod(shape):,} stacked, {weights // max(math.prod(shape), 1):,} weights each)"


def options_text(options: dict[str, Any]) -> str:
    """Options as they would be given, `sigma=0.1, rank=4`; what is no plain value by its class alone."""
    return ", ".join(f"{name}={_plain(value)}" for name, value in options.items())


def _plain(value: Any) -> str:
    plain = isinstance(value, (bool, int, float, str, type(None)))
    if isinstance(value, (tuple, list)) and all(isinstance(part, (bool, int, float, str)) for part in value):
        plain = type(value) in (tuple, list)
    text = repr(value) if plain else f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
