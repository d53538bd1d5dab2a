"""The agents that are evolution strategies: `es` over any noise space, and its two faces, `eggroll` and `open_es`."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from esrl.algorithms import memory_plan
from esrl.algorithms import shaping as shapings
from esrl.algorithms import signal as signals
from esrl.algorithms.agent import Agent, Plan, mesh_for, stepping
from esrl.algorithms.es import ES, ESState, rollout, update
from esrl.algorithms.frozen import frozen_places, join, split
from esrl.algorithms.optimizers import Schedule, base_rate, make_optimizer, scheduled
from esrl.algorithms.options import agent_constructor, changed_options
from esrl.algorithms.shaping import Shaping
from esrl.algorithms.signal import Sizing
from esrl.core import sharding
from esrl.core.options import Names, Option, options_of
from esrl.core.types import Array, EsrlError, Key, PyTree, count, count_float, seed_key
from esrl.envs.base import max_episode_steps_of, on_device
from esrl.envs.checks.contract import check_contract
from esrl.envs.objectives import Objective
from esrl.envs.registry import make
from esrl.perturbation import forward
from esrl.perturbation import noise as noises
from esrl.perturbation.classify import classify
from esrl.perturbation.noise import Leaf, Noise
from esrl.policies import running_statistics
from esrl.policies.networks import mlp
from esrl.policies.policy import Policy, bind
from esrl.policies.precision import arithmetic
from esrl.rollouts import scoring
from esrl.rollouts.runner import runner
from esrl.rollouts.types import Transform

# The defaults below are those of experiments/defaults: one search over eight environments.
RATES = {"clipup": 0.2, "sgd": 0.2}  # learning rates unless given; their steps have other units than the others' 0.02
BASE_RATE = 0.02
NETWORK = mlp((64, 64), output_scale=0.1, skip=True)  # the policy unless given
OF_OBJECTIVE = {"network": "objective"}  # what a recipe says of a network that only an objective's code can make
_OF_STEPS = ("gamma", "reward_offset", "warm_statistics", "horizon", "deterministic", "squash")
_WIDE = 64  # inputs of a layer, from which on layer_sigma="fan_in" makes sigma and step smaller


@agent_constructor()
def es(
    env: Any,
    policy: Any = None,
    *,
    noise: Noise | None = None,
    population: int = 8,
    sigma: float | Schedule = 0.05,
    learning_rate: float | Schedule | None = None,
    optimizer: str | optax.GradientTransformation = "clipup",
    momentum: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    sigma_decay: float = 1.0,
    lr_decay: float = 1.0,
    shaping: str | Shaping = "centered_rank",
    episodes_per_member: int = 2,
    antithetic: bool = True,
    gradient_scale: str = "unbiased",
    normalize_observations: bool = True,
    gamma: float = 1.0,
    reward_offset: float = 0.0,
    warm_statistics: int = 0,
    averaging: float = 0.97,
    layer_sigma: str | dict[str, float] | None = None,
    frozen: Names | None = None,
    signal_sigma: bool | None = None,
    signal_rate: bool = False,
    signal_pairs: float | None = None,
    max_population: int | None = None,
    generation_steps: int | None = None,
    horizon: int | None = None,
    horizon_steps: float = 1e6,
    deterministic: bool = True,
    squash: str = "tanh",
    precision: str = "float32",
    chunk_pairs: int | None = None,
    memory_gib: float | None = None,
    exchange: str = "sums",
    mesh: Mesh | None = None,
) -> Agent:
    """An evolution strategy over any noise space; EGGROLL and OpenES are this with one or the other noise.

    Args:
      env: an environment, or whatever `esrl.make` takes; or an objective (`esrl.objective`).
      policy: a network (`esrl.mlp(...)`, `esrl.gru(...)`, a Flax module, `esrl.network(...)`); None is
        `esrl.mlp((64, 64), output_scale=0.1, skip=True)`, or what an objective brings along.
      noise: the noise space, `esrl.noise.low_rank(...)`, `esrl.noise.dense(...)`, or one of your own. None is
        `low_rank(1)`.
      population: members of a generation, 2P with antithetic pairs. Many small generations learn more from as many
        environment steps than few large ones; an accelerator is filled by more, such as 512.
      sigma: standard deviation of each weight's perturbation, or a schedule of it over generations.
      learning_rate: learning rate of the optimizer, or a schedule over generations. None is 0.2 for
        clipup and sgd, 0.02 for other optimizers by name, and 1 for an optax transformation, which has its own.
      optimizer: "clipup" (arXiv 2008.02387: steps of one length, however large the gradient), an optax optimizer's
        name, or an optax transformation.
      momentum: momentum of sgd and rmsprop; the first decay rate of adam and its relatives.
      weight_decay: decoupled weight decay, in units of the learning rate.
      max_grad_norm: bound on the global norm of the gradient estimate.
      sigma_decay: factor on sigma for each generation.
      lr_decay: factor on the learning rate for each generation.
      shaping: centered_rank, z_score, group, sign, none or leave_one_out; or a function from fitness [P, S] to weights
        [P, S].
      episodes_per_member: episodes that a member's fitness is the mean of.
      antithetic: members come in pairs W + sigma E, W - sigma E that play the same worlds.
      gradient_scale: "unbiased" is the gradient of the expected fitness, (1 / (N sigma)) sum f E; "paper" is sqrt(N)
        mean(f sigma E), which is sqrt(N) sigma^2 times as long.
      normalize_observations: normalize observations by their running mean and variance, frozen within a generation.
      gamma: discount of a reward for each step before it, in fitness only; returns stay as they are. Below 1 a goal is
        worth more the sooner it is reached, so that members which all reach it, or all miss it later, are told apart.
      reward_offset: added to each step's reward for training only, as -1 against a bonus for being alive.
      warm_statistics: generations at the start that only gather the statistics of observations; the parameters stay.
      averaging: decay of the exponential moving average of the parameters, by which the trained agent acts and is
        evaluated; 0 is none.
      layer_sigma: factors on sigma and on the step for each parameter. "fan_in" is sqrt(64 / inputs) for the matrix of
        a layer with more than 64 inputs, so that a wide layer's outputs are perturbed as much as others'. A table from
        patterns of names to factors, as {"*Dense_0*": 0.5}, says them one by one. None is 1 for all.
      frozen: patterns of names of parameters that stay as they start, neither perturbed nor trained: "Dense_0/*" is all
        of a layer. None trains all.
      signal_sigma: let sigma follow the measured signal: it grows, up to 4 times, while chance decides which member of
        a pair is better, and shrinks, down to a quarter, while it does not. It needs episodes_per_member of at least 2.
        None is true where that is so and sigma is a number without decay.
      signal_rate: let the learning rate follow the measured signal: it is multiplied by the square root of the pairs
        without chance that an estimate is worth, over signal_pairs, within 0.1 .. 3. It needs two episodes as well.
      signal_pairs: pairs that are not tied, of which an estimate has so many before a step is taken; see
        max_population. None is 4, or all pairs of a generation where they are fewer.
      max_population: members of which one step may be made, where rewards are rare. Generations of `population` members
        are added up until signal_pairs of their pairs are not tied, or until another one would make them more members
        than these. None is `population`: every generation makes a step.
      generation_steps: live environment steps that a step waits for as well, within max_population.
      horizon: cap on the steps of a training episode at the start; it grows evenly to the environment's own over
        horizon_steps environment steps. None is no cap.
      horizon_steps: environment steps after which horizon no longer matters.
      deterministic: act by the mode of the policy rather than by sampling.
      squash: how outputs meet the bounds of a Box action space, "tanh" or "clip".
      precision: type of the operands of the network's products, "float32" or "bfloat16"; all else is float32.
      chunk_pairs: pairs that play at once on each device. None chooses by caches and memory.
      memory_gib: GiB that the pairs that play at once may take on each device. None is half of what it has.
      exchange: what the processes of `esrl.join` send each other for a step. "sums": each sums its own pairs' part of
        the estimate, and the sums, as large as the network, are added up. "scalars": each draws the noise of all pairs
        again and sums it itself, so that only fitness and the sums of observations travel.
      mesh: devices along one axis "pairs". None takes all that divide the number of pairs; with `esrl.join`, all
        devices of all processes.

    Raises:
      EsrlError: a value that does not fit, or an environment or network that does not.

    Example:
      >>> agent = esrl.es("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), noise=esrl.noise.low_rank(4), population=32)
      >>> state = agent.init(jax.random.key(0))
      >>> state, metrics = agent.step(state)
      >>> int(state.generation), float(metrics["fitness_mean"]) > 1
      (1, True)
    """
    given = dict(locals())  # every argument by its name
    return _agent("es", es, noises.low_rank(1) if noise is None else noise, given)


@agent_constructor(shares=es)
def eggroll(
    env: Any,
    policy: Any = None,
    *,
    rank: int = 1,
    max_excess_variance: float | None = None,
    noise_distribution: str = "normal",
    noise_dtype: str = "float32",
    population: int = 8,
    sigma: float | Schedule = 0.05,
    learning_rate: float | Schedule | None = None,
    optimizer: str | optax.GradientTransformation = "clipup",
    momentum: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    sigma_decay: float = 1.0,
    lr_decay: float = 1.0,
    shaping: str | Shaping = "centered_rank",
    episodes_per_member: int = 2,
    antithetic: bool = True,
    gradient_scale: str = "unbiased",
    normalize_observations: bool = True,
    gamma: float = 1.0,
    reward_offset: float = 0.0,
    warm_statistics: int = 0,
    averaging: float = 0.97,
    layer_sigma: str | dict[str, float] | None = None,
    frozen: Names | None = None,
    signal_sigma: bool | None = None,
    signal_rate: bool = False,
    signal_pairs: float | None = None,
    max_population: int | None = None,
    generation_steps: int | None = None,
    horizon: int | None = None,
    horizon_steps: float = 1e6,
    deterministic: bool = True,
    squash: str = "tanh",
    precision: str = "float32",
    chunk_pairs: int | None = None,
    memory_gib: float | None = None,
    exchange: str = "sums",
    mesh: Mesh | None = None,
) -> Agent:
    """EGGROLL: evolution strategies with low-rank perturbations (arXiv 2511.16652).

    Each weight matrix W (m x n) of a member is `W + sigma A B^T / sqrt(rank)`; what is not a matrix gets dense noise.

    Args:
      rank: rank R of each matrix's perturbation.
      max_excess_variance: matrices for which rank R adds more than this fraction of variance to the gradient estimate
        get dense noise. None leaves every matrix low-rank, as in the paper; rademacher noise adds none.
      noise_distribution: distribution of the random numbers: "normal", or "rademacher": +1 or -1, cheaper.
      noise_dtype: type that they are stored in: "float32", "bfloat16", or "int8" for rademacher.
      **shared: as in `esrl.es`:

    Raises:
      EsrlError: a value that does not fit, or an environment or network that does not.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32, rank=1, sigma=0.1)
      >>> result = esrl.train(agent, generations=2, eval_episodes=8)
      >>> int(result.state.generation)
      2
    """
    given = dict(locals())
    noise = noises.low_rank(rank, max_excess_variance, noise_distribution, noise_dtype)
    return _agent("eggroll", eggroll, noise, given)


@agent_constructor(shares=es)
def open_es(
    env: Any,
    policy: Any = None,
    *,
    noise_distribution: str = "normal",
    noise_dtype: str = "float32",
    population: int = 8,
    sigma: float | Schedule = 0.05,
    learning_rate: float | Schedule | None = None,
    optimizer: str | optax.GradientTransformation = "clipup",
    momentum: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    sigma_decay: float = 1.0,
    lr_decay: float = 1.0,
    shaping: str | Shaping = "centered_rank",
    episodes_per_member: int = 2,
    antithetic: bool = True,
    gradient_scale: str = "unbiased",
    normalize_observations: bool = True,
    gamma: float = 1.0,
    reward_offset: float = 0.0,
    warm_statistics: int = 0,
    averaging: float = 0.97,
    layer_sigma: str | dict[str, float] | None = None,
    frozen: Names | None = None,
    signal_sigma: bool | None = None,
    signal_rate: bool = False,
    signal_pairs: float | None = None,
    max_population: int | None = None,
    generation_steps: int | None = None,
    horizon: int | None = None,
    horizon_steps: float = 1e6,
    deterministic: bool = True,
    squash: str = "tanh",
    precision: str = "float32",
    chunk_pairs: int | None = None,
    memory_gib: float | None = None,
    exchange: str = "sums",
    mesh: Mesh | None = None,
) -> Agent:
    """OpenES: evolution strategies with dense perturbations (Salimans et al., arXiv 1703.03864).

    Antithetic pairs, centered ranks, Adam and observation normalization as in the source; everything but the noise is
    EGGROLL's own code.

    Args:
      noise_distribution: distribution of the random numbers: "normal", or "rademacher": +1 or -1, cheaper.
      noise_dtype: type that they are stored in: "float32", "bfloat16", or "int8" for rademacher.
      **shared: as in `esrl.es`:

    Raises:
      EsrlError: a value that does not fit, or an environment or network that does not.

    Example:
      >>> agent = esrl.open_es("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32, sigma=0.1)
      >>> print(esrl.describe(agent).splitlines()[0])
      open_es on gymnasium/phys2d/CartPole-v1, at most 500 steps an episode
    """
    given = dict(locals())
    return _agent("open_es", open_es, noises.dense(noise_distribution, noise_dtype), given)


# ---- construction ---------------------------------------------------------------------------------------------------


def _agent(name: str, constructor: Callable[..., Agent], noise: Noise, given: dict[str, Any]) -> Agent:
    """An agent from everything that its constructor was given."""
    options = SimpleNamespace(**given)
    _check_together(options)
    env = make(options.env)
    if isinstance(env, Objective):
        _check_objective(env, constructor, given)
    else:
        check_contract(env)
    own = getattr(env, "network", None) if isinstance(env, Objective) else None
    network = next(network for network in (options.policy, own, NETWORK) if network is not None)
    policy = bind(network, env.observation_space, env.action_space, options.deterministic, options.squash)
    policy = policy._replace(apply=arithmetic(policy.apply, options.precision))
    if options.policy is None and own is not None:
        policy = policy._replace(spec=policy.spec or OF_OBJECTIVE)
    config, held = _configure(env, policy, noise, options)
    normalized = options.normalize_observations and any(jax.tree.leaves(config.policy.normalizable))
    rate = _rate(options)
    places = frozenset(held)

    def init(key: Key) -> ESState:
        params, frozen = split(policy.init(jax.random.fold_in(key, 0)), places)
        moments = running_statistics.init(policy.observation, policy.normalizable) if normalized else None
        return ESState(
            params=params,
            opt_state=config.optimizer.init(params),
            average=params if config.averaging else None,
            moments=moments,
            signal=signals.init(config.sizing, params),
            key=key,
            generation=jnp.uint32(0),
            # A schedule is a function of the generation; the value of the state multiplies it.
            sigma=jnp.float32(1.0 if callable(options.sigma) else options.sigma),
            learning_rate=jnp.float32(1.0 if callable(rate) else rate),
            env_steps=count(),
            padded_steps=count(),
            frozen=frozen,
        )

    # None is another number for each optimizer, and an objective has no statistics of observations.
    in_force = {} if callable(rate) else {"learning_rate": rate}
    in_force |= {"normalize_observations": False} if isinstance(env, Objective) else {}

    def acts_by(state: ESState) -> PyTree:
        return join(state.params if state.average is None else state.average, state.frozen)

    def act(state: ESState, observation: PyTree, carry: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        seen = running_statistics.normalize(state.moments, observation)
        output, carry = policy.apply(acts_by(state), seen, carry)
        return policy.action(output, key), carry

    return Agent(
        name=name,
        kind="evolution",
        env=env,
        policy=policy,
        runner=config.runner,
        config=config,
        act=act,
        acts_by=acts_by,
        plan=_plan(config, tuple(held.values()), jax.eval_shape(init, jax.eval_shape(lambda: seed_key(0)))),
        hyperparams=("sigma", "learning_rate"),
        options=changed_options(constructor, given),
        in_force=in_force,
        **stepping(env, init, partial(rollout, config), partial(update, config), config.mesh),
    )


def _rate(options: SimpleNamespace) -> Any:
    """The learning rate or its schedule."""
    known = RATES.get(options.optimizer, BASE_RATE) if isinstance(options.optimizer, str) else BASE_RATE
    return base_rate(options.learning_rate, options.optimizer, known)


def _check_together(options: SimpleNamespace) -> None:
    """Raises `EsrlError` for options that do not fit each other."""
    members = options.population
    if options.antithetic and members % 2:
        raise EsrlError(
            f"population is {members}, but antithetic pairs need an even number; use {members + 1}, or antithetic=false"
        )
    if options.shaping == "sign" and not options.antithetic:
        raise EsrlError("sign shaping compares the two members of a pair; it needs antithetic=true")
    halves = {
        "signal_sigma": options.signal_sigma,
        "signal_rate": options.signal_rate,
    }
    for name in [name for name, value in halves.items() if value and options.episodes_per_member < 2]:
        raise EsrlError(
            f"{name} needs the signal between two halves of a member's episodes; use episodes_per_member=2 or more"
        )
    if options.signal_sigma and (callable(options.sigma) or options.sigma_decay != 1):
        raise EsrlError("signal_sigma changes sigma by the signal, and a schedule or sigma_decay by time; give one")
    if options.max_population is not None and options.max_population < members:
        raise EsrlError(
            f"max_population is {options.max_population}, but must be at least the population, which is {members}"
        )
    if options.generation_steps is not None and options.max_population is None:
        raise EsrlError("generation_steps needs max_population, the members that a step may wait for at most")
    if options.chunk_pairs is not None and options.memory_gib is not None:
        raise EsrlError(
            "chunk_pairs says how many pairs play at once, and memory_gib would choose it; give one of them"
        )


def _check_objective(env: Objective, constructor: Callable[..., Agent], given: dict[str, Any]) -> None:
    """Raises `EsrlError` for options that mean nothing without steps."""
    changed = [name for name in changed_options(constructor, given) if name in _OF_STEPS]
    changed = [name for name in changed if given[name] != options_of(constructor)[name].default]
    if changed:
        raise EsrlError(f"{env.name} is an objective, which has no steps or actions; leave out {', '.join(changed)}")


def _configure(env: Any, policy: Policy, noise: Noise, options: SimpleNamespace) -> tuple[ES, dict[int, Leaf]]:
    """The configuration of a run, from its options, environment and policy; and its frozen parameters, by place."""
    signs = (1.0, -1.0) if options.antithetic else (1.0,)
    pairs, per_pair = options.population // len(signs), len(signs) * options.episodes_per_member
    host = not on_device(env)
    mesh = options.mesh or mesh_for(env, pairs, "population", len(signs))
    params = jax.eval_shape(policy.init, jax.eval_shape(lambda: seed_key(0)))
    if isinstance(env, Objective):
        policy = scoring.scored(policy, env)
    every = classify(policy.apply, params, policy.observation, policy.carry)
    places = frozen_places([leaf.path for leaf in every], options.frozen)
    held = {place: every[place]._replace(row_axes=None, reason="frozen") for place in sorted(places)}
    params = split(params, places)[0]
    leaves = noise.plan([leaf for place, leaf in enumerate(every) if place not in places])
    leaves = tuple(leaf._replace(scale=scale) for leaf, scale in zip(leaves, _scales(leaves, options), strict=True))
    noise_bytes = noise.bytes_each * sum(leaf.num_random for leaf in leaves)
    each = memory_plan.pair_bytes(env, policy, per_pair, noise_bytes, isinstance(env, Objective))
    # Python steps all lanes in one vector call, so the whole population plays at once there.
    chunk = options.chunk_pairs or (
        pairs if host else memory_plan.default_chunk(pairs, per_pair, sum(each.values()), mesh, options.memory_gib)
    )
    sharding.check_chunk(chunk, pairs, mesh)
    summing = mesh if options.exchange == "sums" else sharding.within_hosts(mesh)
    if host and (chunk != pairs or mesh.size > 1 or options.memory_gib is not None):
        raise EsrlError(
            "an environment that Python steps takes the whole population at once; leave out chunk_pairs, memory_gib"
            " and mesh"
        )
    config = ES(
        policy=policy,
        runner=runner(env, _fitness(options)),
        noise=noise,
        leaves=leaves,
        same_worlds=isinstance(env, Objective) and env.shared == "population",
        draw=jax.jit(jax.named_scope("noise")(lambda key, pairs: noise.sample(key, leaves, pairs))),
        forward=scoring.population(policy.apply, leaves, places, env.shared, options.episodes_per_member)
        if isinstance(env, Objective)
        else forward.population(policy.apply, leaves, places),
        shaping=shapings.by_name(options.shaping, (pairs, len(signs))),
        optimizer=make_optimizer(
            options.optimizer, options.momentum, options.weight_decay, options.max_grad_norm, params
        ),
        sigma=_decayed("sigma", options.sigma, options.sigma_decay),
        learning_rate=_decayed("learning_rate", _rate(options), options.lr_decay),
        averaging=options.averaging,
        sizing=_sizing(options, pairs),
        warm=options.warm_statistics,
        horizon=_horizon(env, options),
        pairs=pairs,
        signs=signs,
        episodes=options.episodes_per_member,
        chunk=chunk,
        update_chunk=memory_plan.default_update_chunk(pairs, noise_bytes, summing),
        paper_scale=options.gradient_scale == "paper",
        pair_bytes=each,
        mesh=mesh,
        summing=summing,
    )
    return config, held


def _sizing(options: SimpleNamespace, pairs: int) -> Sizing:
    """What the measured signal may change."""
    plain = not callable(options.sigma) and options.sigma_decay == 1
    most = pairs if options.antithetic else pairs - 1  # what `signals.told` finds without ties
    return Sizing(
        groups=(options.max_population or options.population) // options.population,
        steps=options.generation_steps or 0,
        pairs=min(signals.TOLD, max(most, 1)) if options.signal_pairs is None else options.signal_pairs,
        sigma=plain and options.episodes_per_member > 1 if options.signal_sigma is None else options.signal_sigma,
        rate=options.signal_rate,
    )


def _scales(leaves: tuple[Leaf, ...], options: SimpleNamespace) -> list[float]:
    """The factor on sigma and on the step of each parameter."""
    wanted = options.layer_sigma
    if wanted is None:
        return [1.0] * len(leaves)
    if wanted == "fan_in":
        return [min(1.0, math.sqrt(_WIDE / leaf.matrix_shape[0])) if leaf.row_axes else 1.0 for leaf in leaves]
    names = [leaf.path for leaf in leaves]
    if not isinstance(wanted, dict):
        raise EsrlError(f'layer_sigma is {wanted!r}, but must be "fan_in", or a table from names to factors')
    found = dict.fromkeys(names, 1.0)
    for pattern, factor in wanted.items():
        matches = fnmatch.filter(names, str(pattern))
        if not matches:
            raise EsrlError(f"layer_sigma names {pattern!r}, but the parameters are {', '.join(names)}")
        number = Option("layer_sigma", float).check(factor, f"layer_sigma of {pattern!r}")
        if number <= 0:
            raise EsrlError(f"layer_sigma of {pattern!r} is {number}, but must be above 0")
        found.update(dict.fromkeys(matches, number))
    return [found[name] for name in names]


def _horizon(env: Any, options: SimpleNamespace) -> Callable[[ESState], Array] | None:
    """The cap on an episode's steps, from a state; None without one."""
    if options.horizon is None or options.horizon >= (whole := max_episode_steps_of(env)):
        return None

    def now(state: ESState) -> Array:
        done = jnp.minimum(1.0, count_float(state.env_steps) / options.horizon_steps)
        return jnp.round(options.horizon + done * (whole - options.horizon)).astype(jnp.int32)

    return now


def _fitness(options: SimpleNamespace) -> Transform | None:
    """What a reward is worth in fitness, gamma^t (r + offset) after t steps; None where that is the reward."""
    if options.gamma == 1:  # no power to take
        return (lambda reward, _: reward + options.reward_offset) if options.reward_offset else None
    # 0^0 is 1 here, so gamma=0 is the first reward alone.
    return lambda reward, time: options.gamma ** time.astype(jnp.float32) * (reward + options.reward_offset)


def _decayed(name: str, value: Any, decay: float) -> Callable[[ESState], Array]:
    """The value of a generation: base value times schedule times decay^generation."""
    base = scheduled(name, value)

    def now(state: ESState) -> Array:
        return base(state) if decay == 1.0 else base(state) * jnp.float32(decay) ** state.generation.astype(jnp.float32)

    return now


def _plan(config: ES, frozen: tuple[Leaf, ...], state: PyTree) -> Plan:
    """The sizes of a generation; `state` is the agent's, or its shapes."""
    num_random = sum(leaf.num_random for leaf in config.leaves)
    lanes = len(config.signs) * config.episodes
    local = config.pairs // config.mesh.size
    return Plan(
        lanes=config.pairs * lanes,
        leaves=config.leaves,
        frozen=frozen,
        num_random=num_random,
        num_params=sum(math.prod(leaf.shape) for leaf in config.leaves),
        chunk=config.chunk,
        devices=config.mesh.size,
        noise_bytes=num_random * config.noise.bytes_each,
        memory=memory_plan.breakdown(config.pair_bytes, state, local, lanes, config.chunk, config.update_chunk),
    )
