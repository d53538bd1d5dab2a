"""Rules for what combines or moves entries, as loops of C. See `esrl.training.export.c_code`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from esrl.training.export.c_code import TYPES, _Function, _index, _strides, rule
from esrl.training.export.graph import Node, Unsupported


@rule("Reshape", "Repeat")
def _alias(fn: _Function, node: Node) -> None:
    fn.held[node.output] = fn._get(node.inputs[0])._replace(shape=fn.graph.shapes[node.output][0])


@rule("MatMul")
def _product(fn: _Function, node: Node) -> None:
    x, fixed = fn._get(node.inputs[0]), fn.graph.arrays.get(node.inputs[1])
    shape = fn._get(node.inputs[1]).shape if fixed is None else fixed.shape
    k, n = shape[-2:]
    many, rows = math.prod(shape[:-2]), x.size // max(math.prod(shape[:-2]) * k, 1)
    kind = np.dtype(np.float32) if x.dtype == np.float32 else np.dtype(np.int32 if x.dtype.kind in "iub" else x.dtype)
    if fixed is not None and many == 1:  # so that a sum reads its weights one after another
        weight = fn._at(fn.code.constant(fixed.reshape(k, n).T), f"n * {k} + k")
    else:
        weight = fn._at(fn._get(node.inputs[1]), f"b * {k * n} + k * {n} + n" if many > 1 else f"k * {n} + n")
    out = fn._new(node, kind)
    lines = [
        f"{TYPES[kind.name]} sum = 0;",
        f"for (int k = 0; k < {k}; k++) {{",
        f"    sum += {fn._at(x, f'(b * {rows} + m) * {k} + k' if many * rows > 1 else 'k')} * {weight};",
        "}",
        f"{out.name}[{f'(b * {rows} + m) * {n} + n' if many * rows > 1 else 'n'}] = sum;",
    ]
    for size, index in ((n, "n"), (rows, "m"), (many, "b")):
        if index == "n" or many * rows > 1:
            lines = [f"for (int {index} = 0; {index} < {size}; {index}++) {{", *(f"    {x}" for x in lines), "}"]
    fn.lines += lines


@rule("Transpose")
def _transpose(fn: _Function, node: Node) -> None:
    order = [i - 1 for i in node.attributes["perm"][1:]]
    x = fn._get(node.inputs[0])
    steps = _strides(x.shape, x.shape)
    fn._copy(node, _index("i", fn.graph.shapes[node.output][0], [steps[i] for i in order]))


@rule("Slice")
def _slice(fn: _Function, node: Node) -> None:
    x, at = fn._get(node.inputs[0]), node.attributes
    steps, start = _strides(x.shape, x.shape), 0
    for axis, first, by in zip(at["axes"], at["starts"], at["steps"], strict=True):
        start += first * steps[axis - 1]
        steps[axis - 1] *= by
    fn._copy(node, _index("i", fn.graph.shapes[node.output][0], steps, start))


@rule("Concat")
def _concat(fn: _Function, node: Node) -> None:
    parts = [fn._get(name) for name in node.inputs]
    axis = node.attributes["axis"] - 1
    out = fn._new(node, np.result_type(*(x.dtype for x in parts)))
    inner, outer = math.prod(out.shape[axis + 1 :]), math.prod(out.shape[:axis])
    row, done = out.shape[axis] * inner, 0
    for x in parts:
        size = x.shape[axis] * inner
        at = f"i / {size} * {row} + {done} + i % {size}" if outer > 1 else f"i + {done}" if done else "i"
        fn._for(outer * size, [f"{out.name}[{at}] = {fn._at(x, 'i')};"])
        done += size


@rule("Gather")
def _gather(fn: _Function, node: Node) -> None:
    x, places = (fn._get(name) for name in node.inputs)
    varies = node.inputs[0] not in fn.graph.arrays
    axis = node.attributes["axis"] - varies
    inner, many = math.prod(x.shape[axis + 1 :]), places.size
    at = fn._at(places, f"i / {inner} % {many}")
    fn._copy(node, f"(i / {inner * many} * {x.shape[axis]} + {at}) * {inner} + i % {inner}")


@rule("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
def _reduce(fn: _Function, node: Node) -> None:
    x, axes = fn._get(node.inputs[0]), [a - 1 for a in node.attributes["axes"]]
    at, size = _within(x, axes)
    kind = fn.graph.shapes[node.output][1]
    first = {"ReduceSum": "0", "ReduceProd": "1"}.get(node.op)
    step = {
        "ReduceSum": "found += x;",
        "ReduceProd": "found *= x;",
        "ReduceMax": f"if (x > found{_or_nan(kind)}) found = x;",
        "ReduceMin": f"if (x < found{_or_nan(kind)}) found = x;",
    }[node.op]
    out = fn._new(node)
    lines = [
        f"{TYPES[kind.name]} found = {first if first is not None else fn._at(x, at('0'))};",
        f"for (int r = {0 if first is not None else 1}; r < {size}; r++) {{",
        f"    const {TYPES[kind.name]} x = {fn._at(x, at('r'))};",
        f"    {step}",
        "}",
        f"{out.name}[i] = found;",
    ]
    fn._for(out.size, lines)


def _or_nan(kind: np.dtype) -> str:
    """Whole numbers are never NaN, and a compiler warns of one that asks."""
    return " || x != x" if kind.kind == "f" else ""


@rule("ArgMax", "ArgMin")
def _place(fn: _Function, node: Node) -> None:
    x, axis = fn._get(node.inputs[0]), node.attributes["axis"] - 1
    at, size = _within(x, [axis])
    sign = ">" if node.op == "ArgMax" else "<"
    out = fn._new(node, np.int32)
    fn._for(
        out.size,
        [
            "int32_t best = 0;",
            f"for (int r = 1; r < {size}; r++) {{",
            f"    if ({fn._at(x, at('r'))} {sign} {fn._at(x, at('best'))}) best = r;",
            "}",
            f"{out.name}[i] = best;",
        ],
    )


def _within(x: Any, axes: list[int]) -> tuple[Any, int]:
    """`at(r)`: the place of entry r of those that belong to entry i of what is left; and how many they are."""
    steps = _strides(x.shape, x.shape)
    left = [d for d in range(len(x.shape)) if d not in axes]
    base = _index("i", [x.shape[d] for d in left], [steps[d] for d in left]) if left else "0"

    def at(r: str) -> str:
        return f"{base} + {_index(r, [x.shape[d] for d in axes], [steps[d] for d in axes])}"

    return at, math.prod(x.shape[d] for d in axes)


@rule("Conv")
def _conv(fn: _Function, node: Node) -> None:
    x, kernel, at = fn._get(node.inputs[0]), fn._get(node.inputs[1]), node.attributes
    if len(x.shape) != 3 or at["group"] != 1:
        raise Unsupported("there is a rule for convolutions of pictures without groups alone")
    out = fn._new(node)
    (c, h, w), (kh, kw) = x.shape, kernel.shape[2:]
    _, oh, ow = out.shape
    (sh, sw), (ph, pw), (dh, dw) = at["strides"], at["pads"][:2], at["dilations"]
    fn.lines += [
        f"for (int o = 0; o < {out.size}; o++) {{",
        f"    {TYPES[out.dtype.name]} sum = 0;",
        f"    for (int k = 0; k < {c * kh * kw}; k++) {{",
        f"        const int y = o / {ow} % {oh} * {sh} - {ph} + k / {kw} % {kh} * {dh};",
        f"        const int x = o % {ow} * {sw} - {pw} + k % {kw} * {dw};",
        f"        if (y >= 0 && y < {h} && x >= 0 && x < {w}) {{",
        f"            sum += {fn._at(x, f'(k / {kh * kw} * {h} + y) * {w} + x')}"
        f" * {fn._at(kernel, f'o / {oh * ow} * {c * kh * kw} + k')};",
        "        }",
        "    }",
        f"    {out.name}[o] = sum;",
        "}",
    ]


@rule("MaxPool", "AveragePool")
def _pool(fn: _Function, node: Node) -> None:
    """The largest, or the mean, of windows of the dimensions behind the first; what lies outside is no entry."""
    x, at = fn._get(node.inputs[0]), node.attributes
    out = fn._new(node)
    kind, (_, *sizes), (_, *made), window = TYPES[out.dtype.name], x.shape, out.shape, at["kernel_shape"]
    places, inside, where = [], [], f"o / {math.prod(made)}"
    for d, size in enumerate(sizes):
        from_o, from_k = math.prod(made[d + 1 :]), math.prod(window[d + 1 :])
        start = f"o / {from_o} % {made[d]} * {at['strides'][d]} - {at['pads'][d]}"
        places.append(f"const int y{d} = {start} + k / {from_k} % {window[d]};")
        inside.append(f"y{d} >= 0 && y{d} < {size}")
        where = f"({where}) * {size} + y{d}"
    most = node.op == "MaxPool"
    step = f"if (x > found{_or_nan(out.dtype)}) found = x;" if most else "found += x;"
    fn._for(
        out.size,
        [
            f"{kind} found = {fn.code.number(out.dtype.type(-np.inf if most else 0))};",
            f"for (int k = 0; k < {math.prod(window)}; k++) {{",
            *(f"    {place}" for place in places),
            f"    if ({' && '.join(inside)}) {{",
            f"        const {kind} x = {fn._at(x, where)};",
            f"        {step}",
            "    }",
            "}",
            f"{out.name}[o] = found{'' if most else f' / {math.prod(window)}'};",
        ],
        "o",
    )


@rule("Pad")
def _pad(fn: _Function, node: Node) -> None:
    x, filling, pads = fn._get(node.inputs[0]), fn._get(node.inputs[1]), node.attributes["pads"]
    out = fn._new(node)
    fn._for(out.size, [f"{out.name}[i] = {fn._at(filling, '0')};"])
    steps = _strides(out.shape, out.shape)
    first = sum(low * step for low, step in zip(pads[1 : 1 + len(steps)], steps, strict=True))
    fn._for(x.size, [f"{out.name}[{_index('i', x.shape, steps, first)}] = {fn._at(x, 'i')};"])


def _line(x: Any, axis: int) -> tuple[int, int, Any]:
    """How many lines along an axis there are, how long they are, and `at(k)`: the place of entry k of line i."""
    inner, n = math.prod(x.shape[axis + 1 :]), x.shape[axis]
    base = f"i / {inner} * {n * inner} + i % {inner}" if inner > 1 else f"i * {n}"
    return x.size // max(n, 1), n, lambda k: f"{base} + ({k})" + (f" * {inner}" if inner > 1 else "")


@rule("CumSum")
def _sum_up(fn: _Function, node: Node) -> None:
    x = fn._get(node.inputs[0])
    lines, n, at = _line(x, node.attributes["axis"] - 1)
    out = fn._new(node)
    place = at(f"{n - 1} - k" if node.attributes["reverse"] else "k")
    fn._for(
        lines,
        [
            f"{TYPES[out.dtype.name]} sum = 0;",
            f"for (int k = 0; k < {n}; k++) {{",
            f"    sum += {fn._at(x, place)};",
            f"    {out.name}[{place}] = sum;",
            "}",
        ],
    )


@rule("Sorted", "SortedPlaces")
def _sort(fn: _Function, node: Node) -> None:
    """Ascending, equal ones in their order, NaN last: by insertion, since a policy sorts few numbers."""
    x, by_place = fn._get(node.inputs[0]), node.op == "SortedPlaces"
    lines, n, at = _line(x, node.attributes["axis"] - 1)
    out = fn._new(node, np.int32 if by_place else x.dtype)
    # What an entry of `out` stands for: of places the number there.
    number = (lambda entry: fn._at(x, at(entry))) if by_place else (lambda entry: entry)
    before, own = number(f"{out.name}[{at('j - 1')}]"), number("own")
    later = f"{before} > {own}"
    if x.dtype.kind == "f":
        later += f" || ({before} != {before} && {own} == {own})"
    fn._for(
        lines,
        [
            f"for (int k = 0; k < {n}; k++) {{",
            f"    const {TYPES[out.dtype.name]} own = {'k' if by_place else fn._at(x, at('k'))};",
            "    int j = k;",
            f"    for (; j > 0 && ({later}); j--) {out.name}[{at('j')}] = {out.name}[{at('j - 1')}];",
            f"    {out.name}[{at('j')}] = own;",
            "}",
        ],
    )
