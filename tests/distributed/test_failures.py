"""What goes wrong among processes that train together is one sentence in each of them, and nothing is lost."""

import os
import signal
import time

import pytest
from launching import PATIENCE, free_port, running, training

import esrl
from esrl.core import processes
from esrl.training.run_folder import RunFolder

POLE = "gymnasium/phys2d/CartPole-v1?max_episode_steps=20"


def test_a_coordinator_that_nobody_is_at_is_named():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(esrl.EsrlError, match=f"the coordinator {address} cannot be reached .* start process 0"):
        esrl.join(address, processes=2, process_id=1, patience=0.5)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"coordinator": "somewhere"}, "HOST:PORT"),
        ({"processes": 0}, "processes is 0"),
        ({"processes": 2, "process_id": 2}, "process_id is 2"),
    ],
)
def test_how_to_join_is_checked_before_anything_is_started(told, says):
    with pytest.raises(esrl.EsrlError, match=says):
        esrl.join(**told)


def test_a_process_that_is_gone_is_said_once(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "_abandoned", False)
    said = processes.lost(ValueError("UNKNOWN: Gloo AllGather failed: Read error"))
    assert "has ended or cannot be reached" in str(said)
    assert processes.lost(said) is None


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"version": "9.9"}, f"process 0 has esrl {esrl.__version__}, and process 1 esrl 9.9"),
        ({"processes": 3}, "process 0 was told of 2 processes, and process 1 3 processes"),
    ],
)
def test_processes_that_differ_do_not_begin(tmp_path, other, says):
    with running(tmp_path, 2, 1, {}, {}, other) as group:
        for status, _, err in group.ended():
            assert status == 2
            assert says in err


@pytest.mark.slow
@pytest.mark.heavy
def test_what_one_process_cannot_do_all_refuse(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    train = {"agent": "eggroll", "generations": 1, "num_evals": 0}
    tasks = {
        "population": ["refused", {"agent": "eggroll", "population": 10}],
        "lanes": ["refused", {"agent": "ppo", "num_envs": 10, "num_steps": 8}],
        "python": ["refused", {"agent": "eggroll", "env": "gymnasium/CartPole-v1"}],
        "options": ["train", {**train, "of_process": {"1": {"options": {"sigma": 0.3}}}}],
        "folder": ["train", {**train, "out": str(tmp_path / "taken")}],
    }
    # They find each other as SLURM tells them.
    with running(tmp_path / "work", 2, 2, tasks, {"slurm": True}, {"slurm": True}) as group:
        for i, found in enumerate(group.found()):
            said = {name: str(arrays["raised"]) for name, arrays in found.items()}
            assert "population is 10" in said["population"]
            assert "use 8 or 16" in said["population"]
            assert "num_envs is 10" in said["lanes"]
            assert "Ray" in said["python"]
            assert ("process 1: " if i == 0 else "sigma is 0.3 here and 0.05 in process 0") in said["options"]
            assert "holds files" in said["folder"]


def rows(folder):
    """Generations that a run has logged."""
    run = RunFolder(folder)
    return run.last_row().get("generation", 0) if (run.path / "metrics.jsonl").exists() else 0


def wait_for(folder, generation, group):
    end = time.monotonic() + PATIENCE
    while rows(folder) < generation:
        assert time.monotonic() < end
        assert all(process.poll() is None for process in group.processes), group.ended()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.heavy
def test_the_death_of_process_0_ends_the_others_and_leaves_its_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    begin = [POLE, "--population", "8", "--hidden", "4", "--generations", "1000000", "--num-evals", "0"]
    with training(2, 1, *begin, "--out", str(folder), "--checkpoint-every", "1") as group:
        wait_for(folder, 3, group)
        group.processes[0].kill()
        status, _, err = group.ended()[1]
        # JAX's own abort, or the sentence for the collective that broke: whichever is first.
        assert status in (-signal.SIGABRT, 2), err
    _, state, _ = esrl.load(folder)
    assert int(state.generation) >= 2


@pytest.mark.slow
@pytest.mark.heavy
def test_a_signal_ends_all_after_one_generation_and_a_death_leaves_a_run_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    begin = [POLE, "--population", "8", "--hidden", "4", "--generations", "1000000", "--num-evals", "0"]
    with training(2, 1, *begin, "--out", str(folder)) as group:
        wait_for(folder, 3, group)
        os.kill(group.processes[1].pid, signal.SIGTERM)  # not process 0, which has the folder
        for status, _, err in group.ended():
            assert status == 128 + signal.SIGTERM, err
    stopped = rows(folder)
    assert max(RunFolder(folder).checkpoints.generations()) == stopped

    with training(2, 1, "--resume", str(folder)) as group:
        wait_for(folder, stopped + 3, group)
        group.processes[1].kill()
        status, _, err = group.ended()[0]
        assert status == 2, err
        last = rows(folder)
        assert last > stopped
        assert err.count("another of the 2 processes has ended or cannot be reached") == 1
        assert f"generation {last} is saved, go on with: esrl train --resume {folder}" in err
    _, state, _ = esrl.load(folder)
    assert int(state.generation) == last
