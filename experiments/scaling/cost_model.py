"""What does a generation cost on n hosts: compute, bytes, latency, stragglers; and what would it on 1,024 devices?

    python -m experiments.scaling.cost_model                 # measures the constants here, checks, extrapolates
    python -m experiments.scaling.cost_model --no-measure    # from the constants that are there

The model of a generation of N members (P pairs, T steps, D parameters, R random numbers of a member) on n hosts of one
device each:

    compute  = a0 + (a1 + a2 D) N T E / n + a3 P R / m + a4 D          m = n with sums, 1 with scalars
    bytes    = 32 N + (8 D 2 (n - 1) / n with sums)                     received by a host, over the bandwidth
    latency  = collectives x latency x log2 n
    waiting  = compute x spread x sqrt(2 log n)                         the slowest of n, for normal spread

a0 .. a4 are fitted (without negative ones) to the processor's seconds of one process; latency and bandwidth are those
of gathering between two processes over the virtual link; spread is how much generations of one process differ. On this
machine n processes share its cores, so the check compares the processor's seconds of a process, in which it makes no
difference how many wait beside it. What it leaves out: links that several hosts share, collectives that run beside
compute, devices that are faster than this processor by other factors in a1 than in a3.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from experiments import script
from experiments.lab.store import results
from experiments.scaling.starting import measure

RESULTS = results("scaling")
EPISODES = 2  # of a member, esrl's default
ROW = 32  # bytes of a member's results
FITTED = [(32, 8, 20), (512, 8, 20), (32, 128, 20), (256, 128, 20), (32, 256, 20), (128, 32, 100)]
CHECKED = [(128, 32, 20), (128, 128, 20)]
SIZES = (64, 1 << 22)  # bytes that are gathered: latency, bandwidth


@dataclass(frozen=True)
class Options:
    generations: int = 10  # that are timed
    measure: bool = True


class Constants(NamedTuple):
    """Seconds (a0 .. a4, latency), bytes a second, and the spread of a generation's seconds."""

    a0: float
    a1: float
    a2: float
    a3: float
    a4: float
    latency: float
    bandwidth: float
    spread: float


class Cost(NamedTuple):
    """Seconds of a generation by what they go into."""

    compute: float
    transfer: float
    latency: float
    waiting: float


def features(row: dict[str, Any], hosts: int, exchange: str) -> list[float]:
    """What a0 .. a4 are multiplied by."""
    lane_steps = row["population"] * EPISODES * row["steps"] / hosts
    drawn = row["population"] / 2 * row["num_random"] / (hosts if exchange == "sums" else 1)
    return [1.0, lane_steps, lane_steps * row["num_params"], drawn, row["num_params"]]


def cost(constants: Constants, row: dict[str, Any], hosts: int, exchange: str) -> Cost:
    """The model."""
    compute = float(np.dot(constants[:5], features(row, hosts, exchange)))
    if hosts == 1:
        return Cost(compute, 0.0, 0.0, 0.0)
    sums = 8 * row["num_params"] * 2 * (hosts - 1) / hosts if exchange == "sums" else 0.0
    return Cost(
        compute,
        (ROW * row["population"] + sums) / constants.bandwidth,
        row["collectives"] * constants.latency * math.log2(hosts),
        compute * constants.spread * math.sqrt(2 * math.log(hosts)),
    )


def fitted(rows: list[dict[str, Any]], gathered: list[dict[str, Any]]) -> Constants:
    """The constants, from one process's settings and from what two gathered."""
    table = np.array([features(row, 1, "sums") for row in rows])
    seconds = np.array([row["processor_seconds"] for row in rows])
    found = nnls(table / seconds[:, None], np.ones(len(rows)))[0]  # relative errors: small settings count as well
    small, large = (row["seconds_low"] for row in gathered)
    bandwidth = (SIZES[1] - SIZES[0]) / max(large - small, 1e-9)
    spread = float(np.median([(row["seconds_high"] - row["seconds_low"]) / row["seconds"] for row in rows])) / 3
    a0, a1, a2, a3, a4 = map(float, found)
    return Constants(a0, a1, a2, a3, a4, small, bandwidth, spread)


def settings(points: list[tuple[int, int, int]], exchanges: tuple[str, ...]) -> list[dict[str, Any]]:
    """Population, width and steps, as `worker` takes them."""
    names = ("population", "width", "steps")
    return [dict(zip(names, point, strict=True)) | {"exchange": e} for e in exchanges for point in points]


def checked(constants: Constants, generations: int) -> pd.DataFrame:
    """Processor's seconds of a process, predicted and measured, with 1, 2 and 4 processes."""
    found = []
    for hosts in (1, 2, 4):
        exchanges = ("sums",) if hosts == 1 else ("sums", "scalars")
        for row in measure(hosts, settings(CHECKED, exchanges), generations):
            predicted = cost(constants, row, hosts, row["exchange"]).compute
            found.append(
                {name: row[name] for name in ("processes", "exchange", "population", "num_params", "collectives")}
                | {"predicted": predicted, "measured": row["processor_seconds"], "wall": row["seconds"]}
            )
    return pd.DataFrame(found)


def extrapolated(constants: Constants, collectives: int) -> pd.DataFrame:
    """64 members a device, one device a host, at three sizes of the network."""
    found = []
    for params in (10_000, 1_000_000, 100_000_000):
        for hosts in (1, 8, 64, 1024):
            row = {"population": 64 * hosts, "steps": 1000, "num_params": params, "collectives": collectives}
            row["num_random"] = 2 * math.isqrt(params)  # one square matrix, rank 1
            alone = sum(cost(constants, row | {"population": 64}, 1, "sums"))
            for exchange in ("sums", "scalars"):
                parts = cost(constants, row, hosts, exchange)
                found.append(
                    {"num_params": params, "devices": hosts, "exchange": exchange, **parts._asdict()}
                    | {"efficiency": alone / sum(parts)}
                )
    return pd.DataFrame(found)


def main() -> None:
    options = script.options(Options, __doc__)
    script.at_least(options, 3, "generations")
    path = RESULTS / "cost_model.json"
    if options.measure:
        path.parent.mkdir(exist_ok=True)
        rows = measure(1, settings(FITTED, ("sums",)), options.generations)
        gathered = measure(2, [], 0, SIZES)
        constants = fitted(rows, gathered)
        check = checked(constants, options.generations)
        check.to_csv(RESULTS / "cost_model_check.csv", index=False)
        path.write_text(json.dumps(constants._asdict(), indent=1) + "\n")
    constants, check = Constants(**json.loads(path.read_text())), pd.read_csv(RESULTS / "cost_model_check.csv")
    table = extrapolated(constants, int(check["collectives"].max()))
    table.to_csv(RESULTS / "cost_model.csv", index=False)
    print(
        constants, check.to_string(index=False), table.to_string(index=False, float_format="{:.4g}".format), sep="\n\n"
    )


if __name__ == "__main__":
    main()
