"""A policy and a value function of the same observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from gymnasium import spaces

from esrl.core.types import Array, EsrlError, Key, PyTree
from esrl.policies.networks import gru, mlp
from esrl.policies.policy import Policy, bind
from esrl.policies.spaces import observation_zeros
from esrl.policies.user_network import Bound, Network, started
from esrl.policies.user_network import network as as_network

CRITICS = ("separate", "shared")


class Output(NamedTuple):
    """The networks' outputs for one observation: the head's `output` and `log_std`, and the value (a scalar)."""

    output: Array
    log_std: Array | None
    value: Array


class ActorCritic(NamedTuple):
    """A policy and its critic.

    Attributes:
      policy: the policy, stochastic, with the actor's parameters and carry.
      init: `init(key) -> {"actor": ..., "critic": ...}`; without "critic" when the critic shares the actor's network.
      apply: `apply(params, obs, carry) -> (Output, carry)` for one lane.
      carry: the pair (actor's, critic's) at the start of an episode.
      recurrent: whether there is anything in it.
    """

    policy: Policy
    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, PyTree, PyTree], tuple[Output, PyTree]]
    carry: PyTree
    recurrent: bool


def actor_critic(
    network: Any,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    critic: str | Network | Any = "separate",
    squash: str = "clip",
) -> ActorCritic:
    """A network as policy of an environment, with a critic.

    Args:
      network: as `esrl.policies.policy.bind` takes it.
      observation_space, action_space: of one lane.
      critic: "separate" is a network of its own, built like the policy's where that can give one output, else
        `mlp((64, 64))` (`gru(64)` for recurrent policies); "shared" is one more output of the policy's network; or a
        network with one output.
      squash: how actions meet the bounds of a Box space: "tanh" or "clip".

    Raises:
      EsrlError: an unknown critic, one without exactly one output, or what `bind` raises.
    """
    if isinstance(critic, str) and critic not in CRITICS:
        raise EsrlError(f'critic is {critic!r}, but must be "separate" or "shared"')
    if isinstance(critic, str) and critic == "shared":
        return _shared(bind(network, observation_space, action_space, False, squash, extra=1))
    policy = bind(network, observation_space, action_space, False, squash)
    try:
        own = None if isinstance(critic, str) else as_network(critic)
    except EsrlError as error:
        raise EsrlError(f"critic: {error}") from error
    return _separate(policy, _critic(network, own, observation_space, policy.carry))


def _shared(policy: Policy) -> ActorCritic:
    size = policy.head.size

    def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Output, PyTree]:
        (out, log_std), after = policy.apply(params["actor"], obs, carry[0])
        return Output(out[:size], log_std, out[size]), (after, ())

    def init(key: Key) -> PyTree:
        return {"actor": policy.init(key)}

    return ActorCritic(policy, init, apply, (policy.carry, ()), _any(policy.carry))


def _separate(policy: Policy, critic: Bound) -> ActorCritic:
    def apply(params: PyTree, obs: PyTree, carry: PyTree) -> tuple[Output, PyTree]:
        (out, log_std), actor = policy.apply(params["actor"], obs, carry[0])
        value, critic_carry = critic.apply(params["critic"], obs, carry[1])
        return Output(out, log_std, value[0]), (actor, critic_carry)

    def init(key: Key) -> PyTree:
        actor_key, critic_key = jax.random.split(key)
        return {"actor": policy.init(actor_key), "critic": critic.init(critic_key)}

    carry = (policy.carry, critic.carry)
    return ActorCritic(policy, init, apply, carry, _any(carry))


def _critic(network: Any, own: Network | None, space: spaces.Space, carry: PyTree) -> Bound:
    """The critic's network: the given one, or one like the policy's, or a plain one."""
    observation = observation_zeros(space)
    chosen = own or (mlp() if network is None else as_network(network))
    shape = ()
    # A network of the user's may have a fixed number of outputs; then a ready-made critic takes its place.
    try:
        bound = started(chosen.bind(observation, 1, observation_space=space), None if own is None else own.start)
        params = jax.eval_shape(bound.init, jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32")))
        shape = jax.eval_shape(bound.apply, params, observation, bound.carry)[0].shape
    except Exception as error:
        if own is not None:
            raise EsrlError(f"the critic cannot take one observation: {type(error).__name__}: {error}") from error
    if shape == (1,):
        return bound
    if own is not None:
        raise EsrlError(f"the critic's output has shape {shape}, but one value is needed: shape (1,)")
    plain = gru(64) if _any(carry) else mlp((64, 64), "tanh")
    return plain.bind(observation, 1, observation_space=space)


def _any(carry: PyTree) -> bool:
    return bool(jax.tree.leaves(carry))
