"""A language model over bytes, on pages of this documentation; and the model of order 2 that it has to beat.

esrl train experiments/objectives/language.py:bits --network gru --hidden 64 --generations 100
esrl train experiments/objectives/language.py:integer_bits --agent eggroll_int8 --population 1024 --generations 100
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import esrl

TEXT = Path(__file__).parent / "text"  # pages of this documentation as they were when it was measured
STREAMS, LENGTH = 8, 16  # of a minibatch: places in the text, and bytes that are told at each
HELD_STREAMS = 16  # the held-out text is read in so many pieces, side by side
BYTES = 256
# Outputs of the integer network are multiplied by it: a bias of int8 alone reaches 1 at 64 units, and bytes of the text
# have log probabilities from -2 to -10.
SHARPNESS = 4.0


@cache
def text() -> tuple[np.ndarray, np.ndarray]:
    """The bytes to learn from, and those held out: the last tenth of each page."""
    learn, hold = (np.frombuffer((TEXT / f"{name}.txt").read_bytes(), np.uint8) for name in ("learn", "held_out"))
    return learn.astype(np.int32), hold.astype(np.int32)


def told(apply: Any, seen: Any, sharpness: float = 1.0) -> Any:
    """Bits for each byte of texts [STREAMS, LENGTH + 1] after the first, from what came before."""

    def step(carry: Any, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        outputs, carry = apply(pair[0], carry)
        log = jax.nn.log_softmax(sharpness * outputs)
        return carry, jnp.mean(jnp.take_along_axis(log, pair[1][:, None], axis=-1))

    pairs = (seen[:, :-1].T, seen[:, 1:].T)
    return -jnp.mean(jax.lax.scan(step, apply.start(seen.shape[0]), pairs)[1]) / jnp.log(2.0)


def minibatch(key: Any, streams: int = STREAMS) -> Any:
    """Places in the text to learn from, [streams, LENGTH + 1]."""
    learn = jnp.asarray(text()[0])
    begin = jax.random.randint(key, (streams,), 0, learn.shape[0] - LENGTH - 1)
    return learn[begin[:, None] + jnp.arange(LENGTH + 1)[None, :]]


def held_out(apply: Any, key: Any, sharpness: float = 1.0) -> Any:
    """Minus the bits for each byte of the held-out text, read from end to end in HELD_STREAMS pieces."""
    hold = text()[1]
    pieces = len(hold) // HELD_STREAMS
    return -told(apply, jnp.asarray(hold[: HELD_STREAMS * pieces].reshape(HELD_STREAMS, pieces)), sharpness)


@esrl.objective(inputs=spaces.Discrete(BYTES), outputs=BYTES, evaluate=held_out)
def bits(apply: Any, key: Any) -> Any:
    """Minus the bits for each byte."""
    return -told(apply, minibatch(key))


# What a pair tells of the gradient is noise of its direction, far more than of its text: 50,000 weights, one number. So
# each pair reads a text of its own, and as little of it as there is, which leaves the more for other pairs.
@esrl.objective(
    network=esrl.gru(64, output_scale=0.0, dtype="int8"),
    inputs=spaces.Discrete(BYTES),
    outputs=BYTES,
    evaluate=lambda apply, key: held_out(apply, key, SHARPNESS),
    shared="pair",
)
def integer_bits(apply: Any, key: Any) -> Any:
    """Minus the bits for each byte of one place, by a network of integers."""
    return -told(apply, minibatch(key, 1), SHARPNESS)


def order_n(order: int) -> float:
    """Bits for each held-out byte by counts of the text to learn from, of bytes after `order` bytes.

    Witten and Bell's interpolation (IEEE Transactions on Information Theory 37, 1991): after a context that was
    followed c times, by t different bytes, `p(byte) = (count(byte) + t p_shorter(byte)) / (c + t)`, down to 1 / 256.
    """
    learn, hold = text()
    counts: dict[tuple[int, ...], dict[int, int]] = {}
    for length in range(order + 1):
        for place in range(length, len(learn)):
            after = counts.setdefault(tuple(learn[place - length : place]), {})
            after[int(learn[place])] = after.get(int(learn[place]), 0) + 1
    total = 0.0
    pieces = len(hold) // HELD_STREAMS  # the same bytes as `held_out`, each piece's first one left out
    for piece in hold[: HELD_STREAMS * pieces].reshape(HELD_STREAMS, pieces):
        for place in range(1, pieces):
            probability = 1 / BYTES
            for length in range(min(order, place) + 1):
                found = counts.get(tuple(piece[place - length : place]))
                if found is None:
                    break
                seen, kinds = sum(found.values()), len(found)
                probability = (found.get(int(piece[place]), 0) + kinds * probability) / (seen + kinds)
            total -= np.log2(probability)
    return total / (HELD_STREAMS * (pieces - 1))
