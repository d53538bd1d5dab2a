"""What this machine can do at most, as far as a program can find out: operations/s, bytes/s, memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from esrl.core.sharding import AXIS, Mesh, default_mesh
from experiments.throughput.timing import Call, first, turns

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SHARE = 0.6  # of the memory that is free, for what a measurement may take
ROUNDS = 10


class Ceilings(NamedTuple):
    """What all devices reach together.

    Attributes:
      flops: floating-point operations per second of a large matrix product, for each dtype.
      bytes: bytes per second read and written by adding 1 to a large array.
      memory: bytes that a measurement may hold, on all devices together.
    """

    flops: dict[str, float]
    bytes: float
    memory: float

    def seconds(self, flops: float, moved: float, dtype: str) -> float:
        """The least time for so many operations and bytes: the roofline."""
        return max(flops / self.flops[dtype], moved / self.bytes)


class Loads(NamedTuple):
    """Calls that keep all devices busy, and return how many operations, or bytes, that were.

    `products` by dtype: a large matrix product. `add`: 1 added in place to an array far larger than any cache.
    """

    products: dict[str, Call]
    add: Call


def loads(dtypes: Iterable[str]) -> Loads:
    """What the ceilings are measured with."""
    mesh = default_mesh(len(jax.local_devices()))
    return Loads({dtype: _product(mesh, dtype) for dtype in dtypes}, _add(mesh))


def measure(of: Loads) -> Ceilings:
    """The best of a few rounds; whatever else runs makes it lower."""
    return Ceilings({dtype: _best(call) for dtype, call in of.products.items()}, _best(of.add), memory())


def on_cpu() -> bool:
    """Whether JAX's devices are processor cores."""
    return jax.local_devices()[0].platform == "cpu"


def device_name() -> str:
    """A name of the devices for a file, "2-x-cpu"."""
    text = f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}"
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def memory() -> float:
    """Bytes that a measurement may take: a share of what is free on all devices together."""
    if on_cpu():
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    else:
        found = [device.memory_stats() or {} for device in jax.local_devices()]
        free = sum(x.get("bytes_limit", 0) - x.get("bytes_in_use", 0) for x in found) or 8 * 2**30
    return SHARE * free


def held(program: Any, devices: int) -> int:
    """Bytes that a compiled program holds on all its devices, as its compiler says: temporaries, arguments, results."""
    sizes = program.memory_analysis()
    names = ("argument_size_in_bytes", "temp_size_in_bytes", "output_size_in_bytes")
    return devices * sum(int(getattr(sizes, name)) for name in names)


def _best(call: Call) -> float:
    """What the fastest of a few calls does in a second."""
    first(call)
    windows = turns({"": call}, {"": 0.0}, ROUNDS, least=0.0, limit=1e9)[""]
    return float((windows[:, 1] / windows[:, 0]).max())


def _product(mesh: Mesh, dtype: str) -> Call:
    """x @ W, with a square of x on each device, and W on each."""
    side, times = (1024, 2) if on_cpu() else (8192, 16)
    split, everywhere = PartitionSpec(AXIS), PartitionSpec()
    x = jax.device_put(jnp.ones((mesh.size * side, side), DTYPES[dtype]), NamedSharding(mesh, split))
    w = jax.device_put(jnp.full((side, side), 1 / side, DTYPES[dtype]), NamedSharding(mesh, everywhere))

    def chain(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ w, None), x, None, length=times)[0]

    mapped = jax.shard_map(chain, mesh=mesh, in_specs=(split, everywhere), out_specs=split, check_vma=False)
    program = jax.jit(mapped).lower(x, w).compile()
    return waited(program, (x, w), times * 2.0 * mesh.size * side**3)


def _add(mesh: Mesh) -> Call:
    """x + 1, in place, again and again."""
    size, times = (1 << 26) if on_cpu() else (1 << 29), 8
    place = NamedSharding(mesh, PartitionSpec(AXIS))
    x = jax.device_put(jnp.zeros(size // mesh.size * mesh.size), place)
    again = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y + 1, x), out_shardings=place)
    program = again.lower(x).compile()
    return waited(program, (x,), times * 2.0 * x.nbytes)


def waited(program: Any, given: tuple[Any, ...], *done: float) -> Call:
    """A call of a compiled program that waits for its results, and says what was done in it."""

    def call() -> tuple[float, ...]:
        jax.block_until_ready(program(*given))
        return done

    return call
