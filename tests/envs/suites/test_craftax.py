"""Craftax worlds step exactly as Craftax steps them, apart from its automatic reset and time limit.

Compiling Craftax takes long, so these tests share an environment and its compiled functions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import AGENTS, assert_same_episodes, train_two_generations

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.envs.checks.contract import check_contract
from esrl.envs.checks.environment import check_env
from esrl.envs.suites import craftax as adapter
from esrl.envs.suites._common import package

pytest.importorskip("craftax")

CLASSIC = "craftax/Craftax-Classic-Symbolic-AutoReset-v1"


@pytest.fixture(scope="module")
def classic():
    return esrl.make(f"{CLASSIC}?max_episode_steps=20")


@pytest.fixture(scope="module")
def one_step(classic):
    """Compiled `reset` and `step` of one lane."""
    return jax.jit(classic.reset), jax.jit(classic.step)


def test_a_hundred_random_episodes_are_craftaxs_own(classic):
    """Rewards and ends are those of `step` of the package's own environment, with its own time limit far away."""
    raw = package("craftax.craftax_env").make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
    params = raw.default_params

    def reset(key):
        observation, state = raw.reset(jax.random.key_data(key), params)
        return state, observation

    def step(state, action, key):
        observation, state, reward, done, _ = raw.step(jax.random.key_data(key), state, action, params)
        return state, observation, reward, done

    assert_same_episodes(classic, reset, step, 60)


def test_the_time_limit_is_no_termination(one_step, classic):
    """Craftax says `done` at its limit of 10000 steps; here the state goes on, until the player is dead."""
    assert esrl.make(CLASSIC).max_episode_steps == 10_000
    assert (classic.name, classic.max_episode_steps) == (f"{CLASSIC}?max_episode_steps=20", 20)
    reset, step = one_step
    state, _ = reset(seed_key(0))
    late = state.replace(timestep=jnp.asarray(9_999, state.timestep.dtype))
    assert not step(late, jnp.int32(0), seed_key(1))[3]
    assert classic.env.is_terminal(late.replace(timestep=late.timestep + 1), classic.env.default_params)
    dead = state.replace(player_health=jnp.asarray(0, state.player_health.dtype))
    assert step(dead, jnp.int32(0), seed_key(1))[3]


def test_worlds_differ_between_keys(one_step):
    reset, step = one_step
    maps = [np.asarray(reset(seed_key(seed))[0].map) for seed in range(3)]
    assert (maps[0] != maps[1]).any() and (maps[1] != maps[2]).any()
    state, observation = reset(seed_key(0))
    np.testing.assert_array_equal(observation, reset(seed_key(0))[1])
    after = [step(state, jnp.int32(0), seed_key(seed))[0].state_rng for seed in range(2)]
    assert (after[0] != after[1]).any()


def test_classic_is_sound(classic):
    check_env(classic, steps=20)


@pytest.mark.parametrize("agent", [AGENTS[0], *(pytest.param(agent, marks=pytest.mark.heavy) for agent in AGENTS[1:])])
def test_every_agent_trains(agent):
    train_two_generations(f"{CLASSIC}?max_episode_steps=20", agent)


def test_full_craftax_keeps_the_contract():
    env = esrl.make("craftax/Craftax-Symbolic-AutoReset-v1")
    assert (env.max_episode_steps, env.action_space.n, env.observation_space.shape) == (100_000, 43, (8268,))
    check_contract(env)


@pytest.mark.heavy
def test_full_craftax_is_sound():
    check_env(esrl.make("craftax/Craftax-Symbolic-AutoReset-v1?max_episode_steps=20"), steps=20)


@pytest.mark.heavy
def test_pixels_are_sound_and_render():
    env = esrl.make("craftax/Craftax-Classic-Pixels-v1?max_episode_steps=5")
    check_env(env, steps=5)
    picture = env.render(env.reset(seed_key(0))[0])
    assert env.observation_space.shape == (63, 63, 3) and picture.ndim == 3 and picture.shape[2] == 3


def test_textures_that_cannot_be_kept_are_said(monkeypatch):
    def make(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(package("craftax.craftax_env"), "make_craftax_env_from_name", make)
    with pytest.raises(EsrlError, match="its own folder, which cannot be written") as caught:
        esrl.make("craftax/Craftax-Pixels-v1")
    assert "\n" not in str(caught.value)


def test_options_are_parameters():
    env = esrl.make("craftax/Craftax-Classic-Symbolic-v1?zombie_health=1&always_diamond=false&max_episode_steps=30")
    assert (env.params.zombie_health, env.params.always_diamond, env.max_episode_steps) == (1, False, 30)
    assert esrl.make(env.name).params == env.params


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("craftax/Craftax-Symbolc-v1", "craftax has no environment 'Craftax-Symbolc-v1'; did you mean Craftax-Symb"),
        (f"{CLASSIC}?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        (f"{CLASSIC}?max_timesteps=9", "set the time limit as max_episode_steps, not as max_timesteps"),
        ("craftax/Craftax-Classic-Symbolic-v1?zombi_health=9", "no parameter 'zombi_health'; did you mean zombie_heal"),
        (
            "craftax/Craftax-Classic-Symbolic-v1?day_length=soon",
            "day_length is 'soon', but must be like its default, 3",
        ),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_it_is_listed_in_both_forms():
    listed = adapter.names()
    assert len(listed) == 8 and CLASSIC in listed and "craftax/Craftax-Pixels-v1" in listed
