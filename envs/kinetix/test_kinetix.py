"""Kinetix's levels step exactly as Kinetix steps them, apart from its time limit; a lane keeps only what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_laws import AGENTS, assert_same_episodes, random_actions, train_two_generations
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.envs.catalog import names_of
from esrl.envs.checks.contract import check_contract
from esrl.envs.checks.environment import check_env
from esrl.rollouts.runner import runner

pytest.importorskip("kinetix")
esrl_kinetix = pytest.importorskip("esrl_kinetix")

# Kinetix's physics calls jnp.clip by its older names
pytestmark = pytest.mark.filterwarnings("ignore:Passing arguments 'a', 'a_min' or 'a_max':DeprecationWarning")

PAPER = ["s/h1_thrust_over_ball", "m/h17_thrustcontrol_left", "l/hard_pinball"]
SMALL = f"kinetix/{PAPER[0]}"
SHORT = f"{SMALL}?max_episode_steps=10"


def package(env):
    """Kinetix's own public `reset(key)` and `step(state, action, key)` of the level, with its own time limit of 256."""
    from kinetix.environment import ActionType, EnvParams, ObservationType, make_kinetix_env, make_reset_fn_from_config

    name = env.name.partition("?")[0].removeprefix("kinetix/")
    params, static = EnvParams(), env.env.static_env_params
    config = {"train_level_mode": "list", "train_levels_list": [name]}
    fresh = make_reset_fn_from_config(config, params, static)
    kinds = ActionType.MULTI_DISCRETE, ObservationType.SYMBOLIC_FLAT
    raw = make_kinetix_env(*kinds, fresh, params, static, auto_reset=False)

    def reset(key):
        return raw.reset(jax.random.key_data(key), params)[::-1]

    def step(state, action, key):
        observation, state, reward, done, _ = raw.step(jax.random.key_data(key), state, action, params)
        return state, observation, reward, done

    return reset, step


def test_a_hundred_random_episodes_are_kinetixs_own(lenient):
    """But for roundings: with the level as a constant, the compiler orders some sums otherwise."""
    env = esrl.make(SMALL)
    assert_same_episodes(env, *package(env), 30, exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_whole_episodes_are_kinetixs_own(name, lenient):
    """Each step from Kinetix's own state, so that roundings do not add up, to the one before its time limit."""
    env = esrl.make(f"kinetix/{name}")
    reset, step = package(env)

    @jax.jit
    @jax.vmap
    def play(actions):
        def both(world, action):
            mine = env.step(esrl_kinetix.moving(world), action, seed_key(0))
            world, *own = step(world, action, seed_key(0))
            return world, (mine[1:], tuple(own))

        return jax.lax.scan(both, reset(seed_key(0))[0], actions)[1]

    lanes, steps = 8, env.max_episode_steps - 1
    flat = random_actions(env, 0, lanes * steps)
    mine, own = play(np.stack(flat).reshape(lanes, steps, -1))
    for x, y in zip(mine[:2], own[:2], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(mine[2], own[2])


def test_observations_and_states_are_kinetixs_own(lenient):
    """What a lane keeps is all that changes, but for what a step makes anew; 256 steps later Kinetix says done."""
    env = esrl.make(SMALL)
    reset, step = map(jax.jit, package(env))
    mine = jax.jit(env.step)
    (world, observation), (state, first) = reset(seed_key(0)), env.reset(seed_key(1))
    np.testing.assert_array_equal(first, observation)
    start = world
    idle = jnp.zeros(6, jnp.int32)
    for t in range(5):
        world, observation, *_ = step(world, idle.at[t].set(1), seed_key(t))
        state, seen, *_ = mine(state, idle.at[t].set(1), seed_key(t))
        np.testing.assert_allclose(seen, observation, rtol=1e-6, atol=1e-6)
    same = jax.tree.map(lambda a, b: bool((jnp.asarray(a) == jnp.asarray(b)).all()), start, world)
    changed = {jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(same) if not x}
    kept = {f".{part}.{field}" for part, fields in state.items() if part != "last_distance" for field in fields}
    anew = {leaf for leaf in changed if "_manifolds" in leaf} | {".timestep", ".last_distance"}
    assert ".polygon.position" in changed and changed <= kept | anew
    assert sum(x.nbytes for x in jax.tree.leaves(state)) < 400
    late, short = world.replace(timestep=jnp.int32(255)), world.replace(timestep=jnp.int32(254))
    assert bool(step(late, idle, seed_key(0))[3]) and not bool(step(short, idle, seed_key(0))[3])


def test_the_time_limit_is_no_termination():
    env = esrl.make(SMALL)
    assert env.max_episode_steps == 256
    short = esrl.make(SHORT)
    assert short.name == SHORT and esrl.make(short.name).max_episode_steps == 10
    noop = jnp.zeros((2, 6), jnp.int32)
    played = runner(short).episodes(lambda c, o, s, k: (noop, s), None, keys(2), (), None)
    assert (played.lengths == 10).all()


def keys(number):
    return jax.random.split(seed_key(0), number).reshape(number, 1, 1)


def test_a_level_is_sound():
    env = esrl.make(SHORT)
    assert env.fixed_start
    check_env(env)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(f"kinetix/{name}?max_episode_steps=10" for name in PAPER[1:]),
        f"{SHORT}&observation=symbolic_entity",
        f"{SHORT}&observation=pixels",
        f"{SHORT}&actions=discrete",
        f"{SHORT}&actions=continuous&dense_reward_scale=0.0",
    ],
)
def test_more_levels_are_sound(name):
    env = esrl.make(name)
    assert env.name == name
    check_env(env)


