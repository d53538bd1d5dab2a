"""The agent that is PPO: its options, and how it is put together."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from esrl.algorithms.agent import Agent, Kind, Metrics, Plan, mesh_for, stepping
from esrl.algorithms.frozen import frozen_places, leaving
from esrl.algorithms.optimizers import Schedule, base_rate, make_optimizer, scheduled
from esrl.algorithms.options import agent_constructor, changed_options
from esrl.algorithms.ppo import PPO, PPOState, backpropagated, play, rollout, update
from esrl.core import sharding
from esrl.core.jaxprs import path_name
from esrl.core.options import Names
from esrl.core.types import Array, EsrlError, Key, PyTree, count, seed_key
from esrl.envs.base import on_device
from esrl.envs.checks.contract import check_contract
from esrl.envs.registry import make
from esrl.perturbation.noise import Leaf
from esrl.policies import running_statistics
from esrl.policies.actor_critic import ActorCritic, actor_critic
from esrl.policies.networks import mlp
from esrl.policies.precision import arithmetic
from esrl.rollouts.runner import runner

# Values of the state: any of them can differ between the runs of one compiled program.
HYPERPARAMS = ("learning_rate", "gamma", "gae_lambda", "clip_eps", "entropy_coef", "value_coef")
# The defaults below are those of experiments/defaults: chosen over eight environments.
BASE_RATE = 7e-4  # the learning rate unless given
NETWORK = mlp((64, 64), output_scale=0.01)  # the policy unless given


@agent_constructor()
def ppo(
    env: Any,
    policy: Any = None,
    *,
    num_envs: int = 32,
    num_steps: int = 128,
    num_epochs: int = 4,
    num_minibatches: int = 8,
    learning_rate: float | Schedule | None = None,
    anneal_steps: float | None = None,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_eps: float = 0.2,
    entropy_coef: float = 0.001,
    value_coef: float = 0.5,
    clip_value: bool = False,
    max_grad_norm: float | None = 0.5,
    normalize_advantages: bool = True,
    normalize_observations: bool = True,
    normalize_rewards: bool = True,
    reward_scale: float = 1.0,
    critic: str | Any = "separate",
    optimizer: str | optax.GradientTransformation = "adam",
    weight_decay: float | None = None,
    frozen: Names | None = None,
    deterministic: bool = True,
    squash: str = "clip",
    precision: str = "float32",
) -> Agent:
    """PPO: proximal policy optimization with generalized advantages (arXiv 1707.06347).

    On JAX environments an iteration is one compiled program. Environments that Python steps are no part of the state: a
    run that is resumed begins new episodes there.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: a network, as in `esrl.eggroll`; None is `esrl.mlp((64, 64), output_scale=0.01)`.
      num_envs: environments that are stepped side by side.
      num_steps: steps of each environment in an iteration.
      num_epochs: passes over an iteration's steps.
      num_minibatches: parts of a pass, one gradient step each; whole sequences for a recurrent policy.
      learning_rate: learning rate of the optimizer, or a schedule over iterations. None is 0.0007 (1 for an optax
        transformation, which has its own).
      anneal_steps: environment steps over which the learning rate falls linearly to 0. None keeps it constant.
      gamma: discount of one step.
      gae_lambda: lambda of the advantage estimates.
      clip_eps: how far a probability ratio may move from 1 and still count.
      entropy_coef: weight of the entropy bonus.
      value_coef: weight of the value loss, half the mean squared error.
      clip_value: clip the value's change by clip_eps as well.
      max_grad_norm: bound on the gradient's global norm.
      normalize_advantages: normalize advantages to mean 0 and deviation 1 in each minibatch.
      normalize_observations: normalize observations by their running mean and variance, frozen within an iteration.
      normalize_rewards: divide rewards by the deviation of the running discounted return.
      reward_scale: factor on every reward that is trained on.
      critic: "separate" is a network of its own, "shared" one more output of the policy's network; or a network.
      optimizer: an optax optimizer's name, or an optax transformation.
      weight_decay: decoupled weight decay, in units of the learning rate.
      frozen: patterns of names of parameters that stay as they start, the critic's too: "actor/*/Dense_0/*" is all of a
        layer. None trains all.
      deterministic: evaluate and act by the mode of the policy rather than by sampling.
      squash: how raw actions meet the bounds of a Box action space, "tanh" or "clip".
      precision: type of the operands of the network's products, "float32" or "bfloat16"; all else is float32.

    Raises:
      EsrlError: a value that does not fit, or an environment or network that does not.

    Example:
      >>> agent = esrl.ppo("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,), "tanh"), num_envs=8, num_steps=16)
      >>> state, metrics = agent.step(agent.init(jax.random.key(0)))
      >>> int(state.env_steps)
      128
    """
    given = dict(locals())  # every argument by its name
    options, start = SimpleNamespace(**given), start_values(given)
    env = make(env)
    check_contract(env)
    network = NETWORK if policy is None else policy
    nets = actor_critic(network, env.observation_space, env.action_space, critic, squash)
    return assembled("ppo", "gradient", ppo, given, start, env, configured(env, options, nets))


def start_values(given: dict[str, Any], base: float = BASE_RATE) -> dict[str, Any]:
    """The values of the state's hyperparameters at the start, among all options; `base` is the rate unless given.

    Raises:
      EsrlError: a schedule for the learning rate beside `anneal_steps`.
    """
    rate = given["learning_rate"]
    if callable(rate) and given["anneal_steps"] is not None:
        raise EsrlError("learning_rate is a schedule, which anneal_steps would let fall as well; give one of them")
    rate = base_rate(rate, given["optimizer"], base)
    return given | {"learning_rate": 1.0 if callable(rate) else rate}  # a schedule multiplies the value of the state


def assembled(
    name: str,
    kind: Kind,
    constructor: Any,
    given: dict[str, Any],
    start: dict[str, Any],
    env: Any,
    config: PPO,
    memory: Callable[[PyTree], PyTree] = lambda params: (),
    trained: Callable[[str], str] = lambda path: "gradient",
) -> Agent:
    """The agent of a configuration.

    Args:
      name, kind, env, config: of the agent. constructor: what made it, from the options `given`.
      start: values of the state's hyperparameters, by their names, among others.
      memory: from parameters to what the state remembers at the start.
      trained: from a parameter's path to how it is trained.
    """
    nets, number = config.nets, config.lanes
    normalized = given["normalize_observations"] and any(jax.tree.leaves(nets.policy.normalizable))

    def init(key: Key) -> PPOState:
        params = nets.init(jax.random.fold_in(key, 0))
        worlds = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 0xA)))(jnp.arange(number))
        return PPOState(
            params=params,
            opt_state=config.optimizer.init(params),
            moments=running_statistics.init(nets.policy.observation, nets.policy.normalizable) if normalized else None,
            reward_moments=running_statistics.init(jnp.float32(0), True) if given["normalize_rewards"] else None,
            discounted=jnp.zeros(number),
            lanes=config.runner.start(worlds, nets.carry),
            key=key,
            generation=jnp.uint32(0),
            env_steps=count(),
            recent=jnp.full(2, jnp.nan, jnp.float32),  # the type after a step, or that compiles again
            memory=memory(params),
            **{name: jnp.float32(start[name]) for name in HYPERPARAMS},
        )

    def act(state: PPOState, observation: PyTree, carry: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        seen = running_statistics.normalize(state.moments, observation)
        output, carry = nets.policy.apply(state.params["actor"], seen, carry)
        if given["deterministic"]:
            return nets.policy.head.mode(output[0][: nets.policy.head.size]), carry
        return nets.policy.action(output, key), carry

    return Agent(
        name=name,
        kind=kind,
        env=env,
        policy=nets.policy,
        runner=config.runner,
        config=config,
        act=act,
        acts_by=lambda state: state.params["actor"],
        plan=_plan(config, trained),
        hyperparams=HYPERPARAMS,
        options=changed_options(constructor, given),
        # None is another number for each agent and optimizer.
        in_force={} if callable(given["learning_rate"]) else {"learning_rate": start["learning_rate"]},
        **stepping(env, init, partial(rollout, config), partial(update, config), config.mesh),
    )


def configured(
    env: Any,
    options: SimpleNamespace,
    nets: ActorCritic,
    gradient: Callable[..., tuple[PyTree, Metrics, PyTree]] = backpropagated,
    fit: Callable[..., tuple[PyTree, PyTree]] | None = None,
    estimate: Callable[..., PyTree] | None = None,
    play: Callable[..., tuple[PyTree, PyTree]] = play,
    together: int = 1,
) -> PPO:
    """The configuration of a run, from its options, environment and networks.

    Args:
      gradient, fit, estimate, play: as in `PPO`.
      together: lanes that stay on one device.

    Raises:
      EsrlError: an option that does not fit the others.
    """
    nets = nets._replace(
        policy=nets.policy._replace(apply=arithmetic(nets.policy.apply, options.precision)),
        apply=arithmetic(nets.apply, options.precision, differentiated=True),
    )
    _check_minibatches(options, nets)
    sequences = options.num_envs * (1 if nets.recurrent else options.num_steps) // options.num_minibatches
    # A device takes whole lanes in the rollout and whole sequences of a minibatch in the update: it must divide both.
    shared = math.gcd(options.num_envs // together, sequences)
    if on_device(env):
        sharding.check_shared(options.num_envs // together, "num_envs", together)
        sharding.check_shared(sequences, "a minibatch's part of num_envs x num_steps")
    mesh = mesh_for(env, shared, "num_envs")

    base = scheduled("learning_rate", options.learning_rate)

    params = jax.eval_shape(nets.init, jax.eval_shape(lambda: seed_key(0)))

    def learning_rate(state: PPOState) -> Array:
        if options.anneal_steps is None:
            return base(state)
        done = state.generation.astype(jnp.float32) * (options.num_envs * options.num_steps / options.anneal_steps)
        return base(state) * jnp.maximum(1.0 - done, 0.0)

    optimizer = make_optimizer(options.optimizer, None, options.weight_decay, options.max_grad_norm, params)
    frozen = frozen_of(nets, options.frozen)
    return PPO(
        nets=nets,
        runner=runner(env),
        optimizer=leaving(optimizer, frozen),
        learning_rate=learning_rate,
        gradient=gradient,
        estimate=estimate,
        fit=fit,
        frozen=frozen,
        play=play,
        lanes=options.num_envs,
        together=together,
        steps=options.num_steps,
        epochs=options.num_epochs,
        minibatches=options.num_minibatches,
        reward_scale=options.reward_scale,
        clip_value=options.clip_value,
        normalize_advantages=options.normalize_advantages,
        mesh=mesh,
    )


def _check_minibatches(options: SimpleNamespace, nets: ActorCritic) -> None:
    """Raises `EsrlError` unless the minibatches divide what an iteration gives."""
    parts, steps = options.num_minibatches, options.num_envs * options.num_steps
    if nets.recurrent and options.num_envs % parts:
        raise EsrlError(
            f"a recurrent policy learns from whole sequences, and num_envs={options.num_envs} of them cannot be split"
            f" into num_minibatches={parts}; use {_divisor(options.num_envs, parts)}"
        )
    if not nets.recurrent and steps % parts:
        raise EsrlError(
            f"num_envs x num_steps = {steps} steps cannot be split into num_minibatches={parts};"
            f" use {_divisor(steps, parts)}"
        )


def _divisor(whole: int, near: int) -> int:
    """The divisor of a whole number that is nearest to a number."""
    near = min(near, whole)
    return next(d for far in range(near) for d in (near - far, near + far) if whole % d == 0)


def named(nets: ActorCritic) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters."""
    shapes = jax.eval_shape(nets.init, jax.eval_shape(lambda: seed_key(0)))
    return [(path_name(path), x.shape) for path, x in jax.tree_util.tree_flatten_with_path(shapes)[0]]


def frozen_of(nets: ActorCritic, patterns: Names | None) -> frozenset[int]:
    """The places of the parameters that are not trained."""
    return frozen_places([path for path, _ in named(nets)], patterns)


def _plan(config: PPO, trained: Callable[[str], str]) -> Plan:
    """The sizes of an iteration."""
    every, frozen = list(enumerate(named(config.nets))), config.frozen
    leaves = tuple(Leaf(path, shape, None, trained(path)) for place, (path, shape) in every if place not in frozen)
    return Plan(
        lanes=config.lanes,
        leaves=leaves,
        frozen=tuple(Leaf(path, shape, None, "frozen") for place, (path, shape) in every if place in frozen),
        num_params=sum(math.prod(leaf.shape) for leaf in leaves),
        chunk=config.lanes // config.mesh.size,
        devices=config.mesh.size,
    )
