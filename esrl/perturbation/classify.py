"""Classification of parameters by use: low-rank where the network's jaxpr has a rule for it, else why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from esrl.core.jaxprs import call_body, path_name, scan_parts
from esrl.core.types import PyTree
from esrl.perturbation.noise import Leaf


class _Use(NamedTuple):
    """One use of a parameter: the dimensions on the m side, or None and the operation that has no low-rank rule."""

    rows: tuple[int, ...] | None
    operation: str


def classify(fn: Callable[..., Any], params: PyTree, *inputs: PyTree) -> tuple[Leaf, ...]:
    """How the network uses each parameter: what can be low-rank, and why the rest cannot.

    Args:
      fn: `fn(params, *inputs)`, for one lane.
      params: its parameters, or their shapes.
      inputs: arrays or shapes of one lane's inputs.

    Returns:
      One `Leaf` for each leaf of `params`, in `jax.tree.leaves` order.
    """
    jaxpr = jax.make_jaxpr(fn)(params, *inputs).jaxpr
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    uses: list[list[_Use]] = [[] for _ in named]
    tracked = {var: (i, tuple(range(len(var.aval.shape)))) for i, var in enumerate(jaxpr.invars[: len(named)])}
    _collect(jaxpr, tracked, uses)
    return tuple(
        _decide(path_name(path), tuple(leaf.shape), found) for (path, leaf), found in zip(named, uses, strict=True)
    )


def _collect(jaxpr: Any, tracked: dict[Any, tuple[int, tuple[int, ...]]], uses: list[list[_Use]]) -> None:
    """Walks a jaxpr; `tracked` maps a variable to (parameter, which of its dimensions each dimension is)."""
    for eqn in jaxpr.eqns:
        # Literals are not hashable, and are no parameters.
        held = [(k, tracked[v]) for k, v in enumerate(eqn.invars) if not isinstance(v, jex.Literal) and v in tracked]
        if not held:
            continue
        name, body = eqn.primitive.name, call_body(eqn)
        if name == "scan":
            n, _ = scan_parts(eqn)
            inner = eqn.params["jaxpr"].jaxpr
            _collect(inner, {inner.invars[k]: where for k, where in held if k < n}, uses)
            for k, (leaf, _) in held:
                if k >= n:  # a slice of the parameter in each step is another matrix in each step
                    uses[leaf].append(_Use(None, "scan, as a carry or a slice"))
        elif body is not None:
            inside = {body.jaxpr.invars[k]: where for k, where in held}
            _collect(body.jaxpr, inside, uses)
            for inner_var, outer in zip(body.jaxpr.outvars, eqn.outvars, strict=True):
                if not isinstance(inner_var, jex.Literal) and inner_var in inside:
                    tracked[outer] = inside[inner_var]
        elif name == "convert_element_type":
            tracked[eqn.outvars[0]] = held[0][1]
        elif name == "transpose":
            leaf, dims = held[0][1]
            tracked[eqn.outvars[0]] = (leaf, tuple(dims[d] for d in eqn.params["permutation"]))
        else:
            for k, (leaf, dims) in held:
                rows = None if len(held) > 1 else matrix_rows(eqn, k)
                uses[leaf].append(_Use(None if rows is None else tuple(sorted(dims[d] for d in rows)), name))
    for var in jaxpr.outvars:
        if not isinstance(var, jex.Literal) and var in tracked and var not in jaxpr.invars:
            uses[tracked[var][0]].append(_Use(None, "the output itself"))


def matrix_rows(eqn: Any, k: int) -> tuple[int, ...] | None:
    """The m side's dimensions when operand k of this equation is a weight with a low-rank rule, else None."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contract, batch = params["dimension_numbers"]  # a batched product has a matrix for each batch entry: no rule
        return None if batch[k] else tuple(contract[k])
    if name == "conv_general_dilated" and k == 1:
        if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
            return None
        out = params["dimension_numbers"].rhs_spec[0]
        return tuple(d for d in range(len(eqn.invars[1].aval.shape)) if d != out)
    if name == "gather" and k == 0:
        numbers, sizes, shape = params["dimension_numbers"], params["slice_sizes"], eqn.invars[0].aval.shape
        rows_only = tuple(numbers.start_index_map) == (0,) == tuple(numbers.collapsed_slice_dims)
        whole = len(shape) == 2 and sizes[1] == shape[1] and not numbers.operand_batching_dims
        return (0,) if rows_only and whole else None
    return None


def _decide(path: str, shape: tuple[int, ...], uses: Sequence[_Use]) -> Leaf:
    if len(shape) < 2:
        return Leaf(path, shape, None, "not a matrix")
    if not uses:
        return Leaf(path, shape, None, "not used by the network")
    for use in uses:
        if use.rows is None:
            return Leaf(path, shape, None, f"no low-rank rule for its use in {use.operation}")
    rows = uses[0].rows or ()
    others = tuple(d for d in range(len(shape)) if d not in rows)
    if not rows or not others:
        return Leaf(path, shape, None, "contracted whole, so not used as a matrix")
    # Used as W in one place and as W^T in another is fine: the same factors serve both ways round.
    if any(use.rows not in (rows, others) for use in uses):
        return Leaf(path, shape, None, "used as matrices of different shapes")
    if any(use.rows != rows and use.operation != "dot_general" for use in uses):
        return Leaf(path, shape, None, "used both ways round by an operation with one low-rank direction")
    return Leaf(path, shape, rows, "used by " + ", ".join(sorted({use.operation for use in uses})))
