"""brax.training's PPO, as a side of ppo.py: its own training loop, wrappers and networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrl.core.types import Array, PyTree
from esrl.envs.base import horizon_of
from experiments.peers import common


def _replicated(tree: PyTree, devices: list[Any]) -> PyTree:
    """`jax.device_put_replicated`, which brax 0.14.2 calls and JAX 0.10 no longer has."""
    place = NamedSharding(Mesh(np.array(devices), ("i",)), PartitionSpec("i"))
    return jax.tree.map(lambda x: jax.device_put(jnp.stack([jnp.asarray(x)] * len(devices)), place), tree)


@contextlib.contextmanager
def _patched(seen: list[Any]) -> Iterator[None]:
    """Gives brax the function that it misses, and notes its compiled epoch with the shapes of its arguments."""
    pmap = jax.pmap

    def noting(fn: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        mapped = pmap(fn, *arguments, **options)

        def call(*given: Any) -> Any:
            if getattr(fn, "__name__", "") == "training_epoch" and not seen:
                seen.append((mapped, jax.eval_shape(lambda *x: x, *given)))
            return mapped(*given)

        return call

    jax.pmap, jax.device_put_replicated = noting, _replicated
    try:
        yield
    finally:
        jax.pmap = pmap
        del jax.device_put_replicated


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
        self._scorers: list[Callable[[PyTree], float]] = []

    def train(self, seed: int) -> tuple[PyTree, int]:
        """(its parameters, environment steps)."""
        from brax.training.agents.ppo import networks, train

        widths = {"policy_hidden_layer_sizes": self.config["policy"], "value_hidden_layer_sizes": self.config["value"]}
        options = {name: value for name, value in self.config.items() if name not in ("policy", "value")}
        seen: list[Any] = []
        steps: list[int] = []
        with _patched(seen):
            make_policy, params, _ = train.train(
                environment=self.env.env,
                num_timesteps=self.env_steps,
                episode_length=horizon_of(self.env),
                network_factory=lambda *a, **k: networks.make_ppo_networks(*a, **k, **widths),
                policy_params_fn=lambda now, *_: steps.append(now),
                num_evals=1,
                run_evals=False,
                seed=seed,
                **options,
            )
        common.blocked(params)
        if not self._scorers:
            self._make_policy, self._epoch = make_policy, seen[0]
            self._scorers = [common.scorer(self.env, partial(self._act, mode)) for mode in (True, False)]
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

    def scores(self, state: PyTree) -> dict[str, float]:
        return dict(zip(("return_mean", "return_sampled"), (score(state) for score in self._scorers), strict=True))
