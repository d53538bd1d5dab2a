"""gymnax environments step exactly as gymnax steps them, apart from its automatic reset and time limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import AGENTS, assert_same_episodes, train_two_generations

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.envs.checks.environment import check_env
from esrl.envs.registry import names
from esrl.envs.suites import gymnax as adapter
from esrl.envs.suites._common import as_before
from esrl.rollouts.runner import runner

gymnax = pytest.importorskip("gymnax")

# gymnax asks for 64-bit integers, and puts numbers of one type into arrays of another
pytestmark = [
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64"),
    pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning"),
]

CLASSIC = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"]


def own_episode(name, seed, env):
    """States, observations, actions, step keys, rewards and ends of gymnax's own `reset` and `step` to its `done`."""
    raw, params = gymnax.make(name)
    observation, state = raw.reset(jax.random.key_data(seed_key(seed)), params)
    for t in range(env.max_episode_steps):
        key, action = jax.random.fold_in(seed_key(seed), t), jnp.asarray(env.action_space.sample())
        after = raw.step(jax.random.key_data(key), state, action, params)
        end = any(bool(x) for x in after[3:-1])
        yield state, observation, action, key, float(after[2]), end
        if end:
            return
        observation, state = after[:2]


@pytest.mark.parametrize("name", CLASSIC)
def test_episodes_are_gymnaxs_own(name, lenient):
    """With the same keys and actions, and each step from gymnax's own state, so that roundings do not add up."""
    env = esrl.make(f"gymnax/{name}")
    step = jax.jit(env.step)
    env.action_space.seed(0)
    for seed in range(3):
        mine = jax.jit(env.reset)(seed_key(seed))[1]
        steps = list(own_episode(name, seed, env))
        for t, (state, observation, action, key, reward, end) in enumerate(steps):
            np.testing.assert_allclose(mine, observation, rtol=1e-5, atol=1e-5)
            # gymnax's step splits its key in two and steps with the first
            first = jax.random.split(jax.random.key_data(key))[0]
            _, mine, my_reward, terminated = step(state, action, jax.random.wrap_key_data(first, impl="threefry2x32"))
            np.testing.assert_allclose(my_reward, reward, rtol=1e-5)
            # gymnax's end is also the time limit
            assert bool(terminated) == end or (t + 1 == env.max_episode_steps and end)
        assert end or len(steps) == env.max_episode_steps


def test_the_time_limit_is_no_termination():
    """An episode of Pendulum has the time limit's length, and stepping goes on after it."""
    env = esrl.make("gymnax/Pendulum-v1")
    assert env.max_episode_steps == 200
    played = runner(env).episodes(lambda c, o, s, k: (jnp.zeros((4, 1)), s), None, keys(4), (), None)
    assert (played.lengths == 200).all()
    state, _ = env.reset(seed_key(0))
    state = state.replace(time=jnp.asarray(199, state.time.dtype))
    assert not env.step(state, jnp.zeros(1), seed_key(0))[3]
    short = esrl.make("gymnax/Pendulum-v1?max_episode_steps=7")
    assert short.name == "gymnax/Pendulum-v1?max_episode_steps=7" and esrl.make(short.name).max_episode_steps == 7


def keys(number):
    return jax.random.split(seed_key(0), number).reshape(number, 1, 1)


@pytest.mark.parametrize("name", [*CLASSIC, "Catch-bsuite", "DiscountingChain-bsuite", "BernoulliBandit-misc"])
def test_environments_are_sound(name):
    check_env(esrl.make(f"gymnax/{name}"), steps=20)


def test_options_are_parameters_or_arguments():
    heavy = esrl.make("gymnax/CartPole-v1?masscart=5.0")
    assert (heavy.params.masscart, heavy.name) == (5.0, "gymnax/CartPole-v1?masscart=5.0")
    small = esrl.make("gymnax/DeepSea-bsuite", size=5)
    assert small.observation_space.shape == (5, 5)


def test_both_forms_of_a_step_are_taken(lenient):
    """gymnax 1.x tells truncation from termination: six values, of which the fourth is termination."""
    raw, params = gymnax.make("CartPole-v1")

    class SixValues:
        def __getattr__(self, name):
            return getattr(raw, name)

        def step_env(self, *args):
            return *raw.step_env(*args)[:4], jnp.bool_(True), {}

    env = esrl.make("gymnax/CartPole-v1")
    state, _ = env.reset(seed_key(0))
    expected = env.step(state, jnp.int32(1), seed_key(1))
    taken = adapter.GymnaxEnv("six", SixValues(), params, 500, 500).step(state, jnp.int32(1), seed_key(1))
    for mine, other in zip(jax.tree.leaves(taken), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gymnax/CartPol-v1", "gymnax has no environment 'CartPol-v1'; did you mean CartPole-v1"),
        ("gymnax/CartPole-v1?colour=red", "gymnax/CartPole-v1.colour=red cannot be made: TypeError"),
        ("gymnax/CartPole-v1?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        ("gymnax/CartPole-v1?max_steps_in_episode=9", "set the time limit as max_episode_steps"),
        ("gymnax/SimpleBandit-bsuite", "cannot be made: "),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_it_trains_and_is_listed():
    assert {f"gymnax/{name}" for name in CLASSIC} <= set(names()["gymnax"])
    agent = esrl.eggroll("gymnax/CartPole-v1", esrl.mlp(()), population=16)
    played = agent.rollout(agent.init(seed_key(0)))
    np.testing.assert_array_equal(played.returns, played.lengths)  # 1 for each live step
    assert (played.lengths > 0).all() and (played.lengths <= 500).all()


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains(agent):
    train_two_generations("gymnax/CartPole-v1?max_episode_steps=20", agent)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Breakout-MinAtar"])
def test_a_hundred_random_episodes_are_gymnaxs_own(name):
    env = esrl.make(f"gymnax/{name}")
    raw, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=10**6)
    like = jax.eval_shape(env.reset, seed_key(0))[0]

    def reset(key):
        observation, state = raw.reset_env(jax.random.key_data(key), params)
        return as_before(state, like), observation

    def step(state, action, key):
        observation, state, reward, done, *_ = raw.step_env(jax.random.key_data(key), state, action, params)
        return as_before(state, like), observation, reward, done

    assert_same_episodes(env, reset, step, min(env.max_episode_steps, 300))
