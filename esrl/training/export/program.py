"""A deployed policy as a `Graph`, which the writers of NumPy and ONNX share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium import spaces

from esrl.core.types import EsrlError, reason_of
from esrl.policies.spaces import map_space
from esrl.training.export.deployed import Deployed, leaf_names, leaves_of
from esrl.training.export.graph import Graph, Unsupported, Value, held
from esrl.training.export.translate import translate


class Program(NamedTuple):
    """A policy's operations.

    Attributes:
      graph: takes the observation's arrays and the carry's, by their names.
      actions: each array of the action by its name. output: of the network. carry: after the step.
    """

    graph: Graph
    actions: dict[str, Value]
    output: Value
    carry: list[Value]


def program(policy: Deployed, to: str) -> Program:
    """The operations of a policy.

    Raises:
      EsrlError: the network has an operation without a rule, which is named.
    """
    carry = jax.tree.unflatten(jax.tree.structure(policy.start), policy.about["carry"])
    names = (leaf_names(policy.about["observation"]), carry)
    try:
        graph, found = translate(policy.act, policy.params, names, policy.observation, policy.start)
        leaves = leaves_of(policy.about["action"])
        actions = {leaf["name"]: x for leaf, x in zip(leaves, found, strict=False)}
        bounds = dict(zip(actions, bounds_of(policy.action_space), strict=True))
        actions = {name: fitted(graph, x, *bounds[name]) for name, x in actions.items()}
    except Unsupported as error:
        raise EsrlError(f"the network cannot be exported to {to}: {error}; stablehlo takes any network") from error
    except Exception as error:  # whatever a network may hold that no rule thought of
        reason = reason_of(error)
        raise EsrlError(f"the network cannot be exported to {to} ({reason}); stablehlo takes any network") from error
    output, *after = found[len(leaves) :]
    return Program(graph.finished([*actions.values(), output, *after]), actions, output, after)


def bounds_of(space: spaces.Space) -> list[tuple[np.dtype, Any]]:
    """The type and the bounds of each array of an action, in the order of JAX's leaves."""
    each = map_space(lambda part: _Leaf(part), space)
    return [(np.dtype(leaf.space.dtype), leaf.space) for leaf in jax.tree.leaves(each)]


class _Leaf:
    """A space, as a leaf of a tree."""

    def __init__(self, space: spaces.Space) -> None:
        self.space = space


def fitted(graph: Graph, x: Value, dtype: np.dtype, space: spaces.Space) -> Value:
    """An action as its space has it: of its type, and within its bounds, which rounding may have left."""
    x = graph.cast(x, dtype)
    if not isinstance(space, spaces.Box) or dtype == np.bool_:
        return x
    for op, bound in (("Max", space.low), ("Min", space.high)):
        x = graph.emit(op, [x, graph.constant(bound.astype(held(dtype)))], x.shape, dtype)
    return x
