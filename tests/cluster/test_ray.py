"""Real clusters of Ray on this machine: several nodes, killed workers and nodes, a driver that is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import esrl
from esrl.cluster import messages

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    # Ray's own, on starting and ending processes
    pytest.mark.filterwarnings("ignore"),
]

GENERATIONS = 6
SLOW = """
import os
import time

import gymnasium
import numpy as np
from gymnasium import spaces


class Slow(gymnasium.Env):
    \"\"\"A walk of ten steps of some milliseconds, times SLOWER. The first world to see the file `hang` hangs.\"\"\"

    observation_space = spaces.Box(-9.0, 9.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))
    max_episode_steps = 10

    def __init__(self, folder="", pause=0.004):
        self.folder = folder
        self.pause = pause * float(os.environ.get("SLOWER", "1"))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        return self.x.astype(np.float32), {}

    def step(self, action):
        try:
            os.unlink(os.path.join(self.folder, "hang"))
        except OSError:
            time.sleep(self.pause)
        else:
            time.sleep(1000)
        self.x = 0.9 * self.x + 0.1 * action[0]
        return self.x.astype(np.float32), -float(np.abs(self.x).sum()), False, False, {}
"""


NODE = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "object_store_memory": 80 << 20}


def patiently(begin):
    """What Ray begins within 30 seconds, or not at all; a busy machine may need another try."""
    for _ in range(3):
        try:
            return begin()
        except Exception as error:
            last = error
    raise last


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; the driver is on the first. A run joins it as it is."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
        made = patiently(lambda: Cluster(initialize_head=True, head_node_args=NODE))
        made.second = patiently(lambda: made.add_node(**NODE))
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("slow")
    (found / "slow.py").write_text(SLOW)
    return found


@pytest.fixture(scope="module")
def agent(folder):
    env = esrl.make(f"{folder / 'slow.py'}:Slow?vectorization=sync", folder=str(folder))
    return esrl.eggroll(env, esrl.mlp((4,)), population=12)


def trained(agent, on_generation=None, **options):
    result = esrl.train(
        agent,
        generations=GENERATIONS,
        num_evals=0,
        progress=False,
        block_pairs=1,
        on_generation=on_generation,
        **options,
    )
    return result


@pytest.fixture(scope="module")
def alone(agent):
    return trained(agent).state


def same(one, other):
    pairs = zip(messages._plain(one), messages._plain(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def players():
    """Processes of this one's Ray in which actors play, by Ray's name for them; another run's are left alone."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    processes = {int(line.split()[0]): line.split(maxsplit=2)[1:] for line in found}

    def ours(process):
        while process in processes and process != os.getpid():
            process = int(processes[process][0])
        return process == os.getpid()

    return [process for process, (_, *args) in processes.items() if "ray::_Actor" in "".join(args) and ours(process)]


def kill_soon(number=1, after=0.15):
    """Kills workers a little later, in the middle of a generation."""

    def kill():
        time.sleep(after)
        for process in players()[:number]:
            os.kill(process, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


@pytest.mark.parametrize("broadcast", messages.BROADCASTS)
def test_a_cluster_trains_what_one_process_trains_though_workers_are_killed(cluster, agent, alone, broadcast):
    def on_generation(generation, state, metrics):
        if generation in (2, 4):  # the second is the one that took the place of the first
            kill_soon()

    result = trained(agent, on_generation, ray_address="auto", workers=2, broadcast=broadcast)
    assert same(result.state, alone)
    assert sum(row["workers_lost"] for row in result.rows) >= 1


@pytest.mark.parametrize("broadcast", messages.BROADCASTS)
def test_a_cluster_trains_integers_as_one_process_does_though_workers_are_killed(cluster, folder, broadcast):
    env = esrl.make(f"{folder / 'slow.py'}:Slow?vectorization=sync", folder=str(folder))
    agent = esrl.eggroll_int8(env, esrl.mlp((4,), dtype="int8"), population=12, momentum_shift=2, noise_table=500)
    wanted = trained(agent).state

    def on_generation(generation, state, metrics):
        if generation in (2, 4):
            kill_soon()

    result = trained(agent, on_generation, ray_address="auto", workers=2, broadcast=broadcast)
    assert same(result.state, wanted)
    assert sum(row["workers_lost"] for row in result.rows) >= 1


def test_a_hung_environment_and_a_node_that_ends_and_one_that_joins(cluster, folder, agent, alone):
    def on_generation(generation, state, metrics):
        if generation == 1:
            (folder / "hang").write_text("")
        if generation == 3:
            cluster.remove_node(cluster.second, allow_graceful=False)
        if generation == 4:
            cluster.second = patiently(lambda: cluster.add_node(**NODE))

    result = trained(agent, on_generation, ray_address="auto", workers=2)
    assert not (folder / "hang").exists()
    assert same(result.state, alone)


def test_a_node_that_is_ten_times_slower_changes_nothing_and_its_blocks_are_copied(cluster, folder):
    env = esrl.make(f"{folder / 'slow.py'}:Slow?vectorization=sync", folder=str(folder), pause=0.02)
    agent = esrl.eggroll(env, esrl.mlp((4,)), population=12)
    wanted = trained(agent).state
    slower = patiently(lambda: cluster.add_node(**NODE, env_vars={"SLOWER": "10"}))
    try:
        result = trained(agent, ray_address="auto", workers=3)
    finally:
        cluster.remove_node(slower)
    assert same(result.state, wanted)
    assert max(row["workers"] for row in result.rows) == 3
    assert sum(row["blocks_again"] for row in result.rows) >= 1
    assert sum(row["workers_lost"] for row in result.rows) == 0  # it is late, and no reason to replace it


def test_a_driver_that_is_killed_goes_on_from_its_folder(cluster, folder, agent, alone, tmp_path):
    out = tmp_path / "run"
    code = (
        "import esrl, os, signal\n"
        f"env = esrl.make({str(folder / 'slow.py')!r} + ':Slow?vectorization=sync', folder={str(folder)!r})\n"
        "agent = esrl.eggroll(env, esrl.mlp((4,)), population=12)\n"
        "def die(generation, state, metrics):\n"
        "    if generation == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"esrl.train(agent, generations={GENERATIONS}, num_evals=0, checkpoint_every=1, out={str(out)!r}, "
        f"ray_address={cluster.address!r}, workers=2, block_pairs=1, progress=False, on_generation=die)\n"
    )
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=600)
    assert killed.returncode == -signal.SIGKILL
    # The block size is the run's own, though it is not given again.
    result = esrl.train(
        agent,
        generations=GENERATIONS,
        num_evals=0,
        checkpoint_every=1,
        out=out,
        resume=True,
        ray_address="auto",
        workers=2,
        progress=False,
    )
    assert same(result.state, alone)
