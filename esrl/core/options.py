"""Arguments read off signatures, and checked in one place: what is given becomes the plain value that it means.

The signature has names, types and defaults, the docstring has the meanings, `LIMITS` and `CHOICES` say what a type
cannot. Recipes and the command line ask here as well, so an argument is written down once.
"""

from __future__ import annotations

import inspect
import math
import numbers
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache, wraps
from types import UnionType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from esrl.core.errors import EsrlError
from esrl.core.names import near_option

Function = TypeVar("Function", bound=Callable[..., Any])


class Names(tuple[str, ...]):
    """Texts, as `--agents eggroll ppo` or `--agents eggroll,ppo` on the command line."""

    __slots__ = ()


class Limit(NamedTuple):
    """Bounds of a number; an open one leaves out the least."""

    least: float = -math.inf
    most: float = math.inf
    open: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number lies inside."""
        if isinstance(value, int):
            return self._inside(value)
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.float32(value))  # what JAX makes of it: 1e-50 is not above 0 there, 1e50 is infinite
        return math.isfinite(rounded) and self._inside(value) and self._inside(rounded)

    def _inside(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.open and value == self.least)

    def words(self) -> str:
        """Behind "a number"."""
        if self == SEED:
            return " in 0 .. 2^32 - 1"
        if self.most < math.inf:
            between = (
                f" above {self.least} and at most {self.most}" if self.open else f" in {self.least} .. {self.most}"
            )
            return between
        return f" above {self.least}" if self.open else f" of at least {self.least}" if self != Limit() else ""


SEED = Limit(0, 2**32 - 1)
_LARGEST = 2**31 - 1  # JAX counts in int32
_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9}  # of numbers on the command line, as 10k and 1M
_LAYERS = 100  # of a ready-made network: more take minutes to compile

# A name means the same wherever it stands.
LIMITS = {
    **dict.fromkeys(
        ("population", "episodes_per_member", "chunk_pairs", "num_envs", "num_steps", "num_epochs", "num_minibatches",
         "rank", "env_steps", "generations", "episodes", "eval_episodes", "checkpoint_every",
         "batch_size", "size", "cpu_devices", "max_episode_steps", "steps", "max_population", "generation_steps",
         "horizon", "pairs", "window", "workers", "instances", "block_pairs",
         "block_envs"),
        Limit(1),
    ),
    **dict.fromkeys(("hidden", "channels"), Limit(1, 2**16)),
    **dict.fromkeys(
        ("sigma", "learning_rate", "sigma_decay", "lr_decay", "memory_gib", "clip_eps", "reward_scale", "anneal_steps",
         "seconds", "minutes", "max_excess_variance", "max_grad_norm", "signal_pairs", "horizon_steps", "env_timeout",
         "block_timeout"),
        Limit(0, open=True),
    ),
    **dict.fromkeys(
        ("entropy_coef", "value_coef", "momentum", "weight_decay", "num_evals", "early_evals",
         "output_scale", "warm_statistics"),
        Limit(0),
    ),
    "close_at": Limit(0, 1, open=True),
    **dict.fromkeys(("gamma", "gae_lambda", "residual", "max_failed"), Limit(0, 1)),
    **dict.fromkeys(("averaging", "feedback_decay"), Limit(0, 0.9999)),
    **dict.fromkeys(("noise_table", "noise_reuse", "group_pairs"), Limit(1)),
    "quantile": Limit(0, 1, open=True),
    "quantile_decay": Limit(0),
    **dict.fromkeys(("sigma_shift", "averaging_shift", "momentum_shift"), Limit(0, 8)),
    **dict.fromkeys(("seed", "seeds", "eval_seed"), SEED),
}  # fmt: skip
CHOICES = {
    "exchange": ("sums", "scalars"),
    "gradient": ("perturbation", "backprop"),
    "gradient_scale": ("unbiased", "paper"),
    **dict.fromkeys(("distribution", "noise_distribution"), ("normal", "rademacher")),
    **dict.fromkeys(("dtype", "noise_dtype"), ("float32", "bfloat16", "int8")),
    "on_env_error": ("fail", "stop"),
    "broadcast": ("parameters", "scalars"),
    "keep": ("last", "best", "all"),
    "variance": ("group", "global"),
    "x": ("env_steps", "seconds", "generations"),
}
_KINDS = {"Callable": "a function", "Agent": "esrl.eggroll(env) or another agent"}
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of whole numbers",
    list: "a list of whole numbers",
    Names: "a list of texts",
    dict: "a table",
}


class Option(NamedTuple):
    """A named value: an argument of a function, a key of a recipe, a flag.

    Attributes:
      name: as the function spells it.
      type: its plain type, which a recipe can hold: bool, int, float, str, tuple (of whole numbers; one may stand
        alone), list (of whole numbers), `Names` or dict; None when only Python code can give it.
      default: its default.
      optional: whether None may be given.
      help: what it means.
      others: classes that it may be an instance of instead.
    """

    name: str
    type: type | None
    default: Any = None
    optional: bool = False
    help: str = ""
    others: tuple[Any, ...] = ()

    def check(self, value: Any, called: str = "") -> Any:
        """The value as the plain Python value that it means.

        Scalars of NumPy and JAX and arrays without axes become Python's, so that recipes can hold them and equal
        options compile equal programs. A whole number becomes a float where a number is needed.

        Raises:
          EsrlError: it has another type, or is outside of `LIMITS` or `CHOICES`. The sentence calls it `called`.
        """
        called = called or self.name
        if (value is None and self.optional) or isinstance(value, self.others):
            return value
        if (jax := sys.modules.get("jax")) and isinstance(value, jax.core.Tracer):  # this module is used without JAX
            raise EsrlError(
                f"{called} is traced by JAX, but must be known now; give it outside of jax.jit and jax.vmap"
                " (values of an agent's state may be traced: agent.hyperparams names them)"
            )
        try:
            plain = None if self.type is None else _PLAIN[self.type](value)
        except Exception:  # an object of the user's may raise anything
            plain = None
        limit = LIMITS.get(self.name, Limit())
        many = isinstance(plain, (tuple, list)) and self.type is not Names
        parts: Any = [plain] if isinstance(plain, (int, float)) else plain if many else []
        if plain is None or not all(map(limit.hold, parts)) or plain not in CHOICES.get(self.name, (plain,)):
            raise EsrlError(f"{called} is {shown(value)}, but must be {self._wanted(limit)}")
        if len(parts) > _LAYERS and self.name in ("hidden", "channels"):
            raise EsrlError(f"{called} has {len(parts)} layers, but must have at most {_LAYERS}")
        if limit != SEED and any(isinstance(part, int) and part > _LARGEST for part in parts):
            raise EsrlError(f"{called} is {shown(value)}, but must be below 2^31")
        return plain

    def _wanted(self, limit: Limit) -> str:
        words = [_KINDS.get(kind.__name__, f"a {kind.__name__}") for kind in self.others]
        if self.type is not None:
            choices = [f'"{choice}"' for choice in CHOICES.get(self.name, ())]
            words = (choices or [_WORDS[self.type] + limit.words()]) + words
        words += ["None"] * self.optional
        start = "" if self.type else "given in Python, as "
        return start + " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))

    def read(self, given: Any, called: str) -> Any:
        """The value of a flag's text, of its texts (tuple), or of a bool, which has none; checked like any other."""
        value = given
        if self.optional and str(given).lower() == "none":
            value = None
        elif self.type is Names:
            value = [part for text in given for part in text.split(",") if part]
        elif self.type in (int, float, tuple):
            parts = [part for text in given for part in text.split(",") if part] if self.type is tuple else [given]
            try:
                numbers = [_number_in(part, float if self.type is float else int) for part in parts]
                value = tuple(numbers) if self.type is tuple else numbers[0]
            except ValueError:
                value = given if isinstance(given, str) else " ".join(given)
        return self.check(value, called)


