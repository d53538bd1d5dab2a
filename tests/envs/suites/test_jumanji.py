"""Jumanji's environments step exactly as Jumanji steps them, apart from its time limits; masks are a policy's."""

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
from esrl.envs.suites.jumanji import names
from esrl.rollouts.runner import runner

jumanji = pytest.importorskip("jumanji")

# Jumanji asks for 64-bit numbers, and puts numbers of one type into arrays of another
pytestmark = [
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning"),
    pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning"),
]

PAPER = ["Game2048-v1", "Knapsack-v1", "Snake-v1"]


def keys(number):
    return jax.random.split(seed_key(0), number)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_trains(agent):
    train_two_generations("jumanji/Snake-v1?num_rows=5&num_cols=5&max_episode_steps=20", agent)


@pytest.mark.parametrize("name", PAPER)
def test_a_hundred_random_episodes_are_jumanjis_own(name):
    raw = jumanji.make(name)

    def reset(key):
        state, timestep = raw.reset(jax.random.key_data(key))
        return state, timestep.observation

    def step(state, action, key):
        state, timestep = raw.step(state, action)
        return state, timestep.observation, timestep.reward, timestep.discount == 0

    assert_same_episodes(esrl.make(f"jumanji/{name}"), reset, step, 60)


@pytest.mark.parametrize(("name", "shape"), [("Snake-v1", ()), ("Minesweeper-v0", (10, 10)), ("Cleaner-v0", (3, 4))])
def test_allowed_actions_give_jumanjis_own_observations(name, shape, lenient):
    """One choice, a joint choice that is flattened, and one for each agent; the mask is Jumanji's, as a vector."""
    env, raw = esrl.make(f"jumanji/{name}"), jumanji.make(name)

    @jax.jit
    def play(key):
        (state, seen), (own, timestep) = env.reset(key), raw.reset(jax.random.key_data(key))

        def body(carry, key):
            state, seen, own, observation, live = carry
            same = [jnp.all(seen["action_mask"] == observation.action_mask.ravel())]
            same += [jnp.all(seen[x] == getattr(observation, x)) for x in seen if x != "action_mask"]
            choices = jnp.log(seen["action_mask"].reshape(shape if name == "Cleaner-v0" else -1).astype(float))
            action = jax.random.categorical(key, choices)
            state, seen, reward, ended = env.step(state, action, key)
            pair = jnp.stack(jnp.divmod(action, 10)) if name == "Minesweeper-v0" else action
            own, timestep = raw.step(own, pair)
            same += [reward == timestep.reward, ended == (timestep.discount == 0)]
            good = jnp.all(jnp.stack(same)) | ~live
            return (state, seen, own, timestep.observation, live & ~ended), (good, live)

        start = (state, seen, own, timestep.observation, jnp.bool_(True))
        return jax.lax.scan(body, start, jax.random.split(key, 40))[1]

    good, live = jax.vmap(play)(keys(8))
    assert good.all() and live[:, 1].any()


def test_a_policy_takes_only_allowed_actions():
    """An action of Knapsack that does not fit ends the episode, so with a mask episodes end with a full knapsack."""
    env = esrl.make("jumanji/Knapsack-v1")
    agent = esrl.eggroll("jumanji/Knapsack-v1", esrl.mlp(()), population=16)
    played = agent.rollout(agent.init(seed_key(0)))
    assert (played.lengths > 10).all() and (played.lengths <= 50).all()
    assert env.observation_space["action_mask"] == spaces.MultiBinary(50)


@pytest.mark.parametrize(
    "name",
    ["Game2048-v1", "Knapsack-v1", "Snake-v1", "Minesweeper-v0", "TSP-v1", "LevelBasedForaging-v0"],
)
def test_environments_are_sound(name):
    check_env(esrl.make(f"jumanji/{name}"), steps=20)


