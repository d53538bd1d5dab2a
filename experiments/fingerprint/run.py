"""Did a change of the code change what is trained? Prints a hash of small runs of every kind of agent.

    python -m experiments.fingerprint.run                      # one line for each run
    python -m experiments.fingerprint.run --write before.json  # keep them
    python -m experiments.fingerprint.run --compare before.json  # exit status 1 when one differs

A hash covers every parameter, the metrics of each generation and the returns of held-out episodes, bit for bit. It
holds for one machine and one version of JAX: the compiler decides the order of sums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import esrl

GENERATIONS = 3
SMALL: dict[str, Any] = {"population": 16, "sigma": 0.1}
DEVICE, BOUNDED = "gymnasium/phys2d/CartPole-v1", "gymnasium/phys2d/Pendulum-v0"
HOST = "gymnasium/CartPole-v1"
PPO: dict[str, Any] = {
    "num_envs": 8, "num_steps": 16, "num_epochs": 2, "num_minibatches": 4,
    "learning_rate": 3e-4, "entropy_coef": 0.0,  # the defaults when before.json was measured
}  # fmt: skip

RUNS: dict[str, Callable[[], Any]] = {
    "eggroll, rank 1": lambda: esrl.eggroll(DEVICE, esrl.mlp((16, 16)), **SMALL),
    "eggroll, rank 4": lambda: esrl.eggroll(BOUNDED, esrl.mlp((32, 32), "tanh"), rank=4, **SMALL),
    "eggroll, streamed": lambda: esrl.eggroll(
        DEVICE, esrl.mlp((16,)), population=64, chunk_pairs=8, episodes_per_member=2
    ),
    "eggroll, rademacher int8": lambda: esrl.eggroll(
        DEVICE, esrl.mlp((16, 16)), noise_distribution="rademacher", noise_dtype="int8", **SMALL
    ),
    "eggroll, bfloat16": lambda: esrl.eggroll(BOUNDED, esrl.mlp((16, 16)), precision="bfloat16", **SMALL),
    "eggroll, gru": lambda: esrl.eggroll(BOUNDED, esrl.gru(16), deterministic=False, **SMALL),
    "eggroll, unpaired, paper's step": lambda: esrl.eggroll(
        DEVICE,
        esrl.mlp((16,)),
        antithetic=False,
        shaping="leave_one_out",
        gradient_scale="paper",
        optimizer="sgd",
        momentum=0.9,
        sigma_decay=0.99,
        max_grad_norm=1.0,
        weight_decay=0.01,
        **SMALL,
    ),
    "eggroll, thin": lambda: esrl.eggroll(
        DEVICE, esrl.mlp((16, 16)), max_excess_variance=0.3, shaping="z_score", **SMALL
    ),
    "eggroll, navix cnn": lambda: esrl.eggroll(
        "navix/Navix-Empty-5x5-v0", esrl.cnn((4,), (16,)), deterministic=False, population=8
    ),
    "open_es": lambda: esrl.open_es(BOUNDED, esrl.mlp((16, 16)), **SMALL),
    "ppo": lambda: esrl.ppo(DEVICE, esrl.mlp((16, 16)), **PPO),
    "ppo, box": lambda: esrl.ppo(
        BOUNDED, esrl.mlp((16, 16)), critic="shared", clip_value=True, **PPO | {"entropy_coef": 0.01}
    ),
    "ppo, gru": lambda: esrl.ppo(BOUNDED, esrl.gru(16), anneal_steps=1e4, **PPO),
    "eggroll, brax": lambda: esrl.eggroll(
        "brax/inverted_pendulum", esrl.mlp((16, 16)), reward_offset=-1.0, population=16
    ),
    "eggroll, host": lambda: esrl.eggroll(HOST, esrl.mlp((16, 16)), **SMALL),
    "eggroll, host, one process": lambda: esrl.eggroll(f"{HOST}?vectorization=sync", esrl.mlp((16,)), **SMALL),
    "eggroll, host, workers": lambda: esrl.eggroll(f"{HOST}?vectorization=workers&workers=2", esrl.gru(8), **SMALL),
    "open_es, envpool": lambda: esrl.open_es("envpool/CartPole-v1", esrl.mlp((16,)), **SMALL),
    "ppo, host": lambda: esrl.ppo(HOST, esrl.mlp((16, 16)), **PPO),
}


def fingerprint(agent: Any, seed: int = 0) -> str:
    """Sixteen hexadecimal digits of a short training: parameters, metrics, and held-out returns."""
    digest = hashlib.sha256()
    state = agent.init(jax.random.key(seed, impl="threefry2x32"))
    for _ in range(GENERATIONS):
        state, metrics = agent.step(state)
        for name in sorted(metrics):
            digest.update(f"{name}={np.asarray(metrics[name]).tobytes().hex()};".encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]:
        digest.update(f"{jax.tree_util.keystr(path)}={np.asarray(leaf).tobytes().hex()};".encode())
    digest.update(np.asarray(esrl.evaluate(agent, state, episodes=8, seed=seed).returns).tobytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, help="a JSON file to write the hashes to")
    parser.add_argument("--compare", type=Path, help="a JSON file to compare them with")
    parser.add_argument("--only", default="", help="a part of the names of the runs to make")
    given = parser.parse_args()
    esrl.configure(cpu_devices=2)  # the number of devices decides the order of sums
    kept = json.loads(given.compare.read_text())["hashes"] if given.compare else {}
    found, different = {}, 0
    for name, make in RUNS.items():
        if given.only in name:
            found[name] = fingerprint(make())
            known = kept.get(name)
            different += bool(kept) and known != found[name]
            mark = "" if not kept else "  same" if known == found[name] else f"  DIFFERS from {known}"
            print(f"{name:34s}{found[name]}{mark}", flush=True)
    if given.write:
        about = {"jax": jax.__version__, "python": platform.python_version(), "machine": platform.machine()}
        given.write.write_text(json.dumps({**about, "hashes": found}, indent=1) + "\n")
    print(f"{len(found)} runs" + (f", {different} differ" if kept else ""))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
