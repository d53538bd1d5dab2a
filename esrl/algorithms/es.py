"""Evolution strategies: one estimator over any noise space; with low-rank noise it is EGGROLL.

`rollout` and `update` are the algorithm in reading order. Sources: OpenES, Salimans et al., arXiv 1703.03864; EGGROLL,
arXiv 2511.16652, sections 3 and 4.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from esrl.algorithms.agent import Agent, Metrics, changed_options, compiled, read_options, takes_options
from esrl.algorithms.es_options import EggrollOptions, ESOptions, OpenESOptions, check
from esrl.algorithms.es_setup import Setup, base_learning_rate, plan, prepare
from esrl.core import sharding
from esrl.core.types import Array, Count, Key, PyTree, count, count_add, count_sum, seed_key
from esrl.envs.base import on_device
from esrl.envs.checks.contract import check_contract
from esrl.envs.registry import make
from esrl.perturbation import noise as noises
from esrl.perturbation.noise import Noise
from esrl.policies import running_statistics as moment
from esrl.policies.policy import bind
from esrl.policies.precision import arithmetic
from esrl.policies.running_statistics import Moments, Sums


class ESState(NamedTuple):
    """What the next generation needs.

    Attributes:
      params: the unperturbed parameters, the mean of the search distribution.
      opt_state: the optimiser's.
      moments: observation statistics, or None without normalisation.
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


class Batch(NamedTuple):
    """A generation's episodes.

    Attributes:
      fitness: [P, S], mean over episodes of what is trained on.
      returns: [P, S, E] raw returns. lengths: [P, S, E] int32 live steps. steps: [P] int32, steps that were run.
      sums: of live observations, or None.
    """

    fitness: Array
    returns: Array
    lengths: Array
    steps: Array
    sums: Sums | None


# ---- the algorithm --------------------------------------------------------------------------------------------------


def rollout(setup: Setup, state: ESState) -> Batch:
    """Plays one generation: every member of the population, on all devices, `chunk` pairs at once on each."""
    key = jax.random.fold_in(state.key, state.generation + 1)

    def play(args: tuple[ESState, Key], ids: Array) -> tuple[tuple[Array, ...], Sums | None]:
        state, key = args

        def draw(ids: Array) -> tuple[list[Any], Key]:
            keys = world_keys(jax.random.fold_in(key, 1), ids, len(setup.signs), setup.episodes)
            return setup.sample(jax.random.fold_in(key, 0), ids), keys

        shared = (state.params, setup.sigma(state) * jnp.array(setup.signs), state.moments)
        played = setup.runner.stream(setup.act, shared, draw, ids, setup.chunk, setup.policy.carry, state.moments)
        fitness = jnp.mean(played.shaped, axis=2)
        return (fitness, played.returns, played.lengths, played.steps), played.sums

    rows, sums = sharding.map_devices(play, (state, key), sharding.iota(setup.pairs), setup.mesh)
    fitness, returns, lengths, steps = rows
    return Batch(fitness, returns, lengths, steps, sums)


def update(setup: Setup, state: ESState, batch: Batch) -> tuple[ESState, Metrics]:
    """Moves the parameters along the estimated gradient of the expected fitness."""
    key = jax.random.fold_in(state.key, state.generation + 1)
    weights = setup.shape(batch.fitness) @ jnp.array(setup.signs)  # f(+) - f(-) of every pair

    def contract(key: Key, xs: tuple[Array, Array]) -> tuple[tuple[()], list[Array]]:
        ids, w = xs
        return (), setup.noise.contract(w, setup.sample(key, ids), setup.leaves)

    xs = (sharding.iota(setup.pairs), weights)
    total = sharding.map_chunks(contract, jax.random.fold_in(key, 0), xs, setup.batch, setup.mesh)[1]

    members, sigma, rate = setup.pairs * len(setup.signs), setup.sigma(state), setup.learning_rate(state)
    factor = sigma / math.sqrt(members) if setup.paper_scale else 1 / (members * sigma)
    gradient = jax.tree.unflatten(jax.tree.structure(state.params), [-factor * x for x in total])
    direction, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
    change = jax.tree.map(lambda u: rate * u, direction)
    params = optax.apply_updates(state.params, change)

    after = state._replace(
        params=params,
        opt_state=opt_state,
        moments=moment.merge(state.moments, batch.sums),
        generation=state.generation + 1,
        env_steps=count_add(state.env_steps, count_sum(batch.lengths)),
        padded_steps=count_add(state.padded_steps, count_sum(batch.steps[:, None, None] - batch.lengths)),
    )
    norms = {"grad_norm": gradient, "update_norm": change, "param_norm": params}
    scales = {"sigma": sigma, "learning_rate": rate}
    return after, {**summary(batch), **{k: optax.tree.norm(v) for k, v in norms.items()}, **scales}


