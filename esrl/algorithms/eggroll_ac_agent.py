"""The agent that learns from steps without backpropagation: its options, and how it is put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from esrl.algorithms import ridge, weight_windows
from esrl.algorithms.agent import Agent, Metrics
from esrl.algorithms.node_perturbation import Feedback, NodePerturbation
from esrl.algorithms.optimizers import Schedule
from esrl.algorithms.options import agent_constructor, changed_options
from esrl.algorithms.ppo import PPO, Experience, PPOState, Sample, backpropagated
from esrl.algorithms.ppo_agent import assembled, configured, frozen_of, named, ppo, start_values
from esrl.algorithms.weight_windows import WeightWindows
from esrl.core.options import Names
from esrl.core.types import Array, EsrlError, Key, PyTree, seed_key
from esrl.envs.base import on_device
from esrl.envs.checks.contract import check_contract
from esrl.envs.registry import make
from esrl.perturbation import aligned, forward
from esrl.perturbation.aligned import Reading
from esrl.perturbation.classify import classify
from esrl.perturbation.noise import low_rank
from esrl.policies.actor_critic import ActorCritic, actor_critic
from esrl.policies.networks import mlp
from esrl.policies.policy import Policy, bind
from esrl.policies.user_network import network as as_network

# The options of one noise alone.
NOISES = {"aligned": ("pairs", "feedback", "residual", "feedback_decay"), "weights": ("rank", "window")}
REGRESSIONS = ("ridge", "policy_ridge")  # critics
CRITICS = ("separate", *REGRESSIONS)
NETWORK = mlp((64, 64), output_scale=0.01, skip=True)  # the policy unless given
BASE_RATE = 3e-4  # the learning rate unless given


class Memory(NamedTuple):
    """What aligned noise and the critic's regression remember, in `PPOState.memory`; None where there is none."""

    feedback: Feedback | None
    critic: ridge.Sums | None


class WindowsMemory(NamedTuple):
    """The same with noise on weights: `network` is the last iteration's estimate."""

    network: PyTree
    critic: ridge.Sums | None


