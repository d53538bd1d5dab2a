"""What travels between the driver and its workers, as bytes without a word too many: arrays, one behind the other.

Both ends know every shape beforehand, so nothing but numbers is sent, and nothing is run that is received.

Two ways to tell workers where the search is:

* "parameters": what playing needs of the state, to every worker in every generation. Frozen parameters go along once.
* "scalars": the last generation's fitness, from which each worker draws the perturbations again and repeats the update
  itself (Salimans et al., arXiv 1703.03864, algorithm 2). It does not grow with the network. Of an agent of integers
  they are the pairs' votes, a byte each.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from esrl.algorithms.es import ES, ESState, Experience
from esrl.algorithms.integer_es import IntegerES
from esrl.core.types import EsrlError, PyTree
from esrl.policies import running_statistics
from esrl.policies.running_statistics import AnySums

Numbers = Any  # an array of JAX or NumPy, or its shape
BROADCASTS = ("parameters", "scalars")


# ---- trees as bytes -------------------------------------------------------------------------------------------------


def pack(tree: PyTree) -> bytes:
    """The numbers of a tree of arrays, keys too."""
    return b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.device_get(_plain(tree)))


def unpack(data: bytes, like: PyTree) -> PyTree:
    """The tree of NumPy's arrays (of keys: JAX's) with these numbers; `like` has its structure, shapes and types.

    Raises:
      EsrlError: there are more or fewer bytes than that needs.
    """
    leaves, structure = jax.tree.flatten(like)
    sizes = [_bytes(leaf) for leaf in leaves]
    if sum(sizes) != len(data):
        raise EsrlError(f"a message has {len(data)} bytes where {sum(sizes)} belong; give all nodes the same esrl")
    found, place = [], 0
    for leaf, size in zip(leaves, sizes, strict=True):
        found.append(_read(data[place : place + size], leaf))
        place += size
    return jax.tree.unflatten(structure, found)


def size_of(like: PyTree) -> int:
    """Bytes of a tree."""
    return sum(map(_bytes, jax.tree.leaves(like)))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(tree: PyTree) -> list[Any]:
    return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]


def _bytes(leaf: Any) -> int:
    return 8 * math.prod(leaf.shape) if _is_key(leaf) else math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _read(data: bytes, like: Any) -> Any:
    if _is_key(like):
        words = np.frombuffer(data, np.uint32).reshape(*like.shape, 2)
        return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    return np.frombuffer(data, like.dtype).reshape(like.shape)


# ---- the state ------------------------------------------------------------------------------------------------------


def playable(state: ESState) -> ESState:
    """What playing a generation needs of a state: neither the optimizer's, nor the average, nor a waiting gradient."""
    return state._replace(opt_state=None, average=None, signal=state.signal._replace(gradient=None))


def without_frozen(state: Any, field: str = "frozen") -> Any:
    """A state, or what is playable of it, for a worker that has what lies frozen in this field of it."""
    return state._replace(**{field: ()})


def state_of(kind: str, message: bytes, like: Any, before: Any, field: str = "frozen") -> Any:
    """The state that a message of the kind "state" or "trained" tells.

    Args:
      kind: "trained" leaves out what is frozen. like: the shapes of a whole one, which may be any agent's.
      before: the state that this worker had, whose frozen parameters stay; "state" needs none, and takes None.
      field: in which they lie.

    Raises:
      EsrlError: the message has another length, or it leaves out what this worker has never been sent.
    """
    if kind != "trained":
        return unpack(message, like)
    if before is None:
        raise EsrlError("a worker was not sent its frozen parameters; this is an error of esrl")
    return unpack(message, without_frozen(like, field))._replace(**{field: getattr(before, field)})


def same_numbers(one: PyTree, other: PyTree) -> bool:
    """Whether two trees on the host have the same arrays."""
    pairs = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(pairs[0]) == len(pairs[1]) and all(map(np.array_equal, *pairs))


def fingerprint(played: PyTree) -> bytes:
    """Eight bytes that differ where two states would play differently, of what in them says what is played.

    Workers that repeat the update compute the same only where their processors do. These bytes say whether they did.
    """
    words = hashlib.blake2b(digest_size=8)
    words.update(pack(played))
    return words.digest()


# ---- a generation's results, as one worker has them, and as all need them -------------------------------------------


class Rows(NamedTuple):
    """What some pairs have played: the fields of an `Experience` of C pairs, in their order."""

    fitness: Numbers
    halves: Numbers | None
    returns: Numbers
    lengths: Numbers
    nonfinite: Numbers
    steps: Numbers
    sums: AnySums | None


def rows_like(es: ES | IntegerES, moments: PyTree, pairs: int) -> Rows:
    """The shapes of what so many pairs have played."""
    shape = pairs, len(es.signs), es.episodes
    of = jax.ShapeDtypeStruct
    halves = of((*shape[:2], 2), jnp.float32) if isinstance(es, ES) and es.episodes > 1 else None
    sums = None if moments is None else jax.eval_shape(running_statistics.zero_sums, moments)
    returns, lengths, nonfinite = (of(shape, kind) for kind in (jnp.float32, jnp.int32, jnp.bool_))
    return Rows(of(shape[:2], jnp.float32), halves, returns, lengths, nonfinite, of((pairs,), jnp.int32), sums)


class Scalars(NamedTuple):
    """What the update needs of a generation beside what each worker can draw again.

    Attributes:
      fitness: [P, S]. halves: [P, S, 2], where the signal is followed. lengths: [P, S, E], where steps are waited for
        or an episode's cap grows with them. sums: of observations. present: [P].
    """

    fitness: Numbers
    halves: Numbers | None
    lengths: Numbers | None
    sums: AnySums | None
    present: Numbers


def scalars_of(es: ES, experience: Experience) -> Scalars:
    """The scalars of a generation that was played."""
    follows = es.sizing.sigma or es.sizing.rate or es.sizing.waits
    counts = es.sizing.steps or es.horizon is not None
    present = np.ones(es.pairs, bool) if experience.present is None else experience.present
    return Scalars(
        experience.fitness,
        experience.halves if follows else None,
        experience.lengths if counts else None,
        experience.sums,
        present,
    )


def scalars_like(es: ES, moments: PyTree) -> Scalars:
    """Their shapes."""
    rows = rows_like(es, moments, es.pairs)
    present: Numbers = jax.ShapeDtypeStruct((es.pairs,), jnp.bool_)
    return scalars_of(es, Experience(*rows, present))


def experience_of(es: ES, scalars: Scalars) -> Experience:
    """A generation as the update needs it; what only an observer wants of it is blank."""
    shape = es.pairs, len(es.signs), es.episodes
    zeros: Numbers = np.zeros(shape, np.int32)
    unseen: Numbers = np.zeros(shape, np.float32)
    lengths = zeros if scalars.lengths is None else scalars.lengths
    present = None if np.all(scalars.present) else scalars.present
    steps = zeros[:, 0, 0]
    return Experience(
        scalars.fitness, scalars.halves, unseen, lengths, zeros.astype(bool), steps, scalars.sums, present
    )


class Votes(NamedTuple):
    """What the update of an agent of integers needs of a generation.

    Attributes:
      scores: [P] int8, what each pair votes with; 0 of those that are missing. sums: of observations.
    """

    scores: Numbers
    sums: AnySums | None


def votes_like(es: IntegerES, moments: PyTree) -> Votes:
    """Their shapes."""
    return Votes(jax.ShapeDtypeStruct((es.pairs,), jnp.int8), rows_like(es, moments, es.pairs).sums)
