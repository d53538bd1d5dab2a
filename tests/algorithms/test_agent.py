"""An agent is a pair of pure functions: any key starts it, and every transformation of JAX sees through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ActionMatters, Walk

import esrl
from esrl import EsrlError, noise
from esrl.core.types import seed_key

TINY = esrl.mlp((8,), "tanh")
AGENTS = {
    "eggroll": lambda env: esrl.eggroll(env, TINY, population=16, chunk_pairs=2),
    "ppo": lambda env: esrl.ppo(env, TINY, num_envs=8, num_steps=8, num_minibatches=2),
    "random": lambda env: esrl.random(env, population=8),
}


def assert_close(a, b):
    if hasattr(a, "signal"):  # sums of products of differences of nearly equal fitness, which cancel
        for x, y in zip(jax.tree.leaves(a.signal), jax.tree.leaves(b.signal), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4)
        a, b = a._replace(signal=None), b._replace(signal=None)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", AGENTS)
def test_step_under_jit_and_vmap_is_step(name):
    agent = AGENTS[name](Walk())
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(agent.init)(keys)
    after, metrics = jax.vmap(agent.step)(states)
    assert metrics["return_mean"].shape == (3,)
    step = jax.jit(agent.step)
    for i in range(3):
        state = agent.init(keys[i])
        alone, said = agent.step(state)
        assert_close(alone, jax.tree.map(lambda x, i=i: x[i], after))
        assert_close(step(state), (alone, said))


def test_step_scans():
    agent = AGENTS["eggroll"](Walk())
    state = agent.init(jax.random.key(0))
    scanned, metrics = jax.lax.scan(lambda s, _: agent.step(s), state, length=3)
    for _ in range(3):
        state, _ = agent.step(state)
    assert_close(scanned, state)
    assert metrics["fitness_mean"].shape == (3,)


@pytest.mark.parametrize("name", AGENTS)
def test_any_jax_key_starts_an_agent(name):
    agent = AGENTS[name](Walk())
    same = [jax.random.key(3, impl="threefry2x32"), jax.random.PRNGKey(3), seed_key(3)]
    states = [agent.init(key) for key in same]
    for state in states[1:]:
        assert_close(states[0], state)
    other = agent.init(jax.random.key(3, impl="rbg"))
    for state in (*states, other):
        assert str(jax.random.key_impl(state.key)) == "threefry2x32"
        agent.step(state)


@pytest.mark.parametrize("key", [3, np.zeros(3, np.uint32), jnp.zeros(2), jax.random.split(jax.random.key(0))], ids=str)
def test_what_is_no_key_is_said(key):
    with pytest.raises(EsrlError, match=r"one JAX key is needed, as jax\.random\.key\(0\), but got"):
        AGENTS["eggroll"](Walk()).init(key)


def test_eggroll_and_open_es_are_es_with_one_or_the_other_noise():
    common = {"population": 16, "sigma": 0.1}
    for face, space in ((esrl.eggroll, noise.low_rank(1)), (esrl.open_es, noise.dense())):
        a, b = face(Walk(), TINY, **common), esrl.es(Walk(), TINY, noise=space, **common)
        key = jax.random.key(1)
        (left, _), (right, _) = a.step(a.init(key)), b.step(b.init(key))
        for x, y in zip(jax.tree.leaves(left.params), jax.tree.leaves(right.params), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_noise_of_ones_own_trains():
    """Dense noise of which three in four entries are zero, scaled to variance 1."""
    plain = noise.dense()

    def sample(key, leaves, pairs):
        drawn, kept = plain.sample(key, leaves, pairs), jax.random.fold_in(key, 1)
        masks = [jax.random.bernoulli(jax.random.fold_in(kept, i), 0.25, x.e.shape) for i, x in enumerate(drawn)]
        return [noise.Dense(x.e * mask.astype(jnp.float32) * 2.0) for x, mask in zip(drawn, masks, strict=True)]

    agent = esrl.es(ActionMatters(), TINY, noise=plain._replace(sample=sample), population=32, sigma=0.3)
    result = esrl.train(agent, generations=60, num_evals=0)
    assert esrl.evaluate(agent, result.state, 64).return_mean == 1
    assert agent.options["noise"] is not None and result.agent is agent


def test_the_noise_of_the_update_is_that_of_the_rollout():
    """`noise_key` is the one place where both get it from."""
    from esrl.algorithms import es

    agent = AGENTS["eggroll"](Walk())
    state = agent.init(jax.random.key(0))
    later = state._replace(generation=state.generation + 1)
    assert np.any(jax.random.key_data(es.noise_key(state)) != jax.random.key_data(es.noise_key(later)))
    experience = es.rollout(agent.config, state)
    np.testing.assert_array_equal(experience.fitness, agent.rollout(state).fitness)
    assert_close(es.update(agent.config, state, experience), agent.update(state, experience))


def test_a_random_agent_draws_every_choice_alike_and_trains_nothing():
    agent = esrl.random("gymnasium/phys2d/CartPole-v1", population=8)
    state = agent.init(jax.random.key(0))
    actions = [int(agent.act(state, jnp.zeros(4), (), jax.random.key(i))[0]) for i in range(40)]
    assert 10 < sum(actions) < 30
    after, metrics = agent.step(state)
    assert jax.tree.leaves(after.params) == [] and int(after.env_steps) == 8 * float(metrics["length_mean"])
    played = agent.rollout(state)
    assert played.returns.shape == (8, 1, 1) and len(np.unique(played.lengths)) > 2
