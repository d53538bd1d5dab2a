"""States on disk, through Orbax: arrays only, so that reading one runs no code from it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax

from esrl.core.types import EsrlError

KEEP = 2  # whole states kept in a run folder: the last one, and one before it
_LOCK = threading.RLock()  # Orbax's savers of one process share a counter, so threads take turns


def _orbax() -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)
    import orbax.checkpoint

    return orbax.checkpoint


def generations(folder: Path) -> list[int]:
    """Generations of the complete checkpoints in a folder, ascending."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def save(folder: Path, state: Any) -> None:
    """Writes a state as checkpoint of its generation; older ones than the last `KEEP` are removed after it is whole.

    Raises:
      EsrlError: the folder cannot be written.
    """
    generation = int(state.generation)
    if generation in generations(folder):
        return
    try:
        # Orbax finds its own files by glob, which reads [ ] * ? of a path as a pattern: it writes in a plain folder.
        with _LOCK, tempfile.TemporaryDirectory(prefix="esrl_") as plain:
            with _orbax().StandardCheckpointer() as checkpointer:
                checkpointer.save(Path(plain).resolve() / "state", state)
            part = folder / f"{generation:08d}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(Path(plain) / "state", part)
            os.replace(part, folder / f"{generation:08d}")  # a checkpoint of its final name is whole
    except OSError as error:
        raise EsrlError(f"a checkpoint cannot be written to {folder}: {error.strerror or error}") from error
    for old in generations(folder)[:-KEEP]:
        shutil.rmtree(folder / f"{old:08d}", ignore_errors=True)


def restore(folder: Path, template: Any, generation: int | None = None) -> Any:
    """Reads the last state in a folder, or that of a generation.

    Args:
      folder: what `save` was given.
      template: a state of the same agent (`agent.init(key)`), which gives structure, shapes and placement.
      generation: None is the last one.

    Raises:
      EsrlError: no checkpoint there, or one that does not fit the agent.
    """
    found = generations(folder)
    if not found:
        raise EsrlError(f"there is no checkpoint in {folder}")
    path = (folder / f"{found[-1] if generation is None else generation:08d}").resolve()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
    try:
        with _LOCK, _orbax().StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, abstract)
    except (ValueError, KeyError, TypeError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise EsrlError(f"the checkpoint {path} does not fit this agent: {lines[0] if lines else error}") from error
