"""A trained policy that needs NumPy alone: this file, and the arrays in policy.npz beside it.

    from policy import Policy

    policy = Policy()
    policy.reset()  # when an episode begins
    action = policy.predict(observation)  # for one observation, or for a batch of them

It needs Python 3.10 or later, and acts by the most likely action. `policy.decide(observation)` gives the network's
output beside it, from which actions can be drawn; `policy.about` says how, and which spaces the policy has.
`python policy.py` repeats the actions that were taken when the policy was exported, and prints "ok".
"""

import json
import math
import pathlib
from typing import Any

import numpy as np


class Policy:
    """A policy as a list of operations on arrays.

    Args:
      path: of the arrays; policy.npz beside this file unless given.
    """

    def __init__(self, path: Any = None) -> None:
        path = pathlib.Path(__file__).with_name("policy.npz") if path is None else path
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self.about = json.loads(str(arrays.pop("about")))
        self.arrays = arrays
        self._nodes = [(OPERATIONS[op], given, out, kwargs) for op, given, out, kwargs in self.about["nodes"]]
        self._start = [arrays[name] for name in self.about["carry"]]
        self._carry: Any = None

    def reset(self, mask: Any = None) -> None:
        """Forgets what is remembered of past steps, in all lanes or in those of `mask` [L] bool."""
        if mask is None or self._carry is None:
            self._carry = None
            return
        for held, start in zip(self._carry, self._start, strict=True):
            held[np.asarray(mask, bool)] = start

    def predict(self, observation: Any) -> Any:
        """The most likely action for one observation, or actions [L, ...] for a batch of them."""
        return self.decide(observation)[0]

    def decide(self, observation: Any) -> Any:
        """The action, and the network's output: logits, and the means of what a Box takes before it is bounded."""
        values = dict(self.arrays)
        alone, lanes = self._read(values, observation)
        if self._carry is None:
            self._carry = [np.repeat(start[None], lanes, axis=0) for start in self._start]
        if any(len(held) != lanes for held in self._carry):
            raise ValueError(
                f"{lanes} observations were given, but {len(self._carry[0])} lanes are remembered; reset()"
            )
        values.update(zip(self.about["carry"], self._carry, strict=True))
        with np.errstate(all="ignore"):
            for operation, given, out, kwargs in self._nodes:
                values[out] = operation(*[values[name] for name in given], **kwargs)
        self._carry = [np.array(values[name]) for name in self.about["next_carry"]]

        def taken(leaf: Any) -> Any:
            action = values[self.about["values"][leaf["name"]]].astype(leaf["dtype"])
            if not alone:
                return action
            return action[0] if leaf["kind"] == "Discrete" else action[0, ...]

        actions = _nested(self.about["action"], taken)
        output = values[self.about["output"]]
        return actions, output[0] if alone else output

    def _read(self, values: Any, observation: Any) -> Any:
        """Puts an observation's arrays among the values; says whether it is alone, and how many there are."""
        given = list(_leaves(self.about["observation"], observation))
        extra = set()
        for leaf, x in given:
            beyond, shape = x.ndim - len(leaf["shape"]), tuple(leaf["shape"])
            if beyond not in (0, 1) or x.shape[beyond:] != shape:
                raise ValueError(f"{leaf['name']} has shape {x.shape}, but {shape} is needed, or a batch of it")
            extra.add(beyond)
            dtype = np.dtype(leaf["device"])
            if x.dtype == np.float64 and dtype == np.float32:  # finite numbers stay finite
                x = np.where(np.isfinite(x), np.clip(x, -_MOST, _MOST), x)
            x = x.astype(dtype)
            values[leaf["name"]] = (x if beyond else x[None]).astype(_held(dtype))
        if len(extra) != 1:
            raise ValueError("some entries of the observation have a batch axis, and some do not")
        return extra == {0}, len(values[given[0][0]["name"]])


_MOST = np.finfo(np.float32).max


def _held(dtype: Any) -> Any:
    """The type in which numbers of a type are held while the operations are done."""
    if dtype.kind in "bf":
        return dtype if dtype.itemsize != 2 else np.dtype(np.float32)
    return np.dtype(np.int64 if dtype.itemsize == 8 or dtype == np.uint32 else np.int32)


def _leaves(about: Any, observation: Any) -> Any:
    """The parts of an observation with what is known of each."""
    if "dict" in about:
        for name, part in about["dict"]:
            yield from _leaves(part, observation[name])
    elif "tuple" in about:
        for i, part in enumerate(about["tuple"]):
            yield from _leaves(part, observation[i])
    else:
        yield about, np.asarray(observation)


def _nested(about: Any, fn: Any) -> Any:
    """`fn` of each leaf, in dicts and tuples."""
    if "dict" in about:
        return {name: _nested(part, fn) for name, part in about["dict"]}
    if "tuple" in about:
        return tuple(_nested(part, fn) for part in about["tuple"])
    return fn(about)


# ---- operations: those of ONNX, by its names; the first axis of what depends on the observation is the batch ---------


def _cast(x: Any, to: Any) -> Any:
    if to != "bfloat16":
        return x.astype(to)
    bits = x.astype(np.float32).view(np.uint32)  # the upper half of float32's bits, rounded to even
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def _windows(x: Any, size: Any, strides: Any, pads: Any, dilations: Any, filling: Any) -> Any:
    """The windows of an array [B, C, ...] as [B, C, places..., size...]."""
    n = len(size)
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[n + i]) for i in range(n))], constant_values=filling)
    wide = [dilations[i] * (size[i] - 1) + 1 for i in range(n)]
    found = np.lib.stride_tricks.sliding_window_view(x, wide, axis=tuple(range(2, 2 + n)))
    every: Any = (..., *(slice(None, None, step) for step in (*strides, *dilations)))
    return found[every]


