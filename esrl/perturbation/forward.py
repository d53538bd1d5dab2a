"""The perturbed forward pass of any network, unmodified.

A network is a pure function of (params, inputs) for one lane. It is traced to a jaxpr, and the jaxpr is evaluated for
a whole population: every lane shares the parameters, and each operation that consumes a perturbed parameter gets a rule

    x @ (W + sigma E) = x @ W + (sigma / sqrt(R)) ((x A) B^T)        (arXiv 2511.16652, section 4)

so that one product shared by all lanes and a thin correction take the place of a weight matrix for each member; the
rules are in `esrl.perturbation.rules`. What has none is perturbed densely. `esrl.perturbation.classify` finds out
which is which before training starts.

Lanes are flat and ordered [P, S, E]: pairs, signs, episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from esrl.core.jaxprs import call_body, scan_parts
from esrl.core.types import Array, PyTree
from esrl.perturbation.classify import matrix_rows
from esrl.perturbation.noise import Dense, Leaf, LowRank
from esrl.perturbation.rules import Batched, Lanes, Weight, densify, linear, plain, spread


def population(fn: Callable[..., Any], leaves: Sequence[Leaf]) -> Callable[..., Any]:
    """The network for a whole population.

    Args:
      fn: `fn(params, *inputs) -> outputs` for one lane.
      leaves: the plan that the noise was drawn for.

    Returns:
      `apply(params, eps, scale, *inputs) -> outputs`. `scale` [S] is sigma times the sign of each of a pair's members
      (`[sigma, -sigma]`), inputs and outputs have a leading lane axis L = P S E, ordered [P, S, E].
    """

    def apply(params: PyTree, eps: Sequence[Any], scale: Array, *inputs: PyTree) -> Any:
        flat, _ = jax.tree.flatten(params)
        flat_inputs = jax.tree.leaves(inputs)
        pairs = jax.tree.leaves(eps[0])[0].shape[0]
        lanes = Lanes(pairs, scale.shape[0], flat_inputs[0].shape[0] // (pairs * scale.shape[0]), scale)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(params, *one)
        weights = [_weight(w, e, leaf) for w, e, leaf in zip(flat, eps, leaves, strict=True)]
        out = _evaluate(closed.jaxpr, closed.consts, [*weights, *map(Batched, flat_inputs)], lanes)
        return jax.tree.unflatten(jax.tree.structure(shape), [spread(x, lanes) for x in out])

    return apply


def _weight(value: Array, eps: LowRank | Dense, leaf: Leaf) -> Weight:
    if isinstance(eps, Dense):
        return Weight(value, eps.e, None, (), (), value.dtype)
    return Weight(value, eps.a, eps.b, leaf.row_axes or (), leaf.column_axes, value.dtype)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], lanes: Lanes) -> list[Any]:
    """Evaluates a one-lane jaxpr for all lanes; values are shared arrays, `Batched`, or `Weight`."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex.Literal) else env[var]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        body = call_body(eqn)
        if body is not None:
            out = _evaluate(body.jaxpr, body.consts, values, lanes)
        elif any(isinstance(v, Weight) for v in values):
            out = _consume(eqn, values, lanes)
        else:
            out = plain(eqn, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _consume(eqn: Any, values: list[Any], lanes: Lanes) -> list[Any]:
    """An equation that consumes a perturbed parameter, by its rule; without one, only dense noise gets this far."""
    name = eqn.primitive.name
    held = [k for k, v in enumerate(values) if isinstance(v, Weight)]
    k = held[0]
    weight = values[k]
    if name == "convert_element_type":
        return [weight._replace(dtype=eqn.params["new_dtype"])]
    if name == "transpose":
        return [_transpose(weight, eqn.params["permutation"])]
    if name == "scan":
        return _scan(eqn, values, lanes)
    if len(held) == 1 and matrix_rows(eqn, k) is not None and (weight.b is not None or name == "dot_general"):
        return [linear(eqn, values, k, lanes)]
    if any(values[i].b is not None for i in held):
        raise AssertionError(f"a parameter was classified as low-rank but is consumed by {name}")  # a defect of ours
    return plain(eqn, [densify(v, lanes) if isinstance(v, Weight) else v for v in values])


def _transpose(weight: Weight, permutation: Sequence[int]) -> Weight:
    value = weight.value.transpose(permutation)
    if weight.b is None:
        return weight._replace(value=value, a=weight.a.transpose(0, *(d + 1 for d in permutation)))
    where = list(permutation).index
    a_dims, b_dims = (tuple(where(d) for d in dims) for dims in (weight.a_dims, weight.b_dims))
    return Weight(value, weight.a, weight.b, a_dims, b_dims, weight.dtype)


def _scan(eqn: Any, values: Sequence[Any], lanes: Lanes) -> list[Any]:
    """A scan inside the network whose constants hold perturbed parameters."""
    params = eqn.params
    n, m = scan_parts(eqn)
    consts, body = list(values[:n]), params["jaxpr"]
    carry = [spread(v, lanes) for v in values[n : n + m]]
    xs = [jnp.moveaxis(spread(v, lanes), 0, 1) for v in values[n + m :]]

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        args = [*consts, *map(Batched, carry), *map(Batched, x)]
        out = [spread(v, lanes) for v in _evaluate(body.jaxpr, body.consts, args, lanes)]
        return out[:m], out[m:]

    carry, ys = jax.lax.scan(
        step, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [Batched(x) for x in carry] + [Batched(jnp.moveaxis(y, 0, 1)) for y in ys]
