"""Shaping: laws that hold for every one, and each one's own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from esrl import EsrlError
from esrl.algorithms import shaping
from esrl.core.types import seed_key

PAIRED = {**{name: make() for name, make in shaping.SHAPINGS.items()}, "group4": shaping.group(4, "group")}


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("value", [0.1, -3.3e5, 0.0])
@pytest.mark.parametrize("signs", [1, 2])
def test_equal_fitness_gives_exactly_zero(name, value, signs):
    if name == "sign" and signs == 1:
        pytest.skip("needs pairs")
    assert not np.any(np.asarray(PAIRED[name](jnp.full((8, signs), value))))


@pytest.mark.parametrize("name", [n for n in PAIRED if n not in ("group4", "group")])
def test_permuting_members_permutes_weights(name):
    fitness = jax.random.normal(seed_key(0), (16, 2))
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_allclose(PAIRED[name](fitness)[order], PAIRED[name](fitness[order]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_ranks_worst_and_stays_finite(name, bad):
    fitness = jnp.array([[3.0, 1.0], [2.0, bad], [0.5, 5.0], [4.0, -1.0]])
    weights = np.asarray(PAIRED[name](fitness))
    assert np.isfinite(weights).all()
    if name != "sign":
        rivals = weights[1] if name == "group" else weights  # a group by default is one pair
        assert weights[1, 1] <= rivals.min() + 1e-6
    assert not np.any(np.asarray(PAIRED[name](jnp.full((4, 2), bad))))


def test_centered_rank_averages_ties_as_scipy_does():
    fitness = jnp.array([[1.0, 2.0], [2.0, 5.0], [2.0, -1.0]])
    ranks = stats.rankdata(np.asarray(fitness).ravel(), method="average") - 1
    np.testing.assert_allclose(np.asarray(shaping.centered_rank()(fitness)).ravel(), ranks / 5 - 0.5, atol=1e-7)


def test_z_score_group_sign_and_leave_one_out_by_their_definitions():
    f = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    given = jnp.asarray(f)
    np.testing.assert_allclose(shaping.z_score()(given), (f - f.mean()) / f.std(), rtol=1e-4)
    groups = f.reshape(2, 8)
    centered = groups - groups.mean(1, keepdims=True)
    own, overall = groups.std(1, keepdims=True), np.sqrt((centered**2).mean())
    np.testing.assert_allclose(shaping.group(4, "group")(given), (centered / own).reshape(8, 2), rtol=1e-4)
    np.testing.assert_allclose(shaping.group(4)(given), (centered / overall).reshape(8, 2), rtol=1e-4)
    np.testing.assert_allclose(shaping.sign()(given)[:, 0] * 2, np.sign(f[:, 0] - f[:, 1]))
    flat = f.reshape(16, 1)
    others = (flat.sum() - flat) / 15
    np.testing.assert_allclose(shaping.leave_one_out()(jnp.asarray(flat)), flat - others, rtol=1e-4, atol=1e-6)


def test_bad_input_is_said():
    with pytest.raises(EsrlError, match="did you mean centered_rank"):
        shaping.by_name("centered_ranks")
    with pytest.raises(EsrlError, match="does not divide"):
        shaping.group(3)(jnp.zeros((8, 2)))
    with pytest.raises(EsrlError, match="antithetic"):
        shaping.sign()(jnp.zeros((8, 1)))


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("signs", [1, 2])
def test_weights_of_present_pairs_are_those_of_a_generation_that_has_no_others(name, signs):
    if name == "sign" and signs == 1:
        pytest.skip("needs pairs")
    fitness = np.random.default_rng(3).normal(size=(16, signs)).astype(np.float32)
    fitness[5, 0] = np.nan
    present = np.arange(16) % 8 < 4  # whole groups of four
    fitness[~present] = np.nan
    weights = np.asarray(shaping.of_present(PAIRED[name], jnp.asarray(fitness), jnp.asarray(present)))
    alone = np.asarray(PAIRED[name](jnp.asarray(fitness[present])))
    np.testing.assert_allclose(weights[present], alone, rtol=1e-5, atol=1e-6)
    assert not weights[~present].any()


def test_a_shaping_of_ones_own_gives_no_weight_to_a_pair_that_is_missing():
    own = shaping.by_name(lambda fitness: fitness - 2.0)
    fitness, present = jnp.array([[1.0, 5.0], [7.0, 7.0]]), jnp.array([True, False])
    assert shaping.of_present(own, fitness, present).tolist() == [[-1.0, 3.0], [0.0, 0.0]]
