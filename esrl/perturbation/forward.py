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
from esrl.perturbation import fused
from esrl.perturbation.classify import matrix_rows
from esrl.perturbation.fused_part import inlined
from esrl.perturbation.noise import Dense, Leaf, LowRank
from esrl.perturbation.rules import Batched, Layout, Weight, apply_equation, densify, per_lane, perturbed_product


def population(
    fn: Callable[..., Any], leaves: Sequence[Leaf], frozen: frozenset[int] = frozenset()
) -> Callable[..., Any]:
    """The network for a whole population.

    Args:
      fn: `fn(params, *inputs) -> outputs` for one lane.
      leaves: the plan that the noise was drawn for.
      frozen: places of the parameters, in `jax.tree.leaves` order, that have no noise and are not among `leaves`.

    Returns:
      `apply(params, eps, scale, *inputs) -> outputs`. `scale` [S] is sigma times the sign of each of a pair's members
      (`[sigma, -sigma]`), inputs and outputs have a leading lane axis L = P S E, ordered [P, S, E].
    """

    def apply(params: PyTree, eps: Sequence[Any], scale: Array, *inputs: PyTree) -> Any:
        flat, _ = jax.tree.flatten(params)
        flat_inputs = jax.tree.leaves(inputs)
        pairs = jax.tree.leaves(eps[0])[0].shape[0]
        layout = Layout(pairs, scale.shape[0], flat_inputs[0].shape[0] // (pairs * scale.shape[0]), scale)
        # The network is traced for one lane, as it was written. That costs nothing at run time.
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(params, *one)
        if fused.considered():
            closed = inlined(closed)
        weights: list[Any] = list(flat)
        places = [place for place in range(len(flat)) if place not in frozen]
        for place, e, leaf in zip(places, eps, leaves, strict=True):
            weights[place] = _weight(flat[place], e, leaf)
        out = _evaluate(closed.jaxpr, closed.consts, [*weights, *map(Batched, flat_inputs)], layout)
        return jax.tree.unflatten(jax.tree.structure(shape), [per_lane(x, layout) for x in out])

    return apply


def _weight(value: Array, eps: LowRank | Dense, leaf: Leaf) -> Weight:
    if isinstance(eps, Dense):
        return Weight(value, eps.e, None, (), (), value.dtype, leaf.scale, leaf.shift)
    return Weight(value, eps.a, eps.b, leaf.row_axes or (), leaf.column_axes, value.dtype, leaf.scale, leaf.shift)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], layout: Layout) -> list[Any]:
    """Evaluates a one-lane jaxpr for all lanes; values are shared arrays, `Batched`, or `Weight`."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex.Literal) else env[var]

    considered, done = fused.considered(), set[int]()
    for place, eqn in enumerate(jaxpr.eqns):
        if place in done:
            continue
        found = fused.fuse(jaxpr, place, env, layout) if considered else None
        if found is not None:  # one kernel for this product and what follows it in a row
            part, result = found
            done.update(part.places)
            env[part.out] = result
            continue
        values = [read(v) for v in eqn.invars]
        body = call_body(eqn)
        if body is not None:  # jit, remat, custom_jvp and the like are entered: the product may be inside
            out = _evaluate(body.jaxpr, body.consts, values, layout)
        elif any(isinstance(v, Weight) for v in values):
            out = _consume(eqn, values, layout)
        else:
            out = apply_equation(eqn, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _consume(eqn: Any, values: list[Any], layout: Layout) -> list[Any]:
    """An equation that consumes a perturbed parameter, by its rule; without one, only dense noise gets this far."""
    name = eqn.primitive.name
    held = [k for k, v in enumerate(values) if isinstance(v, Weight)]
    k = held[0]
    weight = values[k]
    if name == "convert_element_type":
        # Only noted: value and noise are cast where they are used. A cast here would lose small perturbations.
        return [weight._replace(dtype=eqn.params["new_dtype"])]
    if name == "transpose":
        return [_transpose(weight, eqn.params["permutation"])]
    if name == "scan":
        return _scan(eqn, values, layout)
    # Dense noise of a matrix has a rule too, for matrix products alone: a batched product, not a weight for each lane.
    if len(held) == 1 and matrix_rows(eqn, k) is not None and (weight.b is not None or name == "dot_general"):
        return [perturbed_product(eqn, values, k, layout)]
    if any(values[i].b is not None for i in held):
        raise AssertionError(f"a parameter was classified as low-rank but is consumed by {name}")  # a defect of ours
    return apply_equation(eqn, [densify(v, layout) if isinstance(v, Weight) else v for v in values])


def _transpose(weight: Weight, permutation: Sequence[int]) -> Weight:
    """The transposed parameter; factors stay as they lie, and only the names of their dimensions move."""
    value = weight.value.transpose(permutation)
    if weight.b is None:
        return weight._replace(value=value, a=weight.a.transpose(0, *(d + 1 for d in permutation)))
    where = list(permutation).index
    a_dims, b_dims = (tuple(where(d) for d in dims) for dims in (weight.a_dims, weight.b_dims))
    return weight._replace(value=value, a_dims=a_dims, b_dims=b_dims)


def _scan(eqn: Any, values: Sequence[Any], layout: Layout) -> list[Any]:
    """A scan inside the network whose constants hold perturbed parameters."""
    params = eqn.params
    n, m = scan_parts(eqn)
    consts, body = list(values[:n]), params["jaxpr"]
    if fused.considered():
        body = inlined(body)
    # Carries must have one shape for all steps, so even shared ones get their lane axis before the first.
    carry = [per_lane(v, layout) for v in values[n : n + m]]
    # What is scanned over stays shared where it is: a product with it is then one for all lanes in each step too.
    each = [isinstance(v, (Batched, Weight)) for v in values[n + m :]]
    xs = [
        jnp.moveaxis(per_lane(v, layout), 0, 1) if of_lane else v
        for v, of_lane in zip(values[n + m :], each, strict=True)
    ]

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        parts = [Batched(part) if of_lane else part for part, of_lane in zip(x, each, strict=True)]
        args = [*consts, *map(Batched, carry), *parts]
        out = [per_lane(v, layout) for v in _evaluate(body.jaxpr, body.consts, args, layout)]
        return out[:m], out[m:]

    carry, ys = jax.lax.scan(
        step, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [Batched(x) for x in carry] + [Batched(jnp.moveaxis(y, 0, 1)) for y in ys]
