"""Proximal policy optimization: the yardstick, behind the same interface as evolution strategies.

An iteration is `rollout`, then `update`; they are the algorithm, in the order in which it happens:

    play T steps in L lanes by the policy pi_old
    A   = sum_k (gamma lambda)^k delta_t+k,  delta = r + gamma V(s') - V(s)    advantages, and V targets A + V
    r   = pi(a) / pi_old(a)                                                    for several epochs of minibatches:
    max E[min(r A, clip(r, 1 - eps, 1 + eps) A)] - c_v E[(V - target)^2] / 2 + c_e E[entropy]

Steps whose observation or reward is not finite are played on, and left out of every mean.

Sources: PPO, Schulman et al., arXiv 1707.06347; advantages, arXiv 1506.02438; the details that matter, Andrychowicz et
al., arXiv 2006.05990. Notation: L lanes (environments side by side), T steps of an iteration, B sequences of S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from esrl.algorithms.advantages import discounted_sums, gae, next_values
from esrl.algorithms.agent import Metrics
from esrl.algorithms.frozen import split
from esrl.core import sharding
from esrl.core.brief import state_text
from esrl.core.lanes import reset_lanes
from esrl.core.types import Array, Count, Key, PyTree, count, count_add
from esrl.policies import running_statistics
from esrl.policies.actor_critic import ActorCritic, Output
from esrl.policies.running_statistics import AnySums, Moments
from esrl.rollouts.types import EpisodeStats, Lanes, Runner, Trajectory


class PPOState(NamedTuple):
    """What the next iteration needs. Checkpoints know these fields by their names.

    Attributes:
      params: the actor's and the critic's.
      opt_state: the optimizer's.
      moments: observation statistics, or None without normalization.
      reward_moments: statistics of the running discounted return, or None; `discounted` [L] is where it stands.
      lanes: the environments, each somewhere in an episode.
      key: the run key, which never changes: all randomness is folded from it and the generation.
      generation: uint32, iterations done. env_steps: environment steps so far.
      recent: [2], mean return and length of the episodes that ended in the last iteration in which any did; NaN before.
      learning_rate, gamma, gae_lambda, clip_eps, entropy_coef, value_coef: float32, as in the options.
      memory: what the estimates of the gradient and the fits of the critic remember; nothing with backpropagation.
    """

    params: PyTree
    opt_state: PyTree
    moments: Moments | None
    reward_moments: Moments | None
    discounted: Array
    lanes: Lanes
    key: Key
    generation: Array
    env_steps: Count
    recent: Array
    learning_rate: Array
    gamma: Array
    gae_lambda: Array
    clip_eps: Array
    entropy_coef: Array
    value_coef: Array
    memory: PyTree = ()

    def __repr__(self) -> str:
        return state_text(self)


class Decision(NamedTuple):
    """The record of a step: the raw action that was drawn, its log probability, and the value, for every lane."""

    raw_action: PyTree
    log_prob: Array
    value: Array


class Experience(NamedTuple):
    """An iteration's experience: lanes L, steps T.

    Attributes:
      lanes: where they are afterwards.
      trajectory: [L, T, ...], with a `Decision` as record.
      last_value: [L], value of the observation after the last step.
      sums: of observations, or None.
      stats: of the episodes that ended.
    """

    lanes: Lanes
    trajectory: Trajectory
    last_value: Array
    sums: AnySums | None
    stats: EpisodeStats


class Sample(NamedTuple):
    """What the loss takes: sequences [B, S, ...] (S is 1 for a policy without memory), begun with `carry` [B, ...].

    `is_first` marks steps that begin an episode, before which the carry starts again. `sound` marks steps that
    are learned from.
    """

    observations: PyTree
    raw_action: PyTree
    log_prob: Array
    value: Array
    advantage: Array
    target: Array
    sound: Array
    is_first: Array
    carry: PyTree


@dataclass(frozen=True, eq=False)
class PPO:
    """A configured PPO: functions and sizes that stay fixed over a run, no arrays.

    Attributes:
      nets: policy and critic. runner: steps the environments.
      optimizer: an optax transformation with rate 1. learning_rate: from a state to this iteration's value.
      gradient: `gradient(ppo, params, memory, state, part, key) -> (gradient, metrics, memory)`, the mean over a
        minibatch, on all devices: `backpropagated`, or that of `esrl.algorithms.node_perturbation`.
      estimate: `estimate(ppo, state, experience, rewards) -> memory`, what the gradient steps of an iteration take from
        its experience beside minibatches of it; None for nothing.
      fit: `fit(params, memory, state, samples) -> (params, memory)`, what is fitted to an iteration after its gradient
        steps; None for nothing.
      frozen: places of the parameters that stay, in `jax.tree.leaves` order; the optimizer leaves them out.
      lanes: L. steps: T. epochs, minibatches: of an iteration.
      reward_scale, clip_value, normalize_advantages: as in `esrl.ppo`.
      mesh: the devices.
    """

    nets: ActorCritic
    runner: Runner
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[PPOState], Array]
    gradient: Callable[..., tuple[PyTree, PyTree, PyTree]]
    estimate: Callable[..., PyTree] | None
    fit: Callable[..., tuple[PyTree, PyTree]] | None
    frozen: frozenset[int]
    lanes: int
    steps: int
    epochs: int
    minibatches: int
    reward_scale: float
    clip_value: bool
    normalize_advantages: bool
    mesh: Mesh

    def act(self, context: PyTree, observations: PyTree, carries: PyTree, keys: Key) -> tuple[PyTree, PyTree, Decision]:
        """A decision in every lane, with what the loss needs of it: raw action, its log probability, and the value."""
        out, carries = self._forward(context, observations, carries)
        head = self.nets.policy.head
        raw_action = jax.vmap(head.raw_sample)(out.output, out.log_std, keys)
        log_prob = jax.vmap(head.log_prob)(out.output, out.log_std, raw_action)
        return jax.vmap(head.action)(raw_action), carries, Decision(raw_action, log_prob, out.value)

    def value(self, context: PyTree, observations: PyTree, carries: PyTree) -> Array:
        """The value of every lane's observation, [L]."""
        return self._forward(context, observations, carries)[0].value

    def _forward(self, context: PyTree, observations: PyTree, carries: PyTree) -> tuple[Output, PyTree]:
        params, moments = context
        one = lambda obs, carry: self.nets.apply(params, running_statistics.normalize(moments, obs), carry)  # noqa: E731
        return jax.vmap(one)(observations, carries)


