"""A run's logs: rows that no kill loses, and events that TensorBoard reads."""

import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import esrl
from esrl.training import logs
from esrl.training.events import Events
from esrl.training.logs import Metrics

ROOT = Path(__file__).resolve().parents[2]


def written(path, number, more=b""):
    rows = ({"generation": g, "x": 10 ** (g % 7)} for g in range(1, number + 1))
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + more)
    return Metrics(path)


@pytest.mark.parametrize("block", [7, 64, 1 << 16])
@pytest.mark.parametrize("keep", [0, 1, 4, 5, 9])
@pytest.mark.parametrize(
    "more", [b"", b'{"generation": 6, "x', b"\n", b"no row\n"], ids=["", "torn", "blank", "strange"]
)
def test_what_lies_beyond_a_generation_is_cut_off(tmp_path, monkeypatch, block, keep, more):
    monkeypatch.setattr(logs, "_BLOCK", block)
    metrics = written(tmp_path / "metrics.jsonl", 5, more)
    before = metrics.path.read_bytes()
    last = metrics.open(keep)
    kept = min(keep, 5)
    assert (last or {}).get("generation", 0) == kept
    assert [row["generation"] for row in metrics.rows()] == list(range(1, kept + 1))
    assert before.startswith(metrics.path.read_bytes())  # cut, and not written again
    metrics.write({"generation": kept + 1, "x": float("nan")})
    metrics.close()
    assert metrics.rows()[-1] == {"generation": kept + 1, "x": None}


def test_opening_writes_nothing_again(tmp_path, monkeypatch):
    """A kill at any moment of it would lose what is being written: so the file is only made shorter."""
    metrics = written(tmp_path / "metrics.jsonl", 100_000)
    inode, cuts = metrics.path.stat().st_ino, []
    monkeypatch.setattr(logs.os, "ftruncate", lambda file, size, own=os.ftruncate: (cuts.append(size), own(file, size)))
    size = metrics.path.stat().st_size
    assert metrics.open(100_000)["generation"] == 100_000 and not cuts
    metrics.close()
    assert metrics.open(99_999)["generation"] == 99_999 and len(cuts) == 1
    metrics.close()
    assert metrics.path.stat().st_ino == inode and size - 100 < metrics.path.stat().st_size < size


def test_a_row_is_in_the_file_at_once(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.open(0) is None
    metrics.write({"generation": 1, "return_mean": 2.5})
    assert Metrics(metrics.path).rows() == [{"generation": 1, "return_mean": 2.5}]
    metrics.close()


def records(path):
    """The events of a file: each a length, its checksum, the bytes, and theirs."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, place = path.read_bytes(), 0
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        yield event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
        place += size + 16


def test_events_are_in_the_file_at_once_and_need_no_thread(tmp_path):
    pytest.importorskip("tensorboardX")
    threads = threading.active_count()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = Events(tmp_path / "a", 0)
    row = {"generation": 1, "env_steps": 70, "eval_return_mean": 2.5, "fitness_max": float("inf"), "text": "x"}
    first.write(row, np.array([[1.0, 2.0], [np.nan, 4.0]], np.float32))
    first.text("recipe", "env")
    (path,) = (tmp_path / "a").iterdir()
    assert "tfevents" in path.name  # what TensorBoard looks for
    version, numbers, fitness, text = records(path)
    assert version.file_version == "brain.Event:2" and numbers.step == fitness.step == 70
    found = [(v.tag, v.simple_value) for v in numbers.summary.value]
    assert found == [("time/env_steps", 70), ("eval/return_mean", 2.5)]
    (value,) = fitness.summary.value
    assert value.tag == "population/fitness" and (value.histo.num, value.histo.min, value.histo.max) == (3, 1, 4)
    assert text.summary.value[0].tensor.string_val == [b"env"]
    first.close()
    Events(tmp_path / "b", 2, 70).close()
    (path,) = (tmp_path / "b").iterdir()
    assert [e.step for e in records(path) if e.HasField("session_log")] == [
        71
    ]  # what came before from there on is void
    assert threading.active_count() == threads


def test_a_run_is_gone_on_with_after_its_metrics_were_lost(tmp_path):
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=8)
    esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    result = esrl.train(agent, generations=4, num_evals=0, out=tmp_path / "run", resume=True)
    assert int(result.state.generation) == 4
    assert [row["generation"] for row in Metrics(tmp_path / "run" / "metrics.jsonl").rows()] == [3, 4]


HOLDS = "import sys, time; from esrl.training.run_folder import RunFolder; run = RunFolder.existing(sys.argv[1])"


def test_one_process_trains_in_a_folder(tmp_path):
    """A second one is refused; one that was killed holds nothing."""
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=8)
    esrl.train(agent, generations=1, num_evals=0, out=tmp_path / "run")
    command = [sys.executable, "-c", f"{HOLDS}; run.hold(); print(flush=True); time.sleep(600)", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            process.stdout.readline()
            before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
            with pytest.raises(esrl.EsrlError, match=f"is being trained by another process .process {process.pid} on"):
                esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "run", resume=True)
            assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
        finally:
            process.kill()
    result = esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "run", resume=True)
    assert int(result.state.generation) == 2
