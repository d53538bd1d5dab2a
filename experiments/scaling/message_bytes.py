"""Bytes of a generation's message to a node, against population and parameters, in both ways to tell.

    python -m experiments.scaling.message_bytes

Counted from the messages that are packed, not computed; beside them what every member's own parameters would take.
Written: results/message_bytes.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax

import esrl
from esrl.cluster import messages
from esrl.cluster.playing import lost_rows, put_together
from esrl.core.types import seed_key
from experiments import script
from experiments.lab.store import results

RESULTS = results("scaling")


@dataclass
class Arguments:
    """The command line."""

    env: str = "gymnasium/Pendulum-v1"
    populations: tuple[int, ...] = (16, 256, 4096)
    widths: tuple[int, ...] = (16, 64, 256)  # of two hidden layers
    out: Path = RESULTS


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    rows = []
    for population in arguments.populations:
        for width in arguments.widths:
            agent = esrl.eggroll(arguments.env, esrl.mlp((width, width)), population=population)
            state, es = jax.device_get(agent.init(seed_key(0))), agent.config
            blank = put_together(es, state.moments, [0, es.pairs], {0: lost_rows(es, state.moments, es.pairs)})
            row = {"population": population, "parameters": agent.plan.num_params}
            row["parameters_mode"] = len(messages.pack(messages.playable(state)))
            row["scalars_mode"] = len(messages.pack(messages.scalars_of(es, blank)))
            row["every_members_parameters"] = 4 * agent.plan.num_params * population
            rows.append(row)
    print(script.table(list(rows[0]), [[f"{value:,}" for value in row.values()] for row in rows]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "message_bytes.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
