"""The operations of a `Graph` as statements of C99, one lane at a time: loops over arrays of fixed sizes.

Operations entry by entry that follow each other become one loop, and what only they need never becomes an array. Whole
numbers have the narrowest type that they were cast to. Sums of int32 cannot overflow where training has checked that
(`esrl.perturbation.integer_noise`); a right shift of a negative number is written without one, which C leaves open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from esrl.training.export.graph import Graph, Node, Unsupported, Value

TYPES = {
    "bool": "uint8_t", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t",
    "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t", "float32": "float", "float64": "double",
}  # fmt: skip
_LIBM = {
    "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan", "Atanh": "atanh",
    "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Log": "log", "Pow": "pow",
    "Round": "rint", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip
_INFIX = {
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Less": "<", "LessOrEqual": "<=", "Greater": ">",
    "GreaterOrEqual": ">=", "Equal": "==", "And": "&&", "Or": "||", "Xor": "!=",
}  # fmt: skip
_ENTRYWISE = {*_LIBM, *_INFIX, "Abs", "Cast", "Expand", "Floor", "Max", "Min", "Mod", "Neg", "Not", "ShiftRight"} | {
    "Sigmoid", "Sign", "Where",
}  # fmt: skip


class Held(NamedTuple):
    """An array in C: its name (of a scalar: an expression), its shape, and its type."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Code:
    """Constants and functions of a file, written function by function.

    Attributes:
      constants: definitions of arrays. libm: whether functions of math.h are called. infinite: whether its constants
        are used.
      bytes: of constants; of arrays on the stack of the function that takes most.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.constants: list[str] = []
        self.libm = self.infinite = False
        self.bytes = {"constants": 0, "stack": 0}
        self._known: dict[Any, str] = {}

    def constant(self, array: np.ndarray) -> Held:
        """A constant, in the narrowest type that holds it; a single number is written where it is used."""
        array = narrowest(np.asarray(array))
        if array.size == 1:
            return Held(self.number(array.flat[0]), array.shape, array.dtype)
        key = (array.dtype.str, array.tobytes())
        if key not in self._known:
            name = f"{self.prefix}_k{len(self._known)}"
            self._known[key] = name
            rows = array.reshape(-1)
            text = [", ".join(map(self.number, rows[i : i + 16])) for i in range(0, rows.size, 16)]
            sizes = "x".join(map(str, array.shape))
            head = f"static const {TYPES[array.dtype.name]} {name}[{array.size}] = {{ /* {sizes} */"
            self.constants.append(head + "\n    " + ",\n    ".join(text) + "};")
            self.bytes["constants"] += array.nbytes
        return Held(self._known[key], array.shape, array.dtype)

    def number(self, x: Any) -> str:
        """A number as C reads it, exactly."""
        if x.dtype.kind in "bui":
            return f"({int(x) + 1} - 1)" if int(x) == -(2**31) else str(int(x))
        if not np.isfinite(x):
            self.infinite = True
            return "NAN" if np.isnan(x) else "INFINITY" if x > 0 else "(-INFINITY)"
        text = repr(float(x)) if x.dtype == np.float64 else np.format_float_scientific(x, unique=True)
        text = text if any(c in text for c in ".e") else text + ".0"
        text = text.replace(".e", ".0e")
        return text + ("" if x.dtype == np.float64 else "f")

    def body(self, graph: Graph, given: dict[str, str], outputs: Sequence[tuple[Value, str, Any]]) -> list[str]:
        """The statements that compute some values.

        Args:
          graph: the operations. given: the C name of each input.
          outputs: each value with the C array that it is written to, and the type of that.

        Raises:
          Unsupported: an operation that C has no rule for, by its name.
        """
        return _Function(self, graph, given, outputs).lines


class _Function:
    """One function's statements."""

    def __init__(
        self, code: Code, graph: Graph, given: dict[str, str], outputs: Sequence[tuple[Value, str, Any]]
    ) -> None:
        self.code, self.graph, self.stack = code, graph, 0
        self.lines: list[str] = []
        self.held = {x.name: Held(given[x.name], x.shape, x.dtype) for x in graph.inputs if x.name in given}
        self.uses = Counter(name for node in graph.nodes for name in node.inputs)
        self.uses.update(value.name for value, _, _ in outputs)
        self.by_name = {node.output: node for node in graph.nodes}
        i = 0
        while i < len(graph.nodes):
            group = self._group(i)
            if group:
                self._loop(group)
            else:
                self._node(graph.nodes[i])
            i += max(len(group), 1)
        for value, name, dtype in outputs:
            x = self._get(value.name)
            kind = TYPES[np.dtype(dtype).name]
            self._for(x.size, [f"{name}[i] = ({kind}){self._at(x, 'i')};"])
        code.bytes["stack"] = max(code.bytes["stack"], self.stack)

    def _get(self, name: str) -> Held:
        if name not in self.held:
            self.held[name] = self.code.constant(self.graph.arrays[name])
        return self.held[name]

    def _at(self, x: Held, index: str) -> str:
        return x.name if x.name[0] in "-(0123456789NI" else f"{x.name}[{index}]"

    def _new(self, node: Node, dtype: Any = None) -> Held:
        shape, kept = self.graph.shapes[node.output]
        dtype = np.dtype(dtype if dtype is not None else kept)
        x = Held(f"t{len(self.held)}", shape, dtype)
        self.held[node.output] = x
        self.stack += x.size * dtype.itemsize
        self.lines.append(f"{TYPES[dtype.name]} {x.name}[{max(x.size, 1)}];")
        return x

    def _for(self, size: int, statements: Sequence[str], index: str = "i") -> None:
        self.lines.append(f"for (int {index} = 0; {index} < {size}; {index}++) {{")
        self.lines += [f"    {line}" for line in statements]
        self.lines.append("}")

    # ---- entry by entry ---------------------------------------------------------------------------------------------

    def _group(self, i: int) -> list[Node]:
        """The operations from number i on that one loop can do."""
        nodes = self.graph.nodes
        if nodes[i].op not in _ENTRYWISE:
            return []
        shape, made, group = self.graph.shapes[nodes[i].output][0], set(), []
        for node in nodes[i:]:
            same = all(self.graph.shapes[name][0] == shape for name in node.inputs if name in made)
            if node.op not in _ENTRYWISE or self.graph.shapes[node.output][0] != shape or not same:
                break
            group.append(node)
            made.add(node.output)
        return group

    def _loop(self, group: list[Node]) -> None:
        inside = Counter(name for node in group for name in node.inputs)
        local: dict[str, str] = {}
        statements: list[str] = []
        shape = self.graph.shapes[group[0].output][0]
        for node in group:
            dtype = self.graph.shapes[node.output][1]
            given = [(local[name] if name in local else self._entry(name, shape)) for name in node.inputs]
            types = [self.graph.shapes[n][1] if n in self.graph.shapes else self._get(n).dtype for n in node.inputs]
            local[node.output] = f"v{len(local)}"
            text = expression(self.code, node, given, types)
            statements.append(f"const {TYPES[dtype.name]} {local[node.output]} = {text};")
            if self.uses[node.output] > inside[node.output]:
                kept = self._new(node, self._narrow(node))
                statements.append(f"{kept.name}[i] = ({TYPES[kept.dtype.name]}){local[node.output]};")
        self._for(math.prod(shape), statements)

    def _narrow(self, node: Node) -> Any:
        """The type that numbers were rounded to before they were held as int32."""
        before = self.by_name.get(node.inputs[0]) if node.op == "Cast" else None
        narrow = before is not None and before.op == "Cast" and before.attributes["to"] in ("int8", "int16", "uint8")
        return before.attributes["to"] if narrow and before is not None and node.attributes["to"] == "int32" else None

    def _entry(self, name: str, shape: tuple[int, ...]) -> str:
        """An array's entry for number i of a shape that it is broadcast to."""
        x = self._get(name)
        if x.size == 1:
            return self._at(x, "0")
        padded = (1,) * (len(shape) - len(x.shape)) + x.shape
        return self._at(x, "i" if padded == shape else _index("i", shape, _strides(padded, shape)))

    # ---- all others -------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        rule = _RULES.get(node.op)
        if rule is None:
            raise Unsupported(f"there is no rule for its operation {node.op}")
        rule(self, node)

    def _copy(self, node: Node, index: str) -> None:
        """Each entry i is the entry `index` of the first input."""
        x, out = self._get(node.inputs[0]), self._new(node, self._get(node.inputs[0]).dtype)
        self._for(out.size, [f"{out.name}[i] = {self._at(x, index)};"])


