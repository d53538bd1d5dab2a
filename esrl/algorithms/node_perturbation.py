"""The gradient of PPO's clipped surrogate by forward passes alone: perturb, measure, weigh, on recorded steps.

For every step of a minibatch, l is its surrogate and o the network's output. For every hidden point of the policy
(`aligned`), z is its value, a its activation, and M antithetic pairs of noise xi are drawn:

    e     = dl / do, in closed form                       the output layer needs no noise
    w     = (l(z + sigma xi) - l(z - sigma xi)) / (2 sigma)                   what a pair measures: <dl / dz, xi>
    m     = mean_pairs xi (a(z + sigma xi) - a(z - sigma xi)) / (2 sigma)     how far each unit's activation follows
    F     = E[xi (o(+) - o(-)) / (2 sigma)] / E[m]                            learned feedback, running means
    p     = m (F e)                                                           what feedback predicts of dl / dz
    d     = p + kappa mean_pairs (w - <p, xi>) xi                             and what it missed, measured
    g     = mean_steps h d^T                                                  EGGROLL's sum f A B^T with A = h

There is no pass backwards: no product with a transposed weight, no derivative of the network. With kappa = 1, d is the
derivative of the smoothed surrogate up to how a unit's neighbors move its own activation (LayerNorm), which is small,
and vanishes for elementwise activations; p is then a control variate. With kappa = 0 it is p, which is quiet, and
biased as far as a constant F falls short. Without feedback p is zero.

The parts are old, and this is an actor-critic with a zeroth-order actor. Sources: node perturbation, Williams 1992, and
coagents, arXiv 2305.09838; learned feedback, Lansdell et al., arXiv 1906.00889, and weight mirrors, Akrout et al.,
arXiv 1904.05391; evolution strategies on the clipped surrogate of recorded steps, TRES, AAAI 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.algorithms.agent import Metrics
from esrl.algorithms.ppo import PPO, PPOState, Sample, clipped_surrogate, critic_gradient, movement
from esrl.core import sharding
from esrl.core.types import Array, Key, PyTree
from esrl.perturbation.aligned import Reading


class Feedback(NamedTuple):
    """Running means of how far activations and outputs follow each unit of the hidden points.

    Attributes:
      gates: {point: [units]}, of m; ones where a point has no activation. follows: {point: [units, outputs]}, of
        xi (o(+) - o(-)) / (2 sigma).
    """

    gates: dict[str, Array]
    follows: dict[str, Array]


@dataclass(frozen=True, eq=False)
class NodePerturbation:
    """How the actor's gradient is estimated; called as `PPO.gradient` is.

    Attributes:
      reading: the policy's network.
      sigma: deviation of the noise at hidden points. pairs: M.
      kappa: what feedback missed is learned from with this factor.
      decay: of feedback's running means, a minibatch.
      outputs: numbers that the network gives.
    """

    reading: Reading
    sigma: float
    pairs: int
    kappa: float
    decay: float
    outputs: int

    def memory(self) -> Feedback:
        """Feedback that has learned nothing."""
        sizes = {str(i): self.reading.points[i].size for i in self.reading.hidden}
        gates = {i: jnp.zeros(size) for i, size in sizes.items()}
        return Feedback(gates, {i: jnp.zeros((size, self.outputs)) for i, size in sizes.items()})

    def __call__(
        self, ppo: PPO, params: PyTree, memory: Feedback | None, state: PPOState, part: Sample, key: Key
    ) -> tuple[PyTree, Metrics, Feedback | None]:
        """`(gradient, metrics, memory)` of a minibatch [B, 1, ...]: minus the objective's, as an optimizer descends."""
        noise = _bits(key, part.advantage.shape[0], self.pairs * self.noise_size(params))
        fn = partial(_estimate, self, ppo)
        gradient, metrics, found = sharding.mean_of_devices(fn, (params, memory, state), (part, noise), ppo.mesh)
        if memory is not None:
            memory = jax.tree.map(lambda old, new: self.decay * old + (1 - self.decay) * new, memory, found)
        return gradient, metrics, memory

    def trained(self, path: str) -> str:
        """How a parameter of the actor is trained, by its path in the network."""
        reading = self.reading
        if path in (reading.paths[i] for i in reading.rest):
            return "noise on itself"
        points = [reading.points[use.point] for use in reading.uses if reading.paths[use.leaf] == path]
        ways = ["closed form" if point.output else f"noise at {point.size} units" for point in points]
        return " and ".join(dict.fromkeys(ways)) or "closed form"  # log_std, which no network has

    def noise_size(self, params: PyTree) -> int:
        """Random signs that a pair takes."""
        leaves = jax.tree.leaves(params["actor"]["network"])
        hidden = sum(self.reading.points[i].size for i in self.reading.hidden)
        return hidden + sum(leaves[i].size for i in self.reading.rest)


