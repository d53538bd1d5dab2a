"""The examples of objectives: what they count is what others count."""

import json

import jax
import numpy as np
import pytest
from scipy import stats

import esrl
from esrl.core.types import seed_key
from experiments.objectives import digits, language, run


def test_ranks_are_correlated_as_by_scipy():
    one = np.random.default_rng(0).normal(size=40).astype(np.float32)
    other = np.round(one + 0.5 * one[::-1])  # with ties
    found = digits.spearman(jax.numpy.asarray(one), jax.numpy.asarray(other))
    np.testing.assert_allclose(found, stats.spearmanr(one, other).statistic, rtol=1e-5)


@pytest.fixture
def short(monkeypatch):
    """A text in which each byte is told by the two before it, and not by one."""
    whole = np.tile(np.frombuffer(b"aabbab", np.uint8).astype(np.int32), 200)
    monkeypatch.setattr(language, "text", lambda: (whole, whole[:480]))


def test_a_longer_context_tells_more_where_there_is_more_to_tell(short):
    bits = [language.order_n(order) for order in (0, 1, 2, 3)]
    assert abs(bits[0] - 1) < 0.02 and bits[0] > bits[1] > bits[2] > bits[3] > 0


def test_the_language_models_score_is_that_of_its_own_words(short):
    agent = esrl.eggroll(language.bits, esrl.gru(4, output_scale=0.0), population=4)
    state = agent.init(seed_key(0))
    assert abs(esrl.evaluate(agent, state, 4).return_mean + 8) < 1e-4  # outputs of zero: every byte is as likely


def test_the_curve_of_the_long_run_is_read_from_its_folder(tmp_path):
    plain = {"generation": 1, "env_steps": 8, "seconds_training": 0.5}
    rows = [
        plain | {"start_return_mean": -8.0},
        {"generation": 2, "env_steps": 16, "seconds_training": 1.0, "eval_return_mean": -7.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.curve(tmp_path) == [
        {"step": 0, "evaluations": 0, "seconds": 0.0, "score": -8.0},
        {"step": 2, "evaluations": 16, "seconds": 1.0, "score": -7.0},
    ]