def expression(code: Code, node: Node, given: Sequence[str], types: Sequence[np.dtype]) -> str:
    """An operation on numbers as an expression."""
    op, a, b = node.op, given[0], given[1] if len(given) > 1 else ""
    real, end = types[0].kind == "f", "f" if types[0] == np.float32 else ""
    if op in _INFIX:
        return f"{a} {_INFIX[op]} {b}"
    if op in _LIBM:
        code.libm = True
        return f"{_LIBM[op]}{end}({', '.join(given)})"
    if op in ("Max", "Min"):
        sign = ">" if op == "Max" else "<"
        return f"({a} {sign} {b} || {a} != {a}) ? {a} : {b}" if real else f"{a} {sign} {b} ? {a} : {b}"
    if op == "Cast":
        to = np.dtype(node.attributes["to"])
        if to.name not in TYPES:
            raise Unsupported(f"there is no rule for numbers of type {to.name}")
        return f"{a} != 0" if to == np.bool_ else f"({TYPES[to.name]})({a})"
    if op == "Mod":
        code.libm |= real
        return f"fmod{end}({a}, {b})" if real else f"{a} % {b}"
    if op == "Sigmoid":
        code.libm = True
        return f"1.0{end} / (1.0{end} + exp{end}(-({a})))"
    by = node.attributes.get("by")
    return {
        "Abs": f"{a} < 0 ? -({a}) : {a}",
        "Expand": a,
        "Floor": f"{code.prefix}_floor({a})",
        "Neg": f"-({a})",
        "Not": f"!{a}",
        "ShiftRight": f"{a} >= 0 ? {a} >> {by} : ~(~({a}) >> {by})",
        "Sign": f"({a} > 0) - ({a} < 0)",
        "Where": f"{a} ? {b} : {given[-1]}",
    }[op]


