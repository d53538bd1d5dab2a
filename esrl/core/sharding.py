"""A function over pairs, in chunks and on every device, with results that depend on neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrl.core import processes
from esrl.core.runtime import check_fork
from esrl.core.types import Array, EsrlError, PyTree

AXIS = "pairs"
HOSTS = "hosts"


def default_mesh(pairs: int) -> Mesh:
    """The devices that share a number of pairs.

    In one process all local devices, or as many of them as divide the number. Where several processes train together,
    all devices of all: none is left out, since its process would then have no part in the program.

    Raises:
      EsrlError: the devices of several processes cannot share them evenly.
    """
    if processes.several():
        check_shared(pairs, "the number of pairs")
        return every_device()
    devices = jax.local_devices()
    number = max(d for d in range(1, len(devices) + 1) if pairs % d == 0)
    return Mesh(np.array(devices[:number]), (AXIS,))


def check_shared(number: int, called: str, each: int = 1) -> None:
    """Raises `EsrlError` where the devices of several processes cannot share `number` rows evenly.

    Args:
      number: of rows. called: the option that says how many, times `each`.
    """
    if not processes.several():
        return
    devices = jax.device_count()
    if number % devices == 0:
        return
    above = -(-number // devices) * devices
    near = " or ".join(str(n * each) for n in (above - devices, above) if n)
    raise EsrlError(
        f"{called} is {number * each}, which the {devices} devices of {jax.process_count()} processes cannot share"
        f" evenly; use {near}"
    )


def every_device() -> Mesh:
    """All devices of all processes, those of a process side by side."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def within_hosts(mesh: Mesh) -> Mesh:
    """The same devices in the same order, along "pairs" within each process: every process has all pairs."""
    owners = [device.process_index for device in mesh.devices.flat]
    hosts = len(set(owners))
    if len({owners.count(owner) for owner in owners}) > 1:
        raise EsrlError('exchange="scalars" needs as many devices in each process; take exchange="sums"')
    return mesh if hosts == 1 else Mesh(mesh.devices.reshape(hosts, -1), (HOSTS, AXIS))


def check_chunk(chunk: int, pairs: int, mesh: Mesh) -> None:
    """Raises `EsrlError` unless the mesh divides the pairs evenly and a device has as many as the chunk."""
    if tuple(mesh.axis_names) != (AXIS,):
        raise EsrlError(f'the mesh has axes {mesh.axis_names}, but needs the one axis "{AXIS}"')
    if pairs % mesh.size:
        raise EsrlError(f"{pairs} pairs cannot be split evenly over {mesh.size} devices; change the population")
    if not 1 <= chunk <= pairs // mesh.size:
        raise EsrlError(f"chunk_pairs is {chunk}, but must lie in 1 .. {pairs // mesh.size}, the pairs of each device")


def map_chunks(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], args: PyTree, xs: PyTree, chunk: int, mesh: Mesh
) -> tuple[PyTree, PyTree]:
    """`fn(args, xs_chunk) -> (rows, total)` over all of xs: rows are concatenated, totals are added up.

    Args:
      fn: takes the shared `args` and a chunk of `xs` (leading axis C); `rows` have the leading axis C. Where C does not
        divide what a device has, the last chunk ends in zeros: their rows are dropped, and they must add nothing to
        `total`.
      args: the same for every chunk and device.
      xs: arrays with leading axis P, split over the devices and then into chunks.
      chunk: C.
      mesh: devices along the one axis "pairs".
    """

    def local(args: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        size = jax.tree.leaves(xs)[0].shape[0]
        if size == chunk:  # without a loop, which would keep the compiler from fusing across its border
            return fn(args, xs)
        parts = jax.tree.map(lambda x: _in_parts(x, chunk), xs)
        shape = jax.eval_shape(fn, args, jax.tree.map(lambda x: x[0], parts))[1]
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

        def body(total: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
            rows, more = fn(args, part)
            return jax.tree.map(jnp.add, total, more), rows

        total, rows = jax.lax.scan(body, zero, parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], rows), total

    return map_devices(local, args, xs, mesh)


def _in_parts(x: Array, chunk: int) -> Array:
    """An array [P, ...] as [parts, chunk, ...], the last part filled up with zeros."""
    missing = -x.shape[0] % chunk
    if missing:
        x = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])
    return x.reshape(-1, chunk, *x.shape[1:])


