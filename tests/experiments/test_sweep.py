"""Sweeps and ablations: what is killed goes on, nothing is measured twice, and effects are what was put in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("seaborn")

ROOT = Path(__file__).parents[2]
ENV = "gymnasium/phys2d/CartPole-v1"
RECIPE = f"""env = "{ENV}"
agent = "eggroll"
env_steps = 1000

[policy]
hidden = [4]
output_scale = 1.0
skip = false

[options]
population = 16
episodes_per_member = 1
optimizer = "adam"
averaging = 0.0
"""


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    """Processes that a test starts find this checkout; the signal handler is put back."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def small(tmp_path):
    """A sweep's arguments, but for what is swept."""
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    budget = ("--env-steps", "600", "--evaluations", "2", "--episodes", "4", "--processes", "1")
    return [ENV, "--recipe", str(path), "--out", str(tmp_path / "out"), "--populations", "16", "--seeds", "2", *budget]


def table_of(small):
    return Path(small[4]) / f"{ENV.replace('/', '-')}.csv"


def read_table(path):
    from experiments.lab.run import table

    return table(path).read()


def base(**run):
    from experiments.lab.recipes import base_recipe

    return base_recipe(ENV, "eggroll", None, {"env_steps": 1000.0, **run}, {"hidden": [4]})


def a_plan(table, sigmas=(0.1,), seeds=2, **run):
    from experiments.lab import run as cells
    from experiments.lab.recipes import value, varied

    recipes = [varied(base(**run), {"sigma": sigma}) for sigma in sigmas]
    runs = [cells.Run(r, seed, {"sigma": value(r, "sigma")}) for r in recipes for seed in range(seeds)]
    return cells.Plan(cells.table(table), base(**run), runs, False)


def rows_for(plan, runs):
    """Rows as a cell would write them."""
    from experiments.lab.store import digest, plain

    common = {"env": ENV, "agent": "eggroll", "base": digest(plain(plan.base))}
    return [
        {**common, **run.columns, "seed": run.seed, "generation": g, "settings": run.settings, "return_mean": float(g)}
        for run in runs
        for g in range(3)
    ]


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_table_keeps_types_and_adds_columns(tmp_path):
    from experiments.lab.store import Store

    store = Store(tmp_path / "a" / "table.csv", ("count",))
    assert store.read() == []
    first = {"name": "1", "count": 2**40, "x": 0.1, "yes": True, "text": ""}
    store.add([first, {**first, "new": None, "also": None}, {**first, "new": "none", "also": np.float32(0.5)}])
    filled = {**first, "new": None, "also": None}
    assert store.read() == [filled, filled, {**first, "new": "none", "also": 0.5}]
    store.add([{**first, "count": 3, "x": 1}])
    assert store.read()[-1] == {**filled, "count": 3, "x": 1.0} and store.read()[0] == filled
    assert names_in(tmp_path / "a") == ["table.csv", "table.json"]
    about = store.about()
    assert [entry["runs"] for entry in about["measured"]] == [[3, 2**40]] and about["measured"][0]["commit"]


def test_what_fails_is_noted_until_it_is_measured(tmp_path):
    from experiments.lab.store import Store

    store = Store(tmp_path / "table.csv", ("settings", "seed"), {"a": 1})
    store.failed([("x", 0), ("x", 1)], "broke")
    assert store.about()["failed"] == {"x, 0": "broke", "x, 1": "broke"} and not store.path.exists()
    store.add([{"settings": "x", "seed": 1}])
    assert store.about()["failed"] == {"x, 0": "broke"} and store.about()["recipe"] == {"a": 1}
    assert store.missing([("x", 0), ("x", 1), ("x", 0)]) == [("x", 0)]
    store.add([{"settings": "x", "seed": 1}])  # a second time: the first stays
    store.add([{"settings": "x", "seed": 1, "new": 2}], replace=True)
    assert store.read() == [{"settings": "x", "seed": 1, "new": 2}]