def _bits(key: Key, rows: int, number: int) -> Array:
    """Random bits for `number` signs in each row, [rows, ceil(number / 32)] uint32: the same on any devices."""
    return jax.random.bits(key, (rows, -(-number // 32)), jnp.uint32)


def _signs_of(bits: Array, number: int) -> Array:
    """Bits of a row as `number` signs, -1 or 1."""
    each = (bits[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return 2.0 * each.ravel()[:number].astype(jnp.float32) - 1.0


class _Step(NamedTuple):
    """What the estimate finds of one step of a minibatch.

    Attributes:
      error: e, [outputs]. std: the derivative by `log_std`. seen: what each use takes beside its parameter.
      signals: d, {point: [units]}. rest: the same of parameters that are perturbed themselves, by their numbers.
      gates, follows: feedback's new terms, by points. misses: squares of what feedback missed, and of what it was.
      surrogate, entropy: of the step. change: of its action's log probability.
    """

    error: Array
    std: Array
    seen: list[Array]
    signals: dict[int, Array]
    rest: dict[int, Array]
    gates: dict[str, Array]
    follows: dict[str, Array]
    misses: list[tuple[Array, Array]]
    surrogate: Array
    change: Array
    entropy: Array


def _estimate(how: NodePerturbation, ppo: PPO, shared: PyTree, split: PyTree) -> tuple[PyTree, Metrics, Feedback]:
    """The gradient, metrics and feedback's new terms of the steps of one device."""
    (params, memory, state), (part, bits) = shared, split
    part = jax.tree.map(lambda x: x[:, 0], part)  # one step a sequence: [N, ...]
    network = params["actor"]["network"]
    feedback = {} if memory is None else {i: weights_of(memory, i) for i in how.reading.hidden}
    found = jax.vmap(partial(_step, how, ppo, params, state, feedback))(part, bits)

    # The weighted sum of all noise: g = mean h d^T, where d is e itself at the output.
    outputs = {i: found.error for i, point in enumerate(how.reading.points) if point.output}
    sums = how.reading.contract(jax.tree.leaves(network), found.seen, found.signals | outputs)
    for i, x in found.rest.items():
        sums[i] = sums[i] + jnp.sum(x, axis=0)
    actor = {"network": jax.tree.unflatten(jax.tree.structure(network), [-x / part.advantage.size for x in sums])}
    if "log_std" in params["actor"]:
        actor["log_std"] = -jnp.mean(found.std, axis=0)
    value_loss, critic = critic_gradient(ppo, params, state, part)

    policy_loss, entropy = -jnp.mean(found.surrogate), jnp.mean(found.entropy)
    metrics = {
        "loss": policy_loss + state.value_coef * value_loss - state.entropy_coef * entropy,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        **movement(state, jnp.mean, jnp.exp(found.change), found.change),
        "feedback_explains": _explained(found.misses),
    }
    new = jax.tree.map(lambda x: jnp.mean(x, axis=0), (found.gates, found.follows))
    return {"actor": actor, "critic": critic}, metrics, Feedback(*new)


def _step(
    how: NodePerturbation,
    ppo: PPO,
    params: PyTree,
    state: PPOState,
    feedback: dict[int, Array],
    sample: Sample,
    bits: Array,
) -> _Step:
    """One step: the network as it is, and with noise of both signs at one point after another."""
    policy, reading, leaves = ppo.nets.policy, how.reading, jax.tree.leaves(params["actor"]["network"])

    def play(noise: dict[int, Array], own: list[Array]) -> tuple[Array, list[Array]]:
        (out, _), seen = reading.forward(own, noise, sample.observations, policy.carry)
        return out, seen

    def objective(out: Array) -> tuple[Array, Array, Array, Array]:
        logits, log_std = policy.finish(params["actor"], sample.observations, out)
        change = policy.head.log_prob(logits, log_std, sample.raw_action) - sample.log_prob
        entropy = policy.head.entropy(logits, log_std)
        surrogate = clipped_surrogate(state, change, sample.advantage)[1]
        return surrogate + state.entropy_coef * entropy, surrogate, change, entropy

    out, seen = play({}, leaves)
    _, surrogate, change, entropy = objective(out)
    weighted = jnp.exp(change) * sample.advantage
    logits, log_std = policy.finish(params["actor"], sample.observations, out)
    # Where the clipped ratio is the lower one, the surrogate does not move.
    moves = jnp.where(surrogate == weighted, weighted, 0.0)
    scores = (policy.head.score(logits, log_std, sample.raw_action), policy.head.entropy_score(logits, log_std))
    error, std = (moves * by + state.entropy_coef * spread for by, spread in zip(*scores, strict=True))

    def at_point(i: int, x: Array) -> tuple[Array, Array, Array]:
        """What a pair at a point measures of objective, output and activation: differences over 2 sigma."""
        after = reading.points[i].activation

        def side(sign: float) -> tuple[Array, Array, Array]:
            out, seen = play({i: sign * how.sigma * x}, leaves)
            return objective(out)[0], out, jnp.zeros(0) if after is None else seen[after].ravel()

        return _slope(side, how.sigma)

    def of_parameters(noise: dict[int, Array]) -> Array:
        """What a pair of noise on parameters measures of the objective."""

        def side(sign: float) -> Array:
            moved = [w + sign * how.sigma * noise[i] if i in noise else w for i, w in enumerate(leaves)]
            return objective(play({}, moved)[0])[0]

        return _slope(side, how.sigma)

    drawn = _signs_of(bits, how.pairs * how.noise_size(params)).reshape(how.pairs, -1)
    points, parameters = _cut(drawn, reading, leaves)
    signals, gates, follows, misses = {}, {}, {}, []
    for i, noise in points.items():  # a pair for each point: the noise of one would be noise to another
        measured, moved, after = jax.vmap(partial(at_point, i))(noise)  # w [M], [M, outputs], [M, units]
        xi = noise.reshape(how.pairs, -1)
        gate = jnp.mean(xi * after, axis=0) if after.shape[1] else jnp.ones(xi.shape[1])
        predicted = gate * (feedback[i] @ error) if feedback else jnp.zeros(xi.shape[1])
        missed = measured - xi @ predicted
        signals[i] = predicted + (how.kappa if feedback else 1.0) * (missed @ xi) / how.pairs
        gates[str(i)], follows[str(i)] = gate, xi.T @ moved / how.pairs
        misses.append((jnp.mean(missed**2), jnp.mean(measured**2)))
    rest = {}
    if parameters:
        measured = jax.vmap(of_parameters)(parameters)
        rest = {i: jnp.tensordot(measured / how.pairs, x, 1) for i, x in parameters.items()}
    return _Step(error, std, seen, signals, rest, gates, follows, misses, surrogate, change, entropy)


def _slope(side: Callable[[float], Any], sigma: float) -> Any:
    """The difference of both sides of a pair, over 2 sigma."""
    return jax.tree.map(lambda a, b: (a - b) / (2 * sigma), side(1.0), side(-1.0))


def _explained(misses: list[tuple[Array, Array]]) -> Array:
    """The share of what pairs measure that feedback had predicted, mean over points; 0 without any."""
    shares = [1 - jnp.mean(missed) / jnp.maximum(jnp.mean(measured), 1e-12) for missed, measured in misses]
    return jnp.mean(jnp.stack(shares)) if shares else jnp.float32(0)


def weights_of(memory: Feedback, point: int) -> Array:
    """F of a point, [units, outputs]."""
    gates, follows = memory.gates[str(point)], memory.follows[str(point)]
    # The mean slope of a unit that hardly ever moves is small and noisy; the floor keeps it from large guesses.
    floor = 0.1 * jnp.sqrt(jnp.mean(gates**2)) + 1e-12
    return follows / (jnp.where(gates < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(gates), floor))[:, None]


def _cut(noise: Array, reading: Reading, leaves: list[Array]) -> tuple[dict[int, Array], dict[int, Array]]:
    """Signs [M, all] as noise of the hidden points and of the parameters that are perturbed themselves, by number."""
    shapes = [(i, reading.points[i].shape) for i in reading.hidden] + [(i, leaves[i].shape) for i in reading.rest]
    parts, begin = [], 0
    for _, shape in shapes:
        size = math.prod(shape)
        parts.append(noise[:, begin : begin + size].reshape(noise.shape[0], *shape))
        begin += size
    hidden = len(reading.hidden)
    return (
        {i: x for (i, _), x in zip(shapes[:hidden], parts[:hidden], strict=True)},
        {i: x for (i, _), x in zip(shapes[hidden:], parts[hidden:], strict=True)},
    )
