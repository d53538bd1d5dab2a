"""What is exported of a trained agent: how it acts, as one pure function, and what has to be known of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from esrl.algorithms.integer_es import IntegerES
from esrl.core.options import options_of
from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import name_of
from esrl.policies import integer_statistics, running_statistics
from esrl.policies.integer_statistics import IntegerMoments
from esrl.policies.spaces import device_dtype, map_space, to_device, to_environment
from esrl.training.recipe import AGENTS
from esrl.training.stored_spaces import table_of
from esrl.training.trained import Trained

FORMAT, VERSION = "esrl-policy", 1
STEPS, LANES = 6, 16  # of the self-test
_LIMITS = {"float32": 1e-3, "bfloat16": 3e-2}  # differences that rounding may make, by the precision of products
SAMPLING = {
    False: "it acts by the most likely action",
    True: (
        "the exported policy gives the most likely action, but esrl's own draws one at random: Discrete and"
        " MultiDiscrete entries by softmax of their logits, MultiBinary bits by the sigmoid of theirs, Box entries as"
        " x = output + exp(log_std) * N(0, 1), then middle + half * squash(x) where both bounds are finite, with squash"
        " tanh or clip to -1 .. 1, and clip(x, low, high) elsewhere"
    ),
}


@dataclass(frozen=True)
class Deployed:
    """A policy that acts by its most likely action.

    Attributes:
      act: `act(params, observation, carry) -> (action, output, carry)` for one lane; `output` is what the head gets.
      see, decide, finish: its three parts, `see(observation) -> seen`, normalized or quantized, `decide(params, seen,
        carry) -> (output, carry)`, and `finish(output) -> action`.
      params: of the network. start: the carry at the start of an episode.
      observation: shapes and types of one observation on the device.
      about: what has to be known of it, as plain data.
      self_test: observations, resets, and what the policy gave for them, by names; arrays [steps, lanes, ...].
      observation_space, action_space: of the environment.
    """

    act: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Any, PyTree]]
    see: Callable[[PyTree], PyTree]
    decide: Callable[[PyTree, PyTree, PyTree], tuple[Any, PyTree]]
    finish: Callable[[Any], PyTree]
    params: PyTree
    start: PyTree
    observation: PyTree
    about: dict[str, Any]
    self_test: dict[str, np.ndarray]
    observation_space: spaces.Space
    action_space: spaces.Space


def deployed(trained: Trained, version: str) -> Deployed:
    """The policy of a trained agent.

    Args:
      trained: the agent with its state. version: of esrl.

    Raises:
      EsrlError: an agent without a policy that was trained.
    """
    agent, state = trained.agent, jax.device_get(trained.state)
    if agent.acts_by is None:
        raise EsrlError(f"the agent {agent.name} has no policy that was trained, so there is nothing to export")
    policy, moments = agent.policy, jax.tree.map(jnp.asarray, state.moments)  # on one device
    params = jax.tree.map(jnp.asarray, agent.acts_by(state))

    integer = isinstance(agent.config, IntegerES)

    def see(observation: PyTree) -> PyTree:
        if integer:
            return integer_statistics.quantized(moments, observation, policy.normalizable)
        return running_statistics.normalize(moments, observation)

    def decide(params: PyTree, seen: PyTree, carry: PyTree) -> tuple[Any, PyTree]:
        (output, _), carry = policy.apply(params, seen, carry)
        return output[: policy.head.size], carry

    def act(params: PyTree, observation: PyTree, carry: PyTree) -> tuple[PyTree, Any, PyTree]:
        output, carry = decide(params, see(observation), carry)
        return policy.head.mode(output), output, carry

    seen_space, action_space = agent.env.observation_space, agent.env.action_space
    start = jax.tree.map(np.asarray, policy.carry)
    carries = [f"carry/{i}" for i in range(len(jax.tree.leaves(start)))]
    samples = not _option(agent, "deterministic", True)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "esrl": version,
        "agent": agent.name,
        "env": name_of(agent.env),
        "generation": int(state.generation),
        "observation_space": table_of(seen_space),
        "action_space": table_of(action_space),
        "observation": described(seen_space, "observation"),
        "action": described(action_space, "action"),
        "carry": carries,
        "squash": _option(agent, "squash", "clip"),
        "log_std": np.asarray(params["log_std"]).tolist() if "log_std" in params else None,
        "samples": samples,
        "sampling": SAMPLING[samples],
        "self_test": {"steps": STEPS, "lanes": LANES, "limit": _LIMITS[agent.options.get("precision", "float32")]},
    }
    parts = (act, see, decide, policy.head.mode)
    found = Deployed(*parts, params, start, policy.observation, about, {}, seen_space, action_space)
    found.self_test.update(_self_test(found, moments))
    return found


def _option(agent: Any, name: str, always: Any) -> Any:
    """The value of an agent's option; `always` where it has none by that name."""
    known = options_of(AGENTS[agent.name])
    return agent.options.get(name, known[name].default) if name in known else always


