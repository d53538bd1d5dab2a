"""Environments from Python objects: classes, functions, Gymnasium's specs, and the suites' own environments."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.experimental.functional import FuncEnv
from gymnasium.vector import VectorEnv

from esrl.core.types import EsrlError
from esrl.envs.base import MAX_EPISODE_STEPS, HostEnv, max_episode_steps_of, on_device, reason_of, rename_horizon
from esrl.envs.objectives import Objective, looks_undecorated
from esrl.envs.suites import gymnasium_functional, gymnasium_host
from esrl.envs.suites._common import check_call, with_options

# The suites' base classes, by module and name: so nothing has to be imported to know them.
_BASES = {
    ("brax.envs.base", "Env"): "brax",
    ("craftax.environment_base.environment_bases", "EnvironmentAutoReset"): "craftax",
    ("craftax.environment_base.environment_bases", "EnvironmentNoAutoReset"): "craftax",
    ("gymnax.environments.environment", "Environment"): "gymnax",
    ("jumanji.env", "Environment"): "jumanji",
    ("mujoco_playground._src.mjx_env", "MjxEnv"): "playground",
    ("navix.environments.environment", "Environment"): "navix",
}
_DOES_IT = ("AutoReset", "Vmap", "EpisodeWrapper")  # wrappers for what esrl does itself are called so
_GIVE = "give its class or its id, so that every lane gets its own, or a function that makes it"


def display_name(env: Any) -> str:
    """What messages call an environment that is given as an object."""
    if isinstance(env, functools.partial):
        return display_name(env.func)
    if isinstance(env, EnvSpec):
        return env.id
    return getattr(env, "__name__", type(env).__name__)


def from_object(env: Any, name: str, options: dict[str, Any]) -> Any:
    """An environment from an object.

    Args:
      env: a class or an object of the two methods, of `FuncEnv`, or of a suite's own base class; a `gymnasium.Env`
        class; an `EnvSpec`, or an object that `gymnasium.make` made; or a function that makes any of these.
      name: what errors call it.
      options: arguments of the class or function, and `max_episode_steps`.

    Raises:
      EsrlError: something else is given, or it does not take the options.
    """
    if env is None:
        raise EsrlError("the environment is None; give a name, a class, or a function that makes it")
    if not on_device(env) and not options:
        return env
    if isinstance(env, Objective):
        if options:
            raise EsrlError(f"{name} is an objective, which takes no options here; got {', '.join(options)}")
        return env
    if looks_undecorated(env):
        raise EsrlError(
            f"{name} takes apply, so it is an objective whose network has no sizes yet; put"
            " @esrl.objective(inputs=..., outputs=...) above it"
        )
    if isinstance(env, VectorEnv) or (inspect.isclass(env) and issubclass(env, VectorEnv)):
        raise EsrlError(f"{name} is a batch of environments, and esrl makes its lanes itself; {_GIVE}")
    if isinstance(env, EnvSpec):
        return _from_spec(env, name, rename_horizon(name, options))
    if isinstance(env, gymnasium.Env):
        return _from_instance(env, name, rename_horizon(name, options))
    if inspect.isclass(env) and issubclass(env, gymnasium.Env):
        return gymnasium_host.from_class(env, name, **rename_horizon(name, options))
    if callable(env) and not inspect.isclass(env) and on_device(env) and not hasattr(env, "reset"):
        return _from_function(env, name, rename_horizon(name, options))
    params = None
    if isinstance(env, tuple) and len(env) == 2 and suite_of(env[0]) == "gymnax":  # gymnax.make's environment, params
        env, params = env
        name = type(env).__name__
    if suite := suite_of(env):
        return _from_suite(suite, env, name, rename_horizon(name, options), params)
    if inspect.isclass(env):
        env, options = _constructed(env, name, options), {}
    if options:
        raise EsrlError(f"options {options} were given for an environment that is already made")
    if isinstance(env, FuncEnv):
        return gymnasium_functional.FunctionalEnv(
            env, name, max_episode_steps_of(env), getattr(env, "fixed_start", False)
        )
    if not getattr(env, "name", None):
        with contextlib.suppress(AttributeError):  # an object whose attributes are fixed has its class's name
            env.name = name
    return env


def _constructed(cls: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    try:
        return cls(**options)
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(f"{name} cannot be constructed with {options}: {reason_of(error)}") from error


# ---- functions ------------------------------------------------------------------------------------------------------


def _from_function(function: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    """What a function makes: each lane of a Gymnasium environment has a call of its own."""
    limit = {}
    if not gymnasium_host.takes(function, "max_episode_steps"):
        limit = {key: value for key, value in options.items() if key == "max_episode_steps"}
    options = {key: value for key, value in options.items() if key not in limit}
    check_call(name, function, options)
    made = _constructed(function, name, options)
    if made is None:
        raise EsrlError(f"{name}() returned None; let it return the environment")
    if not isinstance(made, gymnasium.Env):
        return from_object(made, name, limit)
    again = _constructed(function, name, options)
    if again.unwrapped is made.unwrapped:
        raise EsrlError(
            f"{name}() returned one environment twice; let every call make a new one, so that no lanes share it"
        )

    def one(**kwargs: Any) -> gymnasium.Env:
        if all(gymnasium_host.takes(function, key) for key in kwargs):
            return function(**{**options, **kwargs})
        env = function(**options)
        if env.render_mode == kwargs.get("render_mode") or env.spec is None:
            return env
        return gymnasium.make(_drawn_by_esrl(env.spec), disable_env_checker=True, **kwargs)

    made_limit = _limit_of(made)
    for env in (made, again):
        env.close()
    return gymnasium_host.from_class(one, name, **{"max_episode_steps": made_limit, **limit})


def _limit_of(env: gymnasium.Env) -> int:
    """Steps after which an object's own TimeLimit cuts off, or what the object says of itself."""
    limits = []
    inner = env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, gymnasium.wrappers.TimeLimit):
            limits.append(inner._max_episode_steps)
        inner = inner.env
    return min(limits) if limits else max_episode_steps_of(inner)


