"""Networks of int8 weights and activations: a multi-layer perceptron, a convolutional one, and a minimal gated unit.

    sum = [x, 1] W                int8 times int8, summed in int32; the last row of W is the bias
    y   = clip(sum >> k, -127, 127)    k = bits(x) + 4 - bits(y) + log2(sqrt(inputs)), a shift in place of a division;
                                       the entries of a one-hot code count as one input

A convolution is such a sum over the window of each place, and its bias a parameter of its own. Saturation at 1 (7
fraction bits) is the nonlinearity, and there is no other: hard tanh. The recurrent cell is the minimal gated unit
(Zhou et al., arXiv 1603.09420) with a hard sigmoid, as in EGGROLL's integer language model (arXiv 2511.16652), with
shifts for its divisions:

    f  = clip(1/2 + [x, h, 1] W_f / 4, 0, 1)       256 is 1
    c  = clip([x, f h, 1] W_c, -1, 1)
    h' = h + f (c - h)                                  an int16, so that a small gate still moves it

What differs from the source: no layer normalization (observations are normalized before, sums by the shift above),
saturation at 1 rather than at 8, an int16 carry, outputs of 8 fraction bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.integers import (
    HIDDEN_BITS,
    MOST,
    OUTPUT_BITS,
    SEEN_BITS,
    WEIGHT_BITS,
    draw,
    log2_root,
    saturated,
    shifted,
)
from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.policies.spaces import MASK, categorical, one_hot_of, subspaces
from esrl.policies.user_network import Bound

ACTIVATIONS = ("saturate", "relu")
_CARRY_BITS = 15  # of the carry, an int16


def check_activation(activation: str | None) -> str:
    """The activation of an integer network; None is saturation alone.

    Raises:
      EsrlError: one that integers do not have.
    """
    if activation is None:
        return "saturate"
    if activation not in ACTIVATIONS:
        raise EsrlError(
            f'activation {activation!r} takes floating point, which dtype "int8" has none of; use'
            f" {' or '.join(map(repr, ACTIVATIONS))}"
        )
    return activation


def mlp(
    space: spaces.Space,
    observation: PyTree,
    size: int,
    hidden: tuple[int, ...],
    activation: str,
    output_scale: float,
    bias: bool,
    skip: bool,
    one_hot: bool,
) -> Bound:
    """A multi-layer perceptron as a pure function; arguments as those of `esrl.mlp`."""
    inputs, active = _inputs(space, observation, one_hot), active_inputs(space, one_hot)
    widths = (inputs, *hidden, size)

    def init(key: Key) -> PyTree:
        def layer(i: int, rows: int, columns: int, scale: float) -> dict[str, Array]:
            return {"kernel": _start(jax.random.fold_in(key, i), rows, columns, scale)}

        last = len(widths) - 2
        made = {
            f"Dense_{i}": layer(i, widths[i] + bias, widths[i + 1], output_scale if i == last else 1.0)
            for i in range(last + 1)
        }
        return made | ({"Skip": layer(last + 1, inputs, size, output_scale)} if skip else {})

    def apply(params: PyTree, observation: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
        seen = features(space, observation, one_hot)
        out = _layers(seen, params, (active, *hidden), activation, SEEN_BITS, bias)
        if skip:
            out = out + _dense(seen, params["Skip"]["kernel"], SEEN_BITS, OUTPUT_BITS, False, active)
        return saturated(out, "int16"), carry

    return Bound(init, apply)


def cnn(
    space: spaces.Space,
    observation: PyTree,
    size: int,
    channels: tuple[int, ...],
    hidden: tuple[int, ...],
    activation: str,
    output_scale: float,
) -> Bound:
    """Convolutions, then dense layers, as a pure function; arguments as those of `esrl.cnn`.

    What is no picture joins the dense layers as it is, so that one standard deviation counts a quarter there.
    """

    def parts(observation: PyTree) -> tuple[list[tuple[Array, int]], Array]:
        pictures, rest = _pictures_and_rest(space, observation)
        return pictures, jnp.concatenate(rest or [jnp.zeros(0, jnp.int8)])

    pictures, rest = jax.eval_shape(lambda x: ([picture for picture, _ in parts(x)[0]], parts(x)[1]), observation)
    shapes: dict[str, tuple[int, ...]] = {}
    seen_by_dense = rest.size
    for picture in pictures:
        high, wide, depth = picture.shape
        for width in channels:
            shapes[f"Conv_{len(shapes)}"] = (3, 3, depth, width)
            stride = _stride(high, wide)
            high, wide, depth = -(-high // stride), -(-wide // stride), width
        seen_by_dense += high * wide * depth
    widths = [seen_by_dense, *hidden, size]
    convolutions = len(shapes)
    shapes |= {f"Dense_{i}": (widths[i] + 1, widths[i + 1]) for i in range(len(widths) - 1)}

    def init(key: Key) -> PyTree:
        made = {}
        for i, (name, shape) in enumerate(shapes.items()):
            scale = output_scale if i == len(shapes) - 1 else 1.0
            kernel = _start(jax.random.fold_in(key, i), math.prod(shape[:-1]), shape[-1], scale).reshape(shape)
            made[name] = {"kernel": kernel, **({"bias": jnp.zeros(shape[-1], jnp.int8)} if i < convolutions else {})}
        return made

    def apply(params: PyTree, observation: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
        pictures, rest = parts(observation)
        number, seen = 0, []
        for x, bits in pictures:
            for _ in channels:
                x = _activated(_convolution(x, params[f"Conv_{number}"], bits), activation)
                number, bits = number + 1, HIDDEN_BITS
            seen.append(x.ravel())
        out = _layers(jnp.concatenate([*seen, rest]), params, widths[:-1], activation, HIDDEN_BITS, True)
        return saturated(out, "int16"), carry

    return Bound(init, apply)


def gru(
    space: spaces.Space,
    observation: PyTree,
    size: int,
    hidden: int,
    activation: str,
    output_scale: float,
    one_hot: bool,
) -> Bound:
    """A layer, a minimal gated unit, an output, as a pure function; arguments as those of `esrl.gru`."""
    inputs, active = _inputs(space, observation, one_hot), active_inputs(space, one_hot)
    shapes = {
        "Dense_0": (inputs + 1, hidden, 1.0),
        "Forget": (2 * hidden + 1, hidden, 1.0),
        "Candidate": (2 * hidden + 1, hidden, 1.0),
        "Dense_1": (hidden + 1, size, output_scale),
    }

    def init(key: Key) -> PyTree:
        return {
            name: {"kernel": _start(jax.random.fold_in(key, i), *shape)}
            for i, (name, shape) in enumerate(shapes.items())
        }

    def apply(params: PyTree, observation: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
        kernel = lambda name: params[name]["kernel"]  # noqa: E731
        x = _dense(features(space, observation, one_hot), kernel("Dense_0"), SEEN_BITS, HIDDEN_BITS, True, active)
        wide, more = carry.astype(jnp.int32), _CARRY_BITS - HIDDEN_BITS
        x, h = _activated(x, activation), saturated(shifted(wide, more))
        open_ = _dense(jnp.concatenate([x, h]), kernel("Forget"), HIDDEN_BITS, HIDDEN_BITS, True, 2 * hidden)
        f = jnp.clip(128 + shifted(open_, 1), 0, 256)
        kept = saturated(shifted(f * h.astype(jnp.int32), 8))
        seen = jnp.concatenate([x, kept])
        c = saturated(_dense(seen, kernel("Candidate"), HIDDEN_BITS, HIDDEN_BITS, True, 2 * hidden))
        far = (c.astype(jnp.int32) << more) - wide  # below 2^16, so f far is below 2^24
        wide = wide + shifted(f * far, 8)
        h = saturated(shifted(wide, more))
        out = _dense(h, kernel("Dense_1"), HIDDEN_BITS, OUTPUT_BITS, True, hidden)
        return saturated(out, "int16"), saturated(wide, "int16")

    return Bound(init, apply, jnp.zeros(hidden, jnp.int16))


def features(space: spaces.Space, observation: PyTree, one_hot: bool = False) -> Array:
    """A quantized observation (`integer_statistics.quantized`) as an int8 vector in SEEN_BITS, as `spaces.features`."""
    return jnp.concatenate(_features(space, observation, one_hot, False) or [jnp.zeros(0, jnp.int8)])


def _features(space: spaces.Space, observation: PyTree, one_hot: bool, mask: bool) -> list[Array]:
    if isinstance(space, spaces.Dict):
        named = space.spaces.items()
        return [x for name, sub in named for x in _features(sub, observation[name], one_hot, mask or name == MASK)]
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observation, strict=True)
        return [x for sub, part in parts for x in _features(sub, part, one_hot, mask)]
    if _coded(space, one_hot and not mask):
        return [one_hot_of(space, observation).astype(jnp.int8) << SEEN_BITS]
    x = jnp.ravel(observation)
    if isinstance(space, spaces.Box) and (not mask or jnp.issubdtype(space.dtype, jnp.floating)):
        return [x]  # was quantized
    return [saturated(x.astype(jnp.int32) << SEEN_BITS)]  # bits, and masks of whole numbers: 0 or 1


def active_inputs(space: spaces.Space, one_hot: bool = False) -> int:
    """How many of the `features` of a space are not 0 at once, where one-hot ones count as one; at least 1.

    A layer's sum is over the root of this number, and not over that of its inputs: a byte is one input of 256.

    Example:
      >>> active_inputs(spaces.Discrete(256)), active_inputs(spaces.Box(-1.0, 1.0, (3, 2)))
      (1, 6)
    """
    return max(_active(space, one_hot, False), 1)


def _active(space: spaces.Space, one_hot: bool, mask: bool) -> int:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(_active(sub, one_hot, mask or name == MASK) for name, sub in subspaces(space).items())
    if _coded(space, one_hot and not mask):
        return space.nvec.size if isinstance(space, spaces.MultiDiscrete) else math.prod(space.shape or ())
    return math.prod(space.shape or ())


def _coded(space: spaces.Space, one_hot: bool) -> bool:
    """Whether a part of an observation becomes one-hot."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return True
    return one_hot and isinstance(space, spaces.Box) and categorical(space)