@agent_constructor(shares=ppo)
def eggroll_ac(
    env: Any,
    policy: Any = None,
    *,
    noise_space: str = "aligned",
    sigma: float = 0.1,
    pairs: int = 1,
    feedback: bool = True,
    residual: float = 0.1,
    feedback_decay: float = 0.99,
    rank: int = 1,
    window: int = 16,
    gradient: str = "perturbation",
    num_envs: int = 64,
    num_steps: int = 64,
    num_epochs: int = 4,
    num_minibatches: int = 8,
    learning_rate: float | Schedule | None = None,
    anneal_steps: float | None = None,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_eps: float = 0.2,
    entropy_coef: float = 0.0,
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
) -> Agent:
    """EGGROLL with credit for every step: an actor-critic whose actor is trained by perturbations alone.

    Environments are played by the policy as it is, side by side, and a critic turns rewards into an advantage for every
    step, as in PPO. PPO's clipped surrogate of these recorded steps is then what noise is measured by: noise at every
    hidden unit, which is a rank-1 perturbation of its layer with the layer's own input as one factor
    (`esrl.perturbation.aligned`). The policy is evaluated forward only, so it may hold hard thresholds, sorts or
    lookups; the output layer has its derivative in closed form. `esrl.algorithms.node_perturbation` has the equations.

    The critic "separate" is a network that is trained by backpropagation; "ridge" and "policy_ridge" need no
    gradient anywhere.

    With noise_space="weights" the policy's weights are perturbed as in `esrl.eggroll`, by low-rank noise that is drawn
    anew for each window of steps, whose advantage is its fitness: `esrl.algorithms.weight_windows`. There is no
    surrogate then, so that clip_eps and entropy_coef have no effect.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: a network without memory; None is `esrl.mlp((64, 64), output_scale=0.01, skip=True)`.
      noise_space: "aligned" is noise at hidden units, "weights" noise on the weights.
      sigma: deviation of the noise that is added to every hidden unit's input sum, or to every weight.
      pairs: antithetic pairs of noise for every step and epoch.
      feedback: learn how the outputs follow each hidden unit, and predict from that what noise would measure.
      residual: factor on what feedback failed to predict, between 0 (only the prediction counts: quiet, and biased) and
        1 (unbiased). Without feedback everything is measured, and counts fully.
      feedback_decay: decay of feedback's running means, for each minibatch.
      rank: rank of the noise on weights.
      window: steps for which noise on weights is held, a divisor of num_steps; lanes are antithetic pairs.
      learning_rate: learning rate of the optimizer, or a schedule over iterations. None is 0.0003 (1 for an optax
        transformation, which has its own).
      gradient: "perturbation", or "backprop" as a control: the actor's gradient by backpropagation, all else equal.
      critic: "separate" is a network of its own, built like the policy's; "ridge" is a regression on random features,
        and "policy_ridge" on what the policy's output layer sees, fitted after every iteration; or a network.
      **shared: as in `esrl.ppo`:

    Raises:
      EsrlError: a value that does not fit, an environment or network that does not, or a policy with memory.

    Example:
      >>> agent = esrl.eggroll_ac("gymnasium/phys2d/CartPole-v1", num_envs=8, num_steps=16, critic="ridge")
      >>> state, metrics = agent.step(agent.init(jax.random.key(0)))
      >>> int(state.env_steps), float(metrics["value_loss"]) >= 0
      (128, True)
    """
    given = dict(locals())  # every argument by its name
    options, start = SimpleNamespace(**given, precision="float32"), start_values(given, BASE_RATE)
    if isinstance(critic, str) and critic == "shared":
        raise EsrlError(
            f'critic is "shared", which would train the policy by backpropagation; use one of {", ".join(CRITICS)}'
        )
    if isinstance(critic, str) and critic not in CRITICS:
        raise EsrlError(f"critic is {critic!r}, but must be {' or '.join(map(json.dumps, CRITICS))}, or a network")
    env = make(env)
    check_contract(env)

    network = NETWORK if policy is None else as_network(policy)
    regression = None
    if isinstance(critic, str) and critic in REGRESSIONS:
        policy = bind(network, env.observation_space, env.action_space, False, squash)
        regression = _regression(env, policy, critic, network.one_hot)
        nets = regression.critic_of(policy)
    else:
        nets = actor_critic(network, env.observation_space, env.action_space, critic, squash)
    if jax.tree.leaves(nets.policy.carry):
        raise EsrlError(
            "eggroll_ac takes no policy with memory: what noise in one step does to later steps is not measured;"
            " use eggroll, or ppo"
        )
    if noise_space not in NOISES:
        raise EsrlError(f'noise_space is {noise_space!r}, but must be "aligned" or "weights"')
    _check_together(given)
    held = _frozen(nets, options, regression is not None)
    fit = partial(_fit, regression) if regression else None
    aligned_noise = _aligned(nets, options, held) if gradient == "perturbation" and noise_space == "aligned" else None
    windows = _windows(env, nets, options, held) if noise_space == "weights" else None
    if windows is None:
        config = configured(env, options, nets, _gradient(aligned_noise), fit)
    else:
        estimate, play = partial(_estimate, windows), partial(weight_windows.play, windows)
        config = configured(env, options, nets, _of_windows, fit, estimate, play, together=2)

    def memory(params: PyTree) -> Memory | WindowsMemory:
        sums = regression.zeros(params) if regression else None
        if windows:
            return WindowsMemory(jax.tree.map(jnp.zeros_like, params["actor"]["network"]), sums)
        return Memory(aligned_noise.memory() if aligned_noise and feedback else None, sums)

    def trained(path: str) -> str:
        if path.startswith("critic/"):
            return "ridge regression" if regression else "gradient"
        own = path.removeprefix("actor/network/")
        if windows:
            return weight_windows.trained(windows, own)
        return aligned_noise.trained(own) if aligned_noise else "gradient"

    return assembled("eggroll_ac", "actor_critic", eggroll_ac, given, start, env, config, memory, trained)


def _check_together(given: dict[str, Any]) -> None:
    """Raises `EsrlError` for options that the noise has no use for, or that do not fit it."""
    noise = given["noise_space"]
    if noise == "weights" and given["gradient"] == "backprop":
        raise EsrlError('gradient is "backprop", which has no noise; leave out noise_space="weights"')
    changed = changed_options(eggroll_ac, given)
    for name in NOISES["weights" if noise == "aligned" else "aligned"]:
        if name in changed:
            raise EsrlError(f'{name} has no meaning with noise_space="{noise}"; leave it out')
    if noise == "weights":
        if given["num_envs"] % 2:
            raise EsrlError(f"num_envs is {given['num_envs']}, but antithetic pairs of lanes need an even number")
        if given["num_steps"] % given["window"]:
            raise EsrlError(
                f"num_steps is {given['num_steps']}, but must be a multiple of window {given['window']}, the steps for"
                " which noise is held"
            )


