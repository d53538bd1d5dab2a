"""Runs that end before their budget does; trackers, which are told what the run's files are told, and stop nothing."""

import subprocess
import sys
import types

import pytest

import esrl
from esrl import EsrlError
from esrl.training import trackers
from esrl.training.logs import Metrics

CARTPOLE = "gymnasium/phys2d/CartPole-v1"


def agent():
    return esrl.eggroll(CARTPOLE, esrl.mlp((4,)), population=8)


class Recorder:
    """Keeps what it is told; raises at a step where it is told to."""

    def __init__(self, fails_at=None):
        self.said, self._fails_at = [], fails_at

    def start(self, name, recipe, folder):
        self.said.append(("start", name, recipe["agent"], folder))

    def log(self, values, step):
        if len(self.said) == self._fails_at:
            raise RuntimeError("the server is gone")
        self.said.append((step, values))

    def end(self, finished):
        self.said.append(("end", finished))


def test_a_tracker_is_told_what_the_folder_is_told(tmp_path):
    tracker = Recorder()
    esrl.train(agent(), generations=3, num_evals=1, eval_episodes=4, out=tmp_path / "run", track=tracker)
    first, *logged, last = tracker.said
    rows = Metrics(tmp_path / "run" / "metrics.jsonl").rows()
    assert first == ("start", "run", "eggroll", tmp_path / "run") and last == ("end", True)
    assert [step for step, _ in logged] == [row["env_steps"] for row in rows]
    assert logged[-1][1]["eval/return_mean"] == rows[-1]["eval_return_mean"]
    assert logged[-1][1]["population/fitness_max"] == rows[-1]["fitness_max"]
    assert {name.partition("/")[0] for _, values in logged for name in values} == {
        "eval",
        "train",
        "population",
        "time",
    }


def test_a_tracker_that_fails_stops_nothing(capsys):
    tracker = Recorder(fails_at=2)
    result = esrl.train(agent(), generations=3, num_evals=0, track=tracker)
    assert int(result.state.generation) == 3 and len(tracker.said) == 2
    assert capsys.readouterr().err.count("Recorder failed (RuntimeError: the server is gone)") == 1


def test_a_run_that_is_broken_off_says_so():
    tracker = Recorder()
    for _ in esrl.iterate(agent(), generations=9, num_evals=0, track=tracker):
        break
    assert tracker.said[-1] == ("end", False)


@pytest.mark.parametrize("track", ["wandbb", 3, object()])
def test_what_tracks_nothing_is_refused(track):
    with pytest.raises(EsrlError, match=r"track is .*wandb"):
        esrl.iterate(agent(), generations=1, track=track)


def test_a_tracker_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(EsrlError, match=r"--track mlflow needs the package mlflow; .*esrl\[mlflow\]"):
        esrl.train(agent(), generations=1, num_evals=0, track="mlflow")


def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    code = (
        f"import esrl; a = esrl.eggroll({CARTPOLE!r}, esrl.mlp((4,)), population=8);"
        "esrl.train(a, generations=2, num_evals=0, out='run', track='wandb')"
    )
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    assert list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))


def test_mlflow_and_trackio_are_called_as_they_document(monkeypatch):
    """Their own packages are large; their calls are recorded by modules of the same functions. Where they are
    installed, the next test asks them."""
    called = []

    def recording(name, result=None):
        def call(*args, **given):
            called.append((name, args, given))
            return result

        return call

    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))
    mlflow = types.ModuleType("mlflow")
    for name in ("set_experiment", "log_params", "log_metrics", "end_run"):
        setattr(mlflow, name, recording(name))
    mlflow.start_run, mlflow.active_run = recording("start_run", run), lambda: None
    trackio = types.ModuleType("trackio")
    for name in ("init", "log", "finish"):
        setattr(trackio, name, recording(name))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for track, calls in {
        "mlflow": ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"],
        "trackio": ["init", "log", "finish"],
    }.items():
        called.clear()
        esrl.train(agent(), generations=1, num_evals=0, track=track)
        assert [name for name, _, _ in called] == calls


