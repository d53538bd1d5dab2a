"""Parts of a network that one kernel can take: a product, and what follows it inside each row of its result.

They are found in the network's jaxpr, by what its operations do and not by how a layer is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from esrl.core.jaxprs import call_body
from esrl.core.types import Array
from esrl.perturbation.fused_kernel import takes
from esrl.perturbation.rules import Batched, Weight

_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min")
_ELEMENTWISE = (
    "add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "square", "sqrt", "rsqrt", "integer_pow",
    "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf",
    "lt", "le", "gt", "ge", "eq", "ne", "select_n", "convert_element_type", "copy", "stop_gradient",
)  # fmt: skip
_REDUCE: dict[str, Any] = {"reduce_sum": jnp.sum, "reduce_max": jnp.max, "reduce_min": jnp.min}
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


def follower(part: Part, size: int) -> Callable[[Array, Sequence[Array], Array], Array]:
    """The equations after a product, for a block of rows: rows are [rows, columns], single numbers [rows, 1]."""

    def follow(product: Array, operands: Sequence[Array], there: Array) -> Array:
        env: dict[Any, Array] = {part.equations[0].outvars[0]: product}
        env.update(zip(part.operands, operands, strict=True))

        def read(var: Any, shape: tuple[int, ...]) -> Array:
            if isinstance(var, jex.Literal):
                aval: Any = var.aval
                return jnp.full(shape, np.asarray(var.val).item(), aval.dtype)
            return jnp.broadcast_to(env[var], shape)

        for eqn in part.equations[1:]:
            name, var = eqn.primitive.name, eqn.outvars[0]
            shape = product.shape if var.aval.shape == (size,) else (product.shape[0], 1)
            if name in _REDUCTIONS:
                x = read(eqn.invars[0], product.shape)
                x = jnp.where(there, x, jnp.full(x.shape, _IDENTITY[name], x.dtype))  # columns that only fill a block
                env[var] = _REDUCE[name](x, axis=1, keepdims=True)
            elif name in ("broadcast_in_dim", "copy", "stop_gradient"):
                env[var] = read(eqn.invars[0], shape)
            elif name == "convert_element_type":
                env[var] = read(eqn.invars[0], shape).astype(eqn.params["new_dtype"])
            else:
                env[var] = eqn.primitive.bind(*(read(v, shape) for v in eqn.invars), **eqn.params)
        return env[part.out]

    return follow
