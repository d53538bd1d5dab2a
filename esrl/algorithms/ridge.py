"""A critic without any gradient: ridge regression of value targets on features that it does not train.

S <- rho S + mean phi phi^T,  b <- rho b + mean phi y      over an iteration's steps, y the value targets
w  = (S + alpha I)^-1 b,  V(s) = w phi(s)

Features are random and fixed, phi(s) = [1, s, relu(R s + c)], or the policy's own, phi(s) = [1, s, h], with h what its
output layer sees. Those move with the policy: the sums then hold older features of the same units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.types import Array, Key, PyTree
from esrl.perturbation.aligned import Reading
from esrl.policies.actor_critic import ActorCritic, Output
from esrl.policies.policy import Policy
from esrl.policies.spaces import features


class Sums(NamedTuple):
    """Running sums of the regression: `square` [F, F], of phi phi^T, and `product` [F], of phi y."""

    square: Array
    product: Array


class Ridge(NamedTuple):
    """The regression.

    Attributes:
      phi: `phi(params, observation) -> [F]`, the features; params are the actor's and the critic's.
      decay: rho of an iteration. penalty: alpha, relative to the mean of S's diagonal.
    """

    phi: Callable[[PyTree, PyTree], Array]
    decay: float = 0.9
    penalty: float = 1e-4

    def critic_of(self, policy: Policy) -> ActorCritic:
        """A policy with V as its critic, whose parameter `w` no gradient moves."""

        def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Output, PyTree]:
            (out, log_std), actor = policy.apply(params["actor"], obs, carry[0])
            value = params["critic"]["w"] @ self.phi(params, obs)
            return Output(out, log_std, jax.lax.stop_gradient(value)), (actor, ())

        def init(key: Key) -> PyTree:
            actor = policy.init(jax.random.split(key)[0])
            number = jax.eval_shape(self.phi, {"actor": actor}, policy.observation).shape[0]
            return {"actor": actor, "critic": {"w": jnp.zeros(number)}}

        return ActorCritic(policy, init, apply, (policy.carry, ()), bool(jax.tree.leaves(policy.carry)))

    def zeros(self, params: PyTree) -> Sums:
        """Sums of no step."""
        number = params["critic"]["w"].shape[0]
        return Sums(jnp.zeros((number, number)), jnp.zeros(number))

    def fit(self, params: PyTree, sums: Sums, observations: PyTree, targets: Array, sound: Array) -> Any:
        """`(the critic's parameters, sums)` with an iteration's steps [N] added; those not sound are left out."""
        phi = jax.vmap(lambda x: self.phi(params, x))(observations)
        phi = jnp.where(sound[:, None], phi, 0.0)
        number = jnp.maximum(jnp.sum(sound.astype(jnp.float32)), 1.0)
        sums = Sums(
            self.decay * sums.square + phi.T @ phi / number,
            self.decay * sums.product + phi.T @ jnp.where(sound, targets, 0.0) / number,
        )
        alpha = self.penalty * jnp.mean(jnp.diagonal(sums.square)) + 1e-8
        system = sums.square + alpha * jnp.eye(phi.shape[1])
        w = jax.scipy.linalg.solve(system, sums.product, assume_a="pos")
        # Rounding may leave a system of nearly equal features without a solution: then the critic stays as it was.
        return {"w": jnp.where(jnp.all(jnp.isfinite(w)), w, params["critic"]["w"])}, sums


def random_features(space: spaces.Space, one_hot: bool, width: int = 256) -> Callable[[PyTree, PyTree], Array]:
    """[1, s, relu(R s + c)] with `width` random units; `one_hot` says how the policy's network codes categories."""

    def phi(_: PyTree, observation: PyTree) -> Array:
        seen = features(space, observation, one_hot)
        random = np.random.default_rng(0)  # the same in every run: they are part of what the critic is, as a width is
        spread = random.normal(size=(seen.shape[0], width)) / math.sqrt(max(seen.shape[0], 1))
        shift = random.normal(size=width)
        hidden = jax.nn.relu(seen @ jnp.asarray(spread, jnp.float32) + jnp.asarray(shift, jnp.float32))
        return jnp.concatenate([jnp.ones(1), seen, hidden])

    return phi


def policy_features(
    space: spaces.Space, one_hot: bool, reading: Reading, carry: PyTree
) -> Callable[[PyTree, PyTree], Array]:
    """[1, s, h], with h whatever the policy's network multiplies by the parameters of its output."""
    last = [i for i, use in enumerate(reading.uses) if reading.points[use.point].output and not reading.added(use)]

    def phi(params: PyTree, observation: PyTree) -> Array:
        _, seen = reading.forward(jax.tree.leaves(params["actor"]["network"]), {}, observation, carry)
        own = [features(space, observation, one_hot), *(seen[i].ravel() for i in last)]
        return jnp.concatenate([jnp.ones(1), *own])

    return phi
