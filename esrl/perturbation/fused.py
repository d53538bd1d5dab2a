"""Which parts of a network one kernel can take, and whether it does.

A part is a product `x W` with a low-rank weight, and the operations after it that stay inside a row of its result:
biases, LayerNorm, activations, whatever the network calls them. It is found in the network's jaxpr, so that any network
profits unmodified. `esrl.perturbation.fused_kernel` runs it.

`ESRL_FUSED` says when: "auto" (the default) where a GPU is, layer by layer, if it was faster in a short measurement
at the start; "always"; or "never". A CPU takes the kernel with "always" alone, interpreted and slow. The kernel sums in
another order: results differ by rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from esrl.core.jaxprs import call_body
from esrl.core.types import Array, EsrlError
from esrl.perturbation.fastest import fastest
from esrl.perturbation.fused_kernel import Operand, Sizes, fused_layer, row_blocks, takes
from esrl.perturbation.rules import Batched, Layout, Weight, apply_equation, densify, per_lane, perturbed_product

MODES = ("auto", "always", "never")
LARGEST_RANK = 16  # above it, x A is a product worth a tensor core, which the kernel does not use for it
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min")
_ELEMENTWISE = (
    "add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "square", "sqrt", "rsqrt", "integer_pow",
    "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf",
    "lt", "le", "gt", "ge", "eq", "ne", "select_n", "convert_element_type", "copy", "stop_gradient",
)  # fmt: skip
_IDENTITY = {"reduce_sum": 0.0, "reduce_max": -np.inf, "reduce_min": np.inf}


class Part(NamedTuple):
    """A product and the equations after it that one kernel takes.

    Attributes:
      places: where they stand in the jaxpr. equations: the product first.
      operands: variables that the equations after the product take from elsewhere. out: the one that they give.
    """

    places: tuple[int, ...]
    equations: tuple[Any, ...]
    operands: tuple[Any, ...]

    @property
    def out(self) -> Any:
        return self.equations[-1].outvars[0]

    @property
    def whole(self) -> bool:
        """Whether something is reduced over a row."""
        return any(eqn.primitive.name in _REDUCTIONS for eqn in self.equations)


def mode() -> str:
    """What `ESRL_FUSED` says.

    Raises:
      EsrlError: none of `MODES`.
    """
    said = os.environ.get("ESRL_FUSED", "auto") or "auto"
    if said not in MODES:
        raise EsrlError(f'ESRL_FUSED is {said!r}, but must be "auto", "always" or "never"')
    return said


def considered() -> bool:
    """Whether the kernel may be used here at all."""
    said = mode()
    return said == "always" or (said == "auto" and jax.default_backend() == "gpu")


def inlined(closed: Any) -> Any:
    """The same closed jaxpr without calls: the bodies of jit, custom_jvp and the like stand in it."""

    def run(*args: Array) -> list[Any]:
        return _run(closed.jaxpr, closed.consts, args)

    return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars))


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values = [v.val if isinstance(v, jex.Literal) else env[v] for v in eqn.invars]
        body = call_body(eqn)
        if body is not None:
            out = _run(body.jaxpr, body.consts, values)
        else:
            out = eqn.primitive.bind(*values, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
        env.update(zip(eqn.outvars, out, strict=True))
    return [v.val if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars]


def fuse(jaxpr: Any, place: int, env: dict[Any, Any], layout: Layout) -> tuple[Part, Batched] | None:
    """The part that begins with an equation, and its result for every lane; None where it is left to XLA.

    Args:
      jaxpr: of one lane, from `inlined`. place: of the equation. env: values of the variables before it.
      layout: of the lanes.
    """
    eqn = jaxpr.eqns[place]
    if eqn.primitive.name != "dot_general" or any(isinstance(v, jex.Literal) for v in eqn.invars):
        return None
    x, weight = (env[v] for v in eqn.invars)
    if not _matches(eqn, x, weight):
        return None
    part = find(jaxpr, place, env)
    outer = weight.value.shape[1]
    if not takes(layout.signs * layout.episodes, outer, part.whole):
        return None
    values = [x, weight, *(env[v] for v in part.operands)]
    blocks = row_blocks(layout.total, outer, part.whole)
    block: int | None = blocks[0]
    if mode() == "auto":
        block = _fastest(part, values, layout, blocks)
    return None if block is None else (part, Batched(_on_platform(part, values, layout, block)))


def _fastest(part: Part, values: Sequence[Any], layout: Layout, blocks: Sequence[int]) -> int | None:
    """The rows of a block with which the kernel was fastest; None where XLA was."""
    ways = {None: _of_arrays(by_rules, part, values, layout)}
    for block in blocks:
        ways[block] = _of_arrays(partial(_on_platform, block=block), part, values, layout)
    kind = tuple((eqn.primitive.name, str(eqn.outvars[0].aval)) for eqn in part.equations)
    return fastest(ways, _arrays(values, layout), (kind, layout[:3]))


def _on_platform(part: Part, values: Sequence[Any], layout: Layout, block: int) -> Array:
    """A part's result by the kernel where the program runs on an NVIDIA GPU.

    Elsewhere, as on the CPU of a machine that has a GPU, operation by operation; or interpreted, if that is told.
    """
    kernel = _of_arrays(partial(by_kernel, block=block), part, values, layout)
    told = _of_arrays(partial(by_kernel, block=block, interpret=True), part, values, layout)
    rules = _of_arrays(by_rules, part, values, layout)
    return jax.lax.platform_dependent(
        *_arrays(values, layout), cuda=kernel, default=told if mode() == "always" else rules
    )


def _of_arrays(run: Any, part: Part, values: Sequence[Any], layout: Layout) -> Callable[..., Array]:
    """`run(part, values, layout)` as a function of the arrays in them."""

    def call(scale: Array, *arrays: Array) -> Array:
        left = iter(arrays)
        return run(part, [_with(value, left) for value in values], layout._replace(scale=scale))

    return call


def _arrays(values: Sequence[Any], layout: Layout) -> list[Array]:
    """The arrays in a layout and values, in the order in which `_with` takes them."""
    found = [layout.scale]
    for value in values:
        if isinstance(value, Weight):
            found += [x for x in (value.value, value.a, value.b) if x is not None]
        else:
            found.append(value.x if isinstance(value, Batched) else jnp.asarray(value))
    return found


def _with(value: Any, left: Iterator[Array]) -> Any:
    """A value with other arrays, taken from an iterator."""
    if isinstance(value, Weight):
        return value._replace(value=next(left), a=next(left), b=None if value.b is None else next(left))
    return Batched(next(left)) if isinstance(value, Batched) else next(left)


def by_kernel(part: Part, values: Sequence[Any], layout: Layout, block: int, interpret: bool = False) -> Array:
    """A part's result [L, N] by the kernel.

    Args:
      values: of the product's two operands, then of `part.operands`. block: rows of a block.
      interpret: by JAX's interpreter of kernels, on any device.
    """
    x, weight, *others = values
    product = part.equations[0]
    scale = jnp.tile(jnp.repeat(layout.scale.astype(jnp.float32), layout.episodes), layout.pairs)
    inner, outer = weight.value.shape
    rows, rank = layout.signs * layout.episodes, weight.a.shape[1]
    return fused_layer(
        x.x,
        weight.value.astype(weight.dtype),
        weight.a,
        weight.b,
        scale,
        [_operand(value, var) for value, var in zip(others, part.operands, strict=True)],
        _follow(part, outer),
        Sizes(layout.total, rows, inner, outer, rank, block, part.whole),
        weight.factor,
        (product.outvars[0].aval.dtype, part.out.aval.dtype),
        product.params["precision"],
        interpret,
    )


def by_rules(part: Part, values: Sequence[Any], layout: Layout) -> Array:
    """A part's result [L, N] operation by operation, as XLA is given it without the kernel."""
    product, *after = part.equations
    env: dict[Any, Any] = dict(zip(part.operands, values[2:], strict=True))
    env[product.outvars[0]] = perturbed_product(product, values[:2], 1, layout)
    for eqn in after:
        taken = [v.val if isinstance(v, jex.Literal) else env[v] for v in eqn.invars]
        made = apply_equation(eqn, [densify(v, layout) if isinstance(v, Weight) else v for v in taken])
        env[eqn.outvars[0]] = made[0]
    return per_lane(env[part.out], layout)


