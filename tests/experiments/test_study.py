"""Statistics of a comparison against oracles: NumPy's own bootstrap, SciPy's trimmed mean, rliable's measures."""

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pd = pytest.importorskip("pandas")
metrics = pytest.importorskip("rliable.metrics")

ROOT = Path(__file__).parents[2]
CARTPOLE, OTHER = "gymnasium/CartPole-v1", "brax/hopper"


@pytest.fixture
def study(monkeypatch):
    from experiments.study import analysis as study

    return study


def write(folder, env, agent, seed_returns, steps=(0, 100, 200), episodes=(0, 10, 20)):
    """A result file: each seed's returns at its evaluations."""
    place = folder / env.replace("/", "-")
    place.mkdir(parents=True, exist_ok=True)
    head = ["env", "agent", "seed", "generation", "env_steps", "episodes", "seconds", "seconds_compile"]
    head += ["seconds_evaluate", "used", "return_mean", "return_std", "length_mean"]
    with (place / f"{agent}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for seed, returns in enumerate(seed_returns):
            for i, (step, done, value) in enumerate(zip(steps, episodes, returns, strict=False)):
                writer.writerow([env, agent, seed, i, step, done, i, 5.0, 0.1, i / 2, value, 0, 1])


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "study"
    for env, top in ((CARTPOLE, 500), (OTHER, 1000)):
        rng = np.random.default_rng(len(env))
        for agent, share in (("eggroll", 0.8), ("open_es", 0.5), ("ppo", 0.6)):
            ends = top * (share + 0.1 * rng.standard_normal(6))
            write(folder, env, agent, [(20, (20 + end) / 2, end) for end in ends])
        write(folder, env, "random", [[20.0]] * 3)
    return folder


def value(rows, **where):
    for key, wanted in where.items():
        rows = rows[rows[key] == wanted]
    assert len(rows) == 1, where
    return rows.iloc[0]


def test_scores_and_aggregates(study, results):
    from experiments.lab.stats import random_returns, read

    rows = read(results)
    made, notes = study.study(rows, random_returns(results), resamples=50)
    made = pd.DataFrame(made)
    assert not notes
    ends = rows[rows["env_steps"] == 200]
    last = {key: group["return_mean"].to_numpy() for key, group in ends.groupby(["env", "agent"])}
    assert value(made, environment=CARTPOLE, measure="reference")["value"] == 500
    best = value(made, environment=OTHER, measure="reference")
    assert best["agent"] == "eggroll" and best["value"] == pytest.approx(stats.trim_mean(last[OTHER, "eggroll"], 0.25))

    tops = {CARTPOLE: 500.0, OTHER: best["value"]}
    scores = {
        agent: np.stack([(last[env, agent] - 20) / (top - 20) for env, top in tops.items()], axis=1)
        for agent in ("eggroll", "open_es", "ppo")
    }
    for agent, mine in scores.items():
        want = {"iqm": stats.trim_mean(mine.ravel(), 0.25), "mean": mine.mean()}
        want |= {"median": np.median(mine.mean(0)), "optimality_gap": 1 - np.minimum(mine, 1).mean()}
        for measure, number in want.items():
            found = value(made, at="end", environment="all", agent=agent, measure=measure)
            assert found["value"] == pytest.approx(number) and found["low"] <= number <= found["high"]
        alone = value(made, at="end", environment=OTHER, agent=agent, measure="iqm")
        column = list(tops).index(OTHER)
        assert alone["value"] == pytest.approx(stats.trim_mean(mine[:, column], 0.25)) and alone["runs"] == 6
    for x, y in itertools.permutations(scores, 2):
        found = value(made, at="end", environment="all", agent=x, other=y, measure="improvement")
        assert found["value"] == pytest.approx(metrics.probability_of_improvement(scores[x], scores[y]))
    profile = made[(made["measure"] == "profile") & (made["at"] == "end") & (made["agent"] == "ppo")]
    for row in profile.itertuples():
        assert row.value == pytest.approx((scores["ppo"] > row.score).mean())


def test_intervals_are_a_stratified_bootstrap(study):
    rng = np.random.default_rng(1)
    scores = {name: rng.normal([mean, mean + 1, mean + 2], 0.2, (8, 3)) for name, mean in (("a", 0.5), ("b", 0.6))}
    before = np.random.get_state()[1].copy()
    rows = pd.DataFrame(study.statistics(scores, 4000, whole=False))
    assert np.array_equal(np.random.get_state()[1], before)
    draws = rng.integers(8, size=(4000, 8, 3))  # each environment's runs by themselves
    samples = {name: x[draws, np.arange(3)] for name, x in scores.items()}
    for name, drawn in samples.items():
        for measure, own in (
            ("mean", drawn.mean((1, 2))),
            ("iqm", stats.trim_mean(drawn.reshape(4000, -1), 0.25, axis=1)),
        ):
            found = value(rows, agent=name, measure=measure)
            width = found["high"] - found["low"]
            assert np.allclose([found["low"], found["high"]], np.quantile(own, [0.025, 0.975]), atol=0.1 * width)
    above = (samples["a"][:, :, None] > samples["b"][:, None]).mean((1, 2, 3))
    found = value(rows, agent="a", other="b", measure="improvement")
    assert np.allclose([found["low"], found["high"]], np.quantile(above, [0.025, 0.975]), atol=0.03)


def test_an_agents_interval_has_every_resample_and_no_order(study):
    from experiments.lab.stats import interval

    every = [np.mean(x) for x in itertools.product([1.0, 2.0, 7.0], repeat=3)]  # of three, the middle half is all
    assert (
        interval([7.0, 1.0, 2.0])
        == interval([1.0, 2.0, 7.0])
        == pytest.approx(tuple(np.quantile(every, [0.025, 0.975])))
    )
    many = np.random.default_rng(1).normal(size=20)
    assert interval(many) == interval(many[::-1]) and np.isnan(interval([1.0])).all()


def test_equal_steps_and_episodes(study, tmp_path):
    write(tmp_path, CARTPOLE, "eggroll", [(20, 120, 420)], steps=(0, 1000, 3000), episodes=(0, 10, 20))
    write(tmp_path, CARTPOLE, "ppo", [(20, 20, 260), (20, 140, 500)], steps=(0, 500, 2000), episodes=(0, 20, 40))
    write(tmp_path, CARTPOLE, "random", [[20.0]])
    from experiments.lab.stats import random_returns, read

    made, notes = study.study(read(tmp_path), random_returns(tmp_path), resamples=20)
    made = pd.DataFrame(made)
    assert value(made, at="steps", measure="where")["value"] == 2000
    assert value(made, at="episodes", measure="where")["value"] == 20
    found = {at: value(made, at=at, environment=CARTPOLE, agent="eggroll", measure="iqm") for at in study.AT}
    assert found["end"]["value"] == pytest.approx(400 / 480) and math.isnan(found["end"]["low"])
    assert found["steps"]["value"] == pytest.approx(250 / 480)  # halfway between its evaluations
    assert found["episodes"]["value"] == pytest.approx(400 / 480)
    ppo = value(made, at="episodes", environment=CARTPOLE, agent="ppo", measure="mean")
    assert ppo["value"] == pytest.approx((0 + 120) / 2 / 480)
    assert not notes
    write(tmp_path, CARTPOLE, "ppo", [(20, 260)], steps=(0, 500), episodes=(0, 5))
    _, notes = study.study(read(tmp_path), random_returns(tmp_path), resamples=20)
    assert any("eggroll: 1 of 1 runs were first scored after 1e+03 steps, at the 500" in note for note in notes)


def test_files_of_older_versions_are_read(study, results):
    from experiments.lab.stats import read

    place = results / "brax-hopper" / "ppo.csv"
    rows = pd.read_csv(place)
    rows["seconds"] += 5.0
    rows.drop(columns=["episodes", "seconds_evaluate", "used", "length_mean"]).to_csv(place, index=False)
    rows = read(results)
    older = rows[(rows["env"] == OTHER) & (rows["agent"] == "ppo")]
    assert older["episodes"].isna().all() and (older["seconds_training"] <= 2).all() and older["seconds"].max() == 7
    made, notes = study.study(rows, {CARTPOLE: 20.0, OTHER: 20.0}, resamples=20)
    assert notes == [f"{OTHER}: its runs did not count episodes"]
    assert {row["environment"] for row in made if row["at"] == "episodes"} == {CARTPOLE, "all"}


def test_peers_and_missing_agents(study, results):
    from experiments.lab.stats import random_returns, read

    write(results, CARTPOLE, "sb3_ppo", [(20, 300, 400)] * 3)
    made, _ = study.study(read(results), random_returns(results), resamples=20)
    assert {r["agent"] for r in made if r["environment"] == CARTPOLE and r["measure"] == "iqm"} >= {"sb3_ppo"}
    assert "sb3_ppo" not in {r["agent"] for r in made if r["environment"] == "all"}
    (results / "brax-hopper" / "random.csv").unlink()
    made, notes = study.study(read(results), random_returns(results), resamples=20)
    assert {row["environment"] for row in made} == {CARTPOLE, "all"} and "no random.csv" in notes[0]


def test_script_and_figures(results, script, tmp_path):
    shown = script("experiments.study.analysis", "--results", results, "--resamples", "20")
    assert "| end of the budget | EGGROLL | 6 |" in shown and "EGGROLL over PPO" in shown
    about = json.loads((results / "statistics.json").read_text())
    assert about["recipe"]["resamples"] == 20 and about["left out"] == []
    script("experiments.study.figures", "--results", results, "--out", tmp_path / "study.png")
    assert all((tmp_path / f"study{what}.png").stat().st_size for what in ("", "_profiles"))
    with pytest.raises(SystemExit, match=r"statistics\.csv is not there"):
        script("experiments.study.figures", "--results", tmp_path)
    for path in results.glob("*/random.csv"):
        path.unlink()
    with pytest.raises(SystemExit, match="nothing to normalize"):
        script("experiments.study.analysis", "--results", results)


def test_maxima(study):
    assert study.maximum("gymnasium/phys2d/CartPole-v1") == 500 and study.maximum("navix/Navix-DoorKey-8x8-v0?a=1") == 1
    assert study.maximum("brax/inverted_pendulum") == 1000 and study.maximum("brax/inverted_double_pendulum") is None


def test_the_better_of_two_agents_is_chosen_by_its_trials(study, results, tmp_path):
    for env in (CARTPOLE, OTHER):  # by its final runs the actor-critic is the better one everywhere
        write(results, env, "eggroll_ac", [(20, 900, 1000 + seed) for seed in range(6)])
    for env, scores in ((CARTPOLE, {"eggroll": 400, "eggroll_ac": 300}), (OTHER, {"eggroll": 1, "eggroll_ac": 2})):
        folder = results / env.replace("/", "-") / "trials"
        folder.mkdir()
        for agent, score in scores.items():
            trials = pd.DataFrame({"value": [score, score + 500], "chosen": [True, False]})  # the latter was pruned
            trials.to_csv(folder / f"{agent}.csv")
    rows = study.read(results)
    chosen = study.choices(rows, results)
    assert chosen == {CARTPOLE: "eggroll", OTHER: "eggroll_ac"}
    made = pd.DataFrame(study.study(study.with_chosen(rows, chosen), study.random_returns(results), 50)[0])
    here = {"at": "end", "measure": "iqm"}
    for env, agent in chosen.items():
        ours = value(made, environment=env, agent=study.CHOSEN, **here)
        assert ours["value"] == value(made, environment=env, agent=agent, **here)["value"]
    assert value(made, environment="all", agent=study.CHOSEN, **here)["runs"] == 6
    (results / OTHER.replace("/", "-") / "trials" / "eggroll_ac.csv").unlink()
    assert study.choices(rows, results) == {CARTPOLE: "eggroll"}  # without trials nothing was chosen