def narrowest(array: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them all."""
    if array.dtype.kind not in "iu" or not array.size:
        return array
    for kind in ("int8", "int16", "int32"):
        if np.iinfo(kind).min <= array.min() and array.max() <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


def _strides(shape: Sequence[int], out: Sequence[int]) -> list[int]:
    """Of each dimension, how far its next entry is; 0 where one entry stands for all of `out`."""
    found, step = [], 1
    for n in reversed(shape):
        found.append(0 if n == 1 else step)
        step *= n
    return found[::-1]


def _index(i: str, shape: Sequence[int], strides: Sequence[int], start: int = 0) -> str:
    """The place of entry i of a shape in an array with these strides, as an expression."""
    parts, below = [], 1
    for d in range(len(shape) - 1, -1, -1):
        if strides[d] and shape[d] > 1:
            outer = f"{i} / {below}" if below > 1 else i
            inner = f"{outer} % {shape[d]}" if below * shape[d] < math.prod(shape) else outer
            parts.append(f"{inner} * {strides[d]}" if strides[d] != 1 else inner)
        below *= shape[d]
    return " + ".join([*([str(start)] if start or not parts else []), *reversed(parts)])


_RULES: dict[str, Callable[[_Function, Node], None]] = {}


def rule(*names: str) -> Callable[[Callable[[_Function, Node], None]], Callable[[_Function, Node], None]]:
    """Makes a function the rule of these operations."""

    def add(fn: Callable[[_Function, Node], None]) -> Callable[[_Function, Node], None]:
        _RULES.update(dict.fromkeys(names, fn))
        return fn

    return add
