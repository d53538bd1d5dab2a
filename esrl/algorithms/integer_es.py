"""EGGROLL in integers: int8 weights that move by one step when a test says so. No float weight exists anywhere.

A generation is `rollout`, then `update`:

    y_i = x W + s ((((x A) >> 4) B^T) >> k)     every member i = (pair p, sign s); A, B int8 of standard deviation 16,
                                                k = sigma_shift + log2(sqrt(R)): sigma is 2^-sigma_shift, and 16 is 1
    f_p = sign(r_(p,+) - r_(p,-))               fitness "sign": which member of the pair was better, -1, 0 or 1
        or round(8 (r_(p,+) - r_(p,-)) / spread)    fitness "z_score", within -63 .. 63
    S   = sum_p f_p A_p B_p^T                   in int32, exact: neither chunks nor devices change it
    W   = clip(W + sign(S) [|S| > t], -127, 127),   t = z(quantile) 16^2 sqrt(R sum_p f_p^2)

t is the test of EGGROLL's integer models (arXiv 2511.16652): if the signs of f were chance, S would be nearly normal
with the standard deviation that stands beside z, and a fraction `quantile` of the weights would move. So `quantile`
takes the place of a learning rate; it decays as quantile / (1 + quantile_decay generation). With momentum_shift = m the
test is on a running sum, which forgets 2^-m of itself in each generation (as Bop's average of gradients does for binary
networks, arXiv 1906.02107), and so is what stands under the root:

    S <- S - (S >> m) + sum_p f_p A_p B_p^T,    q <- (1 - 2^-m)^2 q + sum_p f_p^2,    t = z(quantile) 16^2 sqrt(R q)

What differs from the source, beside the network (`esrl.policies.integer_networks`):

* random numbers are sums of bytes, not rounded normal draws (`esrl.core.integers.draw`); a table is an option;
* one of the two shifts of the correction is taken between its products, so that wider layers fit int32;
* the z-score is of the pair's difference over the mean absolute difference times 1.25, in fixed point, where the source
  divides by a standard deviation;
* a large part of a small matrix' noise may be dense, as in `esrl.eggroll`;
* the source decays the quantile by halving over epochs; here it decays harmonically over generations;
* the trained policy may act by a running average of its weights, kept as int16 (8 more bits);
* the source tests each generation's sum by itself; the running sum is an option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from esrl.algorithms.agent import Metrics
from esrl.algorithms.es import Experience, summary, world_keys
from esrl.algorithms.shaping import finite
from esrl.core import sharding
from esrl.core.brief import state_text
from esrl.core.integers import MOST, bits_of, root, saturated, shifted
from esrl.core.types import Array, Count, Key, PyTree, count_add, count_sum
from esrl.perturbation import integer_noise
from esrl.perturbation.noise import Leaf
from esrl.policies import integer_statistics
from esrl.policies.integer_statistics import IntegerMoments, IntegerSums
from esrl.policies.policy import Policy
from esrl.policies.running_statistics import AnySums
from esrl.rollouts.types import Runner

SCORE_BITS, SCORE_MOST = 3, 63  # of a z-score: 8 is 1, and 63 almost 8
SIGNS = (1, -1)
Z_BITS = 8  # of the threshold's z
_LARGEST_Z = 5 << Z_BITS
_AVERAGE_BITS = 8  # that an average has more than a weight


class IntegerESState(NamedTuple):
    """What the next generation needs. Checkpoints know these fields by their names.

    Attributes:
      params: the unperturbed weights, int8.
      average: int16, 256 times their running average, by which the agent acts; None without averaging.
      votes: int32, the running sum S of each parameter, in the order of leaves; None without momentum.
      chance: int32, q, the running sum of squared votes; None without momentum.
      moments: statistics of observations, or None without normalization.
      table: int8 [T], random numbers, or None where they are drawn anew.
      key: the run key, which never changes. generation: uint32, generations done.
      env_steps: live environment steps so far. padded_steps: steps of lanes that were done, beside them.
    """

    params: PyTree
    average: PyTree | None
    votes: list[Array] | None
    chance: Array | None
    moments: IntegerMoments | None
    table: Array | None
    key: Key
    generation: Array
    env_steps: Count
    padded_steps: Count

    def __repr__(self) -> str:
        return state_text(self)


@dataclass(frozen=True, eq=False)
class IntegerES:
    """A configured integer EGGROLL: functions and sizes that stay fixed over a run, no arrays.

    Attributes:
      policy: the network bound to the environment. runner: plays its episodes.
      leaves: how each parameter is perturbed.
      forward: `forward(params, factors, signs [S], observations, carries) -> (outputs, carries)` of every member.
      score: `score(fitness [P, 2], present [P] or None) -> f [P] int32`. most: the largest |f|.
      thresholds: int32, the generation from which on z is one 256th larger, for each 256th from `first` on.
      first: z at the start, in 256ths.
      averaging: the shift of the average, 0 for none: it moves by 2^-averaging of what it is away.
      momentum: the shift of the running sum of votes, 0 for none: it forgets 2^-momentum of itself.
      reuse: generations in a row that draw the same noise. group: pairs in a row that play the same worlds.
      pairs: P. episodes: E. chunk, update_chunk: pairs that play, and that are summed, at once on each device.
      pair_bytes: memory of one pair, by what it is for. mesh: the devices.
    """

    policy: Policy
    runner: Runner
    leaves: tuple[Leaf, ...]
    forward: Callable[..., Any]
    score: Callable[..., Array]
    most: int
    thresholds: np.ndarray
    first: int
    averaging: int
    momentum: int
    reuse: int
    group: int
    pairs: int
    episodes: int
    chunk: int
    update_chunk: int
    pair_bytes: dict[str, int]
    mesh: Mesh

    @property
    def signs(self) -> tuple[int, ...]:
        """Of a pair's members."""
        return SIGNS

    def act(self, context: PyTree, observations: PyTree, carries: PyTree, keys: Key) -> tuple[PyTree, PyTree]:
        """One decision of every member in all its lanes."""
        (params, moments), factors = context
        seen = jax.vmap(lambda x: integer_statistics.quantized(moments, x, self.policy.normalizable))(observations)
        outputs, carries = self.forward(params, factors, jnp.array(SIGNS, jnp.int32), seen, carries)
        return jax.vmap(self.policy.action)(outputs, keys), carries


