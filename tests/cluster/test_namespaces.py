"""Nodes of Ray in network namespaces of their own, where the system lets one make them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.scaling.namespaces import allowed

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.heavy]


def test_nodes_in_networks_of_their_own_train_the_same(tmp_path):
    if not allowed():
        pytest.skip("this system does not let one make network namespaces")
    words = [sys.executable, "-W", "ignore", "-m", "experiments.scaling.ray_namespaces", "--generations=3"]
    done = subprocess.run(
        [*words, f"--out={tmp_path}"], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "namespaces.json").read_text())
    assert all(row["equal"] for row in rows.values())