def _conv(x: Any, kernel: Any, strides: Any, pads: Any, dilations: Any, group: Any) -> Any:
    n, out = x.ndim - 2, kernel.shape[0] // group
    found = _windows(x, kernel.shape[2:], strides, pads, dilations, 0)
    places, inside = found.shape[2 : 2 + n], kernel.shape[1]
    parts = []
    for g in range(group):
        taken = np.moveaxis(found[:, g * inside : (g + 1) * inside], 1, 1 + n)  # [B, places..., C, size...]
        rows = taken.reshape(len(x), math.prod(places), -1)
        parts.append(rows @ kernel[g * out : (g + 1) * out].reshape(out, -1).T)
    made = parts[0] if group == 1 else np.concatenate(parts, axis=-1)
    return np.swapaxes(made, 1, 2).reshape(len(x), kernel.shape[0], *places)


def _max_pool(x: Any, kernel_shape: Any, strides: Any, pads: Any) -> Any:
    found = _windows(x, kernel_shape, strides, pads, [1] * len(strides), -np.inf)
    return found.max(axis=tuple(range(-len(strides), 0)))


def _average_pool(x: Any, kernel_shape: Any, strides: Any, pads: Any, count_include_pad: Any) -> Any:
    found = _windows(x, kernel_shape, strides, pads, [1] * len(strides), 0)
    return found.mean(axis=tuple(range(-len(strides), 0)), dtype=x.dtype)


def _slice(x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _pad(x: Any, filling: Any, pads: Any) -> Any:
    n = x.ndim
    return np.pad(x, [(pads[i], pads[n + i]) for i in range(n)], constant_values=filling)


def _sum_up(x: Any, axis: Any, reverse: Any) -> Any:
    x = np.flip(x, axis) if reverse else x
    found = np.cumsum(x, axis, dtype=x.dtype)
    return np.flip(found, axis) if reverse else found


def _reduced(fn: Any) -> Any:
    return lambda x, axes, keepdims: fn(x, axis=tuple(axes)).astype(x.dtype)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


OPERATIONS = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Add": np.add,
    "And": np.logical_and,
    "ArgMax": lambda x, axis, keepdims: np.argmax(x, axis),
    "ArgMin": lambda x, axis, keepdims: np.argmin(x, axis),
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Ceil": np.ceil,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Conv": _conv,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "CumSum": _sum_up,
    "Div": np.divide,
    "Equal": np.equal,
    "Erf": _erf,
    "Exp": np.exp,
    "Expand": lambda x, shape: np.broadcast_to(x, (len(x), *shape[1:])),
    "Floor": np.floor,
    "Gather": lambda x, places, axis: np.take(x, places, axis),
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "MatMul": np.matmul,
    "Max": np.maximum,
    "MaxPool": _max_pool,
    "Min": np.minimum,
    "Mod": lambda x, y, fmod: np.fmod(x, y),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pad": _pad,
    "Pow": np.power,
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Repeat": lambda x, like, shape: np.broadcast_to(x, (len(like), *x.shape)),
    "Reshape": lambda x, shape: x.reshape(shape),
    "Round": np.rint,
    "ShiftRight": lambda x, by: np.right_shift(x, by),
    "Sigmoid": _sigmoid,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Slice": _slice,
    "Sorted": lambda x, axis, k: np.sort(x, axis, kind="stable"),
    "SortedPlaces": lambda x, axis, k: np.argsort(x, axis, kind="stable"),
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Tan": np.tan,
    "Tanh": np.tanh,
    "Transpose": lambda x, perm: np.transpose(x, perm),
    "Where": np.where,
    "Xor": np.logical_xor,
}


def self_test(policy: Policy) -> float:
    """Compares outputs and actions with those of the export. Returns the largest difference.

    Choices may differ where the outputs of two of them are equal but for rounding.
    """
    stored = {name.partition("/")[2]: array for name, array in policy.arrays.items() if name.startswith("self_test/")}
    worst, different, total = 0.0, 0, 0
    policy.reset()
    for step, fresh in enumerate(stored["reset"]):
        policy.reset(fresh)
        observation = _nested(policy.about["observation"], lambda leaf, step=step: stored[leaf["name"]][step])
        action, output = policy.decide(observation)
        worst = max(worst, _difference(output, stored["output"][step]))
        for leaf, taken in _leaves(policy.about["action"], action):
            wanted = stored[leaf["name"]][step]
            if leaf["kind"] == "Box" and wanted.dtype.kind == "f":
                worst = max(worst, _difference(taken, wanted))
            else:
                different, total = different + int(np.sum(taken != wanted)), total + taken.size
    policy.reset()
    if not worst < policy.about["self_test"]["limit"] or different > max(1, total // 50):
        raise AssertionError(f"outputs differ by {worst:.2g}, and {different} of {total} choices differ")
    return worst


def _difference(x: Any, y: Any) -> float:
    """The largest difference, relative where numbers are above 1."""
    x, y = np.float64(x), np.float64(y)
    return float(np.max(np.abs(x - y) / np.maximum(1, np.abs(y)), initial=0))


if __name__ == "__main__":
    print(f"ok: outputs and actions are those of the export (largest difference {self_test(Policy()):.1e})")
