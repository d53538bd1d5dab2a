"""The agent that learns nothing: the zero of every score."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from esrl.algorithms.agent import Agent, Metrics, Plan, mesh_for, stepping
from esrl.algorithms.options import agent_constructor, changed_options
from esrl.core import sharding
from esrl.core.brief import state_text
from esrl.core.types import Array, Count, Key, PyTree, count, count_add, count_sum
from esrl.envs.checks.contract import check_contract
from esrl.envs.registry import make
from esrl.policies.policy import bind
from esrl.policies.random_policy import random_policy
from esrl.rollouts.runner import runner


class RandomState(NamedTuple):
    """The run key, generations done, and live environment steps so far; there are no parameters."""

    key: Key
    generation: Array
    env_steps: Count
    params: PyTree = ()

    def __repr__(self) -> str:
        return state_text(self)


class Experience(NamedTuple):
    """A generation's episodes: `returns` [P, 1, 1], `lengths` [P, 1, 1] int32, `nonfinite` [P, 1, 1] bool (an
    observation or reward was not finite), and `steps` [P] that were run."""

    returns: Array
    lengths: Array
    nonfinite: Array
    steps: Array


@agent_constructor()
def random(env: Any, policy: Any = None, *, population: int = 64, squash: str = "tanh") -> Agent:
    """An agent whose actions are random: every allowed choice is equally likely, and numbers are normal draws.

    It learns nothing. It has the same interface as the others, so that scripts need no special case for it.

    Args:
      env: an environment, or whatever `esrl.make` takes.
      policy: ignored; it is there so that all agents are called alike.
      population: episodes of a generation.
      squash: how normal draws meet the bounds of a Box action space, "tanh" or "clip".

    Raises:
      EsrlError: a value that does not fit, or an environment that does not.

    Example:
      >>> agent = esrl.random("gymnasium/phys2d/CartPole-v1")
      >>> state = agent.init(jax.random.key(0))
      >>> esrl.evaluate(agent, state, episodes=64).return_mean < 40
      True
    """
    given = dict(locals())
    env = make(env)
    check_contract(env)
    choose, play = random_policy(env, squash), runner(env)
    mesh = mesh_for(env, population, "population")

    def init(key: Key) -> RandomState:
        return RandomState(key, jnp.uint32(0), count())

    def act(state: RandomState, observation: PyTree, carry: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        return choose(observation, key), carry

    def act_all(context: PyTree, observations: PyTree, carries: PyTree, keys: Key) -> tuple[PyTree, PyTree]:
        return jax.vmap(choose)(observations, keys), carries

    def play_lanes(key: Key, lanes: Array) -> tuple[tuple[Array, ...], tuple[()]]:
        keys = jax.vmap(lambda lane: jax.random.fold_in(key, lane))(lanes)
        played = play.episodes(act_all, (), keys[:, None, None], (), None)
        return (played.returns, played.lengths, played.nonfinite, played.steps), ()

    def rollout(state: RandomState) -> Experience:
        key = jax.random.fold_in(state.key, state.generation + 1)
        return Experience(*sharding.map_devices(play_lanes, key, sharding.iota(population), mesh)[0])

    def update(state: RandomState, played: Experience) -> tuple[RandomState, Metrics]:
        returns, lengths = played.returns, played.lengths
        after = state._replace(
            generation=state.generation + 1, env_steps=count_add(state.env_steps, count_sum(lengths))
        )
        finite = jnp.isfinite(returns)  # a mean over none of them is NaN, and shown as "-"
        return after, {
            "return_mean": jnp.mean(returns, where=finite),
            "length_mean": jnp.mean(lengths.astype(jnp.float32)),
            "nonfinite": jnp.sum(~finite | played.nonfinite),
            "all_nonfinite": ~jnp.any(finite),
        }

    return Agent(
        name="random",
        kind="random",
        env=env,
        policy=bind(None, env.observation_space, env.action_space),
        runner=play,
        act=act,
        plan=Plan(lanes=population, chunk=population // mesh.size, devices=mesh.size),
        options=changed_options(random, given),
        **stepping(env, init, rollout, update, mesh),
    )
