"""Heads: actions of every space lie in it, the mode is where the output says, samples are as likely as it says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces

from esrl import EsrlError
from esrl.core.types import seed_key
from esrl.policies.heads import head
from esrl.policies.spaces import row, to_environment

SPACES = [
    spaces.Discrete(3),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([2, 5, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -7]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Box(-2.0, 0.5, (3,)),
    spaces.Box(np.array([-1, -np.inf, 0], np.float32), np.array([1, np.inf, np.inf], np.float32)),
    spaces.Box(-np.inf, np.inf, (2, 2)),
    spaces.Box(-3e38, 3e38, (1,)),
    spaces.Box(-1, 0.1, (2,), np.float16),
    spaces.Box(-0.3, 0.1, (2,), np.float64),
    spaces.Box(100.0, 200.0, ()),
    spaces.Box(-100, 100, (2,), np.int8),
    spaces.Box(0, 3, (), np.int64),
    spaces.Discrete(5, dtype=np.uint8),
    spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])),
    spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(-np.inf, np.inf, ()), spaces.Box(0, 1, (0,))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("squash", ["tanh", "clip"])
def test_actions_lie_in_their_space(space, squash):
    made = head(space, squash)
    keys = jax.random.split(seed_key(0), 64)
    outputs = 5 * jax.random.normal(seed_key(1), (64, made.size))
    log_std = jnp.zeros(made.gaussians) if made.gaussians else None
    samples = jax.vmap(lambda out, key: made.sample(out, log_std, key))(outputs, keys)
    modes = jax.vmap(made.mode)(outputs)
    for actions in (samples, modes):
        assert all(x.dtype.itemsize <= 4 for x in jax.tree.leaves(actions))
        actions = to_environment(space, actions)
        for i in range(64):
            action = row(space, actions, i)
            assert space.contains(action), action


def test_the_head_of_a_dict_is_the_product_of_its_parts():
    parts = {"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,)), "c": spaces.MultiBinary(2)}
    made, heads = head(spaces.Dict(parts)), [head(space) for space in parts.values()]
    assert made.size == sum(one.size for one in heads) and made.gaussians == 2
    out, log_std = jax.random.normal(seed_key(0), (7,)), jnp.array([0.3, -0.2])
    raw = made.raw_sample(out, log_std, seed_key(1))
    outs, stds = jnp.split(out, [3, 5]), [None, log_std, None]
    log_probs = [one.log_prob(o, s, r) for one, o, s, r in zip(heads, outs, stds, raw, strict=True)]
    np.testing.assert_allclose(made.log_prob(out, log_std, raw), sum(log_probs), rtol=1e-6)
    entropies = [one.entropy(o, s) for one, o, s in zip(heads, outs, stds, strict=True)]
    np.testing.assert_allclose(made.entropy(out, log_std), sum(entropies), rtol=1e-6)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_scores_are_derivatives(space):
    """In closed form, of the log probability and of the entropy."""
    made = head(space)
    out = 2 * jax.random.normal(seed_key(0), (made.size,))
    log_std = jax.random.normal(seed_key(1), (made.gaussians,))
    raw = made.raw_sample(out, log_std, seed_key(2))
    for scores, fn in (
        (made.score(out, log_std, raw), lambda o, s: made.log_prob(o, s, raw)),
        (made.entropy_score(out, log_std), made.entropy),
    ):
        for found, expected in zip(scores, jax.grad(fn, argnums=(0, 1))(out, log_std), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_masked_choice_has_no_score():
    made, out = head(spaces.Discrete(3)), jnp.array([0.3, -1e9, 0.1])
    for found in (made.score(out, None, jnp.array([0]))[0], made.entropy_score(out, None)[0]):
        assert found[1] == 0 and np.isfinite(found).all()


def test_mode_is_the_largest_output():
    assert head(spaces.Discrete(3)).mode(jnp.array([0.0, 2.0, 1.0])) == 1
    assert head(spaces.Discrete(3, start=5)).mode(jnp.array([0.0, 1.0, 2.0])) == 7
    several = head(spaces.MultiDiscrete([2, 3]))
    np.testing.assert_array_equal(several.mode(jnp.array([0.0, 1.0, 9.0, 0.0, 0.0])), [1, 0])
    grid = head(spaces.MultiDiscrete([[2, 2], [2, 2]]))
    np.testing.assert_array_equal(grid.mode(jnp.array([0.0, 1, 1, 0, 1, 0, 0, 1])), [[1, 0], [0, 1]])
    np.testing.assert_array_equal(head(spaces.MultiBinary(3)).mode(jnp.array([0.5, -0.5, 9.0])), [1, 0, 1])


@pytest.mark.parametrize("squash", ["tanh", "clip"])
def test_box_reaches_its_bounds_and_no_further(squash):
    low, high = np.array([-2.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32)
    mode = head(spaces.Box(low, high), squash).mode
    np.testing.assert_allclose(mode(jnp.full(2, 1e9)), high, rtol=1e-6)
    np.testing.assert_allclose(mode(jnp.full(2, -1e9)), low, rtol=1e-6)
    np.testing.assert_allclose(mode(jnp.zeros(2)), [-0.5, 5.0], atol=1e-6)


def test_open_sides_are_cut_off_at_most():
    space = spaces.Box(np.array([0, -np.inf], np.float32), np.array([np.inf, np.inf], np.float32))
    np.testing.assert_allclose(head(space).mode(jnp.array([-3.0, -3.0])), [0.0, -3.0])
    np.testing.assert_allclose(head(space).mode(jnp.array([30.0, 30.0])), [30.0, 30.0])


def test_samples_follow_the_output():
    keys = jax.random.split(seed_key(2), 4000)
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    drawn = jax.vmap(lambda key: head(spaces.Discrete(3)).sample(logits, None, key))(keys)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.1, 0.2, 0.7], atol=0.03)
    bits = jax.vmap(lambda key: head(spaces.MultiBinary(2)).sample(jnp.array([0.0, 2.0]), None, key))(keys)
    np.testing.assert_allclose(np.asarray(bits).mean(0), [0.5, 1 / (1 + np.exp(-2))], atol=0.03)
    box = head(spaces.Box(-np.inf, np.inf, (2,)))
    draws = np.asarray(jax.vmap(lambda key: box.sample(jnp.ones(2), jnp.log(jnp.array([0.5, 2.0])), key))(keys))
    np.testing.assert_allclose(draws.mean(0), 1.0, atol=0.12)
    np.testing.assert_allclose(draws.std(0), [0.5, 2.0], rtol=0.05)


def test_a_nested_sample_has_the_distribution_of_its_parts_and_they_are_independent():
    made = head(spaces.Tuple([spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,)), spaces.MultiBinary(1)]))
    out, log_std = jnp.array([0.0, np.log(3), 0.5, -1.0]), jnp.log(jnp.array([2.0]))
    keys = jax.random.split(seed_key(6), 4000)
    drawn = jax.vmap(lambda key: made.sample(out, log_std, key))(keys)
    choice, number, bit = (np.asarray(x, np.float64).ravel() for x in drawn)
    np.testing.assert_allclose([choice.mean(), bit.mean()], [0.75, 1 / (1 + np.exp(1))], atol=0.03)
    np.testing.assert_allclose([number.mean(), number.std()], [0.5, 2.0], atol=0.1)
    assert np.abs(np.corrcoef([choice, number, bit]) - np.eye(3)).max() < 0.06


def test_parts_of_a_sample_are_independent():
    several = head(spaces.MultiDiscrete([2, 2]))
    keys = jax.random.split(seed_key(3), 1000)
    drawn = np.asarray(jax.vmap(lambda key: several.sample(jnp.zeros(4), None, key))(keys))
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1


FINITE = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([[2], [3]]), spaces.MultiBinary(3)]


def choices(space):
    sizes = [2] * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else None
    sizes = sizes or ([int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.ravel().tolist())
    return jnp.asarray(list(itertools.product(*map(range, sizes))), jnp.int32)


@pytest.mark.parametrize("space", FINITE, ids=str)
def test_probabilities_sum_to_one_and_give_the_entropy(space):
    made = head(space)
    out = jax.random.normal(seed_key(4), (made.size,))
    logs = jax.vmap(lambda raw_action: made.log_prob(out, None, raw_action))(choices(space))
    np.testing.assert_allclose(jnp.sum(jnp.exp(logs)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(made.entropy(out, None), -jnp.sum(jnp.exp(logs) * logs), rtol=1e-5)
    best = made.log_prob(out, None, made.raw_mode(out).astype(jnp.int32))
    np.testing.assert_allclose(best, jnp.max(logs), rtol=1e-5)


def test_gaussian_densities_are_those_of_scipy():
    made = head(spaces.Box(-1.0, 1.0, (2, 2)))
    out, log_std, raw_action = jax.random.normal(seed_key(5), (3, 4))
    mean, deviation = np.asarray(out), np.exp(np.asarray(log_std))
    want = sum(scipy.stats.norm.logpdf(np.asarray(raw_action), mean, deviation))
    np.testing.assert_allclose(made.log_prob(out, log_std, raw_action), want, rtol=1e-5)
    np.testing.assert_allclose(made.entropy(out, log_std), sum(scipy.stats.norm.entropy(mean, deviation)), rtol=1e-5)


def test_an_impossible_choice_costs_no_entropy():
    made = head(spaces.Discrete(3))
    np.testing.assert_allclose(made.entropy(jnp.array([0.0, 0.0, -jnp.inf]), None), np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "squash", "words"),
    [
        (spaces.Text(3), "tanh", "cannot be used; use Box, Discrete"),
        (spaces.Dict(a=spaces.Text(2)), "tanh", "cannot be used"),
        (spaces.Dict({}), "tanh", "leaves nothing to choose"),
        (spaces.Box(0, 5000, (2,), np.int32), "tanh", "an entry of 5001 whole numbers"),
        (spaces.Discrete(3, start=2**40), "tanh", "has choices beyond 32 bits"),
        (spaces.Discrete(3), "sigmoid", 'must be "tanh" or "clip"'),
        (spaces.Box(-1, 1, (2,)), "sigmoid", 'must be "tanh" or "clip"'),
    ],
)
def test_other_spaces_are_refused(space, squash, words):
    with pytest.raises(EsrlError, match=words):
        head(space, squash)
