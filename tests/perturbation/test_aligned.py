"""Aligned noise: which products and sums of a network it finds, and what its weighted sums are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl.core.types import seed_key
from esrl.perturbation.aligned import read
from esrl.policies.policy import bind

LANES = 5


class Scaled(nn.Module):
    """LayerNorm with parameters, which no product uses, and a tied matrix."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4)
        x = dense(nn.LayerNorm()(dense(x)))
        return nn.Dense(3)(jnp.sort(x))


NETWORKS = {
    "skip": (esrl.mlp((7, 11), skip=True), (4,)),
    "tanh": (esrl.mlp((7, 11), "tanh"), (4,)),
    "without biases": (esrl.mlp((6,), bias=False), (4,)),
    "linear": (esrl.mlp(()), (4,)),
    "gru": (esrl.gru(5), (4,)),
    "cnn": (esrl.cnn((3,), (5,)), (6, 6, 2)),
    "tied, sorted": (Scaled(), (4,)),
    "nnx": (lambda rngs: esrl_nnx(rngs), (4,)),
}


def esrl_nnx(rngs):
    from flax import nnx

    return nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), jax.nn.relu, nnx.Linear(6, 3, rngs=rngs))


@pytest.fixture(params=NETWORKS)
def case(request):
    """A network's reading, its parameters, inputs of some lanes, and the function for one."""
    network, shape = NETWORKS[request.param]
    policy = bind(network, spaces.Box(-1.0, 1.0, shape), spaces.Discrete(3), False)
    params = policy.init(seed_key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(seed_key(x.size), x.shape), params)
    reading = read(policy.network, params, policy.observation, policy.carry)
    seen = jax.random.normal(seed_key(1), (LANES, *shape))
    carry = jax.tree.map(lambda c: jnp.broadcast_to(c, (LANES, *c.shape)), policy.carry)
    return reading, params, (seen, carry), policy.network


def forward(reading, leaves, noise, inputs):
    return jax.vmap(lambda noise, seen, carry: reading.forward(leaves, noise, seen, carry))(noise, *inputs)


def test_without_noise_it_is_the_network(case):
    reading, params, inputs, network = case
    (out, _), _ = forward(reading, jax.tree.leaves(params), {}, inputs)
    expected = jax.vmap(lambda *x: network(params, *x)[0])(*inputs)
    np.testing.assert_array_equal(out, expected)
    assert sum(point.output for point in reading.points) == 1


def test_weighted_sums_with_exact_signals_are_the_gradient(case):
    """The contraction sum h d^T, with d the derivative by the points' values (the oracle may backpropagate)."""
    reading, params, inputs, network = case
    leaves, weights = jax.tree.leaves(params), jax.random.normal(seed_key(2), (LANES, 3))
    noise = {i: jnp.zeros((LANES, *point.shape)) for i, point in enumerate(reading.points)}
    _, seen = forward(reading, leaves, noise, inputs)
    signals = jax.grad(lambda noise: jnp.sum(forward(reading, leaves, noise, inputs)[0][0] * weights))(noise)
    found = reading.contract(leaves, seen, signals)
    loss = lambda params: jnp.sum(jax.vmap(lambda *x: network(params, *x)[0])(*inputs) * weights)  # noqa: E731
    expected = jax.tree.leaves(jax.grad(loss)(params))
    for i, (own, other) in enumerate(zip(found, expected, strict=True)):
        if i in reading.rest:
            assert not own.any()
        else:
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_what_is_found():
    def reading(name):
        network, shape = NETWORKS[name]
        policy = bind(network, spaces.Box(-1.0, 1.0, shape), spaces.Discrete(3), False)
        return read(policy.network, policy.init(seed_key(0)), policy.observation, policy.carry)

    skip = reading("skip")
    assert [(p.shape, p.output) for p in skip.points] == [((7,), False), ((11,), False), ((3,), True)]
    assert not skip.rest and len(skip.uses) == 7  # the skip and the last layer end in one sum
    assert [skip.paths[skip.uses[p.activation].leaf] for p in skip.points[:2]] == [
        "network/Dense_1/kernel",
        "network/Dense_2/kernel",
    ]
    assert [p.output for p in reading("linear").points] == [True]
    scaled = reading("tied, sorted")  # a LayerNorm's scale is a factor, its bias is added where a product follows
    assert [scaled.paths[i] for i in scaled.rest] == ["network/LayerNorm_0/scale"]


def test_noise_at_a_point_is_a_rank_1_perturbation_of_its_layer():
    """E = xi h^T: (W + sigma h xi^T / |h|^2) gives at h what adding sigma xi to its product gives."""
    policy = bind(esrl.mlp((7,), "tanh", bias=False), spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(3), False)
    params, seen = policy.init(seed_key(0)), jnp.array([0.3, -0.2, 0.9, 0.1])
    reading = read(policy.network, params, policy.observation, policy.carry)
    (hidden,), xi, sigma = reading.hidden, jax.random.rademacher(seed_key(1), (7,), jnp.float32), 0.3
    (noisy, _), _ = reading.forward(jax.tree.leaves(params), {hidden: sigma * xi}, seen, policy.carry)
    kernel = params["network"]["Dense_0"]["kernel"] + sigma * jnp.outer(seen, xi) / (seen @ seen)
    moved = {"network": {**params["network"], "Dense_0": {"kernel": kernel}}}
    np.testing.assert_allclose(noisy, policy.network(moved, seen, policy.carry)[0], rtol=1e-5)
