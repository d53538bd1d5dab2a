"""Tuning: spaces, trials that are neither lost nor done twice, and a study that is really killed."""

import contextlib
import csv
import importlib
import json
import math
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import esrl
from esrl.core.options import options_of
from esrl.core.types import EsrlError
from esrl.training import recipe as recipes

optuna = pytest.importorskip("optuna")
pytest.importorskip("pandas")

ROOT = Path(__file__).parents[2]
SCRIPT = "experiments.study.tune"
ENV = "gymnasium/phys2d/CartPole-v1"
SPACE = """
[policy]
hidden = [[4]]
[es]
population = 16
sigma = { low = 0.02, high = 0.5, log = true }
rank = [1, 2]
[ppo]
num_envs = 8
num_steps = 16
learning_rate = { low = 1e-4, high = 1e-2, log = true }
"""
SMALL = ("--episodes", "4", "--evaluations", "2", "--final-evaluations", "2", "--final-seeds", "2")


@pytest.fixture
def module(monkeypatch):
    """A module of experiments/ by its name."""
    return importlib.import_module


@pytest.fixture
def space_file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def settings(module, space_file):
    spaces = module("experiments.lab.spaces")
    space = spaces.read(str(space_file), "eggroll")
    budget = {"seconds": None, "env_steps": 1000, "evaluations": 2, "episodes": 4}
    found = {"env": ENV, "agent": "eggroll", "space_name": "small", "space": space, **budget, "pruning": False}
    return found | {"default": spaces.default(space, ENV, "eggroll"), "sampler": "random", "seed": 0}


@pytest.fixture
def tune(monkeypatch, module, capsys, lenient):
    """Runs the script in this process with these words, and returns what it prints."""

    def run(*words):
        module("experiments.study.trials")
        monkeypatch.delitem(sys.modules, SCRIPT, raising=False)
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, words)])
        runpy.run_module(SCRIPT, run_name="__main__", alter_sys=True)
        return capsys.readouterr().out

    return run


# ---- spaces ---------------------------------------------------------------------------------------------------------


def test_the_papers_space_holds_the_papers_configurations(module):
    spaces, paper = module("experiments.lab.spaces"), module("experiments.paper.recipes")
    configurations = paper.configurations(tomllib.loads(paper.DATA.read_text()))
    for agent in paper.AGENTS:
        space = spaces.read("paper", agent)["options"]
        for table in configurations.values():
            for name, value in paper.options(agent, table[agent]).items():
                assert value in space[name] if isinstance(space[name], list) else value == space[name], (agent, name)
        assert ("rank" in space) == (agent == "eggroll")


@pytest.mark.parametrize("name", ["esrl", "paper"])
@pytest.mark.parametrize("agent", ["eggroll", "open_es", "ppo"])
def test_a_space_begins_at_the_nearest_defaults_and_samples_what_makes_sense(module, name, agent):
    spaces = module("experiments.lab.spaces")
    space = spaces.read(name, agent)
    first = spaces.suggest(optuna.trial.FixedTrial(spaces.default(space, ENV, agent)), space, ENV, agent)
    own = options_of(recipes.AGENTS[agent])
    for key, value in first["options"].items():
        given, usual = space["options"][key], own[key].default
        if isinstance(given, list) and usual in given:
            assert value == usual, key
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        chosen = spaces.suggest(study.ask(), space, ENV, agent)
        structure, values = spaces.split(agent, chosen["options"])
        assert structure | values == chosen["options"] and structure.keys().isdisjoint(spaces.traced(agent))
        recipes.network_from(chosen["policy"])


def test_suite_defaults_hold_where_a_space_names_nothing(module, space_file):
    spaces = module("experiments.lab.spaces")
    space = spaces.read(str(space_file), "eggroll")
    env = "navix/Navix-FourRooms-v0"
    default = spaces.default(space, env, "eggroll")
    assert spaces.suggest(optuna.trial.FixedTrial(default), space, env, "eggroll")["options"]["deterministic"] is False


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[es]\npopulaton = 4", "populaton of .eggroll. is unknown; did you mean population"),
        ("[ess]\npopulation = 4", "'ess' is no table"),
        ("[es]\nsigma = []", "no choices"),
        ("[es]\nsigma = {low = 0.0, high = 1.0, log = true}", "low must be below high, and above 0"),
        ("[es]\nsigma = {low = 1.0}", "a range is"),
        ("[es]\nshaping = {low = 1.0, high = 2.0}", "is no number"),
        ("[es]\npopulation = [8, 'many']", "'many', but must be a whole number"),
        ("[policy]\nactivation = 3", "must be a text"),
        ("[es", "cannot be read"),
    ],
)
def test_bad_spaces_get_a_sentence(module, tmp_path, text, sentence):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(EsrlError, match=sentence):
        module("experiments.lab.spaces").read(str(path), "eggroll")


