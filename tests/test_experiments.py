"""A comparison and a sweep in small: they go on where they were, and tables and figures are made from them."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("seaborn")

ROOT = Path(__file__).parents[1]
ENV = "gymnasium/phys2d/CartPole-v1"
RECIPE = f"""# 2020-01-01: what it reached before.
#
# Why it is so.
env = "{ENV}"
agent = "AGENT"
generations = 3

[policy]
hidden = [4]

[options]
population = 16
"""
SMALL = ("--episodes", "4", "--evaluations", "3")


@pytest.fixture
def script(monkeypatch, capsys, lenient):
    """Runs a script of the repository in this process, and returns what it prints."""

    def run(name, *arguments):
        path = ROOT / name
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def recipes(tmp_path):
    folder = tmp_path / "agents" / ENV
    folder.mkdir(parents=True)
    for agent in ("eggroll", "open_es"):
        (folder / f"{agent}.toml").write_text(RECIPE.replace("AGENT", agent))
    return folder


def test_comparison(script, recipes, tmp_path):
    out, folder = tmp_path / "compare", recipes.parents[2]
    options = ("--recipes", folder, "--out", out, *SMALL)
    script("experiments/compare.py", ENV, "--agents", "eggroll", "--seeds", "1", *options)  # a process of its own
    first = read(out / ENV.replace("/", "-") / "eggroll.csv")
    shown = script("experiments/compare.py", "--seeds", "2", "--here", *options)
    assert "seed 1:" in shown and "open_es" in shown and len(shown.split("seed 0:")) == 2

    rows = read(out / ENV.replace("/", "-") / "eggroll.csv")
    assert rows[: len(first)] == first
    assert [(row["seed"], row["generation"]) for row in rows] == [(s, g) for s in "01" for g in "0123"]
    about = json.loads((out / ENV.replace("/", "-") / "eggroll.json").read_text())
    assert [entry["runs"] for entry in about["measured"]] == [[0], [1]] and not about["failed"]

    table = script("experiments/table.py", "--results", out, "--recipes", folder, "--headers")
    assert f"| `{ENV}` | EGGROLL | 2 |" in table and f"| `{ENV}` | OpenES | 2 |" in table
    text = (recipes / "eggroll.toml").read_text()
    assert "seeds 0 to 1: held-out return" in text and "reached before" not in text
    assert text.endswith(RECIPE[RECIPE.index("#\n") :].replace("AGENT", "eggroll"))
    script("experiments/table.py", "--results", out, "--recipes", folder, "--headers")
    assert (recipes / "eggroll.toml").read_text() == text

    script("plots/compare.py", "--results", out, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size and (tmp_path / "figure_seconds.png").stat().st_size


def test_what_fails_is_noted_and_the_rest_goes_on(script, recipes, tmp_path):
    recipe = recipes / "eggroll.toml"
    recipe.write_text(recipe.read_text() + "sigma = -1.0\n")
    options = ("--recipes", recipes.parents[2], "--out", tmp_path, "--here", "--seeds", "1", *SMALL)
    with pytest.raises(SystemExit, match=f"{ENV}, eggroll, seed 0"):
        script("experiments/compare.py", *options)
    folder = tmp_path / ENV.replace("/", "-")
    assert "sigma is -1.0" in json.loads((folder / "eggroll.json").read_text())["failed"]["0"]
    assert read(folder / "open_es.csv")


def test_sweep(script, recipes, tmp_path):
    out = tmp_path / "sweep"
    options = (ENV, "--recipe", recipes / "eggroll.toml", "--out", out, "--populations", "16", "--seeds", "2", *SMALL)
    script("experiments/sweep.py", *options, "--ranks", "1", "--sigmas", "0.1")
    script("experiments/sweep.py", *options, "--ranks", "1", "dense", "--sigmas", "0.1", "0.3")
    rows = read(out / f"{ENV.replace('/', '-')}.csv")
    ends = [(row["rank"], row["sigma"], row["seed"]) for row in rows if row["generation"] == "3"]
    assert sorted(ends) == [(r, s, i) for r in ("1", "dense") for s in ("0.1", "0.3") for i in "01"]
    script("plots/sweep.py", "--results", out, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size
