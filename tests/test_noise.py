"""Noise: variance, independence, contraction against the explicit sum, and the error that theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrl import EsrlError, noise
from esrl.types import seed_key

MATRIX = noise.Leaf("w", (12, 7), (0,), "used by dot_general")
STACK = noise.Leaf("conv", (3, 2, 4, 5), (0, 1, 2), "used by conv_general_dilated")
BIAS = noise.Leaf("b", (9,), None, "not a matrix")
LEAVES = (MATRIX, STACK, BIAS)


def explicit(space: noise.Noise, leaves: tuple[noise.Leaf, ...], eps: list) -> list[jax.Array]:
    zeros = [jnp.zeros(leaf.shape) for leaf in leaves]
    return space.perturb(zeros, eps, leaves, 1.0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_entry_has_unit_variance_whatever_the_rank(rank):
    space = noise.low_rank(rank)
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


@pytest.mark.parametrize(
    "space", [noise.dense(), noise.low_rank(1), noise.low_rank(3)], ids=["dense", "rank1", "rank3"]
)
def test_contraction_is_the_explicit_sum_and_not_the_product_of_sums(space):
    leaves = space.plan(LEAVES)
    eps = space.sample(seed_key(3), leaves, jnp.arange(16))
    weights = jax.random.normal(seed_key(4), (16,))
    wanted = [jnp.einsum("p,p...->...", weights, full) for full in explicit(space, leaves, eps)]
    for got, want in zip(space.contract(weights, eps, leaves), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    if leaves[0].rank:
        a, b = eps[0].a, eps[0].b
        wrong = jnp.einsum("p,prm->mr", weights, a) @ jnp.einsum("p,prn->rn", weights, b) / np.sqrt(leaves[0].rank)
        assert np.linalg.norm(wrong - wanted[0]) > 0.5 * np.linalg.norm(wanted[0])


@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_error_of_the_estimate_on_a_linear_fitness_is_what_theory_says(rank):
    """E |<G, E> E - G|^2 / |G|^2 is mn + 1 for dense noise (Isserlis), and 2 (m + n + 1) / R more for rank R."""
    m, n, count = 12, 7, 40_000
    leaf = MATRIX._replace(rank=rank, rows=(0,))
    goal = jax.random.normal(seed_key(7), (m, n))
    full = explicit(noise.dense(), (leaf,), noise.sample(seed_key(8), (leaf,), jnp.arange(count)))[0]
    fitness = jnp.einsum("mn,pmn->p", goal, full)
    errors = np.asarray(jnp.sum((fitness[:, None, None] * full - goal[None]) ** 2, axis=(1, 2)) / jnp.sum(goal**2))
    theory = m * n + 1 + (2 * (m + n + 1) / rank if rank else 0)
    standard_error = errors.std() / np.sqrt(count)
    assert abs(errors.mean() - theory) < 4 * standard_error
    assert np.isclose(noise.excess_variance(m, n), 2 * (m + n + 1) / (m * n + 1))
    eps = noise.sample(seed_key(8), (leaf,), jnp.arange(count))
    estimate = noise.contract(fitness / count, eps, (leaf,))[0]
    assert np.linalg.norm(estimate - goal) < 2 * np.linalg.norm(goal) * np.sqrt(theory / count)


def test_noise_is_a_function_of_key_and_pair_alone():
    space = noise.low_rank(2)
    leaves = space.plan(LEAVES)
    whole = space.sample(seed_key(5), leaves, jnp.arange(8))
    part = space.sample(seed_key(5), leaves, jnp.arange(8)[5:7])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(a[5:7], b)
    other = space.sample(jax.random.fold_in(seed_key(5), 1), leaves, jnp.arange(8))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
        assert not np.any(np.asarray(a) == np.asarray(b))


def test_pairs_are_independent_of_each_other():
    space = noise.low_rank(1)
    leaves = space.plan(LEAVES)
    drawn = jax.tree.leaves(space.sample(seed_key(2), leaves, jnp.arange(4000)))
    eps = np.concatenate([np.asarray(x).reshape(4000, -1) for x in drawn], 1)
    neighbours = (eps[:-1] * eps[1:]).mean(0)
    assert np.abs(neighbours).max() < 5 / np.sqrt(4000)


def test_a_matrix_no_larger_than_its_factors_gets_dense_noise_and_says_so():
    small = noise.Leaf("w", (3, 2), (0,), "used by dot_general")
    planned = noise.low_rank(2).plan((small, MATRIX))
    assert planned[0].rank == 0 and "no larger" in planned[0].why
    assert planned[1].rank == 2 and planned[1].floats == 2 * (12 + 7)


def test_thin_matrices_get_dense_noise_when_asked():
    thin, square = noise.Leaf("a", (256, 2), (0,), ""), noise.Leaf("b", (256, 256), (0,), "")
    assert [leaf.rank for leaf in noise.low_rank(1).plan((thin, square))] == [1, 1]
    planned = noise.low_rank(1, thin=0.25).plan((thin, square))
    assert [leaf.rank for leaf in planned] == [0, 1] and "thin" in planned[0].why


@pytest.mark.parametrize("rank", [0, -1, True])
def test_rank_must_be_a_whole_number_of_at_least_one(rank):
    with pytest.raises(EsrlError, match="rank is"):
        noise.low_rank(rank)
