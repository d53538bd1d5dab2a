"""Forms in which people bring an environment: each is taken as what it means, or refused in one sentence."""

import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TimeLimit

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key


class Own(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, gain=1.0, render_mode=None):
        self.gain, self.render_mode = gain, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), self.gain, False, False, {}


class OnDevice:
    observation_space = spaces.Box(-5, 5, (4,))
    action_space = spaces.Discrete(3)
    max_episode_steps = 6

    def __init__(self, gain=1.0):
        self.gain = gain

    def reset(self, key):
        state = jax.random.uniform(key, (4,))
        return state, state

    def step(self, state, action, key):
        return state, state, self.gain * jnp.sum(state), jnp.bool_(False)


def stacked(n=4):
    return FlattenObservation(FrameStackObservation(gymnasium.make("CartPole-v1"), n))


class Maker:
    def __call__(self):
        return Own()


def unrecorded():
    return NotRecorded(gymnasium.make("CartPole-v1"))


class NotRecorded(gymnasium.Wrapper):
    pass


class Pretends(Own):
    """Says a spec that makes something else."""

    def __init__(self):
        super().__init__()
        self.spec = gymnasium.spec("CartPole-v1")


@pytest.mark.parametrize(
    ("env", "options", "steps", "entries"),
    [
        (stacked, {}, 500, 16),
        (stacked, {"n": 2}, 500, 8),
        (functools.partial(stacked, 3), {"max_episode_steps": 9}, 9, 12),
        (lambda: gymnasium.make("CartPole-v1"), {}, 500, 4),
        (lambda: TimeLimit(TimeLimit(Own(), 30), 20), {}, 20, 2),
        (lambda **options: gymnasium.make("CartPole-v1", **options), {"max_episode_steps": 9}, 9, 4),
        (Own, {}, 1000, 2),
        (Maker(), {}, 1000, 2),
        (lambda: OnDevice(), {}, 6, 4),
        (gymnasium.spec("CartPole-v1"), {}, 500, 4),
        (gymnasium.spec("CartPole-v1"), {"max_episode_steps": 9}, 9, 4),
        (gymnasium.make("CartPole-v1", max_episode_steps=9, sutton_barto_reward=True), {}, 9, 4),
        (gymnasium.make("CartPole-v1", render_mode="rgb_array"), {}, 500, 4),
        (stacked(2), {}, 500, 8),
        (stacked(2), {"max_episode_steps": 9}, 9, 8),
        (stacked(2).spec, {}, 500, 8),
    ],
)
def test_what_makes_an_environment_is_taken(env, options, steps, entries):
    made = esrl.make(env, **options)
    assert made.max_episode_steps == steps and made.observation_space.shape == (entries,)


def test_each_lane_has_its_own():
    made = []

    def make_env():
        made.append(Own())
        return made[-1]

    env = esrl.make(make_env)
    made.clear()
    env.make_lanes((3,), True)
    assert len(set(map(id, made))) == 3
    one = Own()
    with pytest.raises(EsrlError, match="returned one environment twice; let every call make a new one"):
        esrl.make(lambda: one)


def test_options_of_a_spec_stay():
    env = esrl.make(gymnasium.make("CartPole-v1", sutton_barto_reward=True, render_mode="rgb_array"))
    assert env.name == "gymnasium/CartPole-v1?sutton_barto_reward=True"
    frame = esrl.make(stacked).make_one(render_mode="rgb_array")
    frame.reset(seed=0)
    assert frame.render().shape[-1] == 3


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (None, "the environment is None; give a name, a class, or a function that makes it"),
        (Own(), "Own is one Gymnasium environment; give its class or its id, .* or a function that makes it"),
        (unrecorded(), "NotRecorded is one Gymnasium environment"),
        (gymnasium.make_vec("CartPole-v1", 2), "is a batch of environments, and esrl makes its lanes itself"),
        (gymnasium.vector.VectorEnv, "is a batch of environments"),
        (lambda: None, "returned None; let it return the environment"),
        (lambda: 1 / 0, "cannot be constructed with {}: ZeroDivisionError"),
        (lambda size: Own(), "does not take these options {}: missing a required argument: 'size'"),
    ],
)
def test_what_cannot_be_taken_is_said(env, words):
    with pytest.raises(EsrlError, match=words):
        esrl.make(env)


def test_an_object_that_its_spec_does_not_make_is_refused():
    env = gymnasium.make("CartPole-v1")
    cut = gymnasium.wrappers.TransformObservation(env, lambda x: x[:2], spaces.Box(-1, 1, (2,)))
    assert esrl.make(cut).observation_space.shape == (2,)
    with pytest.raises(EsrlError, match="is one Gymnasium environment"):
        esrl.make(Pretends())