def _number_in(text: str, kind: type) -> Any:
    """The number that a text means: 1e6, 1_000_000 and 1M are the same, whole where a whole one is needed.

    Raises:
      ValueError: it means none.
    """
    try:
        return kind(text)
    except ValueError:
        factor = _FACTORS.get(text[-1:].lower(), 1)
        number = float(text[:-1] if factor > 1 else text) * factor
        if kind is int and (math.isinf(number) or number != int(number)):
            raise
        return kind(number)


def shown(value: Any) -> str:
    """A value on one line that is not long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a class of the user's, or a whole number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _scalar(value: Any) -> Any:
    """A Python object for a scalar of NumPy or JAX, or an array without axes."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _instance(value: Any, *kinds: Any) -> Any:
    # bool is a subclass of int, so isinstance would take True for a number.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError
    return value


def _float(value: Any) -> float:
    try:
        return float(_instance(_scalar(value), numbers.Real))
    except OverflowError:
        return math.inf


def _int(value: Any) -> int:
    return int(_instance(_scalar(value), numbers.Integral))


def _list(value: Any) -> list[int]:
    if isinstance(value, (str, bytes, Mapping, Set)):
        raise TypeError
    return [_int(part) for part in value]


def _widths(value: Any) -> tuple[int, ...] | list[int]:
    value = _scalar(value)
    if isinstance(value, numbers.Integral):
        return (_int(value),)
    return _list(value) if isinstance(value, list) else tuple(_list(value))  # a list is what a recipe has


