"""Noise: variance, independence, contraction against the explicit sum, and the error that theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrl import EsrlError
from esrl.core.options import CHOICES
from esrl.core.types import seed_key
from esrl.perturbation import noise

MATRIX = noise.Leaf("w", (12, 7), (0,), "used by dot_general")
STACK = noise.Leaf("conv", (3, 2, 4, 5), (0, 1, 2), "used by conv_general_dilated")
BIAS = noise.Leaf("b", (9,), None, "not a matrix")
LEAVES = (MATRIX, STACK, BIAS)
KINDS = [
    ("normal", "float32"),
    ("normal", "bfloat16"),
    ("rademacher", "float32"),
    ("rademacher", "bfloat16"),
    ("rademacher", "int8"),
]


def explicit(space: noise.Noise, leaves: tuple[noise.Leaf, ...], eps: list) -> list[jax.Array]:
    zeros = [jnp.zeros(leaf.shape) for leaf in leaves]
    return space.perturb(zeros, eps, leaves, 1.0)


@pytest.mark.parametrize(("rank", "kind"), [*((r, KINDS[0]) for r in (1, 2, 3)), *((2, kind) for kind in KINDS[1:])])
def test_every_entry_has_unit_variance_whatever_the_rank(rank, kind):
    space = noise.low_rank(rank, None, *kind)
    leaves = space.plan(LEAVES)
    count = 20_000
    for full in explicit(space, leaves, space.sample(seed_key(1), leaves, jnp.arange(count))):
        entries = np.asarray(full).reshape(count, -1)
        # an entry's square has variance at most 8 (product of two normals), so its mean has error sqrt(8 / count)
        assert np.abs(entries.mean(0)).max() < 5 / np.sqrt(count)
        assert np.abs((entries**2).mean(0) - 1).max() < 5 * np.sqrt(8 / count)


def test_rank_of_a_perturbation_is_the_rank():
    for rank in (1, 2, 3):
        space = noise.low_rank(rank)
        leaves = space.plan((MATRIX,))
        full = explicit(space, leaves, space.sample(seed_key(0), leaves, jnp.arange(4)))[0]
        assert [int(np.linalg.matrix_rank(np.asarray(e), tol=1e-4)) for e in full] == [rank] * 4


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_contraction_is_the_explicit_sum_and_not_the_product_of_sums(rank, kind):
    space = noise.low_rank(rank, None, *kind) if rank else noise.dense(*kind)
    leaves = space.plan(LEAVES)
    eps = space.sample(seed_key(3), leaves, jnp.arange(16))
    weights = jax.random.normal(seed_key(4), (16,))
    wanted = [jnp.einsum("p,p...->...", weights, full) for full in explicit(space, leaves, eps)]
    assert {str(x.dtype) for x in jax.tree.leaves(eps)} == {kind[1]}
    for got, want in zip(space.weighted_sum(weights, eps, leaves), wanted, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    if leaves[0].rank:
        a, b = (x.astype(jnp.float32) for x in eps[0])
        wrong = jnp.einsum("p,prm->mr", weights, a) @ jnp.einsum("p,prn->rn", weights, b) / np.sqrt(leaves[0].rank)
        assert np.linalg.norm(wrong - wanted[0]) > 0.5 * np.linalg.norm(wanted[0])


@pytest.mark.parametrize("distribution", CHOICES["distribution"])
@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_error_of_the_estimate_on_a_linear_fitness_is_what_theory_says(rank, distribution):
    """E |<G, E> E - G|^2 / |G|^2 is mn + 1 for dense normal noise (Isserlis) and 2 (m + n + 1) / R more for rank R.

    For Rademacher noise it is mn - 1, and mn + 1 - 2 / R for rank R.
    """
    m, n, count = 12, 7, 40_000
    leaf = MATRIX._replace(rank=rank, row_axes=(0,))
    goal = jax.random.normal(seed_key(7), (m, n))
    eps = noise.sample(seed_key(8), (leaf,), jnp.arange(count), distribution)
    full = explicit(noise.dense(), (leaf,), eps)[0]
    fitness = jnp.einsum("mn,pmn->p", goal, full)
    errors = np.asarray(jnp.sum((fitness[:, None, None] * full - goal[None]) ** 2, axis=(1, 2)) / jnp.sum(goal**2))
    normal, plain = m * n + 1, distribution == "normal"
    theory = normal + (noise.excess_variance(m, n, rank, distribution) * normal if rank else 0 if plain else -2)
    standard_error = errors.std() / np.sqrt(count)
    assert abs(errors.mean() - theory) < 4 * standard_error
    if rank:
        assert np.isclose(theory, m * n + 1 + (2 * (m + n + 1) if plain else -2) / rank)
    estimate = noise.weighted_sum(fitness / count, eps, (leaf,))[0]
    assert np.linalg.norm(estimate - goal) < 2 * np.linalg.norm(goal) * np.sqrt(theory / count)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("rank", [0, 2])
def test_the_estimate_is_unbiased(rank, kind):
    """The mean of <G, E> E is G, entry by entry, within its standard error."""
    count, leaf = 10_000, MATRIX._replace(rank=rank)
    goal = jax.random.normal(seed_key(7), leaf.shape)
    full = explicit(noise.dense(), (leaf,), noise.sample(seed_key(9), (leaf,), jnp.arange(count), *kind))[0]
    estimates = np.asarray(jnp.einsum("mn,pmn->p", goal, full)[:, None, None] * full)
    errors = (estimates.mean(0) - goal) / (estimates.std(0) / np.sqrt(count))
    assert np.abs(errors).max() < 5 and 0.6 < np.sqrt((errors**2).mean()) < 1.4


def test_normal_float32_numbers_stay_as_they_were():
    """One draw from the key of each pair: what earlier versions drew, so that their runs can be repeated."""
    leaves = noise.low_rank(1).plan(LEAVES)
    a, b = noise.low_rank(1).sample(seed_key(5), leaves, jnp.arange(2))[0]
    flat = jax.random.normal(jax.random.fold_in(seed_key(5), 1), (sum(leaf.num_random for leaf in leaves),))
    np.testing.assert_array_equal(jnp.concatenate([a[1, 0], b[1, 0]]), flat[: 12 + 7])


def test_a_rademacher_number_costs_one_bit():
    space = noise.low_rank(1, None, "rademacher", "int8")
    leaves = space.plan(LEAVES)
    words = -(-sum(leaf.num_random for leaf in leaves) // 32)
    text = str(jax.make_jaxpr(lambda pairs: space.sample(seed_key(0), leaves, pairs))(jnp.arange(2)))
    assert f"shape=({words}, 1)" in text and "erf_inv" not in text
    drawn = np.concatenate([np.ravel(x) for x in jax.tree.leaves(space.sample(seed_key(0), leaves, jnp.arange(9)))])
    assert set(drawn.tolist()) == {-1, 1} and space.bytes_each == 1


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]], ids="-".join)
def test_noise_is_a_function_of_key_and_pair_alone(kind):
    space = noise.low_rank(2, None, *kind)
    leaves = space.plan(LEAVES)
    whole = space.sample(seed_key(5), leaves, jnp.arange(8))
    part = space.sample(seed_key(5), leaves, jnp.arange(8)[5:7])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(a[5:7], b)
    other = space.sample(jax.random.fold_in(seed_key(5), 1), leaves, jnp.arange(8))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
        same = np.mean(np.asarray(a) == np.asarray(b))
        assert same == 0 if kind[0] == "normal" else 0.2 < same < 0.8


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]], ids="-".join)
def test_pairs_are_independent_of_each_other(kind):
    space = noise.low_rank(1, None, *kind)
    leaves = space.plan(LEAVES)
    drawn = jax.tree.leaves(space.sample(seed_key(2), leaves, jnp.arange(4000)))
    eps = np.concatenate([np.asarray(x, np.float32).reshape(4000, -1) for x in drawn], 1)
    neighbors = (eps[:-1] * eps[1:]).mean(0)
    assert np.abs(neighbors).max() < 5 / np.sqrt(4000)


def test_a_matrix_no_larger_than_its_factors_gets_dense_noise_and_says_so():
    small = noise.Leaf("w", (3, 2), (0,), "used by dot_general")
    planned = noise.low_rank(2).plan((small, MATRIX))
    assert planned[0].rank == 0 and "no larger" in planned[0].reason
    assert planned[1].rank == 2 and planned[1].num_random == 2 * (12 + 7)


def test_thin_matrices_get_dense_noise_when_asked():
    thin, square = noise.Leaf("a", (256, 2), (0,), ""), noise.Leaf("b", (256, 256), (0,), "")
    assert [leaf.rank for leaf in noise.low_rank(1).plan((thin, square))] == [1, 1]
    planned = noise.low_rank(1, max_excess_variance=0.25).plan((thin, square))
    assert [leaf.rank for leaf in planned] == [0, 1] and "would add" in planned[0].reason
    signs = noise.low_rank(1, 1e-6, "rademacher").plan((thin, square))  # they add no variance that could be spared
    assert [leaf.rank for leaf in signs] == [1, 1] and noise.excess_variance(256, 2, 1, "rademacher") < 0


@pytest.mark.parametrize("rank", [0, -1, True])
def test_rank_must_be_a_whole_number_of_at_least_one(rank):
    with pytest.raises(EsrlError, match="rank is"):
        noise.low_rank(rank)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (("cauchy", "float32"), "distribution is 'cauchy'"),
        (("normal", "float16"), "dtype is 'float16'"),
        (("normal", "int8"), 'needs distribution "rademacher"'),
    ],
)
def test_noise_that_there_is_not_is_refused_in_one_sentence(kind, sentence):
    for make in (noise.dense, lambda *args: noise.low_rank(1, None, *args)):
        with pytest.raises(EsrlError, match=sentence) as caught:
            make(*kind)
        assert "\n" not in str(caught.value)