# ---- trials ---------------------------------------------------------------------------------------------------------


def test_slots_are_taken_once_and_given_back_with_their_parameters(module, settings, tmp_path):
    trials = module("experiments.study.trials")
    database = tmp_path / "s" / "eggroll.db"
    study = trials.load(database, "eggroll", settings)
    assert trials.claim(database, study, settings) is None and trials.queue(study, settings, 4) == 0
    claimed = [trials.claim(database, study, settings) for _ in range(3)]
    assert claimed[0][1]["options"]["sigma"] == 0.05  # the default comes first
    study.tell(claimed[1][0], 7.0)
    assert trials.queue(study, settings, 4) == 2 and trials.queue(study, settings, 4) == 0
    assert [t.user_attrs["slot"] for t in trials.ended(study, 4)] == [1]

    again = [trials.claim(database, trials.load(database, "eggroll"), settings) for _ in range(3)]
    again.sort(key=lambda found: found[0].user_attrs["slot"])
    assert [trial.user_attrs["slot"] for trial, _ in again] == [0, 2, 3]
    assert [chosen for _, chosen in again[:2]] == [claimed[0][1], claimed[2][1]]
    assert trials.claim(database, study, settings) is None

    other = trials.load(tmp_path / "o.db", "eggroll", settings)  # random search: a slot's parameters are its own
    trials.queue(other, settings, 4)
    for trial, chosen in (trials.claim(tmp_path / "o.db", other, settings) for _ in range(4)):
        expected = {t.user_attrs["slot"]: c for t, c in (claimed[1], *again)}[trial.user_attrs["slot"]]
        assert chosen == expected


def test_a_trial_that_is_killed_at_its_end_is_lost_and_fewer_trials_may_be_wanted(module, settings, tmp_path):
    trials = module("experiments.study.trials")
    database = tmp_path / "eggroll.db"
    study = trials.load(database, "eggroll", settings)
    trials.queue(study, settings, 6)
    trial, chosen = trials.claim(database, study, settings)
    trial.set_user_attr("used", {"seconds": 1.0})  # and then it was killed, before the study was told
    assert trials.queue(study, settings, 2) == 1 and not trials.ended(study, 6)
    claimed = [trials.claim(database, study, settings) for _ in range(3)]
    assert claimed[2] is None and claimed[0][1] == chosen
    assert [found[0].user_attrs["slot"] for found in claimed[:2]] == [0, 1]


def test_a_slot_whose_process_dies_by_itself_is_given_up_after_three_times(module, settings, tmp_path):
    trials = module("experiments.study.trials")
    database = tmp_path / "eggroll.db"
    study = trials.load(database, "eggroll", settings)
    trials.queue(study, settings, 1)
    for count in range(1, 4):
        trials.claim(database, study, settings)
        assert trials.queue(study, settings, 1, crashed=True) == 1
        assert len(trials.ended(study, 1)) == (count == 3)
    assert "3 times" in trials.ended(study, 1)[0].user_attrs["error"]
    assert trials.claim(database, study, settings) is None


def test_what_has_no_return_is_worst_and_what_makes_no_sense_is_noted(module, settings, tmp_path, monkeypatch):
    trials, finals = module("experiments.study.trials"), module("experiments.study.finals")
    study = trials.load(tmp_path / "eggroll.db", "eggroll", settings)
    row = {"used": 1.0, "generation": 1, "env_steps": 5, "seconds": 1.0}
    curves = [[1.0, 3.0], [math.nan, math.nan], [2.0, 3.0], EsrlError("no finite return"), [0.0, 2.0]]

    def train(agent, budget, seed, values, worlds):
        assert worlds == trials.WORLDS and seed < trials.FIRST_FINAL_SEED
        if isinstance(curves[seed], Exception):
            raise curves[seed]
        yield {**row, "generation": 0, "used": 0.0, "return_mean": 0.0}
        for used, value in zip((0.5, 1.0), curves[seed], strict=True):
            yield {**row, "used": used, "return_mean": value}

    monkeypatch.setattr(trials, "train", train)
    trials.queue(study, settings, 5)
    runner = trials.Runner(settings)
    monkeypatch.setattr(runner, "agent", lambda policy, structure: None)
    for _ in curves:
        runner.run(study, *trials.claim(tmp_path / "eggroll.db", study, settings), 5)
    found = trials.ended(study, 5)
    assert [t.state.name for t in found] == ["COMPLETE"] * 3 + ["FAIL", "COMPLETE"]
    assert [t.value for t in found] == [3.0, -math.inf, 3.0, None, 2.0]
    assert found[3].user_attrs["error"] == "no finite return"
    assert finals.best(found).user_attrs["slot"] == 2  # as good as slot 0 in the end, and earlier
    assert finals.best(found[1:2]) is None

    once = optuna.trial.create_trial(value=9.0)  # its budget was used up at once: no evaluation on the way
    assert finals.best([*found, once]) is once


