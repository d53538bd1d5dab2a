"""A function over pairs, in chunks and on every device, with results that depend on neither (level 1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrl.types import Array, EsrlError, PyTree

AXIS = "pairs"


def default_mesh(pairs: int) -> Mesh:
    """All local devices, or as many of them as divide the number of pairs."""
    devices = jax.local_devices()
    number = max(d for d in range(1, len(devices) + 1) if pairs % d == 0)
    return Mesh(np.array(devices[:number]), (AXIS,))


def default_chunk(pairs: int, lanes_per_pair: int, mesh: Mesh) -> int:
    """Pairs of one chunk on one device: the largest divisor of the device's pairs within a number of lanes.

    On a CPU a few hundred lanes keep an environment's state in cache, and each chunk stops when its own lanes are done.
    An accelerator wants them all at once.
    """
    local = pairs // mesh.size
    limit = 256 if mesh.devices.flat[0].platform == "cpu" else 1 << 18
    return max(c for c in range(1, local + 1) if local % c == 0 and (c == 1 or c * lanes_per_pair <= limit))


def check_chunk(chunk: int, pairs: int, mesh: Mesh) -> None:
    """Raises `EsrlError` unless mesh and chunk divide the pairs evenly."""
    if tuple(mesh.axis_names) != (AXIS,):
        raise EsrlError(f'the mesh has axes {mesh.axis_names}, but needs the one axis "{AXIS}"')
    if pairs % mesh.size:
        raise EsrlError(f"{pairs} pairs cannot be split evenly over {mesh.size} devices; change the population")
    if chunk < 1 or (pairs // mesh.size) % chunk:
        raise EsrlError(f"chunk is {chunk}, but must divide the {pairs // mesh.size} pairs of each device")


def map_chunks(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], args: PyTree, xs: PyTree, chunk: int, mesh: Mesh
) -> tuple[PyTree, PyTree]:
    """`fn(args, xs_chunk) -> (rows, total)` over all of xs: rows are concatenated, totals are added up.

    Args:
      fn: takes the shared `args` and a chunk of `xs` (leading axis C); `rows` have the leading axis C.
      args: the same for every chunk and device.
      xs: arrays with leading axis P, split over the devices and then into chunks.
      chunk: C.
      mesh: devices along the one axis "pairs".
    """

    def local(args: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        size = jax.tree.leaves(xs)[0].shape[0]
        if size == chunk:
            return fn(args, xs)
        parts = jax.tree.map(lambda x: x.reshape(size // chunk, chunk, *x.shape[1:]), xs)
        shape = jax.eval_shape(fn, args, jax.tree.map(lambda x: x[0], parts))[1]
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

        def body(total: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
            rows, more = fn(args, part)
            return jax.tree.map(jnp.add, total, more), rows

        total, rows = jax.lax.scan(body, zero, parts)
        return jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), rows), total

    if mesh.size == 1:
        return local(args, xs)

    def shard(args: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        rows, total = local(args, xs)
        gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), rows)
        return gathered, jax.tree.map(lambda x: jax.lax.psum(x, AXIS), total)

    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere, check_vma=False)
    return mapped(args, xs)


def iota(pairs: int) -> Array:
    """Ids of all pairs, [P] uint32."""
    return jnp.arange(pairs, dtype=jnp.uint32)


def one_device() -> Mesh:
    """The first local device alone."""
    return Mesh(np.array(jax.local_devices()[:1]), (AXIS,))


def compiled(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`fn` under jit, with arguments and results on every device of the mesh.

    Arguments are placed first: an array that the user put into a state would otherwise, by lying on one device, compile
    the whole function again.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(fn, out_shardings=everywhere)

    @wraps(getattr(fn, "func", fn))
    def placed(*args: Any) -> Any:
        return jitted(*jax.device_put(args, everywhere))

    return placed
