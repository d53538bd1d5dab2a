"""Quiet imports of third-party packages, and their errors as one sentence. Imports no package by itself."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from esrl.core.errors import EsrlError, nearest, reason_of

T = TypeVar("T")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences prints and warnings, as packages give them when they are imported."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def package(name: str) -> Any:
    """A third-party module, without the lines and warnings of its import."""
    with quiet():
        return importlib.import_module(name)


def check_known(suite: str, name: str, known: Iterable[str]) -> None:
    """Raises an EsrlError that offers near names when a suite has no environment of this name (without the suite)."""
    known = list(known)
    if name not in known:
        raise EsrlError(f"{suite} has no environment {name!r}{nearest(name, known)}")


def construct(name: str, make: Callable[[], T]) -> T:
    """What `make` returns; an error in it (an argument that it does not take, data to be fetched) in one sentence."""
    try:
        with quiet():
            return make()
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(f"{name} cannot be made: {reason_of(error)}") from error