# ---- the algorithm --------------------------------------------------------------------------------------------------


def rollout(ppo: PPO, state: PPOState) -> Experience:
    """Steps every environment `num_steps` times with the policy as it is."""
    key = jax.random.fold_in(state.key, state.generation + 1)  # number 0 of the run key started the parameters

    def play(args: tuple[PyTree, Key], lanes: Lanes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        context, key = args
        after, trajectory, last_value, stats = ppo.runner.unroll(
            ppo.act, ppo.value, context, lanes, key, ppo.nets.carry, ppo.steps
        )
        return (after, trajectory, last_value), (observed(context[1], trajectory), stats)

    args = ((state.params, state.moments), key)
    rows, totals = sharding.map_devices(play, args, state.lanes, ppo.mesh)
    return Experience(*rows, *totals)


def observed(moments: Moments | None, trajectory: Trajectory) -> AnySums | None:
    """The sums of a trajectory's observations."""
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory.observations)
    live = jnp.ones(trajectory.rewards.size, bool)
    return running_statistics.accumulate(running_statistics.zero_sums(moments), moments, seen, live)


def update(ppo: PPO, state: PPOState, experience: Experience) -> tuple[PPOState, Metrics]:
    """Improves policy and value function on an iteration's experience."""
    rewards, reward_moments, discounted = normalize_rewards(ppo, state, experience.trajectory)
    sound = sound_steps(experience.trajectory)
    samples = make_samples(ppo, state, experience, rewards)
    if ppo.estimate is not None:
        state = state._replace(memory=ppo.estimate(ppo, state, experience, rewards))
    params, opt_state, memory, metrics = update_epochs(ppo, state, samples)

    some = experience.stats.episodes > 0
    number = jnp.maximum(experience.stats.episodes, 1).astype(jnp.float32)
    recent = jnp.where(some, jnp.stack([experience.stats.returns, experience.stats.lengths]) / number, state.recent)
    after = state._replace(
        params=params,
        opt_state=opt_state,
        moments=running_statistics.merge(state.moments, experience.sums),
        reward_moments=reward_moments,
        discounted=discounted,
        lanes=experience.lanes,
        generation=state.generation + 1,
        env_steps=count_add(state.env_steps, count(experience.trajectory.rewards.size)),
        recent=recent,
        memory=memory,
    )
    return after, {
        "return_mean": recent[0],
        "length_mean": recent[1],
        "episodes": experience.stats.episodes,
        "nonfinite": jnp.sum(~sound),
        "all_nonfinite": ~jnp.any(sound),
        **metrics,
        "explained_variance": explained_variance(samples),
        "learning_rate": ppo.learning_rate(state),
    }