def test_a_final_seed_is_there_once_whoever_ran_it_twice(module, monkeypatch, tmp_path):
    finals, run, store = (module(f"experiments.{name}") for name in ("study.finals", "lab.run", "lab.store"))
    csv = tmp_path / "eggroll.csv"
    row = {"seed": 1000, "generation": 1, "env_steps": 5, "used": 1.0, "return_mean": 2.0, "return_std": 1.0}
    row |= {"seconds": 1.0, "seconds_compile": 1.0}
    recipe, final = esrl.Recipe(env=ENV, agent="eggroll", options={"population": 16}), {"env_steps": 5, "seconds": None}
    monkeypatch.setattr(run.budget, "train", lambda *_: iter([row]))
    table = store.Store(csv, ("seed",), order="seed")

    def missing(final, seeds):
        finals.ready(table, recipe, final)
        return finals.cells("name", table, recipe, final, seeds)

    cells = missing(final, 2)
    assert [cell.runs[0].seed for cell in cells] == [1000, 1001]
    with store.Store(csv, ("seed",), order="seed").alone():  # both are parts, and then one
        assert run.work(cells[0]) and run.work(cells[0])
    assert run.work(cells[0])
    assert [r["seed"] for r in store.read_rows(csv)] == ["1000"]
    assert [cell.runs[0].seed for cell in missing(final, 2)] == [1001]

    csv.unlink()
    assert [cell.runs[0].seed for cell in missing(final, 1)] == [1000] and csv.with_suffix(".json").exists()
    assert run.work(missing(final, 1)[0])
    assert [cell.runs[0].seed for cell in missing({**final, "env_steps": 6}, 1)] == [1000]
    assert csv.with_suffix(".csv.old").exists() and csv.with_suffix(".json.old").exists()

    def fail(*_):
        raise EsrlError("no finite return")
        yield

    monkeypatch.setattr(run.budget, "train", fail)
    assert not run.work(missing(final, 1)[0]) and not csv.exists()
    assert "no finite return" in json.loads(csv.with_suffix(".json").read_text())["failed"]["1000"]


def test_one_compiled_agent_trains_as_one_built_from_the_recipe(module, settings, lenient):
    trials, spaces = module("experiments.study.trials"), module("experiments.lab.spaces")
    budget = module("experiments.lab.budget")
    runner = trials.Runner(settings)
    rows, agents = [], []
    for sigma in (0.05, 0.3):
        options = {"population": 16, "rank": 1, "sigma": sigma, "learning_rate": 0.1}
        structure, values = spaces.split("eggroll", options)
        agents.append(runner.agent({"hidden": [4]}, structure))
        *_, row = budget.train(agents[-1], runner.budget, 3, values, trials.WORLDS)
        whole = esrl.Recipe(env=ENV, policy={"hidden": [4]}, options=options).build()
        *_, expected = budget.train(whole, runner.budget, 3, worlds=trials.WORLDS)
        assert all(row[k] == expected[k] for k in ("env_steps", "generation", "return_mean", "length_mean"))
        rows.append(row)
    assert agents[0] is agents[1] and rows[0]["env_steps"] != rows[1]["env_steps"]


# ---- the script -----------------------------------------------------------------------------------------------------


def _states(database):
    """The states of all trials, read without Optuna; none before its tables are there."""
    if not database.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            return [state for (state,) in connection.execute("SELECT state FROM trials")]
        except sqlite3.OperationalError:
            return []


def _ended(trials, database):
    study = trials.load(database, database.stem)
    return {t.user_attrs["slot"]: (t.number, t.state, t.value, t.params) for t in trials.ended(study, 100)}


