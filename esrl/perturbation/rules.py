"""Products with perturbed parameters: one shared by all lanes, and a thin correction for each.

    x @ (W + sigma E) = x @ W + (sigma / sqrt(R)) ((x A) B^T)        (arXiv 2511.16652, section 4)

for matrix products, convolutions and lookups. `esrl.perturbation.forward` finds where a network has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.core.integers import WEIGHT_BITS, log2_root, saturated, shifted
from esrl.core.types import Array


class Layout(NamedTuple):
    """How many pairs, signs and episodes the flat lane axis holds, and sigma times each sign [S]."""

    pairs: int
    signs: int
    episodes: int
    scale: Array

    @property
    def total(self) -> int:
        return self.pairs * self.signs * self.episodes


class Batched(NamedTuple):
    """A value that differs between lanes: [L, ...]."""

    x: Array


class Weight(NamedTuple):
    """A perturbed parameter: its shared value, and the perturbation of each pair.

    For low rank, `a` [P, R, *dims a_dims of value] and `b` [P, R, *dims b_dims]; for dense noise `a` has the shape
    [P, *value.shape] and `b` is None. Noise is in the type that it is stored in. `dtype` is the type that the network
    uses the parameter in: value and noise are rounded to it where they are used, so that a perturbation smaller than
    its resolution of the value is not lost. `factor` multiplies the noise (`Leaf.scale`); of integers 2^-`shift`.
    """

    value: Array
    a: Array
    b: Array | None
    a_dims: tuple[int, ...]
    b_dims: tuple[int, ...]
    dtype: Any
    factor: float = 1.0
    shift: int = 0

    @property
    def integer(self) -> bool:
        return bool(jnp.issubdtype(self.value.dtype, jnp.integer))


def perturbed_product(eqn: Any, values: Sequence[Any], k: int, layout: Layout) -> Batched:
    """A product with the shared parameter, and its correction: each summed in float32, together rounded once.

    Those of integers are summed in the equation's own type, int32, and rounded by shifts alone.
    """
    rule = {"dot_general": _dot, "conv_general_dilated": _conv, "gather": _gather}[eqn.primitive.name]
    dtype = eqn.outvars[0].aval.dtype
    wide = {"preferred_element_type": _wide(dtype)} if eqn.params.get("preferred_element_type") is not None else {}
    shared = values[k].value.astype(values[k].dtype)
    with jax.named_scope("shared"):
        base = apply_equation(eqn, [*values[:k], shared, *values[k + 1 :]], **wide)[0]
    with jax.named_scope("correction"):
        correction = rule(eqn, _in_place(values, k), k, layout)
    total = per_lane(base, layout).astype(correction.dtype) + correction
    narrow = values[k].integer and dtype.itemsize < total.dtype.itemsize
    return Batched(saturated(total, str(dtype)) if narrow else total.astype(dtype))


def _in_place(values: Sequence[Any], k: int) -> list[Any]:
    """The values, with noise that is stored in fewer bytes than it is used in tied to what it meets.

    Otherwise the compiler takes the cast out of a loop over steps, which then reads the wider type in every step.
    """
    weight, other = values[k], values[1 - k]
    if weight.a.dtype.itemsize >= jnp.dtype(weight.dtype).itemsize or not isinstance(other, Batched):
        return list(values)
    a, b, x = jax.lax.optimization_barrier((weight.a, weight.b, other.x))
    both = [weight._replace(a=a, b=b), Batched(x)]
    return both if k == 0 else both[::-1]


def _wide(dtype: Any) -> Any:
    """The type that products of a type are summed in: float32 or int32, or a wider one as it is."""
    if jnp.issubdtype(dtype, jnp.integer):
        return dtype if jnp.iinfo(dtype).bits > 32 else jnp.dtype(jnp.int32)
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def apply_equation(eqn: Any, values: Sequence[Any], **changed: Any) -> list[Any]:
    """An equation without parameters: once when its inputs are shared, else for every lane."""
    params = {**eqn.params, **changed}

    def bind(*args: Any) -> list[Any]:
        out = eqn.primitive.bind(*args, **params)
        return out if eqn.primitive.multiple_results else [out]

    axes = tuple(0 if isinstance(v, Batched) else None for v in values)
    arrays = [v.x if isinstance(v, Batched) else v for v in values]
    if all(axis is None for axis in axes):  # made of parameters and constants alone: computed once, for all lanes
        return list(bind(*arrays))
    return [Batched(x) for x in jax.vmap(bind, in_axes=axes)(*arrays)]


def per_lane(value: Any, layout: Layout) -> Array:
    """A value as [L, ...]."""
    if isinstance(value, Batched):
        return value.x
    if isinstance(value, Weight):
        return densify(value, layout).x
    value = jnp.asarray(value)
    return jnp.broadcast_to(value, (layout.total, *value.shape))


def densify(weight: Weight, layout: Layout) -> Batched:
    """A densely perturbed parameter for every lane (biases and the like: XLA fuses this into their use)."""
    ones = (1,) * weight.value.ndim
    if weight.integer:
        signs = layout.scale.reshape(1, layout.signs, 1, *ones)
        noise = shifted(weight.a.astype(jnp.int32), weight.shift).reshape(layout.pairs, 1, 1, *weight.value.shape)
        sum_ = weight.value.astype(jnp.int32)[None, None, None] + signs * noise
        return _every_lane(saturated(sum_, str(weight.value.dtype)).astype(weight.dtype), weight, layout)
    scale = (weight.factor * layout.scale).astype(weight.value.dtype).reshape(1, layout.signs, 1, *ones)
    noise = weight.a.astype(weight.value.dtype).reshape(layout.pairs, 1, 1, *weight.value.shape)
    full = weight.value[None, None, None] + scale * noise
    return _every_lane(full.astype(weight.dtype), weight, layout)


def _every_lane(full: Array, weight: Weight, layout: Layout) -> Batched:
    """A value of every member, [P, S, 1, ...], in each of its lanes."""
    full = jnp.broadcast_to(full, (layout.pairs, layout.signs, layout.episodes, *weight.value.shape))
    return Batched(full.reshape(layout.total, *weight.value.shape))


def _factor(x: Array, dims: Sequence[int], order: Sequence[int]) -> Array:
    """A factor [P, R, *dims] as [P, R, K] with its dimensions in the given order."""
    axes = [2 + list(dims).index(d) for d in order]
    return x.transpose(0, 1, *axes).reshape(*x.shape[:2], -1)


def _dot(eqn: Any, values: Sequence[Any], k: int, layout: Layout) -> Array:
    """Correction of a product x . W: `scale (x A) B^T` for every pair, or `scale x E` for dense noise."""
    weight, x = values[k], values[1 - k]
    contract, _ = eqn.params["dimension_numbers"]
    inner, w_inner = tuple(contract[1 - k]), tuple(contract[k])
    w_free = tuple(d for d in range(weight.value.ndim) if d not in w_inner)
    shared = not isinstance(x, Batched)
    x = jnp.asarray(x)[None] if shared else x.x
    x_free = tuple(d for d in range(x.ndim - 1) if d not in inner)
    size = math.prod(x.shape[1 + d] for d in inner)
    x_shape, w_shape = tuple(x.shape[1 + d] for d in x_free), tuple(weight.value.shape[d] for d in w_free)
    # Rows of one pair side by side, [P, rows, inner]: each pair's factors then meet all its rows in one small product.
    x = x.transpose(0, *(1 + d for d in x_free), *(1 + d for d in inner))
    scale = _scale(weight, layout, x.dtype)
    if shared:  # it meets each pair's noise once, as one row of lanes: lanes of a pair differ in their scale alone
        x = jnp.broadcast_to(x.reshape(1, math.prod(x_shape), size), (layout.pairs, math.prod(x_shape), size))
        per_row = jnp.ones((1, 1, 1), scale.dtype)
    else:
        x = x.reshape(layout.pairs, layout.signs * layout.episodes * math.prod(x_shape), size)
        per_row = jnp.repeat(scale, layout.episodes * math.prod(x_shape))[None, :, None]
    if weight.b is None:
        noise = weight.a.astype(x.dtype).transpose(0, *(1 + d for d in w_inner), *(1 + d for d in w_free))
        noise = noise.reshape(layout.pairs, size, -1)
        out = jnp.einsum("pqk,pkn->pqn", x, noise, preferred_element_type=_wide(x.dtype))
        out = per_row * (shifted(out, weight.shift) if weight.integer else out)
    else:
        # The network may contract the m side (x W, through A first) or the n side (x W^T, through B first).
        forward = set(w_inner) == set(weight.a_dims)
        into, out_of = (weight.a, weight.b) if forward else (weight.b, weight.a)
        dims = (weight.a_dims, weight.b_dims) if forward else (weight.b_dims, weight.a_dims)
        factors = (_factor(into, dims[0], w_inner), _factor(out_of, dims[1], w_free))
        if weight.integer:
            out = per_row * integer_product(x, *factors, weight.shift)
        else:
            out = _factored_product(x, *factors, per_row)

    if shared:
        out = out[:, None, None] * scale[None, :, None, None, None]
        out = jnp.broadcast_to(out, (layout.pairs, layout.signs, layout.episodes, *out.shape[3:]))
    out = out.reshape(layout.total, *x_shape, *w_shape)
    if k == 0:  # the weight is the left operand: its free dimensions come first
        order = [*range(len(x_shape), len(x_shape) + len(w_shape)), *range(len(x_shape))]
        out = out.transpose(0, *(1 + d for d in order))
    return out


def _factored_product(x: Array, into: Array, out_of: Array, scale: Array) -> Array:
    """`scale (x A) B^T`: x [P, Q, K], A [P, R, K], B [P, R, N], scale [1, Q, 1] -> [P, Q, N], in scale's type."""
    # Two products of width R, never A B^T itself. The scale goes in between, where there are the fewest numbers.
    product = partial(jnp.einsum, preferred_element_type=scale.dtype)
    inner = product("pqk,prk->pqr", x, into.astype(x.dtype)) * scale
    return product("pqr,prn->pqn", inner.astype(x.dtype), out_of.astype(x.dtype))


