"""Evolution strategies: one estimator over any noise space. Low-rank noise makes it EGGROLL, dense noise OpenES.

A generation is `rollout`, then `update`; they are the algorithm, in the order in which it happens:

    W_i     = W + s sigma E_p,  E = A B^T / sqrt(R)    every member i = (pair p, sign s) perturbs every matrix W,
    x W_i   = x W + (s sigma / sqrt(R)) (x A) B^T      without ever forming it: one product shared by all members
    f_i     = its return                               both signs of a pair play the same worlds
    g       = sum_i shaped(f)_i s E_p / (N sigma)      estimates the gradient of the expected fitness
    W       = optax step along g

What the estimate is worth is measured beside it, and may decide how many generations make one step, how long it is and
how large sigma is: `esrl.algorithms.signal`.

Sources: OpenES, Salimans et al., arXiv 1703.03864; EGGROLL, arXiv 2511.16652, sections 3 and 4. Notation: P pairs, S
signs (1 without antithetic pairs), E episodes of a member, N = P S members, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from esrl.algorithms import shaping as shapings
from esrl.algorithms import signal as signals
from esrl.algorithms.agent import Metrics
from esrl.algorithms.frozen import join
from esrl.algorithms.shaping import Shaping
from esrl.algorithms.signal import Signal, Sizing
from esrl.core import sharding
from esrl.core.brief import state_text
from esrl.core.types import Array, Count, Key, PyTree, count_add, count_sum
from esrl.perturbation.noise import Leaf, Noise
from esrl.policies import running_statistics
from esrl.policies.policy import Policy
from esrl.policies.running_statistics import AnySums, Moments
from esrl.rollouts.types import Runner

QUANTILES = (5, 25, 50, 75, 95)  # percent, of the population's fitness


class ESState(NamedTuple):
    """What the next generation needs. Checkpoints know these fields by their names.

    Attributes:
      params: the unperturbed parameters, the mean of the search distribution; None in the place of frozen ones.
      opt_state: the optimizer's.
      average: the exponential moving average of params over generations, by which the agent acts; None
        without averaging, where it acts by params.
      moments: observation statistics, or None without normalization.
      signal: what is remembered of what the estimates were worth.
      key: the run key, which never changes: all randomness is folded from it and the generation.
      generation: uint32, generations done.
      sigma, learning_rate: float32 base values; decay and schedules multiply them.
      env_steps: live environment steps so far. padded_steps: steps of lanes that were done, beside them.
      frozen: the parameters that are neither perturbed nor trained; () for none.
    """

    params: PyTree
    opt_state: PyTree
    average: PyTree | None
    moments: Moments | None
    signal: Signal
    key: Key
    generation: Array
    sigma: Array
    learning_rate: Array
    env_steps: Count
    padded_steps: Count
    frozen: PyTree = ()

    def __repr__(self) -> str:
        return state_text(self)


class Experience(NamedTuple):
    """A generation's episodes.

    Attributes:
      fitness: [P, S], mean over a member's episodes of what is trained on. halves: [P, S, 2], the same over each half
        of its episodes, or None for a single one.
      returns: [P, S, E] raw returns. lengths: [P, S, E] int32 live steps.
      nonfinite: [P, S, E] bool, whether an observation or reward was not finite. steps: [P] int32, steps that were run.
      sums: of live observations, or None.
      present: [P] bool, the pairs that were played, where some are missing (`esrl.cluster`), whose fitness is NaN; None
        where all are there.
    """

    fitness: Array
    halves: Array | None
    returns: Array
    lengths: Array
    nonfinite: Array
    steps: Array
    sums: AnySums | None
    present: Array | None = None


@dataclass(frozen=True, eq=False)
class ES:
    """A configured evolution strategy: functions and sizes that stay fixed over a run, no arrays.

    Attributes:
      policy: the network bound to the environment. runner: plays its episodes.
      noise: the noise space. leaves: how it perturbs each parameter.
      draw: `draw(key, pairs [C]) -> factors`, the noise of these pairs; equal keys and pairs give equal noise.
      same_worlds: whether all members play the same worlds, not only both signs of a pair.
      forward: `forward(params, factors, scale [S], observations, carries) -> (outputs, carries)`, the network of every
        member in all its lanes, perturbed by `scale` times its noise.
      shaping: `shaping(fitness [P, S]) -> weights [P, S]`.
      optimizer: an optax transformation with rate 1.
      sigma, learning_rate: from a state to this generation's value, before the signal's factors.
      averaging: decay of the average of the parameters, 0 for none.
      sizing: what the measured signal may change.
      warm: generations at the start that gather observation statistics and leave the parameters alone.
      horizon: from a state to the cap on the steps of an episode, or None for the environment's own.
      pairs: P. signs: of a pair's members, (1, -1) or (1,). episodes: E.
      chunk: pairs that play at once on each device. update_chunk: pairs that the update sums at once.
      paper_scale: whether the gradient has the paper's scale.
      pair_bytes: memory of one pair, by what it is for.
      mesh: the devices. summing: the same, as the update splits pairs over them: over all, or over those of each
        process, which then draws all the noise.
    """

    policy: Policy
    runner: Runner
    noise: Noise
    leaves: tuple[Leaf, ...]
    same_worlds: bool
    draw: Callable[[Key, Array], list[Any]]
    forward: Callable[..., Any]
    shaping: Shaping
    optimizer: optax.GradientTransformation
    sigma: Callable[[ESState], Array]
    learning_rate: Callable[[ESState], Array]
    averaging: float
    sizing: Sizing
    warm: int
    horizon: Callable[[ESState], Array] | None
    pairs: int
    signs: tuple[float, ...]
    episodes: int
    chunk: int
    update_chunk: int
    paper_scale: bool
    pair_bytes: dict[str, int]
    mesh: Mesh
    summing: Mesh

    def act(self, context: PyTree, observations: PyTree, carries: PyTree, keys: Key) -> tuple[PyTree, PyTree]:
        """One decision of every member in all its lanes: x W + (s sigma / sqrt(R)) (x A) B^T, layer by layer."""
        (params, scale, moments), factors = context
        seen = jax.vmap(lambda x: running_statistics.normalize(moments, x))(observations)
        outputs, carries = self.forward(params, factors, scale, seen, carries)
        return jax.vmap(self.policy.action)(outputs, keys), carries


# ---- randomness -----------------------------------------------------------------------------------------------------


def noise_key(state: ESState) -> Key:
    """The key of this generation's noise.

    `rollout` and `update` both draw from it, and must: the noise is never stored, so the update weighs what the members
    were perturbed by only because it draws the same numbers again.
    """
    return jax.random.fold_in(_generation_key(state), 0)


def world_key(state: ESState) -> Key:
    """The key of this generation's worlds and action noise."""
    return jax.random.fold_in(_generation_key(state), 1)