def test_only_missing_runs_are_wanted(tmp_path):
    from experiments.lab import run as cells

    plan = a_plan(tmp_path / "table.csv")
    assert cells.missing(plan) == plan.runs
    plan.store.add(rows_for(plan, plan.runs[:1]))
    assert cells.missing(plan) == plan.runs[1:]
    more = a_plan(plan.store.path, sigmas=(0.1, 0.2), seeds=3)
    assert [(run.columns["sigma"], run.seed) for run in cells.missing(more)] == [
        (0.1, 1),
        (0.1, 2),
        (0.2, 0),
        (0.2, 1),
        (0.2, 2),
    ]
    assert cells.missing(more._replace(runs=more.runs * 2)) == cells.missing(more)


def test_parts_are_merged_once_even_where_a_kill_left_them_behind(tmp_path):
    plan = a_plan(tmp_path / "table.csv")
    first, second = (rows_for(plan, [run]) for run in plan.runs)
    with a_plan(tmp_path / "table.csv").store.alone():  # another process: what is added stays in parts
        plan.store.add(first)
        (part,) = plan.store.parts.glob("*.json")
        merged = part.read_bytes()
        assert not plan.store.path.exists() and plan.store.read() == first
    assert plan.store.path.exists() and not plan.store.parts.exists()
    with a_plan(tmp_path / "table.csv").store.alone():
        part.write_bytes(merged)  # merged, but not removed
        plan.store.add(second)
        (plan.store.parts / "c.json.1.new").write_bytes(b"torn")
    assert plan.store.read() == first + second
    with plan.store.alone():
        assert plan.store.read() == first + second
    assert read_table(plan.store.path) == first + second and names_in(tmp_path) == ["table.csv", "table.json"]
    (entry,) = plan.store.about()["measured"]
    assert entry["runs"] == [[run.settings, run.seed] for run in plan.runs]


def test_another_recipe_is_refused_and_again_measures_anew(tmp_path):
    from experiments.lab import run as cells

    plan, other = a_plan(tmp_path / "table.csv"), a_plan(tmp_path / "table.csv", num_evals=3)
    plan.store.add(rows_for(plan, plan.runs))
    with pytest.raises(SystemExit, match="was measured with another recipe"):
        cells.missing(other)
    assert len(plan.store.read()) == 6
    one = plan._replace(runs=plan.runs[:1])
    assert cells.missing(one, again=True) == one.runs  # the other seed stays
    assert {row["seed"] for row in plan.store.read()} == {1}
    assert cells.missing(other, again=True) == other.runs and not plan.store.path.exists()


def test_a_table_is_measured_by_one_process_at_a_time(tmp_path):
    from experiments.lab.run import table

    path = tmp_path / "table.csv"
    with table(path).alone():
        with pytest.raises(SystemExit, match="is being measured by another process"), table(path).alone():
            pass
        assert table(path).parts.is_dir()
    assert not table(path).parts.exists()


def test_tables_of_older_versions_are_read_and_grow(tmp_path):
    import json

    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    plan = a_plan(tmp_path / "table.csv")
    rows = rows_for(plan, plan.runs[:1])
    origin = {"commit": "abc", "versions": "{}", "machine": '{"machine": {"cores": 1}}', "date": "2026-01-01"}
    older = [{**row, "recipe": '{"env": "there"}', **origin} for row in rows]
    path = plan.store.path.with_suffix(".parquet")
    pandas.DataFrame(older).to_parquet(path)
    before = path.read_bytes()
    assert plan.store.read() == rows and plan.store.missing([(run.settings, run.seed) for run in plan.runs])
    with plan.store.alone():
        pass
    assert path.read_bytes() == before and names_in(tmp_path) == ["table.parquet"]

    plan.store.add(rows_for(plan, plan.runs[1:]))
    assert plan.store.read() == rows_for(plan, plan.runs) and names_in(tmp_path) == ["table.csv", "table.json"]
    about = json.loads(plan.store.path.with_suffix(".json").read_text())
    assert about["recipes"] == {plan.runs[0].settings: {"env": "there"}} and len(about["measured"]) == 2
    assert about["measured"][0] == {
        "date": "2026-01-01",
        "runs": [[plan.runs[0].settings, 0]],
        "commit": "abc",
        "versions": {},
        "machine": {"cores": 1},
    }


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_cells_hold_what_one_program_can():
    from experiments.lab import run as cells
    from experiments.lab.recipes import varied

    recipe = base()
    names = [cells.structure(varied(recipe, v)) for v in ({"sigma": 0.2}, {"learning_rate": 0.5}, {})]
    assert len(set(names)) == 1
    changes = ({"rank": "2"}, {"rank": "dense"}, {"population": 4}, {"activation": "relu"}, {"shaping": "sign"})
    assert len({cells.structure(varied(recipe, v)) for v in changes} | set(names)) == 6


