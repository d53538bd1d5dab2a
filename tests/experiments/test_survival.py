"""Short versions of experiments/survival."""

from experiments.survival.run import CASES, WRONG


def test_a_run_that_is_killed_and_stopped_ends_as_an_uninterrupted_one(script, tmp_path):
    assert "eggroll, by signal" in CASES
    given = ("--cases", "eggroll, by signal", "--kills", "2", "--signals", "2", "--out", tmp_path / "survival.csv")
    row = script("experiments.survival.run", *given).splitlines()[-1].split("|")
    assert row[1].strip() == "eggroll, by signal" and row[-3].strip() == "True"
    assert [cell.strip() for cell in row[5:9]] == ["0"] * len(WRONG)


def test_damaged_files_are_one_clear_error_each(script, tmp_path):
    given = ("--recipes", "300", "--built", "3", "--files", "100", "--out", tmp_path / "fuzz.csv")
    rows = [line.split("|") for line in script("experiments.survival.fuzz", *given).splitlines()]
    found = {row[1].strip(): row for row in rows if len(row) > 5}
    assert {"checkpoints", "metrics", "recipes", "built"} <= found.keys()
    assert all(found[what][5].strip() == "0" for what in ("checkpoints", "metrics", "recipes", "built"))


def test_what_a_checkpoint_costs_and_what_grows(script, tmp_path):
    given = ("--population", "8", "--window", "1", "--turns", "2", "--env", "gymnasium/phys2d/CartPole-v1")
    assert "ratio" in script("experiments.survival.cost", *given, "--out", tmp_path / "cost.csv")
    few = ("--generations", "4", "--every", "2", "--trainings", "1", "--out", tmp_path / "long.csv")
    assert script("experiments.survival.long_life", *few).count("| generations |") == 2
