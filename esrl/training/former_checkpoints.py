"""Checkpoints of version 1, folders that Orbax wrote: they are still read. What is saved now is described in
`state_file`.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

from esrl.core.types import reason_of
from esrl.training.state_file import Broken, compare, named_leaves

_NEWER = ("average", "signal", "frozen")  # fields of a state that such a checkpoint may not have


@cache
def _orbax() -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)
    before = sys.unraisablehook

    def after_an_error(unraisable: Any) -> None:
        # Where one array cannot be read, Orbax closes its event loop, and the reads under way complain of that later.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = after_an_error
    import orbax.checkpoint  # which Flax requires

    return orbax.checkpoint


def read(path: Path, template: Any) -> Any:
    """The state in a folder, in the form and on the devices of a template.

    Raises:
      Broken: it cannot be read.
      EsrlError: it is whole and does not fit the template.
    """
    files = list(path.rglob("*"))
    held = sum(x.nbytes for x in jax.tree.leaves(template) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    if len(files) > 1000 or sum(file.lstat().st_size for file in files) > 4 * held + (16 << 20):
        raise Broken("it is far larger than a state of this agent")
    for inside in files:
        if inside.is_symlink() or not (inside.is_file() or inside.is_dir()):
            raise Broken(f"{inside} is a link or no plain file")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
    orbax = _orbax()  # sets a level of its own
    with _quiet(), _plain(path.resolve()) as place, orbax.StandardCheckpointer() as checkpointer:
        try:
            held = checkpointer.metadata(place).item_metadata
            tree = getattr(held, "tree", held)
            there = _shapes(tree)
        except Exception as error:  # Orbax raises whatever a damaged file makes it raise
            raise Broken(reason_of(error)) from error
        if not there:
            raise Broken("it holds no arrays")
        # A field that is newer than the checkpoint keeps what a fresh state has there: what was never measured.
        fields = abstract._asdict() if hasattr(abstract, "_asdict") else {}
        newer = [name for name in _NEWER if name in fields and name not in tree]
        if newer and ("average" not in newer or fields["average"] is None):
            abstract = {name: value for name, value in fields.items() if name not in newer}
        signal = fields.get("signal")
        if signal is not None and "signal" in tree:  # it may lack newer fields as well
            known = {name: x for name, x in signal._asdict().items() if name in tree["signal"]}
            abstract = (abstract if isinstance(abstract, dict) else fields) | {"signal": known}
        # Compared before they are read: Orbax says a misfit in hundreds of lines.
        compare(there, _shapes(abstract))
        try:
            found = checkpointer.restore(place, abstract)
            if not isinstance(abstract, dict):
                return found
            if "signal" in found:
                found["signal"] = template.signal._replace(**found["signal"])
            return template._replace(**found)
        except Exception as error:
            raise Broken(reason_of(error)) from error


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Where Orbax may read what lies at a path.

    It finds its own files by glob, which takes [ ] * ? anywhere in a path for a pattern. So what has such a path is
    read in another folder.
    """
    if glob.escape(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="esrl_") as folder:
        other = Path(folder).resolve() / "state"
        shutil.copytree(path, other)
        yield other


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


def _shapes(tree: Any) -> dict[str, str]:
    """The arrays of a tree by their path, each as its shape and type; random keys by path alone."""
    found = {}
    for name, leaf in named_leaves(tree).items():
        if hasattr(leaf, "shape") and leaf.shape is not None:
            random = "key" in str(leaf.dtype) or name == "key"
            found[name] = "a random key" if random else f"{leaf.dtype}{list(leaf.shape)}"
    return found
