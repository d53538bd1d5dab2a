"""A full disk, a limit of file sizes, a folder that is gone: one sentence, what is kept, an exit code, and no hang."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import esrl
from esrl import EsrlError
from esrl.training.checkpoint import Checkpoints
from esrl.training.logs import Metrics

PATIENCE = 60  # seconds: the watchdog
ENDLESS = [
    "--population",
    "4",
    "--hidden",
    "4",
    "--num-evals",
    "0",
    "--checkpoint-every",
    "1",
    "--generations",
    "1000000",
]
TRAIN = [sys.executable, "-m", "esrl", "train", "gymnasium/phys2d/CartPole-v1", *ENDLESS]


def agent():
    return esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=4)


def ended(process):
    """What a process said before it ended by itself."""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("esrl: error: "), said
    assert sum(line.startswith("esrl: error") for line in said.splitlines()) == 1
    return said.splitlines()[-1]


def hears_signals():
    """A shell's background job ignores these two, and so would its processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def started(out, **given):
    given = {"preexec_fn": hears_signals} | given
    return subprocess.Popen(
        [*TRAIN, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **given
    )


def goes_on(out):
    """Its rows are without a hole, and it goes on from a checkpoint that is whole."""
    rows = [row["generation"] for row in Metrics(out / "metrics.jsonl").rows()]
    assert rows == list(range(1, len(rows) + 1))
    saved = Checkpoints(out / "checkpoints").generations()[-1]
    assert len(rows) - 1 <= saved <= len(rows)
    esrl.train(esrl.load(out).agent, generations=saved + 1, num_evals=0, out=out, resume=True, checkpoint_every=1)
    assert Checkpoints(out / "checkpoints").generations()[-1] == saved + 1


def test_the_largest_size_of_a_file_is_reached(tmp_path):
    limit = 40_000  # of the metrics, of some 50 generations
    out = tmp_path / "run"
    process = started(out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    said = ended(process)
    assert "File too large" in said and f"go on with: esrl train --resume {out}" in said
    goes_on(out)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small]).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        said = ended(started(small / "run"))
        assert "No space left on device" in said
        found = re.search(r"the last state was saved to (\S+) instead", said)
        shutil.copytree(small / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", small])
    if found:  # nothing that was computed is lost
        shutil.move(found[1], tmp_path / "run" / "checkpoints" / Path(found[1]).name)
        shutil.rmtree(Path(found[1]).parent)
    goes_on(tmp_path / "run")


def begun(out):
    """Waits until a run has its first checkpoint, which comes after its row."""
    until = time.monotonic() + PATIENCE
    while not Checkpoints(out / "checkpoints").generations() and time.monotonic() < until:
        time.sleep(0.05)


def test_a_quit_ends_at_once_and_loses_nothing(tmp_path):
    out = tmp_path / "run"
    process = started(out)
    begun(out)
    process.send_signal(signal.SIGQUIT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGQUIT
    goes_on(out)


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_the_folder_is_gone(tmp_path, how):
    out = tmp_path / "run"
    process = started(out)
    begun(out)
    os.replace(out, tmp_path / "moved")
    if how == "removed":
        shutil.rmtree(tmp_path / "moved")
    said = ended(process)
    found = re.search(r"No such file or directory; the last state was saved to (\S+) instead", said)
    assert found and Path(found[1]).is_file()
    shutil.rmtree(Path(found[1]).parent)


def test_a_row_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    """What a full disk takes of a row is cut off, so that the file ends with the row before."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.open(0)
    metrics.write({"generation": 1, "x": 1.0})
    own, calls = os.write, []

    def full(file, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(file, bytes(data)[:5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(EsrlError, match=r"metrics\.jsonl cannot be written: No space left on device"):
        metrics.write({"generation": 2, "x": 2.0})
    monkeypatch.undo()
    metrics.write({"generation": 2, "x": 3.0})
    metrics.close()
    assert [(row["generation"], row["x"]) for row in metrics.rows()] == [(1, 1.0), (2, 3.0)]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, code):
    esrl.train(agent(), generations=1, num_evals=0, out=tmp_path / "run")
    own = os.open

    def refused(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
            raise OSError(code, os.strerror(code))
        return own(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(EsrlError, match=rf"cannot be written: {os.strerror(code)}"):
        esrl.train(agent(), generations=1, num_evals=0, out=tmp_path / "run", resume=True)
    with pytest.raises(EsrlError, match=rf"cannot be written: {os.strerror(code)}"):
        esrl.train(agent(), generations=2, num_evals=0, out=tmp_path / "run", resume=True)


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    esrl.train(agent(), generations=2, num_evals=0, out=tmp_path / "run", checkpoint_every=1)
    assert all(row["seconds"] > 0 for row in Metrics(tmp_path / "run" / "metrics.jsonl").rows())
