"""What PPO is made of, put together before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from esrl.algorithms.agent import Plan
from esrl.algorithms.optimizers import make_optimizer
from esrl.algorithms.ppo_data import Decision
from esrl.algorithms.ppo_options import PPOOptions, check_minibatches
from esrl.core import sharding
from esrl.core.jaxprs import path_name
from esrl.core.types import Array, Key, PyTree
from esrl.envs.base import on_device
from esrl.perturbation.noise import Leaf
from esrl.policies import running_statistics as moment
from esrl.policies.actor_critic import ActorCritic, actor_critic
from esrl.policies.networks import mlp
from esrl.policies.precision import arithmetic
from esrl.rollouts.runner import runner as make_runner
from esrl.rollouts.types import Runner


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays fixed over a run: functions and sizes, no arrays.

    `act((params, moments), observations, carries, keys) -> (actions, carries, record)` and
    `value((params, moments), observations, carries) -> [L]` are for all lanes; `gradient(loss, params, state, part) ->
    (gradient, metrics)` is the mean over a minibatch, worked out on all devices.
    """

    nets: ActorCritic
    runner: Runner
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[Any], Array]
    gradient: Callable[..., tuple[PyTree, PyTree]]
    act: Callable[..., tuple[Any, PyTree, PyTree]]
    value: Callable[..., Array]
    lanes: int
    steps: int
    epochs: int
    minibatches: int
    mesh: Mesh
    reward_scale: float
    clip_value: bool
    normalize_advantages: bool


def prepare(env: Any, policy: Any, options: PPOOptions) -> Setup:
    """Puts PPO together for an environment.

    Raises:
      EsrlError: an option that does not fit the others, or a network that does not fit the environment.
    """
    network = mlp(output_scale=0.01) if policy is None else policy
    nets = actor_critic(network, env.observation_space, env.action_space, options.critic, options.squash)
    policy = nets.policy._replace(apply=arithmetic(nets.policy.apply, options.precision))
    nets = nets._replace(policy=policy, apply=arithmetic(nets.apply, options.precision, differentiated=True))
    check_minibatches(options, nets.recurrent)
    runner = make_runner(env)
    sequences = options.num_envs * (1 if nets.recurrent else options.num_steps) // options.num_minibatches
    shared = math.gcd(options.num_envs, sequences)
    mesh = sharding.default_mesh(shared) if on_device(env) else sharding.one_device()
    head = nets.policy.head

    def forward(context: PyTree, observations: PyTree, carries: PyTree) -> tuple[Any, PyTree]:
        params, moments = context
        one = lambda obs, carry: nets.apply(params, moment.normalise(moments, obs), carry)  # noqa: E731
        return jax.vmap(one)(observations, carries)

    def act(context: PyTree, observations: PyTree, carries: PyTree, keys: Key) -> tuple[Any, PyTree, PyTree]:
        out, carries = forward(context, observations, carries)
        choice = jax.vmap(head.draw)(out.output, out.log_std, keys)
        log_prob = jax.vmap(head.log_prob)(out.output, out.log_std, choice)
        return jax.vmap(head.action)(choice), carries, Decision(choice, log_prob, out.value)

    def value(context: PyTree, observations: PyTree, carries: PyTree) -> Array:
        return forward(context, observations, carries)[0].value

    def learning_rate(state: Any) -> Array:
        if options.anneal_steps is None:
            return state.learning_rate
        done = state.generation.astype(jnp.float32) * (options.num_envs * options.num_steps / options.anneal_steps)
        return state.learning_rate * jnp.maximum(1.0 - done, 0.0)

    return Setup(
        nets=nets,
        runner=runner,
        optimizer=make_optimizer(options.optimizer, None, options.weight_decay, options.max_grad_norm),
        learning_rate=learning_rate,
        gradient=_gradient(mesh),
        act=act,
        value=value,
        lanes=options.num_envs,
        steps=options.num_steps,
        epochs=options.num_epochs,
        minibatches=options.num_minibatches,
        mesh=mesh,
        reward_scale=options.reward_scale,
        clip_value=options.clip_value,
        normalize_advantages=options.normalize_advantages,
    )


def plan(setup: Setup) -> Plan:
    """The sizes of an iteration."""
    shapes = jax.eval_shape(setup.nets.init, jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")))
    named = jax.tree_util.tree_flatten_with_path(shapes)[0]
    leaves = tuple(Leaf(path_name(path), x.shape, None, "gradient") for path, x in named)
    weights = sum(math.prod(leaf.shape) for leaf in leaves)
    return Plan(setup.lanes, leaves, 0, weights, setup.lanes // setup.mesh.size, setup.mesh.size)


def _gradient(mesh: Mesh) -> Callable[..., tuple[PyTree, PyTree]]:
    """`gradient(loss, params, state, part)`: each device takes an equal share of the minibatch's sequences."""

    def gradient(loss: Callable[..., Any], params: PyTree, state: Any, part: PyTree) -> tuple[PyTree, PyTree]:
        def local(params: PyTree, coefficients: Any, part: PyTree) -> tuple[PyTree, PyTree]:
            found = jax.grad(loss, has_aux=True)(params, coefficients, part)
            return found if mesh.size == 1 else jax.lax.pmean(found, sharding.AXIS)

        if mesh.size == 1:
            return local(params, state, part)
        everywhere, split = PartitionSpec(), PartitionSpec(sharding.AXIS)
        specs = (everywhere, everywhere, split)
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
        return mapped(params, state, part)

    return gradient
