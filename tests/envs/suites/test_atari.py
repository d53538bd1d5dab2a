"""Atari games step exactly as ale-py steps them, and only the lanes that live."""

import numpy as np
import pytest
from adapter_laws import AGENTS, Playing, seeds_of_generations, train_two_generations

import esrl
from esrl import EsrlError
from esrl.envs.checks.environment import check_env
from esrl.envs.suites.atari import names

pytest.importorskip("ale_py")
from ale_py.vector_env import AtariVectorEnv

STICKY = 0.25  # with which Gymnasium registers the games
EPISODES, AT_ONCE = 100, 4


def own_episodes(seeds, actions, horizon):
    """Rewards and ends of each seed's episode on ale-py's vector environment, which goes on to others after an end."""
    env = AtariVectorEnv("boxing", AT_ONCE, reward_clipping=False, repeat_action_probability=STICKY)
    for start in range(0, len(seeds), AT_ONCE):
        first, _ = env.reset(seed=seeds[start : start + AT_ONCE])
        results = [env.step(action[start : start + AT_ONCE])[:4] for action in actions[:horizon]]
        yield first, results


def test_a_hundred_random_episodes_are_ale_pys_own():
    """Observations, rewards and ends; with another limit the same steps are cut off."""
    horizon = 30
    env = esrl.make("atari/Boxing-v5", max_episode_steps=horizon)
    seeds = np.arange(1000, 1000 + EPISODES)
    env.action_space.seed(0)
    actions = np.array([[env.action_space.sample() for _ in seeds] for _ in range(horizon)])
    lanes = Playing(env, AT_ONCE, 1, 1)
    points = 0
    for start, (first, results) in zip(range(0, EPISODES, AT_ONCE), own_episodes(seeds, actions, horizon), strict=True):
        now = slice(start, start + AT_ONCE)
        np.testing.assert_array_equal(lanes.reset(seeds[now].reshape(AT_ONCE, 1, 1)), first)
        for t, (observation, reward, terminated, truncated) in enumerate(results):
            mine, my_reward, ended = lanes.step(actions[t][now])
            np.testing.assert_array_equal(mine, observation)
            np.testing.assert_array_equal(my_reward, reward)
            np.testing.assert_array_equal(ended, terminated | truncated | (t + 1 == horizon))
            points += np.count_nonzero(my_reward)
    assert points > 0


def test_an_episode_ends_where_ale_pys_does():
    env = esrl.make("atari/Breakout-v5")
    own = AtariVectorEnv("breakout", 2, reward_clipping=False, repeat_action_probability=STICKY)
    seeds = np.array([3, 3])
    lanes = Playing(env, 1, 2, 1)
    np.testing.assert_array_equal(lanes.reset(seeds.reshape(1, 2, 1)), own.reset(seed=seeds)[0])
    env.action_space.seed(1)
    for _ in range(2000):
        action = np.full(2, env.action_space.sample())
        observation, reward, terminated, truncated, _ = own.step(action)
        mine, my_reward, ended = lanes.step(action)
        np.testing.assert_array_equal(mine, observation)
        np.testing.assert_array_equal(my_reward, reward)
        np.testing.assert_array_equal(ended, terminated | truncated)
        if ended.all():
            break
    assert terminated.all() and not truncated.any()
    stood, reward, ended = lanes.step(action)  # a lane that is done stands still
    np.testing.assert_array_equal(stood, mine)
    assert not reward.any() and not ended.any()


def test_both_signs_see_the_same_worlds():
    """Sticky actions too; and another generation has other worlds in the same lanes."""
    env = esrl.make("atari/Breakout-v5")
    lanes = Playing(env, 2, 2, 1)
    worlds = []
    for generation in range(2):
        seeds = np.broadcast_to(np.array([[[1]], [[2]]]) + 10 * generation, (2, 2, 1))
        seen = [lanes.reset(seeds)]
        env.action_space.seed(0)
        for _ in range(60):
            seen.append(lanes.step(np.full(4, env.action_space.sample()))[0])
        worlds.append(np.stack(seen, axis=1).reshape(2, 2, 61, 4, 84, 84))
        np.testing.assert_array_equal(worlds[-1][:, 0], worlds[-1][:, 1])
        assert (worlds[-1][0] != worlds[-1][1]).any()
    assert all((worlds[0][pair] != worlds[1][pair]).any() for pair in range(2))


