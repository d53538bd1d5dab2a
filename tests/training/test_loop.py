"""The training loop: budgets, evaluations, what is returned and shown, and what a run leaves behind."""

import io
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import Walk

import esrl
from esrl import EsrlError
from esrl.training.advice import Advice
from esrl.training.budget import Budget, Grid
from esrl.training.progress import Progress

TINY = esrl.mlp((8,), "tanh")


def agent(**options):
    return esrl.eggroll(Walk(), TINY, population=16, **options)


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


def test_train_trains_and_returns_where_it_ended(capsys):
    seen = []
    result = esrl.train(agent(), generations=3, num_evals=1, on_generation=lambda *now: seen.append(now[0]))
    assert seen == [1, 2, 3] and int(result.state.generation) == 3 and result.out is None
    assert result.metrics["eval_return_mean"] == esrl.evaluate(result.agent, result.state).return_mean
    assert capsys.readouterr().out == ""  # nobody looks


def test_progress_is_shown_when_it_is_asked_for(capsys):
    esrl.train(agent(), generations=2, num_evals=1, progress=True)
    said = capsys.readouterr().out
    assert "32 episodes a generation" in said and "return at the start" in said and "done: return" in said


def test_what_is_not_finite_is_warned_of_once():
    shown, row = io.StringIO(), {"generation": 1, "env_steps": 8, "env_steps_per_second": 1.0, "return_mean": 0.0}
    progress = Progress(shown)
    for steps in ({"nonfinite": 3, "skipped_steps": 0.0}, {"nonfinite": 4, "skipped_steps": 0.5}):
        progress.show({**row, **steps}, 0.5)
    assert shown.getvalue().count("warning: 3 steps of generation 1") == shown.getvalue().count("warning") == 1


@pytest.mark.parametrize(
    ("signal", "start", "end", "words"),
    [
        (
            {"tied": 0.9, "agreement": 0.0},
            1.0,
            1.1,
            "in 90% of the pairs .* or max_population=512, or weight_decay=0.01, or deterministic=False, or the agent",
        ),
        ({"tied": 0.1, "agreement": 0.02}, 1.0, 0.5, r"agreement 0.02\); try more episodes_per_member"),
        ({"tied": 0.1, "agreement": 0.6}, 1.0, 1.0, r"a signal \(agreement 0.60\); try more env_steps"),
        ({"tied": 0.1}, 1.0, 1.0, "try episodes_per_member=2"),
        ({"tied": 0.9}, 1.0, 1.3, None),  # it rose
        ({"tied": 0.9}, 1.0, math.nan, None),
        ({"tied": 0.9}, math.nan, 1.0, None),
        ({}, 1.0, 1.0, None),  # no pairs
    ],
)
def test_a_run_that_learnt_nothing_says_what_to_change(signal, start, end, words):
    advice = Advice(agent(), 128)
    for generation in range(30):
        first = {"start_return_mean": start, "start_return_std": 1.0} if generation == 0 else {}
        last = {"eval_return_mean": end, "eval_return_std": 0.0} if generation == 29 else {}
        advice.hear({**signal, **first, **last})
    said = advice.text()
    assert said is None if words is None else re.search(f"the return did not rise: .*{words}", said)


def test_a_short_run_and_one_that_went_on_get_no_advice():
    short, resumed = Advice(agent(), 128), Advice(agent(), 128)
    for generation in range(30):
        scored = {"tied": 1.0, "eval_return_mean": 0.0, "eval_return_std": 0.0}
        resumed.hear(scored)
        if generation < 3:
            short.hear(scored | {"start_return_mean": 0.0, "start_return_std": 0.0})
    assert short.text() is resumed.text() is None


def test_scores_that_are_not_finite_are_shown_as_none():
    shown = io.StringIO()
    progress = Progress(shown)
    progress.start(agent(), None)
    row = {"env_steps": 8, "env_steps_per_second": 1.0, "fitness_mean": 0.0}
    for generation, score in enumerate((math.nan, 1.0, 2.0, 3.0), start=1):
        start = {"start_return_mean": math.nan} if generation == 1 else {}
        progress.show({**row, **start, "eval_return_mean": score, "generation": generation}, generation / 4)
    progress.end(row, None)
    assert "return at the start: -" in shown.getvalue() and "best 3.0" in shown.getvalue()


def test_train_is_the_end_of_iterate():
    *_, (generation, state, metrics) = esrl.iterate(agent(), generations=3, seed=5, num_evals=0)
    result = esrl.train(agent(), generations=3, seed=5, num_evals=0)
    assert generation == 3
    np.testing.assert_array_equal(params_of(state), params_of(result.state))
    assert metrics["env_steps"] == result.metrics["env_steps"]


