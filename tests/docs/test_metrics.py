"""Every metric that an agent logs has a sentence on its page, and no sentence is of a metric that is gone."""

import re

import jax
import pytest

import esrl

from .pages import ROOT

ENV = "gymnasium/phys2d/CartPole-v1"
RUN = ROOT / "docs" / "training.md"
ALGORITHMS = ROOT / "docs" / "algorithms"
LANES = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "num_epochs": 1}
AGENTS = {
    "eggroll": (lambda: esrl.eggroll(ENV, esrl.mlp((8,))), ["eggroll.md"]),
    "open_es": (lambda: esrl.open_es(ENV, esrl.mlp((8,))), ["open_es.md", "eggroll.md"]),
    "ppo": (lambda: esrl.ppo(ENV, esrl.mlp((8,)), **LANES), ["ppo.md"]),
    "eggroll_int8": (lambda: esrl.eggroll_int8(ENV, esrl.mlp((8,), dtype="int8")), ["eggroll_int8.md"]),
    "eggroll_ac": (lambda: esrl.eggroll_ac(ENV, esrl.mlp((8,)), **LANES), ["eggroll_ac.md", "ppo.md"]),
    "windows": (
        lambda: esrl.eggroll_ac(ENV, esrl.mlp((8,)), noise_space="weights", **LANES),
        ["eggroll_ac.md", "ppo.md"],
    ),
}
# Of the run's rows, but said with the evolution strategies.
OF_ROWS = {"padded_steps", "noise_floats_per_member", "dense_floats_per_member"}
OF_HOSTS = {"env_faults"}  # where Python steps the environment


def said(*pages):
    """{metric: sentence} of the tables of metrics on some pages."""
    found = {}
    for page in pages:
        for text in re.findall(r"^## Metrics[^\n]*\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S):
            for names, sentence in re.findall(r"^\| (`.*?) \| (.*?) \|$", text, re.M):
                found |= dict.fromkeys(re.findall(r"`([\w/]+)`", names), sentence)
    return found


def named(metrics):
    """Metrics by the names that the pages have."""
    return {re.sub(r"^signal_cosine/.*", "signal_cosine/NAME", name) for name in metrics}


@pytest.mark.parametrize("agent", AGENTS)
def test_every_metric_has_a_sentence(agent):
    make, pages = AGENTS[agent]
    made = make()
    state = jax.eval_shape(made.init, jax.eval_shape(lambda: jax.random.key(0)))
    logged = named(jax.eval_shape(made.step, state)[1]) - {"all_nonfinite"}  # which ends a run, and is not logged
    known = said(*(ALGORITHMS / page for page in pages))
    assert logged <= known.keys(), logged - known.keys()
    assert all(len(sentence) > 8 for sentence in known.values())
    gone = said(ALGORITHMS / pages[0]).keys() - logged - OF_ROWS
    assert not gone or agent == "windows", gone


def test_every_number_of_a_row_has_a_sentence(tmp_path):
    rows = []
    for agent in (esrl.eggroll(ENV, esrl.mlp((8,))), esrl.random(ENV, population=8)):
        rows.append(esrl.train(agent, generations=1, num_evals=1, eval_episodes=4).metrics)
    logged = set.union(*(named(row) for row in rows))
    of_run, of_agents = said(RUN), said(ALGORITHMS / "eggroll.md")
    assert logged <= of_run.keys() | of_agents.keys(), logged - of_run.keys() - of_agents.keys()
    assert of_run.keys() <= logged | OF_HOSTS, of_run.keys() - logged


def test_every_number_of_workers_has_a_sentence():
    agent = esrl.eggroll(ENV, esrl.mlp((8,)))
    with_blocks = esrl.train(agent, generations=1, num_evals=0, block_pairs=2).metrics
    known = said(ROOT / "docs" / "scaling.md")
    of_workers = named(with_blocks) - said(RUN).keys() - said(ALGORITHMS / "eggroll.md").keys()
    assert of_workers == known.keys()