def _inputs(space: spaces.Space, observation: PyTree, one_hot: bool) -> int:
    return int(jax.eval_shape(lambda x: features(space, x, one_hot), observation).shape[0])


def _pictures_and_rest(space: spaces.Space, observation: PyTree) -> tuple[list[tuple[Array, int]], list[Array]]:
    """The pictures of an observation, int8 [H, W, C] with their fraction bits, and the rest as int8 vectors.

    A picture of bytes has 7 fraction bits, one of other numbers 5. As `spaces.pictures_and_rest`.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        found = [_pictures_and_rest(sub, observation[key]) for key, sub in subspaces(space).items()]
        return [p for pictures, _ in found for p in pictures], [x for _, rest in found for x in rest]
    if not isinstance(space, spaces.Box):
        return [], _features(space, observation, False, False)
    if np.issubdtype(space.dtype, np.floating):
        x, bits = observation, SEEN_BITS  # was quantized
    elif space.dtype == np.uint8 and len(space.shape) == 3:
        x, bits = (observation.astype(jnp.int32) >> 1).astype(jnp.int8), HIDDEN_BITS  # 255 is almost 1
    else:
        near = jnp.maximum(jnp.minimum(observation, 4).astype(jnp.int32), -4)  # unsigned ones have no -4
        x, bits = saturated(near << SEEN_BITS), SEEN_BITS
    if len(space.shape) != 3:
        return [], [jnp.ravel(x)]
    channels_first = space.shape[0] < min(space.shape[1:])
    return [(jnp.moveaxis(x, 0, -1) if channels_first else x, bits)], []


def _stride(high: int, wide: int) -> int:
    """Of a convolution: sides above 16 pixels are halved, as in `esrl.cnn` on floats."""
    return 2 if max(high, wide) > 16 else 1


def _convolution(x: Array, layer: dict[str, Array], bits: int) -> Array:
    """A 3x3 convolution of int8 [H, W, C] of `bits` fraction bits, int32 of HIDDEN_BITS."""
    stride = _stride(*x.shape[:2])
    total = jax.lax.conv_general_dilated(
        x[None],
        layer["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.int32,
    )[0]
    total = total + layer["bias"].astype(jnp.int32)[None, None] * min(1 << bits, MOST)
    return shifted(total, bits + WEIGHT_BITS - HIDDEN_BITS + log2_root(9 * x.shape[2]))


def _start(key: Key, rows: int, columns: int, scale: float) -> Array:
    """Weights at the start: nearly normal, of standard deviation 1 (16) times `scale`."""
    factor = int(np.clip(round(scale * 256), 0, 2**15))
    numbers = draw(key, rows * columns).reshape(rows, columns).astype(jnp.int32)
    return saturated(shifted(numbers * factor, 8))


def _layers(x: Array, params: PyTree, among: Sequence[int], activation: str, bits: int, bias: bool) -> Array:
    """The layers Dense_0, Dense_1, ..., all but the last one activated; `among` are the inputs that each counts."""
    for i, number in enumerate(among[:-1]):
        x = _activated(_dense(x, params[f"Dense_{i}"]["kernel"], bits, HIDDEN_BITS, bias, number), activation)
        bits = HIDDEN_BITS
    return _dense(x, params[f"Dense_{len(among) - 1}"]["kernel"], bits, OUTPUT_BITS, bias, among[-1])


def _dense(x: Array, kernel: Array, bits: int, out_bits: int, bias: bool, active: int) -> Array:
    """`[x, 1] W / sqrt(active)` of an int8 vector of `bits` fraction bits, an int32 one of `out_bits`."""
    if bias:
        x = jnp.concatenate([x, jnp.full(1, min(1 << bits, MOST), jnp.int8)])
    total = jax.lax.dot_general(x, kernel, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return shifted(total, bits + WEIGHT_BITS - out_bits + log2_root(active))


def _activated(x: Array, activation: str) -> Array:
    return saturated(jnp.maximum(x, 0) if activation == "relu" else x)
