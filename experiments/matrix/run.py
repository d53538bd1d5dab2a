"""Does esrl work with the oldest and the newest versions that it says it takes?

    make matrix                                              # every cell, one after another
    python -m experiments.matrix.run --cells 3.12-newest
    PYTHON3_12=/usr/bin/python3.12 python -m experiments.matrix.run

A cell is a Python and an end of the ranges in pyproject.toml: "lowest" installs the lowest version that each
requirement allows, "newest" what pip finds. Each gets an environment of its own in `.matrix/`, which is used again
while pyproject.toml stays as it is, and runs the tests of `TESTS` that are not slow.

A cell's Python is `python3.X` on the path (of pyenv too), or what the variable PYTHON3_X names. Needs nothing but the
standard library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CELLS = ("3.11-lowest", "3.12-newest", "3.13-newest")
EXTRAS = ("cli", "logs", "onnx", "brax", "gymnasium", "gymnax")
TEST_PACKAGES = ("pytest", "pytest-xdist", "jaxtyping", "beartype", "hypothesis", "onnxruntime")  # of the extra `dev`
# One file or two of each room: the perturbed forward pass reads jaxprs, and is what a new JAX breaks first.
TESTS = (
    "tests/core",
    "tests/perturbation",
    "tests/policies",
    "tests/rollouts/test_rollout.py",
    "tests/rollouts/test_unroll.py",
    "tests/algorithms/test_es.py",
    "tests/algorithms/test_eggroll_ac.py",
    "tests/algorithms/test_ppo.py",
    "tests/algorithms/test_memory.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_many.py",
    "tests/training/test_policy_export.py",
    "tests/envs/suites/test_gymnax.py",
    "tests/test_public_face.py",
)
SHOWN = ("jax", "flax", "optax", "numpy", "gymnasium", "brax", "gymnax")  # versions that the table prints


class Cell(NamedTuple):
    """A Python, as "3.11", and an end of the ranges: "lowest" or "newest"."""

    python: str
    end: str


class Said(Exception):
    """Why a cell could not be run, in one sentence."""


def requirements(extras: tuple[str, ...] = EXTRAS) -> list[str]:
    """The requirements of the package, of some extras and of the tests, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    found = list(project["dependencies"])
    for extra in extras:
        found += optional[extra]
    return [*found, *(line for line in optional["dev"] if name_of(line) in TEST_PACKAGES)]


def name_of(requirement: str) -> str:
    """The package that a requirement names."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def lowest(found: list[str]) -> list[str]:
    """Constraints that pin each package to the lowest version that all its requirements allow."""
    least: dict[str, str] = {}
    for requirement in found:
        bound = re.search(r">=\s*([\d.]+)", requirement)
        if bound:
            name, version = name_of(requirement), bound[1]
            least[name] = max(least.get(name, "0"), version, key=lambda v: tuple(map(int, v.split("."))))
    return [f"{name}=={version}" for name, version in least.items()]


def python_of(version: str) -> str:
    """The interpreter of a version: what PYTHON3_X names, else `python3.X`; raises `Said` when there is none."""
    variable = f"PYTHON{version.replace('.', '_')}"
    given = os.environ.get(variable)
    # pyenv's shims are on the path for versions that are not switched on, so each candidate is asked who it is.
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found: list[str | None] = [
        shutil.which(f"python{version}"),
        *map(str, sorted(pyenv.glob(f"{version}.*/bin/python"))),
    ]
    for candidate in [given] if given else found:
        if candidate is None:
            continue
        asked = "import sys; print('{}.{}'.format(*sys.version_info))"
        try:
            answer = subprocess.run([candidate, "-c", asked], capture_output=True, text=True).stdout.strip()
        except OSError:
            continue
        if answer == version:
            return candidate
    at = f"{variable} is {given}, which is not Python {version}" if given else f"there is no python{version} here"
    raise Said(f"{at}; install it, or set {variable} to its path")


def prepare(cell: Cell, folder: Path, log: Path) -> Path:
    """The Python of a cell's environment, made or used again."""
    wanted = requirements()
    pins = lowest(wanted) if cell.end == "lowest" else []
    stamp, fingerprint = folder / "installed", hashlib.sha256(json.dumps([wanted, pins]).encode()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == fingerprint:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    call([python_of(cell.python), "-m", "venv", str(folder)], log, "no environment could be made")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(constraints)]
    tests = [line for line in wanted if name_of(line) in TEST_PACKAGES]
    call([*pip, "-e", f".[{','.join(EXTRAS)}]", *tests], log, "pip found no versions that go together")
    stamp.write_text(fingerprint)
    return python


def call(command: list[str], log: Path, failed: str) -> str:
    """Runs a command with its output in a log; raises `Said` when it fails. Returns what it printed."""
    # Nothing of the environment that this was started from may reach another Python's packages.
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        start = file.tell()
        ended = subprocess.run(command, cwd=ROOT, env=own, stdout=file, stderr=subprocess.STDOUT)
    with log.open(errors="replace") as file:
        file.seek(start)
        output = file.read()
    if ended.returncode:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
        raise Said(f"{failed}: {last.strip()[:200]} ({log})")
    return output


def versions(python: Path) -> str:
    """The versions that a cell's environment holds."""
    ask = f"import importlib.metadata as m; print(', '.join(f'{{n}} {{m.version(n)}}' for n in {SHOWN}))"
    return subprocess.run([str(python), "-c", ask], capture_output=True, text=True).stdout.strip()


def run(cell: Cell, into: Path, tests: list[str], workers: int) -> tuple[str, str, str, bool]:
    """(versions, seconds, result, whether it passed) of one cell."""
    name = f"{cell.python}-{cell.end}"
    folder, log = into / name, into / f"{name}.log"
    into.mkdir(exist_ok=True)
    log.write_text("")
    try:
        python = prepare(cell, folder, log)
        held = versions(python)
        begun = time.perf_counter()
        pytest = [str(python), "-m", "pytest", "-q", "-n", str(workers), "-m", "not slow", "-p", "no:cacheprovider"]
        try:
            output = call([*pytest, *tests], log, "tests failed")
        except Said as said:
            return held, f"{time.perf_counter() - begun:.0f}", str(said), False
        summary = re.findall(r"^=*\s*(\d+ passed.*?)\s*=*$", output, re.MULTILINE)
        return held, f"{time.perf_counter() - begun:.0f}", summary[-1] if summary else "no summary", True
    except Said as said:
        return "–", "–", str(said), False


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--cells", nargs="+", default=list(CELLS), metavar="3.X-END", help="default: %(default)s")
    read.add_argument("--tests", nargs="+", default=list(TESTS), help="files of tests instead of TESTS")
    read.add_argument("--into", type=Path, default=ROOT / ".matrix", help="folder of the environments and logs")
    read.add_argument("--workers", type=int, default=2, help="test processes")
    given = read.parse_args()
    cells = []
    for name in given.cells:
        python, _, end = name.partition("-")
        if not re.fullmatch(r"3\.\d+", python) or end not in ("lowest", "newest"):
            read.error(f"a cell is a Python and an end, as 3.12-newest, but {name} was given")
        cells.append(Cell(python, end))
    print("| cell | versions | seconds | tests |\n|---|---|---|---|", flush=True)
    passed = True
    for cell in cells:
        held, seconds, result, good = run(cell, given.into, given.tests, given.workers)
        passed &= good
        print(f"| {cell.python}, {cell.end} | {held} | {seconds} | {result} |", flush=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
