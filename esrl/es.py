"""Evolution strategies: one estimator over any noise space; with low-rank noise it is EGGROLL (level 4).

`rollout` and `update` are the algorithm in reading order. Sources: OpenES, Salimans et al., arXiv 1703.03864; EGGROLL,
arXiv 2511.16652, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from esrl import moments as moment
from esrl import noise as noises
from esrl import perturb, sharding
from esrl import shaping as shapings
from esrl.agent import Agent, Metrics, Plan, changed_options, option, read_options
from esrl.env import check_contract
from esrl.moments import Moments, Sums
from esrl.noise import Leaf, Noise
from esrl.optimizers import make_optimizer
from esrl.policy import Policy, bind
from esrl.registry import make
from esrl.rollout import Runner
from esrl.rollout import runner as make_runner
from esrl.types import Array, Count, EsrlError, Key, PyTree, count, count_add, count_sum

Schedule = Callable[[Array], Array]


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


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays fixed over a run: functions and sizes, no arrays. P pairs, S signs, E episodes for each member."""

    policy: Policy
    runner: Runner
    noise: Noise
    leaves: tuple[Leaf, ...]
    shape: shapings.Shaping
    optimizer: optax.GradientTransformation
    sigma: Callable[[ESState], Array]
    learning_rate: Callable[[ESState], Array]
    pairs: int
    signs: tuple[float, ...]
    episodes: int
    chunk: int
    mesh: Mesh
    paper_scale: bool
    act: Callable[..., Any]
    sample: Callable[[Key, Array], list[Any]]


# ---- the algorithm --------------------------------------------------------------------------------------------------


def rollout(setup: Setup, state: ESState) -> Batch:
    """Plays one generation: every member of the population, in chunks of pairs over all devices."""
    key = jax.random.fold_in(state.key, state.generation + 1)

    def evaluate(args: tuple[ESState, Key], ids: Array) -> tuple[tuple[Array, ...], Sums | None]:
        state, key = args
        eps = setup.sample(jax.random.fold_in(key, 0), ids)
        scale = setup.sigma(state) * jnp.array(setup.signs)
        keys = world_keys(jax.random.fold_in(key, 1), ids, len(setup.signs), setup.episodes)
        context = (state.params, eps, scale, state.moments)
        played = setup.runner.episodes(setup.act, context, keys, setup.policy.carry, state.moments)
        fitness = jnp.mean(played.shaped, axis=2)
        return (fitness, played.returns, played.lengths, jnp.full(ids.shape, played.steps)), played.sums

    rows, sums = sharding.map_chunks(evaluate, (state, key), sharding.iota(setup.pairs), setup.chunk, setup.mesh)
    return Batch(*rows, sums)


def update(setup: Setup, state: ESState, batch: Batch) -> tuple[ESState, Metrics]:
    """Moves the parameters along the estimated gradient of the expected fitness."""
    key = jax.random.fold_in(state.key, state.generation + 1)
    weights = setup.shape(batch.fitness) @ jnp.array(setup.signs)  # f(+) - f(-) of every pair

    def contract(key: Key, xs: tuple[Array, Array]) -> tuple[tuple[()], list[Array]]:
        ids, w = xs
        return (), setup.noise.contract(w, setup.sample(key, ids), setup.leaves)

    xs = (sharding.iota(setup.pairs), weights)
    total = sharding.map_chunks(contract, jax.random.fold_in(key, 0), xs, setup.chunk, setup.mesh)[1]

    members, sigma, rate = setup.pairs * len(setup.signs), setup.sigma(state), setup.learning_rate(state)
    factor = sigma / math.sqrt(members) if setup.paper_scale else 1 / (members * sigma)
    gradient = jax.tree.unflatten(jax.tree.structure(state.params), [-factor * x for x in total])
    direction, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
    change = jax.tree.map(lambda u: rate * u, direction)
    params = optax.apply_updates(state.params, change)

    after = state._replace(
        params=params,
        opt_state=opt_state,
        moments=None if batch.sums is None else moment.merge(state.moments, batch.sums),
        generation=state.generation + 1,
        env_steps=count_add(state.env_steps, count_sum(batch.lengths)),
        padded_steps=count_add(state.padded_steps, count_sum(batch.steps[:, None, None] - batch.lengths)),
    )
    norms = {"grad_norm": gradient, "update_norm": change, "param_norm": params}
    scales = {"sigma": sigma, "learning_rate": rate}
    return after, {**summary(batch), **{k: optax.tree.norm(v) for k, v in norms.items()}, **scales}


