"""Parameters that training leaves alone, chosen by patterns of their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from esrl.core.types import EsrlError, PyTree


def frozen_places(paths: Sequence[str], patterns: Sequence[str] | None) -> frozenset[int]:
    """The places of the parameters, in `jax.tree.leaves` order, whose names match a pattern.

    Args:
      paths: their names, as `esrl.describe` shows them: "network/Dense_0/kernel".
      patterns: with * and ?, of a whole name or of its end behind a "/": "Dense_0/*" is all of a layer.

    Raises:
      EsrlError: a pattern that matches nothing, or patterns that leave nothing to train.

    Example:
      >>> sorted(frozen_places(["network/Dense_0/bias", "network/Dense_0/kernel", "network/Out/kernel"], ["Dense_0/*"]))
      [0, 1]
    """
    found: set[int] = set()
    for pattern in patterns or ():
        matches = {
            place
            for place, path in enumerate(paths)
            if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")
        }
        if not matches:
            raise EsrlError(f"frozen names {pattern!r}, but the parameters are {', '.join(paths)}")
        found |= matches
    if paths and len(found) == len(paths):
        raise EsrlError(f"frozen leaves nothing to train: it names all of {', '.join(paths)}")
    return frozenset(found)


def split(params: PyTree, places: frozenset[int]) -> tuple[PyTree, PyTree]:
    """`(trained, frozen)`: trees like the parameters, with None where the other has a leaf; () where none is frozen."""
    if not places:
        return params, ()
    leaves, tree = jax.tree.flatten(params)
    trained = tree.unflatten([None if place in places else leaf for place, leaf in enumerate(leaves)])
    return trained, tree.unflatten([leaf if place in places else None for place, leaf in enumerate(leaves)])


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """The parameters of which `split` made two."""
    if isinstance(frozen, tuple) and not frozen:
        return trained
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


def leaving(optimizer: optax.GradientTransformation, places: frozenset[int]) -> optax.GradientTransformation:
    """The optimizer for the other parameters alone: it sees nothing of the frozen ones, and does not move them."""
    if not places:
        return optimizer

    def init(params: PyTree) -> PyTree:
        return optimizer.init(split(params, places)[0])

    def update(gradient: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        trained, frozen = split(gradient, places)
        moved, state = optimizer.update(trained, state, None if params is None else split(params, places)[0])
        return join(moved, jax.tree.map(jnp.zeros_like, frozen)), state

    return optax.GradientTransformation(init, update)
