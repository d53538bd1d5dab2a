"""Proximal policy optimisation: the yardstick, behind the same interface as evolution strategies.

`rollout` and `update` are the algorithm in reading order; `ppo_data.py` says what they pass on. Sources: PPO, Schulman
et al., arXiv 1707.06347; advantages, arXiv 1506.02438; the details that matter, Andrychowicz et al., arXiv 2006.05990.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from esrl.algorithms.advantages import discounted_sums, gae, next_values
from esrl.algorithms.agent import Agent, Metrics, changed_options, compiled, read_options, takes_options
from esrl.algorithms.ppo_data import Batch, Decision, PPOState, Sample
from esrl.algorithms.ppo_options import TRACED, PPOOptions, check
from esrl.algorithms.ppo_setup import Setup, plan, prepare
from esrl.core import sharding
from esrl.core.lanes import reset_lanes
from esrl.core.types import Array, Key, PyTree, count, count_add
from esrl.envs.base import on_device
from esrl.envs.checks.contract import check_contract
from esrl.envs.registry import make
from esrl.policies import running_statistics as moment
from esrl.policies.actor_critic import Output
from esrl.policies.running_statistics import Moments
from esrl.rollouts.types import Lanes, Trajectory

# ---- the algorithm --------------------------------------------------------------------------------------------------


def rollout(setup: Setup, state: PPOState) -> Batch:
    """Steps every environment `num_steps` times with the policy as it is."""
    key = jax.random.fold_in(state.key, state.generation + 1)

    def play(args: tuple[PyTree, Key], lanes: Lanes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        context, key = args
        after, trajectory, last, ended = setup.runner.unroll(
            setup.act, setup.value, context, lanes, key, setup.nets.carry, setup.steps
        )
        seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory.observations)
        live = jnp.ones(trajectory.rewards.size, bool)
        sums = moment.accumulate(moment.zero_sums(context[1]), context[1], seen, live)
        return (after, trajectory, last), (sums, ended)

    args = ((state.params, state.moments), key)
    rows, totals = sharding.map_devices(play, args, state.lanes, setup.mesh)
    return Batch(*rows, *totals)


def update(setup: Setup, state: PPOState, batch: Batch) -> tuple[PPOState, Metrics]:
    """Improves policy and value function on the batch."""
    rewards, reward_moments, discounted = scaled_rewards(setup, state, batch.trajectory)
    samples = prepared(setup, state, batch, rewards)
    params, opt_state, metrics = improved(setup, state, samples)

    some = batch.ended.episodes > 0
    number = jnp.maximum(batch.ended.episodes, 1).astype(jnp.float32)
    recent = jnp.where(some, jnp.stack([batch.ended.returns, batch.ended.lengths]) / number, state.recent)
    after = state._replace(
        params=params,
        opt_state=opt_state,
        moments=moment.merge(state.moments, batch.sums),
        reward_moments=reward_moments,
        discounted=discounted,
        lanes=batch.lanes,
        generation=state.generation + 1,
        env_steps=count_add(state.env_steps, count(batch.trajectory.rewards.size)),
        recent=recent,
    )
    sound = jnp.isfinite(batch.trajectory.rewards)
    return after, {
        "return_mean": recent[0],
        "length_mean": recent[1],
        "episodes": batch.ended.episodes,
        "nonfinite": jnp.sum(~sound),
        "all_nonfinite": ~jnp.any(sound),
        **metrics,
        "explained_variance": explained(samples),
        "learning_rate": setup.learning_rate(state),
    }


def improved(setup: Setup, state: PPOState, samples: Sample) -> tuple[PyTree, PyTree, Metrics]:
    """Parameters and optimiser state after `num_epochs` shuffled passes of one gradient step for each minibatch."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.generation + 1), 0xB)
    shuffled = jnp.argsort(jax.random.bits(key, (setup.epochs, samples.advantage.shape[0])), axis=1)
    rate = setup.learning_rate(state)

    def step(carry: tuple[PyTree, PyTree], chosen: Array) -> tuple[tuple[PyTree, PyTree], Metrics]:
        params, opt_state = carry
        part = jax.tree.map(lambda x: x[chosen], samples)
        if setup.normalize_advantages:
            part = part._replace(advantage=standardised(part.advantage))
        gradient, metrics = setup.gradient(partial(loss, setup), params, state, part)
        norm = optax.tree.norm(gradient)
        direction, after = setup.optimizer.update(gradient, opt_state, params)
        moved = optax.apply_updates(params, jax.tree.map(lambda u: rate * u, direction))
        sound = jnp.isfinite(norm)  # a step that is not finite is left out
        new = jax.tree.map(partial(jnp.where, sound), (moved, after), carry)
        return new, {**metrics, "grad_norm": norm, "skipped_steps": (~sound).astype(jnp.float32)}

    start = (state.params, state.opt_state)
    (params, opt_state), metrics = jax.lax.scan(step, start, shuffled.reshape(setup.epochs * setup.minibatches, -1))
    return params, opt_state, {name: jnp.mean(value) for name, value in metrics.items()}


