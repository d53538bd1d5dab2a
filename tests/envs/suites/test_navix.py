"""Navix environments step exactly as Navix steps them, apart from its automatic reset and time limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import AGENTS, assert_same_episodes, episodes, random_actions, train_two_generations

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.envs.checks.contract import check_contract
from esrl.envs.checks.environment import check_env
from esrl.envs.suites import navix as adapter
from esrl.rollouts.runner import runner

navix = pytest.importorskip("navix")

PAPER = ["Navix-DoorKey-8x8-v0", "Navix-Dynamic-Obstacles-6x6-Random-v0", "Navix-FourRooms-v0"]
SMALL = ["Navix-Empty-Random-5x5-v0", "Navix-GoToDoor-5x5-v0"]


def keys(number, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(seed_key(seed), i))(jnp.arange(number, dtype=jnp.uint32))


def own(name, **options):
    """Navix's own `reset` and `step` (which counts its own time, and would reset by itself at the step after)."""
    raw = navix.make(name, **options)

    def reset(key):
        timestep = raw.reset(jax.random.key_data(key))
        return timestep, timestep.observation

    def step(timestep, action, key):
        timestep = raw.step(timestep, action)
        return timestep, timestep.observation, timestep.reward, timestep.is_termination()

    return raw, reset, step


@pytest.mark.parametrize("name", [*PAPER, "Navix-LavaGapS5-v0"])
def test_a_hundred_random_episodes_are_navixs_own(name):
    env = esrl.make(f"navix/{name}")
    raw, reset, step = own(name)
    assert env.max_episode_steps == raw.max_steps == 100  # as `navix.make(name)` has it
    assert_same_episodes(env, reset, step, env.max_episode_steps)


def test_episodes_end_and_pay_as_navixs_do():
    """What the law compares is no row of zeros: random episodes hit obstacles and reach goals."""
    env = esrl.make("navix/Navix-Dynamic-Obstacles-6x6-Random-v0")
    actions = jnp.asarray(np.reshape(random_actions(env, 0, 100 * 100), (100, 100)))
    rewards, ends, live = episodes(env.reset, env.step, actions, keys(100, seed=7))
    assert ends.any(axis=1).sum() > 10 and rewards.sum() >= 1
    assert live.all(axis=1).sum() < 100


def test_the_time_limit_is_navixs_and_no_termination(lenient):
    """At the sixth step Navix's own step says truncation where esrl's runner cuts off, and termination nowhere."""
    env = esrl.make("navix/Navix-Empty-5x5-v0?max_episode_steps=6")
    assert (env.max_episode_steps, esrl.make(env.name).max_episode_steps) == (6, 6)
    played = runner(env).episodes(
        lambda c, o, s, k: (jnp.zeros(4, jnp.int32), s), None, keys(4).reshape(4, 1, 1), (), None
    )
    assert (played.lengths == 6).all()
    _, reset, step = own("Navix-Empty-5x5-v0", max_steps=6)
    mine, (theirs, _) = env.reset(seed_key(3))[0], reset(seed_key(3))
    take, theirs_take = jax.jit(env.step), jax.jit(step)
    for t in range(9):
        mine, _, _, terminated = take(mine, jnp.int32(0), seed_key(t))
        if t < 6:
            theirs = theirs_take(theirs, jnp.int32(0), seed_key(t))[0]
            assert bool(theirs.is_truncation()) == (t == 5)
        assert not terminated  # esrl's goes on after the limit


def test_the_last_step_may_terminate(lenient):
    """At the time limit itself, reaching the goal is a termination: forward, forward, right, forward, forward."""
    env = esrl.make("navix/Navix-Empty-5x5-v0?max_episode_steps=5&penality_coeff=0.5")
    state, _ = env.reset(seed_key(0))
    step = jax.jit(env.step)
    for action in (2, 2, 1, 2, 2):
        state, _, reward, terminated = step(state, jnp.int32(action), seed_key(0))
    assert terminated and float(reward) == 0.5  # 1, less 0.5 times all of the time limit


@pytest.mark.parametrize(
    "observation", ["symbolic_first_person", "categorical_first_person", "rgb", "rgb_first_person"]
)
def test_observations_are_navixs_own(observation, lenient):
    """Also where a picture of the grid is needed, which the state here leaves out; walls differ between episodes."""
    name = "Navix-SimpleCrossingS9N3-v0"
    env = esrl.make(f"navix/{name}?observation={observation}")
    raw = navix.make(name, observation_fn=getattr(navix.observations, observation))
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    own_reset, own_step = jax.jit(raw.reset), jax.jit(raw._step)
    for seed in range(3):
        state, seen = reset(seed_key(seed))
        timestep = own_reset(jax.random.key_data(seed_key(seed)))
        np.testing.assert_array_equal(seen, timestep.observation)
        for action in (2, 1, 2):
            state, seen, _, _ = step(state, jnp.int32(action), seed_key(0))
            timestep = own_step(timestep, jnp.int32(action))
            np.testing.assert_array_equal(seen, timestep.observation)
        assert env.observation_space.contains(np.asarray(seen))


def test_a_lane_carries_no_picture(lenient):
    env = esrl.make("navix/Navix-FourRooms-v0")
    state = jax.eval_shape(env.reset, seed_key(0))[0]
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) < 2000
    assert env.render(env.reset(seed_key(0))[0]).shape == (152, 152, 3)


@pytest.mark.parametrize("name", [PAPER[1], *SMALL])
def test_environments_are_sound(name):
    check_env(esrl.make(f"navix/{name}"), steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(navix.registry()))
def test_every_environment_keeps_the_contract(name):
    check_contract(esrl.make(f"navix/{name}"))


def test_worlds_differ_between_keys(lenient):
    """Keys, doors and obstacles stand elsewhere in another episode, and obstacles move differently."""
    for name in PAPER:
        env = esrl.make(f"navix/{name}")
        seen = np.asarray(jax.jit(jax.vmap(env.reset))(keys(8))[1]).reshape(8, -1)
        assert len(np.unique(seen, axis=0)) > 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("navix/Navix-DoorKey-8x8", "navix has no environment 'Navix-DoorKey-8x8'; did you mean Navix-DoorKey-8x8-v0"),
        (
            "navix/Navix-Empty-5x5-v0?max_episode_steps=0",
            "max_episode_steps is 0, but must be a whole number of at least 1",
        ),
        ("navix/Navix-Empty-5x5-v0?max_steps=9", "set the time limit as max_episode_steps, not as max_steps"),
        ("navix/Navix-DoorKey-5x5-v0?observation=rbg", "there is no observation 'rbg'; did you mean rgb"),
        ("navix/Navix-DoorKey-5x5-v0?colour=3", "cannot be made: TypeError: .*unexpected keyword argument 'colour'"),
        ("navix/Navix-DoorKey-5x5-v0?reward_fn=free", "reward_fn is 'free', but options of Navix .* are numbers"),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_it_is_listed_under_its_registered_names():
    assert adapter.names() == sorted(f"navix/{name}" for name in navix.registry())
    made = esrl.make("navix/Navix-FourRooms-v0?observation=rgb&max_episode_steps=30")
    assert made.name == "navix/Navix-FourRooms-v0?max_episode_steps=30&observation=rgb"
    assert esrl.make(made.name).observation_space == made.observation_space


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains(agent):
    train_two_generations("navix/Navix-Empty-Random-5x5-v0?max_episode_steps=20", agent)
