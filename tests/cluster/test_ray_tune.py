"""Trials of a search that play at once on Ray: they are stopped in the middle, and go on from where they were."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    # Ray's own, on starting and ending processes
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).parents[2]
GENERATIONS, TRIALS = 300, 3
PATIENCE = 500  # seconds, on a machine that is busy


def rows(run):
    """The lines of a trial's metrics that are whole."""
    path = run / "metrics.jsonl"
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def test_trials_play_at_once_and_go_on_after_an_interrupt(tmp_path):
    words = [sys.executable, "-W", "ignore", "-m", "esrl", "tune", "gymnasium/phys2d/CartPole-v1"]
    words += ["--ray-address", "local", "--workers", "2", "--trials", str(TRIALS), "--generations", str(GENERATIONS)]
    words += ["--population", "8", "--hidden", "4", "--num-evals", "3", "--eval-episodes", "4", "--out", "search"]
    there = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    runs = [tmp_path / "search" / "trials" / f"{i:04d}" for i in range(TRIALS)]
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(words, cwd=tmp_path, env=there, stdout=said, stderr=said)
    try:
        end = time.monotonic() + PATIENCE
        while not all(len(rows(run)) > 2 for run in runs[:2]):  # both at once
            assert time.monotonic() < end and first.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        assert first.wait(PATIENCE) == 128 + signal.SIGINT, (tmp_path / "said").read_text()
    finally:
        first.kill()
        first.wait()
    before = [rows(run) for run in runs]
    assert min(map(len, before[:2])) < GENERATIONS

    done = subprocess.run([*words, "--json"], cwd=tmp_path, env=there, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout)["trials"]) == TRIALS
    for run, had in zip(runs, before, strict=True):
        found = rows(run)
        assert [json.loads(line)["generation"] for line in found] == list(range(1, GENERATIONS + 1))
        assert found[: len(had)] == had  # with its seconds: it was not played again
