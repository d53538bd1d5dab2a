"""Playground environments step exactly as Playground steps them, apart from its automatic reset and time limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import AGENTS, assert_same_episodes, train_two_generations
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.envs.checks.environment import check_env
from esrl.envs.suites.playground import names
from esrl.rollouts.runner import runner

pytest.importorskip("mujoco_playground")

NAME = "playground/PendulumSwingup"


def own(**overrides):
    """Playground's own environment, simulated by JAX as esrl's is."""
    from mujoco_playground import registry

    return registry.load("PendulumSwingup", config_overrides={"impl": "jax", **overrides})


@pytest.fixture(scope="module")
def env():
    return esrl.make(f"{NAME}?max_episode_steps=5")


@pytest.mark.parametrize("agent", [AGENTS[0], *(pytest.param(agent, marks=pytest.mark.heavy) for agent in AGENTS[1:])])
def test_every_agent_trains(agent):
    """A control step is shortened to one step of the simulation."""
    train_two_generations(f"{NAME}?max_episode_steps=20&ctrl_dt=0.01", agent)


def test_a_hundred_random_episodes_are_playgrounds_own():
    env, raw = esrl.make(NAME), own()
    reset = lambda key: ((state := raw.reset(jax.random.key_data(key))), state.obs)  # noqa: E731

    def step(state, action, key):
        state = raw.step(state, action)
        return state, state.obs, state.reward, state.done > 0

    assert_same_episodes(env, reset, step, 20)


@pytest.mark.heavy
def test_repeats_and_the_time_limit_are_those_of_playgrounds_wrapper(lenient):
    """Its training wrapper repeats an action, sums the rewards, and calls an episode of 6 simulated steps truncated."""
    from brax.envs.wrappers.training import EpisodeWrapper

    env, wrapped = esrl.make(f"{NAME}?action_repeat=2&max_episode_steps=3"), EpisodeWrapper(own(), 6, 2)
    assert env.name == f"{NAME}?max_episode_steps=3&action_repeat=2"
    assert esrl.make(f"{NAME}?action_repeat=3").max_episode_steps == 334
    state, _ = jax.jit(env.reset)(seed_key(0))
    other = jax.jit(wrapped.reset)(jax.random.key_data(seed_key(0)))
    step, own_step = jax.jit(env.step), jax.jit(wrapped.step)
    for t in range(3):
        action = jnp.full(1, 1.0 - t)
        state, seen, reward, terminated = step(state, action, seed_key(1))
        other = own_step(other, action)
        np.testing.assert_allclose(seen, other.obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reward, other.reward, rtol=1e-5)
        assert not terminated and bool(other.info["truncation"]) == bool(other.done) == (t == 2)


def test_the_time_limit_is_no_termination(env):
    keys = jax.random.split(seed_key(0), 4).reshape(4, 1, 1)
    played = runner(env).episodes(lambda c, o, s, k: (jnp.zeros((4, 1)), s), None, keys, (), None)
    assert (played.lengths == 5).all()
    assert (env.max_episode_steps, esrl.make(NAME).max_episode_steps) == (5, 1000)


def test_an_environment_is_sound(env):
    check_env(env, steps=10)
    assert env.action_space == spaces.Box(-1, 1, (1,), np.float32)


def test_resets_are_random_by_key(env):
    first = jax.jit(jax.vmap(env.reset))(jax.random.split(seed_key(0), 8))[1]
    assert len(np.unique(first, axis=0)) == 8


def test_names_are_the_control_suites():
    from mujoco_playground import dm_control_suite

    assert {f"playground/{name}" for name in dm_control_suite.ALL_ENVS} <= set(names())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("playground/Cartpole", "playground has no environment 'Cartpole'; did you mean Cartpole"),
        ("playground/CartpoleBalance?action_repeats=1", "has no entry 'action_repeats'; did you mean action_repeat"),
        ("playground/CartpoleBalance?ctrl_dt=slow", "cannot be made: TypeError: Could not override field 'ctrl_dt'"),
        (f"{NAME}?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        ("playground/CartpoleBalance?episode_length=9", "set the time limit as max_episode_steps"),
        ("playground/CartpoleBalance?impl=warp", "impl=warp needs a CUDA device"),
        ("playground/Go1Handstand", "models come from the MuJoCo Menagerie, which Playground downloads"),
    ],
)
def test_what_does_not_fit_is_said(name, words, monkeypatch, tmp_path):
    from mujoco_playground import registry

    monkeypatch.setattr(registry.mjx_env, "MENAGERIE_PATH", tmp_path / "none")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)
