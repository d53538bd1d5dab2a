"""Environments as Gymnasium's, and trained agents as plain functions, for loops that esrl does not write."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from probes import Memory, Probe

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key

CARTPOLE = "gymnasium/phys2d/CartPole-v1"


class Counter(Probe):
    """Observes (the world's number, steps so far); terminates at step 3 in worlds above 0.5, and never in others."""

    observation_space = spaces.Box(0.0, 10.0, (2,), np.float32)
    max_episode_steps = 5

    def reset(self, key):
        state = jax.numpy.stack([jax.random.uniform(key), jax.numpy.float32(0)])
        return state, state

    def step(self, state, action, key):
        state = state + jax.numpy.asarray([0.0, 1.0])
        return state, state, state[1], (state[0] > 0.5) & (state[1] >= 3)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_mode_of_resets_is_gymnasiums(mode):
    env = esrl.as_vector_env(Counter(), 6, mode)
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (6, 2) and len(np.unique(first[:, 0])) == 6
    world, time = first[:, 0].copy(), np.zeros(6, int)
    waiting = np.zeros(6, bool)  # NEXT_STEP: done, and not begun again
    for _ in range(17):
        observation, reward, terminated, truncated, infos = env.step(env.action_space.sample())
        expected = np.where(waiting, 0, time + 1)
        ends = ~waiting & (expected == np.where(world > 0.5, 3, 5))
        np.testing.assert_array_equal(reward, np.where(waiting, 0, expected))
        np.testing.assert_array_equal(terminated, ends & (world > 0.5))
        np.testing.assert_array_equal(truncated, ends & (world <= 0.5))
        if mode == AutoresetMode.SAME_STEP and ends.any():
            np.testing.assert_array_equal(infos["_final_obs"], ends)
            np.testing.assert_array_equal(infos["final_obs"][ends, 1], expected[ends])
            np.testing.assert_array_equal(infos["final_obs"][ends, 0], world[ends])
        if mode == AutoresetMode.DISABLED and ends.any():
            with pytest.raises(EsrlError, match="have ended"):
                env.step(env.action_space.sample())
            observation, _ = env.reset(options={"reset_mask": ends})
        begun = waiting if mode == AutoresetMode.NEXT_STEP else ends
        np.testing.assert_array_equal(observation[:, 1], np.where(begun, 0, expected))
        assert not np.any(observation[begun, 0] == world[begun]), "a new episode is in another world"
        np.testing.assert_array_equal(observation[~begun, 0], world[~begun])
        world, time = observation[:, 0].copy(), np.where(begun, 0, expected)
        waiting = ends if mode == AutoresetMode.NEXT_STEP else np.zeros(6, bool)


@pytest.mark.filterwarnings("ignore:.*Box observation space m.+imum value is")  # Gymnasium's own CartPole has it
def test_gymnasium_finds_nothing_wrong():
    env = esrl.as_gymnasium(CARTPOLE)
    gymnasium_check(env, skip_render_check=True)
    assert isinstance(env, gymnasium.Env)
    first, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, env.reset(seed=5)[0])
    vector = esrl.as_vector_env(CARTPOLE, 3)
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    wrapped.reset(seed=0)
    ended = 0
    for _ in range(60):
        *_, infos = wrapped.step(wrapped.action_space.sample())
        ended += int(np.sum(infos.get("_episode", 0)))
    assert ended >= 3


def test_a_host_environment_is_given_back_as_gymnasium_makes_it():
    pytest.importorskip("pygame")
    assert esrl.as_gymnasium("gymnasium/CartPole-v1").spec.id == "CartPole-v1"
    with pytest.raises(EsrlError, match="stepped by Python; make its lanes with"):
        esrl.as_vector_env("gymnasium/CartPole-v1", 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((Counter(), 0), "num_envs is 0, but must be a whole number"),
        ((Counter(), 2, "Never"), "autoreset_mode is 'Never', but must be one of 'NextStep'"),
    ],
)
def test_what_does_not_fit_is_said(arguments, words):
    with pytest.raises(EsrlError, match=words):
        esrl.as_vector_env(*arguments)


def test_the_first_seed_decides_all_that_follows():
    def worlds(env):
        seen = [env.reset(seed=3)[0]]
        seen += [env.step(np.zeros(2, int))[0], env.reset()[0]]
        seen += [env.reset(options={"reset_mask": np.array([True, False])})[0], env.reset(seed=[None, 7])[0]]
        return np.stack(seen)

    one, other = (worlds(esrl.as_vector_env(Counter(), 2, "Disabled")) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one[[0, 2, 3, 4], 0, 0])) == 4
    np.testing.assert_array_equal(one[3, 1], one[2, 1])


