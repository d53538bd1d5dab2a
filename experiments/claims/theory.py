"""Closed forms that experiments/claims/run.py holds its measurements against. Norms are Frobenius', vectors are flat.

E is a perturbation with entries of mean 0 and variance 1, d = mn its size: dense, or A B^T / sqrt(R). All is for normal
entries unless a function takes the distribution. Rank 0 is dense.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import integrate, special

from esrl.perturbation import noise


def error(m: int, n: int, rank: int, distribution: str = "normal") -> float:
    """Squared error of `<G, E> E` for a linear fitness, in units of |G|^2.

    mn + 1 dense, 2 (m + n + 1) / R more at rank R, and mn + 1 - 2 / R with Rademacher factors (mn - 1 dense).
    """
    if not rank:
        return m * n + (-1 if distribution == "rademacher" else 1)
    return (m * n + 1) * (1 + noise.excess_variance(m, n, rank, distribution))


def network_error(leaves: list[noise.Leaf]) -> float:
    """The same for several leaves at once with normal noise, each with the same share of |G|^2.

    A leaf's estimate is `(sum_k <G_k, E_k>) E_l`: the other leaves' terms add their size, so that a leaf's excess is
    relative to the whole network's size.
    """
    excess = [2 * (sum(leaf.matrix_shape) + 1) / leaf.rank if leaf.rank else 0.0 for leaf in leaves]
    return sum(math.prod(leaf.shape) for leaf in leaves) + 1 + sum(excess) / len(leaves)


def cosine(m: int, n: int, directions: int) -> float:
    """Mean cosine between the dense estimate from so many directions and G: its square is Beta(P/2, (mn - 1)/2)."""
    a, b = directions / 2, (m * n - 1) / 2
    return float(np.exp(special.betaln(a + 0.5, b) - special.betaln(a, b)))


def sine_mean(g: np.ndarray, sigma: float, rank: int) -> np.ndarray:
    """Mean of the estimate at W = 0 for the fitness `sin <G, W>`: `E[sin(sigma <G, E>) E] / sigma`, [m, n].

    The characteristic function `E exp(i <T, E>)` is det(M)^(-R/2), M = 1 + T^T T / R (the normal B is integrated out
    given A, then A), and its gradient in T gives `T M^-1 det(M)^(-R/2)`; dense noise has exp(-|T|^2 / 2) and M = 1.
    """
    value, inverse = _characteristic(sigma * g, rank)
    return value * g @ inverse


def sine_error(g: np.ndarray, sigma: float, rank: int) -> float:
    """Variance (the sum over entries) of the estimate of one antithetic pair for the fitness `sin <G, W>` at 0.

    `E |E|^2 sin^2(sigma <G, E>) = (mn - E |E|^2 cos <T, E>) / 2`, T = 2 sigma G, and the last expectation is the
    negative Laplacian of the characteristic function: with K = T M^-1 and t = tr M^-1, `det(M)^(-R/2)` times
    `m t - |K|^2 - (|K|^2 + t tr(K T^T)) / R`.
    """
    t = 2 * sigma * g
    value, inverse = _characteristic(t, rank)
    k, trace = t @ inverse, np.trace(inverse)
    inner = len(g) * trace - np.sum(k**2)
    if rank:
        inner -= (np.sum(k**2) + trace * np.sum(k * t)) / rank
    second = (g.size - value * inner) / 2 / sigma**2
    return float(second - np.sum(sine_mean(g, sigma, rank) ** 2))


def _characteristic(t: np.ndarray, rank: int) -> tuple[float, np.ndarray]:
    """E exp(i <T, E>), and M^-1."""
    if not rank:
        return math.exp(-np.sum(t**2) / 2), np.eye(t.shape[1])
    inside = np.eye(t.shape[1]) + t.T @ t / rank
    return float(np.linalg.det(inside) ** (-rank / 2)), np.linalg.inv(inside)


def fourth_spectral_moment(m: int, n: int, pairs: int, rank: int) -> float:
    """E tr (S^T S)^2 of `S = sum_p w_p E_p / sqrt(P)` with weights of +1 or -1.

    P (P - 1) of the P^2 pairings are `mn (m + n + 1)`, whatever E's law; the other P are E tr (E^T E)^2, which at
    rank R is `(n (n + 1) m R (m + R + 1) + n m R (m R + 2)) / R^2` (Wishart moments).
    """
    plain = m * n * (m + n + 1)
    own: float = plain
    if rank:
        own = (n * (n + 1) * m * rank * (m + rank + 1) + n * m * rank * (m * rank + 2)) / rank**2
    return (own + (pairs - 1) * plain) / pairs


def top_singular_value(m: int, n: int) -> float:
    """Mean of the largest singular value of an m x n standard normal matrix, by Tracy and Widom's law (order 1)."""
    root = math.sqrt(m - 1) + math.sqrt(n)
    scale = root * (1 / math.sqrt(m - 1) + 1 / math.sqrt(n)) ** (1 / 3)
    return math.sqrt(root**2 - 1.2065335745820 * scale)


