"""Processes of `jax.distributed` that train together, and what they tell each other; `joining` says how one comes in.

Every process runs the same program on the same numbers, and its devices are a part of one mesh (`sharding`). What only
one can know (a clock, a signal, a file) is process 0's, or is gathered, so that all go the same way. In a single
process everything here is its own answer, and JAX is not asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

import jax
import numpy as np

from esrl.core.errors import EsrlError, reason_of

T = TypeVar("T")

_SENTENCE = 480  # bytes of an error that is told to the others
_COLLECTIVE = re.compile(r"\b(gloo|nccl|rccl)\b.*failed", re.IGNORECASE)
_FAREWELL = 2.0  # seconds that the process leaves last to which the others are connected

_abandoned = False  # whether this process leaves without waiting for the others


class LostProcess(EsrlError):
    """Another process has ended or cannot be reached."""


def several() -> bool:
    """Whether this process trains with others."""
    return bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what all have found: process 0, or the only one."""
    return not several() or jax.process_index() == 0


def versions() -> dict[str, str]:
    """What must be the same in all processes: the same program is compiled in each."""
    installed = {package: metadata.version(package) for package in ("jax", "jaxlib")}
    # Not imported: this is the lowest room of the package that has it.
    return {"python": platform.python_version(), **installed, "esrl": vars(sys.modules["esrl"])["__version__"]}


# ---- leaving --------------------------------------------------------------------------------------------------------


def abandon() -> None:
    """From now on this process does not wait for the others when it ends: one of them, or this one, has failed."""
    global _abandoned
    _abandoned = True


def leave(status: int) -> None:
    """Ends this process at once where it was abandoned; else returns."""
    if not _abandoned:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # The others notice when process 0 is gone, and JAX ends them then: each is to say its own sentence before.
    from jax._src import distributed

    if distributed.global_state.process_id == 0 and distributed.global_state.client is not None:
        time.sleep(_FAREWELL)
    os._exit(status)


def leave_alone() -> None:
    """At the end of a process: leaves at once where it was abandoned."""
    leave(1)


def lost(error: BaseException) -> LostProcess | None:
    """The sentence for an error of JAX while it runs: it stands for a process that is gone, unless memory is short.

    None for any other error, and for one that is that sentence.
    """
    if isinstance(error, LostProcess):
        return None
    # What a program that is sent to the devices meets of a broken connection is a ValueError of JAX at times.
    runtime = isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and _COLLECTIVE.search(str(error)) is not None
    )
    if not runtime or "RESOURCE_EXHAUSTED" in str(error) or not several():
        return None
    abandon()
    return LostProcess(
        f"another of the {jax.process_count()} processes has ended or cannot be reached ({reason_of(error)[:200]}); see"
        " what it said, and start all of them again"
    )


# ---- telling --------------------------------------------------------------------------------------------------------


def gather(block: bytes) -> list[bytes]:
    """A block of every process, in their order; each gives one of the same length."""
    if not several():
        return [block]
    found = _reaching("process_allgather", np.frombuffer(block, np.uint8))
    return [row.tobytes() for row in np.asarray(found)]


def _reaching(name: str, x: Any) -> Any:
    """A function of `multihost_utils`, which reaches the other processes."""
    from jax.experimental import multihost_utils

    try:
        return getattr(multihost_utils, name)(x)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise lost(error) or error from error


def raise_any(error: EsrlError | None) -> None:
    """Raises in every process what went wrong in any of them: its own error, or the first of the others'."""
    if not several():
        if error is not None:
            raise error
        return
    said = b"" if error is None else str(error).encode()[:_SENTENCE]
    told = [text.rstrip(b"\0").decode(errors="ignore") for text in gather(said.ljust(_SENTENCE, b"\0"))]
    if error is not None:
        raise error
    for i, text in enumerate(told):
        if text:
            raise EsrlError(f"process {i}: {text}")


def together(fn: Callable[[], T]) -> T:
    """`fn()` in every process; where it raises an `EsrlError` in one, all raise."""
    found: Any = None
    failed: EsrlError | None = None
    try:
        found = fn()
    except EsrlError as error:
        failed = error
    except BaseException:
        if several():
            abandon()  # the others wait for an answer that does not come
        raise
    raise_any(failed)
    return found


def at_first(fn: Callable[[], T]) -> T | None:
    """`fn()` in process 0, None in the others; all raise the `EsrlError` that it raises."""
    return together(lambda: fn() if is_first() else None)


def from_first(fn: Callable[[], T]) -> T:
    """What `fn()` returns in process 0, plain data, in all; all raise the `EsrlError` that it raises there."""
    if not several():
        return fn()
    text = at_first(lambda: json.dumps(fn()).encode())
    return json.loads(_bytes_of_first(text or b""))


def _bytes_of_first(data: bytes) -> bytes:
    size = int.from_bytes(gather(len(data).to_bytes(8, "little"))[0], "little")
    block = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(_reaching("broadcast_one_to_all", block)).tobytes() if size else b""


def arrays_of_first(tree: Any) -> Any:
    """The arrays of process 0, of which all have the same tree, types and shapes; NumPy's in every process."""
    leaves, form = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    # As bytes: they are added to the zeros of the others, and -0.0 + 0.0 is 0.0.
    sent = [np.frombuffer(x.tobytes(), np.uint8) for x in leaves]
    found = _reaching("broadcast_one_to_all", sent)
    arrays = [np.frombuffer(b.tobytes(), x.dtype).reshape(x.shape) for b, x in zip(found, leaves, strict=True)]
    return form.unflatten(arrays)
