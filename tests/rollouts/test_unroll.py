"""Unrolls of environments that Python steps: what is recorded is what Gymnasium did."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.training import checkpoint

TINY = esrl.mlp((8,), "tanh")
SMALL = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 1}


class Steps(gymnasium.Env):
    """Observes (seed of the episode in 0 .. 1, steps so far); ends by itself after 5 steps when that number is small,
    and is cut off after 7 otherwise."""

    observation_space = spaces.Box(0.0, 100.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    max_episode_steps = 7

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.time = float(self.np_random.random()), 0
        return self._seen(), {}

    def step(self, action):
        self.time += 1
        return self._seen(), self.number + float(action), self.number < 0.5 and self.time == 5, False, {}

    def _seen(self):
        return np.array([self.number, self.time], np.float32)


def played(batch):
    t = batch.trajectory
    arrays = (t.observations, t.record.raw_action[..., 0], t.rewards, t.terminated, t.truncated, t.bootstrap_value)
    return [np.asarray(x) for x in arrays]


def test_a_trajectory_is_what_gymnasium_did():
    agent = esrl.ppo(Steps, TINY, **SMALL, normalize_observations=False)
    state = agent.init(seed_key(0))
    first = agent.rollout(state)
    state, _ = agent.update(state, first)
    second = agent.rollout(state)
    seen, action, reward, terminated, truncated, final = (
        np.concatenate(x, axis=1) for x in zip(played(first), played(second), strict=True)
    )
    number, time = seen[..., 0], seen[..., 1]
    np.testing.assert_allclose(reward, number + action, rtol=1e-6)
    np.testing.assert_array_equal(terminated, (number < 0.5) & (time == 4))
    np.testing.assert_array_equal(truncated, (number >= 0.5) & (time == 6))
    over = terminated | truncated
    assert np.all(time[:, 0] == 0) and np.all(time[:, 1:] == np.where(over[:, :-1], 0, time[:, :-1] + 1))
    np.testing.assert_array_equal(number[:, 1:][~over[:, :-1]], number[:, :-1][~over[:, :-1]])
    starts = number[time == 0]
    assert len(np.unique(starts)) == len(starts) > 12, "every episode is in another world"
    assert np.all(final[~truncated] == 0) and np.all(final[truncated] != 0)
    assert int(first.stats.episodes) + int(second.stats.episodes) == over.sum()


def test_a_run_that_is_resumed_begins_new_episodes_and_goes_on(tmp_path):
    agent = esrl.ppo(Steps, TINY, **SMALL)
    state, _ = agent.step(agent.init(seed_key(0)))
    checkpoint.Checkpoints(tmp_path).save(state)
    other = esrl.ppo(Steps, TINY, **SMALL)
    state = checkpoint.Checkpoints(tmp_path).restore(other.init(seed_key(1)))
    assert np.any(np.asarray(state.lanes.observation)[:, 1] > 0)
    seen = np.asarray(other.rollout(state).trajectory.observations)
    assert np.all(seen[:, 0, 1] == 0)
    again = np.asarray(other.rollout(state).trajectory.observations)
    np.testing.assert_array_equal(seen, again), "a rollout of the same state is the same"


def test_lanes_of_two_agents_do_not_meet():
    env = esrl.make(Steps)
    one, two = (esrl.ppo(env, TINY, **SMALL) for _ in range(2))
    state = one.init(seed_key(0))
    expected = played(one.rollout(state))
    two.rollout(two.init(seed_key(5)))
    for a, b in zip(expected, played(one.rollout(state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_recurrent_policies_start_anew_with_each_episode():
    agent = esrl.ppo(Steps, esrl.gru(8), **SMALL)
    state, _ = agent.step(agent.init(seed_key(0)))
    batch = agent.rollout(state)
    over = np.asarray(batch.trajectory.terminated | batch.trajectory.truncated)[:, -1]
    carry = np.asarray(batch.lanes.carry[0])
    assert np.all(carry[over] == 0) and np.all(np.any(carry[~over] != 0, axis=1))


def test_an_error_inside_names_step_and_environment():
    class Breaks(Steps):
        whole = True  # while it is made, which looks at a hundred steps

        def step(self, action):
            if self.time == 3 and not Breaks.whole:
                raise RuntimeError("the motor is on fire")
            return super().step(action)

    agent = esrl.ppo(Breaks, TINY, **SMALL)
    Breaks.whole = False
    state = agent.init(seed_key(0))
    for _ in range(2):  # the worlds are made anew
        with pytest.raises(EsrlError, match=r"Breaks: step 4 of an episode raised RuntimeError: the motor is on fire"):
            agent.rollout(state)


def test_cartpole_stepped_by_python_is_learnt():
    agent = esrl.ppo(
        "gymnasium/CartPole-v1",
        esrl.mlp((32,), "tanh"),
        num_envs=8,
        num_steps=64,
        num_minibatches=4,
        learning_rate=3e-3,
    )
    result = esrl.train(agent, env_steps=1.2e4, num_evals=1, eval_episodes=8)
    assert result.metrics["eval_return_mean"] > 150
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), result.state.params))