def marchenko_pastur(x: np.ndarray, m: int, n: int) -> np.ndarray:
    """Share of singular values of an m x n matrix (m >= n) of variance 1 below x, in the limit of large m and n."""
    low, high = (math.sqrt(m) - math.sqrt(n)) ** 2, (math.sqrt(m) + math.sqrt(n)) ** 2
    grid = np.linspace(math.sqrt(low), math.sqrt(high), 4001)
    density = np.sqrt(np.clip((high - grid**2) * (grid**2 - low), 0, None)) / (math.pi * n * np.maximum(grid, 1e-9))
    cumulative = integrate.cumulative_trapezoid(density, grid, initial=0)
    return np.interp(x, grid, cumulative / cumulative[-1])


def size_moments(m: int, n: int, rank: int, distribution: str = "normal") -> tuple[float, float]:
    """Of q = |E|^2, whose mean is mn: its variance, and E[(q - mn)^2 q]; dense and rank 1.

    Raises:
      ValueError: another rank.
    """
    size = m * n
    if distribution == "rademacher" and rank < 2:
        return 0.0, 0.0
    if not rank:
        return 2.0 * size, 8.0 * size + 2.0 * size**2
    if rank > 1:
        raise ValueError("the third moment is there for dense noise and rank 1")
    second, third = size * (m + 2) * (n + 2), size * (m + 2) * (n + 2) * (m + 4) * (n + 4)
    return float(second - size**2), float(third - 2 * size * second + size**3)


def antithetic_error(square: float, m: int, n: int, rank: int, evaluations: int, sigma: float, noise: float) -> float:
    """Squared error of the estimate from N/2 antithetic pairs, for a quadratic fitness with noise of its own.

    `2 |G|^2 error / N + noise^2 mn / (sigma^2 N)`: what is even in E cancels.

    Args:
      square: |G|^2.
      m, n, rank: of the matrix and its noise.
      evaluations: N. sigma: of the perturbations. noise: the standard deviation of each evaluation's own noise.
    """
    return (2 * square * error(m, n, rank) + noise**2 * m * n / sigma**2) / evaluations


def leave_one_out_error(
    square: float, m: int, n: int, rank: int, evaluations: int, sigma: float, noise: float, even: float
) -> float:
    """The same from N directions, each less the mean of the others, for the fitness `<G, W> + even |W|^2` at W = 0.

    With h = <G, E> + even sigma (q - mn) + noise / sigma and q = |E|^2, symmetry leaves `(E[h^2 q] + Var(h) mn / (N-1)
    - |G|^2 + |G|^2 / (N-1)) / N`, and in E[h^2 q] and Var(h) no mixed terms.
    """
    size = m * n
    variance, third = size_moments(m, n, rank)
    own = square * (error(m, n, rank) + 1) + (even * sigma) ** 2 * third + noise**2 * size / sigma**2
    of_h = square + (even * sigma) ** 2 * variance + noise**2 / sigma**2
    return (own + of_h * size / (evaluations - 1) - square + square / (evaluations - 1)) / evaluations


def tail_mean(threshold: float, rank: int) -> float:
    """E[x; x > threshold] of an entry x of E: the slope of a smoothed step. phi(t) dense, t K_1(t) / pi at rank 1.

    At rank R, sqrt(R) x has the density `|s|^v K_v(|s|) / (sqrt(pi) 2^v Gamma(R/2))`, v = (R - 1) / 2.
    """
    if not rank:
        return math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    v = (rank - 1) / 2
    scale = math.sqrt(math.pi) * 2**v * special.gamma(rank / 2) * math.sqrt(rank)
    start = threshold * math.sqrt(rank)
    return integrate.quad(lambda s: s * s**v * special.kv(v, s), start, start + 60)[0] / scale
