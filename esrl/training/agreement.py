"""What the processes of one run agree on, each generation: that they train the same, and whether they go on.

A signal that one has heard ends all after the same generation; the clock is process 0's; what process 0 could not write
is an error of all. Parameters are never sent to compare them: their digests are.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms.agent import Plan
from esrl.core import processes
from esrl.core.sharding import here, replicated
from esrl.core.types import EsrlError, PyTree
from esrl.training.budget import Row

_DIGEST = 8  # bytes
_BLOCK = f"<iBB{_DIGEST}s"  # signal, whether time is over, whether something failed, digest


class Verdict(NamedTuple):
    """The number of the signal that a process has heard, 0 for none; and whether process 0's minutes are over."""

    asked: int
    over: bool


def agree(asked: int, over: bool, failed: EsrlError | None, params: PyTree | None) -> Verdict:
    """What all processes know after a generation.

    Args:
      asked: the signal that this process has heard. over: whether its minutes are over.
      failed: what went wrong here. params: to be compared, or None.

    Raises:
      EsrlError: something failed in a process, or their parameters differ.
    """
    if not processes.several():
        processes.raise_any(failed)
        return Verdict(asked, over)
    digest = bytes(_DIGEST) if params is None else digest_of(params)
    told = [
        struct.unpack(_BLOCK, row)
        for row in processes.gather(struct.pack(_BLOCK, asked, over, failed is not None, digest))
    ]
    if any(row[2] for row in told):
        processes.raise_any(failed)
    apart = [i for i, row in enumerate(told) if row[3] != told[0][3]]
    if apart:
        raise EsrlError(
            f"the parameters of process {apart[0]} are no longer those of process 0; all need the same kind of"
            " processor and the same libraries"
        )
    return Verdict(max(row[0] for row in told), bool(told[0][1]))


def digest_of(params: PyTree) -> bytes:
    """A few bytes that differ where parameters do."""
    found = hashlib.sha256()
    for x in jax.tree.leaves(here(params)):
        found.update(np.asarray(x).tobytes())
    return found.digest()[:_DIGEST]


def seconds_of_first(seconds: float) -> float:
    """A clock's seconds in process 0."""
    return float(struct.unpack("<d", processes.gather(struct.pack("<d", seconds))[0])[0])


def check_alike(recipe: dict[str, Any], plan: Plan) -> None:
    """Compares what the processes are about to train.

    Raises:
      EsrlError: in every process, when one of them differs from process 0.
    """
    if not processes.several():
        return
    sizes = {"pairs at once on each device (chunk_pairs)": plan.chunk, "devices": plan.devices}
    own = {**processes.versions(), **_flat(recipe), **sizes}
    own = json.loads(json.dumps(own, default=str))
    first = processes.from_first(lambda: own)
    names = [name for name in {**first, **own} if first.get(name) != own.get(name)]
    failed = None
    if names:
        one, other = (json.dumps(values.get(names[0])) for values in (own, first))
        failed = EsrlError(
            f"{names[0]} is {one} here and {other} in process 0; start all processes with the same options"
        )
    processes.raise_any(failed)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read_by_first(state: Any, read: Callable[[Any], tuple[Any, Row | None]] | None) -> tuple[Any, Row | None]:
    """The state and the row that process 0 reads, in every process; the state that is given where it reads none.

    Args:
      state: a fresh one. read: from a state to what is read in its form, in the process that has the folder.
    """
    if not processes.several():
        return (state, None) if read is None else read(state)
    everywhere = state.generation.sharding
    found = processes.at_first(lambda: (here(state), None) if read is None else read(here(state)))
    told: list[Any] = processes.from_first(lambda: [int(found[0].generation), found[1]])  # type: ignore[index]
    begun, row = told
    if begun:
        own = here(state) if found is None else found[0]
        arrays = processes.arrays_of_first(jax.tree.map(_words, own))
        state = jax.tree.map(_as_key, arrays, own)
    return replicated(state, everywhere), row


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _words(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _as_key(x: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(x), impl=str(jax.random.key_impl(like))) if _is_key(like) else x