@pytest.mark.parametrize(
    ("name", "size", "mask"),
    [
        ("Tetris-v0", spaces.Discrete(40), 40),  # joint
        ("Connector-v3", spaces.MultiDiscrete([5] * 10), 50),  # for each agent
        ("MultiCVRP-v0", spaces.MultiDiscrete([21, 21]), 42),
    ],
)
def test_masks_have_an_entry_for_each_logit(name, size, mask):
    env = esrl.make(f"jumanji/{name}")
    assert (env.action_space, env.observation_space["action_mask"]) == (size, spaces.MultiBinary(mask))


def test_the_time_limit_is_no_termination(lenient):
    """Jumanji ends SlidingTilePuzzle with a discount of 0 at its time limit; esrl truncates there, and steps on."""
    env = esrl.make("jumanji/SlidingTilePuzzle-v0?max_episode_steps=5")
    raw = jumanji.make("SlidingTilePuzzle-v0", time_limit=5)
    assert env.name == "jumanji/SlidingTilePuzzle-v0?max_episode_steps=5" and esrl.make(env.name).max_episode_steps == 5
    assert esrl.make("jumanji/SlidingTilePuzzle-v0").max_episode_steps == 500
    (state, seen), (own, _) = env.reset(seed_key(0)), raw.reset(jax.random.key_data(seed_key(0)))
    assert env.observation_space["step_count"] == spaces.Box(0, 5, (), np.float32)
    step, own_step = jax.jit(env.step), jax.jit(raw.step)
    for t in range(5):
        state, seen, _, terminated = step(state, jnp.int32(t % 4), seed_key(0))
        own, timestep = own_step(own, jnp.int32(t % 4))
        assert not terminated and bool(timestep.last()) == (t == 4)
    assert (float(seen["step_count"]), float(timestep.discount)) == (5.0, 0.0)
    actor = lambda context, seen, carry, key: (jnp.zeros(4, jnp.int32), carry)  # noqa: E731
    played = runner(env).episodes(actor, None, keys(4).reshape(4, 1, 1), (), None)
    assert (played.lengths == 5).all()


def test_rewards_of_agents_are_summed_and_know_the_time_limit(lenient):
    """A target of SearchAndRescue is worth less the later it is found, and nothing at the time limit."""
    env = esrl.make("jumanji/SearchAndRescue-v0?max_episode_steps=20")
    raw = jumanji.make("SearchAndRescue-v0", time_limit=20)
    found = jnp.ones((2, raw.generator.num_targets), bool)
    for step in (0, 7, 19):
        own = raw._reward_fn(found, step, raw.time_limit)
        np.testing.assert_array_equal(env.env._reward_fn(found, step, env.env.time_limit), own)
    forage = esrl.make("jumanji/LevelBasedForaging-v0")
    state, _ = jax.eval_shape(forage.reset, seed_key(0))
    assert jax.eval_shape(forage.step, state, jnp.zeros(2, jnp.int32), seed_key(0))[2].shape == ()


def test_resets_are_random_by_key():
    for name in PAPER:
        env = esrl.make(f"jumanji/{name}")
        first = jax.jit(jax.vmap(env.reset))(keys(8))[1]
        assert any(np.ptp(np.asarray(x, np.float32), axis=0).any() for x in jax.tree.leaves(first))


def test_names_are_listed():
    listed = names()
    assert {f"jumanji/{name}" for name in PAPER} <= set(listed) and "jumanji/Sokoban-v0" not in listed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jumanji/Snake-v2", "jumanji has no environment 'Snake-v2'; did you mean Snake-v1"),
        ("jumanji/Snake-v1?colour=red", "jumanji/Snake-v1.colour=red cannot be made: TypeError"),
        ("jumanji/Snake-v1?max_episode_steps=0", "max_episode_steps is 0, but must be a whole number of at least 1"),
        ("jumanji/Snake-v1?time_limit=9", "set the time limit as max_episode_steps"),
        ("jumanji/Sokoban-v0", "Jumanji downloads its levels"),
    ],
)
def test_what_does_not_fit_is_said(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)