# The value as a plain type, or a TypeError.
_PLAIN: dict[Any, Callable[[Any], Any]] = {
    bool: lambda value: _instance(_scalar(value), bool),
    int: _int,
    float: _float,
    str: lambda value: str.__str__(_instance(_scalar(value), str)),  # of a subclass, as NumPy's, too
    tuple: _widths,
    list: _list,
    Names: lambda value: Names(_instance(part, str) for part in _instance(value, list, tuple)),
    dict: lambda value: dict(_instance(value, Mapping)),
}


# ---- signatures -----------------------------------------------------------------------------------------------------


@cache
def arguments(function: Callable[..., Any]) -> dict[str, Option]:
    """Every argument of a function, in order."""
    kinds, meanings = typing.get_type_hints(function), arguments_of(function.__doc__ or "")
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        plain, optional, others = _parts(kinds.get(name, Any))
        found[name] = Option(name, plain, parameter.default, optional, meanings.get(name, ""), others)
    return found


@cache
def options_of(constructor: Callable[..., Any]) -> dict[str, Option]:
    """The options of a constructor: every keyword-only argument, in order."""
    own, found = inspect.signature(constructor).parameters, arguments(constructor)
    return {name: option for name, option in found.items() if own[name].kind is inspect.Parameter.KEYWORD_ONLY}


def _parts(hint: Any) -> tuple[type | None, bool, tuple[Any, ...]]:
    """The plain type in a hint, whether None is allowed, and the other classes."""
    parts = typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    bare = [typing.get_origin(part) or part for part in parts]
    bare = [list if part is Sequence else object if part is Any else part for part in bare]
    plain = next((kind for kind in _PLAIN if kind in bare), None)
    others = tuple(part for part in bare if isinstance(part, type) and part not in (plain, type(None)))
    return plain, type(None) in parts, others if plain or others else (object,)


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


def checked(function: Function) -> Function:
    """Decorates a public function: every argument is checked by its type in the signature, and is the plain value then.

    An unknown keyword gets one sentence that offers near names.
    """
    signature = inspect.signature(function)
    names = [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
    open_ended = len(names) < len(signature.parameters)

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in names and not open_ended:
                raise EsrlError(f"{function.__name__} has no option {name!r}{near_option(name, names)}")
        try:
            bound = signature.bind(*args, **given)
        except TypeError as error:
            raise EsrlError(f"{function.__name__}: {error}") from None
        for name, option in arguments(function).items():
            if name in bound.arguments and name in names:
                value = option.check(bound.arguments[name])
                bound.arguments[name] = tuple(value) if option.type is tuple and isinstance(value, list) else value
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]
