"""States on disk, through Orbax: arrays only, so that reading one runs no code from it."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

from esrl.core.types import EsrlError, notice
from esrl.envs.base import reason_of
from esrl.training.stopping import protected

NEWER = ("average", "signal")  # fields of a state that older checkpoints do not have
KEEP = 2  # whole states kept in a run folder: the last one, and one before it
_LOCK = threading.RLock()  # Orbax's savers of one process share a counter, so threads take turns


@cache
def _orbax() -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)
    before = sys.unraisablehook

    def after_an_error(unraisable: Any) -> None:
        # Where one array cannot be read, Orbax closes its event loop, and the reads under way complain of that later.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = after_an_error
    import orbax.checkpoint

    return orbax.checkpoint


def generations(folder: Path) -> list[int]:
    """Generations of the complete checkpoints in a folder, ascending."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and len(p.name) >= 8)


def save(folder: Path, state: Any) -> None:
    """Saves the state under its generation, and deletes all but the last `KEEP`.

    Raises:
      EsrlError: the folder cannot be written.
    """
    generation = int(state.generation)
    if generation in generations(folder):
        return
    final = (folder / f"{generation:08d}").resolve()
    try:
        with protected(), _LOCK, _plain(final) as path, _orbax().StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state)
    except OSError as error:
        raise EsrlError(f"a checkpoint cannot be written to {folder}: {error.strerror or error}") from error
    for old in generations(folder)[:-KEEP]:
        shutil.rmtree(folder / f"{old:08d}", ignore_errors=True)


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Where Orbax may write and read what lies at a path; what it has written there is moved to the path.

    It finds its own files by glob, which takes [ ] * ? anywhere in a path for a pattern, and then loses them without a
    word. So what has such a path is handled in another folder.
    """
    if glob.escape(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="esrl_") as folder:
        other = Path(folder).resolve() / "state"
        if path.is_dir():
            shutil.copytree(path, other)
            yield other
            return
        yield other
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(other, part)
        os.replace(part, path)  # a checkpoint of its final name is whole


def restore(folder: Path, template: Any, generation: int | None = None) -> Any:
    """The state of a generation, or the last one that is whole, in the form and on the devices of a template.

    A broken checkpoint gives way to the one before it, with a notice on standard error.

    Args:
      folder: the checkpoints.
      template: a state of the same agent, such as `agent.init` gives.
      generation: which one; the last whole one unless given.

    Raises:
      EsrlError: there is none, none that is whole, or it is of another network, environment or optimizer.
    """
    found = generations(folder)
    if not found:
        raise EsrlError(f"there is no checkpoint in {folder}")
    if generation is not None and generation not in found:
        raise EsrlError(f"there is no checkpoint of generation {generation} in {folder}; there are {found}")
    reasons = {}
    for number in found[::-1] if generation is None else [generation]:
        try:
            state = _read(folder / f"{number:08d}", template)
        except _Broken as error:
            reasons[number] = str(error)
            continue
        for broken, why in reasons.items():
            notice(f"checkpoint {broken} in {folder} is broken ({why}); {number} is used")
        return state
    why = "; ".join(f"{number}: {reason}" for number, reason in reasons.items())
    whole = [number for number in found if number not in reasons and _is_whole(folder / f"{number:08d}", template)]
    raise EsrlError(
        f"no checkpoint in {folder} is whole ({why})"
        if generation is None
        else f"the checkpoint of generation {generation} in {folder} is broken ({why});"
        f" those that are whole: {whole or 'none'}"
    )


def set_aside_beyond(folder: Path, generation: int) -> None:
    """Renames checkpoints after a generation to `.broken`: a run that goes on from it writes them anew."""
    for number in generations(folder):
        if number > generation:
            path = folder / f"{number:08d}"
            shutil.rmtree(f"{path}.broken", ignore_errors=True)
            os.replace(path, f"{path}.broken")


class _Broken(Exception):
    """A checkpoint that cannot be read, and why."""


def _is_whole(path: Path, template: Any) -> bool:
    try:
        _read(path, template)
    except _Broken:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what is logged of a damaged file, at length: one sentence says it instead."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read(path: Path, template: Any) -> Any:
    """The state at a path.

    Raises:
      EsrlError: it is whole and does not fit the template.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
    orbax = _orbax()  # sets a level of its own
    with _LOCK, _quiet(), _plain(path.resolve()) as path, orbax.StandardCheckpointer() as checkpointer:
        try:
            held = checkpointer.metadata(path).item_metadata
            tree = getattr(held, "tree", held)
            there = _shapes(tree)
        except Exception as error:  # Orbax raises whatever a damaged file makes it raise
            raise _Broken(reason_of(error)) from error
        if not there:
            raise _Broken("it holds no arrays")
        # A field that is newer than the checkpoint keeps what a fresh state has there: what was never measured.
        fields = abstract._asdict() if hasattr(abstract, "_asdict") else {}
        newer = [name for name in NEWER if name in fields and name not in tree]
        if newer and fields["average"] is None:
            abstract = {name: value for name, value in fields.items() if name not in newer}
        here = _shapes(abstract)
        # Compared before they are read: Orbax says a misfit in hundreds of lines.
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                raise EsrlError(
                    f"the checkpoint does not fit this agent: {name} is {there.get(name, 'absent')} in the checkpoint,"
                    f" {here.get(name, 'absent')} in this agent; give the network, spaces and optimizer that it was"
                    " trained with"
                )
        try:
            found = checkpointer.restore(path, abstract)
            return template._replace(**found) if isinstance(abstract, dict) else found
        except Exception as error:
            raise _Broken(reason_of(error)) from error


def _shapes(tree: Any) -> dict[str, str]:
    """The arrays of a tree by their path, each as its shape and type; random keys by path alone."""
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if hasattr(leaf, "shape") and leaf.shape is not None:
            name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)
            random = "key" in str(leaf.dtype) or name == "key"
            found[name] = "a random key" if random else f"{leaf.dtype}{list(leaf.shape)}"
    return found
