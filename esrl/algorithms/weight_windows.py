"""Credit for windows of steps: weights are perturbed as in `es`, each window anew, and a critic says what follows.

L lanes live on, in antithetic pairs. For each window of K steps every pair draws noise E, and its lanes play by
W + sigma E and W - sigma E. With delta_t = r_t + gamma V(s_t+1) - V(s_t):

    A_t = delta_t + gamma c_t A_t+1   c = 1 within a window, lambda from one window into the next, 0 at an episode's end
    F   = A at the window's first step, and at each first step of an episode within it
    g   = sum_windows sum_pairs (F(+) - F(-)) E / (N sigma),   N lanes x windows

A window is one decision, of parameters, and A is the advantage of it, as PPO's is of an action (arXiv 1506.02438, with
windows for steps). With K the length of an episode, V = 0 and gamma = 1, F is the return and g is `es`'s estimate.
V is learned from the same steps. The estimate is one of an iteration: each of its gradient steps takes it as it is.

Sources: parameters that are redrawn every few steps and judged by a critic, ZOAC, arXiv 2201.12518; EGGROLL's low-rank
noise, arXiv 2511.16652.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from esrl.algorithms.advantages import gae, next_values
from esrl.algorithms.agent import Metrics
from esrl.algorithms.ppo import PPO, Decision, Experience, PPOState, Sample, critic_gradient, observed, standardize
from esrl.core import sharding
from esrl.core.types import Array, Key, PyTree
from esrl.perturbation.noise import Leaf, Noise
from esrl.policies import running_statistics
from esrl.policies.actor_critic import ActorCritic
from esrl.rollouts.types import EpisodeStats, Lanes, Trajectory


@dataclass(frozen=True, eq=False)
class WeightWindows:
    """How windows are played and weighed.

    Attributes:
      nets: policy and critic.
      noise: the noise space. leaves: how it perturbs each parameter of the policy's network that is trained.
      frozen: places of those that are not, in `jax.tree.leaves` order.
      draw, forward: as in `es.ES`, of the network alone.
      sigma: deviation of the noise. window: K.
      deterministic: act by the mode of the policy rather than by sampling.
      scan: whether windows are a loop of the device, rather than of Python, which steps the worlds.
    """

    nets: ActorCritic
    noise: Noise
    leaves: tuple[Leaf, ...]
    frozen: frozenset[int]
    draw: Callable[[Key, Array], list[Any]]
    forward: Callable[..., Any]
    sigma: float
    window: int
    deterministic: bool
    scan: bool

    def noise_of(self, state: PPOState, window: Array, pairs: Array) -> list[Any]:
        """The noise of these pairs in a window of this iteration. It is never stored: both uses draw it again."""
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.generation + 1), 0xE)
        return self.draw(jax.random.fold_in(key, window), pairs)

    def act(self, context: PyTree, observations: PyTree, carries: PyTree, keys: Key) -> tuple[PyTree, PyTree, Decision]:
        """A decision of every lane by its own parameters, and the value; contexts are (parameters, moments, noise)."""
        (params, moments, factors), policy = context, self.nets.policy
        seen = jax.vmap(lambda x: running_statistics.normalize(moments, x))(observations)
        scale = self.sigma * jnp.array([1.0, -1.0])
        out, actor = self.forward(params["actor"]["network"], factors, scale, seen, carries[0])
        output, log_std = jax.vmap(lambda obs, out: policy.finish(params["actor"], obs, out))(seen, out)
        if self.deterministic:
            action = raw_action = jax.vmap(policy.head.mode)(output)
        else:
            raw_action = jax.vmap(policy.head.raw_sample)(output, log_std, keys)
            action = jax.vmap(policy.head.action)(raw_action)
        values = self.value(context, observations, carries)
        return action, (actor, carries[1]), Decision(raw_action, jnp.zeros_like(values), values)

    def value(self, context: PyTree, observations: PyTree, carries: PyTree) -> Array:
        """The value of every lane's observation, [L]."""
        params, moments, _ = context
        one = lambda obs, carry: self.nets.apply(params, running_statistics.normalize(moments, obs), carry)[0].value  # noqa: E731
        return jax.vmap(one)(observations, carries)


