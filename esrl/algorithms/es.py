"""Evolution strategies: one estimator over any noise space. Low-rank noise makes it EGGROLL, dense noise OpenES.

A generation is `rollout`, then `update`; they are the algorithm, in the order in which it happens:

    W_i     = W + s sigma E_p,  E = A B^T / sqrt(R)    every member i = (pair p, sign s) perturbs every matrix W,
    x W_i   = x W + (s sigma / sqrt(R)) (x A) B^T      without ever forming it: one product shared by all members
    f_i     = its return                               both signs of a pair play the same worlds
    g       = sum_i shaped(f)_i s E_p / (N sigma)      estimates the gradient of the expected fitness
    W       = optax step along g

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
import optax
from jax.sharding import Mesh

from esrl.algorithms.agent import Metrics
from esrl.algorithms.shaping import Shaping
from esrl.core import sharding
from esrl.core.types import Array, Count, Key, PyTree, count_add, count_sum
from esrl.perturbation.noise import Leaf, Noise
from esrl.policies import running_statistics
from esrl.policies.policy import Policy
from esrl.policies.running_statistics import Moments, Sums
from esrl.rollouts.types import Runner


class ESState(NamedTuple):
    """What the next generation needs. Checkpoints know these fields by their names.

    Attributes:
      params: the unperturbed parameters, the mean of the search distribution.
      opt_state: the optimizer's.
      moments: observation statistics, or None without normalization.
      key: the run key, which never changes: all randomness is folded from it and the generation.
      generation: uint32, generations done.
      sigma, learning_rate: float32 base values; decay and schedules multiply them.
      env_steps: live environment steps so far. padded_steps: steps of lanes that were done, beside them.
    """

    params: PyTree
    opt_state: PyTree
    moments: Moments | None
    key: Key
    generation: Array
    sigma: Array
    learning_rate: Array
    env_steps: Count
    padded_steps: Count


class Experience(NamedTuple):
    """A generation's episodes.

    Attributes:
      fitness: [P, S], mean over a member's episodes of what is trained on.
      returns: [P, S, E] raw returns. lengths: [P, S, E] int32 live steps.
      nonfinite: [P, S, E] bool, whether an observation or reward was not finite. steps: [P] int32, steps that were run.
      sums: of live observations, or None.
    """

    fitness: Array
    returns: Array
    lengths: Array
    nonfinite: Array
    steps: Array
    sums: Sums | None


@dataclass(frozen=True, eq=False)
class ES:
    """A configured evolution strategy: functions and sizes that stay fixed over a run, no arrays.

    Attributes:
      policy: the network bound to the environment. runner: plays its episodes.
      noise: the noise space. leaves: how it perturbs each parameter.
      draw: `draw(key, pairs [C]) -> factors`, the noise of these pairs; equal keys and pairs give equal noise.
      forward: `forward(params, factors, scale [S], observations, carries) -> (outputs, carries)`, the network of every
        member in all its lanes, perturbed by `scale` times its noise.
      shaping: `shaping(fitness [P, S]) -> weights [P, S]`.
      optimizer: an optax transformation with rate 1.
      sigma, learning_rate: from a state to this generation's value.
      pairs: P. signs: of a pair's members, (1, -1) or (1,). episodes: E.
      chunk: pairs that play at once on each device. update_chunk: pairs that the update sums at once.
      paper_scale: whether the gradient has the paper's scale.
      pair_bytes: memory of one pair, by what it is for.
      mesh: the devices.
    """

    policy: Policy
    runner: Runner
    noise: Noise
    leaves: tuple[Leaf, ...]
    draw: Callable[[Key, Array], list[Any]]
    forward: Callable[..., Any]
    shaping: Shaping
    optimizer: optax.GradientTransformation
    sigma: Callable[[ESState], Array]
    learning_rate: Callable[[ESState], Array]
    pairs: int
    signs: tuple[float, ...]
    episodes: int
    chunk: int
    update_chunk: int
    paper_scale: bool
    pair_bytes: dict[str, int]
    mesh: Mesh

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

    def play(state: ESState, pairs: Array) -> tuple[tuple[Array, ...], Sums | None]:
        key = noise_key(state)

        def bring(pairs: Array) -> tuple[list[Any], Key]:  # what a pair brings along: its noise, and its worlds
            return es.draw(key, pairs), world_keys(world_key(state), pairs, len(es.signs), es.episodes)

        shared = (state.params, es.sigma(state) * jnp.array(es.signs), state.moments)
        played = es.runner.stream(es.act, shared, bring, pairs, es.chunk, es.policy.carry, state.moments)
        fitness = jnp.mean(played.shaped, axis=2)
        return (fitness, played.returns, played.lengths, played.nonfinite, played.steps), played.sums

    # No noise ever leaves the device that drew it: devices exchange results of episodes, and sums.
    rows, sums = sharding.map_devices(play, state, sharding.iota(es.pairs), es.mesh)
    fitness, returns, lengths, nonfinite, steps = rows
    return Experience(fitness, returns, lengths, nonfinite, steps, sums)


def update(es: ES, state: ESState, experience: Experience) -> tuple[ESState, Metrics]:
    """Moves the parameters along the estimated gradient of the expected fitness."""
    weights = es.shaping(experience.fitness) @ jnp.array(es.signs)  # f(+) - f(-) of a pair; f itself without pairs

    def weigh(key: Key, part: tuple[Array, Array]) -> tuple[tuple[()], list[Array]]:
        pairs, weight = part
        return (), es.noise.weighted_sum(weight, es.draw(key, pairs), es.leaves)  # sum_p weight_p E_p

    part = (sharding.iota(es.pairs), weights)
    total = sharding.map_chunks(weigh, noise_key(state), part, es.update_chunk, es.mesh)[1]

    members, sigma, rate = es.pairs * len(es.signs), es.sigma(state), es.learning_rate(state)
    factor = sigma / math.sqrt(members) if es.paper_scale else 1 / (members * sigma)
    # Minus: optax descends, and fitness is to rise.
    gradient = jax.tree.unflatten(jax.tree.structure(state.params), [-factor * x for x in total])
    direction, opt_state = es.optimizer.update(gradient, state.opt_state, state.params)
    change = jax.tree.map(lambda u: rate * u, direction)
    params = optax.apply_updates(state.params, change)

    after = state._replace(
        params=params,
        opt_state=opt_state,
        moments=running_statistics.merge(state.moments, experience.sums),
        generation=state.generation + 1,
        env_steps=count_add(state.env_steps, count_sum(experience.lengths)),
        padded_steps=count_add(state.padded_steps, count_sum(experience.steps[:, None, None] - experience.lengths)),
    )
    return after, {
        **summary(experience),
        "grad_norm": optax.tree.norm(gradient),
        "update_norm": optax.tree.norm(change),
        "param_norm": optax.tree.norm(params),
        "sigma": sigma,
        "learning_rate": rate,
    }


def summary(experience: Experience) -> Metrics:
    """A generation's fitness as an observer wants it; members whose fitness is not finite are left out.

    `nonfinite` counts the members with an observation, a reward or a fitness that is not finite.
    """
    good = jnp.isfinite(experience.fitness)
    mean = _mean(experience.fitness, good)
    return {
        "fitness_mean": mean,
        "fitness_std": jnp.sqrt(_mean((experience.fitness - mean) ** 2, good)),
        "fitness_min": jnp.min(jnp.where(good, experience.fitness, jnp.inf)),
        "fitness_max": jnp.max(jnp.where(good, experience.fitness, -jnp.inf)),
        "return_mean": _mean(experience.returns, jnp.isfinite(experience.returns)),
        "length_mean": jnp.mean(experience.lengths.astype(jnp.float32)),
        "nonfinite": jnp.sum(~good | jnp.any(experience.nonfinite, axis=2)),
        "all_nonfinite": ~jnp.any(good),
    }


def _mean(x: Array, where: Array) -> Array:
    """Mean of the entries that count; 0 when none does."""
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where.astype(jnp.float32)), 1.0)
