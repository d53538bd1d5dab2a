"""Digits of scikit-learn's packaged set, scored in three ways; each is what a user would write.

    esrl train experiments/objectives/digits.py:accuracy --hidden 32 --generations 500

`likelihood` has a gradient. `accuracy` has none: it counts. `order` has none either: it is a correlation of ranks, by
which one output is to sort the pictures by their digit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import esrl

ROWS = 128  # pictures of a minibatch


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures [N, 64] in 0 .. 1 and labels [N]: 1,437 to learn from, 360 held out, by one fixed shuffle."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pictures, labels = (found.data / 16).astype(np.float32)[order], found.target.astype(np.int32)[order]
    return pictures[:1437], labels[:1437], pictures[1437:], labels[1437:]


def minibatch(key: Any) -> tuple[Any, Any]:
    """Pictures [ROWS, 64] and their labels [ROWS]."""
    pictures, labels, _, _ = digits()
    rows = jax.random.randint(key, (ROWS,), 0, len(labels))
    return jnp.asarray(pictures)[rows], jnp.asarray(labels)[rows]


def right(apply: Any, pictures: Any, labels: Any) -> Any:
    """The share of pictures whose largest output is their digit."""
    return jnp.mean((jnp.argmax(apply(pictures), axis=-1) == labels).astype(jnp.float32))


def held_out(apply: Any, key: Any) -> Any:
    """Accuracy on all held-out pictures."""
    return right(apply, *map(jnp.asarray, digits()[2:]))


def log_likelihood(outputs: Any, labels: Any) -> Any:
    """Mean log probability of the labels, in nats."""
    return jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=-1))


@esrl.objective(inputs=64, outputs=10, evaluate=held_out)
def likelihood(apply: Any, key: Any) -> Any:
    """The log likelihood, which a gradient can follow."""
    pictures, labels = minibatch(key)
    return log_likelihood(apply(pictures), labels)


@esrl.objective(inputs=64, outputs=10, evaluate=held_out)
def accuracy(apply: Any, key: Any) -> Any:
    """What is meant: right or wrong."""
    return right(apply, *minibatch(key))


def ranks(values: Any) -> Any:
    """Places in ascending order, equal values by their mean place."""
    less = jnp.sum((values[None, :] < values[:, None]).astype(jnp.float32), axis=1)
    same = jnp.sum((values[None, :] == values[:, None]).astype(jnp.float32), axis=1)
    return less + (same - 1) / 2


def spearman(one: Any, other: Any) -> Any:
    """Spearman's correlation."""
    a, b = (x - jnp.mean(x) for x in (ranks(one), ranks(other)))
    return jnp.sum(a * b) / jnp.sqrt(jnp.maximum(jnp.sum(a**2) * jnp.sum(b**2), 1e-9))


def sorts(apply: Any, pictures: Any, labels: Any) -> Any:
    """How well one output sorts pictures by their digit."""
    return spearman(apply(pictures)[:, 0], labels.astype(jnp.float32))


@esrl.objective(inputs=64, outputs=1, evaluate=lambda apply, key: sorts(apply, *map(jnp.asarray, digits()[2:])))
def order(apply: Any, key: Any) -> Any:
    """A rank objective: its derivative is zero almost everywhere."""
    return sorts(apply, *minibatch(key))