def scaled_rewards(setup: Setup, state: PPOState, trajectory: Trajectory) -> tuple[Array, Moments | None, Array]:
    """Rewards as they are trained on [L, T]: finite, scaled, and divided by the deviation of the discounted return."""
    rewards = jnp.where(jnp.isfinite(trajectory.rewards), trajectory.rewards, 0.0) * setup.reward_scale
    moments: Any = state.reward_moments
    if moments is None:
        return rewards, None, state.discounted
    ended = trajectory.terminated | trajectory.truncated
    running, discounted = discounted_sums(state.discounted, rewards, ended, state.gamma)
    sums = moment.accumulate(moment.zero_sums(moments), moments, running.ravel(), jnp.ones(running.size, bool))
    moments = moment.merge(moments, sums)
    deviation = jnp.sqrt(moments.m2 / jnp.maximum(moments.seen, 1.0) + 1e-8)
    return jnp.clip(rewards / deviation, -10.0, 10.0), moments, discounted


def prepared(setup: Setup, state: PPOState, batch: Batch, rewards: Array) -> Sample:
    """Advantages and value targets of a batch, cut into the sequences that are learnt from."""
    trajectory = batch.trajectory
    record: Decision = trajectory.record
    terminated, truncated = trajectory.terminated, trajectory.truncated
    after = next_values(record.value, trajectory.bootstrap_value, batch.last, truncated)
    advantage = gae(rewards, record.value, after, terminated, truncated, state.gamma, state.gae_lambda)
    over = terminated | truncated
    samples = Sample(
        observations=jax.vmap(jax.vmap(partial(moment.normalise, state.moments)))(trajectory.observations),
        choice=record.choice,
        log_prob=record.log_prob,
        value=record.value,
        advantage=advantage,
        target=advantage + record.value,
        anew=jnp.concatenate([jnp.zeros_like(over[:, :1]), over[:, :-1]], axis=1),
        carry=state.lanes.carry,
    )
    if setup.nets.recurrent:
        return samples
    return jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), samples)


def loss(setup: Setup, params: PyTree, state: PPOState, part: Sample) -> tuple[Array, Metrics]:
    """Clipped surrogate, value loss and entropy bonus of a minibatch (arXiv 1707.06347, equations 7 and 9)."""
    out: Output = evaluate_sequences(setup, params, part)
    log_prob = _each(setup.nets.policy.head.log_prob)(out.output, out.log_std, part.choice)
    entropy = jnp.mean(_each(setup.nets.policy.head.entropy)(out.output, out.log_std))
    change = log_prob - part.log_prob
    ratio = jnp.exp(change)
    clipped = jnp.clip(ratio, 1 - state.clip_eps, 1 + state.clip_eps)
    policy_loss = -jnp.mean(jnp.minimum(ratio * part.advantage, clipped * part.advantage))
    error = (out.value - part.target) ** 2
    if setup.clip_value:
        near = part.value + jnp.clip(out.value - part.value, -state.clip_eps, state.clip_eps)
        error = jnp.maximum(error, (near - part.target) ** 2)
    value_loss = 0.5 * jnp.mean(error)
    total = policy_loss + state.value_coef * value_loss - state.entropy_coef * entropy
    return total, {
        "loss": total,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": jnp.mean(ratio - 1 - change),  # Schulman's low-variance estimator
        "clip_fraction": jnp.mean((jnp.abs(ratio - 1) > state.clip_eps).astype(jnp.float32)),
    }


