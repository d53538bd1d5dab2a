"""Noise aligned with what each layer sees: E = h xi^T, with h the layer's own input.

    (W + sigma h xi^T / |h|^2)^T h  =  W^T h + sigma xi      a rank-1 perturbation of W, for this input

so noise is added where a product with a parameter leaves it, and the weighted sum of perturbations, sum f h xi^T, is
the estimate of the gradient by W: EGGROLL's sum f A B^T with A = h. It searches as many dimensions as there are units.

A network is a pure function of (params, inputs) for one lane. Its jaxpr is read once: every product of a parameter
with something that depends on the inputs, and every parameter that is added, is a `Use`; what it goes into by additions
alone is its `Point`, where one noise stands for the perturbation of all its uses. Points that are the network's output
need none: the loss knows its derivative there. A parameter that is used in another way (scales, what a loop holds) has
no input of its own, and is perturbed itself, for every lane.

Sources: node perturbation, Williams 1992; in the form of a factor of the layer's input, arXiv 2601.17261; EGGROLL,
arXiv 2511.16652.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from esrl.core.jaxprs import call_body, path_name
from esrl.core.types import Array, PyTree
from esrl.perturbation.classify import matrix_rows
from esrl.perturbation.rules import apply_equation

# What a parameter may pass on its way to its use: linear, and without another operand.
_SHAPED = ("convert_element_type", "transpose", "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy")
_ADDITIONS = ("add", "add_any")
_SAME = ("convert_element_type", "copy")  # what a product may pass on its way to its point, beside additions


class Use(NamedTuple):
    """A parameter's use in a product or sum.

    Attributes:
      leaf: number of the parameter, in `jax.tree.leaves` order. point: number of the point that it goes into.
      equation: number of its equation. operand: which of the two the parameter is.
      way: number of the chain of equations that shape the parameter before.
    """

    leaf: int
    point: int
    equation: int
    operand: int
    way: tuple[int, ...]


class Point(NamedTuple):
    """Where noise is added.

    Attributes:
      shape: of the value, for one lane. output: whether it is the network's output.
      activation: number of the use that takes what becomes of this value alone, in as many numbers; None without one.
    """

    shape: tuple[int, ...]
    output: bool
    activation: int | None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Reading:
    """A network as this module reads it.

    Attributes:
      uses, points: see there. paths: of all parameters.
      others: numbers of the parameters that have no use, and are perturbed themselves.
      frozen: numbers of the parameters that are not trained: no noise is drawn for what serves them alone.
    """

    uses: tuple[Use, ...]
    points: tuple[Point, ...]
    others: tuple[int, ...]
    paths: tuple[str, ...]
    _jaxpr: Any
    _consts: Sequence[Any]
    _out: Any
    _point_of: dict[Any, int]
    frozen: frozenset[int] = frozenset()

    @property
    def hidden(self) -> tuple[int, ...]:
        """Numbers of the points that need noise: they are not the output, and take a parameter that is trained."""
        trained = {use.point for use in self.uses if use.leaf not in self.frozen}
        return tuple(i for i, point in enumerate(self.points) if i in trained and not point.output)

    @property
    def rest(self) -> tuple[int, ...]:
        """Numbers of the parameters that are perturbed themselves, and trained."""
        return tuple(i for i in self.others if i not in self.frozen)

    def added(self, use: Use) -> bool:
        """Whether a use adds its parameter, rather than multiplies by it."""
        return self._jaxpr.eqns[use.equation].primitive.name in _ADDITIONS

    def forward(self, leaves: Sequence[Array], noise: dict[int, Array], *inputs: PyTree) -> tuple[Any, list[Array]]:
        """The network for one lane.

        Args:
          leaves: the parameters, in order.
          noise: what is added at points, by their numbers.
          inputs: as the network takes them.

        Returns:
          `(outputs, seen)`: the network's outputs, and what each use takes beside its parameter.
        """
        env: dict[Any, Any] = dict(zip(self._jaxpr.constvars, self._consts, strict=True))
        env.update(zip(self._jaxpr.invars, [*leaves, *jax.tree.leaves(inputs)], strict=True))
        for eqn in self._jaxpr.eqns:
            for var, value in zip(eqn.outvars, apply_equation(eqn, [_read(env, v) for v in eqn.invars]), strict=True):
                i = self._point_of.get(var)
                env[var] = value + noise[i].astype(value.dtype) if i in noise else value
        seen = [_read(env, self._jaxpr.eqns[use.equation].invars[1 - use.operand]) for use in self.uses]
        outputs = jax.tree.unflatten(self._out, [_read(env, v) for v in self._jaxpr.outvars])
        return outputs, seen

    def contract(self, leaves: Sequence[Array], seen: Sequence[Array], signals: dict[int, Array]) -> list[Array]:
        """`sum_n h_n d_n^T` for every trained parameter with uses, zeros for the rest: the weighted sum of noise.

        Each sum is one product of a use's own inputs and the signals at its point: nothing goes through another layer.

        Args:
          leaves: the parameters, in order.
          seen: from `forward`, for N lanes.
          signals: `d` of every point, [N, *its shape].
        """
        sums = [jnp.zeros_like(w) for w in leaves]
        for use, other in zip(self.uses, seen, strict=True):
            if use.leaf in self.frozen:
                continue
            eqn = self._jaxpr.eqns[use.equation]

            def lanes(w: Array, use: Use = use, other: Array = other, eqn: Any = eqn) -> Array:
                for i in use.way:  # as the network shapes it before it uses it
                    w = apply_equation(self._jaxpr.eqns[i], [w])[0]

                def one(h: Array) -> Array:
                    if eqn.primitive.name in _ADDITIONS:
                        return jnp.broadcast_to(w, h.shape)
                    return apply_equation(eqn, [w, h] if use.operand == 0 else [h, w])[0]

                return jax.vmap(one)(other)

            signal = signals[use.point]
            out = jax.eval_shape(lanes, leaves[use.leaf])
            # A use is linear in its parameter, so its transpose there is the sum of products wanted.
            (total,) = jax.linear_transpose(lanes, leaves[use.leaf])(signal.reshape(out.shape).astype(out.dtype))
            sums[use.leaf] = sums[use.leaf] + total
        return sums


def read(fn: Callable[..., Any], params: PyTree, *inputs: PyTree) -> Reading:
    """Reads a network `fn(params, *inputs) -> outputs`, for one lane; the first output is what a loss is of.

    Args:
      fn: the network. params, inputs: arrays or their shapes.
    """
    closed, out = jax.make_jaxpr(fn, return_shape=True)(params, *inputs)
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    # Traced again with jit, custom_jvp and the like entered, which leaves a plain list of equations.
    flat = jax.make_jaxpr(lambda *args: _entered(closed.jaxpr, closed.consts, args))(*shapes)
    jaxpr, named = flat.jaxpr, jax.tree_util.tree_flatten_with_path(params)[0]
    number = len(named)

    ways: dict[Any, tuple[int, tuple[int, ...]]] = {v: (i, ()) for i, v in enumerate(jaxpr.invars[:number])}
    moving = set(jaxpr.invars[number:])  # what depends on the inputs
    found: list[tuple[int, int, int, tuple[int, ...]]] = []  # leaf, equation, operand, way
    rest: set[int] = set()
    for i, eqn in enumerate(jaxpr.eqns):
        variables = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
        held = [k for k, v in enumerate(eqn.invars) if not isinstance(v, jex.Literal) and v in ways]
        if any(v in moving for v in variables):
            moving.update(eqn.outvars)
        if not held:
            continue
        if eqn.primitive.name in _SHAPED and len(eqn.invars) == 1:
            leaf, way = ways[eqn.invars[0]]
            ways[eqn.outvars[0]] = (leaf, (*way, i))
        elif len(held) == 1 and len(eqn.invars) == 2 and _linear(eqn, held[0], moving):
            leaf, way = ways[eqn.invars[held[0]]]
            found.append((leaf, i, held[0], way))
        else:
            rest.update(ways[eqn.invars[k]][0] for k in held)
    rest.update(ways[v][0] for v in jaxpr.outvars if not isinstance(v, jex.Literal) and v in ways)
    found = [use for use in found if use[0] not in rest]

    followed = _followed(jaxpr)
    targets = [followed(jaxpr.eqns[i].outvars[0]) for _, i, _, _ in found]
    point_of = {var: i for i, var in enumerate(dict.fromkeys(targets))}
    uses = tuple(Use(leaf, point_of[var], i, k, way) for (leaf, i, k, way), var in zip(found, targets, strict=True))
    paths = tuple(path_name(path) for path, _ in named)
    used = {var for eqn in jaxpr.eqns for var in eqn.invars if not isinstance(var, jex.Literal)}
    activations = _activations(jaxpr, uses, point_of)
    points = tuple(
        Point(
            tuple(var.aval.shape),
            var is jaxpr.outvars[0] and var not in used,
            activations.get(i),
        )
        for var, i in point_of.items()
    )
    return Reading(uses, points, tuple(sorted(rest)), paths, jaxpr, flat.consts, jax.tree.structure(out), point_of)


def _read(env: dict[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, jex.Literal) else env[var]


def _entered(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr with the bodies of calls in place of the calls."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values, body = [_read(env, v) for v in eqn.invars], call_body(eqn)
        out = apply_equation(eqn, values) if body is None else _entered(body.jaxpr, body.consts, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [_read(env, v) for v in jaxpr.outvars]


def _linear(eqn: Any, k: int, moving: set[Any]) -> bool:
    """Whether an equation is a product of its operand k with, or a sum of it and, something that depends on inputs."""
    other = eqn.invars[1 - k]
    if isinstance(other, jex.Literal) or other not in moving:
        return False
    if eqn.primitive.name in _ADDITIONS:
        return eqn.outvars[0].aval.shape == other.aval.shape
    return matrix_rows(eqn, k) is not None


def _followed(jaxpr: Any) -> Callable[[Any], Any]:
    """The function from what a product gives to the sum that it ends in."""
    after: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if not isinstance(var, jex.Literal):
                after.setdefault(var, []).append(eqn)
    outputs = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}

    def follow(var: Any) -> Any:
        while var not in outputs and len(after.get(var, [])) == 1:
            eqn = after[var][0]
            same = eqn.primitive.name in (*_ADDITIONS, *_SAME) and eqn.outvars[0].aval.shape == var.aval.shape
            if not same or sum(v is var for v in eqn.invars) != 1:
                break
            var = eqn.outvars[0]
        return var

    return follow


def _activations(jaxpr: Any, uses: Sequence[Use], point_of: dict[Any, int]) -> dict[int, int]:
    """For each point, a use that takes what becomes of it and of no other point, in as many numbers."""
    behind: dict[Any, frozenset[int]] = {}
    for eqn in jaxpr.eqns:
        found = frozenset().union(*(behind.get(v, ()) for v in eqn.invars if not isinstance(v, jex.Literal)))
        for var in eqn.outvars:
            behind[var] = frozenset([point_of[var]]) if var in point_of else found
    sizes = {i: math.prod(var.aval.shape) for var, i in point_of.items()}
    activations: dict[int, int] = {}
    for number, use in enumerate(uses):
        other = jaxpr.eqns[use.equation].invars[1 - use.operand]
        points = frozenset() if isinstance(other, jex.Literal) else behind.get(other, frozenset())
        if len(points) == 1 and use.point not in points:
            (i,) = points
            if math.prod(other.aval.shape) == sizes[i]:
                activations.setdefault(i, number)
    return activations
