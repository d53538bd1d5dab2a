"""A policy as a list of operations on arrays, each of which NumPy and ONNX have.

Operations are those of ONNX, by its names; their attributes too. Every value that depends on the observation has a
leading batch axis, constants have none, so that the usual broadcasting joins both. Shapes here are of one lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from esrl.core.types import EsrlError


class Unsupported(EsrlError):
    """An operation of a network that no list of operations can have."""


class Value(NamedTuple):
    """An array of the graph.

    Attributes:
      name: of the array.
      shape: without the batch axis.
      dtype: what JAX has there; the graph holds `held(dtype)`.
      array: what it is, where it depends on no observation.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    array: np.ndarray | None = None


class Node(NamedTuple):
    """One operation: its name, names of what it takes, the name of what it gives, and its attributes."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


def held(dtype: Any) -> np.dtype:
    """The type in which the graph holds numbers of a type, so that every operation has few types to know.

    Half precision is held as float32, and rounded after each operation.
    """
    dtype = np.dtype(dtype)
    if dtype == np.bool_ or dtype in (np.float32, np.float64):
        return dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float32)
    if not np.issubdtype(dtype, np.integer):
        raise Unsupported(f"there is no rule for numbers of type {dtype}")
    return np.dtype(np.int64 if dtype.itemsize == 8 or dtype == np.uint32 else np.int32)


@dataclass
class Graph:
    """Operations in the order in which they are done.

    Attributes:
      nodes: the operations. inputs: what is given. arrays: the constants by their names.
      shapes: shape (without the batch axis) and type of every array that an operation gives.
    """

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict)

    def input(self, name: str, shape: Sequence[int], dtype: Any) -> Value:
        """A value that is given."""
        value = Value(name, tuple(shape), np.dtype(dtype))
        self.inputs.append(value)
        return value

    def constant(self, array: Any, name: str = "") -> Value:
        """A value that depends on no observation; scalars of equal value are one."""
        array = np.asarray(array)
        kept = np.asarray(array, held(array.dtype), order="C")
        if kept.ndim == 0 and not name:
            name = f"{kept.dtype}:{kept.item()!r}"
        name = name or f"constant/{len(self.arrays)}"
        self.arrays[name] = kept
        return Value(name, kept.shape, array.dtype, kept)

    def emit(self, op: str, inputs: Sequence[Value], shape: Sequence[int], dtype: Any, /, **attributes: Any) -> Value:
        """Adds an operation; returns what it gives."""
        value = Value(f"v{len(self.nodes)}", tuple(map(int, shape)), np.dtype(dtype))
        plain = {name: x if isinstance(x, str) else np.asarray(x).tolist() for name, x in attributes.items()}
        self.nodes.append(Node(op, tuple(x.name for x in inputs), value.name, plain))
        self.shapes[value.name] = (value.shape, held(_held_by(op, value.dtype, plain)))
        return value

    # ---- shapes -----------------------------------------------------------------------------------------------------

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        shape = tuple(map(int, shape))
        if x.shape == shape:
            return x
        if x.array is not None:
            return self._changed(x, x.array.reshape(shape))
        if 0 in shape:
            raise Unsupported("there is no rule for arrays without entries")
        return self.emit("Reshape", [x], shape, x.dtype, shape=[-1, *shape])

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        order = [int(i) for i in order]
        if order == sorted(order):
            return x
        if x.array is not None:
            return self._changed(x, x.array.transpose(order))
        shape = [x.shape[i] for i in order]
        return self.emit("Transpose", [x], shape, x.dtype, perm=[0, *(i + 1 for i in order)])

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """Repeats dimensions of length 1."""
        shape = tuple(map(int, shape))
        if x.shape == shape:
            return x
        if x.array is not None:
            return self._changed(x, np.broadcast_to(x.array, shape))
        return self.emit("Expand", [x], shape, x.dtype, shape=[1, *shape])

    def ranked(self, x: Value, rank: int) -> Value:
        """With as many dimensions as given, so that the batch axis is in front of all of them."""
        return x if x.array is not None else self.reshape(x, (1,) * (rank - len(x.shape)) + x.shape)

    def varying(self, x: Value, like: Value | None = None) -> Value:
        """With a batch axis, where it has none."""
        if x.array is None:
            return x
        return self.emit("Repeat", [x, like or self.inputs[0]], x.shape, x.dtype, shape=list(x.shape))

    def _changed(self, x: Value, array: np.ndarray) -> Value:
        made = self.constant(array)
        return made._replace(dtype=x.dtype)

    # ---- numbers ----------------------------------------------------------------------------------------------------

    def apply(self, op: str, inputs: Sequence[Value], shape: Sequence[int], dtype: Any, **attributes: Any) -> Value:
        """An operation entry by entry, rounded to a type that is narrower than what the graph holds."""
        made = self.emit(op, [self.ranked(x, len(shape)) for x in inputs], shape, held(dtype), **attributes)
        return self.rounded(made, dtype)

    def rounded(self, x: Value, dtype: Any) -> Value:
        """Numbers that the graph holds in a wider type than they have, as they would be in theirs."""
        dtype = np.dtype(dtype)
        if dtype == held(dtype):
            return x._replace(dtype=dtype)
        narrow = self.emit("Cast", [x], x.shape, dtype, to=dtype.name)
        return self.emit("Cast", [narrow], x.shape, dtype, to=held(dtype).name)

    def cast(self, x: Value, dtype: Any) -> Value:
        """Numbers of another type."""
        dtype = np.dtype(dtype)
        if dtype == x.dtype:
            return x
        if x.array is not None:
            return self.constant(x.array.astype(dtype))
        if dtype == np.bool_:
            zero = self.constant(np.zeros((), held(x.dtype)))
            return self.emit("Not", [self.emit("Equal", [x, zero], x.shape, bool)], x.shape, bool)
        if held(dtype) != held(x.dtype):
            x = self.emit("Cast", [x], x.shape, held(dtype), to=held(dtype).name)
        widened = held(dtype) == dtype or _contains(dtype, x.dtype)
        return x._replace(dtype=dtype) if widened else self.rounded(x, dtype)

    def where(self, condition: Value, yes: Value, no: Value, shape: Sequence[int], dtype: Any) -> Value:
        """Entries of `yes` where a condition holds, of `no` elsewhere."""
        if condition.array is not None and condition.array.size and condition.array.min() == condition.array.max():
            chosen = yes if condition.array.all() else no
            return self.expand(self.ranked(chosen, len(shape)), shape)
        if np.dtype(dtype) == np.bool_:  # which ONNX's runtimes do not choose between
            taken = self.apply("And", [condition, yes], shape, bool)
            other = self.apply("And", [self.apply("Not", [condition], condition.shape, bool), no], shape, bool)
            return self.apply("Or", [taken, other], shape, bool)
        made = self.emit("Where", [self.ranked(x, len(shape)) for x in (condition, yes, no)], shape, dtype)
        return made._replace(dtype=np.dtype(dtype))

    # ---- at the end -------------------------------------------------------------------------------------------------

    def finished(self, outputs: Sequence[Value]) -> Graph:
        """The graph without what none of these outputs needs; equal constants are one, as in loops written out."""
        needed, nodes = {x.name for x in outputs}, []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                nodes.append(node)
        first: dict[Any, str] = {}
        names = {
            name: first.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
            for name, array in self.arrays.items()
            if name in needed
        }
        nodes = [node._replace(inputs=tuple(names.get(name, name) for name in node.inputs)) for node in reversed(nodes)]
        return Graph(nodes, self.inputs, {name: self.arrays[name] for name in first.values()}, self.shapes)


def _held_by(op: str, dtype: np.dtype, attributes: dict[str, Any]) -> Any:
    """The type that an operation's result is held in, of which `dtype` may be a narrower one."""
    return attributes["to"] if op == "Cast" else dtype


def _contains(wide: np.dtype, narrow: np.dtype) -> bool:
    """Whether every number of a type is one of another, so that no rounding is needed."""
    return bool(np.can_cast(narrow, wide))
