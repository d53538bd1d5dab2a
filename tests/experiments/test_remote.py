"""Jobs of an experiment on a Ray cluster: a sweep that is interrupted in the middle, and goes on with the rest."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("tyro")
pytest.importorskip("seaborn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    # Ray's own, on starting and ending processes
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).parents[2]
ENV = "gymnasium/phys2d/CartPole-v1"
PATIENCE = 500  # seconds, on a machine that is busy


def sweep(folder, *more):
    """The command of a sweep over two populations, which are two processes, of one seed each, on one worker of Ray."""
    words = [sys.executable, "-W", "ignore", "-m", "experiments.sweep.run", ENV, "--out", str(folder)]
    words += ["--populations", "8", "16", "--ranks", "1", "--sigmas", "0.1", "--seeds", "1", "--env-steps", "2000"]
    words += ["--evaluations", "2", "--episodes", "4", "--ray-address", "local", "--processes", "1", *more]
    return words


def rows_of(folder):
    """The rows of each run that was measured, by its population."""
    from experiments.lab.run import table

    found = {}
    for row in table(folder / f"{ENV.replace('/', '-')}.csv").read():
        found.setdefault(row["population"], []).append(row)
    return found


def jobs_of(folder):
    """Processes that measure something of a folder."""
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in told if "experiments.lab.run" in line and str(folder) in line]


def test_a_sweep_on_ray_that_is_interrupted_goes_on_with_the_rest(tmp_path):
    there = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    first = subprocess.Popen(
        sweep(tmp_path), cwd=ROOT, env=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    reader = threading.Thread(target=lambda: said.extend(first.stdout), daemon=True)
    reader.start()
    try:
        end = time.monotonic() + PATIENCE
        while not rows_of(tmp_path):  # one is measured, the other is under way or waits
            assert time.monotonic() < end and first.poll() is None, "".join(said)
            time.sleep(0.2)
        first.send_signal(signal.SIGINT)
        assert first.wait(PATIENCE) == 1, "".join(said)
    finally:
        first.kill()
        first.wait()
    reader.join(10)
    assert "the same command goes on" in "".join(said)
    measured = rows_of(tmp_path)
    assert len(measured) == 1
    while jobs_of(tmp_path):  # what was under way ends as well
        assert time.monotonic() < end
        time.sleep(0.2)

    done = subprocess.run(sweep(tmp_path), cwd=ROOT, env=there, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows_of(tmp_path)
    assert set(found) == {8, 16}
    (population,) = measured
    assert found[population] == measured[population]  # its seconds, too: it was not measured again
    assert json.loads((tmp_path / f"{ENV.replace('/', '-')}.json").read_text()).get("failed", {}) == {}
