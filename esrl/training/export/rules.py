"""For each of JAX's operations, what it is in a `Graph`. Shapes are those of one lane, axes count the batch axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from esrl.training.export.graph import Graph, Unsupported, Value, held
from esrl.training.export.products import convolution, dot_general, gather, pooling

Rule = Callable[[Graph, Any, list[Value]], list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    """Makes a function the rule of these operations; what has one output may return it bare."""

    def add(fn: Callable[..., Value]) -> Callable[..., Value]:
        for name in names:
            RULES[name] = lambda graph, eqn, given: [fn(graph, eqn, *given)]
        return fn

    return add


def _out(eqn: Any) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(eqn.outvars[0].aval.shape), np.dtype(eqn.outvars[0].aval.dtype)


def _scalar(graph: Graph, value: float, dtype: Any) -> Value:
    return graph.constant(np.asarray(value, held(dtype)))


# ---- entry by entry -------------------------------------------------------------------------------------------------

SAME = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "eq": "Equal", "erf": "Erf",
    "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
    "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "sign": "Sign",
    "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
LOGICAL = {"and": "And", "not": "Not", "or": "Or", "xor": "Xor"}


def _same(op: str) -> Rule:
    return lambda graph, eqn, given: [graph.apply(op, given, *_out(eqn))]


def _logical(op: str) -> Rule:
    def apply(graph: Graph, eqn: Any, given: list[Value]) -> list[Value]:
        if _out(eqn)[1] != np.bool_:
            raise Unsupported("there is no rule for the bits of whole numbers")
        return [graph.apply(op, given, *_out(eqn))]

    return apply


RULES.update({name: _same(op) for name, op in SAME.items()})
RULES.update({name: _logical(op) for name, op in LOGICAL.items()})


@rule("copy", "copy_p", "stop_gradient")
def _identity(graph: Graph, eqn: Any, x: Value) -> Value:
    return x


@rule("convert_element_type", "reduce_precision")
def _convert(graph: Graph, eqn: Any, x: Value) -> Value:
    if eqn.primitive.name == "reduce_precision":
        raise Unsupported("there is no rule for it")
    return graph.cast(x, eqn.params["new_dtype"])


@rule("div")
def _divide(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    if np.issubdtype(_out(eqn)[1], np.integer):
        raise Unsupported("there is no rule for quotients of whole numbers")
    return graph.apply("Div", [x, y], *_out(eqn))


@rule("rem")
def _remainder(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.apply("Mod", [x, y], *_out(eqn), fmod=1)


@rule("ne")
def _differ(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.apply("Not", [graph.apply("Equal", [x, y], *_out(eqn))], *_out(eqn))


@rule("square")
def _square(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Mul", [x, x], *_out(eqn))


@rule("integer_pow")
def _integer_power(graph: Graph, eqn: Any, x: Value) -> Value:
    (shape, dtype), power = _out(eqn), eqn.params["y"]
    if not 1 <= abs(power) <= 8:
        raise Unsupported(f"there is no rule for the power {power}")
    found = x
    for _ in range(abs(power) - 1):
        found = graph.apply("Mul", [found, x], shape, dtype)
    return found if power > 0 else graph.apply("Div", [_scalar(graph, 1, dtype), found], shape, dtype)


@rule("pow")
def _power(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.apply("Pow", [x, graph.cast(y, x.dtype)], *_out(eqn))


@rule("rsqrt")
def _inverse_root(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Div", [_scalar(graph, 1, x.dtype), graph.apply("Sqrt", [x], *_out(eqn))], *_out(eqn))


@rule("cbrt")
def _cube_root(graph: Graph, eqn: Any, x: Value) -> Value:
    third = _scalar(graph, 1 / 3, x.dtype)
    size = graph.apply("Pow", [graph.apply("Abs", [x], *_out(eqn)), third], *_out(eqn))
    return graph.apply("Mul", [graph.apply("Sign", [x], *_out(eqn)), size], *_out(eqn))


@rule("exp2")
def _exponential_of_two(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Exp", [graph.apply("Mul", [x, _scalar(graph, math.log(2), x.dtype)], *_out(eqn))], *_out(eqn))


@rule("expm1")
def _exponential_less_one(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Sub", [graph.apply("Exp", [x], *_out(eqn)), _scalar(graph, 1, x.dtype)], *_out(eqn))


@rule("log1p")
def _log_of_one_more(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Log", [graph.apply("Add", [x, _scalar(graph, 1, x.dtype)], *_out(eqn))], *_out(eqn))


@rule("erfc")
def _complement(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Sub", [_scalar(graph, 1, x.dtype), graph.apply("Erf", [x], *_out(eqn))], *_out(eqn))


@rule("round")
def _round(graph: Graph, eqn: Any, x: Value) -> Value:
    shape, dtype = _out(eqn)
    if int(eqn.params["rounding_method"]) == 1:  # to even
        return graph.apply("Round", [x], shape, dtype)
    away = graph.apply("Add", [graph.apply("Abs", [x], shape, dtype), _scalar(graph, 0.5, dtype)], shape, dtype)
    return graph.apply(
        "Mul", [graph.apply("Sign", [x], shape, dtype), graph.apply("Floor", [away], shape, dtype)], shape, dtype
    )


@rule("is_finite")
def _finite(graph: Graph, eqn: Any, x: Value) -> Value:
    size = graph.apply("Abs", [x], x.shape, x.dtype)
    return graph.apply("Less", [size, _scalar(graph, math.inf, x.dtype)], *_out(eqn))


@rule("clamp")
def _clamp(graph: Graph, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.apply("Min", [graph.apply("Max", [x, low], *_out(eqn)), high], *_out(eqn))


@rule("select_n")
def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    shape, dtype = _out(eqn)
    if which.dtype == np.bool_:
        return graph.where(which, cases[1], cases[0], shape, dtype)
    found = cases[-1]
    for i in range(len(cases) - 2, -1, -1):
        chosen = graph.apply("LessOrEqual", [which, _scalar(graph, i, which.dtype)], which.shape, bool)
        found = graph.where(chosen, cases[i], found, shape, dtype)
    return found


# ---- shapes ---------------------------------------------------------------------------------------------------------


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.reshape(x, _out(eqn)[0])


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, eqn: Any, x: Value) -> Value:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    ones = [1] * len(shape)
    for length, place in zip(x.shape, places, strict=True):
        ones[place] = length
    return graph.expand(graph.reshape(x, ones), shape)


@rule("transpose")
def _transpose(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.transpose(x, eqn.params["permutation"])


@rule("concatenate")
def _concatenate(graph: Graph, eqn: Any, *parts: Value) -> Value:
    like = next(x for x in parts if x.array is None)
    given = [graph.varying(x, like) for x in parts if 0 not in x.shape]
    return graph.emit("Concat", given, *_out(eqn), axis=eqn.params["dimension"] + 1) if len(given) > 1 else given[0]


@rule("stack")
def _stack(graph: Graph, eqn: Any, *parts: Value) -> Value:
    axis = eqn.params.get("axis", eqn.params.get("dimension", 0))
    like = next(x for x in parts if x.array is None)
    given = [graph.varying(graph.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])), like) for x in parts]
    return graph.emit("Concat", given, *_out(eqn), axis=axis + 1)


def _cut(graph: Graph, x: Value, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Value:
    shape = [len(range(a, b, c)) for a, b, c in zip(starts, ends, steps, strict=True)]
    axes = [i for i in range(len(shape)) if shape[i] != x.shape[i]]
    if not axes:
        return x
    return graph.emit(
        "Slice",
        [x],
        shape,
        x.dtype,
        starts=[int(starts[i]) for i in axes],
        ends=[int(ends[i]) for i in axes],
        axes=[i + 1 for i in axes],
        steps=[int(steps[i]) for i in axes],
    )


@rule("slice")
def _slice(graph: Graph, eqn: Any, x: Value) -> Value:
    steps = eqn.params["strides"] or [1] * len(x.shape)
    return _cut(graph, x, eqn.params["start_indices"], eqn.params["limit_indices"], steps)


@rule("dynamic_slice")
def _slice_at(graph: Graph, eqn: Any, x: Value, *starts: Value) -> Value:
    sizes = eqn.params["slice_sizes"]
    if any(start.array is None for start in starts):
        raise Unsupported("there is no rule for a place that depends on the observation")
    x = graph.varying(x)
    at = [
        min(max(int(s.array), 0), n - k)  # type: ignore[arg-type]
        for s, n, k in zip(starts, x.shape, sizes, strict=True)
    ]
    return _cut(graph, x, at, [a + k for a, k in zip(at, sizes, strict=True)], [1] * len(sizes))


def _split(graph: Graph, eqn: Any, given: list[Value]) -> list[Value]:
    (x,), axis, at, found = given, eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        starts, ends = [0] * len(x.shape), list(x.shape)
        starts[axis], ends[axis] = at, at + int(size)
        found.append(_cut(graph, x, starts, ends, [1] * len(x.shape)))
        at += int(size)
    return found


RULES["split"] = _split


def _unstack(graph: Graph, eqn: Any, given: list[Value]) -> list[Value]:
    (x,), axis, found = given, eqn.params["axis"], []
    for i in range(x.shape[axis]):
        starts, ends = [0] * len(x.shape), list(x.shape)
        starts[axis], ends[axis] = i, i + 1
        row = _cut(graph, x, starts, ends, [1] * len(x.shape))
        found.append(graph.reshape(row, (*x.shape[:axis], *x.shape[axis + 1 :])))
    return found


RULES["unstack"] = _unstack


@rule("tile")
def _tile(graph: Graph, eqn: Any, x: Value) -> Value:
    for axis, many in enumerate(eqn.params["reps"]):
        if many > 1:
            shape = [n * (many if i == axis else 1) for i, n in enumerate(x.shape)]
            x = graph.emit("Concat", [x] * many, shape, x.dtype, axis=axis + 1)
    return x


@rule("rev")
def _reverse(graph: Graph, eqn: Any, x: Value) -> Value:
    for axis in eqn.params["dimensions"]:
        order = graph.constant(np.arange(x.shape[axis], dtype=np.int64)[::-1])
        x = graph.emit("Gather", [x, order], x.shape, x.dtype, axis=axis + 1)
    return x


@rule("pad")
def _pad(graph: Graph, eqn: Any, x: Value, filling: Value) -> Value:
    config = eqn.params["padding_config"]
    if filling.array is None or any(low < 0 or high < 0 or inside for low, high, inside in config):
        raise Unsupported("there is no rule for padding that cuts off, lies inside, or depends on the observation")
    pads = [0, *(low for low, _, _ in config), 0, *(high for _, high, _ in config)]
    return graph.emit("Pad", [graph.varying(x), filling], *_out(eqn), pads=pads)


# ---- sums and choices -----------------------------------------------------------------------------------------------

REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"} | {
    "reduce_prod": "ReduceProd", "reduce_and": "ReduceMin", "reduce_or": "ReduceMax",
}  # fmt: skip


@rule(*REDUCTIONS)
def _reduce(graph: Graph, eqn: Any, x: Value) -> Value:
    (shape, dtype), axes = _out(eqn), [int(axis) + 1 for axis in eqn.params["axes"]]
    if not axes:
        return x
    x = graph.cast(x, np.int32) if dtype == np.bool_ else x  # bits as numbers
    made = graph.emit(REDUCTIONS[eqn.primitive.name], [x], shape, held(x.dtype), axes=axes, keepdims=0)
    return graph.cast(made, bool) if dtype == np.bool_ else graph.rounded(made, dtype)


@rule("argmax", "argmin")
def _extreme(graph: Graph, eqn: Any, x: Value) -> Value:
    (shape, dtype), (axis,) = _out(eqn), eqn.params["axes"]
    x = graph.cast(x, np.int32) if x.dtype == np.bool_ else x
    op = "ArgMax" if eqn.primitive.name == "argmax" else "ArgMin"
    return graph.cast(graph.emit(op, [x], shape, np.int64, axis=axis + 1, keepdims=0), dtype)


@rule("cumsum")
def _cumulated(graph: Graph, eqn: Any, x: Value) -> Value:
    axis, back = eqn.params["axis"] + 1, int(eqn.params["reverse"])
    return graph.rounded(graph.emit("CumSum", [x], x.shape, held(x.dtype), axis=axis, reverse=back), _out(eqn)[1])


def _sort(graph: Graph, eqn: Any, given: list[Value]) -> list[Value]:
    """One array in ascending order, and beside it the places where its entries were (`argsort`)."""
    axis, keys = eqn.params["dimension"], eqn.params["num_keys"]
    x = graph.varying(given[0])
    kwargs = {"axis": axis + 1, "k": x.shape[axis]}
    found = [graph.emit("Sorted", [x], x.shape, x.dtype, **kwargs)]
    for beside in given[1:]:
        counting = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(x.shape))])
        if keys != 1 or beside.array is None or not (beside.array == counting).all():
            raise Unsupported("there is a rule for sort and argsort of one array alone")
        places = graph.emit("SortedPlaces", [x], x.shape, np.int64, **kwargs)
        found.append(graph.cast(places, beside.dtype))
    return found


RULES["sort"] = _sort

# ---- products -------------------------------------------------------------------------------------------------------

rule("dot_general")(dot_general)
rule("conv_general_dilated")(convolution)
rule("gather")(gather)
rule("reduce_window_max", "reduce_window_sum")(pooling)
