"""The claims about EGGROLL: closed forms against brute force, parts in small against theory, resuming, the table."""

import csv
import importlib
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("seaborn")

ROOT = Path(__file__).parents[2]
SMALL = ("--effort", "0.02", "--seeds", "2")


@pytest.fixture
def script(monkeypatch, capsys, lenient):
    """Runs a module as `python -m` does, but in this process, and returns what it prints."""

    def run(name, *arguments):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_module(name, run_name="__main__")
        return "".join(capsys.readouterr())

    return run


@pytest.fixture
def theory(monkeypatch):
    return importlib.import_module("experiments.claims.theory")


@pytest.fixture
def core(monkeypatch):
    return importlib.import_module("experiments.claims.estimator")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def perturbations(random, count, m, n, rank):
    """E [count, m, n], as the paper defines it."""
    if not rank:
        return random.standard_normal((count, m, n))
    a, b = random.standard_normal((count, m, rank)), random.standard_normal((count, n, rank))
    return a @ b.transpose(0, 2, 1) / math.sqrt(rank)


def near(values, expected, within=4.5):
    """Whether a mean is within so many standard errors of what it should be."""
    return abs(values.mean() - expected) < within * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("rank", [0, 1, 2, 5])
def test_the_mean_and_error_of_a_sine_fitness(theory, rank):
    random, (m, n), sigma, count = np.random.default_rng(rank), (4, 3), 0.7, 200_000
    g = random.standard_normal((m, n)) / 3
    e = perturbations(random, count, m, n, rank)
    estimates = np.sin(sigma * np.einsum("mn,kmn->k", g, e))[:, None, None] * e / sigma
    mean = theory.sine_mean(g, sigma, rank)
    errors = (estimates.mean(0) - mean) / (estimates.std(0) / math.sqrt(count))
    assert np.abs(errors).max() < 4.5
    assert near(np.sum((estimates - mean) ** 2, axis=(1, 2)), theory.sine_error(g, sigma, rank))