def map_devices(
    fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], args: PyTree, xs: PyTree, mesh: Mesh
) -> tuple[PyTree, PyTree]:
    """`fn(args, xs_part) -> (rows, total)` on every device, as in `map_chunks`, each part in one call."""
    if mesh.size == 1:
        return fn(args, xs)

    def shard(args: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        rows, total = fn(args, xs)
        gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), rows)
        return gathered, jax.tree.map(lambda x: jax.lax.psum(x, AXIS), total)

    # Along "hosts", where the mesh has it, everything is the same, and nothing is sent.
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    # check_vma=False: what `fn` returns is made equal on all devices here, by gathering and summing.
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere, check_vma=False)
    return mapped(args, xs)


def mean_of_devices(fn: Callable[[PyTree, PyTree], PyTree], args: PyTree, xs: PyTree, mesh: Mesh) -> PyTree:
    """`fn(args, xs_part)`, the mean over devices that each take an equal part of `xs`."""
    if mesh.size == 1:
        return fn(args, xs)
    total = map_devices(lambda args, xs: ((), fn(args, xs)), args, xs, mesh)[1]
    return jax.tree.map(lambda x: x / mesh.size, total)


def iota(pairs: int) -> Array:
    """Ids of all pairs, [P] uint32."""
    return jnp.arange(pairs, dtype=jnp.uint32)


def one_device() -> Mesh:
    """The first local device alone."""
    return Mesh(np.array(jax.local_devices()[:1]), (AXIS,))


def replicated(tree: PyTree, everywhere: NamedSharding) -> PyTree:
    """Arrays on every device of a mesh; where that has devices of other processes, all have the same values already."""
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)

    def one(x: Any) -> Array:
        if getattr(x, "sharding", None) == everywhere:
            return x
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            words = one(jax.random.key_data(here(x)))
            return jax.random.wrap_key_data(words, impl=str(jax.random.key_impl(x)))
        # Not by device_put, which would have all processes compare what each of them gives.
        x = np.asarray(here(x))
        return jax.make_array_from_process_local_data(everywhere, x, x.shape)

    return jax.tree.map(one, tree)


def here(tree: PyTree) -> PyTree:
    """The arrays on one device of this process, so that it can compute with them by itself.

    What is on the devices of other processes as well is the same on all of them.
    """

    def one(x: Any) -> Any:
        several = isinstance(x, jax.Array) and not x.is_fully_addressable
        return x.addressable_data(0) if several else x

    return jax.tree.map(one, tree)


class Compiled:
    """A pure function under jit, with arguments and results on every device of a mesh.

    Called with arrays it runs compiled, and places them on the devices. Called inside `jax.jit`, `jax.vmap`,
    `jax.lax.scan` and the like it is the function under a plain `jax.jit`, which the transformation sees through.

    Attributes:
      function: the bare function.
    """

    def __init__(self, function: Callable[..., Any], mesh: Mesh) -> None:
        self.function = function
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._jitted = jax.jit(function, out_shardings=self._everywhere)
        self._inside = jax.jit(function)  # jax.vmap alone would else run it operation by operation

    def __call__(self, *args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._inside(*args)
        check_fork()
        # Placed first: an array that the user put into a state lies on one device, and would compile the program again.
        # Not where all lie there: to place what needs none takes longer than a small program.
        if not all(getattr(leaf, "sharding", None) == self._everywhere for leaf in leaves):
            args = replicated(args, self._everywhere)
        return self._jitted(*args)

    def lower(self, *shapes: Any) -> Any:
        """The same program lowered for arguments of these shapes, as `jax.jit(...).lower` gives it."""
        put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._everywhere)  # noqa: E731
        return self._jitted.lower(*jax.tree.map(put, shapes))