def world_keys(key: Key, pairs: Array, signs: int, episodes: int) -> Key:
    """A key for each episode, [P, S, E]: both signs of a pair get the same one (common random numbers)."""
    each = jax.vmap(
        lambda i: jax.vmap(lambda e: jax.random.fold_in(jax.random.fold_in(key, i), e))(jnp.arange(episodes))
    )
    return jnp.broadcast_to(each(pairs)[:, None, :], (pairs.shape[0], signs, episodes))


def _generation_key(state: ESState) -> Key:
    return jax.random.fold_in(state.key, state.generation + 1)  # number 0 of the run key started the parameters


# ---- the algorithm --------------------------------------------------------------------------------------------------


def rollout(es: ES, state: ESState) -> Experience:
    """Plays one generation: every member of the population, on all devices, `chunk` pairs at once on each."""

    def part(state: ESState, pairs: Array) -> tuple[tuple[Array | None, ...], AnySums | None]:
        rows = play(es, state, pairs, es.chunk)
        return rows[:-1], rows[-1]

    # No noise ever leaves the device that drew it: devices exchange results of episodes, and sums.
    rows, sums = sharding.map_devices(part, state, sharding.iota(es.pairs), es.mesh)
    fitness, halves, returns, lengths, nonfinite, steps = rows
    return Experience(fitness, halves, returns, lengths, nonfinite, steps, sums)


def play(es: ES, state: ESState, pairs: Array, slots: int) -> tuple[Any, ...]:
    """Plays the pairs with these numbers [C], so many at once: the fields of an `Experience` of C pairs, in order.

    Of a state it takes the parameters, the moments, the key and the counters alone. What a pair plays depends on these
    and on its number, and on nobody else's.
    """
    key = noise_key(state)

    def bring(pairs: Array) -> tuple[list[Any], Key]:  # what a pair brings along: its noise, and its worlds
        worlds = jnp.zeros_like(pairs) if es.same_worlds else pairs
        return es.draw(key, pairs), world_keys(world_key(state), worlds, len(es.signs), es.episodes)

    shared = (join(state.params, state.frozen), sigma_of(es, state) * jnp.array(es.signs), state.moments)
    most = es.horizon(state) if es.horizon else None
    played = es.runner.stream(es.act, shared, bring, pairs, slots, es.policy.carry, state.moments, most)
    rows = (jnp.mean(played.shaped, axis=2), signals.halves_of(played.shaped))
    return (*rows, played.returns, played.lengths, played.nonfinite, played.steps, played.sums)


