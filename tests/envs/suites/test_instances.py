"""Environments of which only a few may exist at once play the episodes that any number of them would play."""

import gymnasium
import jax
import numpy as np
import pytest

import esrl
from esrl import EsrlError
from esrl.cli.commands import train
from esrl.cli.invocation import invocation


class Counted(gymnasium.Env):
    """A walk; no more than `most` of them may exist."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    max_episode_steps = 12
    alive, most, peak = 0, 10**9, 0

    def __init__(self):
        cls = type(self)
        if cls.alive >= cls.most:
            raise OSError("address already in use")
        cls.alive += 1
        cls.peak = max(cls.peak, cls.alive)

    def close(self):
        type(self).alive -= 1

    def reset(self, *, seed=None, options=None):
        assert seed is None or 0 <= seed < 2**31  # as an int32
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.at.copy(), {}

    def step(self, action):
        self.at[0] += 0.3 * float(action[0])
        return self.at.copy(), -abs(float(self.at[0] - self.at[1])), abs(self.at[0]) > 1.2, False, {}


@pytest.fixture
def counted():
    """A new class for each test, whose instances are counted from nothing."""
    return type("Counted", (Counted,), {"most": 10**9, "alive": 0, "peak": 0})


def fitness(env):
    agent = esrl.eggroll(env, esrl.mlp((4,)), population=8, episodes_per_member=2)
    state, rows = agent.init(jax.random.key(0)), []
    for _ in range(2):
        state, metrics = agent.step(state)
        rows.append([float(metrics[name]) for name in ("fitness_mean", "fitness_max", "return_mean")])
    return [*rows, esrl.evaluate(agent, state, 5).returns.tolist()]


def test_few_instances_play_the_same_episodes(counted):
    every = fitness(esrl.make(counted))
    assert counted.peak > 4
    for number in (1, 3, 16):
        cls = type("Counted", (Counted,), {"most": number, "alive": 0, "peak": 0})
        np.testing.assert_allclose(
            np.concatenate(fitness(esrl.make(cls, instances=number))), np.concatenate(every), rtol=1e-5
        )
        assert cls.peak <= number


def test_instances_in_processes_play_the_same_episodes():
    every = fitness(esrl.make(Counted))
    found = fitness(esrl.make(f"{__name__}:Counted?instances=4&workers=2"))
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(every), rtol=1e-5)


def test_a_second_instance_that_cannot_be_made_names_the_option(counted):
    counted.most = 1
    agent = esrl.eggroll(esrl.make(counted, vectorization="sync"), esrl.mlp((4,)), population=8)
    with pytest.raises(EsrlError, match=r"1 of \d+ environments could be made.*address already.*give instances=1"):
        agent.step(agent.init(jax.random.key(0)))


def test_an_evaluation_between_ends_the_episodes_that_ppo_had_begun(counted):
    """Their worlds are the evaluation's then; to step them on would mix two episodes."""
    counted.most = 2
    env = esrl.make(counted, instances=2)
    agent = esrl.ppo(env, esrl.mlp((4,)), num_envs=2, num_steps=5, num_minibatches=1)
    state, _ = agent.step(agent.init(jax.random.key(0)))
    esrl.evaluate(agent, state, 3)
    experience = agent.rollout(state)
    state, _ = agent.step(state)
    first = np.asarray(jax.tree.leaves(experience.trajectory.observations)[0])[:, 0]
    assert np.all(np.abs(first) <= 1) and counted.peak == 2  # the range of first observations
    many = esrl.ppo(env, esrl.mlp((4,)), num_envs=4, num_steps=5, num_minibatches=1)
    with pytest.raises(
        EsrlError, match="has at most 2 instances, but 4 are to be stepped side by side; give num_envs=2"
    ):
        many.step(many.init(jax.random.key(0)))


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_that_is_none_is_refused(counted, number):
    with pytest.raises(EsrlError, match="instances"):
        esrl.make(counted, instances=number)


def test_flags_become_a_part_of_the_name():
    found = invocation(train, ["gymnasium/CartPole-v1?sutton_barto_reward=True", "--workers", "3", "--instances", "6"])
    env = esrl.make(found["recipe"].env)
    assert found["recipe"].env == "gymnasium/CartPole-v1?sutton_barto_reward=True&workers=3&instances=6"
    assert env.instances == 6
    with pytest.raises(EsrlError, match="unexpected keyword argument"):
        invocation(train, ["brax/hopper", "--workers", "2"])["recipe"].build()


class OtherSignature(gymnasium.vector.VectorEnv):
    """A vector entry point that calls its number of lanes otherwise."""

    def __init__(self, lanes):
        self.num_envs = lanes


def test_a_vector_entry_point_of_another_signature_is_left(capsys):
    gymnasium.register("Other-v0", Counted, vector_entry_point=OtherSignature, max_episode_steps=12)
    try:
        np.testing.assert_allclose(
            np.concatenate(fitness("gymnasium/Other-v0")), np.concatenate(fitness(Counted)), rtol=1e-5
        )
        assert "its vector entry point cannot be used (TypeError" in capsys.readouterr().err
        agent = esrl.eggroll("gymnasium/Other-v0?vectorization=vector", esrl.mlp((4,)), population=8)
        with pytest.raises(EsrlError, match="lanes cannot be made: TypeError"):
            agent.step(agent.init(jax.random.key(0)))
    finally:
        del gymnasium.registry["Other-v0"]