def world_keys(key: Key, ids: Array, signs: int, episodes: int) -> Key:
    """A key for each episode, [P, S, E]: both signs of a pair get the same one (common random numbers)."""
    each = jax.vmap(
        lambda i: jax.vmap(lambda e: jax.random.fold_in(jax.random.fold_in(key, i), e))(jnp.arange(episodes))
    )
    return jnp.broadcast_to(each(ids)[:, None, :], (ids.shape[0], signs, episodes))


def summary(batch: Batch) -> Metrics:
    """A generation's fitness as an observer wants it; members that are not finite are counted and left out."""
    good = jnp.isfinite(batch.fitness)
    mean = _mean(batch.fitness, good)
    finite = jnp.isfinite(batch.returns)
    return {
        "fitness_mean": mean,
        "fitness_std": jnp.sqrt(_mean((batch.fitness - mean) ** 2, good)),
        "fitness_min": jnp.min(jnp.where(good, batch.fitness, jnp.inf)),
        "fitness_max": jnp.max(jnp.where(good, batch.fitness, -jnp.inf)),
        "return_mean": _mean(batch.returns, finite),
        "length_mean": jnp.mean(batch.lengths.astype(jnp.float32)),
        "nonfinite": jnp.sum(~good),
        "all_nonfinite": ~jnp.any(good),
    }


def _mean(x: Array, where: Array) -> Array:
    """Mean of the entries that count; 0 when none does."""
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where.astype(jnp.float32)), 1.0)


# ---- construction ---------------------------------------------------------------------------------------------------


@takes_options(EggrollOptions)
def eggroll(env: Any, policy: Any = None, **options: Any) -> Agent:
    """EGGROLL: evolution strategies with low-rank perturbations (arXiv 2511.16652).

    Each weight matrix W (m x n) of a member is `W + sigma A B^T / sqrt(rank)`; what is not a matrix gets dense noise.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: a network (`esrl.mlp(...)`, `esrl.gru(...)`, a Flax module, `esrl.policy(...)`); None is `esrl.mlp()`.
      **options: by keyword:

    Raises:
      EsrlError: an unknown option, a value that does not fit, or an environment or network that does not.
    """
    read = read_options(EggrollOptions, options)
    noise = noises.low_rank(read.rank, read.thin, read.distribution, read.noise_dtype)
    return evolution_strategy("eggroll", env, policy, noise, read)


@takes_options(OpenESOptions)
def open_es(env: Any, policy: Any = None, **options: Any) -> Agent:
    """OpenES: evolution strategies with dense perturbations, Gaussian unless given (Salimans et al., arXiv 1703.03864).

    Antithetic pairs, centred ranks, Adam and observation normalisation as in the source; everything but the noise is
    EGGROLL's own code.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: as in `eggroll`.
      **options: by keyword:

    Raises:
      EsrlError: as `eggroll`.
    """
    read = read_options(OpenESOptions, options)
    return evolution_strategy("open_es", env, policy, noises.dense(read.distribution, read.noise_dtype), read)


def evolution_strategy(name: str, env: Any, policy: Any, noise: Noise, options: ESOptions) -> Agent:
    """An evolution strategy over any noise space.

    Args:
      name: what the agent is called.
      env, policy: as in `eggroll`.
      noise: the noise space.
      options: everything else.

    Raises:
      EsrlError: as `eggroll`.
    """
    check(options)
    env = make(env)
    check_contract(env)
    bound = bind(policy, env.observation_space, env.action_space, options.deterministic, options.squash)
    bound = bound._replace(apply=arithmetic(bound.apply, options.precision))
    setup = prepare(env, bound, noise, options)
    normalized = options.normalize_observations and any(jax.tree.leaves(setup.policy.normalised))
    sigma, rate = (1.0 if callable(x) else x for x in (options.sigma, base_learning_rate(options)))

    def init(key: Key) -> ESState:
        params = setup.policy.init(jax.random.fold_in(key, 0))
        moments = moment.init(setup.policy.observation, setup.policy.normalised) if normalized else None
        return ESState(
            params=params,
            opt_state=setup.optimizer.init(params),
            moments=moments,
            key=key,
            generation=jnp.uint32(0),
            sigma=jnp.float32(sigma),
            learning_rate=jnp.float32(rate),
            env_steps=count(),
            padded_steps=count(),
        )

    def act(state: ESState, observation: PyTree, carry: PyTree, key: Key) -> tuple[Array, PyTree]:
        seen = moment.normalise(state.moments, observation)
        output, carry = setup.policy.apply(state.params, seen, carry)
        return setup.policy.action(output, key), carry

    play, learn = partial(rollout, setup), partial(update, setup)
    return Agent(
        name=name,
        env=env,
        policy=setup.policy,
        runner=setup.runner,
        act=act,
        plan=plan(setup, jax.eval_shape(init, jax.eval_shape(lambda: seed_key(0)))),
        options=changed_options(options),
        **compiled(init, play, learn, setup.mesh, on_device(env), ("sigma", "learning_rate")),
    )
