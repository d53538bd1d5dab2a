"""Many runs in one program end as each would alone."""

import jax
import numpy as np
import pytest
from probes import ActionMatters, Walk

import esrl
from esrl import EsrlError
from esrl.core import sharding

TINY = esrl.mlp((8,), "tanh")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Four fake devices compile several times longer."""
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


AGENTS = {
    "eggroll": lambda **kw: esrl.eggroll(Walk(), TINY, population=16, **kw),
    "open_es": lambda **kw: esrl.open_es(Walk(), TINY, population=16, **kw),
    "eggroll_ac": lambda **kw: esrl.eggroll_ac(Walk(), TINY, num_envs=8, num_steps=8, num_minibatches=2, **kw),
    "ppo": lambda **kw: esrl.ppo(Walk(), TINY, num_envs=8, num_steps=8, num_minibatches=2, **kw),
}


@pytest.mark.parametrize(
    ("name", "batch_size"), [("eggroll", 1), ("eggroll", 2), ("open_es", 2), ("eggroll_ac", 2), ("ppo", 1), ("ppo", 2)]
)
def test_each_run_ends_as_it_would_alone(name, batch_size):
    agent, faster = AGENTS[name](learning_rate=0.01), AGENTS[name](learning_rate=0.05)
    many = esrl.train_many(
        agent, [7, 1], hyperparams={"learning_rate": [0.01, 0.05]}, env_steps=400, num_evals=2, batch_size=batch_size
    )
    for run, (single, seed, rate) in enumerate([(agent, 7, 0.01), (faster, 1, 0.05)]):
        alone = esrl.train(single, env_steps=400, seed=seed, num_evals=2)
        row = [r for r in many.rows if r["run"] == run][-1]
        assert (row["seed"], row["learning_rate"]) == (seed, rate)
        assert (row["env_steps"], row["generation"]) == (alone.metrics["env_steps"], alone.metrics["generation"])
        np.testing.assert_allclose(params_of(many.state_of(run)), params_of(alone.state), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(row["eval_return_mean"], alone.metrics["eval_return_mean"], rtol=0.05)
        score = esrl.evaluate(single, many.state_of(run), seed=seed).return_mean
        np.testing.assert_allclose(score, row["eval_return_mean"], rtol=1e-4)


def test_rows_are_of_the_start_and_of_each_evaluation():
    many = esrl.train_many(AGENTS["eggroll"](), [3, 4], generations=4, num_evals=2)
    assert [(r["run"], r["generation"]) for r in many.rows] == [(0, 0), (1, 0), (0, 2), (1, 2), (0, 4), (1, 4)]
    assert all(np.isfinite(r["eval_return_mean"]) for r in many.rows)


def test_progress_is_the_runs_mean_after_each_generation():
    said = []
    esrl.train_many(AGENTS["eggroll"](), [3, 4], generations=4, num_evals=0, progress=said.append)
    assert said == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("seeds", "given", "sentence"),
    [
        ([], {"generations": 1}, "no seeds are given"),
        ([0], {}, "how long to train is not said"),
        ([0], {"generations": 0}, "generations is 0"),
        (
            [0],
            {"generations": 1, "hyperparams": {"sigmas": [1.0]}},
            "'sigmas' is no traced value of eggroll; did you mean sigma",
        ),
        ([0, 1], {"generations": 1, "hyperparams": {"sigma": [1.0]}}, "sigma has 1 values for 2 runs"),
    ],
)
def test_bad_input_is_said_in_one_sentence(seeds, given, sentence):
    with pytest.raises(EsrlError, match=sentence):
        esrl.train_many(esrl.eggroll(ActionMatters(), TINY, population=4), seeds, **given)


def test_python_environments_are_refused():
    agent = esrl.eggroll("gymnasium/CartPole-v1", TINY, population=4)
    with pytest.raises(EsrlError, match="is stepped by Python"):
        esrl.train_many(agent, [0], generations=1)