def test_what_a_package_prints_keeps_standard_output_free(capsys, monkeypatch):
    class Printing(Recorder):
        def start(self, name, recipe, folder):
            print("a greeting")

    monkeypatch.setitem(trackers.TRACKERS, "trackio", Printing)
    esrl.train(agent(), generations=1, num_evals=0, track="trackio")
    said = capsys.readouterr()
    assert not said.out and "a greeting" in said.err
    esrl.train(agent(), generations=1, num_evals=0, track=Printing())  # the user's own, who wants to see it
    assert capsys.readouterr().out == "a greeting\n"


READ = {  # what a package has stored of a run, as {step: value of eval/return_mean or None}
    "mlflow": """
import mlflow
run, = mlflow.search_runs(experiment_names=["esrl"], output_format="list")
assert run.info.status == "FINISHED" and run.info.run_name == "run", run
assert run.data.params["agent"] == "eggroll" and run.data.params["options.population"] == "8", run.data.params
history = lambda name: mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
found = {m.step: None for m in history("train/return_mean")} | {m.step: m.value for m in history("eval/return_mean")}
""",
    "trackio": """
import glob, json, os, sqlite3
path, = glob.glob(os.path.expanduser("~/.cache/huggingface/trackio/esrl.db"))
with sqlite3.connect(path) as db:
    (config,), = db.execute("select config from configs where run_name = 'run'").fetchall()
    rows = db.execute("select step, metrics from metrics where run_name = 'run'").fetchall()
assert json.loads(config)["options.population"] == 8, config
found = {step: json.loads(values).get("eval/return_mean") for step, values in rows}
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("track", READ)
def test_the_packages_store_what_the_folder_has(track, tmp_path):
    """Asked of the packages themselves, in processes of their own, without a network."""
    pytest.importorskip(track)
    train = (
        f"import esrl; a = esrl.eggroll({CARTPOLE!r}, esrl.mlp((4,)), population=8);"
        f"esrl.train(a, generations=3, num_evals=1, eval_episodes=4, out='run', track={track!r})"
    )
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    for code in (train, READ[track] + "print(sorted(found.items()))"):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    rows = Metrics(tmp_path / "run" / "metrics.jsonl").rows()
    assert done.stdout.strip() == str([(row["env_steps"], row.get("eval_return_mean")) for row in rows])


def test_a_run_ends_at_a_return(tmp_path):
    given = {"generations": 50, "num_evals": 50, "eval_episodes": 8, "stop_at_return": 1.0, "out": tmp_path / "run"}
    result = esrl.train(agent(), **given)
    assert int(result.state.generation) == 1 and result.metrics["eval_return_mean"] >= 1.0
    assert int(esrl.train(agent(), **given, resume=True).state.generation) == 1
    with pytest.raises(EsrlError, match="stop_at_return is given, but nothing is scored"):
        esrl.iterate(agent(), generations=1, num_evals=0, stop_at_return=1.0)
    with pytest.raises(EsrlError, match='keep is "best", but nothing is scored'):
        esrl.iterate(agent(), generations=1, num_evals=0, keep="best", out=tmp_path / "best")


def test_a_run_ends_after_minutes_and_goes_on(tmp_path):
    result = esrl.train(agent(), generations=10**6, num_evals=0, minutes=1e-3, out=tmp_path / "run")
    done = int(result.state.generation)
    assert 1 <= done < 10**6
    again = esrl.train(agent(), generations=done + 2, num_evals=0, minutes=10.0, out=tmp_path / "run", resume=True)
    assert int(again.state.generation) == done + 2


def test_groups():
    assert trackers.grouped({"generation": 3, "x": float("nan"), "kl": 0.5, "sigma": 1, "text": "a", "none": None}) == {
        "losses/kl": 0.5,
        "population/sigma": 1,
    }
