"""Brax's and Gymnasium's functional environments: all agents train, and a hundred episodes are the packages' own."""

import jax
import jax.numpy as jnp
import pytest
from adapter_laws import AGENTS, assert_same_episodes, train_two_generations
from gymnasium.envs.phys2d.cartpole import CartPoleFunctional
from gymnasium.envs.phys2d.pendulum import PendulumFunctional

import esrl

FUNCTIONAL = {"phys2d/CartPole-v1": CartPoleFunctional, "phys2d/Pendulum-v0": PendulumFunctional}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("name", ["brax/inverted_pendulum", "gymnasium/phys2d/CartPole-v1"])
def test_every_agent_trains(name, agent):
    if name.startswith("brax/"):
        pytest.importorskip("brax")
    train_two_generations(f"{name}?max_episode_steps=20", agent)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_a_hundred_random_episodes_are_gymnasiums_own(name):
    env = esrl.make(f"gymnasium/{name}")
    raw = FUNCTIONAL[name]()
    params = raw.default_params

    def reset(key):
        state = raw.initial(jax.random.key_data(key), params)
        return state, raw.observation(state, jax.random.key_data(key), params)

    def step(state, action, key):
        rng = jax.random.key_data(key)
        after = raw.transition(state, action, rng, params)
        reward = raw.reward(state, action, after, rng, params)
        return after, raw.observation(after, rng, params), reward, raw.terminal(after, rng, params)

    assert_same_episodes(env, reset, step, min(env.max_episode_steps, 200))


def test_a_hundred_random_episodes_are_braxs_own():
    envs = pytest.importorskip("brax.envs")
    env = esrl.make("brax/inverted_pendulum")
    raw = envs.get_environment("inverted_pendulum", backend="spring")

    def reset(key):
        state = raw.reset(jax.random.key_data(key))
        return state, state.obs

    def step(state, action, key):
        state = raw.step(state, action)
        return state, state.obs, state.reward, jnp.asarray(state.done) > 0

    assert_same_episodes(env, reset, step, 100)
