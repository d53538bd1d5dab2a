"""The forward passes that throughput/run.py times: one network, one population, every kind of noise.

A pass is a scan of network steps, in which each step's output is added, a thousandth of it, to the next observation, so
that nothing can be moved out of the loop. Observations and noise lie split over all devices, and are taken in chunks of
pairs by `esrl.core.sharding.map_chunks`, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jax.sharding import NamedSharding, PartitionSpec

import esrl
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.perturbation import forward as perturb
from esrl.perturbation import noise as noises
from esrl.perturbation.classify import classify
from esrl.perturbation.noise import Leaf, Noise
from esrl.policies.networks import ACTIVATIONS
from esrl.policies.policy import bind
from experiments.throughput.machine_limits import DTYPES, Ceilings

SIGMA = 0.05
PER_PAIR = 2
OBSERVATIONS, ACTIONS = 4, 2


class Work(NamedTuple):
    """A network for one lane, and how many lanes it is for.

    Attributes:
      name: what tables call the network. dtype: of parameters, observations and noise alike.
      apply: `apply(params, observation, ()) -> (output, ())`. params, inputs: its parameters, and how many numbers an
        observation has.
      leaves: what its parameters are used as. population: members, 2P. episodes: lanes of each member.
    """

    name: str
    dtype: str
    apply: Callable[..., Any]
    params: Any
    inputs: int
    leaves: tuple[Leaf, ...]
    population: int
    episodes: int = 1

    @property
    def pairs(self) -> int:
        return self.population // PER_PAIR

    @property
    def lanes(self) -> int:
        return self.population * self.episodes

    @property
    def size(self) -> int:
        """Bytes of one number."""
        return jnp.dtype(DTYPES[self.dtype]).itemsize


class Kind(NamedTuple):
    """A way to run a network: without noise, or with it.

    Attributes:
      name: what tables call it. noise: the noise space; None is plain inference with shared weights.
      rank: 0 for inference and for dense noise. stored: whether the noise is an argument, or drawn in every step.
      whole: all lanes of a device at once, not in chunks.
    """

    name: str
    noise: Noise | None
    rank: int = 0
    stored: bool = True
    whole: bool = False


def kinds(ranks: Sequence[int]) -> list[Kind]:
    """Inference, chunked and at once; each rank; other forms of rank 1 (at once, of signs, drawn in steps); dense."""
    inference = [Kind("inference, in chunks", None), Kind("inference, at once", None, whole=True)]
    low = [Kind(f"rank {rank}", noises.low_rank(rank), rank) for rank in ranks]
    signs = noises.low_rank(1, None, "rademacher", "int8")
    others = [
        Kind("rank 1, at once", noises.low_rank(1), 1, whole=True),
        Kind("rank 1 of signs, int8", signs, 1),
        Kind("rank 1, generated", noises.low_rank(1), 1, stored=False),
        Kind("rank 1 of signs, generated", signs, 1, stored=False),
        Kind("dense", noises.dense()),
    ]
    return [*inference, *low, *others]


class _Layers(nn.Module):
    """The layers of `esrl.mlp`, which computes in float32, in another dtype."""

    hidden: tuple[int, ...]
    size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in self.hidden:
            x = ACTIVATIONS["layernorm_relu"](nn.Dense(width, dtype=self.dtype, param_dtype=self.dtype)(x))
        return nn.Dense(self.size, dtype=self.dtype, param_dtype=self.dtype)(x)


def policy_work(width: int, population: int, dtype: str, episodes: int = 1) -> Work:
    """`esrl.mlp` with three hidden layers of a width, 4 observations, 2 actions; biases are perturbed too."""
    hidden = (width,) * 3
    network = esrl.mlp(hidden) if dtype == "float32" else esrl.network(_Layers(hidden, ACTIONS, DTYPES[dtype]))
    policy = bind(network, spaces.Box(-1, 1, (OBSERVATIONS,)), spaces.Discrete(ACTIONS))

    def apply(params: Any, observation: Any, carry: Any) -> Any:
        (output, _), carry = policy.apply(params, observation, carry)
        return output, carry

    return _work(f"3x{width}", apply, policy.init(seed_key(0)), OBSERVATIONS, population, dtype, episodes)


def layer_work(width: int, population: int, dtype: str) -> Work:
    """One linear layer without biases, width x width."""

    def apply(params: Any, observation: Any, carry: Any) -> Any:
        return observation @ params["w"], carry

    def init(key: Any) -> Any:
        return {"w": jax.random.normal(key, (width, width), DTYPES[dtype]) / math.sqrt(width)}

    return _work(f"{width}x{width}", apply, jax.jit(init)(seed_key(0)), width, population, dtype)


def _work(name: str, apply: Any, params: Any, inputs: int, population: int, dtype: str, episodes: int = 1) -> Work:
    observation = jax.ShapeDtypeStruct((inputs,), DTYPES[dtype])
    leaves = classify(apply, params, observation, ())
    return Work(name, dtype, apply, params, inputs, leaves, population, episodes)


# ---- what it must take ----------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """Of one step of all members: operations, bytes that must move, bytes of noise, and bytes held at once at most."""

    flops: float
    moved: float
    noise: float
    held: float


def cost(work: Work, kind: Kind, chunk: int, devices: int) -> Cost:
    """What a step must take.

    Counted are products and biases; normalization, activations, and drawing numbers are not. Weights are read once for
    each chunk, activations come in and go out once for each layer, stored noise is read once in a step.
    """
    leaves = kind.noise.plan(work.leaves) if kind.noise else work.leaves
    chunks = work.pairs // chunk
    weights = sum(math.prod(leaf.shape) for leaf in leaves)
    flops = moved = 0.0
    for leaf in leaves:
        m, n = leaf.matrix_shape
        if len(leaf.shape) < 2:
            flops += work.lanes * n * (2 if kind.noise else 1)
            continue
        flops += 2.0 * work.lanes * m * n
        moved += work.lanes * (m + n) * work.size
        if leaf.rank:
            flops += work.lanes * (2.0 * leaf.rank * (m + n) + n)
        elif kind.noise:
            flops += work.lanes * (2.0 * m * n + n)
    numbers = work.pairs * sum(leaf.num_random for leaf in leaves) if kind.noise else 0
    each = min(work.size, kind.noise.bytes_each) if kind.noise else 0
    moved += chunks * weights * work.size + (numbers * each if kind.stored else 0)
    widest = max(sum(leaf.matrix_shape) for leaf in leaves)
    lanes = min(work.lanes, chunk * PER_PAIR * work.episodes * devices)
    at_once = numbers if kind.stored else numbers * chunk * devices / work.pairs
    # drawing takes the noise as float32, cut into leaves, and in its own dtype
    memory = (devices + 1) * weights * work.size + 4.0 * lanes * widest * 4 + at_once * (8 + work.size)
    return Cost(flops, moved, float(numbers * each), memory)


def steps_for(work: Work, chunk: int, ceilings: Ceilings, seconds: float) -> int:
    """Steps of a scan, 4 to 256: about half of a window of inference, were it as fast as the machine can be."""
    need = cost(work, kinds(())[0], chunk, 1)
    wanted = seconds / 2 / ceilings.seconds(need.flops, need.moved, work.dtype)
    return 2 ** int(min(max(math.log2(max(wanted, 1)), 2), 8))


# ---- the programs ---------------------------------------------------------------------------------------------------


def program(work: Work, kind: Kind, chunk: int, steps: int, mesh: Any) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    """`make() -> (jitted function, arguments)` of a pass; nothing is drawn or compiled before it is called."""
    leaves = kind.noise.plan(work.leaves) if kind.noise else work.leaves
    forward = perturb.population(work.apply, leaves)
    scale = jnp.array([SIGMA, -SIGMA])
    dtype = DTYPES[work.dtype]

    def drawn(key: Any, ids: Any) -> list[Any]:
        found = kind.noise.sample(key, leaves, ids)  # type: ignore[union-attr]
        return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, found)

    def scan(args: tuple[Any, Any], xs: tuple[Any, Any, Any]) -> tuple[Any, tuple[()]]:
        params, key = args
        first, ids, eps = xs

        def one(observation: Any, time: Any) -> tuple[Any, None]:
            if kind.noise is None:
                output = jax.vmap(lambda x: work.apply(params, x, ())[0])(observation)
            else:
                noise = eps if kind.stored else drawn(jax.random.fold_in(key, time), ids)
                output = forward(params, noise, scale, observation, ())[0]
            return _fed_back(observation, output), None

        times = jnp.arange(steps, dtype=jnp.uint32)
        last, _ = jax.lax.scan(one, first.reshape(-1, work.inputs), times)
        return last.reshape(first.shape), ()

    def make() -> tuple[Any, tuple[Any, ...]]:
        split, everywhere = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in ((sharding.AXIS,), ()))
        ids = sharding.iota(work.pairs)
        shape = (work.pairs, PER_PAIR * work.episodes, work.inputs)
        observations = jax.random.normal(seed_key(1), shape, dtype)
        eps = jax.jit(drawn, out_shardings=split)(seed_key(2), ids) if kind.noise and kind.stored else ()
        xs = jax.device_put((observations, ids), split)
        args = jax.device_put((work.params, seed_key(3)), everywhere)
        return jax.jit(lambda args, xs: sharding.map_chunks(scan, args, xs, chunk, mesh)[0]), (args, (*xs, eps))

    return make


def _fed_back(observation: Any, output: Any) -> Any:
    """The next observation: a little of the output added, repeated or cut to as many numbers."""
    width = observation.shape[1]
    repeated = jnp.tile(output, (1, -(-width // output.shape[1])))[:, :width]
    return observation + jnp.asarray(1e-3, observation.dtype) * repeated.astype(observation.dtype)