def _matches(eqn: Any, x: Any, weight: Any) -> bool:
    """Whether an equation is `x W` for a vector x of each lane and a low-rank W."""
    if not (isinstance(x, Batched) and isinstance(weight, Weight) and weight.b is not None):
        return False
    floats = all(v.aval.dtype in (jnp.float32, jnp.bfloat16) for v in (*eqn.invars, *eqn.outvars))
    plain = eqn.params["dimension_numbers"] == (((0,), (0,)), ((), ())) and weight.value.ndim == 2 and x.x.ndim == 2
    forward = (tuple(weight.a_dims), tuple(weight.b_dims)) == ((0,), (1,))
    return floats and plain and forward and weight.a.shape[1] <= LARGEST_RANK and x.x.dtype == eqn.invars[1].aval.dtype


def find(jaxpr: Any, place: int, env: dict[Any, Any]) -> Part:
    """The longest part that begins with a product and has one result, a row as long as the product's.

    Args:
      jaxpr: of one lane. place: of the product. env: values of the variables before it.
    """
    product = jaxpr.eqns[place].outvars[0]
    size = product.aval.shape[0]
    inside, best = [place], [place]
    made = {product}
    fits = True
    for number in range(place + 1, len(jaxpr.eqns)):
        eqn = jaxpr.eqns[number]
        if not any(not isinstance(v, jex.Literal) and v in made for v in eqn.invars):
            continue
        fits = fits and (eqn.primitive.name not in _REDUCTIONS or takes(1, size, True))
        if not fits or not _stays_in_row(eqn, size, made, env):
            continue
        inside.append(number)
        made.update(eqn.outvars)
        if eqn.outvars[0].aval.shape == (size,) and _results(jaxpr, inside, made) == {eqn.outvars[0]}:
            best = list(inside)
    equations = tuple(jaxpr.eqns[number] for number in best)
    made = {v for eqn in equations for v in eqn.outvars}
    taken = [v for eqn in equations[1:] for v in eqn.invars if not isinstance(v, jex.Literal) and v not in made]
    return Part(tuple(best), equations, tuple(dict.fromkeys(taken)))


