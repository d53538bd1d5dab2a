"""Every recipe in agents/ is what its folder says, loads, and runs a generation."""

import dataclasses
import functools
import runpy
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

import esrl
from esrl.core import names as former
from esrl.core.options import options_of
from esrl.core.types import seed_key
from esrl.envs.catalog import installed, missing
from esrl.training import recipe as recipes

ROOT = Path(__file__).parents[2]
AGENTS = ROOT / "agents"
# The paper's own configurations, and those that the study chose: made here and not run.
PAPER, STUDY = AGENTS / "paper", AGENTS / "study"
RECIPES = sorted(AGENTS.rglob("*.toml"))
PAPERS = sorted(PAPER.rglob("*.toml"))
HORIZON = 30
SMALL = {
    "population": 8,
    "chunk_pairs": None,
    "num_envs": 8,
    "num_steps": 16,
    "num_minibatches": 2,
}  # every line is run


def _folder(path):
    return next((folder for folder in (PAPER, STUDY) if path.is_relative_to(folder)), AGENTS)


def _skip_missing(env):
    suite = env.partition("/")[0]
    if not installed(suite):
        pytest.skip(missing(suite))


def _quick(path):
    env = recipes.read(path).env
    return not env.startswith("brax/") or env.partition("?")[0] == "brax/inverted_pendulum"


CASES = [
    pytest.param(path, id=str(path.relative_to(AGENTS)), marks=() if _quick(path) else pytest.mark.slow)
    for path in RECIPES
    if _folder(path) == AGENTS
]
if not CASES:
    pytest.skip("agents/ is empty", allow_module_level=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(AGENTS)))
def test_recipe_is_where_its_name_says(path, capsys):
    former.tell_renamed.cache_clear()
    recipe = recipes.read(path)
    assert capsys.readouterr().err == "", "the recipe uses an old name"
    assert (
        path.relative_to(_folder(path)).with_suffix("").as_posix() == f"{recipe.env.partition('?')[0]}/{recipe.agent}"
    )
    assert recipe.env_steps or recipe.generations
    assert path.read_text().startswith("#"), "the header says date, commit, seeds and the score reached"


@pytest.mark.parametrize("path", CASES)
def test_recipe_runs_a_generation(path, lenient):
    recipe = recipes.read(path)
    _skip_missing(recipe.env)
    known = options_of(recipes.agent_named(recipe.agent))
    options = {**recipe.options, **{name: value for name, value in SMALL.items() if name in known}}
    env = esrl.make(recipe.env, max_episode_steps=HORIZON)
    agent = dataclasses.replace(recipe, options=options).build(env)
    state = agent.init(seed_key(recipe.seed))
    state, metrics = agent.step(state)
    assert int(state.generation) == 1 and metrics["nonfinite"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert not float(metrics["length_mean"]) > HORIZON  # NaN where no episode of PPO has ended yet


# ---- the paper's, and the study's ------------------------------------------------------------------------------------


@functools.cache
def _made(env):
    return esrl.make(env)


@pytest.mark.parametrize(
    "path", [*PAPERS, *sorted(STUDY.rglob("*.toml"))], ids=lambda path: str(path.relative_to(AGENTS))
)
def test_paper_or_study_recipe_builds(path, lenient):
    recipe = recipes.read(path)
    _skip_missing(recipe.env)
    agent = recipe.build(_made(recipe.env))
    members = recipe.options.get("population", 0) * recipe.options.get("episodes_per_member", 1)
    assert agent.plan.lanes == (members or recipe.options["num_envs"])
    assert set(agent.options) <= set(recipe.options) | former.FORMER_DEFAULTS.keys()  # which an agent always says


def test_paper_recipes_are_the_papers_numbers():
    """Each number of the data file, by the names that the paper gives and a mapping that is written here once more."""
    data = tomllib.loads((ROOT / "experiments" / "paper" / "rl.toml").read_text())
    protocol, envs = data["protocol"], [env for env in data if env not in ("protocol", "search_space")]
    assert len(envs) == 16 and {path.parent.relative_to(PAPER).as_posix() for path in PAPERS} == set(envs)
    assert len(PAPERS) == 48
    for path in PAPERS:
        recipe = recipes.read(path)
        given = dict(data[recipe.env][recipe.agent])
        own = {"normalize_observations": recipe.agent == "ppo"}
        if recipe.agent == "ppo":
            own["normalize_rewards"] = False
        else:
            own |= {"gradient_scale": "paper", "averaging": 0.0}
            own["deterministic"] = given.pop("deterministic_policy")
            own["shaping"] = "centered_rank" if given.pop("rank_transform") else "z_score"
        assert recipe.options == given | own, path
        assert recipe.env_steps == protocol["env_steps"] == 5e8
        assert protocol["activation"] == "pqn"  # the paper's name of it
        plain = {} if recipe.agent == "ppo" else {"output_scale": 1.0, "skip": False}
        network = {"network": "mlp", "hidden": protocol["hidden"], "activation": "layernorm_relu"}
        assert recipe.policy == network | plain
        text = path.read_text()
        assert text.startswith(
            "# The configuration of arXiv 2511.16652 (final tables of its appendix: best of 20 random"
        )
        assert "not tuned by esrl.\n" in text
        if recipe.agent != "ppo":
            found = [v for k, v in data[recipe.env]["result"].items() if k.startswith(recipe.agent)]
            assert len(found) == 4 and all(str(value) in text for value in found)


def test_paper_recipes_can_be_made_again(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "experiments.paper.recipes", raising=False)
    monkeypatch.setattr("sys.argv", ["recipes.py", "--check"])
    runpy.run_module("experiments.paper.recipes", run_name="__main__")
    assert capsys.readouterr().out.strip() == "0 differ"