# ---- Gymnasium's specs ----------------------------------------------------------------------------------------------


def named(env: Any) -> tuple[str, dict[str, Any]] | None:
    """The name and options of an `EnvSpec`, or of an object that `gymnasium.make` made, where a name says it all."""
    spec = env.spec if isinstance(env, gymnasium.Env) else env
    if not isinstance(spec, EnvSpec) or spec.id.startswith("ALE/"):
        return None
    registered = gymnasium.registry.get(spec.id)
    if registered is None:
        return None
    spec = _drawn_by_esrl(spec)
    own: dict[str, Any] = {
        name: getattr(registered, name) for name in ("kwargs", "max_episode_steps", "disable_env_checker")
    }
    if dataclasses.replace(spec, **own) != registered or registered.kwargs.keys() - spec.kwargs.keys():
        return None
    try:
        options = {k: v for k, v in spec.kwargs.items() if k not in registered.kwargs or v is not registered.kwargs[k]}
        options = {k: v for k, v in options.items() if repr(v) != repr(registered.kwargs.get(k))}
        if spec.max_episode_steps != registered.max_episode_steps:
            options["max_episode_steps"] = spec.max_episode_steps or MAX_EPISODE_STEPS
        with_options(spec.id, options)
    except EsrlError:
        return None
    return f"gymnasium/{spec.id}", options


def _drawn_by_esrl(spec: EnvSpec) -> EnvSpec:
    """A spec without a way to draw: esrl says it where it draws, and no lane should open a window."""
    return dataclasses.replace(spec, kwargs={k: v for k, v in spec.kwargs.items() if k != "render_mode"})


def _from_spec(spec: EnvSpec, name: str, options: dict[str, Any]) -> HostEnv:
    limit = options.pop("max_episode_steps", None) or spec.max_episode_steps or MAX_EPISODE_STEPS
    spec = dataclasses.replace(_drawn_by_esrl(spec), max_episode_steps=limit)
    return gymnasium_host.from_class(
        functools.partial(gymnasium.make, spec, disable_env_checker=True), name, limit, **options
    )


def _from_instance(env: gymnasium.Env, name: str, options: dict[str, Any]) -> HostEnv:
    """An object that `gymnasium.make` made, made again for each lane by the spec that it keeps."""
    refused = EsrlError(f"{name} is one Gymnasium environment; {_GIVE}")
    if env.spec is None:
        raise refused
    try:
        made = _from_spec(env.spec, env.spec.id, dict(options))
    except EsrlError as error:
        raise refused from error
    if not same_spaces(made, env):
        raise refused  # it was changed after it had been made
    return made


def same_spaces(one: Any, other: Any) -> bool:
    """Whether two environments have equal spaces."""
    return (one.observation_space, one.action_space) == (other.observation_space, other.action_space)


# ---- the suites' own environments -----------------------------------------------------------------------------------


def suite_of(env: Any) -> str | None:
    """The suite whose base class an object or class is of."""
    cls = env if inspect.isclass(env) else type(env)
    return next((_BASES[key] for c in cls.__mro__ if (key := (c.__module__, c.__name__)) in _BASES), None)


def _from_suite(suite: str, env: Any, name: str, options: dict[str, Any], params: Any = None) -> Any:
    limit = options.get("max_episode_steps")
    options = {key: value for key, value in options.items() if key != "max_episode_steps"}
    if inspect.isclass(env):
        make = getattr(env, "create", env) if suite == "navix" else env  # which fills in what its fields need
        env = _constructed(make, name, options)
    elif options:
        raise EsrlError(f"options {options} were given for an environment that is already made")
    for part in _inside(env):
        kind = type(part).__name__
        if suite != "craftax" and any(word in kind for word in _DOES_IT):
            raise EsrlError(f"{name}: {kind} does what esrl does itself (lanes, resets, time limits); leave it out")
    adapter = importlib.import_module(f"esrl.envs.suites.{suite}")
    given = {} if params is None else {"params": params}
    try:
        return adapter.wrap(env, name, limit, **given)
    except EsrlError:
        raise
    except Exception as error:
        raise EsrlError(f"{name} cannot be made: {reason_of(error)}") from error


def _inside(env: Any) -> Iterator[Any]:
    """An environment and those that it wraps."""
    while env is not None:
        yield env
        env = vars(env).get("env", vars(env).get("_env")) if hasattr(env, "__dict__") else None
