"""Measure what a run would take before it runs: memory by part, compiled programs, steps a second."""

from __future__ import annotations

import copy
import io
import math
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from esrl.algorithms.agent import Agent
from esrl.core.compile_time import compile_seconds
from esrl.core.sharding import AXIS
from esrl.core.types import seed_key
from esrl.envs.base import HostEnv, max_episode_steps_of, on_device
from esrl.envs.objectives import Objective
from esrl.training.budget import Budget
from esrl.training.recipe import Recipe

_STEPS = 100  # of the episodes that are timed
_TIMES = 3
_PYTHON = 256  # pairs at most where Python steps them


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """Compiles a run's programs, times a few steps, and trains nothing.

    Returns:
      `env`, `agent`, `lanes`, `chunk` (pairs, or environments, at once on each device), `devices`, `memory` (bytes on
      each device by part, with a reason), `compiled` (bytes on each device of each program, as the compiler counts:
      `arguments`, `outputs`, `temporary`), `seconds_compile`, `env_steps_per_second` (measured, while every lane
      lives), `seconds_of_training` (of the whole budget at that rate, or None), and `is_objective`, where a step is an
      evaluation.

    Raises:
      EsrlError: a recipe that does not fit.
    """
    budget = Budget(recipe.env_steps, recipe.generations, recipe.seconds).check()
    begun = compile_seconds()
    agent = recipe.build()
    compiled = _compiled(agent)
    seconds = compile_seconds() - begun
    rate, generation = _rate(recipe, agent)
    whole = budget.seconds
    if rate is not None:
        steps = [budget.env_steps, None if budget.generations is None else budget.generations * generation]
        whole = min([n / rate for n in steps if n is not None] + ([] if whole is None else [whole]))
    return {
        "env": recipe.env,
        "agent": agent.name,
        "lanes": agent.plan.lanes,
        "chunk": agent.plan.chunk,
        "devices": agent.plan.devices,
        "memory": [part._asdict() for part in agent.plan.memory],
        "compiled": compiled,
        "seconds_compile": round(seconds, 2),
        "env_steps_per_second": None if rate is None else round(rate, 1),
        "seconds_of_training": None if whole is None else round(whole, 1),
        "is_objective": isinstance(agent.env, Objective),
    }


def _compiled(agent: Agent) -> dict[str, dict[str, int]]:
    """Bytes of an agent's programs; none where Python steps the environment."""
    state = jax.eval_shape(agent.init, jax.eval_shape(lambda: seed_key(0)))
    programs: dict[str, Any] = {}
    if not on_device(agent.env):
        return {}
    if agent.kind == "evolution":  # a run times its two parts, so it compiles them apart
        programs["rollout"] = agent.rollout.lower(state)  # type: ignore[attr-defined]
        programs["update"] = agent.update.lower(state, jax.eval_shape(agent.rollout, state))  # type: ignore[attr-defined]
    else:
        programs["step"] = agent.step.lower(state)  # type: ignore[attr-defined]
    found = {}
    for name, program in programs.items():
        sizes = program.compile().memory_analysis()
        if sizes is None:  # a compiler that does not say
            continue
        found[name] = {
            "arguments": sizes.argument_size_in_bytes,
            "outputs": sizes.output_size_in_bytes,
            "temporary": sizes.temp_size_in_bytes,
        }
    return found


def _rate(recipe: Recipe, agent: Agent) -> tuple[float | None, float]:
    """Environment steps a second of a few steps, with as many lanes at once as in a run, and steps of a generation.

    The first is None where it cannot be timed. Steps are counted as if every lane lived to the end.
    """
    plan = agent.plan
    if agent.kind != "evolution":
        seconds, state = _timed(agent, recipe.seed)
        return int(state.env_steps) / seconds, int(state.env_steps)
    whole = plan.lanes * max_episode_steps_of(agent.env)
    env = shortened(agent.env, _STEPS)
    if env is None:
        return None, whole
    signs = 1 if agent.options.get("antithetic") is False else 2
    chunk, mesh = plan.chunk, None
    if not on_device(agent.env):
        chunk = min(chunk, _PYTHON)
    else:
        mesh = Mesh(np.array(jax.local_devices()[: plan.devices]), (AXIS,))
    options = {"population": chunk * plan.devices * signs, "chunk_pairs": chunk, "memory_gib": None, "mesh": mesh}
    seconds, state = _timed(recipe.override({}, None, options).build(env), recipe.seed)
    # On the device a lane that is done is stepped on; where Python steps, it stands still.
    steps = int(state.env_steps) + (int(state.padded_steps) if on_device(agent.env) else 0)
    return steps / seconds, whole


def shortened(env: Any, steps: int) -> Any | None:
    """The environment with episodes of so many steps at most, or None where its time limit cannot be set."""
    steps = min(steps, max_episode_steps_of(env))
    if isinstance(env, HostEnv):  # a tuple whose fields are set otherwise than an object's
        return env._replace(max_episode_steps=steps)
    try:
        short = copy.copy(env)
        object.__setattr__(short, "max_episode_steps", steps)  # past a frozen dataclass
    except (AttributeError, TypeError, RecursionError):  # fixed, or a wrapper that finds its attributes elsewhere
        return None
    return short


def _timed(agent: Agent, seed: int) -> tuple[float, Any]:
    """Median seconds of a generation, the first one (which compiles) left out, and the state after one."""
    start = agent.init(seed_key(seed))
    state, times = jax.block_until_ready(agent.step(start))[0], []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        jax.block_until_ready(agent.step(start))
        times.append(time.perf_counter() - begun)
    return statistics.median(times), state


def text(found: dict[str, Any], width: int = 110) -> str:
    """The findings of `dry_run` as tables."""
    from rich.console import Console  # here, so that an esrl without its cli extra can say so
    from rich.table import Table

    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    unit = "pairs" if found["memory"] else "environments"
    console.print(
        f"{found['agent']} on {found['env']}: {found['lanes']:,} lanes; {found['chunk']:,} {unit} at once"
        f" on each of {found['devices']} device(s)\n"
    )
    if found["memory"]:
        total = sum(part["bytes"] for part in found["memory"])
        table = Table(box=None, pad_edge=False, show_footer=True, footer_style="bold")
        table.add_column("planned, on each device", footer="total")
        table.add_column("memory", justify="right", footer=size(total))
        table.add_column("of")
        for part in found["memory"]:
            table.add_row(part["name"], size(part["bytes"]), part["why"])
        console.print(table)
        console.print()
    if found["compiled"]:
        table = Table(box=None, pad_edge=False)
        for heading in ("compiled, on each device", "temporary", "arguments", "outputs"):
            table.add_column(heading, justify="left" if "," in heading else "right")
        for name, sizes in found["compiled"].items():
            table.add_row(name, *(size(sizes[part]) for part in ("temporary", "arguments", "outputs")))
        console.print(table)
        kept = "; a run finds the programs in the cache" if jax.config.jax_compilation_cache_dir else ""
        console.print(f"\ncompiling took {found['seconds_compile']:.1f} s{kept}")
    if found["env_steps_per_second"]:
        whole = f"the whole budget in about {_duration(found['seconds_of_training'])}, evaluations apart"
        what = "evaluations/s" if found["is_objective"] else "steps/s while every lane lives"
        console.print(f"{found['env_steps_per_second']:,.0f} {what} (measured); {whole}")
    else:
        console.print("steps/s were not measured: the environment's time limit cannot be set")
    file: Any = console.file
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
