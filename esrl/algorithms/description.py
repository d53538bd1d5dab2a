"""`esrl.describe`: a table of what will be perturbed, and how."""

from __future__ import annotations

import io
from typing import Any

from esrl.algorithms.agent import Agent, Plan
from esrl.core.extras import import_extra
from esrl.envs.base import max_episode_steps_of, name_of
from esrl.envs.objectives import Objective, unit_of
from esrl.perturbation.noise import Leaf


def describe(agent: Agent, width: int = 110) -> str:
    """A table of an agent's parameters: leaf and shape; for evolution strategies also low-rank or dense noise and why,
    and random numbers per member.

    Args:
      agent: from `esrl.eggroll` or another constructor.
      width: of the text, in characters.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), rank=1)
      >>> "rank 1" in esrl.describe(agent)
      True
    """
    plain = {"force_terminal": False, "force_jupyter": False, "highlight": False}  # a notebook would show it itself
    console = _rich("console").Console(file=io.StringIO(), width=width, **plain)
    limit, each = max_episode_steps_of(agent.env), unit_of(agent.env)[1]
    if isinstance(agent.env, Objective):
        who = "all members" if agent.env.shared == "population" else "both members of a pair"
        console.print(f"{agent.name} on {name_of(agent.env)}, an objective; {who} get the same keys")
        console.print(f"inputs {agent.env.observation_space}\noutputs {agent.env.action_space.shape[0]}\n")
    else:
        console.print(f"{agent.name} on {name_of(agent.env)}, at most {limit:,} steps an episode")
        console.print(f"observations {agent.env.observation_space}\nactions {agent.env.action_space}\n")
    plan = agent.plan
    evolves = agent.kind == "evolution"
    console.print(_perturbed(plan) if evolves else _plain(plan))
    if evolves:
        ratio = plan.num_params / plan.num_random
        console.print(f"\n{ratio:.1f} times fewer random numbers than dense noise; {plan.lanes:,} {each} a generation,")
        console.print(f"{plan.noise_bytes:,} bytes of noise for each member;")
        console.print(f"{plan.chunk:,} pairs at once on each of {plan.devices} device(s)")
    elif agent.kind == "random":
        console.print("\nevery allowed action is equally likely; nothing is trained")
    elif agent.kind == "actor_critic":
        console.print(f"\n{plan.lanes:,} environments side by side on {plan.devices} device(s)")
    else:
        console.print(f"\ntrained by gradients; {plan.lanes:,} environments side by side on {plan.devices} device(s)")
    return _text(console)


def _plain(plan: Plan) -> Any:
    """Parameters that are not perturbed."""
    table = _rich("table").Table(box=None, pad_edge=False, show_footer=True, footer_style="bold")
    table.add_column("leaf", footer="total", overflow="fold")
    table.add_column("shape", footer=f"{plan.num_params:,} weights")
    if plan.leaves:
        table.add_column("trained by")
    for leaf in (*plan.leaves, *plan.frozen):
        table.add_row(leaf.path, _shape(leaf), leaf.reason)
    return table


def _perturbed(plan: Plan) -> Any:
    """Parameters, how each is perturbed, why, and random numbers per member."""
    table = _rich("table").Table(box=None, pad_edge=False, show_footer=True, footer_style="bold")
    table.add_column("leaf", footer="total", overflow="fold")
    table.add_column("shape", footer=f"{plan.num_params:,} weights")
    table.add_column("noise")
    table.add_column("why", overflow="fold")
    table.add_column("floats per member", justify="right", footer=f"{plan.num_random:,}")
    for leaf in plan.leaves:
        table.add_row(leaf.path, _shape(leaf), _kind(leaf), leaf.reason, f"{leaf.num_random:,}")
    for leaf in plan.frozen:
        table.add_row(leaf.path, _shape(leaf), "none", leaf.reason, "0")
    return table


def _text(console: Any) -> str:
    file: Any = console.file
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _shape(leaf: Leaf) -> str:
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    m, n = leaf.matrix_shape
    return f"{shape} ({m}x{n})" if leaf.rank and len(leaf.shape) > 2 else shape


def _kind(leaf: Leaf) -> str:
    return f"rank {leaf.rank}" if leaf.rank else "dense"


def _rich(module: str) -> Any:
    return import_extra(f"rich.{module}", "cli", "esrl.describe")
