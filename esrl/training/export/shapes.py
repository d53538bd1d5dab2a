"""Rules of what moves, combines and chooses entries. See `esrl.training.export.table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from esrl.training.export.graph import Graph, Unsupported, Value, held
from esrl.training.export.products import convolution, dot_general, gather, pooling
from esrl.training.export.table import RULES, out, rule

# ---- shapes ---------------------------------------------------------------------------------------------------------


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.reshape(x, out(eqn)[0])


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
    return graph.emit("Concat", given, *out(eqn), axis=eqn.params["dimension"] + 1) if len(given) > 1 else given[0]


@rule("stack")
def _stack(graph: Graph, eqn: Any, *parts: Value) -> Value:
    axis = eqn.params.get("axis", eqn.params.get("dimension", 0))
    like = next(x for x in parts if x.array is None)
    given = [graph.varying(graph.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])), like) for x in parts]
    return graph.emit("Concat", given, *out(eqn), axis=axis + 1)


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
    return graph.emit("Pad", [graph.varying(x), filling], *out(eqn), pads=pads)


# ---- sums and choices -----------------------------------------------------------------------------------------------

REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"} | {
    "reduce_prod": "ReduceProd", "reduce_and": "ReduceMin", "reduce_or": "ReduceMax",
}  # fmt: skip


@rule(*REDUCTIONS)
def _reduce(graph: Graph, eqn: Any, x: Value) -> Value:
    (shape, dtype), axes = out(eqn), [int(axis) + 1 for axis in eqn.params["axes"]]
    if not axes:
        return x
    x = graph.cast(x, np.int32) if dtype == np.bool_ else x  # bits as numbers
    made = graph.emit(REDUCTIONS[eqn.primitive.name], [x], shape, held(x.dtype), axes=axes, keepdims=0)
    return graph.cast(made, bool) if dtype == np.bool_ else graph.rounded(made, dtype)


@rule("argmax", "argmin")
def _extreme(graph: Graph, eqn: Any, x: Value) -> Value:
    (shape, dtype), (axis,) = out(eqn), eqn.params["axes"]
    x = graph.cast(x, np.int32) if x.dtype == np.bool_ else x
    op = "ArgMax" if eqn.primitive.name == "argmax" else "ArgMin"
    return graph.cast(graph.emit(op, [x], shape, np.int64, axis=axis + 1, keepdims=0), dtype)


@rule("cumsum")
def _cumulated(graph: Graph, eqn: Any, x: Value) -> Value:
    axis, back = eqn.params["axis"] + 1, int(eqn.params["reverse"])
    return graph.rounded(graph.emit("CumSum", [x], x.shape, held(x.dtype), axis=axis, reverse=back), out(eqn)[1])


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