def test_the_first_budget_that_is_used_up_ends_a_run():
    assert int(esrl.train(agent(), generations=9, seconds=1e-9, num_evals=0).state.generation) == 1
    result = esrl.train(agent(), generations=9, env_steps=400, num_evals=0)
    assert 1 < int(result.state.generation) < 9 and int(result.state.env_steps) >= 400
    budget = Budget(env_steps=100, seconds=4.0)
    assert budget.used(50, 1, 1.0) == 0.5 and budget.used(10, 1, 3.0) == 0.75 and budget.used(10, 1, 9.0) == 1.0


def test_evaluations_are_spread_evenly_with_early_ones_at_halves():
    grid = Grid(num_evals=4, early=2)
    parts = np.arange(0, 129) / 128
    due = [after for before, after in itertools.pairwise(parts) if grid.due(before, after)]
    assert due == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1]
    rows = [row for *_, row in esrl.iterate(agent(), generations=8, num_evals=2, early_evals=1, eval_episodes=4)]
    assert [row["generation"] for row in rows if "eval_return_mean" in row] == [2, 4, 8]


def test_hyperparams_are_those_of_the_constructor():
    one = esrl.train(agent(sigma=0.3), generations=2, num_evals=0)
    other = esrl.train(agent(), generations=2, num_evals=0, hyperparams={"sigma": 0.3})
    np.testing.assert_array_equal(params_of(one.state), params_of(other.state))


def test_breaking_off_leaves_everything_so_far(tmp_path):
    for generation, state, _ in esrl.iterate(agent(), generations=9, out=tmp_path / "run", num_evals=0):  # noqa: B007
        if generation == 3:
            break
    trained = esrl.load(tmp_path / "run", env=Walk())
    np.testing.assert_array_equal(params_of(trained.state), params_of(state))
    rest = esrl.train(agent(), generations=5, out=tmp_path / "run", num_evals=0, resume=True)
    whole = esrl.train(agent(), generations=5, num_evals=0)
    np.testing.assert_array_equal(params_of(rest.state), params_of(whole.state))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "how long to train is not said"),
        ({"generations": 0}, "generations is 0"),
        ({"seconds": 0.0}, "seconds is 0.0, but must be a number above 0"),
        ({"generations": 1, "num_evals": -1}, "num_evals is -1"),
        ({"generations": 1, "eval_episodes": 0}, "eval_episodes is 0"),
        ({"generations": 1, "resume": True}, "give the run's folder"),
        ({"generations": 1, "checkpoint_every": 2}, "no folder to keep checkpoints in"),
        ({"generations": 1, "hyperparams": {"sigmas": 1.0}}, "did you mean sigma"),
    ],
)
def test_bad_arguments_are_said_before_anything_runs(given, sentence):
    with pytest.raises(EsrlError, match=sentence):
        esrl.iterate(agent(), **given)
    with pytest.raises(EsrlError, match=sentence):
        esrl.train(agent(), **given)


class _Fails:
    """An agent whose step fails, or whose every gradient step is not finite."""

    def __init__(self, agent, error=None):
        self._agent, self._error = agent, error

    def __getattr__(self, name):
        return getattr(self._agent, name)

    def step(self, state):
        if self._error is not None:
            raise self._error
        state, metrics = self._agent.step(state)
        return state, metrics | {"skipped_steps": jnp.float32(1)}

    def rollout(self, state):
        raise self._error


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")]
)
def test_what_does_not_fit_into_memory_is_one_sentence(tmp_path, error):
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((2,)), population=4)
    run = esrl.iterate(agent, generations=3, num_evals=0, out=tmp_path / "run")
    run.agent = _Fails(agent, error)
    with pytest.raises(EsrlError, match=r"generation 1 does not fit into memory \(.*\); fewer members"):
        next(iter(run))


def test_a_run_without_a_finite_gradient_step_ends(monkeypatch):
    monkeypatch.setattr("esrl.training.loop.MOST_LOST", 3)
    net = esrl.mlp((2,))
    agent = esrl.ppo("gymnasium/phys2d/CartPole-v1", net, num_envs=2, num_steps=4, num_minibatches=1, num_epochs=1)
    run = esrl.iterate(agent, generations=9, num_evals=0)
    run.agent = _Fails(agent)
    generations = []
    with pytest.raises(EsrlError, match="not one gradient step of the last 3 generations was finite"):
        generations += [generation for generation, _, _ in run]


@pytest.mark.parametrize("given", [{"early_evals": 2}, {"eval_seed": 7}], ids=["early_evals", "eval_seed"])
def test_evaluations_that_are_not_made_are_said(given, capsys):
    made = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=4)
    esrl.iterate(made, generations=1, num_evals=0, **given)
    assert f"{next(iter(given))} changes nothing, since nothing is scored" in capsys.readouterr().err
    esrl.iterate(made, generations=1, num_evals=1, **given)
    esrl.iterate(made, generations=1, num_evals=0)
    assert not capsys.readouterr().err
