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
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from esrl.core.types import Array, EsrlError
from esrl.perturbation.fastest import fastest
from esrl.perturbation.fused_kernel import Operand, Sizes, fused_layer, row_blocks, takes
from esrl.perturbation.fused_part import Part, find, follower
from esrl.perturbation.rules import Batched, Layout, Weight, apply_equation, densify, per_lane, perturbed_product

MODES = ("auto", "always", "never")
LARGEST_RANK = 16  # above it, x A is a product worth a tensor core, which the kernel does not use for it


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
    ways: dict[int | None, Callable[..., Array]] = {None: _of_arrays(by_rules, part, values, layout)}
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
        follower(part, outer),
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


def _operand(value: Any, var: Any) -> Operand:
    if isinstance(value, Weight):
        return Operand("perturbed", value.value, value.a, value.factor, value.dtype)
    if isinstance(value, Batched):
        return Operand("lane", value.x, None, 1.0, var.aval.dtype)
    return Operand("shared", jnp.asarray(value, var.aval.dtype).reshape(-1), None, 1.0, var.aval.dtype)