def update_epochs(ppo: PPO, state: PPOState, samples: Sample) -> tuple[PyTree, PyTree, PyTree, Metrics]:
    """Parameters, optimizer state and memory after `num_epochs` shuffled passes of one gradient step a minibatch."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.generation + 1), 0xB)
    # Each epoch is a permutation: the order of random words. It is the same on any number of devices.
    shuffled = jnp.argsort(jax.random.bits(key, (ppo.epochs, samples.advantage.shape[0])), axis=1)
    if not ppo.nets.recurrent:  # the last sound step before it takes the place of one that is not
        order = jnp.arange(samples.sound.shape[0])
        last = jax.lax.cummax(jnp.where(samples.sound[:, 0], order, -1))
        shuffled = jnp.where(last < 0, jnp.argmax(samples.sound[:, 0]), last)[shuffled]
    rate = ppo.learning_rate(state)
    noise = jax.random.fold_in(key, 0)

    def step(carry: tuple[PyTree, ...], now: tuple[Array, Array]) -> tuple[tuple[PyTree, ...], Metrics]:
        (params, opt_state, memory), (number, chosen) = carry, now
        part = jax.tree.map(lambda x: x[chosen], samples)
        if ppo.normalize_advantages:
            part = part._replace(advantage=standardize(part.advantage, part.sound if ppo.nets.recurrent else None))
        # The loss divides by all steps, here by those that count: at the end, where 1 x changes not even rounding.
        *found, learned = ppo.gradient(ppo, params, memory, state, part, jax.random.fold_in(noise, number))
        share = _share(part.sound)
        gradient, metrics = jax.tree.map(lambda x: share * x, found)
        norm = optax.tree.norm(split(gradient, ppo.frozen)[0])
        direction, after = ppo.optimizer.update(gradient, opt_state, params)
        moved = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, direction))
        # One NaN would end the run: a gradient step that is not finite, or of nothing, is left out, and counted.
        sound = jnp.isfinite(norm) & jnp.any(part.sound)
        new = jax.tree.map(partial(jnp.where, sound), (moved, after, learned), carry)
        return new, {**metrics, "grad_norm": norm, "skipped_steps": (~sound).astype(jnp.float32)}

    start = (state.params, state.opt_state, state.memory)
    parts = shuffled.reshape(ppo.epochs * ppo.minibatches, -1)
    (params, opt_state, memory), metrics = jax.lax.scan(step, start, (jnp.arange(parts.shape[0]), parts))
    if ppo.fit is not None:
        params, memory = ppo.fit(params, memory, state, samples)
    return params, opt_state, memory, {name: jnp.mean(value) for name, value in metrics.items()}


def normalize_rewards(ppo: PPO, state: PPOState, trajectory: Trajectory) -> tuple[Array, Moments | None, Array]:
    """Rewards as they are trained on [L, T]: finite, scaled, and divided by the deviation of the discounted return."""
    rewards = jnp.where(jnp.isfinite(trajectory.rewards), trajectory.rewards, 0.0) * ppo.reward_scale
    moments: Any = state.reward_moments
    if moments is None:
        return rewards, None, state.discounted
    ended = trajectory.terminated | trajectory.truncated
    # Not the rewards' own deviation: what the critic predicts is the discounted return, so that gets deviation 1.
    running, discounted = discounted_sums(state.discounted, rewards, ended, state.gamma)
    zeros, sound = running_statistics.zero_sums(moments), jnp.isfinite(trajectory.rewards)
    sums = running_statistics.accumulate(zeros, moments, running.ravel(), sound.ravel())
    moments = running_statistics.merge(moments, sums)
    deviation = jnp.sqrt(moments.m2 / jnp.maximum(moments.seen, 1.0) + 1e-8)
    return jnp.clip(rewards / deviation, -10.0, 10.0), moments, discounted


def make_samples(ppo: PPO, state: PPOState, experience: Experience, rewards: Array) -> Sample:
    """Advantages and value targets of an iteration, cut into the sequences that the loss takes."""
    trajectory = experience.trajectory
    record: Decision = trajectory.record
    terminated, truncated = trajectory.terminated, trajectory.truncated
    # A truncated episode goes on, unseen, so its last step is followed by the value of its final observation.
    after = next_values(record.value, trajectory.bootstrap_value, experience.last_value, truncated)
    known = jnp.isfinite(trajectory.rewards)
    advantage = gae(rewards, record.value, after, terminated, truncated, state.gamma, state.gae_lambda, known)
    done = terminated | truncated
    samples = Sample(
        observations=jax.vmap(jax.vmap(partial(running_statistics.normalize, state.moments)))(trajectory.observations),
        raw_action=record.raw_action,
        log_prob=record.log_prob,
        value=record.value,
        advantage=advantage,
        target=advantage + record.value,
        sound=sound_steps(trajectory),
        is_first=jnp.concatenate([jnp.zeros_like(done[:, :1]), done[:, :-1]], axis=1),
        carry=state.lanes.carry,
    )
    if ppo.nets.recurrent:
        return samples
    return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), samples)


def sound_steps(trajectory: Trajectory) -> Array:
    """Whether a step's observation and reward are finite, [L, T]."""
    return running_statistics.finite_rows((trajectory.observations, trajectory.rewards), axes=2)