def described(space: spaces.Space, name: str) -> dict[str, Any]:
    """The arrays of a space by the names that inputs and outputs have, nested as the space is."""
    if isinstance(space, spaces.Dict):
        return {"dict": [[key, described(part, f"{name}/{key}")] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"tuple": [described(part, f"{name}/{i}") for i, part in enumerate(space.spaces)]}
    return {
        "name": name,
        "kind": type(space).__name__,
        "shape": list(space.shape or ()),
        "dtype": np.dtype(space.dtype).name,
        "device": device_dtype(space).name,
    }


def leaf_names(about: dict[str, Any]) -> PyTree:
    """The names in a description, in its nesting."""
    if "dict" in about:
        return {key: leaf_names(part) for key, part in about["dict"]}
    if "tuple" in about:
        return tuple(leaf_names(part) for part in about["tuple"])
    return about["name"]


def leaves_of(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The arrays in a description, in the order of JAX's leaves."""
    if "dict" in about:
        return [leaf for _, part in sorted(about["dict"]) for leaf in leaves_of(part)]
    if "tuple" in about:
        return [leaf for part in about["tuple"] for leaf in leaves_of(part)]
    return [about]


def batched(policy: Deployed) -> Callable[..., tuple[PyTree, Any, PyTree]]:
    """`act` of many lanes: `(observation [L, ...], carry [L, ...]) -> (action, output, carry)`, parameters inside."""
    every = jax.vmap(policy.act, in_axes=(None, 0, 0))
    return lambda observation, carry: every(policy.params, observation, carry)


# ---- the self-test --------------------------------------------------------------------------------------------------


def _self_test(policy: Deployed, moments: Any) -> dict[str, np.ndarray]:
    """Observations of the space, and of what was seen, with the actions for them; some lanes begin anew halfway."""
    rng = np.random.default_rng(0)
    space = copy.deepcopy(policy.observation_space)  # whose own draws go on as they would have
    space.seed(0)
    drawn = [[_seen(space, space.sample(), moments, rng, lane) for lane in range(LANES)] for _ in range(STEPS)]
    observations = map_space(lambda _, *rows: np.stack(rows), space, *(row for step in drawn for row in step))
    observations = jax.tree.map(lambda x: x.reshape(STEPS, LANES, *x.shape[1:]), observations)
    resets = np.zeros((STEPS, LANES), bool)
    resets[0], resets[STEPS // 2, ::2] = True, True
    act = jax.jit(batched(policy))
    carry = jax.tree.map(lambda x: np.repeat(x[None], LANES, 0), policy.start)
    given = []
    for step, fresh in enumerate(resets):
        carry = jax.tree.map(partial(_begun, fresh), carry, policy.start)
        row = jax.tree.map(itemgetter(step), observations)
        action, output, carry = act(to_device(space, row), carry)
        given.append((to_environment(policy.action_space, jax.device_get(action)), np.asarray(output)))
    actions, outputs = jax.tree.map(lambda *rows: np.stack(rows), *given)
    named = dict(zip(_names(policy, "observation"), jax.tree.leaves(observations), strict=True))
    named |= dict(zip(_names(policy, "action"), jax.tree.leaves(actions), strict=True))
    return {f"self_test/{name}": x for name, x in (named | {"reset": resets, "output": outputs}).items()}


def _begun(fresh: np.ndarray, carry: Any, start: np.ndarray) -> Any:
    """The carry [L, ...], where some lanes begin an episode."""
    return np.where(fresh.reshape(-1, *[1] * start.ndim), start, carry)


def _names(policy: Deployed, part: str) -> list[str]:
    return [leaf["name"] for leaf in leaves_of(policy.about[part])]


def _seen(space: spaces.Space, observation: PyTree, moments: Any, rng: np.random.Generator, lane: int) -> PyTree:
    """Half of the lanes have, where there are statistics, observations such as training had."""
    if moments is None or lane % 2:
        return observation
    if isinstance(moments, IntegerMoments):
        deviation = integer_statistics.deviations(moments)
    elif not float(moments.seen):
        return observation
    else:
        deviation = jax.tree.map(lambda m2: np.sqrt(m2 / moments.seen), moments.m2)

    def one(part: spaces.Space, x: Any, mean: Any, deviation: Any) -> Any:
        if mean is None or not isinstance(part, spaces.Box):
            return x
        drawn = np.asarray(mean) + np.asarray(deviation) * rng.normal(size=mean.shape)
        return np.clip(drawn, part.low, part.high).astype(part.dtype)

    return map_space(one, space, observation, moments.mean, deviation)
