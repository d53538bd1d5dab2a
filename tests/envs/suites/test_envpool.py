"""EnvPool environments step exactly as EnvPool steps them, and only the lanes that live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import AGENTS, Playing, seeds_of_generations, train_two_generations

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.envs.checks.environment import check_env
from esrl.envs.suites.envpool import names
from esrl.rollouts.runner import runner

envpool = pytest.importorskip("envpool")

# EnvPool's spaces are float32 with bounds of 64 bits; only the tests ask for them unguarded
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32:UserWarning")

NAMES = ["CartPole-v1", "Pendulum-v1", "LunarLander-v3", "FrozenLake-v1", "MiniGrid-Empty-5x5-v0"]
EPISODES, STEPS = 100, 60


def drawn(env, lanes, steps, seed=0):
    """Actions [steps, lanes, ...] from the action space."""
    env.action_space.seed(seed)
    return np.array([[env.action_space.sample() for _ in range(lanes)] for _ in range(steps)])


def own_episodes(name, seeds, actions, **options):
    """Rewards [T, L] and ends [T, L] of a pool that EnvPool makes; what it plays after an end does not count."""
    pool = envpool.make_gymnasium(name, num_envs=len(seeds), seed=list(seeds), **options)
    first, _ = pool.reset()
    live, rewards, ends = np.ones(len(seeds), bool), [], []
    for action in actions:
        _, reward, terminated, truncated, _ = pool.step(action)
        rewards.append(np.where(live, reward, 0.0))
        ends.append(live & (terminated | truncated))
        live = live & ~ends[-1]
    return first, np.array(rewards, np.float64), np.array(ends)


def played(lanes, seeds, actions):
    """First observations, rewards [T, L] and ends [T, L] of an episode in every lane."""
    first, results = lanes.reset(seeds), []
    results = [lanes.step(action)[1:] for action in actions]
    rewards, ends = (np.array(column) for column in zip(*results, strict=True))
    return first, rewards, ends


@pytest.mark.parametrize("name", [*NAMES, "HalfCheetah-v4"])
@pytest.mark.parametrize("most", [None, 40])
def test_a_hundred_random_episodes_are_envpools_own(name, most):
    """Rewards, ends and returns, with the time limit as EnvPool counts it."""
    env = esrl.make(f"envpool/{name}", max_episode_steps=most)
    seeds, actions = np.arange(1000, 1000 + EPISODES), drawn(env, EPISODES, STEPS)
    limit = {} if most is None else {"max_episode_steps": most}
    first, rewards, ends = own_episodes(name, seeds, actions, **limit)
    mine = played(Playing(env, EPISODES, 1, 1), seeds.reshape(EPISODES, 1, 1), actions)
    for x, y in zip(jax.tree.leaves(mine[0]), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(mine[1], rewards)
    np.testing.assert_array_equal(mine[2], ends)
    np.testing.assert_array_equal(mine[1].sum(axis=0), rewards.sum(axis=0))
    assert most is None or ends.sum() == EPISODES


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3", "MiniGrid-Dynamic-Obstacles-6x6-v0"])
def test_both_signs_see_the_same_worlds(name):
    """Also after lanes of other pairs have ended, and when the lanes are used again for another generation's worlds."""
    env = esrl.make(f"envpool/{name}")
    lanes = Playing(env, 3, 2, 2)
    actions = drawn(env, 6, STEPS).reshape(STEPS, 3, 1, 2, *env.action_space.shape).repeat(2, axis=2)
    actions = actions.reshape(STEPS, 12, *env.action_space.shape)
    generations = []
    for generation in range(2):
        seeds = np.broadcast_to(np.arange(6).reshape(3, 1, 2) + 100 * generation, (3, 2, 2))
        first, rewards, ends = played(lanes, seeds, actions)
        for x in (*(x.swapaxes(0, -1) for x in (rewards, ends)), *jax.tree.leaves(first)):
            split = x.reshape(3, 2, 2, -1)
            np.testing.assert_array_equal(split[:, 0], split[:, 1])
        generations.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(first)]))
    assert not np.array_equal(*generations)
    if name == "CartPole-v1":
        assert len(np.unique(generations[0].reshape(12, -1), axis=0)) == 6
        again = lanes.reset(np.broadcast_to(np.arange(6).reshape(3, 1, 2), (3, 2, 2)))
        np.testing.assert_array_equal(np.ravel(again), generations[0])