def test_actions_of_another_shape_and_steps_after_the_end_are_said():
    env = esrl.as_vector_env(Counter(), 2)
    env.reset(seed=0)
    for actions in (np.zeros(3, int), np.zeros((2, 1), int)):
        with pytest.raises(
            EsrlError, match=r"actions have shape \(.*\), but need shape \(2,\) for 2 lanes of Discrete"
        ):
            env.step(actions)
    single = esrl.as_gymnasium(Counter())
    single.reset(seed=0)
    with pytest.raises(EsrlError, match="the episode has ended; call reset before the next step"):
        for _ in range(9):
            single.step(0)


def test_a_reset_comes_first_and_has_a_seed_for_each_lane():
    env = esrl.as_vector_env(Counter(), 2)
    with pytest.raises(EsrlError, match="call reset before step"):
        env.step(env.action_space.sample())
    with pytest.raises(EsrlError, match="3 seeds were given, but there are 2 lanes"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(EsrlError, match=r"reset_mask is int64\[2\], but must be bool\[2\]"):
        env.reset(options={"reset_mask": np.array([0, 1])})


# ---- agents as functions --------------------------------------------------------------------------------------------


def test_a_players_return_is_the_evaluations():
    """A deterministic policy, played by a loop over Gymnasium's own API in the same worlds as `evaluate`."""
    agent = esrl.eggroll(CARTPOLE, esrl.mlp((16,)), population=64, learning_rate=0.05)
    state = agent.init(seed_key(0))
    for _ in range(3):
        state, _ = agent.step(state)
    trained = esrl.Trained(agent, state)
    env = esrl.as_vector_env(CARTPOLE, 256, AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=1)
    total, live = np.zeros(256), np.ones(256, bool)
    while live.any():
        observation, reward, terminated, truncated, _ = env.step(trained.predict(observation))
        total += reward * live
        done = terminated | truncated
        live &= ~done
        if done.any():
            observation, _ = env.reset(options={"reset_mask": done})
    scored = esrl.evaluate(agent, state, 256)
    error = np.hypot(total.std(), scored.return_std) / np.sqrt(256)
    assert abs(total.mean() - scored.return_mean) < 5 * error


def test_one_observation_or_many():
    agent = esrl.ppo(CARTPOLE, esrl.mlp((8,)), num_envs=4, num_steps=8, num_minibatches=2)
    trained = esrl.Trained(agent, agent.init(seed_key(0)))
    many = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    actions = trained.predict(many)
    assert actions.shape == (5,)
    assert [trained.predict(one) for one in many] == actions.tolist()
    assert trained.predict(many[0]) in agent.env.action_space
    with pytest.raises(EsrlError, match=r"an observation of shape \(3,\) was given"):
        trained.predict(np.zeros(3))


def test_memory_is_kept_between_calls_until_it_is_reset():
    """The output after two steps is not that after one; lanes that are reset give that of the first step again."""
    network = esrl.network(lambda p, x, c: (p + c[0] * jnp.array([0.0, 1.0]), c + 1.0), params=jnp.array([0.5, 0.0]),
                           carry=jnp.zeros(1))  # fmt: skip
    agent = esrl.eggroll(Memory(), network, population=8)
    trained = esrl.Trained(agent, agent.init(seed_key(0)))
    observation = np.ones((3, *agent.env.observation_space.shape), np.float32)
    assert trained.predict(observation).tolist() == [0, 0, 0]
    assert trained.predict(observation).tolist() == [1, 1, 1]
    trained.reset(np.array([True, False, True]))
    assert trained.predict(observation).tolist() == [0, 1, 0]
    with pytest.raises(EsrlError, match=r"5 observations were given, but 3 lanes are remembered; call reset\(\)"):
        trained.predict(np.ones((5, *observation.shape[1:]), np.float32))
    trained.reset()
    assert trained.predict(observation).tolist() == [0, 0, 0]


def test_a_run_in_a_folder_plays(tmp_path):
    recipe = esrl.Recipe(CARTPOLE, generations=1, options={"population": 8}, policy={"hidden": [8]}, num_evals=1)
    agent = recipe.build()
    for _ in recipe.run(agent, tmp_path / "run"):
        pass
    trained = esrl.load(tmp_path / "run")
    env = esrl.as_gymnasium(CARTPOLE)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(trained.predict(observation))
