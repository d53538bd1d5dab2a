"""Policies that backpropagation cannot train: hidden units with hard thresholds, and a lookup behind an argmax.

Their hidden parts have no derivative, or one that is zero, so a gradient trains their last layer alone.

    esrl train gymnasium/phys2d/CartPole-v1 --agent eggroll_ac --sigma 0.5 \
        --network experiments/credit/policies.py:threshold
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from esrl.core.types import Array, PyTree
from esrl.policies.spaces import features
from esrl.policies.user_network import Bound, Network, linen

WIDTH, ROWS = 64, 32


class Threshold(nn.Module):
    """Two layers of units that are 0 or 1: 1 where their input is positive."""

    space: Any
    size: int

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        x = features(self.space, observation)
        for _ in range(2):
            x = (nn.Dense(WIDTH)(x) > 0).astype(jnp.float32)
        return nn.Dense(self.size, kernel_init=nn.initializers.normal(0.01))(x)


class Lookup(nn.Module):
    """A table of outputs, of which the largest of as many linear functions of the observation names the row."""

    space: Any
    size: int

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        row = jnp.argmax(nn.Dense(ROWS)(features(self.space, observation)))
        return nn.Embed(ROWS, self.size, embedding_init=nn.initializers.normal(0.01))(row)


def _network(module: Any) -> Network:
    def bind(observation: PyTree, size: int, *, observation_space: Any) -> Bound:
        return linen(module(observation_space, size), observation, ())

    return Network(bind, flat=True)


threshold, lookup = _network(Threshold), _network(Lookup)
