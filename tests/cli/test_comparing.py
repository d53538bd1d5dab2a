"""Commands over many runs: plot joins what differs by seeds alone, compare and tune go on where they were stopped."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import tomllib
from unittest import mock

import numpy as np
import optuna
import pytest

from esrl.cli import remote_trials
from esrl.cli.comparing import compare
from esrl.cli.invocation import invocation
from esrl.cli.main import main
from esrl.cli.plotting import panels_of, summary
from esrl.cli.remote_trials import of_trials
from esrl.cli.trials import Here, Step
from esrl.cli.tuning import Search
from esrl.core import sharding
from esrl.core.types import EsrlError
from esrl.training.loop import Run
from esrl.training.recipe import Recipe

ENV = "gymnasium/phys2d/CartPole-v1"
TINY = ("--hidden", "4", "--num-evals", "2", "--eval-episodes", "4")
LANES = ("--num-envs", "8", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, lenient):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())  # four compile several times longer


def ran(capsys, *argv):
    status = main([str(word) for word in argv])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def refused(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.startswith("esrl: notice:")]
    assert len(lines) == 1 and lines[0].startswith("esrl: error: "), err
    return lines[0]


# ---- plot -----------------------------------------------------------------------------------------------------------


def a_run(path, seed, scores, env="brax/ant", agent="eggroll", options=None, step=100):
    path.mkdir(parents=True)
    tables = "".join(f"{name} = {value}\n" for name, value in (options or {}).items())
    (path / "recipe.toml").write_text(f'env = "{env}"\nagent = "{agent}"\nseed = {seed}\n[options]\n{tables}')
    rows = [
        {"generation": n, "env_steps": step * n, "seconds_training": 0.1 * n, "eval_return_mean": score}
        for n, score in enumerate(scores, 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_plot_joins_what_differs_by_its_seed_alone(tmp_path, capsys):
    for seed in range(3):
        a_run(tmp_path / "runs" / f"a{seed}", seed, [1.0, 10.0 + seed], options={"sigma": 0.1, "rank": 1})
        a_run(tmp_path / "runs" / f"b{seed}", seed, [1.0, 20.0 + seed], options={"sigma": 0.5, "rank": 1})
    a_run(tmp_path / "runs" / "p", 0, [3.0], agent="ppo")
    a_run(tmp_path / "runs" / "h", 0, [3.0, 4.0], env="$brax^/hopper$", agent="ppo")  # no formula
    panels = panels_of([tmp_path / "runs"], "env_steps")
    assert {env: list(groups) for env, groups in panels.items()} == {
        "brax/ant": ["eggroll, sigma=0.1", "eggroll, sigma=0.5", "ppo"],
        "$brax^/hopper$": ["ppo"],
    }
    ends = {row["line"]: row["last return (IQM)"] for row in summary(panels) if row["environment"] == "brax/ant"}
    assert ends == {"eggroll, sigma=0.1": 11.0, "eggroll, sigma=0.5": 21.0, "ppo": 3.0}
    for form in ("png", "svg"):
        out = ran(capsys, "plot", "runs", "--x", "seconds", "--out", f"new/curves.{form}")
        assert "eggroll, sigma=0.5" in out and (tmp_path / "new" / f"curves.{form}").stat().st_size > 1000


def test_plot_says_what_it_cannot_draw(tmp_path, capsys):
    assert "there are no runs in nowhere" in refused(capsys, "plot", "nowhere")
    assert "--out is curves.txt" in refused(capsys, "plot", "runs", "--out", "curves.txt")
    assert "env_steps" in refused(capsys, "plot", "runs", "--x", "hours")
    a_run(tmp_path / "runs" / "one", 0, [])
    assert "none of 1 runs has a held-out score" in refused(capsys, "plot", "runs")
    a_run(tmp_path / "runs" / "two", 0, [1.0])
    (tmp_path / "runs" / "three").mkdir()
    (tmp_path / "runs" / "three" / "recipe.toml").write_text("env = ")
    assert main(["plot", "runs"]) == 0
    err = capsys.readouterr().err
    assert "three is left out" in err and "1 runs without a held-out score are left out" in err


# ---- compare --------------------------------------------------------------------------------------------------------


def evaluations(folder):
    return list(csv.DictReader(io.StringIO((folder / "evaluations.csv").read_text())))


def test_compare_goes_on_where_it_was_stopped(tmp_path, capsys):
    command = ("compare", ENV, "--agents", "eggroll", "PPO", "--seeds", 2, "--env-steps", 2000, *TINY, *LANES)
    out = ran(capsys, *command, "--out", "all")
    assert "[4/4] ppo, seed 1" in out and "final return (IQM)" in out
    rows = evaluations(tmp_path / "all")
    assert {(row["agent"], row["seed"]) for row in rows} == {(a, s) for a in ("eggroll", "ppo") for s in "01"}
    assert (tmp_path / "all" / "compare.png").stat().st_size > 1000

    # As a kill leaves it: one run without its last checkpoint, one that never began.
    whole = [(row["agent"], row["seed"], row["generation"], row["eval_return_mean"]) for row in rows]
    last = max((tmp_path / "all" / "eggroll-seed1" / "checkpoints").glob("*.safetensors"))
    last.unlink()
    for path in sorted((tmp_path / "all" / "ppo-seed1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "all" / "ppo-seed1").rmdir()
    assert ran(capsys, *command, "--out", "all").count("is finished already") == 2
    rows = evaluations(tmp_path / "all")
    assert [(row["agent"], row["seed"], row["generation"], row["eval_return_mean"]) for row in rows] == whole

    found = json.loads(ran(capsys, *command, "--out", "all", "--json"))
    assert [row["agent"] for row in found["agents"]] == ["eggroll", "ppo"]
    ends = {row["seed"]: float(row["eval_return_mean"]) for row in rows if row["agent"] == "ppo"}  # the last of each
    np.testing.assert_allclose(found["agents"][1]["final return (IQM)"], np.mean(list(ends.values())))
    assert "sigma: the run has" in refused(capsys, *command, "--out", "all", "--sigma", "0.5")


def test_flags_of_compare_go_to_the_agents_that_have_them(capsys):
    argv = [ENV, "--agents", "eggroll,ppo", "--population", "16", "--gae-lambda", "0.9", "--lr", "0.01", "--seed", "4"]
    made = invocation(compare, argv)["recipes"]
    assert [(r.agent, r.options) for r in made] == [
        ("eggroll", {"population": 16, "learning_rate": 0.01}),
        ("ppo", {"gae_lambda": 0.9, "learning_rate": 0.01}),
    ]
    assert all(recipe.seed == 4 and recipe.env_steps == 1e6 for recipe in made)
    said = capsys.readouterr().err
    assert "--population is an option of eggroll alone" in said and "--gae-lambda is an option of ppo alone" in said
    assert "none of eggroll, open_es has the option gae_lambda" in refused(
        capsys, "compare", ENV, "--agents", "eggroll", "open_es", "--gae-lambda", "0.9"
    )
    assert "unknown agent 'egroll'; did you mean eggroll" in refused(capsys, "compare", ENV, "--agents", "egroll")
    assert "--seeds is 0" in refused(capsys, "compare", ENV, "--seeds", "0")
    assert "give at least 1" in refused(capsys, "compare", ENV, "--num-evals", "0")
    assert "say what to train on" in refused(capsys, "compare")


# ---- tune -----------------------------------------------------------------------------------------------------------


RANGES = {"sigma": (0.01, 0.25), "learning_rate": (0.02, 2.0)}


@contextlib.contextmanager
def study_of(folder):
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    yield optuna.load_study(study_name="esrl", storage=storage)
    storage.engine.dispose()


def values_of(folder):
    with study_of(folder) as study:
        return [(t.user_attrs["used"], t.user_attrs["last"]) for t in study.trials if "used" in t.user_attrs]


def test_tune_goes_on_and_its_best_is_a_recipe(tmp_path, capsys):
    command = ("tune", ENV, "--population", 8, "--env-steps", 1000, *TINY, "--out", "search")
    ran(capsys, *command, "--trials", 2)
    first = values_of(tmp_path / "search")
    assert len(first) == 2 and set(first[0][0]) == {"sigma", "learning_rate"}  # the population was given
    assert first[0][0] == {"sigma": 0.05, "learning_rate": 0.2}  # the defaults

    with study_of(tmp_path / "search") as study:
        left = study.ask()  # as a kill leaves a trial
        asked = {name: left.suggest_float(name, *ends, log=True) for name, ends in RANGES.items()}
    out = ran(capsys, *command, "--trials", 4)
    found = values_of(tmp_path / "search")
    assert found[:2] == first and len(found) == 4
    np.testing.assert_allclose([found[2][0][name] for name in RANGES], [asked[name] for name in RANGES], rtol=1e-3)
    assert len({used["sigma"] for used, _ in found}) == 4  # nothing is drawn twice

    best = max((last, json.dumps(used)) for used, last in found)
    recipe = tomllib.loads((tmp_path / "search" / "best.toml").read_text())
    assert {name: recipe["options"][name] for name in ("sigma", "learning_rate")} == json.loads(best[1])
    assert "train the best" in out
    trained = json.loads(ran(capsys, "train", "search/best.toml", "--out", "again", "--json"))
    assert trained["return_mean"] == best[0]
    assert "another env_steps" in refused(capsys, *command[:5], "2000", *TINY, "--out", "search")


def generations_of(folder):
    """The generations in a run's rows, in their order."""
    return [json.loads(line)["generation"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_trial_that_was_stopped_or_killed_in_the_middle_goes_on_from_there(tmp_path, capsys, monkeypatch):
    command = ("tune", ENV, "--population", 8, "--generations", 12, *TINY, "--trials", 2, "--out")
    played, steps = [], []
    generation, wait = Run._generation, Here.wait

    def counted(run, *args, **options):
        played.append(run.folder.path)
        return generation(run, *args, **options)

    def stopped(here):
        steps.append(len(played))
        if len(steps) == 4:  # the second trial has had its first evaluation
            shutil.copytree(tmp_path / "stopped", tmp_path / "killed")  # what a kill would leave
            os.kill(os.getpid(), signal.SIGINT)
        return wait(here)

    monkeypatch.setattr(Run, "_generation", counted)
    ran(capsys, *command, "whole")
    whole, generations = values_of(tmp_path / "whole"), len(played)
    played.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Here, "wait", stopped)
        assert main([str(word) for word in (*command, "stopped")]) == 128 + signal.SIGINT
    assert steps[3] < len(played) < generations
    ran(capsys, *command, "stopped")
    assert values_of(tmp_path / "stopped") == whole
    assert len(played) == generations  # none was played twice
    played.clear()
    ran(capsys, *command, "killed")
    assert values_of(tmp_path / "killed") == whole
    assert len(played) <= generations - steps[3]
    for name in ("whole", "stopped", "killed"):
        assert sorted(path.name for path in (tmp_path / name / "trials").iterdir()) == ["0000", "0001"]
        found = generations_of(tmp_path / name / "trials" / "0001")
        assert found == list(range(1, len(found) + 1))


def test_a_trial_that_is_killed_at_its_very_end_counts_once(tmp_path, capsys):
    command = ("tune", ENV, "--population", 8, "--generations", 2, *TINY, "--out", "search")
    ran(capsys, *command, "--trials", 1)
    with study_of(tmp_path / "search") as study:
        last = study.ask()  # and then the study was not told
        for name, ends in RANGES.items():
            last.suggest_float(name, *ends, log=True)
        for name, value in {"used": {"sigma": 0.1, "learning_rate": 0.1}, "last": 1.0}.items():
            last.set_user_attr(name, value)
    out = json.loads(ran(capsys, *command, "--trials", 2, "--json"))
    assert len(out["trials"]) == 2
    assert {row["sigma"] for row in out["trials"]} != {0.1}


class OneCore(Here):
    """Two slots and a single core, which a slot has until it rests."""

    slots = 2

    def __init__(self, player):
        super().__init__(player)
        self.holder, self.waiting = None, []

    def begin(self, slot, params, folder):
        if self.holder not in (None, slot):
            self.waiting.append((slot, params, folder))
            return
        self.holder = slot
        super().begin(slot, params, folder)

    def rest(self, slot):
        if slot == self.holder:
            self.holder = None
            if self.waiting:
                self.begin(*self.waiting.pop())

    def wait(self):
        assert self._waits, "what is under way waits for a core that nobody gives back"
        return [(self.holder, answer) for _, answer in super().wait()]


def test_a_trial_that_waits_for_a_core_has_that_of_a_slot_without_trials(capsys, monkeypatch):
    monkeypatch.setattr(Search, "_players", lambda search, *_: OneCore(search._player))
    command = ("tune", ENV, "--population", 8, "--generations", 2, *TINY, "--trials", 3, "--out", "search", "--json")
    assert len(json.loads(ran(capsys, *command))["trials"]) == 3


def test_a_trial_whose_process_has_not_begun_is_stopped_without_it(tmp_path, monkeypatch):
    session = mock.MagicMock(cores=1)
    monkeypatch.setattr(remote_trials, "Session", lambda *_: session)
    players = remote_trials.Everywhere(Recipe(ENV), tmp_path, "auto", None, 1, tell=print)
    players.begin(0, {}, tmp_path)
    players.stop()
    assert players.wait() == [(0, Step([], over=False, stopped=True, seconds=0.0))]
    session.ray.kill.assert_called_once()


def test_trials_on_a_cluster_are_played_by_one_process_each(tmp_path):
    recipe = Recipe(ENV, env_steps=1000, ray_address="auto", workers=3, block_pairs=2)
    assert of_trials(recipe) == Recipe(ENV, env_steps=1000, block_pairs=2)
    with pytest.raises(EsrlError, match="close_at is of workers"):
        of_trials(dataclasses.replace(recipe, close_at=0.9))


def test_tune_says_what_it_cannot_search(capsys, monkeypatch):
    assert "nothing to search of the agent random" in refused(capsys, "tune", ENV, "--agent", "random")
    assert "--trials" in refused(capsys, "tune", ENV, "--trials", "0")
    given = ("--sigma", "0.1", "--learning-rate", "0.1", "--population", "8")
    assert "every option" in refused(capsys, "tune", ENV, *given, "--out", "missing")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'esrl[experiments]'" in refused(capsys, "tune", ENV, "--out", "missing")
    assert not os.path.exists("missing")
