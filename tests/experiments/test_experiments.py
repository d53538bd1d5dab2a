"""A comparison in small: it goes on where it was, and tables and figures are made from it."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("seaborn")

ROOT = Path(__file__).parents[2]
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
    script("experiments.study.compare", ENV, "--agents", "eggroll", "--seeds", "1", *options)  # a process of its own
    first = read(out / ENV.replace("/", "-") / "eggroll.csv")
    shown = script("experiments.study.compare", "--seeds", "2", "--here", *options)
    assert "seed 1:" in shown and "open_es" in shown and len(shown.split("seed 0:")) == 2

    rows = read(out / ENV.replace("/", "-") / "eggroll.csv")
    assert rows[: len(first)] == first
    assert [(row["seed"], row["generation"]) for row in rows] == [(s, g) for s in "01" for g in "0123"]
    about = json.loads((out / ENV.replace("/", "-") / "eggroll.json").read_text())
    assert [entry["runs"] for entry in about["measured"]] == [[0], [1]] and not about["failed"]
    assert [int(row["episodes"]) for row in rows[:4]] == [0, 32, 64, 96]
    random = read(out / ENV.replace("/", "-") / "random.csv")
    assert [(row["seed"], row["env_steps"]) for row in random] == [("0", "0"), ("1", "0")]
    assert all(8 < float(row["return_mean"]) < 60 for row in random)

    table = script("experiments.study.recipe_headers", "--results", out, "--recipes", folder, "--headers")
    assert f"| `{ENV}` | EGGROLL | 2 |" in table and f"| `{ENV}` | OpenES | 2 |" in table
    text = (recipes / "eggroll.toml").read_text()
    assert "seeds 0 to 1: held-out return" in text and "reached before" not in text
    assert text.endswith(RECIPE[RECIPE.index("#\n") :].replace("AGENT", "eggroll"))
    script("experiments.study.recipe_headers", "--results", out, "--recipes", folder, "--headers")
    assert (recipes / "eggroll.toml").read_text() == text

    script("experiments.study.curves", "--results", out, "--out", tmp_path / "figure.png")
    assert all((tmp_path / f"figure{what}.png").stat().st_size for what in ("", "_seconds", "_episodes"))


def test_comparison_in_processes(script, recipes, tmp_path):
    options = ("--recipes", recipes.parents[2], "--out", tmp_path, *SMALL, "--agents", "eggroll", "--no-random")
    script("experiments.study.compare", *options, "--seconds", "1e-3", "--seeds", "2", "--processes", "2")
    rows = read(tmp_path / ENV.replace("/", "-") / "eggroll.csv")
    assert [row["seed"] for row in rows] == sorted(row["seed"] for row in rows) and {r["seed"] for r in rows} == {*"01"}
    ends = [row for row in rows if float(row["used"]) == 1]
    assert len(ends) == 2 and all(float(row["seconds"]) < float(row["seconds_compile"]) for row in ends)
    assert not list(tmp_path.rglob("*.parts"))
    shown = script("experiments.study.compare", *options, "--seconds", "1e-3", "--seeds", "2", "--processes", "2")
    assert "there already" in shown
    with pytest.raises(SystemExit, match="failed"):  # another budget
        script("experiments.study.compare", *options, "--seconds", "2e-3", "--seeds", "2", "--here")


def test_what_a_laptop_compares():
    from experiments.study import compare

    def filled(**given):
        arguments = compare.Arguments(**given)
        arguments.fill()
        return arguments

    laptop = filled()
    assert laptop.envs == compare.LAPTOP and laptop.seconds == compare.LAPTOP_SECONDS and laptop.processes >= 1
    for env in laptop.envs:
        assert all((compare.AGENTS_FOLDER / env / f"{agent}.toml").exists() for agent in compare.AGENTS)
    assert filled(env_steps=1e4).seconds is None and filled(seconds=3.0, processes=5).processes == 5
    for given in ({"full": True}, {"envs": ("brax/ant",)}, {"recipes": ROOT / "elsewhere"}):
        found = filled(**given)
        assert found.envs == given.get("envs", ()) and found.seconds is None and found.processes == 1


def test_parts_are_gathered_once_whatever_broke_off(tmp_path):
    from experiments.lab.store import Store

    path = tmp_path / "env" / "eggroll.csv"

    def table(settings="mine"):
        return Store(path, ("seed",), {"settings": settings}, order="seed")

    def leave(seed, settings="mine"):
        table(settings).add([{"seed": seed, "return_mean": 10 * seed}])

    leave(2)
    merged = table()
    with table().alone():  # another process holds the table, so that parts stay
        leave(0)
        leave(2)  # measured a second time, or merged but broken off before its part was removed
        leave(1, "others")
        (merged.parts / "3.json.1.new").write_text('{"seed"')  # its process is still at it
        table().failed([4], "broke")
        assert merged.missing([0, 1, 2, 3, 4]) == [1, 3, 4] and len(read(path)) == 1
    assert [(row["seed"], row["return_mean"]) for row in read(path)] == [("0", "0"), ("2", "20")]
    about = json.loads(path.with_suffix(".json").read_text())
    assert [entry["runs"] for entry in about["measured"]] == [[0, 2]] and about["failed"] == {"4": "broke"}
    assert merged.missing([0, 1, 2, 3, 4]) == [1, 3, 4]
    (left,) = merged.parts.glob("*.json")
    assert json.loads(left.read_text())["rows"] == [{"seed": 1, "return_mean": 10}] and not table("others").fits()


def test_a_csv_without_types_is_gone_on_with(tmp_path):
    from experiments.lab.store import Store

    path = tmp_path / "eggroll.csv"
    path.write_text("env,seed,score\na,0,\na,1,0.5\n")
    path.with_suffix(".json").write_text('{"recipe": {}, "measured": [], "failed": {}}')
    store = Store(path, ("seed",), {}, order="seed")
    assert store.fits() and store.missing([0, 1, 2]) == [2]
    store.add([{"env": "a", "seed": 2, "score": 1.0}])
    assert path.read_text() == "env,seed,score\na,0,\na,1,0.5\na,2,1.0\n"


def test_rows_that_take_the_place_of_older_ones(tmp_path):
    from experiments.lab.store import Store

    path = tmp_path / "speed.csv"
    path.write_text("part,kind,speed\na,rank 1,1.50\na,dense,2.0\n")
    older = {"date": "2020-01-01", "runs": ["a, rank 1", "a, dense"]}  # keys by their names
    path.with_suffix(".json").write_text(json.dumps({"recipe": {"lanes": 1}, "measured": [older], "failed": {}}))
    store = Store(path, ("part", "kind"))
    store.failed([("a", "dense")], "broke")
    assert not store.about()["failed"]  # there are rows of it
    store.failed([("a", "dense")], "broke", replace=True)
    assert store.about()["failed"] == {"a, dense": "broke"} and store.about()["recipe"] == {"lanes": 1}
    store.add([{"part": "a", "kind": "dense", "speed": 3.0}], replace=True, about={"recipe": {"lanes": 2}, "own": 1})
    assert path.read_text() == "part,kind,speed\na,rank 1,1.50\na,dense,3.0\n"
    about = store.about()
    assert [entry["runs"] for entry in about["measured"]] == [["a, rank 1"], [["a", "dense"]]]
    assert about["recipe"] == {"lanes": 2} and about["own"] == 1 and not about["failed"]


def test_what_fails_is_noted_and_the_rest_goes_on(script, recipes, tmp_path):
    recipe = recipes / "eggroll.toml"
    recipe.write_text(recipe.read_text() + 'antithetic = false\nshaping = "sign"\n')
    options = ("--recipes", recipes.parents[2], "--out", tmp_path, "--here", "--seeds", "1", *SMALL)
    with pytest.raises(SystemExit, match=f"{ENV}, eggroll, seed 0"):
        script("experiments.study.compare", *options)
    folder = tmp_path / ENV.replace("/", "-")
    assert "sign shaping" in json.loads((folder / "eggroll.json").read_text())["failed"]["0"]
    assert read(folder / "open_es.csv")


def test_paper(script, recipes, tmp_path):
    out, data = tmp_path / "paper", tmp_path / "rl.toml"
    short = ("--minutes", "5", "--env-steps", "600", "--episodes", "4", "--evaluations", "3", "--out", out)
    script("experiments.paper.run", ENV, "--recipes", recipes.parents[2], *short, "--seeds", "2", "--here")
    folder = out / ENV.replace("/", "-")
    rows = read(folder / "eggroll-1.csv")
    assert rows[0]["env_steps"] == "0" and int(rows[-1]["env_steps"]) >= 600 and float(rows[-1]["seconds"]) > 0
    about = json.loads((folder / "eggroll-1.json").read_text())
    assert about["run"]["ended"] == "env_steps" and about["recipe"]["eval_episodes"] == 4 and not about["failed"]
    assert float(read(folder / "random.csv")[0]["return_mean"]) > 0

    fixed = {"seed": 0, "env_steps": 2e6, "seconds": 60, "return_mean": 500, "return_std": 0, "episodes": 4}
    with (folder / "ppo-0.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["env", "agent", *fixed], [ENV, "ppo", *fixed.values()]])
    data.write_text(f'["{ENV}".result]\neggroll_1e8 = 0.25\neggroll_final = 0.5\n')
    table = script("experiments.paper.run", "--table", "--out", out, "--paper", data)
    assert f"| `{ENV}` | EGGROLL | 2 |" in table and "| 500 | 2M | 1 |" in table and "| 0.25 at 1e8 † |" in table


def test_paper_ends_before_a_generation_that_would_be_too_late(script, recipes, tmp_path):
    script(
        "experiments.paper.run", ENV, "--recipes", recipes.parents[2], "--minutes", "1e-6", "--out", tmp_path, "--here"
    )
    folder = tmp_path / ENV.replace("/", "-")
    assert [row["generation"] for row in read(folder / "eggroll-0.csv")] == ["0", "1"]
    assert json.loads((folder / "eggroll-0.json").read_text())["run"]["ended"] == "minutes"


def test_fractions_of_ppo(monkeypatch):
    from experiments.paper import compare

    def runs(mean):
        return [{"return_mean": mean, "return_std": 1.0, "episodes": 100}]

    assert compare.normalized(-300.0, runs(-200), runs(-1200)) == pytest.approx((0.9, math.nan), nan_ok=True)
    assert compare.normalized(3.0, runs(5), runs(1)) == pytest.approx((0.5, 0.6))
    assert math.isnan(compare.normalized(3.0, runs(1.1), runs(1))[0])  # PPO does not differ from random
    assert compare.published({ENV: {"result": {"eggroll_final": 0.5}}}, ENV, "eggroll", 5e8, 5e8) == "0.5 at 5e8"


def test_suites(script, tmp_path):
    small = ("--lanes", "8", "--hidden", "4", "--horizon", "20", "--repeats", "2", "--seconds", "0.01")
    shown = script("experiments.suites.run", "gymnasium/phys2d/No-v1", ENV, *small, "--out", tmp_path, "--name", "here")
    assert "gymnasium/phys2d/No-v1 failed: gymnasium has no environment" in shown
    (row,) = read(tmp_path / "here.csv")
    assert row["env"] == ENV and row["horizon"] == "20" and float(row["compile_seconds_eggroll"]) > 0
    assert float(row["ratio_lowest"]) <= float(row["ratio"]) <= float(row["ratio_highest"])
    about = json.loads((tmp_path / "here.json").read_text())
    assert about["measured"][0]["runs"] == [ENV] and not about["measured"][0]["compilation_cache"]
    assert f"| `{ENV}` | 20 | 8 |" in script("experiments.suites.run", "--table", "--out", tmp_path)


def throughput(out, *arguments):
    small = ("--repeats", "2", "--seconds", "0.01", "--out", out, "--name", "here", *arguments)
    command = [
        sys.executable,
        "-m",
        "experiments.throughput.run",
        *small,
    ]  # a process of its own: it keeps no cache
    return subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.heavy
def test_throughput_of_forward_passes(script, tmp_path):
    sizes = ("--widths", "8", "--populations", "8", "--ranks", "2", "--layer-width", "8", "--layer-population", "8")
    shown = throughput(tmp_path, "--part", "forward", "layer", *sizes)
    assert "| forward | 3x8 | 8 | float32 | rank 2 |" in shown and "| layer | 8x8 | 8 | float32 | dense |" in shown
    rows = read(tmp_path / "here-forward.csv")
    assert {"rank 2", "rank 1, generated", "rank 1 of signs, int8", "dense"} <= {row["kind"] for row in rows}
    assert all(not row["left_out"] and float(row["ms_per_step"]) > 0 for row in rows)
    assert "1.0" in [row["fraction_of_inference"] for row in rows if row["kind"].startswith("inference")]
    assert int(rows[-1]["noise_bytes"]) == 4 * 4 * (4 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * 2 + 2)
    assert json.loads((tmp_path / "here-forward.json").read_text())["recipe"]["ceilings"]["bytes"] > 0
    script("experiments.throughput.figures", "here", "--results", tmp_path, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size

    left = throughput(tmp_path, "--part", "layer", *sizes, "--seconds-limit", "0")
    assert "would take" in left and all(row["left_out"] for row in read(tmp_path / "here-layer.csv"))


@pytest.mark.heavy
def test_throughput_of_generations_and_growth(script, tmp_path):
    env = ("--envs", "gymnasium/phys2d/Pendulum-v0", "--generation-population", "4", "--horizon", "5")
    growth = ("--base-population", "4", "--base-width", "4", "--growth-population", "4", "8", "--growth-width", "4")
    shown = throughput(tmp_path, "--part", "generation", "growth", *env, *growth, "--growth-rank", "--growth-episodes")
    rows = read(tmp_path / "here-generation.csv")
    assert [row["side"] for row in rows] == ["no noise", "EGGROLL, rank 1", "EGGROLL, rank 4", "OpenES"]
    assert all(row["live_steps_per_generation"] == "20" and row["masked"] == "0.0" for row in rows), shown
    rows = read(tmp_path / "here-growth.csv")
    assert [(row["measure"], row["factor"], row["value"]) for row in rows if row["factor"] == "population"] == [
        (measure, "population", value) for measure in ("forward", "generation") for value in "48"
    ]
    shown = script("experiments.throughput.figures", "here", "--results", tmp_path, "--out", tmp_path / "figure.png")
    assert "flat from population" in shown and (tmp_path / "figure-generation.png").stat().st_size
