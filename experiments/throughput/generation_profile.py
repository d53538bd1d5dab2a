"""Where the time of one generation goes, by part of the algorithm and by operation.

    python -m experiments.throughput.generation_profile    # CartPole, 2048 members, 3x256, rank 1
    python -m experiments.throughput.generation_profile brax/ant?max_episode_steps=100 --rank 4 --top 30
    python -m experiments.throughput.generation_profile --generations 30    # after so many generations of training

One whole generation (`agent.step`, compiled before) under JAX's profiler. What an operation belongs to is read off the
compiled program, whose operations carry the names of the scopes that esrl puts around its parts: `noise` (drawing),
`shared` (products that all lanes share), `correction` (the thin ones), `network` (the rest of the forward pass),
`world` (environment steps), `reset`, `refill` and `update`. A fused operation belongs where its last part does. Times
are summed over devices: on D devices that are always busy they add up to D times the generation's seconds.
"""

import gzip
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from tyro.conf import Positional

import esrl
from esrl.core.types import seed_key
from experiments import script

SCOPES = ("correction", "shared", "network", "noise", "world", "reset", "refill", "update")
_LOOPS = ("while", "call", "conditional")  # their time is that of what is inside


def origins(program: str) -> dict[str, tuple[str, str]]:
    """(scope, primitive) of every operation of a compiled program's text."""
    found = {}
    for name, path in re.findall(r"%([\w.\-]+) = [^\n]*?op_name=\"([^\"]*)\"", program):
        words = re.findall(r"[\w\-]+", path)
        scope = next((w for w in reversed(words) if w in SCOPES), "other")
        found[name] = (scope, words[-1] if words else "?")
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """Operations that ran, from a profile that JAX wrote."""
    file = max(folder.glob("**/*perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(file) as opened:
        every = json.load(opened)["traceEvents"]
    return [e for e in every if e.get("ph") == "X" and "hlo_op" in e.get("args", {})]


def longest(item: tuple[Any, float]) -> float:
    """Sorts what takes most first."""
    return -item[1]


def profile(agent: Any, state: Any) -> tuple[list[tuple[str, str, float, int]], float]:
    """(scope, operation, milliseconds, how often) of one generation, longest first; and its seconds, unprofiled."""
    program = jax.jit(agent.step).lower(state).compile()
    jax.block_until_ready(program(state))
    begun = time.perf_counter()
    jax.block_until_ready(program(state))
    seconds = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            jax.block_until_ready(program(state))
        ran = events(Path(folder))
    where = origins(program.as_text() or "")
    spent: defaultdict[tuple[str, str], float] = defaultdict(float)
    number: Counter[tuple[str, str]] = Counter()
    for event in ran:
        name = event["args"]["hlo_op"]
        if name.startswith(_LOOPS):
            continue
        key = where.get(name, ("other", re.sub(r"[.\d]+$", "", name)))
        spent[key] += event["dur"] / 1e3
        number[key] += 1
    return [(*key, ms, number[key]) for key, ms in sorted(spent.items(), key=longest)], seconds


@dataclass(frozen=True)
class Options:
    env: Positional[str] = "gymnasium/phys2d/CartPole-v1"
    agent: Literal["eggroll", "open_es"] = "eggroll"
    population: int = 2048
    rank: int = 1
    generations: int = 0  # to train before
    top: int = 20


def main() -> None:
    given = script.options(Options, __doc__)
    options = {"rank": given.rank} if given.agent == "eggroll" else {}
    agent = getattr(esrl, given.agent)(given.env, esrl.mlp(), population=given.population, **options)
    state = agent.init(seed_key(0))
    for _ in range(given.generations):
        state, _ = agent.step(state)
    rows, seconds = profile(agent, state)
    total = sum(row[2] for row in rows)
    print(
        f"{given.agent} on {given.env}, {given.population} members: {seconds:.3f} s, {total / 1e3:.3f} s of operations"
    )
    scopes: defaultdict[str, float] = defaultdict(float)
    for scope, _, ms, _ in rows:
        scopes[scope] += ms
    for scope, ms in sorted(scopes.items(), key=longest):
        print(f"  {scope:12s}{ms:10.1f} ms {ms / total:7.1%}")
    for scope, operation, ms, number in rows[: given.top]:
        print(f"  {ms:10.1f} ms {ms / total:7.1%} {number:8d} x  {scope}/{operation}")


if __name__ == "__main__":
    main()