def evaluate_sequences(setup: Setup, params: PyTree, part: Sample) -> Output:
    """The networks' outputs along sequences, [B, S, ...]; the carry starts again with each episode."""
    if not setup.nets.recurrent:
        each = jax.vmap(jax.vmap(lambda obs: setup.nets.apply(params, obs, setup.nets.carry)[0]))
        return each(part.observations)
    forward = jax.vmap(partial(setup.nets.apply, params))

    def step(carry: PyTree, now: tuple[PyTree, Array]) -> tuple[PyTree, Output]:
        observations, anew = now
        out, carry = forward(observations, reset_lanes(carry, setup.nets.carry, anew))
        return carry, out

    time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (part.observations, part.anew))
    out = jax.lax.scan(step, part.carry, time_major)[1]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)


def _each(fn: Any) -> Any:
    return jax.vmap(jax.vmap(fn))


def standardised(x: Array) -> Array:
    """To mean 0 and standard deviation 1; all zero when all are equal."""
    return (x - jnp.mean(x)) / (jnp.std(x) + 1e-8)


def explained(samples: Sample) -> Array:
    """The part of the value targets' variance that the values explain; 0 when the targets do not vary."""
    variance = jnp.var(samples.target)
    return jnp.where(variance > 1e-12, 1 - jnp.var(samples.target - samples.value) / jnp.maximum(variance, 1e-12), 0.0)


# ---- construction ---------------------------------------------------------------------------------------------------


@takes_options(PPOOptions)
def ppo(env: Any, policy: Any = None, **options: Any) -> Agent:
    """PPO: proximal policy optimisation with generalised advantages (arXiv 1707.06347).

    On JAX environments an iteration is one compiled program. Environments that Python steps are no part of the state:
    a run that is resumed begins new episodes there.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: a network, as in `esrl.eggroll`; None is `esrl.mlp()` with small outputs at the start.
      **options: by keyword:

    Raises:
      EsrlError: an unknown option, a value that does not fit, or an environment or network that does not.
    """
    read = read_options(PPOOptions, options)
    check(read)
    env = make(env)
    check_contract(env)
    setup = prepare(env, policy, read)
    nets = setup.nets
    normalized = read.normalize_observations and any(jax.tree.leaves(nets.policy.normalised))

    def init(key: Key) -> PPOState:
        params = nets.init(jax.random.fold_in(key, 0))
        worlds = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 0xA)))(jnp.arange(setup.lanes))
        return PPOState(
            params=params,
            opt_state=setup.optimizer.init(params),
            moments=moment.init(nets.policy.observation, nets.policy.normalised) if normalized else None,
            reward_moments=moment.init(jnp.float32(0), True) if read.normalize_rewards else None,
            discounted=jnp.zeros(setup.lanes),
            lanes=setup.runner.start(worlds, nets.carry),
            key=key,
            generation=jnp.uint32(0),
            env_steps=count(),
            recent=jnp.zeros(2),
            **{name: jnp.float32(getattr(read, name)) for name in TRACED},
        )

    def act(state: PPOState, observation: PyTree, carry: PyTree, key: Key) -> tuple[Array, PyTree]:
        seen = moment.normalise(state.moments, observation)
        output, carry = nets.policy.apply(state.params["actor"], seen, carry)
        if read.deterministic:
            return nets.policy.head.mode(output[0][: nets.policy.head.size]), carry
        return nets.policy.action(output, key), carry

    play, learn = partial(rollout, setup), partial(update, setup)
    return Agent(
        name="ppo",
        env=env,
        policy=nets.policy,
        runner=setup.runner,
        act=act,
        plan=plan(setup),
        options=changed_options(read),
        **compiled(init, play, learn, setup.mesh, on_device(env), TRACED),
    )
