"""The table of rules: for each of JAX's operations, what it is in a `Graph`.

Shapes are those of one lane, axes count the batch axis. `elementwise` and `shapes` fill the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from esrl.training.export.graph import Graph, Value, held

Rule = Callable[[Graph, Any, list[Value]], list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Makes `fn(graph, equation, *inputs) -> output` the rule of these operations."""

    def add(fn: Callable[..., Value]) -> Callable[..., Value]:
        for name in names:
            RULES[name] = lambda graph, eqn, given: [fn(graph, eqn, *given)]
        return fn

    return add


def out(eqn: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an equation's output."""
    return tuple(eqn.outvars[0].aval.shape), np.dtype(eqn.outvars[0].aval.dtype)


def scalar(graph: Graph, value: float, dtype: Any) -> Value:
    """A number as a constant, of the type in which the graph holds another."""
    return graph.constant(np.asarray(value, held(dtype)))
