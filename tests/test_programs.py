"""The short programs of docs/programs.md are as short as they say, and do what they say."""

import re
from pathlib import Path

import optuna
import pytest

from esrl.core import sharding

PAGE = (Path(__file__).parents[1] / "docs" / "programs.md").read_text()
FOUND = re.findall(r"^## ([^\n]+)\n\nIn (\d+) lines or fewer.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)
PROGRAMS = {name: (int(most), text) for name, most, text in FOUND}
SMALLER = {
    r"\benv_steps=[\d.e]+": "env_steps=600",
    r"\bgenerations=\d+": "generations=4",
    r"\bnum_evals=\d+": "num_evals=2, eval_episodes=4",
    r"\bn_trials=\d+": "n_trials=7",
    r"\brange\(5\)": "range(2)",
    r"\bstop_at_return=\d+": "stop_at_return=-1, num_evals=4, eval_episodes=4",
}
TINY = (  # networks and lanes that compile quickly
    'esrl.eggroll("gymnasium/phys2d/CartPole-v1")',
    'esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)))',
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, lenient):
    """Runs a program with smaller budgets; gives its names and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())  # four compile several times longer
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def ran(name):
        text = PROGRAMS[name][1].replace(*TINY)
        for whole, small in SMALLER.items():
            text = re.sub(whole, small, text)
        names = {"__name__": "program"}
        exec(compile(text, name, "exec"), names)
        return names, capsys.readouterr().out

    return ran


def test_there_are_five_as_short_as_they_say():
    assert [most for most, _ in PROGRAMS.values()] == [12, 10, 13, 6, 8]
    for name, (most, text) in PROGRAMS.items():
        assert sum(1 for line in text.splitlines() if line.strip()) <= most, name


def test_train_score_save_load_act(run, tmp_path):
    names, out = run("Train, score, save, load, act")
    assert names["over"] and names["terminated"] and names["observation"].shape == (4,)
    assert (tmp_path / "runs" / "program" / "recipe.toml").exists() and float(out.splitlines()[-1]) > 0


def test_stop_early_with_a_logger_of_ones_own(run):
    _, out = run("Stop early, with a logger of your own")
    lines = out.splitlines()
    assert lines[0].startswith("eggroll on ") and lines[-1] == "finished"
    assert [line.split()[2] == "None" for line in lines[1:-1]][-1] is False  # the last generation was scored


def test_search_with_optuna(run):
    names, _ = run("Search with Optuna")
    study = names["study"]
    assert len(study.trials) == 7 and set(study.best_params) == {"sigma", "learning_rate"}


def test_sweep_a_value(run, tmp_path):
    names, out = run("Sweep a value")
    assert [(row["seed"], row["sigma"]) for row in names["sweep"].final] == [(0, 0.05), (1, 0.05), (0, 0.2), (1, 0.2)]
    assert out.splitlines()[0].split()[:2] == ["seed", "sigma"] and (tmp_path / "sweep.png").stat().st_size > 1000


def test_compare_three_agents(run, tmp_path, monkeypatch):
    import esrl

    lanes = {"num_envs": 8, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1}
    for name, small in (("eggroll", {}), ("open_es", {}), ("ppo", lanes)):
        make = getattr(esrl, name)
        monkeypatch.setattr(esrl, name, lambda env, make=make, small=small: make(env, esrl.mlp((4,)), **small))
    names, out = run("Compare three agents")
    labels = [text.get_text() for text in names["axes"].get_legend().get_texts()]
    assert labels == ["eggroll (2 runs)", "open_es (2 runs)", "ppo (2 runs)"]
    assert len(out.splitlines()) == 3 and (tmp_path / "three.png").stat().st_size > 1000