def test_a_killed_study_goes_on_with_no_trial_lost_or_done_twice(module, tune, space_file, tmp_path):
    trials, out = module("experiments.study.trials"), tmp_path / "out"
    words = (ENV, "--agents", "eggroll", "--space", space_file, "--trials", "8", "--seconds", "0.5", "--no-pruning")
    words += (*SMALL, "--final-seconds", "0.3", "--processes", "2", "--out", out, "--recipes-out", tmp_path / "recipes")
    database = out / ENV.replace("/", "-") / "eggroll.db"
    command = [sys.executable, "-m", SCRIPT, *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    try:
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
            states = _states(database)
            if states.count("COMPLETE") >= 2 and "RUNNING" in states:
                break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # in the middle of it
    before = _ended(trials, database)
    running = trials.load(database, "eggroll").get_trials(states=(optuna.trial.TrialState.RUNNING,))
    assert 2 <= len(before) < 8 and running

    shown = tune(*words)
    after = _ended(trials, database)
    assert sorted(after) == list(range(8)) and {slot: after[slot] for slot in before} == before
    everything = trials.load(database, "eggroll").get_trials()
    assert len(everything) == 8 + len(running)
    for trial in running:  # the same parameters, once to their end; the kill may have come before all were drawn
        assert after[trial.user_attrs["slot"]][3].items() >= trial.params.items()
    assert len({tuple(sorted(params.items())) for *_, params in after.values()}) == 8
    assert "| eggroll | 8 | 8 | 0 | 0 |" in shown

    with database.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"1000", "1001"}
    with (database.parent / "trials" / "eggroll.csv").open(newline="") as file:
        (chosen,) = [row for row in csv.DictReader(file) if row["chosen"] == "True"]
    assert float(chosen["value"]) == max(found[2] for found in after.values())
    recipe = tmp_path / "recipes" / ENV / "eggroll.toml"
    best = max(after.values(), key=lambda found: found[2])
    read = recipes.read(recipe)
    assert read.env == ENV and read.env_steps > 0 and read.options["population"] == 16
    assert any(math.isclose(read.options["sigma"], p["options.sigma"], rel_tol=1e-3) for *_, v, p in after.values()
               if v == best[2])  # fmt: skip
    text = recipe.read_text()
    assert "seeds 1000 to 1001" in text and "8 trials of 0.5 s of training" in text.replace("\n# ", " ")

    tune(*words, "--final-seeds", "3")  # nothing again, one seed more
    assert _ended(trials, database) == after
    with database.with_suffix(".csv").open(newline="") as file:
        more = list(csv.DictReader(file))
    assert more[: len(rows)] == rows and {row["seed"] for row in more[len(rows) :]} == {"1002"}
    about = json.loads(database.with_suffix(".json").read_text())
    assert sorted(seed for entry in about["measured"] for seed in entry["runs"]) == [1000, 1001, 1002]
    assert "| eggroll | 8 | 8 | 0 | 0 |" in tune("--table", "--out", out)

    with pytest.raises(SystemExit, match="another seconds; give another --out, or --again"):
        tune(*words, "--seconds", "0.6")


def test_what_cannot_be_tuned_gets_a_sentence(module, tune, space_file, tmp_path, capsys):
    words = ("--agents", "eggroll", "--space", space_file, "--out", tmp_path)
    with pytest.raises(SystemExit, match="CartPole-v1"):
        tune("gymnasium/phys2d/CartPol-v1", *words)
    with pytest.raises(SystemExit, match="no search space esr; did you mean esrl"):
        tune(ENV, "--space", "esr")
    with pytest.raises(SystemExit, match="has no studies"):
        tune("--table", "--out", tmp_path)
    for extra, sentence in (
        (("--agents", "egroll"), "egroll is no agent"),
        (("--trials", "0"), "--trials is 0"),
        (("--seconds", "-1"), "--seconds is -1, but must be above 0"),
        (("--seconds", "many"), "--seconds"),
        (("--sampler", "best"), "invalid choice 'best'"),
        (("--secons", "1"), "--secons"),
    ):
        with pytest.raises(SystemExit):
            tune(ENV, *words, *extra)
        said = capsys.readouterr().err.strip()
        assert sentence in said and "\n" not in said
    assert not list(tmp_path.glob("*/*.db"))
    csv = tmp_path / ENV.replace("/", "-") / "eggroll.csv"
    table = module("experiments.lab.store").Store(csv, ("seed",))
    with table.alone(), pytest.raises(SystemExit, match="is being measured by another process"):
        tune(ENV, *words)
    assert not list(csv.parent.iterdir())
