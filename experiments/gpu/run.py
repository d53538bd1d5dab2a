"""What does one GPU do with esrl, in under eight minutes?

    make gpu                                         # tests marked gpu, then every part of parts.py
    python -m experiments.gpu.run --parts layer kernel
    python -m experiments.gpu.run --rehearse         # tiny sizes on a CPU: does the script work?

Written to experiments/results/<machine>/, whose name is that of the devices: a table for each part, row by row, so that
nothing is lost when the time is over; `machine.json`; and README.md with all tables. Each part is a process of its own:
one that hangs, or runs out of memory, costs its own time alone. What does not fit into the minutes is left out, and
said. What a part needs and is not installed is said in its rows.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import script
from experiments.lab.store import ROOT, Store, written

TESTS = "tests"
# The most seconds of each part, in the order in which they run.
LIMITS = {TESTS: 110.0, "layer": 60.0, "kernel": 60.0, "forward": 80.0, "paper": 90.0, "speed": 400.0}
LEAST = 10.0  # seconds that a part is begun for
ASK = """
import json, jax
d = jax.devices()
print(json.dumps({"platform": d[0].platform, "device": d[0].device_kind, "devices": len(d), "jax": jax.__version__}))
"""
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
PACKAGES = "jax|nvidia-(cuda-runtime|cudnn|cublas)|flax|brax|evosax|craftax|gymnax"
HEADS = {  # columns that README.md shows, with their formats; the first ones are texts
    "layer": {"network": "", "population": "", "dtype": "", "kind": "", "ms_per_step": "[.3g]",
              "fraction_of_inference": "[.3g]", "left_out": ""},
    "forward": {"network": "", "population": "", "dtype": "", "kind": "", "ms_per_step": "[.3g]",
                "fraction_of_inference": "[.3g]", "left_out": ""},
    "kernel": {"network": "", "population": "", "dtype": "", "kernels": "", "ms_per_step": "[.3g]", "of_never": ".3g",
               "left_out": ""},
    "speed": {"env": "", "population": "", "side": "", "live_steps_per_second": "[,.0f]", "compile_seconds": ".3g",
              "left_out": ""},
    "paper": {"env": "", "env_steps": ",.0f", "seconds": ".3g", "seconds_for_5e8": ",.0f", "paper_seconds_l40s": ",.0f",
              "left_out": ""},
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    parts: tuple[str, ...] = tuple(LIMITS)  # of tests, layer, kernel, forward, paper, speed
    minutes: float = 7.5  # of everything together
    out: Path | None = None  # experiments/results/<machine> unless given
    rehearse: bool = False  # tiny sizes, on whatever is there, in this process
    inside: bool = False  # measure the one part in this process: how parts are started


def machine() -> dict[str, Any]:
    """What JAX has here, and what the driver says; asked in another process, since JAX takes a GPU's memory."""
    asked = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        script.wrong("JAX does not start here: " + asked.stderr.strip().splitlines()[-1])
    found = json.loads(asked.stdout.strip().splitlines()[-1])
    try:
        found["driver"] = subprocess.run(QUERY, capture_output=True, text=True).stdout.strip()
    except OSError:
        found["driver"] = ""
    plugins = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True).stdout
    found["packages"] = re.findall(
        r"^(?:jax|jaxlib|nvidia-cuda-runtime|flax|brax|evosax|craftax|gymnax)\S*", plugins, re.M
    )
    return found


def folder_of(found: dict[str, Any]) -> str:
    """A folder's name for a machine, as "1-x-nvidia-h100-80gb-hbm3"."""
    return re.sub(r"\W+", "-", f"{found['devices']} x {found['device']}".lower()).strip("-")


def command_of(part: str, out: Path) -> list[str]:
    """What runs a part."""
    if part == TESTS:
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    return [sys.executable, "-m", "experiments.gpu.run", "--inside", "--parts", part, "--out", str(out)]


def start(part: str, out: Path, limit: float) -> str:
    """Runs a part in a process of its own; how it ended."""
    command = command_of(part, out)
    begun = time.perf_counter()
    with (out / f"{part}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"stopped after {limit:.0f} s; rows so far are kept"
    seconds = time.perf_counter() - begun
    lines = [line.strip() for line in (out / f"{part}.log").read_text(errors="replace").splitlines() if line.strip()]
    if part == TESTS or code:
        return f"{(lines or ['no output'])[-1].strip('= ')} ({seconds:.0f} s)"
    return f"{seconds:.0f} s"


def inside(part: str, out: Path, rehearse: bool) -> None:
    """Measures a part in this process."""
    os.environ["ESRL_CACHE_DIR"] = ""  # so that compile seconds are real
    import jax

    import esrl
    from experiments.gpu import parts

    esrl.configure()
    if not rehearse:
        jax.config.update("jax_compilation_cache_dir", None)
    parts.PARTS[part](out, parts.small() if rehearse else parts.whole())


def report(out: Path, found: dict[str, Any], ended: dict[str, str], rehearse: bool) -> None:
    """Writes README.md and machine.json anew."""
    written(out / "machine.json", json.dumps({**found, "parts": ended}, indent=1) + "\n")
    name = f"{found['devices']} x {found['device']}"
    blocks = [f"# {name}{': a rehearsal, whose figures mean nothing' if rehearse else ''}", "    make gpu"]
    blocks += [f"JAX {found['jax']}; driver: {found['driver'] or 'none'}. What the parts measure is said in"]
    blocks[-1] += " `experiments/gpu/parts.py`; median [lowest, highest]."
    blocks.append(script.table(("part", "ended"), ended.items()))
    for part, cells in HEADS.items():
        rows = Store(out / f"{part}.csv", ()).read()
        if rows:
            lines = [
                [script.shown(row, *cell) if cell[1] else row.get(cell[0], "") for cell in cells.items()]
                for row in rows
            ]
            blocks += [f"## {part}", script.table([name.replace("_", " ") for name in cells], lines)]
    written(out / "README.md", "\n\n".join(blocks) + "\n")


def main() -> None:
    given = script.options(Options, __doc__)
    unknown = [part for part in given.parts if part not in LIMITS]
    if unknown:
        script.wrong(f"--parts has {unknown[0]}, but takes {', '.join(LIMITS)}")
    if given.inside:
        inside(given.parts[0], given.out or Path(), given.rehearse)
        return
    begun, found = time.perf_counter(), machine()
    if found["platform"] != "gpu" and not given.rehearse:
        print(
            f"no GPU: JAX has {found['devices']} x {found['device']} here; --rehearse runs tiny sizes on it", flush=True
        )
        raise SystemExit(1)
    if given.rehearse and given.out is None:
        script.wrong("--rehearse needs --out, a folder for figures that mean nothing")
    out = given.out or ROOT / "experiments" / "results" / folder_of(found)
    out.mkdir(parents=True, exist_ok=True)
    ended: dict[str, str] = {}
    for part in (part for part in LIMITS if part in given.parts):
        left = 60 * given.minutes - (time.perf_counter() - begun)
        if given.rehearse and part == TESTS:
            ended[part] = "left out: a rehearsal has no GPU"
        elif given.rehearse:
            inside(part, out, True)
            ended[part] = "rehearsed"
        elif left < LEAST:
            ended[part] = "left out: the minutes were over"
        else:
            ended[part] = start(part, out, min(LIMITS[part], left))
        report(out, found, ended, given.rehearse)
        print(f"{part}: {ended[part]}", flush=True)
    print(out / "README.md")


if __name__ == "__main__":
    main()