def backpropagated(ppo: PPO, params: PyTree, memory: PyTree, state: PPOState, part: Sample, _: Key) -> tuple[Any, ...]:
    """The gradient of a minibatch's loss, by backpropagation; and its metrics, and the memory as it was."""

    def local(shared: PyTree, part: Sample) -> PyTree:
        return jax.grad(partial(loss, ppo), has_aux=True)(*shared, part)

    return (*sharding.mean_of_devices(local, (params, state), part, ppo.mesh), memory)


def loss(ppo: PPO, params: PyTree, state: PPOState, part: Sample) -> tuple[Array, Metrics]:
    """Clipped surrogate, value loss and entropy bonus of a minibatch (arXiv 1707.06347, equations 7 and 9).

    Steps of sequences that do not count add 0 to each mean; without memory, `update_epochs` chooses none of them.
    """
    out: Output = evaluate_sequences(ppo, params, part)
    log_prob = _each(ppo.nets.policy.head.log_prob)(out.output, out.log_std, part.raw_action)
    mean = partial(_mean, part.sound) if ppo.nets.recurrent else jnp.mean  # without memory all are sound, see there
    entropy = mean(_each(ppo.nets.policy.head.entropy)(out.output, out.log_std))
    change = log_prob - part.log_prob
    ratio, surrogate = clipped_surrogate(state, change, part.advantage)
    policy_loss = -mean(surrogate)
    value_loss = 0.5 * mean(value_error(ppo, state, part, out.value))
    total = policy_loss + state.value_coef * value_loss - state.entropy_coef * entropy
    return total, {
        "loss": total,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        **movement(state, mean, ratio, change),
    }


def clipped_surrogate(state: PPOState, change: Array, advantage: Array) -> tuple[Array, Array]:
    """`(r, min(r A, clip(r) A))` for a change of log probabilities, with r its exponential (1707.06347, equation 7)."""
    ratio = jnp.exp(change)
    # The lower of both: an action gains nothing from moving further than clip_eps, and is never kept from moving back.
    clipped = jnp.clip(ratio, 1 - state.clip_eps, 1 + state.clip_eps)
    return ratio, jnp.minimum(ratio * advantage, clipped * advantage)


