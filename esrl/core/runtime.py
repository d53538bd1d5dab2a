"""Settings of the JAX process that make esrl fast: one CPU device per core, and a compilation cache."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path

import jax

from esrl.core.options import checked
from esrl.core.types import EsrlError


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@checked
@cache
def configure(cpu_devices: int | None = None) -> None:
    """Sets JAX up, once, as far as the user has not.

    * One CPU device for each core: a population split over them steps environments several times faster than one device
      with all cores, whose many small operations are not worth splitting. Must happen before JAX is first used; when it
      is too late, everything still runs. Left alone when `XLA_FLAGS` or `jax_num_cpu_devices` already say a number.
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
    folder = _cache_folder()
    if folder is not None and not jax.config.jax_compilation_cache_dir:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def devices() -> list[jax.Device]:
    """The devices of this process.

    Raises:
      EsrlError: JAX has none of the platform that it was told to use.
    """
    try:
        return jax.local_devices()
    except (AssertionError, RuntimeError) as error:  # jax says AssertionError where a plugin is not installed
        told = jax.config.jax_platforms
        why = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise EsrlError(
            f"JAX has no device of the platform {told!r}{why}; unset JAX_PLATFORMS, or install the jax of that platform"
        ) from error


def _cache_folder() -> Path | None:
    own = os.environ.get("ESRL_CACHE_DIR")
    if own is not None:
        return Path(own) if own else None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "esrl" / "jax"