def world_keys(key: Key, ids: Array, signs: int, episodes: int) -> Key:
    """A key for each episode, [P, S, E]: both signs of a pair get the same one (common random numbers)."""
    each = jax.vmap(lambda i: jax.vmap(lambda e: jax.random.fold_in(jax.random.fold_in(key, i), e))(jnp.arange(episodes)))
    return jnp.broadcast_to(each(ids)[:, None, :], (ids.shape[0], signs, episodes))


def summary(batch: Batch) -> Metrics:
    """What an observer wants to know of a generation's fitness; members that are not finite are counted and left out."""
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
    }


def _mean(x: Array, where: Array) -> Array:
    """Mean of the entries that count; 0 when none does."""
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where.astype(jnp.float32)), 1.0)


# ---- construction ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ESOptions:
    """Options that every evolution strategy has."""

    population: int = option(512, "members of a generation, 2P with antithetic pairs", int)
    sigma: float | Schedule = option(0.05, "standard deviation of each weight's perturbation", float)
    learning_rate: float | Schedule | None = option(
        None, "of the optimizer; 0.01 unless given (1 for an optax transformation)", float
    )
    optimizer: str | optax.GradientTransformation = option("adam", "an optax optimizer's name", str)
    momentum: float | None = option(None, "of sgd and rmsprop; b1 of adam and its kin", float)
    weight_decay: float | None = option(None, "decoupled, in units of the learning rate", float)
    max_grad_norm: float | None = option(None, "bound on the global norm of the gradient estimate", float)
    sigma_decay: float = option(1.0, "factor on sigma for each generation", float)
    lr_decay: float = option(1.0, "factor on the learning rate for each generation", float)
    shaping: str | shapings.Shaping = option(
        "centred_rank", "centred_rank, z_score, group, sign, none or leave_one_out", str
    )
    episodes_per_member: int = option(1, "episodes that a member's fitness is the mean of", int)
    antithetic: bool = option(True, "members come in pairs W + sigma E, W - sigma E with common random numbers", bool)
    step_scale: str = option(
        "plain", '"plain": gradient of the expected fitness; "paper": sqrt(N) mean(f sigma E), N sigma^2 / sqrt(N) times it', str
    )
    normalize_observations: bool = option(True, "by running mean and variance, frozen within a generation", bool)
    reward_offset: float = option(0.0, "added to each step's reward for training only, as -1 against an alive bonus", float)
    deterministic: bool = option(True, "act by the mode of the policy rather than by sampling", bool)
    squash: str = option("tanh", 'how outputs meet the bounds of a Box action space: "tanh" or "clip"', str)
    chunk: int | None = option(None, "pairs evaluated at once on each device; chosen unless given", int)
    mesh: Mesh | None = option(None, 'devices along one axis "pairs"; all that divide the pairs unless given')


@dataclass(frozen=True)
class EggrollOptions(ESOptions):
    """Options of EGGROLL."""

    rank: int = option(1, "rank of each matrix's perturbation", int)
    thin: float | None = option(
        None, "matrices for which low rank adds more than this fraction of variance get dense noise", float
    )


def eggroll(env: Any, policy: Any = None, **options: Any) -> Agent:
    """EGGROLL: evolution strategies with low-rank perturbations (arXiv 2511.16652).

    Each weight matrix W (m x n) of a member is `W + sigma A B^T / sqrt(rank)`; what is not a matrix gets dense noise.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: a network (`esrl.mlp(...)`, `esrl.gru(...)`, a Flax module, `esrl.policy(...)`); None is `esrl.mlp()`.
      **options: the fields of `EggrollOptions`.

    Raises:
      EsrlError: an unknown option, a value that does not fit, or an environment or network that does not.
    """
    read = read_options(EggrollOptions, options)
    return evolution_strategy("eggroll", env, policy, noises.low_rank(read.rank, read.thin), read)


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
    _check(options)
    env = make(env)
    check_contract(env)
    setup = _setup(env, bind(policy, env.observation_space, env.action_space, options.deterministic, options.squash), noise, options)
    normalized = options.normalize_observations and any(jax.tree.leaves(setup.policy.floats))
    rates = [1.0 if callable(x) else x for x in (options.sigma, _learning_rate(options))]

    def init(key: Key) -> ESState:
        params = setup.policy.init(jax.random.fold_in(key, 0))
        moments = moment.init(setup.policy.observation, setup.policy.floats) if normalized else None
        start = (setup.optimizer.init(params), moments, key, jnp.uint32(0), *map(jnp.float32, rates))
        return ESState(params, *start, count(), count())

    def act(state: ESState, observation: PyTree, carry: PyTree, key: Key) -> tuple[Array, PyTree]:
        seen = observation if state.moments is None else moment.normalise(state.moments, observation)
        output, carry = setup.policy.apply(state.params, seen, carry)
        return setup.policy.action(output, key), carry

    compiled = partial(sharding.compiled, mesh=setup.mesh)
    play = partial(rollout, setup)
    return Agent(
        name,
        env,
        setup.policy,
        setup.runner,
        init=compiled(init),
        rollout=compiled(play) if setup.runner.jittable else play,
        update=compiled(partial(update, setup)),
        act=act,
        plan=_plan(setup),
        options=changed_options(options),
    )


