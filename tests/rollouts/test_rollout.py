"""Streams of episodes: more pairs than slots, in any number of slots, with the results of all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from probes import Walk

import esrl
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.policies import running_statistics as moment
from esrl.rollouts.runner import runner

TINY = esrl.mlp((8,), "tanh")


class Lottery:
    """Each episode ends after a number of steps drawn at its reset, most soon; each step earns clock plus action."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(2)
    max_episode_steps = 20

    def reset(self, key):
        left = jnp.minimum(jax.random.geometric(key, 0.2), 60).astype(jnp.int32)
        state = {"left": left, "time": jnp.int32(0), "key": key, "nothing": jnp.zeros((0, 3)), "none": None}
        return state, self.see(state)

    def see(self, state):
        return jnp.stack([state["left"], state["time"]]).astype(jnp.float32)

    def step(self, state, action, key):
        reward = (state["time"] + action.astype(jnp.int32)).astype(jnp.float32)
        state = {**state, "left": state["left"] - 1, "time": state["time"] + 1}
        return state, self.see(state), reward, state["left"] <= 0


def play(slots, pairs=50, signs=2, episodes=3):
    shapes = moment.init(jax.ShapeDtypeStruct((2,), jnp.float32), True)

    def draw(ids):
        each = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(seed_key(0), i), signs * episodes))(ids)
        return ids, each.reshape(-1, signs, episodes)

    def act(context, observations, carry, keys):
        offset, ids = context
        lanes = observations.shape[0] // ids.shape[0]
        return (jnp.repeat(ids, lanes) + offset) % 2, carry

    run = jax.jit(lambda: runner(Lottery()).stream(act, jnp.uint32(1), draw, sharding.iota(pairs), slots, (), shapes))
    return run()


def test_slots_change_nothing_but_how_many_steps_are_run():
    whole = play(50)
    assert whole.returns.shape == whole.lengths.shape == (50, 2, 3) and whole.steps.shape == (50,)
    assert int(whole.lengths.max()) == 20  # cut by the horizon
    for slots in (1, 2, 3, 7, 17, 49):
        played = play(slots)
        for name in ("returns", "shaped", "lengths"):
            np.testing.assert_array_equal(getattr(played, name), getattr(whole, name))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), played.sums, whole.sums)
        assert np.all(np.asarray(played.steps) >= np.asarray(played.lengths).max(axis=(1, 2)))
        assert int(played.steps.sum()) < int(whole.steps.sum())


def test_a_slot_is_given_on_as_soon_as_enough_of_them_are_free():
    """With one slot nobody waits for anyone: a pair's steps are those of its own longest episode."""
    played = play(1)
    np.testing.assert_array_equal(played.steps, np.asarray(played.lengths).max(axis=(1, 2)))
    whole, few = play(50, episodes=1), play(10, episodes=1)
    idle = [1 - float(x.lengths.sum()) / (2 * int(x.steps.sum())) for x in (whole, few)]
    assert idle[1] < idle[0] - 0.2


def test_no_world_is_stepped_that_was_not_reset():
    class Strict(Lottery):
        def step(self, state, action, key):
            state, seen, reward, over = super().step(state, action, key)
            real = jnp.any(jax.random.key_data(state["key"]) != 0)  # zeros are what nobody has reset
            return state, seen, jnp.where(real, reward, jnp.nan), over

    def draw(ids):
        return (), jax.vmap(lambda i: jax.random.fold_in(seed_key(0), i))(ids)[:, None, None]

    def act(context, observations, carry, keys):
        return jnp.ones(observations.shape[0], jnp.int32), carry

    with jax.debug_nans(True):
        for slots in (3, 17, 33):
            played = runner(Strict()).stream(act, (), draw, sharding.iota(40), slots, (), None)
            assert np.all(np.isfinite(played.returns))


def test_chunks_need_not_divide_the_pairs():
    def after(chunk):
        agent = esrl.eggroll(Walk(), TINY, population=26, chunk_pairs=chunk, mesh=sharding.one_device())
        return agent.step(agent.init(seed_key(1)))[0].params

    for chunk in (4, 5, 12):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), after(chunk), after(13))


@pytest.mark.parametrize("size", [4, 5, 11, 64])
def test_chunks_of_a_sum_are_filled_with_zeros_that_do_not_count(size):
    def fn(scale, xs):
        ids, weights = xs
        return ids * scale, jnp.sum(weights * (1 + ids.astype(jnp.float32)))

    ids, weights = jnp.arange(11, dtype=jnp.uint32), jnp.linspace(1.0, 2.0, 11)
    mesh = sharding.one_device()
    rows, total = sharding.map_chunks(fn, jnp.uint32(3), (ids, weights), size, mesh)
    np.testing.assert_array_equal(rows, ids * 3)
    np.testing.assert_allclose(total, jnp.sum(weights * (1 + ids.astype(jnp.float32))), rtol=1e-6)