def integer_product(x: Array, into: Array, out_of: Array, shift: int) -> Array:
    """`((x A) >> 4) B^T >> (shift + log2(sqrt(R)))` in int32, of shapes as in `_factored_product`.

    That is x times A B^T / (16 sqrt(R)) 2^-shift: entries of A and B have the standard deviation 16, which is 1 in the
    4 fraction bits of a weight. One of the two shifts is taken between the products, so that the second fits int32
    (`integer_noise.largest_sum`).
    """
    inner = jnp.einsum("pqk,prk->pqr", x, into.astype(x.dtype), preferred_element_type=jnp.int32)
    inner = shifted(inner, WEIGHT_BITS)
    out = jnp.sum(inner[:, :, :, None] * out_of.astype(jnp.int32)[:, None], axis=2)
    return shifted(out, shift + log2_root(into.shape[1]))


def _scale(weight: Weight, layout: Layout, dtype: Any) -> Array:
    """What multiplies a perturbation's product of a type, for each sign [S]: sigma, over sqrt(R) for factors.

    Of integers it is the sign alone: their sigma is a shift.
    """
    if weight.integer:
        return layout.scale
    scale = weight.factor * layout.scale.astype(_wide(dtype))
    return scale if weight.b is None else scale / math.sqrt(weight.a.shape[1])


