"""A network's arithmetic in fewer bits, whatever the network.

The network is traced to a jaxpr, and every matrix product and convolution of float32 numbers in it gets bfloat16
operands; all else (parameters, activations between products, normalization, softmax, the carry) stays float32. So a
network needs no change, and one that makes float32 of its observation itself profits as well. What is inside a
function with a derivative of its own, a while loop or a cond stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from esrl.core.jaxprs import call_body, scan_parts
from esrl.core.types import Array, EsrlError

PRECISIONS = ("float32", "bfloat16")
_PRODUCTS = ("dot_general", "conv_general_dilated")
_OWN_DERIVATIVE = ("custom_jvp_call", "custom_vjp_call")
_RECOMPUTED = ("remat2", "checkpoint")  # names of jax.checkpoint over versions


def check(precision: str) -> None:
    """Raises `EsrlError` unless there is such a precision."""
    if precision not in PRECISIONS:
        raise EsrlError(f'precision is {precision!r}, but must be "float32" or "bfloat16"')


def arithmetic(fn: Callable[..., Any], precision: str, differentiated: bool = False) -> Callable[..., Any]:
    """The function with its products in this precision, and inputs and outputs as they were.

    Args:
      fn: of arrays, or trees of them.
      precision: "float32" is the function itself; "bfloat16" as above.
      differentiated: whether gradients will be taken through it. Then products give bfloat16 (devices sum them in
        float32 and round the sum), so that those of the backward pass have bfloat16 operands too; otherwise they give
        the float32 sum.

    Raises:
      EsrlError: an unknown precision.
    """
    check(precision)
    if precision == "float32":
        return fn
    result = jnp.dtype(jnp.bfloat16 if differentiated else jnp.float32)

    def lower(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), result)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return lower


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], result: Any) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values = [v.val if isinstance(v, jex.Literal) else env[v] for v in eqn.invars]
        env.update(zip(eqn.outvars, _equation(eqn, values, result), strict=True))
    return [v.val if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars]


def _equation(eqn: Any, values: Sequence[Any], result: Any) -> list[Any]:
    name = eqn.primitive.name
    if name in _PRODUCTS and all(v.aval.dtype == jnp.float32 for v in (*eqn.invars, *eqn.outvars)):
        return [_product(eqn, values, result)]
    if name == "scan":
        return _scan(eqn, values, result)
    body = None if name in _OWN_DERIVATIVE else call_body(eqn)
    if body is not None:
        inner: Callable[..., Any] = partial(_evaluate, body.jaxpr, body.consts, result=result)
        if name in _RECOMPUTED:  # what it saves of memory stays saved
            inner = jax.checkpoint(inner, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
        return inner(values)
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # a pair before jax 0.10
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _product(eqn: Any, values: Sequence[Any], result: Any) -> Array:
    low = [jnp.asarray(v).astype(jnp.bfloat16) for v in values]
    params = {**eqn.params, "precision": None, "preferred_element_type": result}
    return eqn.primitive.bind(*low, **params).astype(jnp.float32)


def _scan(eqn: Any, values: Sequence[Any], result: Any) -> list[Any]:
    params, (n, m) = eqn.params, scan_parts(eqn)
    consts, carry, xs = list(values[:n]), list(values[n : n + m]), list(values[n + m :])
    body = params["jaxpr"]

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        out = _evaluate(body.jaxpr, body.consts, [*consts, *carry, *x], result)
        return out[:m], out[m:]

    carry, ys = jax.lax.scan(
        step, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *ys]