def test_a_default_written_out_is_the_same_setting():
    from experiments.lab import run as cells
    from experiments.lab.recipes import value, varied

    recipe = base()
    default = {
        "shaping": "centered_rank",
        "learning_rate": 0.2,
        "rank": "1",
        "activation": "layernorm_relu",
        "thin": None,
    }
    assert cells.Run(varied(recipe, default), 0, {}).settings == cells.Run(recipe, 0, {}).settings
    dense = varied(recipe, {"rank": "dense", "max_excess_variance": 0.5, "hidden": [8, 8]})
    assert (dense.agent, value(dense, "rank"), value(dense, "max_excess_variance")) == ("open_es", "dense", None)
    assert value(dense, "hidden") == "8x8" and dense == varied(dense, {"rank": "dense"})


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("hidden", "32x8", [32, 8]),
        ("antithetic", "false", False),
        ("max_excess_variance", "none", None),
        ("shaping", "none", "none"),
    ],
)
def test_values_are_of_the_options_types(name, text, found):
    from experiments.lab.recipes import typed

    assert typed("eggroll", name, text) == found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--vary", "sigmaa=1"], "'sigmaa' is neither an option of eggroll nor a key of"),
        (["--vary", "chunk"], "--vary takes NAME=V1,V2, not 'chunk'"),
        (["--vary", "optimizer=adam,no"], "unknown optimizer 'no'"),
        (["--shapings", "no"], "'no'"),
        (["--ranks", "many"], "many is no rank"),
        (["--sigmas", "0.1", "-1"], "sigma is -1.0"),
        (["--populations", "x"], "population is 'x', but must be a whole number"),
        (["--seeds", "0"], "--seeds is 0"),
    ],
)
def test_bad_input_is_said_in_one_sentence(script, small, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        script("experiments.sweep.run", *small, *arguments)
    said = capsys.readouterr().err.strip() if left.value.code == 2 else str(left.value.code)
    assert sentence in said and "\n" not in said


# ---- measuring ------------------------------------------------------------------------------------------------------


def test_a_sweep_is_extended(script, small, tmp_path):
    script("experiments.sweep.run", *small, "--ranks", "1", "--sigmas", "0.1")
    first = read_table(table_of(small))
    shown = script(
        "experiments.sweep.run", *small, "--ranks", "1", "dense", "--sigmas", "0.1", "0.3", "--vary", "lr_decay=1.0"
    )
    rows = read_table(table_of(small))
    assert "| open_es | dense | 0.3 | 2 |" in shown
    assert names_in(table_of(small).parent) == [table_of(small).name, table_of(small).with_suffix(".json").name]
    assert [{name: row[name] for name in first[0]} for row in rows[: len(first)]] == first
    assert {row["lr_decay"] for row in rows} == {1.0}  # what they had, though it was not swept
    runs = [(r, s, i) for r in ("1", "dense") for s in (0.1, 0.3) for i in (0, 1)]
    starts = [row for row in rows if not row["generation"]]
    assert sorted((row["rank"], row["sigma"], row["seed"]) for row in starts) == sorted(runs)
    for row in rows:
        assert row["episodes"] == row["generation"] * 16 and row["runs_together"] in (2, 4)
    script("experiments.sweep.figures", "--results", small[4], "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size


def test_an_interrupted_sweep_ends_with_one_sentence(script, small, monkeypatch):
    from experiments.lab import run as cells

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells.pool, "run", interrupted)
    with pytest.raises(SystemExit, match=r"^stopped; what is done is in .*, and the same command goes on$"):
        script("experiments.sweep.run", *small, "--ranks", "1", "--sigmas", "0.1")
    assert not list(Path(small[4]).iterdir())


def test_what_python_steps_has_the_same_columns(lenient, monkeypatch):
    from experiments.lab import run as cells
    from experiments.lab.recipes import base_recipe, varied

    monkeypatch.setattr(cells.pool, "report", lambda *_: None)
    run = {"env_steps": 100.0, "num_evals": 1, "eval_episodes": 2}
    found = []
    for env in ("gymnasium/CartPole-v1", ENV):
        recipe = base_recipe(env, "eggroll", None, run, {"hidden": [4]})
        recipe = varied(recipe, {"population": 4})
        found.append(cells.rows_of([cells.Run(recipe, 3, {"rank": "1"})]))
    for rows in found:
        assert list(rows[0]) == list(found[0][0])
        assert rows[0]["generation"] == 0 and rows[-1]["env_steps"] >= 100
        assert rows[-1]["episodes"] == 8 * rows[-1]["generation"] and rows[0]["seed"] == 3


def start(small, *arguments):
    command = [sys.executable, "-m", "experiments.sweep.run", *small, *arguments]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(found, process):
    while not (value := found()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return value


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_no_run_lost_or_twice(script, small):
    from experiments.lab.run import table

    swept = ("--ranks", "1", "dense", "--sigmas", "0.1", "0.3")
    process = start(small, *swept)
    wait_for(lambda: list(table(table_of(small)).parts.glob("*.json")) or table_of(small).exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = read_table(table_of(small))
    assert first

    script("experiments.sweep.run", *small, *swept)
    rows = read_table(table_of(small))
    assert [row for row in rows if row["rank"] == "1"] == first  # bit for bit, the seconds as well
    keys = [(row["rank"], row["sigma"], row["seed"], row["generation"]) for row in rows]
    assert len(keys) == len(set(keys))
    runs = {key[:3] for key in keys}
    assert runs == {(r, s, i) for r in ("1", "dense") for s in (0.1, 0.3) for i in (0, 1)}
    for run in runs:
        own = [row for row in rows if (row["rank"], row["sigma"], row["seed"]) == run]
        assert own[0]["generation"] == 0 and own[-1]["env_steps"] >= 600 and len(own) == 3
    before = table_of(small).read_bytes()
    script("experiments.sweep.run", *small, *swept)
    assert table_of(small).read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child in /proc")
def test_a_killed_cell_is_said_and_measured_by_the_next_sweep(script, small):
    def children():
        return [int(p) for t in Path(f"/proc/{process.pid}/task").glob("*/children") for p in t.read_text().split()]

    process = start(small, "--ranks", "1", "dense", "--sigmas", "0.1")
    folder = table_of(small).with_suffix(".parts")
    wait_for(lambda: len(list(folder.glob("*.job"))) == 2, process)
    os.kill(wait_for(children, process)[0], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1 and "its process ended with status -9" in said
    first = read_table(table_of(small))
    assert {row["rank"] for row in first} == {"dense"}
    script("experiments.sweep.run", *small, "--ranks", "1", "dense", "--sigmas", "0.1")
    rows = read_table(table_of(small))
    assert rows[: len(first)] == first and {row["rank"] for row in rows[len(first) :]} == {"1"}


# ---- ablation -------------------------------------------------------------------------------------------------------


def curves(env, shifts, seeds=5, learnt=100.0):
    """Rows of runs that learn linearly, a value's by `1 + shift` of the base's; seeds differ in where they start."""
    rows = []
    for (factor, value), shift in {("base", ""): 0.0, **shifts}.items():
        for seed in range(seeds):
            for generation in range(5):
                mean = 3.0**seed + learnt * generation / 4 * (1 + shift)
                common = {"env": env, "factor": factor, "value": value, "seed": seed, "generation": generation}
                rows.append({**common, "env_steps": 100 * generation, "return_mean": mean})
    return rows


def test_effects_are_what_was_put_in(script, tmp_path):
    import pandas as pd

    from experiments.ablation.analysis import ALL, effects
    from experiments.lab.store import Store

    shifts = {("sigma", "x 2"): -0.5, ("rank", "dense"): 0.2, ("shaping", "sign"): 0.0}
    rows = [row for env in ("a", "b") for row in curves(env, shifts)]
    rows += curves("c", shifts, learnt=0.0)
    found, left_out = effects(pd.DataFrame(rows))
    assert set(found["env"]) == {"a", "b", ALL} and len(left_out) == 1 and left_out[0].startswith("c is left out")
    for row in found.itertuples():
        expected = shifts[row.factor, row.value] * (0.5 if row.measure == "area" else 1.0)
        np.testing.assert_allclose([row.effect, row.low, row.high], expected, atol=1e-9)
        assert row.seeds == (10 if row.env == ALL else 5)

    for env in ("a", "b"):
        Store(tmp_path / f"{env}.csv", ("factor", "value", "seed")).add(curves(env, shifts))
    script("experiments.ablation.figures", "--results", tmp_path, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size


def test_intervals_resample_within_each_environment():
    from experiments.ablation.analysis import effect

    random = np.random.default_rng(1)
    apart = [random.normal(0, 0.01, 8), random.normal(1, 0.01, 8)]
    found = effect(apart)
    assert found["low"] < found["effect"] < found["high"]
    assert found["high"] - found["low"] < 0.5 * (effect([np.concatenate(apart)])["high"] - found["low"])
    assert np.isnan(effect([np.array([1.0])])["low"])


def test_the_fair_rate_of_sgd():
    """Its steps from an estimate of noise alone are as long as the learning rate, which is how long Adam's are."""
    from esrl.algorithms.shaping import centered_rank
    from experiments.ablation import run as ablation
    from experiments.lab.recipes import varied

    recipe = varied(base(), {"population": 64, "sigma": 0.2, "learning_rate": 0.03})
    random = np.random.default_rng(0)
    shape, steps = centered_rank(), []
    for _ in range(50):
        weights = np.asarray(shape(jnp.asarray(random.normal(size=(32, 2)), jnp.float32)), np.float64)
        noise = random.normal(size=(32, 200))
        estimate = ((weights[:, :1] - weights[:, 1:]) * noise).sum(0) / (64 * 0.2)
        steps.append(ablation.sgd_rate(recipe) * estimate)
    np.testing.assert_allclose(np.std(steps), 0.03, rtol=0.05)


def test_each_value_changes_one_factor():
    from experiments.ablation import run as ablation
    from experiments.lab import run as cells
    from experiments.lab.recipes import varied

    recipe = base()
    for factor, values in ablation.FACTORS.items():
        changed = [varied(recipe, changes) for _, changes in values(recipe)]
        settings = [cells.Run(r, 0, {}).settings for r in (recipe, *changed)]
        assert len(set(settings)) == len(settings), factor
        assert changed or factor == "actions"


def test_an_ablation_is_measured(script, small):
    arguments = [*small[:5], *small[7:], "--factors", "pairs", "sigma"]
    script("experiments.ablation.run", *arguments)
    rows = read_table(table_of(small))
    ends = [(row["factor"], row["value"], row["seed"]) for row in rows if not row["generation"]]
    values = [("base", ""), ("pairs", "no pairs, leave-one-out"), ("sigma", "x 0.5"), ("sigma", "x 2")]
    assert sorted(ends) == sorted((*value, seed) for value in values for seed in (0, 1))
    with pytest.raises(SystemExit, match="pair is no factor; did you mean pairs"):
        script("experiments.ablation.run", *small[:5], "--factors", "pair")
