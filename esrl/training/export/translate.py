"""A traced network as a `Graph`: what depends on parameters alone is computed, all else becomes operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from esrl.core.jaxprs import call_body, path_name, scan_parts
from esrl.core.types import PyTree
from esrl.training.export import elementwise as elementwise  # fills the table
from esrl.training.export import shapes as shapes  # fills the table
from esrl.training.export.graph import Graph, Unsupported, Value
from esrl.training.export.table import RULES

_UNROLLED = 256  # steps of a loop that are written one after another


def translate(fn: Callable[..., Any], params: PyTree, names: PyTree, *inputs: PyTree) -> tuple[Graph, list[Value]]:
    """A function of parameters and inputs as operations on the inputs.

    Args:
      fn: `fn(params, *inputs) -> outputs`, for one lane.
      params: arrays.
      names: of each array of the inputs, in their structure.
      inputs: arrays or shapes of one lane.

    Returns:
      The graph, and its outputs in the order of their leaves, each with a batch axis.

    Raises:
      Unsupported: the function has an operation without a rule, which is named.
    """
    closed = jax.make_jaxpr(fn)(params, *inputs)
    graph = Graph()
    named = [(path_name(path), np.asarray(x)) for path, x in jax.tree_util.tree_flatten_with_path(params)[0]]
    walker = _Walker(graph, {id(array): name for name, array in named})
    shapes = zip(jax.tree.leaves(names), jax.tree.leaves(inputs), strict=True)
    given = [graph.input(name, x.shape, x.dtype) for name, x in shapes]
    found = walker.evaluate(closed.jaxpr, closed.consts, [*(array for _, array in named), *given])
    outputs = [graph.varying(walker.value(x)) for x in found]
    return graph, outputs


class _Walker:
    """Evaluates a jaxpr where variables are arrays (constants) or `Value`s of a graph."""

    def __init__(self, graph: Graph, names: dict[int, str]) -> None:
        self.graph, self.names = graph, names

    def value(self, x: Any) -> Value:
        if isinstance(x, Value):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise Unsupported("there is no rule for random numbers")
        return self.graph.constant(x, self.names.get(id(x), ""))

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, given, strict=True))

        def read(var: Any) -> Any:
            return var.val if isinstance(var, jex.Literal) else known[var]

        for eqn in jaxpr.eqns:
            values = [read(var) for var in eqn.invars]
            known.update(zip(eqn.outvars, self._equation(eqn, values), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        body = call_body(eqn)
        if body is not None:
            return self.evaluate(body.jaxpr, body.consts, values)
        if not any(isinstance(x, Value) for x in values):
            return _computed(eqn, values)
        if name == "scan":
            return self._scan(eqn, values)
        if name == "cond":
            return self._cond(eqn, values)
        rule = RULES.get(name)
        if rule is None:
            raise Unsupported(f"there is no rule for its operation {name}")
        try:
            return rule(self.graph, eqn, [self.value(x) for x in values])
        except Unsupported as error:
            raise Unsupported(f"its operation {name} on {_shown(eqn)}: {error}") from error

    def _scan(self, eqn: Any, values: list[Any]) -> list[Any]:
        """A loop, written out."""
        steps, body, (n, m) = eqn.params["length"], eqn.params["jaxpr"], scan_parts(eqn)
        if steps > _UNROLLED:
            raise Unsupported(f"it has a loop of {steps} steps, more than {_UNROLLED}")
        consts, carry, xs = values[:n], values[n : n + m], values[n + m :]
        order = range(steps - 1, -1, -1) if eqn.params["reverse"] else range(steps)
        rows: dict[int, list[Any]] = {}
        for i in order:
            out = self.evaluate(body.jaxpr, body.consts, [*consts, *carry, *(self._row(x, i) for x in xs)])
            carry, rows[i] = out[:m], out[m:]
        return [*carry, *(self._stacked([rows[i][k] for i in range(steps)]) for k in range(len(eqn.outvars) - m))]

    def _row(self, x: Any, i: int) -> Any:
        if not isinstance(x, Value):
            return x[i]
        picked = self.graph.emit(
            "Slice", [x], (1, *x.shape[1:]), x.dtype, starts=[i], ends=[i + 1], axes=[1], steps=[1]
        )
        return self.graph.reshape(picked, x.shape[1:])

    def _stacked(self, rows: list[Any]) -> Any:
        if not any(isinstance(x, Value) for x in rows):
            return np.stack([np.asarray(x) for x in rows])
        values = [self.value(x) for x in rows]
        each = [self.graph.varying(self.graph.reshape(x, (1, *x.shape))) for x in values]
        return self.graph.emit("Concat", each, (len(rows), *values[0].shape), values[0].dtype, axis=1)

    def _cond(self, eqn: Any, values: list[Any]) -> list[Any]:
        """All branches, of which each lane takes its own."""
        index, given = values[0], values[1:]
        branches = eqn.params["branches"]
        if not isinstance(index, Value):
            branch = branches[min(max(int(index), 0), len(branches) - 1)]
            return self.evaluate(branch.jaxpr, branch.consts, given)
        found = [self.evaluate(branch.jaxpr, branch.consts, given) for branch in branches]
        taken = found[-1]
        for i in range(len(branches) - 2, -1, -1):
            limit = self.graph.constant(np.asarray(i, index.dtype))
            chosen = self.graph.apply("LessOrEqual", [index, limit], (), bool)
            taken = [
                self.graph.where(
                    self.graph.reshape(chosen, (1,) * len(var.aval.shape)),
                    self.value(yes), self.value(no), var.aval.shape, var.aval.dtype,
                )
                for var, yes, no in zip(eqn.outvars, found[i], taken, strict=True)
            ]  # fmt: skip
        return taken


def _computed(eqn: Any, values: list[Any]) -> list[Any]:
    """An operation on constants alone, done by JAX."""
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # a pair before jax 0.10
    with jax.ensure_compile_time_eval():
        given = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in values]
        out = eqn.primitive.bind(*functions, *given, **params)
    found = list(out) if eqn.primitive.multiple_results else [out]
    return [x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x) for x in found]


def _shown(eqn: Any) -> str:
    return " and ".join(f"{var.aval.dtype}{list(var.aval.shape)}" for var in eqn.invars)
