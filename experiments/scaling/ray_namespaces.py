"""A Ray cluster whose nodes are in network namespaces of their own, joined by a bridge: the same result, and its bytes.

    sudo -E python -m experiments.scaling.ray_namespaces            # needs the right to make network namespaces

Three namespaces of this machine have an address each on a virtual link, as three machines would: the head with the
driver and no core, and two nodes of one core. A run there has to end with the parameters of the run in one process, bit
for bit, in both ways to tell. The bytes that crossed the head's link are those that the kernel counts, Ray's own
included. Written: results/namespaces.json.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import esrl
from experiments import script
from experiments.lab.store import results

RESULTS = results("scaling")
NAMES = ("esrl-head", "esrl-one", "esrl-two")
BRIDGE, NET, PORT = "esrl-bridge", "10.213.7", 6399
LOCAL = {"block_pairs": 1}


@dataclass
class Arguments:
    """The command line."""

    env: str = "gymnasium/CartPole-v1?vectorization=sync"
    population: int = 16
    hidden: int = 64
    generations: int = 10
    part: str = ""  # "parameters" or "scalars": this process is the driver in the head's namespace
    out: Path = RESULTS


def trained(arguments: Arguments, **options: object) -> tuple[str, list[int]]:
    """The hash of the parameters that a run ends with, and the bytes that it sent in each generation."""
    agent = esrl.eggroll(arguments.env, esrl.mlp((arguments.hidden,)), population=arguments.population)
    given = {**LOCAL, **options}
    result = esrl.train(agent, generations=arguments.generations, num_evals=0, progress=False, **given)  # type: ignore[arg-type]
    words = hashlib.sha256()
    for leaf in jax.tree.leaves(result.state.params):
        words.update(np.asarray(leaf).tobytes())
    return words.hexdigest(), [row["bytes_sent"] for row in result.rows]


def on_link() -> tuple[int, int]:
    """Bytes received and sent by this namespace's link so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("link0:"))
    fields = line.split(":")[1].split()
    return int(fields[0]), int(fields[8])


def drive(arguments: Arguments) -> None:
    """In the head's namespace: a run on the cluster."""
    before = on_link()
    told, sent = trained(arguments, ray_address=f"{NET}.1:{PORT}", workers=2, broadcast=arguments.part)
    after = on_link()
    print(json.dumps({"hash": told, "sent": sent, "link": [b - a for a, b in zip(before, after, strict=True)]}))


def sh(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=check, text=True, capture_output=True)


def up() -> None:
    """Namespaces, a bridge, and a Ray node in each."""
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    sh("ip", "link", "set", BRIDGE, "up")
    for number, name in enumerate(NAMES, 1):
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", f"esrl{number}", "type", "veth", "peer", "name", "link0", "netns", name)
        sh("ip", "link", "set", f"esrl{number}", "master", BRIDGE, "up")
        sh("ip", "-n", name, "addr", "add", f"{NET}.{number}/24", "dev", "link0")
        sh("ip", "-n", name, "link", "set", "link0", "up")
        sh("ip", "-n", name, "link", "set", "lo", "up")
        head: tuple[str, ...] = ("--head", f"--port={PORT}", "--include-dashboard=false", "--disable-usage-stats")
        how = head if number == 1 else (f"--address={NET}.1:{PORT}",)
        how += f"--node-ip-address={NET}.{number}", f"--num-cpus={int(number > 1)}"
        inside(name, str(Path(sys.executable).with_name("ray")), "start", *how, "--object-store-memory=100000000")


def inside(name: str, *words: str) -> str:
    # These networks are seen by nobody else: no token. Ray's messages would go to a proxy, where one is set.
    plain = (
        "env",
        f"no_proxy={NET}.1,{NET}.2,{NET}.3,127.0.0.1",
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_AUTH_MODE=disabled",
    )
    done = sh("ip", "netns", "exec", name, *plain, *words, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return done.stdout


def down() -> None:
    """Ends what was begun in the namespaces, and takes them away."""
    for name in NAMES:
        for process in sh("ip", "netns", "pids", name, check=False).stdout.split():
            sh("kill", "-9", process, check=False)
        sh("ip", "netns", "del", name, check=False)
    sh("ip", "link", "del", BRIDGE, check=False)


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    if arguments.part:
        return drive(arguments)
    alone, _ = trained(arguments)
    rows = {}
    same = [f"--{name}={getattr(arguments, name)}" for name in ("env", "population", "hidden", "generations")]
    try:
        up()
        for part in ("parameters", "scalars"):
            words = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "experiments.scaling.ray_namespaces",
                f"--part={part}",
                *same,
            ]
            rows[part] = json.loads(inside(NAMES[0], *words).splitlines()[-1])
            rows[part]["equal"] = rows[part].pop("hash") == alone
    finally:
        down()
    print(json.dumps(rows))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "namespaces.json").write_text(json.dumps(rows, indent=1) + "\n")
    if not all(row["equal"] for row in rows.values()):
        raise SystemExit("the parameters are not those of the run in one process")


if __name__ == "__main__":
    main()
