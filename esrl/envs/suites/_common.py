"""Helpers of the adapters: quiet imports, names with options, errors as one sentence, types that stay."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import parse_qsl, quote_plus

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.core.runtime import lenient as lenient
from esrl.core.types import Array, EsrlError, PyTree
from esrl.envs.base import check_positive
from esrl.envs.imports import check_known as check_known
from esrl.envs.imports import construct as construct
from esrl.envs.imports import package as package
from esrl.envs.imports import quiet as quiet
from esrl.policies.spaces import device_dtype, map_space

P = ParamSpec("P")
T = TypeVar("T")

_LARGEST = 1000  # entries of an array that a name holds as a list
NEVER = 2**30  # steps; given to packages as their own time limit, which their `done` would mix with termination


# ---- names and errors -----------------------------------------------------------------------------------------------


def with_options(name: str, options: dict[str, Any]) -> str:
    """`name?key=value&key=value`, which `options_in` reads back.

    Raises:
      EsrlError: a value that no text can hold.
    """
    given = []
    for key, value in options.items():
        try:
            given.append(f"{quote_plus(key)}={quote_plus(_text(value), safe='/:,()[]')}")
        except TypeError:
            raise EsrlError(
                f"{name}: {key} is {reprlib.repr(value)}, which a name cannot hold; give numbers, text, True, False,"
                " None, or lists, tuples and dicts of them, or give esrl.make a function that makes the environment"
            ) from None
    return "?".join([name, "&".join(given)]) if given else name


def options_in(query: str) -> dict[str, Any]:
    """The options of `key=value&key=value`, as `with_options` or a person wrote them."""
    return {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}


def _text(value: Any) -> str:
    """A value as text. Text stands without quotes where it is not read as something else."""
    value = _python(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str):
        value = str(value)
        return value if value.isprintable() and _is(_value(value), value) else repr(value)
    return _literal(value)


def _literal(value: Any) -> str:
    """A value as Python writes it. Raises a TypeError where it cannot be read back."""
    value = _python(value)
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        if value != value:  # a literal has no word for it, nor for infinity, which is too large a number
            raise TypeError
        return repr(float(value)).replace("inf", "1e999")
    if type(value) is tuple:
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    if type(value) is list:
        return f"[{', '.join(map(_literal, value))}]"
    if type(value) is dict:
        return f"{{{', '.join(f'{_literal(key)}: {_literal(part)}' for key, part in value.items())}}}"
    raise TypeError


def _python(value: Any) -> Any:
    """Numbers of NumPy and JAX as Python's, their arrays as lists."""
    if not isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return value
    if np.size(value) > _LARGEST:
        raise TypeError
    return np.asarray(value).tolist()  # a number, where there are no axes


def _value(text: str) -> Any:
    """A value as `_text` writes it: what looks like a number, a truth value or a literal is that, all else is text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text == "None":
        return None
    if text[:1] in tuple("([{'\""):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return ast.literal_eval(text)
    return text


def _is(value: Any, text: str) -> bool:
    return isinstance(value, str) and value == text


def given(**options: Any) -> dict[str, Any]:
    """Those options that are not None: an adapter's own, where None stands for what it takes by itself."""
    return {key: value for key, value in options.items() if value is not None}


def check_call(name: str, call: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raises an EsrlError when a function or class does not take these options, by its signature alone."""
    function, arguments, keywords = call, (), {}
    if isinstance(call, functools.partial):  # its own signature has lost the names of what is given already
        function, arguments, keywords = call.func, call.args, call.keywords
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some written in C have none
        return
    try:
        signature.bind(*arguments, **{**keywords, **options})
    except TypeError as error:
        raise EsrlError(f"{name} does not take these options {options}: {error}") from error


def checked_name(
    suite: str,
    name: str,
    known: Iterable[str],
    options: dict[str, Any],
    max_episode_steps: int | None,
    own_limit: str = "",
) -> str:
    """An environment's whole name with its options, once they are checked.

    Args:
      suite, name: of the environment. known: the names that the suite has.
      options: what stands behind the name, beside the time limit.
      max_episode_steps: the time limit, None for the environment's own.
      own_limit: what the package calls its time limit.

    Raises:
      EsrlError: an unknown name, a time limit below 1, or one that is given by the package's own name.
    """
    check_known(suite, name, known)
    full = with_options(f"{suite}/{name}", given(max_episode_steps=max_episode_steps) | options)
    if max_episode_steps is not None:
        check_positive(f"{full}: max_episode_steps", max_episode_steps)
    if own_limit and own_limit in options:
        raise EsrlError(f"{full}: set the time limit as max_episode_steps, not as {own_limit}")
    return full


def check_reserved(full: str, options: dict[str, Any], reserved: Iterable[str]) -> None:
    """Raises an EsrlError when an option is given that esrl sets itself."""
    if taken := sorted(set(options) & set(reserved)):
        raise EsrlError(f"{full}: {taken[0]} is set by esrl; leave it out")


# ---- trees and spaces -----------------------------------------------------------------------------------------------


def fitted(observation: PyTree, space: spaces.Space) -> PyTree:
    """An observation with the dtypes and shapes that its space says; Dict and Tuple go by their entries."""

    def one(space: spaces.Space, x: Any) -> Array:
        return jnp.asarray(x, device_dtype(space)).reshape(space.shape)

    return map_space(one, space, observation)


def as_before(tree: PyTree, like: PyTree) -> PyTree:
    """A tree with the dtypes and shapes of another: packages let Python numbers and promotions into their states."""

    def one(x: Any, like: Any) -> Array:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):  # typed keys keep their type, and cannot be converted
            return x
        return jnp.asarray(x, like.dtype).reshape(like.shape)

    return jax.tree.map(one, tree, like)


def raw_key() -> Any:
    """A raw random key without its numbers, for `jax.eval_shape`."""
    return jax.ShapeDtypeStruct((2,), np.uint32)


def scalar(x: Any, dtype: Any) -> Array:
    """One number, whatever shape a package gives it."""
    return jnp.asarray(x, dtype).reshape(())


def gymnax_space(space: Any) -> spaces.Space:
    """A space as gymnax defines them (Craftax and Kinetix use its classes) as Gymnasium's."""
    kind = type(space).__name__
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "Dict":
        return spaces.Dict({name: gymnax_space(part) for name, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([gymnax_space(part) for part in space.spaces])
    dtype = np.dtype(space.dtype)
    low, high = (np.broadcast_to(np.asarray(side, dtype), space.shape) for side in (space.low, space.high))
    return spaces.Box(low, high, space.shape, dtype)