def _frozen(nets: ActorCritic, options: SimpleNamespace, regression: bool) -> frozenset[int]:
    """The places of the parameters of the policy's network that are frozen, among its own.

    Raises:
      EsrlError: a critic that is fitted anew and is to stay, or a network of which nothing is left to perturb.
    """
    places = frozen_of(nets, options.frozen)
    names = [path for path, _ in named(nets)]
    fitted = next((names[place] for place in sorted(places) if names[place].startswith("critic")), None)
    if regression and fitted:
        raise EsrlError(
            f"frozen names {fitted}, but critic={json.dumps(options.critic)} is fitted anew after every iteration;"
            " leave it out of frozen"
        )
    own = [place for place, path in enumerate(names) if path.split("/")[:2] == ["actor", "network"]]
    if own and places.issuperset(own):
        raise EsrlError("frozen names all of the policy's network, so that noise has nothing to move; leave some out")
    return frozenset(number for number, place in enumerate(own) if place in places)


def _windows(env: Any, nets: ActorCritic, options: SimpleNamespace, frozen: frozenset[int]) -> WeightWindows:
    """How the policy's weights are perturbed."""
    policy = nets.policy
    shapes = jax.eval_shape(policy.init, jax.eval_shape(lambda: seed_key(0)))["network"]
    space = low_rank(options.rank)
    every = classify(_alone(policy), shapes, policy.observation, policy.carry)
    leaves = space.plan([leaf for place, leaf in enumerate(every) if place not in frozen])
    return WeightWindows(
        nets=nets,
        noise=space,
        leaves=leaves,
        frozen=frozen,
        draw=jax.jit(lambda key, pairs: space.sample(key, leaves, pairs)),
        forward=forward.population(_alone(policy), leaves, frozen),
        sigma=options.sigma,
        window=options.window,
        deterministic=options.deterministic,
        scan=on_device(env),
    )


def _estimate(
    windows: WeightWindows, config: PPO, state: PPOState, experience: Experience, rewards: Array
) -> WindowsMemory:
    """The memory with an iteration's estimate, as `PPO.estimate` is."""
    return state.memory._replace(network=weight_windows.estimate(windows, config, state, experience, rewards))


def _of_windows(
    config: PPO, params: PyTree, memory: WindowsMemory, state: PPOState, part: Sample, _: Key
) -> tuple[PyTree, Metrics, WindowsMemory]:
    """The gradient of a minibatch with noise on weights, as `PPO.gradient` is."""
    return (*weight_windows.gradient(config, params, memory.network, state, part), memory)


def _aligned(nets: ActorCritic, options: SimpleNamespace, frozen: frozenset[int]) -> NodePerturbation:
    """How aligned noise estimates the actor's gradient, for the policy's network."""
    policy = nets.policy
    reading = replace(_read(policy), frozen=frozen)
    return NodePerturbation(
        reading, options.sigma, options.pairs, options.residual, options.feedback_decay, policy.head.size
    )


def _read(policy: Policy) -> Reading:
    """The policy's network, as aligned noise reads it."""
    params = jax.eval_shape(policy.init, jax.eval_shape(lambda: seed_key(0)))
    return aligned.read(_alone(policy), params["network"], policy.observation, policy.carry)


def _alone(policy: Policy) -> Callable[..., Any]:
    """The policy's network as a function of its own parameters."""
    return lambda net, seen, carry: policy.network({"network": net}, seen, carry)


def _regression(env: Any, policy: Policy, critic: str, one_hot: bool) -> ridge.Ridge:
    """The critic without gradients."""
    space = env.observation_space
    if critic == "ridge":
        return ridge.Ridge(ridge.random_features(space, one_hot))
    return ridge.Ridge(ridge.policy_features(space, one_hot, _read(policy), policy.carry))


def _gradient(estimate: NodePerturbation | None) -> Any:
    """The gradient of a minibatch, as `PPO.gradient` is; memory is a `Memory`."""
    if estimate is None:
        return backpropagated

    def gradient(
        config: PPO, params: PyTree, memory: Memory, state: PPOState, part: Sample, key: Key
    ) -> tuple[PyTree, Metrics, Memory]:
        found, metrics, learned = estimate(config, params, memory.feedback, state, part, key)
        return found, metrics, memory._replace(feedback=learned)

    return gradient


def _fit(regression: ridge.Ridge, params: PyTree, memory: Any, _: PPOState, samples: Sample) -> tuple[PyTree, Any]:
    """The critic's regression, with an iteration's steps added."""
    observations, target, sound = jax.tree.map(lambda x: x[:, 0], (samples.observations, samples.target, samples.sound))
    weights, sums = regression.fit(params, memory.critic, observations, target, sound)
    return {**params, "critic": weights}, memory._replace(critic=sums)