def _setup(env: Any, policy: Policy, noise: Noise, options: ESOptions) -> Setup:
    signs = (1.0, -1.0) if options.antithetic else (1.0,)
    pairs, per_pair = options.population // len(signs), len(signs) * options.episodes_per_member
    runner = make_runner(env, (lambda r: r + options.reward_offset) if options.reward_offset else None)
    host = not runner.jittable
    mesh = options.mesh or (sharding.one_device() if host else sharding.default_mesh(pairs))
    chunk = options.chunk or (pairs if host else sharding.default_chunk(pairs, per_pair, mesh))
    sharding.check_chunk(chunk, pairs, mesh)
    if host and (chunk != pairs or mesh.size > 1):
        raise EsrlError("an environment that Python steps takes the whole population at once; leave out chunk and mesh")

    params = jax.eval_shape(policy.init, jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")))
    leaves = noise.plan(perturb.classify(policy.apply, params, policy.observation, policy.carry))
    forward = perturb.population(policy.apply, leaves)

    def act(context: PyTree, observations: PyTree, carry: PyTree, keys: Key) -> tuple[Array, PyTree]:
        params, eps, scale, moments = context
        if moments is not None:
            observations = jax.vmap(lambda x: moment.normalise(moments, x))(observations)
        outputs, carry = forward(params, eps, scale, observations, carry)
        return jax.vmap(policy.action)(outputs, keys), carry

    return Setup(
        policy=policy,
        runner=runner,
        noise=noise,
        leaves=leaves,
        shape=shapings.by_name(options.shaping),
        optimizer=make_optimizer(options.optimizer, options.momentum, options.weight_decay, options.max_grad_norm),
        sigma=_scheduled("sigma", options.sigma, options.sigma_decay),
        learning_rate=_scheduled("learning_rate", _learning_rate(options), options.lr_decay),
        pairs=pairs,
        signs=signs,
        episodes=options.episodes_per_member,
        chunk=chunk,
        mesh=mesh,
        paper_scale=options.step_scale == "paper",
        act=act,
        sample=jax.jit(lambda key, ids: noise.sample(key, leaves, ids)),
    )


def _scheduled(name: str, value: Any, decay: float) -> Callable[[ESState], Array]:
    """The value of this generation: base value times schedule times decay^generation."""

    def now(state: ESState) -> Array:
        base = getattr(state, name)
        if callable(value):
            base = base * value(state.generation.astype(jnp.int32))
        return base if decay == 1.0 else base * jnp.float32(decay) ** state.generation.astype(jnp.float32)

    return now


def _learning_rate(options: ESOptions) -> Any:
    if options.learning_rate is not None:
        return options.learning_rate
    return 0.01 if isinstance(options.optimizer, str) else 1.0


def _plan(setup: Setup) -> Plan:
    floats = sum(leaf.floats for leaf in setup.leaves)
    dense = sum(math.prod(leaf.shape) for leaf in setup.leaves)
    lanes = setup.pairs * len(setup.signs) * setup.episodes
    return Plan(lanes, setup.leaves, floats, dense, setup.chunk, setup.mesh.size)


def _check(options: ESOptions) -> None:
    """Raises `EsrlError` for the first option whose value makes no sense."""
    members = options.population
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise EsrlError(f"population is {members!r}, but must be a whole number of at least {1 + options.antithetic}")
    if options.antithetic and members % 2:
        raise EsrlError(
            f"population is {members}, but antithetic pairs need an even number; use {members + 1}, or antithetic=false"
        )
    if not isinstance(options.episodes_per_member, int) or options.episodes_per_member < 1:
        raise EsrlError(f"episodes_per_member is {options.episodes_per_member}, but must be at least 1")
    for name in ("sigma", "learning_rate", "sigma_decay", "lr_decay"):
        value = getattr(options, name)
        if value is not None and not callable(value) and not (value > 0 and math.isfinite(value)):
            raise EsrlError(f"{name} is {value}, but must be above 0")
    if options.step_scale not in ("plain", "paper"):
        raise EsrlError(f'step_scale is {options.step_scale!r}, but must be "plain" or "paper"')
    if options.shaping == "sign" and not options.antithetic:
        raise EsrlError("sign shaping compares the two members of a pair; it needs antithetic=true")