def rollout(windows: WeightWindows, ppo: PPO, state: PPOState) -> Experience:
    """Plays an iteration window by window, every lane with its own parameters."""

    def play(state: PPOState, rows: tuple[Lanes, Array]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        lanes, pairs = rows
        key = jax.random.fold_in(state.key, state.generation + 1)

        def one(lanes: Lanes, window: Array) -> tuple[Lanes, tuple[Trajectory, Array, EpisodeStats]]:
            context = (state.params, state.moments, windows.noise_of(state, window, pairs[::2]))  # lanes lie by pairs
            own = jax.random.fold_in(key, window)
            after, trajectory, last, stats = ppo.runner.unroll(
                windows.act, windows.value, context, lanes, own, ppo.nets.carry, windows.window
            )
            return after, (trajectory, last, stats)

        numbers = jnp.arange(ppo.steps // windows.window)
        if windows.scan:
            after, found = jax.lax.scan(one, lanes, numbers)
        else:
            after, each = lanes, []
            for number in numbers:
                after, now = one(after, number)
                each.append(now)
            found = jax.tree.map(lambda *x: jnp.stack(x), *each)
        trajectory, last, stats = found
        trajectory = jax.tree.map(_joined, trajectory)
        totals = observed(state.moments, trajectory), jax.tree.map(lambda x: jnp.sum(x, axis=0), stats)
        return (after, trajectory, last[-1]), totals

    rows, totals = sharding.map_devices(play, state, (state.lanes, sharding.iota(ppo.lanes) // 2), ppo.mesh)
    return Experience(*rows, *totals)


def _joined(x: Array) -> Array:
    """[windows, L, K, ...] as [L, T, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def fitness(windows: WeightWindows, ppo: PPO, state: PPOState, experience: Experience, rewards: Array) -> Array:
    """F of every lane's windows, [L, T / K], of rewards [L, T] as they are trained on."""
    trajectory = experience.trajectory
    terminated, truncated = trajectory.terminated, trajectory.truncated
    values = trajectory.record.value
    after = next_values(values, trajectory.bootstrap_value, experience.last_value, truncated)
    step = jnp.arange(ppo.steps)
    through = jnp.where((step + 1) % windows.window == 0, state.gae_lambda, 1.0)
    known = jnp.isfinite(trajectory.rewards)
    found = gae(rewards, values, after, terminated, truncated, state.gamma, through[None], known)
    done = terminated | truncated
    begins = jnp.concatenate([jnp.zeros_like(done[:, :1]), done[:, :-1]], axis=1) | (step % windows.window == 0)[None]
    return jnp.sum(jnp.where(begins, found, 0.0).reshape(ppo.lanes, -1, windows.window), axis=2)


def estimate(windows: WeightWindows, ppo: PPO, state: PPOState, experience: Experience, rewards: Array) -> PyTree:
    """Minus the gradient of the policy's network, from an iteration's windows."""
    found = fitness(windows, ppo, state, experience, rewards)
    if ppo.normalize_advantages:
        found = standardize(found, jnp.isfinite(found))
    signed = found[::2] - found[1::2]
    signed = jnp.where(jnp.isfinite(signed), signed, 0.0)  # [P, windows]

    def weigh(state: PPOState, rows: tuple[Array, Array]) -> tuple[tuple[()], list[Array]]:
        pairs, weights = rows

        def add(total: list[Array], window: Array) -> tuple[list[Array], None]:
            more = windows.noise.weighted_sum(
                weights[:, window], windows.noise_of(state, window, pairs), windows.leaves
            )
            return [a + b for a, b in zip(total, more, strict=True)], None

        zero = [jnp.zeros(leaf.shape) for leaf in windows.leaves]
        return (), jax.lax.scan(add, zero, jnp.arange(signed.shape[1]))[0]

    rows = (sharding.iota(signed.shape[0]), signed)
    sums = sharding.map_devices(weigh, state, rows, ppo.mesh)[1]
    factor = -1 / (found.size * windows.sigma)  # minus: optax descends, and the fitness is to rise
    flat, tree = jax.tree.flatten(state.params["actor"]["network"])
    found = iter(sums)
    return tree.unflatten(
        [jnp.zeros_like(w) if place in windows.frozen else factor * next(found) for place, w in enumerate(flat)]
    )


def gradient(ppo: PPO, params: PyTree, network: PyTree, state: PPOState, part: Sample) -> tuple[PyTree, Metrics]:
    """As `PPO.gradient`: the iteration's estimate for the policy, and a minibatch's gradient for the critic."""

    def local(shared: PyTree, part: Sample) -> tuple[Array, PyTree]:
        params, state = shared
        return critic_gradient(ppo, params, state, jax.tree.map(lambda x: x[:, 0], part))

    value_loss, critic = sharding.mean_of_devices(local, (params, state), part, ppo.mesh)
    actor = {name: jnp.zeros_like(x) for name, x in params["actor"].items() if name != "network"}
    return {"actor": {**actor, "network": network}, "critic": critic}, {"value_loss": value_loss}


def trained(windows: WeightWindows, path: str) -> str:
    """How a parameter of the actor is trained, by its path in the network."""
    for leaf in windows.leaves:
        if leaf.path == path:
            kind = f"rank-{leaf.rank} noise" if leaf.rank else "dense noise"
            return f"{kind} on itself, for {windows.window} steps"
    return "not at all"  # log_std, which no network has
