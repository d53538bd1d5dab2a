"""Every recipe in agents/ is what its folder says, loads, and runs a generation."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import esrl
from esrl import recipe as recipes
from esrl.types import seed_key

AGENTS = Path(__file__).parents[1] / "agents"
RECIPES = sorted(AGENTS.rglob("*.toml"))
HORIZON = 30
SMALL = {"population": 8, "chunk": None, "num_envs": 8, "num_steps": 16, "num_minibatches": 2}  # every line is run


def _quick(path):
    env = recipes.read(path).env
    return not env.startswith("brax/") or env.partition("?")[0] == "brax/inverted_pendulum"


CASES = [
    pytest.param(path, id=str(path.relative_to(AGENTS)), marks=() if _quick(path) else pytest.mark.slow)
    for path in RECIPES
]
if not CASES:
    pytest.skip("agents/ is empty", allow_module_level=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(AGENTS)))
def test_recipe_is_where_its_name_says(path):
    recipe = recipes.read(path)
    assert path.relative_to(AGENTS).with_suffix("").as_posix() == f"{recipe.env.partition('?')[0]}/{recipe.agent}"
    assert recipe.env_steps or recipe.generations
    assert path.read_text().startswith("#"), "the header says date, commit, seeds and the score reached"


@pytest.mark.parametrize("path", CASES)
def test_recipe_runs_a_generation(path, lenient):
    recipe = recipes.read(path)
    known = {f.name for f in dataclasses.fields(recipes.agent_named(recipe.agent).options)}
    options = {**recipe.options, **{name: value for name, value in SMALL.items() if name in known}}
    env = esrl.make(recipe.env, horizon=HORIZON)
    agent = dataclasses.replace(recipe, options=options).build(env)
    state = agent.init(seed_key(recipe.seed))
    state, metrics = agent.step(state)
    assert int(state.generation) == 1 and metrics["nonfinite"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert 0 <= float(metrics["length_mean"]) <= HORIZON