def test_low_rank_closed_forms_become_the_dense_ones(theory):
    g = np.random.default_rng(0).standard_normal((5, 3)) / 4
    np.testing.assert_allclose(theory.sine_mean(g, 0.5, 10**6), theory.sine_mean(g, 0.5, 0), rtol=1e-4)
    assert math.isclose(theory.sine_error(g, 0.5, 10**6), theory.sine_error(g, 0.5, 0), rel_tol=1e-4)
    assert math.isclose(
        theory.fourth_spectral_moment(5, 3, 7, 10**6), theory.fourth_spectral_moment(5, 3, 7, 0), rel_tol=1e-4
    )
    gaps = [abs(theory.tail_mean(2.0, rank) - theory.tail_mean(2.0, 0)) for rank in (1, 2, 4, 8, 16, 32)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.06 * theory.tail_mean(2.0, 0)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_moments_of_a_perturbation(theory, rank):
    random, (m, n), pairs, count = np.random.default_rng(rank), (5, 3), 4, 40_000
    e = perturbations(random, count * pairs, m, n, rank)
    weights = random.choice([-1.0, 1.0], (count, pairs))
    s = np.einsum("kp,kpmn->kmn", weights, e.reshape(count, pairs, m, n)) / math.sqrt(pairs)
    moment = np.sum((s.transpose(0, 2, 1) @ s) ** 2, axis=(1, 2))
    assert near(moment, theory.fourth_spectral_moment(m, n, pairs, rank))
    entry = e[:, 0, 0]
    assert near(np.where(entry > 1.5, entry, 0), theory.tail_mean(1.5, rank))
    if rank < 2:
        q = np.sum(e**2, axis=(1, 2))
        variance, third = theory.size_moments(m, n, rank)
        assert near((q - m * n) ** 2, variance) and near((q - m * n) ** 2 * q, third)


def test_cosine_and_singular_values_of_dense_noise(theory):
    random, (m, n), directions = np.random.default_rng(1), (3, 4), 6
    e = random.standard_normal((20_000, directions, m * n))
    estimate = np.einsum("kp,kpd->kd", e[..., 0], e)
    assert near(estimate[:, 0] / np.linalg.norm(estimate, axis=1), theory.cosine(m, n, directions))
    values = np.linalg.svd(random.standard_normal((200, 60, 40)), compute_uv=False)
    assert abs(values[:, 0].mean() / theory.top_singular_value(60, 40) - 1) < 0.01
    law = theory.marchenko_pastur(np.sort(values.ravel()), 60, 40)
    assert np.abs(law - np.linspace(0, 1, law.size)).max() < 0.02


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_errors_of_pairs_and_of_leave_one_out(theory, rank, noise):
    random, (m, n), evaluations, sigma, even, count = np.random.default_rng(2), (3, 2), 6, 0.5, 0.4, 60_000
    g = np.zeros((m, n))
    g[0, 0] = 1.5

    def fitness(w):
        flat = np.einsum("mn,kpmn->kp", g, w) + even * np.sum(w**2, axis=(2, 3)) + 3
        return flat + noise * random.standard_normal(flat.shape)

    e = perturbations(random, count * evaluations, m, n, rank).reshape(count, evaluations, m, n)
    f = fitness(sigma * e)
    weights = (f - f.mean(1, keepdims=True)) * evaluations / (evaluations - 1)
    estimate = np.einsum("kp,kpmn->kmn", weights, e) / (evaluations * sigma)
    given = (float(np.sum(g**2)), m, n, rank, evaluations, sigma, noise)
    assert near(np.sum((estimate - g) ** 2, axis=(1, 2)), theory.leave_one_out_error(*given, even))
    e = e[:, : evaluations // 2]
    differences = fitness(sigma * e) - fitness(-sigma * e)
    estimate = np.einsum("kp,kpmn->kmn", differences, e) / (evaluations * sigma)
    assert near(np.sum((estimate - g) ** 2, axis=(1, 2)), theory.antithetic_error(*given))


def test_a_slope_and_a_distance(core):
    x = np.array([1, 2, 4, 8.0])
    power, error = core.slope(x, 3 / x, 0.1 / x)
    assert math.isclose(power, -1) and 0 < error < 0.1
    assert (
        core.distance(3.0, 3.0, 0.0) == 0 and core.distance(4.0, 3.0, 0.5) == 2 and core.distance(4, 3, 0) == math.inf
    )
    row = core.row("x", [1.0, 3.0], 2.0, width=4)
    assert (row["measured"], row["standard_error"], row["z"], row["repeats"], row["width"]) == (2, 1, 0, 2, 4)
    assert core.row("x", [1.0, 3.0])["theory"] == ""


@pytest.mark.parametrize("part", ["update-rank", "antithetic", "thin"])
def test_a_part_in_small_is_within_five_standard_errors_of_theory(script, tmp_path, part):
    shown = script("experiments.claims.run", part, *SMALL, "--here", "--out", tmp_path)
    rows = read(tmp_path / f"{part}.csv")
    exact = [row for row in rows if row["basis"] == "exact"]
    assert len(exact) > 10 and all(row["part"] == part for row in rows)
    assert max(abs(float(row["z"])) for row in exact) < 5
    assert "| claim | measured | theory |" in shown and f"| {part} | {len(rows)} | {len(exact)} |" in shown
    script("experiments.claims.figures", part, "--results", tmp_path, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size


def test_what_is_there_stays_and_other_settings_are_refused(script, tmp_path):
    options = ("update-rank", "--effort", "0.02", "--here", "--out", tmp_path)
    script("experiments.claims.run", *options)
    before = (tmp_path / "update-rank.csv").read_bytes(), (tmp_path / "update-rank.json").read_bytes()
    assert "there already" in script("experiments.claims.run", *options)
    with pytest.raises(SystemExit, match="--again measures anew"):
        script("experiments.claims.run", *options, "--full")
    assert before == ((tmp_path / "update-rank.csv").read_bytes(), (tmp_path / "update-rank.json").read_bytes())
    about = json.loads(before[1])
    assert about["recipe"]["factor"] == 0.02 and [entry["runs"] for entry in about["measured"]] == [["update-rank"]]
    table = script("experiments.claims.run", "--table", "--out", tmp_path)
    assert "| Rank of the update, 12 pairs of rank 2, 48x32 | 24 | 24 | 0.0 |" in table


def test_what_fails_is_noted(script, tmp_path, monkeypatch):
    update = importlib.import_module("experiments.claims.update")

    def broken(effort):
        raise ValueError("no such luck")

    monkeypatch.setattr(update, "update_rank", broken)
    with pytest.raises(SystemExit, match="update-rank: ValueError: no such luck"):
        script("experiments.claims.run", "update-rank", *SMALL, "--here", "--out", tmp_path)
    assert "no such luck" in json.loads((tmp_path / "update-rank.json").read_text())["failed"]["update-rank"]
    assert not (tmp_path / "update-rank.csv").exists()


@pytest.mark.parametrize("name", ["claims.csv", "figures.csv"])
def test_every_claim_and_panel_has_a_measurement(name):
    import pandas as pd

    from experiments.claims.table import matching

    folder = ROOT / "experiments" / "claims"
    for line in read(folder / name):
        rows = pd.read_csv(folder / "results" / f"{line['part']}.csv")
        assert len(matching(rows, line["quantity"], line["where"])), line


@pytest.mark.parametrize(
    ("words", "sentence"), [(("nonsense",), "no such part"), (("thin", "--seeds", "1"), "at least 2")]
)
def test_bad_arguments_get_a_sentence(script, capsys, words, sentence):
    with pytest.raises(SystemExit):
        script("experiments.claims.run", *words)
    assert sentence in capsys.readouterr().err
