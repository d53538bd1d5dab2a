"""Tables that say what will be perturbed, and how."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from esrl.algorithms.agent import Agent, Plan
from esrl.envs.base import max_episode_steps_of, name_of
from esrl.perturbation.noise import Leaf


def describe(agent: Agent, width: int = 110) -> str:
    """A table of an agent's parameters: leaf and shape; for evolution strategies also low-rank or dense noise and why,
    and random numbers per member.

    Args:
      agent: from `esrl.eggroll` or another constructor.
      width: of the text, in characters.
    """
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    console.print(f"{agent.name} on {name_of(agent.env)}, horizon {max_episode_steps_of(agent.env)}")
    console.print(f"observations {agent.env.observation_space}\nactions {agent.env.action_space}\n")
    plan = agent.plan
    console.print(_perturbed(plan) if plan.noise_floats else _plain(plan))
    if plan.noise_floats:
        ratio = plan.weights / plan.noise_floats
        console.print(
            f"\n{ratio:.1f} times fewer random numbers than dense noise; {plan.lanes:,} episodes a generation,"
        )
        kind = agent.options.get("distribution", "normal")
        console.print(f"{kind} noise, {plan.noise_bytes:,} bytes for each member;")
        console.print(f"{plan.chunk:,} pairs at once on each of {plan.devices} device(s)")
    else:
        console.print(f"\ntrained by gradients; {plan.lanes:,} environments side by side on {plan.devices} device(s)")
    return _text(console)


def _plain(plan: Plan) -> Table:
    """Parameters that are not perturbed."""
    table = Table(box=None, pad_edge=False, show_footer=True, footer_style="bold")
    table.add_column("leaf", footer="total", overflow="fold")
    table.add_column("shape", footer=f"{plan.weights:,} weights")
    for leaf in plan.leaves:
        table.add_row(leaf.path, _shape(leaf))
    return table


def _perturbed(plan: Plan) -> Table:
    """Parameters, how each is perturbed, why, and random numbers per member."""
    table = Table(box=None, pad_edge=False, show_footer=True, footer_style="bold")
    table.add_column("leaf", footer="total", overflow="fold")
    table.add_column("shape", footer=f"{plan.weights:,} weights")
    table.add_column("noise")
    table.add_column("why", overflow="fold")
    table.add_column("floats per member", justify="right", footer=f"{plan.noise_floats:,}")
    for leaf in plan.leaves:
        table.add_row(leaf.path, _shape(leaf), _kind(leaf), leaf.why, f"{leaf.floats:,}")
    return table


def _text(console: Console) -> str:
    file: Any = console.file
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _shape(leaf: Leaf) -> str:
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    m, n = leaf.sides
    return f"{shape} ({m}x{n})" if leaf.rank and len(leaf.shape) > 2 else shape


def _kind(leaf: Leaf) -> str:
    return f"rank {leaf.rank}" if leaf.rank else "dense"
