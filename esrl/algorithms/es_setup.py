"""What an evolution strategy is made of, put together before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from esrl.algorithms import memory_plan as footprint
from esrl.algorithms import shaping as shapings
from esrl.algorithms.agent import Plan
from esrl.algorithms.es_options import BASE_RATE, ESOptions
from esrl.algorithms.optimizers import make_optimizer
from esrl.core import sharding
from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.envs.base import on_device
from esrl.perturbation import forward as perturb
from esrl.perturbation.classify import classify
from esrl.perturbation.noise import Leaf, Noise
from esrl.policies import running_statistics as moment
from esrl.policies.policy import Policy
from esrl.rollouts.runner import runner as make_runner
from esrl.rollouts.types import Runner


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays fixed over a run: functions and sizes, no arrays.

    P = `pairs`, S = `len(signs)`, E = `episodes`. On each device `chunk` pairs play at once, and the perturbations of
    `batch` pairs are summed at once; `each` has the bytes of one pair. `sigma` and `learning_rate` map a state to this
    generation's value; `act(((params, scale, moments), eps), observations, carry, keys) -> (actions, carry)` is for all
    lanes at once.
    """

    policy: Policy
    runner: Runner
    noise: Noise
    leaves: tuple[Leaf, ...]
    shape: shapings.Shaping
    optimizer: optax.GradientTransformation
    sigma: Callable[[Any], Array]
    learning_rate: Callable[[Any], Array]
    pairs: int
    signs: tuple[float, ...]
    episodes: int
    chunk: int
    batch: int
    each: dict[str, int]
    mesh: Mesh
    paper_scale: bool
    act: Callable[..., Any]
    sample: Callable[[Key, Array], list[Any]]


def prepare(env: Any, policy: Policy, noise: Noise, options: ESOptions) -> Setup:
    """Everything of a run that its options, environment and policy decide.

    Raises:
      EsrlError: an option that does not fit the others.
    """
    signs = (1.0, -1.0) if options.antithetic else (1.0,)
    pairs, per_pair = options.population // len(signs), len(signs) * options.episodes_per_member
    runner = make_runner(env, (lambda r: r + options.reward_offset) if options.reward_offset else None)
    host = not on_device(env)
    mesh = options.mesh or (sharding.one_device() if host else sharding.default_mesh(pairs))
    params = jax.eval_shape(policy.init, jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")))
    leaves = noise.plan(classify(policy.apply, params, policy.observation, policy.carry))
    noise_bytes = noise.bytes_each * sum(leaf.floats for leaf in leaves)
    each = footprint.pair_bytes(env, policy, per_pair, noise_bytes)
    chosen = pairs if host else footprint.default_chunk(pairs, per_pair, sum(each.values()), mesh, options.memory)
    chunk = chosen if options.chunk is None else options.chunk
    sharding.check_chunk(chunk, pairs, mesh)
    if host and (chunk != pairs or mesh.size > 1):
        raise EsrlError("an environment that Python steps takes the whole population at once; leave out chunk and mesh")
    forward = perturb.population(policy.apply, leaves)

    def act(context: PyTree, observations: PyTree, carry: PyTree, keys: Key) -> tuple[Array, PyTree]:
        (params, scale, moments), eps = context
        seen = jax.vmap(lambda x: moment.normalise(moments, x))(observations)
        outputs, carry = forward(params, eps, scale, seen, carry)
        return jax.vmap(policy.action)(outputs, keys), carry

    return Setup(
        policy=policy,
        runner=runner,
        noise=noise,
        leaves=leaves,
        shape=shapings.by_name(options.shaping),
        optimizer=make_optimizer(options.optimizer, options.momentum, options.weight_decay, options.max_grad_norm),
        sigma=_scheduled("sigma", options.sigma, options.sigma_decay),
        learning_rate=_scheduled("learning_rate", base_learning_rate(options), options.lr_decay),
        pairs=pairs,
        signs=signs,
        episodes=options.episodes_per_member,
        chunk=chunk,
        batch=footprint.default_batch(pairs, noise_bytes, mesh),
        each=each,
        mesh=mesh,
        paper_scale=options.step_scale == "paper",
        act=act,
        sample=jax.jit(jax.named_scope("noise")(lambda key, ids: noise.sample(key, leaves, ids))),
    )


def _scheduled(name: str, value: Any, decay: float) -> Callable[[Any], Array]:
    """The value of this generation: base value times schedule times decay^generation."""

    def now(state: Any) -> Array:
        base = getattr(state, name)
        if callable(value):
            base = base * value(state.generation.astype(jnp.int32))
        return base if decay == 1.0 else base * jnp.float32(decay) ** state.generation.astype(jnp.float32)

    return now


def base_learning_rate(options: ESOptions) -> Any:
    """The learning rate, or what it is when it is not given."""
    if options.learning_rate is not None:
        return options.learning_rate
    return BASE_RATE if isinstance(options.optimizer, str) else 1.0


def plan(setup: Setup, state: PyTree) -> Plan:
    """The sizes of a generation; `state` is the agent's, or its shapes."""
    floats = sum(leaf.floats for leaf in setup.leaves)
    weights = sum(math.prod(leaf.shape) for leaf in setup.leaves)
    lanes = len(setup.signs) * setup.episodes
    local = setup.pairs // setup.mesh.size
    memory = footprint.parts(setup.each, state, local, lanes, setup.chunk, setup.batch)
    size = floats * setup.noise.bytes_each
    return Plan(setup.pairs * lanes, setup.leaves, floats, weights, setup.chunk, setup.mesh.size, size, memory)
