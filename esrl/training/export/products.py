"""Rules for what combines entries: matrix products, convolutions, pooling, lookups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from esrl.training.export.graph import Graph, Unsupported, Value, held


def dot_general(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    """Any product of two arrays, as one of matrices.

    Both become [batch..., M, K] and [batch..., K, N]; a vector of one lane stays one, so that all lanes are one matrix.
    """
    (x_sum, y_sum), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    shape, dtype = tuple(eqn.outvars[0].aval.shape), np.dtype(eqn.outvars[0].aval.dtype)
    x_free = [i for i in range(len(x.shape)) if i not in (*x_sum, *x_batch)]
    y_free = [i for i in range(len(y.shape)) if i not in (*y_sum, *y_batch)]
    many = [x.shape[i] for i in x_batch]
    summed = math.prod(x.shape[i] for i in x_sum)
    rows, columns = math.prod(x.shape[i] for i in x_free), math.prod(y.shape[i] for i in y_free)
    if not many and not x_free and y.array is not None:  # x W
        left = graph.reshape(graph.transpose(x, x_sum), [summed])
        right = graph.reshape(graph.transpose(y, [*y_sum, *y_free]), [summed, columns])
    elif not many and not y_free and x.array is not None:  # W y, as y W^T
        left = graph.reshape(graph.transpose(y, y_sum), [summed])
        right = graph.reshape(graph.transpose(x, [*x_sum, *x_free]), [summed, rows])
    else:
        left = graph.reshape(graph.transpose(x, [*x_batch, *x_free, *x_sum]), [*many, rows, summed])
        right = graph.reshape(graph.transpose(y, [*y_batch, *y_sum, *y_free]), [*many, summed, columns])
    flat = [*many, rows, columns] if len(left.shape) > 1 else [right.shape[1]]
    made = graph.emit("MatMul", [left, right], flat, held(dtype))
    return graph.rounded(graph.reshape(made, shape), dtype)


def convolution(graph: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    """A convolution of any number of dimensions, by a kernel that is a parameter."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    aval = eqn.outvars[0].aval
    if kernel.array is None or x.array is not None:
        raise Unsupported("there is a rule for kernels that are parameters alone")
    if params["batch_group_count"] != 1 or any(d != 1 for d in params["lhs_dilation"]):
        raise Unsupported("there is no rule for transposed convolutions")
    pads = [side for pair in zip(*params["padding"], strict=True) for side in pair]
    if any(pad < 0 for pad in pads):
        raise Unsupported("there is no rule for padding that cuts off")
    x = graph.transpose(x, numbers.lhs_spec)  # [N, channels, ...]
    many = x.shape[0]
    x = graph.reshape(x, x.shape[1:]) if many == 1 else graph.emit(
        "Reshape", [x], x.shape[1:], x.dtype, shape=[-1, *x.shape[1:]]
    )  # fmt: skip
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    out = [aval.shape[i] for i in numbers.out_spec]
    made = graph.emit(
        "Conv",
        [x, kernel],
        out[1:],
        held(aval.dtype),
        strides=list(params["window_strides"]),
        pads=pads,
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    made = graph.emit("Reshape", [made], out, made.dtype, shape=[-1, *out])
    return graph.rounded(graph.transpose(made, _inverse(numbers.out_spec)), aval.dtype)


def pooling(graph: Graph, eqn: Any, x: Value) -> Value:
    """The largest or the sum of a window of the dimensions behind a first and ahead of a last one, as Flax pools."""
    params, aval = eqn.params, eqn.outvars[0].aval
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    dilated = any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"]))
    whole = [i for i in range(len(window)) if window[i] == strides[i] == 1 and tuple(padding[i]) == (0, 0)]
    moved = [i for i in range(len(window)) if i not in whole]
    if dilated or not moved or not np.issubdtype(x.dtype, np.floating):
        raise Unsupported("there is no rule for such a window")
    order = [*whole, *moved]
    together = math.prod(x.shape[i] for i in whole)
    flat = graph.reshape(graph.transpose(x, order), [together, *(x.shape[i] for i in moved)])
    shape = [flat.shape[0], *(aval.shape[i] for i in moved)]
    kwargs = {
        "kernel_shape": [int(window[i]) for i in moved],
        "strides": [int(strides[i]) for i in moved],
        "pads": [int(padding[i][side]) for side in (0, 1) for i in moved],
    }
    if eqn.primitive.name == "reduce_window_max":
        made = graph.emit("MaxPool", [flat], shape, x.dtype, **kwargs)
    else:
        mean = graph.emit("AveragePool", [flat], shape, x.dtype, **kwargs, count_include_pad=1)
        size = graph.constant(np.asarray(math.prod(kwargs["kernel_shape"]), x.dtype))
        made = graph.apply("Mul", [mean, size], shape, x.dtype)
    back = graph.reshape(made, [aval.shape[i] for i in order])
    return graph.transpose(back, _inverse(order))


def gather(graph: Graph, eqn: Any, x: Value, places: Value) -> Value:
    """A lookup of rows along one dimension, as `table[index]` and `jnp.take` are."""
    params, aval = eqn.params, eqn.outvars[0].aval
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    plain = not numbers.operand_batching_dims and len(numbers.start_index_map) == 1
    if not plain:
        raise Unsupported("there is a rule for lookups along one dimension alone")
    (axis,) = numbers.start_index_map
    whole = all(sizes[i] == x.shape[i] for i in range(len(sizes)) if i != axis)
    if sizes[axis] != 1 or tuple(numbers.collapsed_slice_dims) != (axis,) or not whole:
        raise Unsupported("there is a rule for lookups of whole rows alone")
    index = graph.reshape(places, places.shape[:-1])
    last, size = x.shape[axis] - 1, len(index.shape)
    outside = _outside(graph, index, last, str(params["mode"]), params.get("fill_value"))
    if index.array is not None:
        index = graph.constant(np.clip(index.array, 0, last).astype(np.int64))
    else:
        index = graph.cast(index, np.int64)
        for op, bound in (("Max", 0), ("Min", last)):
            index = graph.apply(op, [index, graph.constant(np.int64(bound))], index.shape, np.int64)
    rest = [x.shape[i] for i in range(len(x.shape)) if i != axis]
    if index.array is not None:
        shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
        taken = graph.emit("Gather", [graph.varying(x), index], shape, x.dtype, axis=axis + 1)
        order = [*range(axis, axis + size), *range(axis), *range(axis + size, len(shape))]
        taken = graph.transpose(taken, order)
    elif x.array is not None:  # a table of parameters
        table = graph.transpose(x, [axis, *(i for i in range(len(x.shape)) if i != axis)])
        taken = graph.emit("Gather", [table, index], [*index.shape, *rest], x.dtype, axis=0)
    else:
        taken = _each(graph, x, index, axis)
    if outside is not None:
        wrong, filling = outside
        filled = graph.constant(np.asarray(filling, held(x.dtype)))
        wrong = graph.reshape(wrong, (*index.shape, *[1] * len(rest)))
        taken = graph.where(wrong, filled, taken, taken.shape, x.dtype)
    places_out = [i for i in range(len(aval.shape)) if i not in numbers.offset_dims]
    return graph.transpose(taken, _inverse([*places_out, *numbers.offset_dims]))


def _each(graph: Graph, x: Value, index: Value, axis: int) -> Value:
    """Rows of an array that depends on the observation, at places that do so too: a product with one 1 in a row."""
    rows = graph.transpose(x, [axis, *(i for i in range(len(x.shape)) if i != axis)])
    many, rest, shape = rows.shape[0], rows.shape[1:], index.shape
    column = graph.reshape(index, [math.prod(shape), 1])
    hit = graph.apply("Equal", [column, graph.constant(np.arange(many))], [column.shape[0], many], bool)
    found = graph.emit(
        "MatMul",
        [graph.cast(hit, x.dtype), graph.reshape(rows, [many, math.prod(rest)])],
        [column.shape[0], math.prod(rest)],
        x.dtype,
    )
    return graph.reshape(found, [*shape, *rest])


def _outside(graph: Graph, index: Value, last: int, mode: str, filling: Any) -> tuple[Value, Any] | None:
    """Which places lie outside, and what stands there; None where it is the nearest row, or nothing lies outside."""
    if "FILL" not in mode.upper():
        return None
    if index.array is not None:
        wrong = (index.array < 0) | (index.array > last)
        if not wrong.any():
            return None
        raise Unsupported("it looks outside of its array")
    low = graph.apply("Less", [index, graph.constant(np.asarray(0, held(index.dtype)))], index.shape, bool)
    high = graph.apply("Greater", [index, graph.constant(np.asarray(last, held(index.dtype)))], index.shape, bool)
    return graph.apply("Or", [low, high], index.shape, bool), math.nan if filling is None else filling


def _inverse(order: Sequence[int]) -> list[int]:
    return [int(i) for i in np.argsort(order)]
