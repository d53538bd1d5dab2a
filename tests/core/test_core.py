"""Counts, lanes and optional packages: what every room builds on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import Walk

from esrl import EsrlError
from esrl.core.extras import import_extra
from esrl.core.lanes import broadcast_lanes, reset_lanes, reset_worlds
from esrl.core.types import Count, count, count_add, count_sum


def test_counts_are_exact_beyond_32_bits():
    assert int(count((1 << 40) + 5)) == (1 << 40) + 5
    assert int(count_add(count(2**32 - 1), count(2))) == 2**32 + 1
    assert int(count_sum(jnp.full((1000, 7), 2**31 - 1, jnp.int32))) == 7000 * (2**31 - 1)
    assert isinstance(count_sum(jnp.zeros(3, jnp.int32)), Count)


def test_lanes_are_reset_where_they_are_told_to():
    values = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3)}
    fresh = {"a": jnp.array([7.0, 8.0]), "b": jnp.int32(9)}
    assert jax.tree.map(lambda x: x.shape, broadcast_lanes(fresh, 5)) == {"a": (5, 2), "b": (5,)}
    after = reset_lanes(values, fresh, jnp.array([False, True, False]))
    np.testing.assert_array_equal(after["a"], [[0, 1], [7, 8], [4, 5]])
    np.testing.assert_array_equal(after["b"], [0, 9, 2])


@pytest.mark.parametrize("lanes", [3, 40])
def test_every_lane_that_is_done_gets_a_world_of_its_own_key(lanes):
    """Also where more lanes are done than worlds are made at a time."""
    env, keys = Walk(), jax.random.split(jax.random.key(0), lanes)
    world = jax.vmap(env.reset)(jax.random.split(jax.random.key(1), lanes))
    done = jnp.arange(lanes) % 3 != 1
    _, observation = reset_worlds(env, world, done, keys)
    expected = jnp.where(done[:, None], jax.vmap(env.reset)(keys)[1], world[1])
    np.testing.assert_array_equal(observation, expected)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        EsrlError, match=r"a parade needs the package nothere; install it with: pip install 'esrl\[cli\]'"
    ):
        import_extra("nothere.inside", "cli", "a parade")
