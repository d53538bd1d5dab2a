"""A Ray cluster whose nodes are in network namespaces of their own, joined by a bridge: the same result, and its bytes.

    sudo -E python -m experiments.scaling.ray_namespaces            # needs the right to make network namespaces

Three namespaces of this machine have an address each on a virtual link, as three machines would: the head with the
driver and no core, and two nodes of one core. A run there has to end with the parameters of the run in one process, bit
for bit, in both ways to tell. The bytes that crossed the head's link are those that the kernel counts, Ray's own
included. Written: results/namespaces.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import esrl
from experiments import script
from experiments.lab.store import ROOT, results
from experiments.scaling.namespaces import Host, allowed, hosts
from experiments.scaling.worker import counted

RESULTS = results("scaling")
PORT = 6399  # of the head; its address is nobody else's
LOCAL = {"block_pairs": 1}


@dataclass
class Arguments:
    """The command line."""

    env: str = "gymnasium/CartPole-v1?vectorization=sync"
    population: int = 16
    hidden: int = 64
    generations: int = 10
    part: str = ""  # "parameters" or "scalars": this process is the driver in the head's namespace
    head: str = ""  # HOST:PORT, of that driver's cluster
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


def drive(arguments: Arguments) -> None:
    """In the head's namespace: a run on the cluster."""
    before = counted()
    told, sent = trained(arguments, ray_address=arguments.head, workers=2, broadcast=arguments.part)
    after = counted()
    link = [after[name] - before[name] for name in ("rx_bytes", "tx_bytes")]
    print(json.dumps({"hash": told, "sent": sent, "link": link}))


@contextlib.contextmanager
def cluster(there: Sequence[Host]) -> Iterator[str]:
    """A Ray node on each host, of one core but for the head, which has none. Yields the head's address."""
    address = f"{there[0].address}:{PORT}"
    with tempfile.TemporaryDirectory(prefix="esrl-") as folder:
        try:
            for i, host in enumerate(there):
                how: tuple[str, ...] = (f"--address={address}",)
                if not i:
                    how = "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"
                how += f"--node-ip-address={host.address}", f"--num-cpus={int(i > 0)}", "--disable-usage-stats"
                ray = str(Path(sys.executable).with_name("ray"))
                inside(there, host, ray, "start", *how, "--object-store-memory=100000000")
            yield address
        finally:
            for host in there:
                end(host)


def inside(there: Sequence[Host], host: Host, *words: str) -> str:
    """Runs a command on a host, and returns what it printed."""
    # These networks are seen by nobody else: no token. Ray's messages would go to a proxy, where one is set.
    plain = (
        "env",
        "no_proxy=" + ",".join([*(other.address for other in there), "127.0.0.1"]),
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_AUTH_MODE=disabled",
    )
    done = subprocess.run([*host.prefix, *plain, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{host.namespace}: {done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return done.stdout


def end(host: Host) -> None:
    """Ends the processes in a host's namespace. Its name is this process's own, so they are what was begun here."""
    found = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=False)
    for process in map(int, found.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    if arguments.part:
        return drive(arguments)
    if not allowed():
        script.wrong("network namespaces cannot be made here; run it as root on Linux")
    alone, _ = trained(arguments)
    rows = {}
    same = [f"--{name}={getattr(arguments, name)}" for name in ("env", "population", "hidden", "generations")]
    with hosts(3) as there, cluster(there) as address:
        for part in ("parameters", "scalars"):
            words = [sys.executable, "-W", "ignore", "-m", "experiments.scaling.ray_namespaces"]
            told = inside(there, there[0], *words, f"--part={part}", f"--head={address}", *same)
            rows[part] = json.loads(told.splitlines()[-1])
            rows[part]["equal"] = rows[part].pop("hash") == alone
    print(json.dumps(rows))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "namespaces.json").write_text(json.dumps(rows, indent=1) + "\n")
    if not all(row["equal"] for row in rows.values()):
        raise SystemExit("the parameters are not those of the run in one process")


if __name__ == "__main__":
    main()