def test_generations_and_held_out_episodes_have_worlds_of_their_own():
    one, two, held_out = seeds_of_generations(esrl.make("envpool/CartPole-v1?max_episode_steps=5"), 8, 8)
    assert len(one) == len(two) == 4 and not one & two and not held_out & (one | two)


def test_finished_lanes_are_not_stepped():
    """Where an episode has ended, observations stand still; EnvPool itself would begin the next episode."""
    env = esrl.make("envpool/CartPole-v1")
    lanes = Playing(env, 4, 1, 1)
    lanes.reset(np.arange(4).reshape(4, 1, 1))
    ended, last = np.zeros(4, bool), np.zeros((4, 4), np.float32)
    while not ended.all():
        observation, reward, end = lanes.step(np.array([0, 1, 1, 0]))
        np.testing.assert_array_equal(reward, ~ended)
        np.testing.assert_array_equal(observation[ended], last[ended])
        assert (observation[~ended] != last[~ended]).any(axis=1).all()
        ended, last = ended | end, observation
    observation, reward, end = lanes.step(np.array([0, 1, 1, 0]))
    np.testing.assert_array_equal(observation, last)
    assert not reward.any() and not end.any()


def test_lanes_go_on_when_they_are_told_to():
    """The observation of the step where an episode ends is its last, and only a lane that is told to begins anew."""
    env = esrl.make("envpool/CartPole-v1?max_episode_steps=12")
    lanes = env.make_lanes((3,))
    seeds = np.array([4, 4, 2**32 - 1], np.uint32)
    first = lanes.begin(np.ones(3, bool), seeds)
    np.testing.assert_array_equal(first[0], first[1])
    own = envpool.make_gymnasium("CartPole-v1", num_envs=3, seed=[4, 4, -1], max_episode_steps=13)
    np.testing.assert_array_equal(own.reset()[0], first)
    done = np.zeros(3, bool)
    actions = np.array([1, 0, 1])
    while not done.any():
        observation, _, terminated, truncated = lanes.step(actions, np.ones(3, bool))
        expected = own.step(actions)
        np.testing.assert_array_equal(observation, expected[0])
        np.testing.assert_array_equal(terminated, expected[2])
        done = terminated | truncated
    begun = lanes.begin(done, np.zeros(3, np.uint32))
    np.testing.assert_array_equal(begun[~done], observation[~done])
    assert (np.abs(begun[done]) <= 0.05).all() and (np.abs(observation[done]) > 0.05).any(axis=1).all()
    np.testing.assert_array_equal(lanes.begin(np.ones(3, bool), seeds), first)


def test_the_time_limit_is_no_termination():
    """Pendulum is cut off at the limit; CartPole that falls on its last step has ended by itself."""
    env = esrl.make("envpool/Pendulum-v1?max_episode_steps=7")
    assert (env.name, env.max_episode_steps) == ("envpool/Pendulum-v1?max_episode_steps=7", 7)
    assert esrl.make(env.name).max_episode_steps == 7 and esrl.make("envpool/Pendulum-v1").max_episode_steps == 200
    lanes = env.make_lanes((2,))
    lanes.begin(np.ones(2, bool), np.arange(2))
    for t in range(7):
        _, _, terminated, truncated = lanes.step(np.zeros((2, 1), np.float32), np.ones(2, bool))
        assert not terminated.any() and (truncated == (t == 6)).all()
    long = esrl.make("envpool/CartPole-v1").make_lanes((1,))
    long.begin(np.ones(1, bool), np.zeros(1))
    length, fell = 0, False
    while not fell:
        length, fell = length + 1, bool(long.step(np.ones(1, int), np.ones(1, bool))[2][0])
    for most, expected in ((length, (True, False)), (length - 1, (False, True))):
        lanes = esrl.make("envpool/CartPole-v1", max_episode_steps=most).make_lanes((1,))
        lanes.begin(np.ones(1, bool), np.zeros(1))
        for _ in range(most):
            _, _, terminated, truncated = lanes.step(np.ones(1, int), np.ones(1, bool))
        assert (bool(terminated[0]), bool(truncated[0])) == expected


