"""What only a GPU can show: programs run there, agree with the CPU's, and kernels with XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from probes import Walk

import esrl
from esrl.core.sharding import AXIS
from esrl.core.types import seed_key

pytestmark = pytest.mark.gpu

TINY = esrl.mlp((24, 24))
AGENTS = {
    "eggroll": lambda **given: esrl.eggroll(Walk(), TINY, population=32, **given),
    "eggroll, rank 4, signs": lambda **given: esrl.eggroll(
        Walk(), TINY, population=32, rank=4, noise_distribution="rademacher", noise_dtype="int8", **given
    ),
    "open_es": lambda **given: esrl.open_es(Walk(), TINY, population=32, **given),
    "eggroll_ac": lambda **given: esrl.eggroll_ac(Walk(), TINY, num_envs=8, num_steps=8, **given),
    "ppo": lambda **given: esrl.ppo(Walk(), TINY, num_envs=8, num_steps=8, num_minibatches=2, **given),
}


def mesh_of(platform):
    return Mesh(np.array(jax.devices(platform)[:1]), (AXIS,))


@pytest.fixture(autouse=True)
def whole_products():
    """Products of float32 numbers, not of their first bits, as a GPU would otherwise take them."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_trains_and_is_scored(name):
    agent = AGENTS[name]()
    state = agent.init(seed_key(0))
    for _ in range(2):
        state, _ = agent.step(state)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.params))
    assert np.isfinite(esrl.evaluate(agent, state, episodes=8).return_mean)


@pytest.mark.parametrize("name", ["eggroll", "eggroll, rank 4, signs", "open_es"])
def test_a_generation_is_that_of_a_cpu(monkeypatch, name):
    monkeypatch.setenv("ESRL_FUSED", "never")
    found = []
    for platform in ("cpu", None):
        agent = AGENTS[name](mesh=mesh_of(platform))
        state = agent.init(seed_key(0))
        played = agent.rollout(state)
        found.append((played.fitness, jax.tree.leaves(agent.update(state, played)[0].params)))
    (fitness, params), (other_fitness, other_params) = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(other_fitness, fitness, rtol=1e-4, atol=1e-4)
    for a, b in zip(params, other_params, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["always", "auto"])
def test_kernels_agree_with_xla(monkeypatch, mode):
    found = []
    for chosen in ("never", mode):
        monkeypatch.setenv("ESRL_FUSED", chosen)
        agent = AGENTS["eggroll, rank 4, signs"](mesh=mesh_of(None))
        found.append(np.asarray(agent.rollout(agent.init(seed_key(0))).fitness))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_chunks_change_no_fitness(monkeypatch):
    monkeypatch.setenv("ESRL_FUSED", "never")
    found = []
    for chunk in (16, 5, 1):
        agent = AGENTS["eggroll"](mesh=mesh_of(None), chunk_pairs=chunk)
        found.append(np.asarray(agent.rollout(agent.init(seed_key(0))).fitness))
    # A GPU chooses a product's algorithm by its size, so sums of another order are all that may differ.
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-5)


def test_memory_is_planned_by_the_gpus_own():
    from esrl.algorithms.memory_plan import device_of

    device = device_of(mesh_of(None))
    assert device.bytes > 1 << 30
    assert device.own == (device.platform != "cpu")
