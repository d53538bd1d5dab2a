"""The spaces of a run's environment as a file, `spaces.json`: what acting needs of it, without its package or its code.

The file is plain JSON, and may be a stranger's: it is read within bounds, and nothing in it is code.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from esrl.core.types import EsrlError
from esrl.envs.base import max_episode_steps_of, name_of
from esrl.training.files import read_bytes

NAME = "spaces.json"
FORMAT, VERSION = "esrl-spaces", 1
_LONGEST = 1 << 24  # bytes of the file at most
_ENTRIES = 1 << 22  # of all arrays together, at most
_PARTS = 10_000  # spaces within spaces, at most
_DEEP = 32  # levels of them, at most
_TYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32",
          "float64")  # fmt: skip


class Spaces(NamedTuple):
    """What is stored of an environment: its name, its spaces, and the steps after which an episode is cut off."""

    env: str
    observation_space: spaces.Space
    action_space: spaces.Space
    max_episode_steps: int


class Unfit(Exception):
    """What a table cannot say, or says wrongly."""


# ---- writing --------------------------------------------------------------------------------------------------------


def stored(env: Any) -> bytes | None:
    """The file of an environment; None where its spaces are of a kind, or of a size, that the file does not have.

    Example:
      >>> env = esrl.make("gymnasium/phys2d/CartPole-v1")
      >>> b'"kind": "Discrete"' in stored(env)
      True
    """
    try:
        table = {
            "format": FORMAT,
            "version": VERSION,
            "env": name_of(env),
            "max_episode_steps": max_episode_steps_of(env),
            "observation_space": table_of(env.observation_space),
            "action_space": table_of(env.action_space),
        }
        text = json.dumps(table, indent=1, allow_nan=False).encode()
        spaces_in(text)
    except (Unfit, EsrlError, ValueError):
        return None
    return text


def table_of(space: spaces.Space) -> dict[str, Any]:
    """A space as plain data.

    Raises:
      EsrlError: a space of another kind than Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple.
    """
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": [[name, table_of(part)] for name, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [table_of(part) for part in space.spaces]}
    shape, dtype = list(space.shape or ()), np.dtype(space.dtype).name
    if isinstance(space, spaces.Box):
        return {"kind": "Box", "shape": shape, "dtype": dtype, "low": _numbers(space.low), "high": _numbers(space.high)}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        start = _numbers(np.asarray(space.start))
        return {"kind": "MultiDiscrete", "shape": shape, "dtype": dtype, "nvec": _numbers(space.nvec), "start": start}
    if isinstance(space, spaces.MultiBinary):
        whole = np.ndim(space.n) == 0
        return {"kind": "MultiBinary", "n": int(space.n) if whole else [int(n) for n in space.n]}  # type: ignore
    raise EsrlError(f"space {space} cannot be stored; use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple")


def _numbers(array: np.ndarray) -> Any:
    """One number where all entries are equal, else a flat list; numbers that are not finite as texts."""
    flat = array.ravel()
    found = (flat[:1] if flat.size and (flat == flat[0]).all() else flat).tolist()
    said = [str(x) if isinstance(x, float) and not math.isfinite(x) else x for x in found]
    return said[0] if len(said) == 1 else said


# ---- reading --------------------------------------------------------------------------------------------------------


def read(path: Path) -> Spaces | None:
    """What is stored in a run's folder; None where there is no such file.

    Raises:
      EsrlError: it is no plain file, or damaged.
    """
    try:
        return spaces_in(read_bytes(path, _LONGEST))
    except FileNotFoundError:
        return None
    except OSError as error:
        why = error.strerror or str(error)
    except Unfit as error:
        why = str(error)
    raise EsrlError(f"{path} cannot be read: {why}; delete it, and the environment itself will be asked")


def spaces_in(text: bytes) -> Spaces:
    """What the bytes of a file say.

    Raises:
      Unfit: they say nothing, or too much.
    """
    if len(text) > _LONGEST:
        raise Unfit("it is too long")
    try:
        table = json.loads(text)
        if table["format"] != FORMAT or type(table["version"]) is not int:
            raise Unfit("it is none of ours")
        if table["version"] > VERSION:
            raise Unfit(f"it is of version {table['version']}, and this esrl reads up to {VERSION}")
        name, steps, reader = table["env"], table["max_episode_steps"], _Reader()
        if not isinstance(name, str) or type(steps) is not int or not 0 < steps < 1 << 63:
            raise Unfit("it is damaged")
        return Spaces(name, reader.space(table["observation_space"]), reader.space(table["action_space"]), steps)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, OverflowError) as error:
        raise Unfit("it is damaged") from error
    except (RecursionError, MemoryError) as error:
        raise Unfit("it is nested too deeply, or too large") from error


class _Reader:
    """Makes spaces of tables, and counts what they take."""

    def __init__(self) -> None:
        self.entries, self.parts = 0, 0

    def space(self, table: dict[str, Any], depth: int = 0) -> spaces.Space:
        self.parts += 1
        if depth > _DEEP or self.parts > _PARTS:
            raise Unfit("it is nested too deeply, or too large")
        kind = table["kind"]
        if kind == "Dict":
            names = [name for name, _ in table["spaces"]]
            if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
                raise Unfit("it is damaged")
            # In its own order, which is that of the network's inputs; Gymnasium sorts a plain dict.
            return spaces.Dict(OrderedDict((name, self.space(part, depth + 1)) for name, part in table["spaces"]))
        if kind == "Tuple":
            return spaces.Tuple([self.space(part, depth + 1) for part in table["spaces"]])
        if kind == "MultiBinary":
            n = table["n"]
            shape = self.shape([n] if type(n) is int else n)
            return spaces.MultiBinary(shape[0] if type(n) is int else shape)
        dtype = self.dtype(table["dtype"])
        if kind == "Discrete":
            n, start = (self.whole(table[key], np.int64) for key in ("n", "start"))
            return spaces.Discrete(n, start=start, dtype=dtype)
        shape = self.shape(table["shape"])
        if kind == "Box":
            low, high = (self.array(table[key], shape, dtype) for key in ("low", "high"))
            return spaces.Box(low, high, shape, dtype)
        if kind == "MultiDiscrete":
            many, first = (self.array(table[key], shape, dtype) for key in ("nvec", "start"))
            return spaces.MultiDiscrete(many, dtype=dtype, start=first)
        raise Unfit("it has a space of an unknown kind")

    def dtype(self, name: Any) -> np.dtype:
        if name not in _TYPES:
            raise Unfit("it has a space of an unknown type")
        return np.dtype(name)

    def shape(self, lengths: Any) -> tuple[int, ...]:
        if not isinstance(lengths, list) or len(lengths) > _DEEP:
            raise Unfit("it is damaged")
        size = 1
        for length in lengths:
            size *= self.whole(length, np.int32)
            if length < 0 or size > _ENTRIES:
                raise Unfit("it has a space that is too large")
        self.entries += size
        if self.entries > _ENTRIES:
            raise Unfit("it has spaces that are too large")
        return tuple(lengths)

    def whole(self, number: Any, kind: Any) -> int:
        if type(number) is not int or not np.iinfo(kind).min <= number <= np.iinfo(kind).max:
            raise Unfit("it is damaged")
        return number

    def array(self, numbers: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        many = numbers if isinstance(numbers, list) else [numbers]
        if dtype.kind == "f":
            exact = np.asarray([self.real(x) for x in many], np.float64)
            with np.errstate(over="ignore"):
                made = exact.astype(dtype)
        elif dtype.kind == "b":
            made = np.asarray([self.bit(x) for x in many], dtype)
        else:
            made = np.asarray([self.whole(x, dtype) for x in many], dtype)
        return np.array(made.reshape(shape) if isinstance(numbers, list) else np.broadcast_to(made[0], shape))

    def real(self, number: Any) -> float:
        if number in ("inf", "-inf"):
            return float(number)
        if type(number) not in (int, float) or not math.isfinite(number):
            raise Unfit("it is damaged")
        return float(number)

    def bit(self, number: Any) -> bool:
        if type(number) is not bool:
            raise Unfit("it is damaged")
        return number
