"""rejax's PPO, as a side of ppo.py: its own training function, environments and networks."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from esrl.core.types import Array, PyTree
from experiments.peers import common


class Rejax:
    """`rejax.PPO` on one environment; the whole training is one compiled program, without rejax's evaluations.

    Args:
      env: the same environment from `esrl.make`, for scoring.
      config: as in rejax's configuration files, without budget and evaluation.
      env_steps: budget, rounded up to whole iterations.
    """

    def __init__(self, env: Any, config: dict[str, Any], env_steps: int) -> None:
        from rejax import PPO

        quiet = {"eval_callback": lambda *_: jnp.zeros(()), "skip_initial_evaluation": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PPO.create(**config, total_timesteps=env_steps, eval_freq=env_steps)
        self.algorithm = made.replace(**quiet)
        lowered = jax.jit(self.algorithm.train).lower(jax.random.PRNGKey(0))
        self._program = lowered.compile()
        self.mib = common.mib(self._program)
        self._mode, self._sampled = (common.scorer(env, partial(self._act, mode)) for mode in (True, False))

    def _act(self, mode: bool) -> common.Act:
        """rejax acts by sampling only; the mode is that of the distribution which it samples from."""
        algorithm = self.algorithm

        def act(state: PyTree, observation: Array, carry: PyTree, key: Array) -> tuple[Array, PyTree]:
            params, moments = state
            if algorithm.normalize_observations:
                observation = algorithm.normalize_obs(moments, observation)
            batch = observation[None]
            if not mode:
                return algorithm.actor.apply(params, batch, key, method="act")[0], carry
            action = algorithm.actor.apply(params, batch, method="_action_dist").mode()[0]
            if algorithm.discrete:
                return action, carry
            return jnp.clip(action, *algorithm.actor.action_range), carry

        return act

    def train(self, seed: int) -> tuple[PyTree, int]:
        """(policy and observation statistics, environment steps)."""
        state, _ = common.blocked(self._program(jax.random.PRNGKey(seed)))
        return (state.actor_ts.params, state.obs_rms_state), int(state.global_step)

    def scores(self, state: PyTree) -> dict[str, float]:
        return {"return_mean": self._mode(state), "return_sampled": self._sampled(state)}
