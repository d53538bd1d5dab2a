"""One process of those that the tests start: it joins the others, and trains what it is told.

    python worker.py JOB.json

The job says coordinator, processes and process_id (none of them: it trains alone), tasks, and where the results go, one
file of arrays for each task. A task is plain data: see `DOES`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

if importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")):  # as in conftest.py
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

import jax
import numpy as np
from jax.sharding import Mesh
from probes import Walk

import esrl
from esrl.core import processes, sharding
from esrl.core.sharding import here
from esrl.training import budget, loop

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

_STEP = {"num_envs": 16, "num_steps": 8, "num_minibatches": 2, "num_epochs": 2}
AGENTS: dict[str, dict[str, Any]] = {
    "eggroll": {"population": 16},
    "open_es": {"population": 16, "optimizer": "adam"},
    "eggroll_ac": _STEP,
    "ppo": _STEP,
}


def made(agent: str, **options: Any) -> Any:
    """An agent on the tests' random walk."""
    return getattr(esrl, agent)(Walk(), esrl.mlp((8,)), **AGENTS[agent] | options)


def generations(agent: str, number: int, devices: int | None = None, **options: Any) -> dict[str, Any]:
    """Parameters after some generations, and what each member (or lane) got in each of them.

    Args:
      devices: only so many of this process's.
    """
    if devices is not None:
        sharding.default_mesh = lambda _: Mesh(np.array(jax.local_devices()[:devices]), (sharding.AXIS,))
    it = made(agent, **options)

    def one(state: Any, _: Any) -> tuple[Any, Any]:
        experience = it.rollout(state)
        seen = experience.fitness if it.kind == "evolution" else experience.trajectory.rewards
        return it.update(state, experience)[0], seen

    state = it.init(jax.random.key(3))  # one program for all generations: compiling is what takes the time
    state, fitness = jax.jit(lambda state: jax.lax.scan(one, state, length=number))(state)
    return {"fitness": np.asarray(here(fitness)), **_flat(it.acts_by(state), "acts"), **_flat(state.params, "params")}


class Told:
    """A tracker that counts what it is told."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]  # begun, rows, ended

    def start(self, *_: Any, **__: Any) -> None:
        self.counts[0] += 1

    def log(self, *_: Any, **__: Any) -> None:
        self.counts[1] += 1

    def end(self, *_: Any, **__: Any) -> None:
        self.counts[2] += 1


def train(
    agent: str, options: Any = None, network: Any = None, tick: float = 0.0, tracked: bool = False, **given: Any
) -> dict[str, Any]:
    """Parameters at the end of a run, its last row, and what it raised.

    Args:
      tick: seconds by which this process's clocks go on with each look, rather than with time.
      tracked: whether a tracker is told.
    """
    told: dict[str, Any] = {"raised": ""}
    given |= {"track": Told()} if tracked else {}
    clocks = loop.time, budget.time
    if tick:
        loop.time = budget.time = Ticking(tick)  # type: ignore[assignment]
    try:
        result = esrl.train(made(agent, **options or {}), seed=3, eval_episodes=6, progress=False, **given)
    except (esrl.EsrlError, KeyboardInterrupt) as error:
        return {"raised": f"{type(error).__name__}: {error}"}
    finally:
        loop.time, budget.time = clocks  # type: ignore[assignment]
    told |= {"generation": result.metrics["generation"], "score": result.metrics.get("eval_return_mean", np.nan)}
    told |= {"tracked": np.array(given["track"].counts)} if tracked else {}
    return told | _flat(result.state.params, "params")


class Ticking:
    """A clock in the place of the module `time`, which each look at it finds so many seconds later."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._looks = seconds, 0

    def monotonic(self) -> float:
        self._looks += 1
        return self._seconds * self._looks

    perf_counter = monotonic


def refused(agent: str, env: str | None = None, **options: Any) -> dict[str, Any]:
    """The sentence by which an agent is refused."""
    try:
        esrl.eggroll(env, **options) if env else made(agent, **options)
    except esrl.EsrlError as error:
        return {"raised": str(error)}
    return {"raised": ""}


def copy(source: str, to: str) -> dict[str, Any]:
    """A copy of a folder, made by process 0, when all have come so far."""
    processes.at_first(lambda: None)
    processes.at_first(lambda: shutil.copytree(source, to))
    return {}


def _flat(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(here(tree)))}


DOES = {"generations": generations, "train": train, "refused": refused, "copy": copy}


def main(job: dict[str, Any]) -> None:
    if version := job.get("version"):
        esrl.__version__ = version
    if job.get("slurm"):
        host, _, port = job["coordinator"].rpartition(":")
        told = {
            "NTASKS": job["processes"],
            "PROCID": job["process_id"],
            "LOCALID": 0,
            "JOB_ID": 1,
            "STEP_NODELIST": host,
        }
        os.environ.update({f"SLURM_{name}": str(value) for name, value in told.items()}, JAX_COORDINATOR_PORT=port)
        esrl.join()
    elif job.get("coordinator"):
        esrl.join(job["coordinator"], job["processes"], job["process_id"], patience=job.get("patience", 120.0))
    for name, (does, given) in job["tasks"].items():
        mine = given | given.pop("of_process", {}).get(str(job.get("process_id", 0)), {})
        begun = time.process_time()
        np.savez(Path(job["out"], f"{name}.npz"), **DOES[does](**mine))
        print(name, f"{time.process_time() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text()))
    except esrl.EsrlError as error:
        print(f"worker: {error}", file=sys.stderr)
        processes.leave(2)
        sys.exit(2)