def noise_key(es: IntegerES, state: IntegerESState) -> Key:
    """The key of this generation's noise, which `rollout` and `update` both draw from."""
    return jax.random.fold_in(_generation_key(state, state.generation // es.reuse), 0)


def _generation_key(state: IntegerESState, generation: Array) -> Key:
    return jax.random.fold_in(state.key, generation + 1)  # number 0 of the run key started the parameters


def rollout(es: IntegerES, state: IntegerESState) -> Experience:
    """Plays one generation: every member of the population, on all devices, `chunk` pairs at once on each."""

    def part(state: IntegerESState, pairs: Array) -> tuple[tuple[Array | None, ...], PyTree]:
        rows = play(es, state, pairs, es.chunk)
        return rows[:-1], rows[-1]

    rows, sums = sharding.map_devices(part, state, sharding.iota(es.pairs), es.mesh)
    fitness, halves, returns, lengths, nonfinite, steps = rows
    return Experience(fitness, halves, returns, lengths, nonfinite, steps, sums)


def play(es: IntegerES, state: IntegerESState, pairs: Array, slots: int) -> tuple[Any, ...]:
    """Plays the pairs with these numbers [C], so many at once: the fields of an `Experience` of C pairs, in order.

    Of a state it takes the weights, the moments, the table, the key and the generation alone.
    """
    key, worlds = noise_key(es, state), jax.random.fold_in(_generation_key(state, state.generation), 1)

    def bring(pairs: Array) -> tuple[list[Any], Key]:
        drawn = integer_noise.sample(key, es.leaves, pairs, state.table)
        return drawn, world_keys(worlds, pairs // jnp.uint32(es.group), len(SIGNS), es.episodes)

    shared = (state.params, state.moments)
    played = es.runner.stream(es.act, shared, bring, pairs, slots, es.policy.carry, state.moments, None)
    fitness = jnp.mean(played.shaped, axis=2)
    return fitness, None, played.returns, played.lengths, played.nonfinite, played.steps, played.sums


def update(es: IntegerES, state: IntegerESState, experience: Experience) -> tuple[IntegerESState, Metrics]:
    """Moves each weight by one step where the sum over pairs passes the test."""
    present = experience.present
    scores = es.score(experience.fitness, present)
    after, moves = follow(es, state, scores, experience.sums)
    live = count_sum(experience.lengths)
    after = after._replace(
        env_steps=count_add(state.env_steps, live),
        padded_steps=count_add(state.padded_steps, count_sum(experience.steps[:, None, None] - experience.lengths)),
    )
    flat = jax.tree.leaves(after.params)
    number = sum(w.size for w in flat)
    part = lambda counts: jnp.sum(jnp.stack(counts)).astype(jnp.float32) / number  # noqa: E731
    tied = (scores == 0).astype(jnp.float32)
    return after, {
        **summary(experience),
        "moved": part([jnp.sum(jnp.abs(move)) for move in moves]),
        "saturated": part([jnp.sum((jnp.abs(w) == MOST).astype(jnp.int32)) for w in flat]),
        "threshold": threshold_z(es, state.generation).astype(jnp.float32) / (1 << Z_BITS),
        "tied": jnp.mean(tied) if present is None else jnp.mean(tied, where=present),
    }


def follow(
    es: IntegerES, state: IntegerESState, scores: Array, sums: AnySums | None
) -> tuple[IntegerESState, list[Array]]:
    """The state after a generation with these votes [P], all but its counts of steps; and each weight's move.

    It is exact: whoever has the votes and the sums of observations comes to the same state.
    """
    z = threshold_z(es, state.generation)
    voted, power = votes(es, state, scores), jnp.sum(scores * scores)
    if state.votes is not None and state.chance is not None:
        voted, power = _remembered(es.momentum, state.votes, voted, state.chance, power)
    least = [least_vote(z, power, leaf) for leaf in es.leaves]
    moves = [jnp.sign(s) * (jnp.abs(s) > t).astype(jnp.int32) for s, t in zip(voted, least, strict=True)]
    flat, tree = jax.tree.flatten(state.params)
    params = tree.unflatten([saturated(w.astype(jnp.int32) + move) for w, move in zip(flat, moves, strict=True)])
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda a, w: _averaged(a, w, es.averaging), average, params)
    moments = state.moments
    if moments is not None and isinstance(sums, IntegerSums):
        moments = integer_statistics.merge(moments, sums)
    after = state._replace(
        params=params,
        average=average,
        votes=voted if es.momentum else None,
        chance=power if es.momentum else None,
        moments=moments,
        generation=state.generation + 1,
    )
    return after, moves


def votes(es: IntegerES, state: IntegerESState, scores: Array) -> list[Array]:
    """`S = sum_p f_p E_p` of every leaf, int32, f [P]."""

    def weigh(args: tuple[Key, Array | None], part: tuple[Array, Array]) -> tuple[tuple[()], list[Array]]:
        pairs, score = part
        drawn = integer_noise.sample(args[0], es.leaves, pairs, args[1])
        return (), integer_noise.weighted_sum(score, drawn, es.leaves, es.most)

    part = (sharding.iota(es.pairs), scores)
    return sharding.map_chunks(weigh, (noise_key(es, state), state.table), part, es.update_chunk, es.mesh)[1]


def _remembered(
    momentum: int, before: list[Array], voted: list[Array], chance: Array, power: Array
) -> tuple[list[Array], Array]:
    """The running sums of votes and of their squares, with this generation's.

    A sum is at most 2^momentum times a generation's, which the agent's constructor keeps below 2^31.
    """
    sums = [old - shifted(old, momentum) + new for old, new in zip(before, voted, strict=True)]
    # (1 - 2^-m)^2 is 1 - 2^-(m - 1) + 2^-2m.
    return sums, chance - (chance >> (momentum - 1)) + (chance >> (2 * momentum)) + power


def least_vote(z: Array, power: Array, leaf: Leaf) -> Array:
    """t of a leaf: a weight moves where |S| is larger. `z` is in 256ths, `power` the sum of squared votes."""
    power = power * max(leaf.rank, 1)  # an int32: at most pairs rank 63^2, 2^momentum times
    shift = jnp.maximum(30 - bits_of(power), 0) // 2 * 2  # so that the root has as many bits as it can have
    deviation = root(power << shift)
    # z 16^2 sqrt(power): the 256 of z's fixed point and the 16^2 of the noise cancel each other.
    least = (z * deviation) >> (shift // 2)
    return least if leaf.rank else shifted(least, 4)


def threshold_z(es: IntegerES, generation: Array) -> Array:
    """z of this generation in 256ths, int32."""
    steps = jnp.asarray(es.thresholds, jnp.int32)
    return es.first + jnp.sum((steps <= generation.astype(jnp.int32)).astype(jnp.int32))


def schedule(quantile: float, decay: float) -> tuple[int, np.ndarray]:
    """(z at the start, the generations at which it grows by one 256th), so that the device has no logarithm to take.

    Example:
      >>> first, growth = schedule(0.5, 0.0)
      >>> first / 256, growth.size
      (0.67578125, 0)
    """
    normal = NormalDist()
    first = 0 if quantile >= 1 else min(round(-normal.inv_cdf(quantile / 2) * (1 << Z_BITS)), _LARGEST_Z)
    if not decay:
        return first, np.zeros(0, np.int32)
    zs = (np.arange(first, _LARGEST_Z) + 0.5) / (1 << Z_BITS)
    left = np.array([2 * normal.cdf(-z) for z in zs])  # the quantile below which z is nearer to the next 256th
    when = np.ceil((quantile / left - 1) / decay)
    return first, when[when < 2**31].astype(np.int32)


def signs(fitness: Array, present: Array | None = None) -> Array:
    """f of fitness [P, 2]: which member of the pair was better, int32 [P]; 0 of pairs that are not `present` [P]."""
    clean = finite(fitness, None if present is None else present[:, None])
    return jnp.sign(clean[:, 0] - clean[:, 1]).astype(jnp.int32)


def z_scores(group: int) -> Callable[..., Array]:
    """f of fitness [P, 2]: a pair's difference over the mean absolute difference of its group, times 8 / 1.25, in
    -63 .. 63; int32 [P]. Pairs that are not `present` [P] have 0, and are in no mean."""

    def score(fitness: Array, present: Array | None = None) -> Array:
        clean = finite(fitness, None if present is None else present[:, None])
        far = clean[:, 0] - clean[:, 1]
        far = jnp.where(jnp.isfinite(far), far, 0.0)
        # To integers of at most 15 bits, by a power of two that depends on the largest alone: no sum of floats.
        exponent = (jax.lax.bitcast_convert_type(jnp.max(jnp.abs(far)), jnp.int32) >> 23) - 127
        scale = jax.lax.bitcast_convert_type((jnp.clip(13 - exponent, -126, 127) + 127) << 23, jnp.float32)
        q = jnp.floor(far * scale + 0.5).astype(jnp.int32).reshape(-1, group)
        there: Any = group
        if present is not None:
            there = jnp.maximum(jnp.sum(present.astype(jnp.int32).reshape(-1, group), axis=1, keepdims=True), 1)
        mean = jnp.maximum(jnp.sum(jnp.abs(q), axis=1, keepdims=True) // there, 1)
        size = (jnp.abs(q) * 51 + 4 * mean) // (8 * mean)  # 51 / 8 is 8 times sqrt(2 / pi)
        return (jnp.sign(q) * jnp.minimum(size, SCORE_MOST)).reshape(-1)

    return score


def acts_by(state: IntegerESState) -> PyTree:
    """The int8 weights by which the agent acts."""
    if state.average is None:
        return state.params
    return jax.tree.map(lambda a: saturated(shifted(jnp.asarray(a, jnp.int32), _AVERAGE_BITS)), state.average)


def start_average(params: PyTree) -> PyTree:
    """The average of the weights at the start."""
    return jax.tree.map(lambda w: w.astype(jnp.int16) << _AVERAGE_BITS, params)


def _averaged(average: Array, w: Array, shift: int) -> Array:
    old = average.astype(jnp.int32)
    far = (w.astype(jnp.int32) << _AVERAGE_BITS) - old
    return (old + shifted(far, shift)).astype(jnp.int16)  # between two int16, so it is one
