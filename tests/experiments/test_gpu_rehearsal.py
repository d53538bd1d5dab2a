"""`make gpu` on a machine without a GPU: its parts run in small, one after another, and say what they left out."""

import json

import pytest

pytest.importorskip("tyro")

from experiments.gpu import run

HERE = {"platform": "cpu", "device": "cpu", "devices": 4, "jax": "0", "driver": "", "packages": []}


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(run, "machine", lambda: HERE)
    monkeypatch.setattr("sys.argv", ["run.py"])
    with pytest.raises(SystemExit) as end:
        run.main()
    said = capsys.readouterr().out
    assert end.value.code == 1 and said.startswith("no GPU: JAX has 4 x cpu here") and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_a_rehearsal_writes_every_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "machine", lambda: HERE)
    monkeypatch.setattr(
        "sys.argv", ["run.py", "--rehearse", "--out", str(tmp_path), "--parts", "tests", "kernel", "speed"]
    )
    run.main()
    ended = json.loads((tmp_path / "machine.json").read_text())["parts"]
    assert ended == {"tests": "left out: a rehearsal has no GPU", "kernel": "rehearsed", "speed": "rehearsed"}
    page = (tmp_path / "README.md").read_text()
    assert "figures mean nothing" in page and "| 3x16 | 16 | float32 | always |" in page
    assert "| gymnax/CartPole-v1 | 8 | EGGROLL, rank 1 |" in page


def test_time_that_is_over_is_said_and_what_hangs_is_stopped(monkeypatch, capsys, tmp_path):
    """With made-up parts: one that ends, one that hangs and keeps its rows, and one for which no time is left."""
    monkeypatch.setattr(run, "machine", lambda: HERE | {"platform": "gpu"})
    monkeypatch.setattr(run, "LIMITS", {"good": 60.0, "hangs": 0.1, "late": 60.0})
    monkeypatch.setattr(run, "LEAST", -1.0)
    code = {"good": "print('done')", "hangs": "import time; time.sleep(60)", "late": ""}
    monkeypatch.setattr(run, "command_of", lambda part, out: [run.sys.executable, "-S", "-c", code[part]])
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path), "--parts", *code])
    run.main()
    ended = json.loads((tmp_path / "machine.json").read_text())["parts"]
    assert ended["good"].endswith(" s") and ended["hangs"] == "stopped after 0 s; rows so far are kept"
    monkeypatch.setattr(run, "LEAST", 1e9)
    run.main()
    assert "left out: the minutes were over" in (tmp_path / "README.md").read_text()