@pytest.mark.parametrize("name", [*NAMES, "BipedalWalker-v3", "HalfCheetah-v4", "AcrobotSwingup-v1", "Play2048-v1"])
def test_environments_are_sound(name):
    check_env(esrl.make(f"envpool/{name}"), steps=20)


def test_options_are_envpools_arguments():
    env = esrl.make("envpool/HalfCheetah-v4?ctrl_cost_weight=0.0&num_threads=1")
    assert env.name == "envpool/HalfCheetah-v4?num_threads=1&ctrl_cost_weight=0.0"
    plain = esrl.make("envpool/HalfCheetah-v4")
    rewards = []
    for made in (env, plain):
        lanes = Playing(made, 1, 1, 1)
        lanes.reset(np.zeros((1, 1, 1)))
        rewards.append(lanes.step(np.ones((1, 6)))[1][0])
    np.testing.assert_allclose(rewards[0] - rewards[1], 0.1 * 6, rtol=1e-6)


def test_frames_are_drawn():
    one = esrl.make("envpool/CartPole-v1").make_one(render_mode="rgb_array")
    one.reset(seed=0)
    frame = one.render()
    assert frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("envpool/CartPol-v1", "envpool has no environment 'CartPol-v1'; did you mean CartPole-v1"),
        ("envpool/CartPole-v1?colour=red", "envpool/CartPole-v1.colour=red cannot be made: TypeError"),
        ("envpool/CartPole-v1?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        ("envpool/CartPole-v1?num_threads=0", "num_threads is 0, but must be a whole number of at least 1"),
        ("envpool/CartPole-v1?max_episode_steps=9&horizon=9", "are the same time limit; give one of them"),
        ("envpool/CartPole-v1?seed=9", "seed is set by esrl; leave it out"),
        ("envpool/TicTacToe-v1", "is for several players; esrl trains one policy in one lane"),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_package_is_one_sentence():
    env = esrl.make("envpool/Pendulum-v1")
    lanes = Playing(env, 2, 1, 1)
    lanes.reset(np.zeros((2, 1, 1)))
    with pytest.raises(EsrlError, match=r"^envpool/Pendulum-v1: step of its lanes raised RuntimeError: Expected shape"):
        lanes.step(np.zeros((2, 3)))
    assert lanes.lanes.failed and Playing(env, 2, 1, 1).lanes is not lanes.lanes


def test_it_is_listed_and_returns_are_counted():
    assert {f"envpool/{name}" for name in NAMES} <= set(names())
    env = esrl.make("envpool/CartPole-v1")
    keys = jnp.broadcast_to(jax.random.split(seed_key(0), 4).reshape(4, 1, 1), (4, 2, 1))
    ones = runner(env).episodes(lambda c, o, s, k: (jnp.ones(8, jnp.int32), s), None, keys, (), None)
    np.testing.assert_array_equal(ones.returns, ones.lengths)  # 1 for each live step
    np.testing.assert_array_equal(ones.lengths[:, 0], ones.lengths[:, 1])
    assert (ones.lengths > 0).all() and (ones.lengths < 20).all()


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains(agent):
    train_two_generations("envpool/CartPole-v1?max_episode_steps=20", agent)