def _results(jaxpr: Any, inside: Sequence[int], made: set[Any]) -> set[Any]:
    """The variables that are made inside and used outside."""
    outside = [eqn.invars for number, eqn in enumerate(jaxpr.eqns) if number not in set(inside)]
    used = [v for invars in (*outside, jaxpr.outvars) for v in invars]
    return {v for v in used if not isinstance(v, jex.Literal) and v in made}


def _stays_in_row(eqn: Any, size: int, made: set[Any], env: dict[Any, Any]) -> bool:
    """Whether an equation takes and gives rows, or single numbers, of one lane, and has what it takes already."""
    name = eqn.primitive.name
    shapes = [tuple(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)]
    if not all(shape in ((size,), (1,), ()) for shape in shapes):
        return False
    if any(v.aval.dtype not in (jnp.float32, jnp.bfloat16, jnp.bool_) for v in eqn.outvars):
        return False
    if not (name in _ELEMENTWISE or name == "broadcast_in_dim" or (name in _REDUCTIONS and shapes[0] == (size,))):
        return False
    return all(isinstance(v, jex.Literal) or v in made or _usable(env.get(v), v, size) for v in eqn.invars)


def _usable(value: Any, var: Any, size: int) -> bool:
    """Whether the kernel can read a value: a vector with dense noise, an array of all lanes, or one of each lane."""
    if isinstance(value, Weight):
        return value.b is None and value.value.shape == (size,)
    if value is None or var.aval.dtype not in (jnp.float32, jnp.bfloat16):
        return False
    return var.aval.shape == (size,) if isinstance(value, Batched) else True


def _operand(value: Any, var: Any) -> Operand:
    if isinstance(value, Weight):
        return Operand("perturbed", value.value, value.a, value.factor, value.dtype)
    if isinstance(value, Batched):
        return Operand("lane", value.x, None, 1.0, var.aval.dtype)
    return Operand("shared", jnp.asarray(value, var.aval.dtype).reshape(-1), None, 1.0, var.aval.dtype)


def _follow(part: Part, size: int) -> Any:
    """The equations after a product, for a block of rows: rows are [rows, columns], single numbers [rows, 1]."""

    def follow(product: Array, operands: Sequence[Array], there: Array) -> Array:
        env: dict[Any, Array] = {part.equations[0].outvars[0]: product}
        env.update(zip(part.operands, operands, strict=True))

        def read(var: Any, shape: tuple[int, ...]) -> Array:
            if isinstance(var, jex.Literal):
                return jnp.full(shape, np.asarray(var.val).item(), var.aval.dtype)
            return jnp.broadcast_to(env[var], shape)

        for eqn in part.equations[1:]:
            name, var = eqn.primitive.name, eqn.outvars[0]
            shape = product.shape if var.aval.shape == (size,) else (product.shape[0], 1)
            if name in _REDUCTIONS:
                x = read(eqn.invars[0], product.shape)
                x = jnp.where(there, x, jnp.full(x.shape, _IDENTITY[name], x.dtype))  # columns that only fill a block
                reduce = {"reduce_sum": jnp.sum, "reduce_max": jnp.max, "reduce_min": jnp.min}[name]
                env[var] = reduce(x, axis=1, keepdims=True)
            elif name in ("broadcast_in_dim", "copy", "stop_gradient"):
                env[var] = read(eqn.invars[0], shape)
            elif name == "convert_element_type":
                env[var] = read(eqn.invars[0], shape).astype(eqn.params["new_dtype"])
            else:
                env[var] = eqn.primitive.bind(*(read(v, shape) for v in eqn.invars), **eqn.params)
        return env[part.out]

    return follow
