"""One state as one file: arrays by name in the safetensors format, and checksums of them and of their names.

`README.md` beside this describes the format. Nothing in such a file is code, and nothing of it is believed before its
checksum was compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from esrl.core.types import EsrlError
from esrl.training.files import NotPlain, open_plain, replace_bytes

SUFFIX = ".safetensors"
FORMAT, VERSION = "esrl-state", 2  # version 1 were the folders that Orbax wrote, see `former_checkpoints`
_HEAD = 16 << 20  # bytes of names and shapes that are read at most
_CODES = {  # what safetensors calls the types of arrays
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
_NEWER = ("signal",)  # fields of a state that older checkpoints do not have; a fresh state's are kept


class Broken(Exception):
    """A checkpoint that cannot be read, and why."""


class Head(NamedTuple):
    """What stands ahead of the arrays.

    Attributes:
      generation: of the state. score: the mean held-out return, None where it was not scored.
      arrays: (type, shape) of each array by its name. start: the byte at which arrays begin. size: of the whole file.
      digest: SHA-256 of the arrays.
    """

    generation: int
    score: float | None
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    size: int
    digest: str


# ---- writing --------------------------------------------------------------------------------------------------------


def write(path: Path, state: Any, score: float | None = None, sync: bool = False) -> None:
    """Writes a state to a file, whole or not at all.

    Raises:
      EsrlError: it holds an array of a type that the format does not have.
      OSError: the file cannot be written.
    """
    arrays = {name: np.asarray(x, order="C") for name, x in jax.device_get(leaves(state)).items()}
    for name, array in arrays.items():
        if array.dtype.name not in _CODES.values():
            raise EsrlError(f"{name} is {array.dtype}, which a checkpoint cannot hold; use float32, bfloat16 or int32")
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    meta = {"format": FORMAT, "version": str(VERSION), "generation": str(int(state.generation))}
    meta |= {} if score is None else {"score": repr(float(score))}
    meta["arrays_sha256"] = _digest(arrays)
    meta["head_sha256"] = _head_digest(meta, shapes)
    replace_bytes(path, save(arrays, meta), sync)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(arrays[name].reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _head_digest(meta: dict[str, str], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    told = {key: value for key, value in meta.items() if key != "head_sha256"}
    text = json.dumps([told, {name: [kind, list(shape)] for name, (kind, shape) in shapes.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their path, random keys as the words that they are made of."""
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in named_leaves(tree).items()}


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, as `opt_state/0/mu/Dense_0/kernel`."""
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys): leaf
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_head(path: Path) -> Head:
    """What stands ahead of a file's arrays, of which none is read.

    Raises:
      Broken: it is none of ours, or damaged.
      EsrlError: it is of a later version.
    """
    with _opened(path) as file:
        return _head(file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            yield file
    except OSError as error:
        raise Broken(error.strerror or str(error)) from error
    except NotPlain as error:
        raise Broken(str(error)) from error


def _head(file: Any) -> Head:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_HEAD, size - 8):
        raise Broken("it is not whole")
    try:
        table = json.loads(file.read(length))
        meta = table.pop("__metadata__")
        if meta["format"] != FORMAT:
            raise Broken("it is none of ours")
        shapes = {name: (_CODES[entry["dtype"]], tuple(entry["shape"])) for name, entry in table.items()}
        if _head_digest(meta, shapes) != meta["head_sha256"]:
            raise Broken("its names do not match their checksum")
        for _, shape in shapes.values():  # lengths of thousands of digits take for ever to multiply, or to say
            if len(shape) > 32 or not all(type(length) is int and 0 <= length <= size for length in shape):
                raise Broken("its head is damaged")
        version, generation = int(meta["version"]), int(meta["generation"])
        score = float(meta["score"]) if "score" in meta else None
        wanted = sum(_bytes(kind, shape) for kind, shape in shapes.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Broken("its head is damaged") from error
    if version > VERSION:
        raise EsrlError(f"{file.name} is of version {version}, this esrl reads up to {VERSION}; install a later esrl")
    if size != 8 + length + wanted:
        raise Broken(f"it has {size} bytes instead of {8 + length + wanted}")
    return Head(generation, score, shapes, size, str(meta["arrays_sha256"]))


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    count = jnp.dtype(kind).itemsize
    for length in shape:
        count *= length
    return count


def read(path: Path, template: Any, without: tuple[str, ...] = ()) -> Any:
    """The state in a file, in the form and on the devices of a template, without some of the file's fields.

    Raises:
      Broken: it is none of ours, or damaged.
      EsrlError: it is whole and does not fit the template, or is of a later version.
    """
    with _opened(path) as file:
        head = _head(file)
        # Before the arrays are read: what does not fit may have any size.
        _compare(head, leaves(template), without)
        file.seek(0)
        data = file.read(head.size)
    try:
        found = {
            name: np.frombuffer(view["data"], jnp.dtype(_CODES[view["dtype"]])).reshape(view["shape"])
            for name, view in deserialize(data)
        }
    except (SafetensorError, ValueError) as error:
        raise Broken("its head is damaged") from error
    if _digest(found) != head.digest:
        raise Broken("its arrays do not match their checksum")
    flat = [_as(leaf, found.get(name)) for name, leaf in named_leaves(template).items()]
    return jax.tree.unflatten(jax.tree.structure(template), flat)


def check(path: Path, wanted: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Compares a file's arrays, of which none is read, with the `leaves` of a state, or with their shapes alone.

    Fields named in `without` are not compared.

    Raises:
      Broken: it is none of ours, or damaged.
      EsrlError: it does not fit, or is of a later version.
    """
    _compare(read_head(path), wanted, without)


def _compare(head: Head, wanted: dict[str, Any], without: tuple[str, ...]) -> None:
    kept = {name: array for name, array in head.arrays.items() if name.partition("/")[0] not in without}
    there = {name: f"{kind}{list(shape)}" for name, (kind, shape) in kept.items()}
    compare(there, {name: f"{leaf.dtype.name}{list(leaf.shape)}" for name, leaf in wanted.items()})


def compare(there: dict[str, str], here: dict[str, str]) -> None:
    """Compares the arrays of a checkpoint with those of an agent's state.

    Raises:
      EsrlError: they differ; the first one that does is named.
    """
    for name in [*here, *there]:
        newer = name not in there and name.partition("/")[0] in _NEWER
        if not newer and here.get(name) != there.get(name):
            raise EsrlError(
                f"the checkpoint does not fit this agent: {name} is {there.get(name, 'absent')} in the checkpoint,"
                f" {here.get(name, 'absent')} in this agent; give the network, spaces and optimizer that it was"
                " trained with"
            )


def _as(leaf: Any, found: np.ndarray | None) -> Any:
    """An array as the template's leaf is: on its devices, a random key where that is one."""
    if found is None:  # newer than the checkpoint: what was never measured
        return leaf
    if _is_key(leaf):
        words = jax.random.wrap_key_data(jnp.asarray(found), impl=str(jax.random.key_impl(leaf)))
        return jax.device_put(words, leaf.sharding)
    return jax.device_put(found, leaf.sharding) if isinstance(leaf, jax.Array) else found
