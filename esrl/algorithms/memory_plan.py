"""Memory that a generation takes, part by part, and how many pairs it may play at once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.sharding import Mesh

from esrl.core.jaxprs import call_body
from esrl.core.sharding import AXIS
from esrl.core.types import EsrlError, PyTree, seed_key
from esrl.policies.policy import Policy

_SHARE = 0.5  # of a device's memory, when nothing else is said
_BATCH = 8 << 20  # bytes of noise that the update draws at once: enough rows for a product, little to hold
_ACCELERATOR = 1 << 18  # lanes beyond which an accelerator gains nothing from more


class MemoryItem(NamedTuple):
    """Bytes that something takes on each device."""

    name: str
    bytes: int
    why: str


def pair_bytes(env: Any, policy: Policy, lanes: int, noise_bytes: int, shared_data: bool = False) -> dict[str, int]:
    """What one pair takes while it plays: its noise, and for its lanes their worlds and the network's activations.

    Args:
      env: the environment. policy: bound to it.
      lanes: of a pair, signs times episodes.
      noise_bytes: of one pair's noise.
      shared_data: whether what depends on the observation and on constants alone is there once for all lanes.
    """
    key = jax.eval_shape(lambda: seed_key(0))
    world = (policy.observation, policy.carry)
    if hasattr(env, "reset"):
        world = (*jax.eval_shape(env.reset, key), policy.carry)
    params = jax.eval_shape(policy.init, key)
    width = widest(policy.apply, params, policy.observation, policy.carry, shared_data=shared_data)
    return {"noise": noise_bytes, "worlds": 2 * lanes * tree_bytes(world), "activations": lanes * width}


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays (or shapes of arrays) in a tree."""
    return sum(_bytes(x) for x in jax.tree.leaves(tree))


def _bytes(x: Any) -> int:
    if not hasattr(x, "dtype"):
        return np.asarray(x).nbytes
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(x.shape)
    return math.prod(x.shape) * x.dtype.itemsize


def widest(fn: Callable[..., Any], params: PyTree, *inputs: PyTree, shared_data: bool = False) -> int:
    """Bytes of the largest inputs and outputs of one operation on one lane, without the parameters.

    With `shared_data` also without what is made of inputs and constants alone.
    """
    jaxpr = jax.make_jaxpr(fn)(params, *inputs).jaxpr
    given = len(jax.tree.leaves(params))
    data = {*jaxpr.invars[given:], *jaxpr.constvars} if shared_data else set()
    return _widest(jaxpr, set(jaxpr.invars[:given]), data)


def _widest(jaxpr: Any, params: set[Any], data: set[Any]) -> int:
    """As `widest`; the variables of `params` and `data` are there once, and so is what is made of either alone."""
    most = 0
    for eqn in jaxpr.eqns:
        body = call_body(eqn)
        if body is not None:
            both = list(zip(body.jaxpr.invars, eqn.invars, strict=True))
            inside = [{inner for inner, outer in both if _in(outer, shared)} for shared in (params, data)]
            most = max(most, _widest(body.jaxpr, *inside))
        held = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
        alone = [shared for shared in (params, data) if all(v in shared for v in held)]
        if alone:
            for shared in alone:
                shared.update(eqn.outvars)
            continue
        taken = [v for v in held if v not in params and v not in data]
        most = max(most, sum(_bytes(v.aval) for v in (*taken, *eqn.outvars)))
    return most


def _in(var: Any, shared: set[Any]) -> bool:
    return not isinstance(var, jex.Literal) and var in shared


class Device(NamedTuple):
    """A device as memory is planned for: JAX's name of its platform, and its bytes.

    `own` says that it has them for itself, as an accelerator has; CPU devices share those of the machine.
    """

    platform: str
    bytes: int
    own: bool


def device_of(mesh: Mesh) -> Device:
    """What each device of a mesh has.

    Not what is free now: a run that goes on must find the chunks that it began with.
    """
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = own[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return Device(own[0].platform, stats["bytes_limit"], True)
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(own)
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        size = (8 << 30) // len(own)
    return Device(own[0].platform, size, False)


def default_chunk(pairs: int, lanes: int, each: int, mesh: Mesh, gib: float | None) -> int:
    """Pairs that play at once on each device, at most all that it has.

    A CPU steps 64 to 128 lanes about as fast as more, from its caches, and the fewer play at once, the less the last
    of them leave idle. An accelerator wants all that fit.

    Args:
      pairs: P. lanes: of a pair. each: bytes of a pair. mesh: the devices.
      gib: GiB that they may take on each device; None is half of what it has.

    Raises:
      EsrlError: not even one pair fits into the GiB given, or into the memory of an accelerator.
    """
    local = pairs // mesh.size
    device = device_of(mesh)
    wanted = min(max(local * lanes // 16, 64), 128) if device.platform == "cpu" else _ACCELERATOR
    room = int(gib * 2**30) if gib is not None else int(_SHARE * device.bytes)
    if gib is not None and room < each:
        raise EsrlError(
            f"memory_gib is {gib:g}, but one pair needs {each / 2**30:.3g}; give more, or a smaller network"
        )
    if device.own and each > device.bytes:  # a machine may swap; a device's allocation fails
        raise EsrlError(
            f"one pair needs {each / 2**30:.3g} GiB, but a device has {device.bytes / 2**30:.3g}; take a smaller"
            " network, fewer episodes_per_member, or a device with more memory"
        )
    return max(min(wanted // lanes, room // each, local), 1)


def default_update_chunk(pairs: int, noise_bytes: int, mesh: Mesh) -> int:
    """Pairs whose noise the update draws and sums at once on each device."""
    return max(min(_BATCH // noise_bytes, pairs // mesh.shape[AXIS]), 1)


def breakdown(
    each: dict[str, int], state: PyTree, pairs: int, lanes: int, chunk: int, update_chunk: int
) -> tuple[MemoryItem, ...]:
    """A generation's memory on each device, by what it is for.

    Args:
      each: of one pair, from `pair_bytes`. state: the agent's state, or its shapes.
      pairs: P. lanes: of a pair. chunk: pairs that play at once. update_chunk: pairs that the update sums at once.
    """
    held = tree_bytes(state)
    params = tree_bytes(state.params)
    weights = f"{params:,} bytes of parameters"
    lanes_at_once = chunk * lanes
    items = {
        "state": (2 * held, f"parameters, optimizer and statistics, before and after a step; {weights}"),
        "noise": (chunk * each["noise"], f"{chunk:,} pairs at once, {each['noise']:,} bytes each"),
        "worlds": (chunk * each["worlds"], f"{lanes_at_once:,} lanes before and after a step"),
        "activations": (chunk * each["activations"], f"{lanes_at_once:,} lanes, widest operation of the network"),
        "episodes": (pairs * (12 * lanes + 4), f"returns and lengths of {pairs * lanes:,} episodes"),
        "update": (
            4 * update_chunk * each["noise"] + params,
            f"drawing {update_chunk:,} pairs' noise at once, and summing it",
        ),
    }
    return tuple(MemoryItem(name, size, why) for name, (size, why) in items.items())
