"""Every program lowers for CUDA on a machine without a GPU: what training, updating and evaluating compile there."""

import re
from functools import partial

import jax
import pytest
from probes import Walk

import esrl
from esrl.core.sharding import one_device
from esrl.core.types import seed_key
from esrl.training.evaluation import held_out_keys, play_episodes

TINY = esrl.mlp((8,), "tanh")
SMALL = {"num_envs": 8, "num_steps": 8}
AGENTS = {
    "eggroll, rank 1": lambda: esrl.eggroll(Walk(), TINY, population=16),
    "eggroll, rank 4, signs": lambda: esrl.eggroll(
        Walk(), esrl.mlp((32, 32)), population=16, rank=4, noise_distribution="rademacher", noise_dtype="int8"
    ),
    "eggroll, population by signal": lambda: esrl.eggroll(
        Walk(), TINY, population=16, rank=2, max_population=64, signal_rate=True, horizon=4, warm_statistics=1
    ),
    "eggroll, bfloat16, gru": lambda: esrl.eggroll(Walk(), esrl.gru(8), population=8, precision="bfloat16"),
    "open_es": lambda: esrl.open_es(Walk(), TINY, population=16, chunk_pairs=1, optimizer="adamw"),
    "eggroll_ac": lambda: esrl.eggroll_ac(Walk(), TINY, **SMALL),
    "ppo": lambda: esrl.ppo(Walk(), TINY, num_minibatches=2, **SMALL),
}
ENVS = [
    "gymnax/CartPole-v1",
    "gymnasium/phys2d/CartPole-v1",
    "jumanji/Knapsack-v1",
    pytest.param("navix/Navix-Empty-5x5-v0", marks=pytest.mark.slow),
    pytest.param("brax/inverted_pendulum", marks=pytest.mark.slow),
    pytest.param("brax/ant", marks=pytest.mark.heavy),
    pytest.param("craftax/Craftax-Classic-Symbolic-v1", marks=pytest.mark.heavy),
    pytest.param("playground/CartpoleBalance", marks=pytest.mark.heavy),
]


def for_cuda(function, *shapes):
    """The text of a program as XLA would be given it for an NVIDIA GPU; raises where an operation has no such form."""
    text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    # A call into LAPACK or another library of processors would lower, and fail on the GPU.
    assert not re.search(r"custom_call @(lapack|\w*cpu)", text)
    return text


def state_of(agent):
    return jax.eval_shape(agent.init, seed_key(0))


@pytest.mark.parametrize("name", AGENTS)
def test_a_generation_of_every_agent_lowers(name):
    agent = AGENTS[name]()
    text = for_cuda(agent.step.function, state_of(agent))
    assert agent.plan.devices == 4
    assert re.search("manual_computation|SPMDFullToShardShape", text)  # it is split over several GPUs as well


def test_held_out_episodes_lower():
    agent = AGENTS["eggroll, rank 1"]()
    for_cuda(partial(play_episodes, agent), state_of(agent), jax.eval_shape(lambda: held_out_keys(0, 8)))


@pytest.mark.parametrize("name", ENVS)
def test_an_environment_of_every_suite_lowers(name):
    agent = esrl.eggroll(name, TINY, population=8, episodes_per_member=1, mesh=one_device())
    for_cuda(agent.rollout.function, state_of(agent))


def test_a_generation_with_kernels_lowers_to_one_triton_call_for_each_layer(monkeypatch):
    monkeypatch.setenv("ESRL_FUSED", "always")
    agent = esrl.eggroll(Walk(), esrl.mlp((24, 40)), population=16, mesh=one_device())
    low = sum(leaf.rank > 0 for leaf in agent.plan.leaves)
    assert for_cuda(agent.rollout.function, state_of(agent)).count("__gpu$xla.gpu.triton") == low > 1