def test_generations_and_held_out_episodes_have_worlds_of_their_own():
    one, two, held_out = seeds_of_generations(esrl.make("atari/Pong-v5?max_episode_steps=2"), 4, 2)
    assert len(one) == len(two) == 2 and not one & two and not held_out & (one | two)


def test_the_time_limit_is_no_termination():
    env = esrl.make("atari/Pong-v5?max_episode_steps=6")
    limits = [made.max_episode_steps for made in (env, esrl.make(env.name), esrl.make("atari/Pong-v5"))]
    assert limits == [6, 6, 27000]
    lanes = env.make_lanes((2,))
    first = lanes.begin(np.ones(2, bool), np.array([1, 2**32 - 1], np.uint32))
    for t in range(6):
        last, _, terminated, truncated = lanes.step(np.zeros(2, np.int32), np.ones(2, bool))
        assert not terminated.any() and (truncated == (t == 5)).all()
    begun = lanes.begin(np.array([True, False]), np.array([1, 0], np.uint32))
    np.testing.assert_array_equal(begun[0], first[0])
    np.testing.assert_array_equal(begun[1], last[1])
    _, _, _, truncated = lanes.step(np.zeros(2, np.int32), np.ones(2, bool))
    np.testing.assert_array_equal(truncated, [False, True])


@pytest.mark.parametrize("name", ["atari/Breakout-v5", "atari/Pong-v5?stack_num=2&img_height=42&img_width=42"])
def test_environments_are_sound(name):
    env = esrl.make(name)
    assert env.observation_space.shape == ((2, 42, 42) if "stack" in name else (4, 84, 84))
    check_env(env, steps=20)
    assert esrl.make(env.name).observation_space == env.observation_space


def test_frames_are_the_whole_screen_in_colour():
    env = esrl.make("atari/Breakout-v5")
    drawn, plain = env.make_one(render_mode="rgb_array"), env.make_one()
    np.testing.assert_array_equal(drawn.reset(seed=3)[0], plain.reset(seed=3)[0])
    for action in (1, 2, 2, 3):
        np.testing.assert_array_equal(drawn.step(action)[0], plain.step(action)[0])
    frame = drawn.render()
    assert frame.shape == (210, 160, 3) and frame.dtype == np.uint8 and np.ptp(frame.astype(int), axis=2).any()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("atari/Breakot-v5", "atari has no environment 'Breakot-v5'; did you mean Breakout-v5"),
        ("atari/Pong-v5?colour=red", "atari/Pong-v5.colour=red cannot be made: TypeError"),
        ("atari/Pong-v5?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        ("atari/Pong-v5?num_threads=9", "num_threads is set by esrl; leave it out"),
        ("atari/Pong-v5?frameskip=0", "cannot be made: Error: Invalid frameskip of 0"),
        ("atari/Pong-v5?max_num_frames_per_episode=9", "set the time limit as max_episode_steps"),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_games_are_listed_and_an_error_is_one_sentence():
    assert {"atari/Breakout-v5", "atari/Pong-v5", "atari/MsPacman-v5"} <= set(names())
    env = esrl.make("atari/Pong-v5")
    lanes = Playing(env, 1, 1, 1)
    lanes.reset(np.zeros((1, 1, 1)))
    with pytest.raises(EsrlError, match=r"^atari/Pong-v5: step of its lanes raised AssertionError"):
        lanes.step(np.zeros((1, 2), np.int32))
    assert lanes.lanes.failed and Playing(env, 1, 1, 1).lanes is not lanes.lanes


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains(agent):
    small = {"population": 4} if agent != "ppo" else {"num_envs": 2, "num_steps": 8}
    train_two_generations("atari/Pong-v5?max_episode_steps=3&img_height=8&img_width=8", agent, **small)
