"""Options read off signatures: the signature has names, types and defaults, the docstring has the meanings.

So an option is written down in one place. Recipes and the command line ask here.
"""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable
from functools import cache, wraps
from types import UnionType
from typing import Any, NamedTuple, TypeVar

from esrl.core.types import EsrlError, nearest

Constructor = TypeVar("Constructor", bound=Callable[..., Any])

_SHARED = "      **shared: as in `esrl.es`:\n"  # a line of a docstring that `agent_constructor` fills in


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of whole numbers",
    dict: "a table",
}


class Option(NamedTuple):
    """A named value of a plain type: a keyword argument of a constructor, a key of a recipe, a flag.

    Attributes:
      name: as the constructor spells it.
      type: bool, int, float, str, tuple (of whole numbers) or dict; None when only Python code can give it.
      default: its default.
      optional: whether None may be given.
      help: what it means.
    """

    name: str
    type: type | None
    default: Any = None
    optional: bool = False
    help: str = ""

    def check(self, value: Any, called: str) -> Any:
        """The value, a whole number made a float where a number is needed.

        Raises:
          EsrlError: it has another type. The sentence calls the option `called`.
        """
        if value is None and self.optional:
            return None
        if self.type is float and type(value) is int:
            return float(value)
        # bool is a subclass of int, so isinstance would take `true` for a number.
        if self.type is tuple:
            fits = all(type(part) is int for part in (value if isinstance(value, (list, tuple)) else [value]))
        else:
            fits = type(value) is self.type
        if not fits:
            words = _WORDS[self.type] if self.type else "given in Python"
            raise EsrlError(f"{called} is {value!r}, but must be {words}")
        return value

    def read(self, given: Any, called: str) -> Any:
        """The value of a flag's text, of its texts (tuple), or of a bool, which has none; checked like any other."""
        value = given
        if self.optional and str(given).lower() == "none":
            value = None
        elif self.type in (int, float, tuple):
            try:
                value = tuple(map(int, given)) if self.type is tuple else self.type(given)
            except ValueError:
                value = given if isinstance(given, str) else " ".join(given)
        return self.check(value, called)


@cache
def options_of(constructor: Callable[..., Any]) -> dict[str, Option]:
    """The options of a constructor: every keyword-only argument, in order."""
    kinds, meanings = typing.get_type_hints(constructor), arguments_of(constructor.__doc__ or "")
    found = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            plain, optional = _plain(kinds[name])
            found[name] = Option(name, plain, parameter.default, optional, meanings.get(name, ""))
    return found


def _plain(hint: Any) -> tuple[type | None, bool]:
    """The type in a hint that a recipe can hold (bool, int, float, str, or tuple), and whether None is allowed."""
    parts = typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    bare = [typing.get_origin(part) or part for part in parts]
    plain = next((kind for kind in (bool, int, float, str, tuple) if kind in bare), None)
    return plain, type(None) in parts


def arguments_of(doc: str) -> dict[str, str]:
    """What a docstring's Args section says of each argument, on one line each."""
    lines = iter(inspect.cleandoc(doc).splitlines())
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if line == "Args:":
            break
    for line in lines:
        if line and not line.startswith(" "):
            break
        begun = re.match(r"  (\w+): (.*)", line)
        if begun:
            name, found[begun[1]] = begun[1], begun[2]
        elif line.startswith("    ") and name:
            found[name] += " " + line.strip()
    return found


def agent_constructor(shares: Callable[..., Any] | None = None) -> Callable[[Constructor], Constructor]:
    """Decorates the constructor of an agent: an unknown keyword gets one sentence that offers near names.

    Args:
      shares: a constructor with more to say: the line `**shared` of the docstring becomes what that of `shares` says of
        the arguments that both have.
    """

    def decorate(constructor: Constructor) -> Constructor:
        doc, own = constructor.__doc__ or "", inspect.signature(constructor).parameters
        told = arguments_of(doc)
        lines = [
            f"      {name}: {text}\n"
            for name, text in arguments_of(shares.__doc__ or "" if shares else "").items()
            if name in own and name not in told
        ]

        @wraps(constructor)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in own:
                    raise EsrlError(f"{constructor.__name__} has no option {name!r}{near_option(name, own)}")
            return constructor(*args, **given)

        checked.__doc__ = doc.replace(_SHARED, "".join(lines))
        return checked  # type: ignore[return-value]

    return decorate


# What options were called in the first recipes and flags, and are called now.
RENAMED = {
    "thin": "max_excess_variance",
    "distribution": "noise_distribution",
    "step_scale": "gradient_scale",
    "chunk": "chunk_pairs",
    "memory": "memory_gib",
}


def near_option(name: str, known: Iterable[str]) -> str:
    """A clause for an unknown option: what it is called now, or names that are near."""
    new = RENAMED.get(name, "")
    return f"; it is called {new} now" if new in known else nearest(name, known)


def changed_options(constructor: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options among what was given that differ from their defaults, in order."""

    def same(value: Any, default: Any) -> bool:
        return value is default or (type(value) is type(default) and value == default)

    return {
        name: given[name]
        for name, option in options_of(constructor).items()
        if name in given and not same(given[name], option.default)
    }


# ---- checks ---------------------------------------------------------------------------------------------------------

AT_LEAST_ONE = ("population", "episodes_per_member", "chunk_pairs", "num_envs", "num_steps", "num_epochs",
                "num_minibatches")  # fmt: skip
ABOVE_ZERO = ("sigma", "learning_rate", "sigma_decay", "lr_decay", "memory_gib", "clip_eps", "reward_scale",
              "anneal_steps")  # fmt: skip
AT_LEAST_ZERO = ("entropy_coef", "value_coef")
FRACTIONS = ("gamma", "gae_lambda")
CHOICES = {"gradient_scale": ("unbiased", "paper")}


def check_options(given: dict[str, Any]) -> None:
    """Raises `EsrlError` for the first option, of any agent, whose value makes no sense by itself."""
    for name, value in given.items():
        if value is None:
            continue
        if name in AT_LEAST_ONE and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise EsrlError(f"{name} is {value!r}, but must be a whole number of at least 1")
        if name in ABOVE_ZERO and not callable(value) and not (_is_number(value) and value > 0):
            raise EsrlError(f"{name} is {value!r}, but must be a number above 0")
        if name in AT_LEAST_ZERO and not (_is_number(value) and value >= 0):
            raise EsrlError(f"{name} is {value!r}, but must be a number of at least 0")
        if name in FRACTIONS and not (_is_number(value) and 0 <= value <= 1):
            raise EsrlError(f"{name} is {value!r}, but must lie in 0 .. 1")
        if name in CHOICES and value not in CHOICES[name]:
            raise EsrlError(f"{name} is {value!r}, but must be {' or '.join(map(repr, CHOICES[name]))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
