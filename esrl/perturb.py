"""The perturbed forward pass of any network, unmodified (level 1).

A network is a pure function of (params, inputs) for one lane. It is traced to a jaxpr, and the jaxpr is evaluated for
a whole population: every lane shares the parameters, and each operation that consumes a perturbed parameter gets a rule

    x @ (W + sigma E) = x @ W + (sigma / sqrt(R)) ((x A) B^T)        (arXiv 2511.16652, section 4)

so that one product shared by all lanes and a thin correction take the place of a weight matrix for each member. What
has no such rule is perturbed densely. `esrl.classify` finds out which is which before training starts.

Lanes are flat and ordered [P, S, E]: pairs, signs, episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from esrl.classify import call_body, matrix_rows, scan_parts
from esrl.noise import Dense, Leaf, LowRank
from esrl.types import Array, PyTree


class _Lanes(NamedTuple):
    """How many pairs, signs and episodes the flat lane axis holds, and sigma times each sign [S]."""

    pairs: int
    signs: int
    episodes: int
    scale: Array

    @property
    def total(self) -> int:
        return self.pairs * self.signs * self.episodes


class _Batched(NamedTuple):
    """A value that differs between lanes: [L, ...]."""

    x: Array


class _Weight(NamedTuple):
    """A perturbed parameter: its shared value, and the perturbation of each pair.

    For low rank, `a` [P, R, *dims a_dims of value] and `b` [P, R, *dims b_dims]; for dense noise `a` has the shape
    [P, *value.shape] and `b` is None.
    """

    value: Array
    a: Array
    b: Array | None
    a_dims: tuple[int, ...]
    b_dims: tuple[int, ...]


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
        lanes = _Lanes(pairs, scale.shape[0], flat_inputs[0].shape[0] // (pairs * scale.shape[0]), scale)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(params, *one)
        weights = [_weight(w, e, leaf) for w, e, leaf in zip(flat, eps, leaves, strict=True)]
        out = _evaluate(closed.jaxpr, closed.consts, [*weights, *map(_Batched, flat_inputs)], lanes)
        return jax.tree.unflatten(jax.tree.structure(shape), [_spread(x, lanes) for x in out])

    return apply


def _weight(value: Array, eps: LowRank | Dense, leaf: Leaf) -> _Weight:
    if isinstance(eps, Dense):
        return _Weight(value, eps.e, None, (), ())
    return _Weight(value, eps.a / math.sqrt(leaf.rank), eps.b, leaf.rows or (), leaf.columns)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], lanes: _Lanes) -> list[Any]:
    """Evaluates a one-lane jaxpr for all lanes; values are shared arrays, `_Batched`, or `_Weight`."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex.Literal) else env[var]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        body = call_body(eqn)
        if body is not None:
            out = _evaluate(body.jaxpr, body.consts, values, lanes)
        elif any(isinstance(v, _Weight) for v in values):
            out = _consume(eqn, values, lanes)
        else:
            out = _plain(eqn, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _plain(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """An equation without parameters: once when its inputs are shared, else for every lane."""

    def bind(*args: Any) -> list[Any]:
        out = eqn.primitive.bind(*args, **eqn.params)
        return out if eqn.primitive.multiple_results else [out]

    axes = tuple(0 if isinstance(v, _Batched) else None for v in values)
    arrays = [v.x if isinstance(v, _Batched) else v for v in values]
    if all(axis is None for axis in axes):
        return list(bind(*arrays))
    return [_Batched(x) for x in jax.vmap(bind, in_axes=axes)(*arrays)]


def _consume(eqn: Any, values: list[Any], lanes: _Lanes) -> list[Any]:
    """An equation that consumes a perturbed parameter, by its rule; without one, only dense noise gets this far."""
    name = eqn.primitive.name
    held = [k for k, v in enumerate(values) if isinstance(v, _Weight)]
    k = held[0]
    weight = values[k]
    if name == "convert_element_type":
        dtype = eqn.params["new_dtype"]
        cast = [None if x is None else x.astype(dtype) for x in weight[:3]]
        return [_Weight(cast[0], cast[1], cast[2], *weight[3:])]  # type: ignore[arg-type]
    if name == "transpose":
        return [_transpose(weight, eqn.params["permutation"])]
    if name == "scan":
        return _scan(eqn, values, lanes)
    if len(held) == 1 and matrix_rows(eqn, k) is not None:
        rule = {"dot_general": _dot, "conv_general_dilated": _conv, "gather": _gather}[name]
        base = _plain(eqn, [v.value if isinstance(v, _Weight) else v for v in values])[0]
        if weight.b is not None or name == "dot_general":
            return [_Batched(_spread(base, lanes) + rule(eqn, values, k, lanes))]
    if any(values[i].b is not None for i in held):
        raise AssertionError(f"a parameter was classified as low-rank but is consumed by {name}")  # a defect of ours
    return _plain(eqn, [_materialise(v, lanes) if isinstance(v, _Weight) else v for v in values])


def _transpose(weight: _Weight, permutation: Sequence[int]) -> _Weight:
    value = weight.value.transpose(permutation)
    if weight.b is None:
        return weight._replace(value=value, a=weight.a.transpose(0, *(d + 1 for d in permutation)))
    where = list(permutation).index
    a_dims, b_dims = (tuple(where(d) for d in dims) for dims in (weight.a_dims, weight.b_dims))
    return _Weight(value, weight.a, weight.b, a_dims, b_dims)


def _spread(value: Any, lanes: _Lanes) -> Array:
    """A value as [L, ...]."""
    if isinstance(value, _Batched):
        return value.x
    if isinstance(value, _Weight):
        return _materialise(value, lanes).x
    value = jnp.asarray(value)
    return jnp.broadcast_to(value, (lanes.total, *value.shape))


def _materialise(weight: _Weight, lanes: _Lanes) -> _Batched:
    """A densely perturbed parameter for every lane (biases and the like: XLA fuses this into their use)."""
    ones = (1,) * weight.value.ndim
    scale = lanes.scale.astype(weight.value.dtype).reshape(1, lanes.signs, 1, *ones)
    noise = weight.a.reshape(lanes.pairs, 1, 1, *weight.value.shape)
    full = weight.value[None, None, None] + scale * noise
    full = jnp.broadcast_to(full, (lanes.pairs, lanes.signs, lanes.episodes, *weight.value.shape))
    return _Batched(full.reshape(lanes.total, *weight.value.shape))


def _factor(x: Array, dims: Sequence[int], order: Sequence[int]) -> Array:
    """A factor [P, R, *dims] as [P, R, K] with its dimensions in the given order."""
    axes = [2 + list(dims).index(d) for d in order]
    return x.transpose(0, 1, *axes).reshape(*x.shape[:2], -1)


def _dot(eqn: Any, values: Sequence[Any], k: int, lanes: _Lanes) -> Array:
    """Correction of a product x . W: `scale (x A) B^T` for every pair, or `scale x E` for dense noise."""
    weight, x = values[k], values[1 - k]
    contract, _ = eqn.params["dimension_numbers"]
    inner, w_inner = tuple(contract[1 - k]), tuple(contract[k])
    w_free = tuple(d for d in range(weight.value.ndim) if d not in w_inner)
    x = _spread(x, lanes)
    x_free = tuple(d for d in range(x.ndim - 1) if d not in inner)
    size = math.prod(x.shape[1 + d] for d in inner)
    x_shape, w_shape = tuple(x.shape[1 + d] for d in x_free), tuple(weight.value.shape[d] for d in w_free)
    x = x.transpose(0, *(1 + d for d in x_free), *(1 + d for d in inner))
    x = x.reshape(lanes.pairs, lanes.signs * lanes.episodes * math.prod(x_shape), size)

    per_row = jnp.repeat(lanes.scale, lanes.episodes * math.prod(x_shape)).astype(x.dtype)[None, :, None]
    if weight.b is None:
        noise = weight.a.transpose(0, *(1 + d for d in w_inner), *(1 + d for d in w_free))
        out = per_row * jnp.einsum("pqk,pkn->pqn", x, noise.reshape(lanes.pairs, size, -1))
    else:
        forward = set(w_inner) == set(weight.a_dims)
        into, out_of = (weight.a, weight.b) if forward else (weight.b, weight.a)
        dims = (weight.a_dims, weight.b_dims) if forward else (weight.b_dims, weight.a_dims)
        out = _thin(x, _factor(into, dims[0], w_inner), _factor(out_of, dims[1], w_free), per_row)

    out = out.reshape(lanes.total, *x_shape, *w_shape)
    if k == 0:  # the weight is the left operand: its free dimensions come first
        order = [*range(len(x_shape), len(x_shape) + len(w_shape)), *range(len(x_shape))]
        out = out.transpose(0, *(1 + d for d in order))
    return out.astype(eqn.outvars[0].aval.dtype)


def _thin(x: Array, into: Array, out_of: Array, scale: Array) -> Array:
    """`scale (x A) B^T`: x [P, Q, K], A [P, R, K], B [P, R, N], scale [1, Q, 1] -> [P, Q, N]."""
    inner = jnp.einsum("pqk,prk->pqr", x, into) * scale
    return jnp.einsum("pqr,prn->pqn", inner, out_of)


def _by_pair(fn: Callable[..., Array], shared: Sequence[Array], each: Sequence[Any], lanes: _Lanes) -> Array:
    """`fn(*shared of the pair, *inputs of the lane)` for every lane."""
    rows = lanes.signs * lanes.episodes
    batched = [isinstance(v, _Batched) for v in each]
    inputs = [v.x.reshape(lanes.pairs, rows, *v.x.shape[1:]) if isinstance(v, _Batched) else v for v in each]
    inner = jax.vmap(fn, in_axes=(*(None for _ in shared), *(0 if b else None for b in batched)), axis_size=rows)
    out = jax.vmap(inner, in_axes=(*(0 for _ in shared), *(0 if b else None for b in batched)))(*shared, *inputs)
    return out.reshape(lanes.total, *out.shape[2:])


def _per_lane(lanes: _Lanes, like: Array) -> Array:
    scale = jnp.tile(jnp.repeat(lanes.scale, lanes.episodes), lanes.pairs).astype(like.dtype)
    return scale.reshape(lanes.total, *(1,) * (like.ndim - 1))


def _conv(eqn: Any, values: Sequence[Any], k: int, lanes: _Lanes) -> Array:
    """Correction of a convolution: convolve with the A side as an R-channel kernel, then mix channels with B."""
    weight = values[1]
    spec = eqn.params["dimension_numbers"]
    out_dim, channel = spec.rhs_spec[0], spec.out_spec[1]

    def correct(a: Array, b: Array, x: Array) -> Array:
        kernel = jnp.moveaxis(a, 0, out_dim)
        thin = eqn.primitive.bind(x, kernel, **eqn.params)
        return jnp.moveaxis(jnp.tensordot(jnp.moveaxis(thin, channel, -1), b, axes=1), -1, channel)

    out = _by_pair(correct, (weight.a, weight.b), (values[0],), lanes)
    return _per_lane(lanes, out) * out


def _gather(eqn: Any, values: Sequence[Any], k: int, lanes: _Lanes) -> Array:
    """Correction of an embedding lookup: look up rows of A, then multiply by B^T."""
    weight = values[0]
    numbers = eqn.params["dimension_numbers"]
    row = numbers.offset_dims[0]  # where the looked-up row's entries stand in the output
    params = {key: value for key, value in eqn.params.items() if key != "slice_sizes"}

    def correct(a: Array, b: Array, indices: Array) -> Array:
        looked_up = eqn.primitive.bind(a.T, indices, slice_sizes=(1, a.shape[0]), **params)
        return jnp.moveaxis(jnp.tensordot(jnp.moveaxis(looked_up, row, -1), b, axes=1), -1, row)

    out = _by_pair(correct, (weight.a, weight.b), (values[1],), lanes)
    return _per_lane(lanes, out) * out


def _scan(eqn: Any, values: Sequence[Any], lanes: _Lanes) -> list[Any]:
    """A scan inside the network whose constants hold perturbed parameters."""
    params = eqn.params
    n, m = scan_parts(eqn)
    consts, body = list(values[:n]), params["jaxpr"]
    carry = [_spread(v, lanes) for v in values[n : n + m]]
    xs = [jnp.moveaxis(_spread(v, lanes), 0, 1) for v in values[n + m :]]

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        args = [*consts, *map(_Batched, carry), *map(_Batched, x)]
        out = [_spread(v, lanes) for v in _evaluate(body.jaxpr, body.consts, args, lanes)]
        return out[:m], out[m:]

    carry, ys = jax.lax.scan(
        step, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [_Batched(x) for x in carry] + [_Batched(jnp.moveaxis(y, 0, 1)) for y in ys]