def movement(state: PPOState, mean: Callable[[Array], Array], ratio: Array, change: Array) -> Metrics:
    """How far the policy has moved from the one that played."""
    return {
        "approx_kl": mean(ratio - 1 - change),  # Schulman's low-variance estimator
        "clip_fraction": mean((jnp.abs(ratio - 1) > state.clip_eps).astype(jnp.float32)),
    }


def value_error(ppo: PPO, state: PPOState, part: Sample, value: Array) -> Array:
    """Squared errors of values; with `clip_value` the larger one of theirs and of values that moved by clip_eps."""
    error = (value - part.target) ** 2
    if ppo.clip_value:
        near = part.value + jnp.clip(value - part.value, -state.clip_eps, state.clip_eps)
        error = jnp.maximum(error, (near - part.target) ** 2)
    return error


def critic_gradient(ppo: PPO, params: PyTree, state: PPOState, part: Sample) -> tuple[Array, PyTree]:
    """The value loss of steps [N], and the gradient of the critic's part of the whole loss: in the critic alone this
    backpropagates."""

    def loss(critic: PyTree) -> tuple[Array, Array]:
        one = lambda obs: ppo.nets.apply({**params, "critic": critic}, obs, ppo.nets.carry)[0].value  # noqa: E731
        found = 0.5 * jnp.mean(value_error(ppo, state, part, jax.vmap(one)(part.observations)))
        return state.value_coef * found, found

    gradient, found = jax.grad(loss, has_aux=True)(params["critic"])
    return found, gradient


def evaluate_sequences(ppo: PPO, params: PyTree, part: Sample) -> Output:
    """The networks' outputs along sequences, [B, S, ...]; the carry starts again with each episode."""
    if not ppo.nets.recurrent:
        # One batch axis: with a second one of length 1, XLA transposes what it multiplies in the backward pass.
        each = jax.vmap(lambda obs: ppo.nets.apply(params, obs, ppo.nets.carry)[0])
        out = each(jax.tree.map(lambda x: x[:, 0], part.observations))
        return jax.tree.map(lambda x: x[:, None], out)
    forward = jax.vmap(partial(ppo.nets.apply, params))

    def step(carry: PyTree, now: tuple[PyTree, Array]) -> tuple[PyTree, Output]:
        observations, is_first = now
        out, carry = forward(observations, reset_lanes(carry, ppo.nets.carry, is_first))
        return carry, out

    time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (part.observations, part.is_first))
    out = jax.lax.scan(step, part.carry, time_major)[1]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)


def _each(fn: Any) -> Any:
    return jax.vmap(jax.vmap(fn))


def _mean(sound: Array, x: Array) -> Array:
    """The mean over all steps, where one that does not count is 0."""
    return jnp.mean(jnp.where(sound, x, 0.0))


def _share(sound: Array) -> Array:
    """All steps over those that count, which makes a `_mean` that of the latter; 1 exactly when all count."""
    return sound.size / jnp.maximum(jnp.sum(sound.astype(jnp.float32)), 1.0)


def standardize(x: Array, sound: Array | None = None) -> Array:
    """To mean 0 and standard deviation 1 over the steps that count (None: all); all zero when all are equal."""
    if sound is None:
        return (x - jnp.mean(x)) / (jnp.std(x) + 1e-8)
    share = _share(sound)
    centered = x - share * _mean(sound, x)
    return centered / (jnp.sqrt(share * _mean(sound, centered**2)) + 1e-8)


def explained_variance(samples: Sample) -> Array:
    """The part of the value targets' variance that the values explain; 0 when the targets do not vary."""
    share = _share(samples.sound)

    def variance(x: Array) -> Array:
        return share * _mean(samples.sound, (x - share * _mean(samples.sound, x)) ** 2)

    whole, left = variance(samples.target), variance(samples.target - samples.value)
    return jnp.where(whole > 1e-12, 1 - left / jnp.maximum(whole, 1e-12), 0.0)
