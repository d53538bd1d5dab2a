"""How many bytes does a generation send, by population and by size of the network, with sums and with scalars alone?

    python -m experiments.scaling.wire                  # two hosts, each a network namespace; a few minutes
    python -m experiments.scaling.wire --no-measure     # the figure alone, from the results that are there
    python -m experiments.scaling.wire --lanes          # PPO and EGGROLL-AC instead, which send steps and gradients

Bytes are those that left the first host's end of the virtual link, of Ethernet and TCP too, divided by the generations.
Beside them stands what a generation would send from one host to another if every member's parameters travelled, 4 bytes
each: that is computed, not measured. Needs the right to make namespaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

from experiments import script
from experiments.lab.figures import begin, save
from experiments.lab.store import results
from experiments.scaling.namespaces import allowed
from experiments.scaling.starting import measure

RESULTS = results("scaling")
POPULATIONS, WIDTHS = (32, 128, 512), (8, 32, 128, 512)
MIDDLE = {"population": 128, "width": 32}  # what the other factor has while one varies
STEPS = 10  # of an episode: bytes do not depend on them
LANES = {"num_envs": 16, "num_steps": 32, "num_minibatches": 4, "num_epochs": 4}
NAMES = {"sums": "sums", "scalars": "scalars alone"}


@dataclass(frozen=True)
class Options:
    generations: int = 10  # that are counted
    measure: bool = True
    lanes: bool = False  # of the agents that step lanes


def settings() -> list[dict[str, Any]]:
    """Population and width, each varied by itself, with both exchanges."""
    grid = [{**MIDDLE, "population": n} for n in POPULATIONS] + [{**MIDDLE, "width": n} for n in WIDTHS]
    found = []
    for exchange in NAMES:
        for point in grid:
            setting = {**point, "exchange": exchange, "steps": STEPS}
            if setting not in found:
                found.append(setting)
    return found


def lanes_settings() -> list[dict[str, Any]]:
    """Steps of a generation, gradient steps and width, each varied by itself, of PPO and of EGGROLL-AC."""
    points = [{}, {"num_envs": 64}, {"num_epochs": 1}, {"width": 128}]
    return [
        {"agent": agent, "width": MIDDLE["width"], "steps": STEPS, **LANES, **point}
        for agent in ("ppo", "eggroll_ac")
        for point in points
    ]


def draw(rows: pd.DataFrame) -> None:
    """Bytes against population and against the number of parameters, a line for each exchange."""
    begin()
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
    fixed = {"population": "width", "num_params": "population"}
    labels = {"population": "members of a generation", "num_params": "parameters"}
    for axes, (x, other) in zip(panels, fixed.items(), strict=True):
        part = rows[rows[other] == MIDDLE[other]]
        for exchange, name in NAMES.items():
            line = part[part["exchange"] == exchange].sort_values(x)
            axes.plot(line[x], line["tx_bytes"], marker="o", ms=4, label=name)
        line = part[part["exchange"] == "sums"].sort_values(x)
        axes.plot(
            line[x], 4 * line["population"] * line["num_params"], ls="--", color="0.5", label="every member (computed)"
        )
        axes.set(xscale="log", yscale="log", xlabel=labels[x])
    panels[0].set_xticks(POPULATIONS, [str(n) for n in POPULATIONS])
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("bytes sent by a host, a generation")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    save(figure, RESULTS / "wire.png")


def measure_lanes(generations: int) -> None:
    """Writes wire_lanes.csv."""
    rows = pd.DataFrame(measure(2, lanes_settings(), generations, timed=False))
    columns = ["processes", "agent", *LANES, "width", "num_params", "generations"]
    rows = rows[[*columns, "tx_bytes", "rx_bytes", "tx_packets", "rx_packets"]]
    rows.to_csv(RESULTS / "wire_lanes.csv", index=False)
    print(rows.to_string(index=False))


def main() -> None:
    options = script.options(Options, __doc__)
    script.at_least(options, 1, "generations")
    path = RESULTS / "wire.csv"
    if (options.measure or options.lanes) and not allowed():
        script.wrong("network namespaces cannot be made here; run it as root on Linux, or draw with --no-measure")
    if options.lanes:
        return measure_lanes(options.generations)
    if options.measure:
        rows = pd.DataFrame(measure(2, settings(), options.generations, timed=False))
        columns = ["processes", "exchange", "population", "width", "num_params", "generations"]
        rows["computed_every_member"] = 4 * rows["population"] * rows["num_params"]
        rows = rows[[*columns, "tx_bytes", "rx_bytes", "tx_packets", "rx_packets", "computed_every_member"]]
        path.parent.mkdir(exist_ok=True)
        rows.to_csv(path, index=False)
    rows = pd.read_csv(path)
    draw(rows)
    print(rows.to_string(index=False))


if __name__ == "__main__":
    main()
