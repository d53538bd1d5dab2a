"""The agent `eggroll_int8`: EGGROLL whose weights, noise, sums and steps are integers."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from esrl.algorithms import integer_es, memory_plan
from esrl.algorithms.agent import Agent, Plan, mesh_for, stepping
from esrl.algorithms.es_agents import OF_OBJECTIVE
from esrl.algorithms.integer_es import SCORE_MOST, SIGNS, IntegerES, IntegerESState, rollout, update
from esrl.algorithms.options import agent_constructor, changed_options
from esrl.core import sharding
from esrl.core.integers import LARGEST, NOISE_MOST
from esrl.core.types import EsrlError, Key, PyTree, count, notice_once, seed_key
from esrl.envs.base import max_episode_steps_of, on_device
from esrl.envs.checks.contract import check_contract
from esrl.envs.objectives import Objective
from esrl.envs.registry import make
from esrl.perturbation import forward, integer_noise
from esrl.perturbation.classify import classify
from esrl.policies import integer_statistics
from esrl.policies.networks import mlp
from esrl.policies.policy import Policy, bind
from esrl.rollouts import scoring
from esrl.rollouts.runner import runner

NETWORK = mlp((32, 32), output_scale=0.25, skip=True, dtype="int8")  # the policy unless given


@agent_constructor()
def eggroll_int8(
    env: Any,
    policy: Any = None,
    *,
    rank: int = 1,
    population: int = 256,
    sigma_shift: int = 2,
    quantile: float = 0.2,
    quantile_decay: float = 0.02,
    shaping: str = "sign",
    episodes_per_member: int = 1,
    momentum_shift: int = 0,
    averaging_shift: int = 4,
    normalize_observations: bool = True,
    noise_table: int | None = None,
    noise_reuse: int = 1,
    group_pairs: int = 1,
    chunk_pairs: int | None = None,
    memory_gib: float | None = None,
    mesh: Mesh | None = None,
) -> Agent:
    """EGGROLL in integers (arXiv 2511.16652, its int8 models): a policy trained as a chip without floats runs it.

    Weights and activations are int8, sums int32, scales powers of two. A weight moves by one step, up or down, when the
    sum of its members' votes passes a test; there are no float weights beside them. Equations, and what differs from
    the source, stand in `esrl.algorithms.integer_es`. The policy acts by its most likely action.

    Args:
      env: an environment, or whatever `esrl.make` takes; or an objective (`esrl.objective`), whose `apply` takes floats
        with 1 for one standard deviation, and gives floats: it is there that integers meet them.
      policy: a network of integers: `esrl.mlp`, `esrl.gru` or `esrl.cnn` with `dtype="int8"`, or `esrl.network` of a
        function of int8 arrays. None is `esrl.mlp((32, 32), output_scale=0.25, skip=True, dtype="int8")`, or what an
        objective brings along.
      rank: rank R of each matrix's perturbation.
      population: members of a generation, 2P in antithetic pairs.
      sigma_shift: sigma is 2^-sigma_shift, where weights start with standard deviation 1 (an integer of 16).
      quantile: the fraction of weights that would move in the first generation if chance alone decided, in place of a
        learning rate; 1 moves all.
      quantile_decay: the quantile of a generation is quantile / (1 + quantile_decay generation).
      shaping: what a pair votes with: "sign", -1, 0 or 1, or "z_score", its difference over the mean one of its group.
      episodes_per_member: episodes that a member's fitness is the mean of.
      momentum_shift: votes of earlier generations count as well: their sum forgets 2^-momentum_shift of itself in each
        generation; 0 counts a generation's own alone.
      averaging_shift: the trained agent acts by an average of its weights (int16) that moves by 2^-averaging_shift of
        its distance in each generation; 0 is none.
      normalize_observations: quantize observations by their running mean and spread, frozen within a generation;
        without, 32 stands for 1.
      noise_table: size of a table of random numbers that the noise is sliced from, as in the source; None draws anew.
      noise_reuse: generations in a row that draw the same noise; above 1 a warning says what that does.
      group_pairs: pairs in a row that play the same worlds and, with "z_score", are compared with each other.
      chunk_pairs: pairs that play at once on each device. None chooses by caches and memory.
      memory_gib: GiB that the pairs that play at once may take on each device. None is half of what it has.
      mesh: devices along one axis "pairs". None takes all that divide the number of pairs.

    Raises:
      EsrlError: a value that does not fit, an environment that does not, a network that is not of integers (what in it,
        by its name), or sizes with which an int32 could overflow.

    Example:
      >>> agent = esrl.eggroll_int8("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,), dtype="int8"), population=32)
      >>> state, metrics = agent.step(agent.init(jax.random.key(0)))
      >>> {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)}
      {'int8'}
    """
    options = SimpleNamespace(**locals())
    _check_together(options)
    made = make(env)
    scores = isinstance(made, Objective)
    if not scores:
        check_contract(made)
    own = made.network if isinstance(made, Objective) else None
    network = next(network for network in (policy, own, NETWORK) if network is not None)
    bound = bind(network, made.observation_space, made.action_space, squash="clip", integer=True)
    if policy is None and own is not None:
        bound = bound._replace(spec=bound.spec or OF_OBJECTIVE)
    config = _configure(made, bound, options)
    normalized = normalize_observations and not scores and any(jax.tree.leaves(bound.normalizable))
    steps = population * episodes_per_member * max_episode_steps_of(made)
    moments = integer_statistics.init(bound.observation, bound.normalizable, steps) if normalized else None

    def init(key: Key) -> IntegerESState:
        params = bound.init(jax.random.fold_in(key, 0))
        return IntegerESState(
            params=params,
            average=integer_es.start_average(params) if averaging_shift else None,
            votes=[jnp.zeros(leaf.shape, jnp.int32) for leaf in config.leaves] if momentum_shift else None,
            chance=jnp.int32(0) if momentum_shift else None,
            moments=jax.tree.map(jnp.copy, moments),
            table=integer_noise.table(jax.random.fold_in(key, 2**31), noise_table) if noise_table else None,
            key=key,
            generation=jnp.uint32(0),
            env_steps=count(),
            padded_steps=count(),
        )

    def act(state: IntegerESState, observation: PyTree, carry: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        seen = integer_statistics.quantized(state.moments, observation, bound.normalizable)
        output, carry = bound.apply(integer_es.acts_by(state), seen, carry)
        return bound.action(output, key), carry

    return Agent(
        name="eggroll_int8",
        kind="evolution",
        env=made,
        policy=bound,
        runner=config.runner,
        config=config,
        act=act,
        acts_by=integer_es.acts_by,
        plan=_plan(config, jax.eval_shape(init, jax.eval_shape(lambda: seed_key(0)))),
        options=changed_options(eggroll_int8, vars(options)),
        in_force={"normalize_observations": False} if scores else {},  # an objective has no statistics of observations
        **stepping(made, init, partial(rollout, config), partial(update, config), config.mesh),
    )


def _check_together(options: SimpleNamespace) -> None:
    """Raises `EsrlError` for options that do not fit each other, and warns of those that surprise."""
    members, pairs = options.population, options.population // 2
    if members % 2:
        raise EsrlError(f"population is {members}, but antithetic pairs need an even number; use {members + 1}")
    if options.shaping not in ("sign", "z_score"):
        raise EsrlError(f'shaping is {options.shaping!r}, but eggroll_int8 has "z_score" and "sign"')
    if options.shaping == "z_score" and options.group_pairs == 1:
        raise EsrlError(
            'group_pairs is 1, so that shaping="z_score" would compare each pair with itself alone; give group_pairs,'
            " as 8, or leave shaping at sign"
        )
    if pairs % options.group_pairs:
        raise EsrlError(f"group_pairs is {options.group_pairs}, but must divide the {pairs} pairs of the population")
    if options.chunk_pairs is not None and options.memory_gib is not None:
        raise EsrlError(
            "chunk_pairs says how many pairs play at once, and memory_gib would choose it; give one of them"
        )
    score = 1 if options.shaping == "sign" else SCORE_MOST
    # A running sum is rounded by its shift: it may come above 2^momentum_shift times a generation's by that much.
    most = score * options.rank * max(score, NOISE_MOST * NOISE_MOST) << options.momentum_shift
    largest = (LARGEST - (1 << options.momentum_shift)) // most
    if pairs > largest:
        more = ("" if score == 1 else ', or shaping="sign"') + (
            ", or a smaller momentum_shift" if options.momentum_shift else ""
        )
        raise EsrlError(
            f"population is {members:,}, and the votes of more than {2 * largest:,} members of rank {options.rank}"
            f" could overflow int32; use fewer{more}"
        )
    if options.noise_reuse > 1:
        notice_once(
            f"noise_reuse is {options.noise_reuse}: that many generations in a row try the same directions, so their"
            " errors add up instead of averaging out, and no other direction is tried meanwhile"
        )


def _configure(env: Any, policy: Policy, options: SimpleNamespace) -> IntegerES:
    """The configuration of a run, from its options, environment and policy."""
    pairs, per_pair = options.population // 2, len(SIGNS) * options.episodes_per_member
    host = not on_device(env)
    mesh = options.mesh or mesh_for(env, pairs, "population", len(SIGNS))
    seen = jax.eval_shape(
        lambda x: integer_statistics.quantized(None, x, policy.normalizable), policy.observation
    )  # what the network gets
    params = jax.eval_shape(policy.init, jax.eval_shape(lambda: seed_key(0)))
    same_worlds = False
    if isinstance(env, Objective):
        policy, same_worlds = scoring.scored(policy, env), env.shared == "population"
        seen = policy.observation  # a key
    used = classify(policy.apply, params, seen, policy.carry)
    leaves = integer_noise.plan(used, options.rank, options.sigma_shift)
    count_each = sum(leaf.num_random for leaf in leaves)
    if options.noise_table is not None and options.noise_table < count_each:
        raise EsrlError(f"noise_table is {options.noise_table:,}, but a member takes {count_each:,} random numbers")
    each = memory_plan.pair_bytes(
        env, policy._replace(observation=seen), per_pair, count_each, isinstance(env, Objective)
    )
    chunk = options.chunk_pairs or (
        pairs if host else memory_plan.default_chunk(pairs, per_pair, sum(each.values()), mesh, options.memory_gib)
    )
    sharding.check_chunk(chunk, pairs, mesh)
    if host and (chunk != pairs or mesh.size > 1 or options.memory_gib is not None):
        raise EsrlError(
            "an environment that Python steps takes the whole population at once; leave out chunk_pairs, memory_gib"
            " and mesh"
        )
    first, thresholds = integer_es.schedule(options.quantile, options.quantile_decay)
    return IntegerES(
        policy=policy,
        runner=runner(env),
        leaves=leaves,
        forward=scoring.population(policy.apply, leaves, frozenset(), env.shared, options.episodes_per_member)
        if isinstance(env, Objective)
        else forward.population(policy.apply, leaves),
        score=integer_es.signs if options.shaping == "sign" else integer_es.z_scores(options.group_pairs),
        most=1 if options.shaping == "sign" else SCORE_MOST,
        thresholds=thresholds,
        first=first,
        averaging=options.averaging_shift,
        momentum=options.momentum_shift,
        reuse=options.noise_reuse,
        group=pairs if same_worlds else options.group_pairs,
        pairs=pairs,
        episodes=options.episodes_per_member,
        chunk=chunk,
        update_chunk=memory_plan.default_update_chunk(pairs, 4 * count_each, mesh),  # z-scores sum factors as int32
        pair_bytes=each,
        mesh=mesh,
    )


def _plan(config: IntegerES, state: PyTree) -> Plan:
    """The sizes of a generation; `state` is the agent's shapes."""
    lanes, local = len(SIGNS) * config.episodes, config.pairs // config.mesh.size
    num_random = sum(leaf.num_random for leaf in config.leaves)
    return Plan(
        lanes=config.pairs * lanes,
        leaves=config.leaves,
        num_random=num_random,
        num_params=sum(math.prod(leaf.shape) for leaf in config.leaves),
        chunk=config.chunk,
        devices=config.mesh.size,
        noise_bytes=num_random,
        memory=memory_plan.breakdown(config.pair_bytes, state, local, lanes, config.chunk, config.update_chunk),
    )
