"""The other sides of ppo.py: rejax's PPO and brax.training's, each with its own training loop and networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrl.core.types import Array, PyTree
from esrl.envs.base import max_episode_steps_of
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
        self.scores = common.scores(env, (partial(self._act, mode) for mode in (True, False)))

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


def _replicated(tree: PyTree, devices: list[Any]) -> PyTree:
    """`jax.device_put_replicated`, which brax 0.14.2 calls and JAX 0.10 no longer has."""
    place = NamedSharding(Mesh(np.array(devices), ("i",)), PartitionSpec("i"))
    return jax.tree.map(lambda x: jax.device_put(jnp.stack([jnp.asarray(x)] * len(devices)), place), tree)


def _noting(seen: list[Any]) -> Callable[..., Any]:
    """`jax.pmap`, but it notes brax's compiled epoch with the shapes of its arguments."""
    pmap = jax.pmap

    def noting(fn: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        mapped = pmap(fn, *arguments, **options)

        def call(*given: Any) -> Any:
            if getattr(fn, "__name__", "") == "training_epoch" and not seen:
                seen.append((mapped, jax.eval_shape(lambda *x: x, *given)))
            return mapped(*given)

        return call

    return noting


class Brax:
    """`brax.training.agents.ppo` on one environment, on all of JAX's devices, without its evaluations.

    Its training function compiles anew in every call, which the stopwatch takes off.

    Args:
      env: the same environment from `esrl.make`; brax wraps the Brax environment inside it.
      config: arguments of its training function; `policy` and `value` are layer widths.
      env_steps: budget, rounded up to whole training steps.
    """

    def __init__(self, env: Any, config: dict[str, Any], env_steps: int) -> None:
        self.env, self.config, self.env_steps = env, config, env_steps
        self._epoch: Any = None
        self.scores = common.scores(env, (partial(self._act, mode) for mode in (True, False)))

    def train(self, seed: int) -> tuple[PyTree, int]:
        """(its parameters, environment steps)."""
        from brax.training.agents.ppo import networks, train

        widths = {"policy_hidden_layer_sizes": self.config["policy"], "value_hidden_layer_sizes": self.config["value"]}
        options = {name: value for name, value in self.config.items() if name not in ("policy", "value")}
        seen: list[Any] = []
        steps: list[int] = []
        missed = mock.patch.object(jax, "device_put_replicated", _replicated, create=True)
        with missed, mock.patch.object(jax, "pmap", _noting(seen)):
            make_policy, params, _ = train.train(
                environment=self.env.env,
                num_timesteps=self.env_steps,
                episode_length=max_episode_steps_of(self.env),
                network_factory=lambda *a, **k: networks.make_ppo_networks(*a, **k, **widths),
                policy_params_fn=lambda now, *_: steps.append(now),
                num_evals=1,
                run_evals=False,
                seed=seed,
                **options,
            )
        common.blocked(params)
        if self._epoch is None:
            self._make_policy, self._epoch = make_policy, seen[0]
        return params, steps[-1]

    def _act(self, mode: bool) -> common.Act:
        def act(params: PyTree, observation: Array, carry: PyTree, key: Array) -> tuple[Array, PyTree]:
            return self._make_policy(params, deterministic=mode)(observation, key)[0], carry

        return act

    @cached_property
    def mib(self) -> float:
        """Of an epoch's program; compiles it once more."""
        mapped, shapes = self._epoch
        return common.mib(mapped.lower(*shapes).compile(), len(jax.local_devices()))