def update(es: ES, state: ESState, experience: Experience) -> tuple[ESState, Metrics]:
    """Moves the parameters along the estimated gradient of the expected fitness."""
    halves = estimate(es, state, experience.fitness, experience.present)
    total = jax.tree.unflatten(jax.tree.structure(state.params), [a + b for a, b in zip(*halves, strict=True)])
    live = count_sum(experience.lengths)
    signal = signals.heard(state.signal, experience.halves, experience.present)
    apart = signals.told(experience.fitness, experience.present)
    signal = signals.grown(signal, total, jnp.sum(experience.lengths.astype(jnp.float32)), apart)
    gradient = jax.tree.map(lambda x: x / signal.groups.astype(x.dtype), signal.gradient)
    rate = es.learning_rate(state)
    if es.sizing.rate:
        rate = rate * signals.rate_factor(es.sizing, signal, es.pairs)

    if es.sizing.waits or es.warm:
        worth = signals.ready(es.sizing, signal) & (state.generation >= es.warm)
        moved = jax.lax.cond(worth, lambda: _step(es, state, signal, gradient, rate), lambda: _wait(es, state, signal))
    else:
        moved = _step(es, state, signal, gradient, rate)
    params, opt_state, average, signal = moved
    after = state._replace(
        params=params,
        opt_state=opt_state,
        average=average,
        moments=running_statistics.merge(state.moments, experience.sums),
        signal=signal,
        generation=state.generation + 1,
        env_steps=count_add(state.env_steps, live),
        padded_steps=count_add(state.padded_steps, count_sum(experience.steps[:, None, None] - experience.lengths)),
    )
    heard = {} if experience.halves is None else {"agreement": signals.agreement(signal)}
    return after, {
        **summary(experience),
        "grad_norm": optax.tree.norm(gradient),
        "update_norm": optax.tree.norm(jax.tree.map(jnp.subtract, params, state.params)),
        "param_norm": optax.tree.norm(params),
        "sigma": sigma_of(es, state),
        "learning_rate": rate,
        "updates": signal.updates,
        **heard,
        **signals.measured(halves, tuple(leaf.path for leaf in es.leaves), experience.fitness, experience.present),
    }


def estimate(es: ES, state: ESState, fitness: Array, present: Array | None = None) -> tuple[list[Array], list[Array]]:
    """Minus the gradient of the expected fitness [P, S], as two halves that add up to it: of even and of odd pairs.

    Two halves cost what the whole does, and say what it is worth. Of the pairs that are `present` [P] alone, if given.
    """
    shaped = es.shaping(fitness) if present is None else shapings.of_present(es.shaping, fitness, present)
    weights = shaped @ jnp.array(es.signs)  # f(+) - f(-) of a pair; f itself without pairs

    def weigh(key: Key, part: tuple[Array, Array]) -> tuple[tuple[()], tuple[list[Array], list[Array]]]:
        pairs, weight = part

        def of(half: int) -> list[Array]:  # sum_p weight_p E_p of every other pair
            return es.noise.weighted_sum(weight[half::2], es.draw(key, pairs[half::2]), es.leaves)

        first = of(0)
        second = of(1) if pairs.shape[0] > 1 else [jnp.zeros_like(x) for x in first]
        # Pairs of a part are numbered on, so every other one is even, or is odd where the part begins with an odd one.
        odd = pairs[0] % 2 == 1
        swapped = [(jnp.where(odd, b, a), jnp.where(odd, a, b)) for a, b in zip(first, second, strict=True)]
        return (), ([even for even, _ in swapped], [odd for _, odd in swapped])

    part = (sharding.iota(es.pairs), weights)
    sums = sharding.map_chunks(weigh, noise_key(state), part, es.update_chunk, es.summing)[1]
    members, sigma = es.pairs * len(es.signs), sigma_of(es, state)
    factor = sigma / math.sqrt(members) if es.paper_scale else 1 / (members * sigma)
    if present is not None:  # the mean of those that are there; the weights of the others are 0
        there = jnp.mean(present.astype(jnp.float32))
        factor = factor / jnp.sqrt(there) if es.paper_scale else factor / there
    # Minus: optax descends, and fitness is to rise.
    first, second = ([-factor * x for x in half] for half in sums)
    return first, second


