"""`esrl.make`: an environment from its name, a file, or an object."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium

from esrl.core.runtime import configure
from esrl.core.types import EsrlError, nearest
from esrl.envs import plugins
from esrl.envs.base import on_device, reason_of, rename_horizon
from esrl.envs.catalog import (
    PLUGINS,
    SUITES,
    adapter_of,
    gymnasium_names,
    missing,
    names_of,
    near_names,
    spoken,
    suites,
)
from esrl.envs.checks.contract import check_contract
from esrl.envs.checks.environment import check_made
from esrl.envs.objectives import Objective
from esrl.envs.objects import display_name, from_object, named, same_spaces
from esrl.envs.references import attribute_of, import_module, is_file, is_module, referable, reference_to
from esrl.envs.references import load_attribute as load_attribute
from esrl.envs.suites import gymnasium_functional, gymnasium_host
from esrl.envs.suites._common import check_call, options_in, with_options

_ATARI = "ALE/"  # Gymnasium's own names of Atari games begin so


def make(env: Any, **options: Any) -> Any:
    """An environment from its name, a file, a class or an object.

    Args:
      env: a name (`brax/hopper`, `gymnasium/CartPole-v1`, or one that an installed package announces, see
        `esrl.envs.plugins`), a file and a class (`path/to/file.py:Class`), a module and a class, function or Gymnasium
        id (`package.module:Class`, `minigrid:MiniGrid-Empty-5x5-v0`; the module is imported), or an object or class:
        the two methods of `esrl.Env`, a Gymnasium `FuncEnv`, a suite's own environment, or a `gymnasium.Env` class; a
        function that makes one (a new one in each call, for Gymnasium's); or an `EnvSpec`.
      **options: the environment's own options, or arguments of its class; behind a name they can also stand as
        `?key=value&key=value`. Every suite takes `max_episode_steps` (int): steps after which an episode is cut off.

    Returns:
      An `esrl.Env` (stepped on the device), or a `HostEnv` (stepped by Python).

    Raises:
      EsrlError: an unknown name (near ones are offered), a suite that is not installed (the command is named), options
        that do not fit, or an environment that breaks the contract (what to change is said).

    Example:
      >>> import esrl, jax
      >>> env = esrl.make("gymnasium/phys2d/CartPole-v1?max_episode_steps=200")
      >>> env.action_space
      Discrete(2)
      >>> state, observation = env.reset(jax.random.key(0))
      >>> observation.shape
      (4,)
    """
    configure()
    if not isinstance(env, str):
        if spec := named(env):
            name, own = spec
            made = make(name, **{**own, **options})
            if not isinstance(env, gymnasium.Env) or same_spaces(made, env):
                return made
        made = from_object(env, display_name(env), options)
        if isinstance(made, Objective):
            return made if made.recipe_name != made.name else _referred_to(made, _held_by_module(made), {})
        check_contract(made)
        if not on_device(made) and made is not env:  # a check takes milliseconds
            check_made(made)
        return _referred_to(made, reference_to(env), options)
    name, _, query = spoken(env).partition("?")
    options = {**options_in(query), **options}
    if is_module(name):
        module, _, rest = name.partition(":")
        if attribute_of(import_module(module), rest) is None and rest in gymnasium.registry:
            return make(f"gymnasium/{name}", **options)
    if is_file(name) or is_module(name):
        made = from_object(load_attribute(name), with_options(name, options), options)
        if isinstance(made, Objective):
            made.recipe_name = with_options(name, options)
            return made
        check_made(made)
        return made
    if name.endswith(".py"):
        raise EsrlError(f"{name} names a file; say which class as well: {name}:ClassName")
    suite, _, rest = name.partition("/")
    if suite in SUITES and rest:
        adapter = partial(_gymnasium, rest) if suite == "gymnasium" else partial(adapter_of(suite).make, rest)
        made = _with_options(name, adapter, options)
    elif suite in plugins.suites(SUITES):
        made = _announced(name, options)
        check_contract(made)
    elif suite in PLUGINS:
        raise EsrlError(missing(suite))
    else:
        raise EsrlError(f"unknown environment {name!r}{near_names(name)}")
    if not on_device(made):  # anyone may register an environment with Gymnasium, and a check takes milliseconds
        check_made(made)
    return made


def check_again(name: str) -> None:
    """Raises an EsrlError when a run's recipe has no text from which its environment could be made again."""
    bare = name.partition("?")[0]
    module, _, attribute = bare.partition(":")
    lost = module == "__main__" and attribute_of(sys.modules["__main__"], attribute) is None
    if lost or not (is_file(bare) or is_module(bare) or "/" in bare or bare in plugins.suites(SUITES)):
        thing = attribute if lost else bare
        raise EsrlError(
            f"the recipe's environment {thing} was a Python object; give it again: esrl.load(folder, env=...), or"
            " esrl.train(agent, out=folder, resume=True)"
        )


def names() -> dict[str, list[str] | str]:
    """Every suite's environment names, or the command that installs it. Imports all of them, which takes seconds."""
    found: dict[str, list[str] | str] = {}
    for suite in suites():
        try:
            found[suite] = names_of(suite)
        except EsrlError as error:
            found[suite] = str(error)
    return found


def _held_by_module(found: Any) -> str | None:
    """`module:Name` of an objective in the module of its function; None where no such text leads back to it."""
    module = sys.modules.get(found.__module__)
    names = [key for key, value in vars(module).items() if value is found] if module else []
    return next((text for key in names if (text := referable(found.__module__, key))), None)


def _referred_to(env: Any, reference: str | None, options: dict[str, Any]) -> Any:
    """The environment of a class or function, with the text that leads back to it, which its recipe keeps."""
    if reference is None:
        return env
    try:
        text = with_options(reference, options)
    except EsrlError:  # options that no text can hold
        return env
    if not on_device(env):
        return env._replace(recipe_name=text)
    with contextlib.suppress(AttributeError):  # attributes may be fixed
        env.recipe_name = text
    return env


def _gymnasium(identifier: str, **options: Any) -> Any:
    if identifier.startswith(_ATARI):
        raise EsrlError(f"Atari is a suite of its own: use atari/{identifier.removeprefix(_ATARI)}")
    module, _, registered = identifier.rpartition(":")
    if module:  # as gymnasium.make has it: the module registers the environment when it is imported
        import_module(module)
    try:
        spec = gymnasium.spec(registered)
    except gymnasium.error.Error as error:
        known = [n.removeprefix("gymnasium/") for n in gymnasium_names()]
        hint = nearest(registered, known)
        hint = hint if hint.startswith("; did") else f" ({error})"
        raise EsrlError(f"gymnasium has no environment {identifier!r}{hint}") from error
    adapter = gymnasium_functional if registered.startswith(("phys2d/", "tabular/")) else gymnasium_host
    return adapter.make(identifier, spec, **options)


def _with_options(name: str, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    options = rename_horizon(name, options)
    check_call(name, make, options)
    try:
        return make(**options)
    except TypeError as error:  # raised further inside, of a value that the suite cannot do with
        raise EsrlError(f"{name} cannot be made: {reason_of(error)}") from error


def _announced(name: str, options: dict[str, Any]) -> Any:
    """An environment that an installed package announces, called as it was asked for."""
    full = with_options(name, options)
    found, left = plugins.make(name, options)
    made = from_object(found, full, left)
    if not on_device(made):
        return made._replace(name=full)
    with contextlib.suppress(AttributeError):
        made.name = full
    return made
