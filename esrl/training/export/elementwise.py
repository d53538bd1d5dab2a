"""Rules of operations entry by entry. See `esrl.training.export.table`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from esrl.training.export.graph import Graph, Unsupported, Value
from esrl.training.export.table import RULES, Rule, out, rule, scalar

SAME = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "eq": "Equal", "erf": "Erf",
    "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
    "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "sign": "Sign",
    "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
LOGICAL = {"and": "And", "not": "Not", "or": "Or", "xor": "Xor"}


def _same(op: str) -> Rule:
    return lambda graph, eqn, given: [graph.apply(op, given, *out(eqn))]


def _logical(op: str) -> Rule:
    def apply(graph: Graph, eqn: Any, given: list[Value]) -> list[Value]:
        if out(eqn)[1] != np.bool_:
            raise Unsupported("there is no rule for the bits of whole numbers")
        return [graph.apply(op, given, *out(eqn))]

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
    if np.issubdtype(out(eqn)[1], np.integer):
        raise Unsupported("there is no rule for quotients of whole numbers")
    return graph.apply("Div", [x, y], *out(eqn))


@rule("shift_right_arithmetic")
def _shift_right(graph: Graph, eqn: Any, x: Value, by: Value) -> Value:
    """`floor(x / 2^by)` of whole numbers that may be negative."""
    return graph.apply("ShiftRight", [x], *out(eqn), by=_one_number(by))


@rule("shift_left")
def _shift_left(graph: Graph, eqn: Any, x: Value, by: Value) -> Value:
    return graph.apply("Mul", [x, scalar(graph, 1 << _one_number(by), x.dtype)], *out(eqn))


def _one_number(by: Value) -> int:
    if by.array is None or by.array.size == 0 or by.array.min() != by.array.max():
        raise Unsupported("there is a rule for shifts by one number alone")
    return int(by.array.flat[0])


@rule("rem")
def _remainder(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.apply("Mod", [x, y], *out(eqn), fmod=1)


@rule("ne")
def _differ(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.apply("Not", [graph.apply("Equal", [x, y], *out(eqn))], *out(eqn))


@rule("square")
def _square(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Mul", [x, x], *out(eqn))


@rule("integer_pow")
def _integer_power(graph: Graph, eqn: Any, x: Value) -> Value:
    (shape, dtype), power = out(eqn), eqn.params["y"]
    if not 1 <= abs(power) <= 8:
        raise Unsupported(f"there is no rule for the power {power}")
    found = x
    for _ in range(abs(power) - 1):
        found = graph.apply("Mul", [found, x], shape, dtype)
    return found if power > 0 else graph.apply("Div", [scalar(graph, 1, dtype), found], shape, dtype)


@rule("pow")
def _power(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    return graph.apply("Pow", [x, graph.cast(y, x.dtype)], *out(eqn))


@rule("rsqrt")
def _inverse_root(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Div", [scalar(graph, 1, x.dtype), graph.apply("Sqrt", [x], *out(eqn))], *out(eqn))


@rule("cbrt")
def _cube_root(graph: Graph, eqn: Any, x: Value) -> Value:
    third = scalar(graph, 1 / 3, x.dtype)
    size = graph.apply("Pow", [graph.apply("Abs", [x], *out(eqn)), third], *out(eqn))
    return graph.apply("Mul", [graph.apply("Sign", [x], *out(eqn)), size], *out(eqn))


@rule("exp2")
def _exponential_of_two(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Exp", [graph.apply("Mul", [x, scalar(graph, math.log(2), x.dtype)], *out(eqn))], *out(eqn))


@rule("expm1")
def _exponential_less_one(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Sub", [graph.apply("Exp", [x], *out(eqn)), scalar(graph, 1, x.dtype)], *out(eqn))


@rule("log1p")
def _log_of_one_more(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Log", [graph.apply("Add", [x, scalar(graph, 1, x.dtype)], *out(eqn))], *out(eqn))


@rule("erfc")
def _complement(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.apply("Sub", [scalar(graph, 1, x.dtype), graph.apply("Erf", [x], *out(eqn))], *out(eqn))


@rule("round")
def _round(graph: Graph, eqn: Any, x: Value) -> Value:
    shape, dtype = out(eqn)
    if int(eqn.params["rounding_method"]) == 1:  # to even
        return graph.apply("Round", [x], shape, dtype)
    away = graph.apply("Add", [graph.apply("Abs", [x], shape, dtype), scalar(graph, 0.5, dtype)], shape, dtype)
    return graph.apply(
        "Mul", [graph.apply("Sign", [x], shape, dtype), graph.apply("Floor", [away], shape, dtype)], shape, dtype
    )


@rule("is_finite")
def _finite(graph: Graph, eqn: Any, x: Value) -> Value:
    size = graph.apply("Abs", [x], x.shape, x.dtype)
    return graph.apply("Less", [size, scalar(graph, math.inf, x.dtype)], *out(eqn))


@rule("clamp")
def _clamp(graph: Graph, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    return graph.apply("Min", [graph.apply("Max", [x, low], *out(eqn)), high], *out(eqn))


@rule("select_n")
def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    shape, dtype = out(eqn)
    if which.dtype == np.bool_:
        return graph.where(which, cases[1], cases[0], shape, dtype)
    found = cases[-1]
    for i in range(len(cases) - 2, -1, -1):
        chosen = graph.apply("LessOrEqual", [which, scalar(graph, i, which.dtype)], which.shape, bool)
        found = graph.where(chosen, cases[i], found, shape, dtype)
    return found
