"""States on disk, through Orbax: arrays only, so that reading one runs no code from it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
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
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and len(p.name) >= 8)


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
    asked = found[::-1] if generation is None else [generation]
    for number in asked:
        state = _read((folder / f"{number:08d}").resolve(), template)
        if state is not None:
            if number != asked[0]:
                print(f"esrl: notice: checkpoint {asked[0]} of {folder} is broken; {number} is used", file=sys.stderr)
            return state
    if generation is not None:
        raise EsrlError(f"checkpoint {generation} of {folder} is missing or broken; there are {found}")
    raise EsrlError(f"no checkpoint in {folder} can be read: {found} are broken")


def set_aside_beyond(folder: Path, generation: int) -> None:
    """Renames checkpoints after a generation to `.broken`: a run that goes on from it writes them anew."""
    for number in generations(folder):
        if number > generation:
            path = folder / f"{number:08d}"
            shutil.rmtree(f"{path}.broken", ignore_errors=True)
            os.replace(path, f"{path}.broken")


def _read(path: Path, template: Any) -> Any:
    """The state at a path; None where it is missing or broken.

    Raises:
      EsrlError: it is whole and does not fit the template.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
    with _LOCK, _orbax().StandardCheckpointer() as checkpointer:
        try:
            held = checkpointer.metadata(path).item_metadata
            there = _shapes(getattr(held, "tree", held))
        except Exception:  # whatever a damaged file makes Orbax raise
            return None
        if not there:
            return None
        here = _shapes(abstract)
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                raise EsrlError(
                    f"the checkpoint {path} does not fit this agent: {name} is {there.get(name, 'absent')} in the "
                    f"checkpoint, {here.get(name, 'absent')} in this agent; give the network, spaces and optimizer "
                    "that it was trained with"
                )
        try:
            return checkpointer.restore(path, abstract)
        except Exception:  # as above
            return None


def _shapes(tree: Any) -> dict[str, str]:
    """The arrays of a tree by their path, each as its shape and type; random keys by path alone."""
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if hasattr(leaf, "shape") and leaf.shape is not None:
            name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)
            random = "key" in str(leaf.dtype) or name == "key"
            found[name] = "a random key" if random else f"{leaf.dtype}{list(leaf.shape)}"
    return found
