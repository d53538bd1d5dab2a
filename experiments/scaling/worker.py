"""One process of those that the scripts here start: it trains settings one after the other, and prints what each took.

    python -m experiments.scaling.worker JSON       # settings, generations, coordinator, processes, process_id

A line of JSON for each setting: bytes and packets that left this host and reached it, by the counters of its link, and
seconds, of the wall and of the processor, for each generation.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import esrl
from esrl.core import processes

ENV = "gymnax/CartPole-v1"
LINK = Path("/sys/class/net/eth0/statistics")
COUNTERS = ("tx_bytes", "rx_bytes", "tx_packets", "rx_packets")


def counted() -> dict[str, int]:
    """The counters of this host's link; nothing where it has none of its own."""
    return {name: int((LINK / name).read_text()) for name in COUNTERS} if LINK.exists() else {}


def made(setting: dict[str, Any]) -> Any:
    """The agent of a setting: EGGROLL, or one that steps lanes by `agent`, num_envs and num_steps."""
    env, network = f"{ENV}?max_episode_steps={setting['steps']}", esrl.mlp((setting["width"],) * 2)
    if (name := setting.get("agent", "eggroll")) == "eggroll":
        told = {"population": setting["population"], "exchange": setting["exchange"]}
        return esrl.eggroll(env, network, **told, signal_sigma=False)
    lanes = {key: setting[key] for key in ("num_envs", "num_steps", "num_minibatches", "num_epochs")}
    return getattr(esrl, name)(env, network, **lanes)


def measured(setting: dict[str, Any], generations: int) -> dict[str, Any]:
    """What a generation of a setting takes, after two that compile and connect."""
    agent = made(setting)
    state = agent.init(jax.random.key(0))
    step: Any = agent.step  # a `Compiled`
    program = step.lower(jax.eval_shape(lambda x: x, state)).as_text()
    for _ in range(2):
        state, _ = agent.step(state)
    jax.block_until_ready(state)
    processes.gather(b"ready")
    before, wall, busy, seconds = counted(), time.perf_counter(), time.process_time(), []
    for _ in range(generations):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(agent.step(state))
        seconds.append(time.perf_counter() - begun)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    after = counted()
    processes.gather(b"ready")
    return {
        **setting,
        "num_params": agent.plan.num_params,
        "num_random": agent.plan.num_random,
        "devices": agent.plan.devices,
        "collectives": len(re.findall(r"stablehlo\.all_(?:gather|reduce)", program)),
        "generations": generations,
        **{name: (after[name] - before[name]) / generations for name in after},
        "seconds": float(np.median(seconds)),
        "seconds_low": float(np.min(seconds)),
        "seconds_high": float(np.max(seconds)),
        "seconds_mean": wall / generations,
        "processor_seconds": busy / generations,
    }


def collective(size: int, times: int) -> dict[str, Any]:
    """Seconds of a gathering of `size` bytes of each process."""
    block, seconds = bytes(size), []
    processes.gather(block)
    for _ in range(times):
        begun = time.perf_counter()
        processes.gather(block)
        seconds.append(time.perf_counter() - begun)
    return {"gathered_bytes": size, "seconds": float(np.median(seconds)), "seconds_low": float(np.min(seconds))}


def main() -> None:
    told = json.loads(sys.argv[1])
    if told.get("coordinator"):
        esrl.join(told["coordinator"], told["processes"], told["process_id"])
    for setting in told["settings"]:
        print(json.dumps({"processes": told["processes"], **measured(setting, told["generations"])}), flush=True)
    for size in told.get("gather", ()):
        print(json.dumps({"processes": told["processes"], **collective(size, 20)}), flush=True)


if __name__ == "__main__":
    main()
