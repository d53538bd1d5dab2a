"""Settings of the JAX process that make esrl fast: one CPU device per core, and a compilation cache."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax
import jaxlib

from esrl.core.options import checked
from esrl.core.types import EsrlError

P = ParamSpec("P")
T = TypeVar("T")

_used = False  # whether this process has asked JAX for its devices
_alone = False  # whether it has one core
_forked = False  # whether it was forked from one that had
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
_MIXED_TYPES = ("scatter inputs have incompatible types", "Explicitly requested dtype")


def cores() -> int:
    """Processor cores that this process may use."""
    if _alone:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take_one_core() -> None:
    """From now on this process uses one core: it is one of many on its machine. Before JAX is first used."""
    global _alone
    _alone = True
    os.environ["NPROC"] = "1"  # threads of XLA's pool
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    configure(cpu_devices=1)


@checked
@cache
def configure(cpu_devices: int | None = None) -> None:
    """Sets JAX up, once, as far as the user has not.

    * One CPU device for each core: a population split over them steps environments several times faster than one device
      with all cores, whose many small operations are not worth splitting. Must happen before JAX is first used; when it
      is too late, everything still runs. Left alone when `XLA_FLAGS` or `jax_num_cpu_devices` already say a number.
    * An hour instead of 40 seconds that one CPU device waits for another before XLA ends the process: a machine may be
      busy, or asleep.
    * A persistent compilation cache in the user's cache folder (`ESRL_CACHE_DIR`, or `XDG_CACHE_HOME`/esrl), unless one
      is set; `ESRL_CACHE_DIR=` (empty) turns it off.

    Called by `esrl.make` and the command line; call it first thing when JAX arrays are made before that.

    Args:
      cpu_devices: how many CPU devices; one for each core unless given.

    Example:
      >>> esrl.configure()
    """
    chosen = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 0
    if not chosen:
        with contextlib.suppress(RuntimeError):  # JAX has been used already
            jax.config.update("jax_num_cpu_devices", cpu_devices or cores())
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__.startswith("0.10.") and _PATIENCE not in flags:  # a flag that XLA does not know ends it
        os.environ["XLA_FLAGS"] = f"{flags} {_PATIENCE}=3600".strip()
    folder = _cache_folder()
    if folder is not None and not jax.config.jax_compilation_cache_dir:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def check_jax() -> None:
    """Checks that JAX can be used as esrl uses it.

    Raises:
      EsrlError: JAX has no device of the platform that it was told to use, is in its 64-bit mode, or was used before
        this process was forked.
    """
    global _used
    check_fork()
    _used = True
    try:
        jax.local_devices()
    except (AssertionError, RuntimeError) as error:  # jax says AssertionError where a plugin is not installed
        told = jax.config.jax_platforms
        why = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise EsrlError(
            f"JAX has no device of the platform {told!r}{why}; unset JAX_PLATFORMS, or install the jax of that platform"
        ) from error
    if jax.config.jax_enable_x64:
        raise EsrlError(
            "JAX is in its 64-bit mode, but esrl computes in 32 bits; unset JAX_ENABLE_X64, or take"
            ' jax.config.update("jax_enable_x64", True) out'
        )


def check_fork() -> None:
    """Raises `EsrlError` in a process that was forked after JAX had been used: its threads are gone; it would hang."""
    if _forked:
        raise EsrlError(
            "this process was forked after JAX had been used, and would hang; start it anew instead, as"
            ' multiprocessing.get_context("spawn") does'
        )


def _after_fork() -> None:
    global _forked
    _forked = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def lenient(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` under JAX's standard promotion rules, whatever the caller's flags are.

    Packages are written for those rules. JAX's warnings about mixed types are silenced: the user cannot change them.
    """

    @wraps(fn)
    def relaxed(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
            for words in _MIXED_TYPES:
                warnings.filterwarnings("ignore", message=words)
            return fn(*args, **kwargs)

    return relaxed


def _cache_folder() -> Path | None:
    own = os.environ.get("ESRL_CACHE_DIR")
    if own is not None:
        return Path(own) if own else None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "esrl" / "jax"