_Moved = tuple[PyTree, PyTree, PyTree, Signal]  # parameters, optimizer, average, signal


def _step(es: ES, state: ESState, signal: Signal, gradient: PyTree, rate: Array) -> _Moved:
    """A step of the optimizer along a gradient."""
    tree, scales = jax.tree.structure(state.params), [leaf.scale for leaf in es.leaves]
    # A parameter is `scale` times the variable that is searched, and the gradient is that variable's: what was summed
    # is E, not scale E.
    seen = tree.unflatten([w / s if s != 1 else w for w, s in zip(jax.tree.leaves(state.params), scales, strict=True)])
    direction, opt_state = es.optimizer.update(gradient, state.opt_state, seen)
    change = tree.unflatten([rate * s * u for u, s in zip(jax.tree.leaves(direction), scales, strict=True)])
    params = optax.apply_updates(state.params, change)
    signal = signals.emptied(es.sizing, signals.followed(es.sizing, signal))
    return params, opt_state, _averaged(es, state, params), signal


def _wait(es: ES, state: ESState, signal: Signal) -> _Moved:
    """No step: the estimate goes on growing. What was estimated before observations were known is thrown away."""
    if es.warm:
        early = state.generation < es.warm
        fresh = signals.emptied(es.sizing, signal)._replace(updates=signal.updates)
        old = signal if es.sizing.waits else fresh  # which without waiting has no sum either
        signal = jax.tree.map(lambda a, b: jnp.where(early, a, b), fresh, old)
    # The average nears the parameters while they wait, too: of few steps it would act by those of long ago.
    return state.params, state.opt_state, _averaged(es, state, state.params), signal


def _averaged(es: ES, state: ESState, params: PyTree) -> PyTree | None:
    """The moving average a generation later."""
    if state.average is None:
        return None
    return jax.tree.map(lambda a, w: a + (1 - es.averaging) * (w - a), state.average, params)


def sigma_of(es: ES, state: ESState) -> Array:
    """This generation's sigma."""
    return es.sigma(state) * state.signal.sigma if es.sizing.sigma else es.sigma(state)


def summary(experience: Experience) -> Metrics:
    """A generation's fitness as an observer wants it; members whose fitness is not finite are left out.

    `nonfinite` counts the members with an observation, a reward or a fitness that is not finite.
    """
    good = jnp.isfinite(experience.fitness)
    mean = _mean(experience.fitness, good)
    lost = ~good | jnp.any(experience.nonfinite, axis=2)
    lengths = experience.lengths.astype(jnp.float32)
    present = experience.present
    return {
        "fitness_mean": mean,
        "fitness_std": jnp.sqrt(_mean((experience.fitness - mean) ** 2, good)),
        "fitness_min": jnp.min(jnp.where(good, experience.fitness, jnp.inf)),
        "fitness_max": jnp.max(jnp.where(good, experience.fitness, -jnp.inf)),
        "return_mean": _mean(experience.returns, jnp.isfinite(experience.returns)),
        "length_mean": jnp.mean(lengths) if present is None else jnp.mean(lengths, where=present[:, None, None]),
        # A pair that is missing has not failed.
        "nonfinite": jnp.sum(lost if present is None else lost & present[:, None]),
        "all_nonfinite": ~jnp.any(good),
    }


def quantiles(fitness: Any) -> dict[str, float]:
    """Quantiles of the members whose fitness [P, S] is finite, between neighbors linearly; none where no member is.

    On the host: sorting would take the compiler longer than many a run trains.

    Example:
      >>> quantiles(np.array([[1.0, 5.0], [3.0, np.nan], [2.0, 4.0]]))
      {'fitness_q05': 1.2, 'fitness_q25': 2.0, 'fitness_q50': 3.0, 'fitness_q75': 4.0, 'fitness_q95': 4.8}
    """
    values = np.asarray(fitness, np.float64)
    good = values[np.isfinite(values)]
    if not good.size:
        return {}
    found = np.percentile(good, QUANTILES)
    return {f"fitness_q{percent:02d}": float(value) for percent, value in zip(QUANTILES, found, strict=True)}


def _mean(x: Array, where: Array) -> Array:
    """Mean of the entries that count; 0 when none does."""
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where.astype(jnp.float32)), 1.0)