def _by_pair(fn: Callable[..., Array], shared: Sequence[Array], each: Sequence[Any], layout: Layout) -> Array:
    """`fn(*shared of the pair, *inputs of the lane)` for every lane."""
    rows = layout.signs * layout.episodes
    batched = [isinstance(v, Batched) for v in each]
    inputs = [v.x.reshape(layout.pairs, rows, *v.x.shape[1:]) if isinstance(v, Batched) else v for v in each]
    inner = jax.vmap(fn, in_axes=(*(None for _ in shared), *(0 if b else None for b in batched)), axis_size=rows)
    out = jax.vmap(inner, in_axes=(*(0 for _ in shared), *(0 if b else None for b in batched)))(*shared, *inputs)
    return out.reshape(layout.total, *out.shape[2:])


def _scaled(out: Array, weight: Weight, layout: Layout) -> Array:
    """`out` [L, ...] times the scale of each lane."""
    scale = jnp.tile(jnp.repeat(_scale(weight, layout, out.dtype), layout.episodes), layout.pairs)
    return scale.reshape(layout.total, *(1,) * (out.ndim - 1)) * out


def _conv(eqn: Any, values: Sequence[Any], k: int, layout: Layout) -> Array:
    """Correction of a convolution: convolve with the A side as an R-channel kernel, then mix channels with B."""
    weight = values[1]
    spec = eqn.params["dimension_numbers"]
    out_dim, channel = spec.rhs_spec[0], spec.out_spec[1]
    params = {**eqn.params, "preferred_element_type": _wide(eqn.outvars[0].aval.dtype)}

    def correct(a: Array, b: Array, x: Array) -> Array:
        kernel = jnp.moveaxis(a.astype(x.dtype), 0, out_dim)
        thin = eqn.primitive.bind(x, kernel, **params)
        if weight.integer:  # as `integer_product`
            mixed = _mix(shifted(thin, WEIGHT_BITS), channel, b)
            return shifted(mixed, weight.shift + log2_root(a.shape[0]))
        return _mix(thin.astype(x.dtype), channel, b)

    return _scaled(_by_pair(correct, (weight.a, weight.b), (values[0],), layout), weight, layout)


def _mix(x: Array, axis: int, b: Array) -> Array:
    """`x B^T` along an axis of R entries: b [R, N] makes them N."""
    product = jnp.tensordot(jnp.moveaxis(x, axis, -1), b.astype(x.dtype), axes=1, preferred_element_type=_wide(x.dtype))
    return jnp.moveaxis(product, -1, axis)


def _gather(eqn: Any, values: Sequence[Any], k: int, layout: Layout) -> Array:
    """Correction of an embedding lookup: look up rows of A, then multiply by B^T."""
    weight = values[0]
    numbers = eqn.params["dimension_numbers"]
    row = numbers.offset_dims[0]  # where the looked-up row's entries stand in the output
    params = {key: value for key, value in eqn.params.items() if key != "slice_sizes"}

    def correct(a: Array, b: Array, indices: Array) -> Array:
        rows = a.T.astype(weight.dtype)  # before the lookup: what fills rows that are not there may be NaN
        looked_up = eqn.primitive.bind(rows, indices, slice_sizes=(1, a.shape[0]), **params)
        if weight.integer:
            mixed = _mix(looked_up.astype(jnp.int32), row, b)
            return shifted(mixed, WEIGHT_BITS + weight.shift + log2_root(a.shape[0]))
        return _mix(looked_up, row, b)

    return _scaled(_by_pair(correct, (weight.a, weight.b), (values[1],), layout), weight, layout)