def test_spaces():
    env = esrl.make(SMALL)
    assert env.action_space == spaces.MultiDiscrete([3, 3, 3, 3, 2, 2], dtype=np.int32)
    assert env.observation_space.shape == (140,)
    assert esrl.make(SMALL, actions="discrete").action_space == spaces.Discrete(11)
    assert esrl.make(SMALL, actions="continuous").action_space.shape == (6,)
    entities = esrl.make(SMALL, observation="symbolic_entity")
    assert entities.observation_space["polygons"].shape == (5, 27)
    assert entities.observation_space["polygon_mask"].dtype == bool
    check_contract(entities)
    assert esrl.make(SMALL, observation="pixels").observation_space.shape == (125, 125, 3)


def test_levels_are_listed():
    listed = names_of("kinetix")
    assert {f"kinetix/{name}" for name in PAPER} <= set(listed)
    assert len(listed) == 74


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains(agent):
    train_two_generations(SHORT, agent)


@pytest.mark.slow
def test_a_level_can_be_drawn():
    env = esrl.make(SMALL)
    frame = env.render(env.reset(seed_key(0))[0])
    assert frame.shape == (500, 500, 3) and frame.dtype == np.uint8 and len(np.unique(frame)) > 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kinetix/l/hard_pinbal", "kinetix has no environment 'l/hard_pinbal'; did you mean l/hard_pinball"),
        (f"{SMALL}?colour=red", "colour is 'red', but options other than observation and actions are numbers"),
        (f"{SMALL}?colour=1", "kinetix/s/h1_thrust_over_ball.colour=1 cannot be made: TypeError"),
        (f"{SMALL}?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        (f"{SMALL}?max_timesteps=9", "set the time limit as max_episode_steps"),
        (f"{SMALL}?actions=multi", "actions is 'multi'; did you mean multi_discrete"),
        (f"{SMALL}?observation=3", "observation is 3; known: pixels, symbolic_entity, symbolic_flat"),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_a_jax_that_does_not_fit_is_said(monkeypatch):
    """In one sentence, with what Kinetix itself says that it needs."""
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    with pytest.raises(EsrlError, match=r"Kinetix \S+ needs jax<=0\.9\.0,>=0\.4\.37, but jax 0\.10\.2 is installed"):
        esrl.make(SMALL)
