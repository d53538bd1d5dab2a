"""Scores of an agent's unperturbed parameters on held-out episodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from esrl.algorithms.agent import Agent
from esrl.core import processes, sharding
from esrl.core.options import checked
from esrl.core.types import Array, EsrlError, Key, PyTree, seed_key
from esrl.envs.base import on_device

_AT_ONCE = 1 << 10  # episodes that each device plays side by side
_HELD_OUT = 0xE7A1  # folded into the key, so that evaluation worlds are none of training's


class Evaluation(NamedTuple):
    """Held-out episodes: mean and standard deviation (over episodes) of returns, mean length, and every return [E]."""

    return_mean: float
    return_std: float
    length_mean: float
    episodes: int
    returns: np.ndarray

    def __repr__(self) -> str:
        return (
            f"Evaluation(return {self.return_mean:.1f} +- {self.return_std:.1f}, length {self.length_mean:.1f},"
            f" {self.episodes} held-out episodes)"
        )


@checked
def evaluate(agent: Agent, state: Any, episodes: int = 128, seed: int = 0) -> Evaluation:
    """Plays episodes with the unperturbed parameters, or their average, in worlds that training never sees.

    Args:
      agent: what was trained.
      state: its state.
      episodes: how many.
      seed: of the worlds; the same seed gives the same worlds for every agent on an environment.

    Raises:
      EsrlError: fewer than one episode, or a state that is traced.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> scored = esrl.evaluate(agent, agent.init(jax.random.key(0)), episodes=16)
      >>> scored.episodes, scored.returns.shape
      (16, (16,))
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        raise EsrlError("the state is traced by JAX, but evaluate gives Python numbers; call it outside of jax.jit")
    if not hasattr(state, "env_steps"):
        raise EsrlError(f"the state is a {type(state).__name__}, but must be what training left (result.state)")
    keys = held_out_keys(seed, episodes)
    returns, lengths = (np.asarray(x, np.float64) for x in _compiled(agent, episodes)(state, keys))
    return Evaluation(float(returns.mean()), float(returns.std()), float(lengths.mean()), episodes, returns)


def held_out_keys(seed: int, episodes: int) -> Key:
    """Keys [E] of episodes that no training has."""
    return jax.random.split(jax.random.fold_in(seed_key(seed), _HELD_OUT), episodes)


def play_episodes(agent: Agent, state: Any, keys: Key) -> tuple[Array, Array]:
    """Returns and lengths [E] of episodes with these keys, with the unperturbed parameters."""
    act = act_all(agent)

    def play(state: Any, keys: Key) -> tuple[tuple[Array, Array], tuple[()]]:
        played = agent.runner.episodes(act, state, keys[:, None, None], agent.policy.carry, None)
        return (played.returns.reshape(-1), played.lengths.reshape(-1)), ()

    if not on_device(agent.env):
        return play(state, keys)[0]
    episodes = keys.shape[0]
    mesh = _mesh(episodes)
    if over := -episodes % mesh.size:  # devices of several processes: the last ones play episodes again
        keys = jnp.concatenate([keys, jnp.broadcast_to(keys[-1], (over,))])
    chunk = min(keys.shape[0] // mesh.size, _AT_ONCE)
    rows = sharding.map_chunks(play, state, keys, chunk, mesh)[0]
    return jax.tree.map(lambda x: x[:episodes], rows) if over else rows


def _mesh(episodes: int) -> Mesh:
    """The devices that play so many episodes."""
    return sharding.every_device() if processes.several() else sharding.default_mesh(episodes)


@lru_cache(maxsize=8)
def act_all(agent: Agent) -> Callable[..., tuple[PyTree, PyTree]]:
    """An agent's decisions for all lanes [L]: one function for an agent, which is compiled once."""

    def act(state: Any, observations: PyTree, carry: PyTree, keys: Key) -> tuple[PyTree, PyTree]:
        return jax.vmap(agent.act, in_axes=(None, 0, 0, 0))(state, observations, carry, keys)

    return act


@lru_cache(maxsize=8)
def _compiled(agent: Agent, episodes: int) -> Callable[[Any, Key], tuple[Array, Array]]:
    """`play_episodes` of an agent, compiled once for a number of episodes."""
    play = partial(play_episodes, agent)
    return sharding.Compiled(play, _mesh(episodes)) if on_device(agent.env) else play
