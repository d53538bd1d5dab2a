"""A critic without any gradient: ridge regression of value targets on fixed random features.

phi(s) = [1, s, relu(R s + c)]                      R, c random and fixed
S <- rho S + mean phi phi^T,  b <- rho b + mean phi y      over an iteration's steps, y the value targets
w  = (S + alpha I)^-1 b,  V(s) = w phi(s)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, PyTree
from esrl.policies.spaces import features
from esrl.policies.user_network import Bound, Network


class Sums(NamedTuple):
    """Running sums of the regression: `square` [F, F], of phi phi^T, and `product` [F], of phi y."""

    square: Array
    product: Array


class Ridge(NamedTuple):
    """The regression.

    Attributes:
      width: random features. decay: rho of an iteration. penalty: alpha, relative to the mean of S's diagonal.
      one_hot: whether categories are coded one-hot, as the policy's network does.
    """

    width: int = 256
    decay: float = 0.9
    penalty: float = 1e-4
    one_hot: bool = False

    def network(self) -> Network:
        """V as a network with the parameter `w`, which no gradient moves."""

        def bind(observation: PyTree, size: int, *, observation_space: spaces.Space) -> Bound:
            del size  # one value

            def apply(params: PyTree, seen: PyTree, carry: PyTree) -> tuple[Array, PyTree]:
                phi = self.phi(observation_space, seen)
                return jax.lax.stop_gradient(params["w"])[None] @ phi, carry

            number = jax.eval_shape(lambda x: self.phi(observation_space, x), observation).shape[0]
            return Bound(lambda key: {"w": jnp.zeros(number)}, apply)

        return Network(bind, None, flat=True, one_hot=self.one_hot)

    def phi(self, space: spaces.Space, observation: PyTree) -> Array:
        """The features of an observation, [1 + its numbers + width]."""
        seen = features(space, observation, self.one_hot)
        random = np.random.default_rng(0)  # the same in every run: they are part of what the critic is, as a width is
        spread = random.normal(size=(seen.shape[0], self.width)) / math.sqrt(max(seen.shape[0], 1))
        shift = random.normal(size=self.width)
        hidden = jax.nn.relu(seen @ jnp.asarray(spread, jnp.float32) + jnp.asarray(shift, jnp.float32))
        return jnp.concatenate([jnp.ones(1), seen, hidden])

    def zeros(self, params: PyTree) -> Sums:
        """Sums of no step."""
        number = params["w"].shape[0]
        return Sums(jnp.zeros((number, number)), jnp.zeros(number))

    def fit(self, space: spaces.Space, sums: Sums, observations: PyTree, targets: Array, sound: Array) -> Any:
        """`(params, sums)` with an iteration's steps [N] added; those that are not sound are left out."""
        phi = jax.vmap(lambda x: self.phi(space, x))(observations)
        phi = jnp.where(sound[:, None], phi, 0.0)
        number = jnp.maximum(jnp.sum(sound.astype(jnp.float32)), 1.0)
        sums = Sums(
            self.decay * sums.square + phi.T @ phi / number,
            self.decay * sums.product + phi.T @ jnp.where(sound, targets, 0.0) / number,
        )
        alpha = self.penalty * jnp.mean(jnp.diagonal(sums.square)) + 1e-8
        system = sums.square + alpha * jnp.eye(phi.shape[1])
        return {"w": jax.scipy.linalg.solve(system, sums.product, assume_a="pos")}, sums
