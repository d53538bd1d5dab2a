"""One compilation for an agent and its shapes, and one program for all values of what may change."""

import jax
import pytest
from probes import Walk

import esrl
from esrl.core.types import seed_key

TINY = esrl.mlp((8,), "tanh")


def programs(agent):
    """The text of an agent's programs, before the compiler sees them: what the cache on disk goes by."""
    state = jax.eval_shape(agent.init, seed_key(0))
    if not agent.plan.num_random:
        return [agent.step.lower(state).as_text()]
    batch = jax.eval_shape(agent.rollout, state)
    return [agent.rollout.lower(state).as_text(), agent.update.lower(state, batch).as_text()]


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.open_es])
def test_sigma_and_learning_rate_are_not_in_the_program(make):
    def built(**values):
        return programs(make(Walk(), TINY, population=16, **values))

    first = built(sigma=0.1, learning_rate=0.01)
    assert built(sigma=0.3, learning_rate=0.5) == first
    assert built(sigma=0.1, learning_rate=0.01, optimizer="sgd") != first


def test_what_ppo_traces_is_not_in_its_program():
    small = {"num_envs": 8, "num_steps": 8, "num_minibatches": 2}
    first = programs(esrl.ppo(Walk(), TINY, **small))
    assert programs(esrl.ppo(Walk(), TINY, learning_rate=0.1, gamma=0.5, clip_eps=0.3, **small)) == first


@pytest.mark.parametrize("name", ["eggroll", "ppo"])
def test_a_longer_run_with_scores_compiles_nothing_more(name, tmp_path):
    traced = []

    def network(params, observation):
        traced.append(1)  # runs only while JAX traces
        return observation @ params

    small = {"population": 16} if name == "eggroll" else {"num_envs": 8, "num_steps": 8, "num_minibatches": 2}
    policy = esrl.network(network, init=lambda key: jax.numpy.zeros((1, 2)))
    agent = getattr(esrl, name)(Walk(), policy, **small)
    counts = []
    for generations, seed in ((1, 0), (4, 1), (6, 2)):
        options = {"generations": generations, "seed": seed, "out": tmp_path / str(seed)}
        esrl.train(agent, num_evals=generations, eval_episodes=4, **options)
        counts.append(len(traced))
    assert counts[0] == counts[1] == counts[2]
