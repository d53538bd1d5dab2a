"""The memory plan of a run, and `esrl train --dry-run`: what it says, and that it trains nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import Walk

import esrl
from esrl.algorithms import memory_plan as footprint
from esrl.cli.main import main
from esrl.core import sharding
from esrl.core.types import EsrlError, seed_key

TINY = esrl.mlp((8,), "tanh")
CARTPOLE = "gymnasium/phys2d/CartPole-v1"


def dry(capsys, *arguments):
    assert main(["train", *arguments, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_an_evolution_strategy_says_its_memory_and_its_speed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dry(capsys, CARTPOLE, "--hidden", "8", "--population", "64", "--env-steps", "1e6")
    parts = {part["name"]: part["bytes"] for part in found["memory"]}
    assert set(parts) == {"state", "noise", "worlds", "activations", "episodes", "update"}
    assert all(parts.values()) and set(found["compiled"]) == {"rollout", "update"}
    assert found["env_steps_per_second"] > 0 and found["seconds_of_training"] > 0
    assert list(tmp_path.iterdir()) == []  # no run was begun


def test_ppo_and_environments_that_python_steps_have_one_too(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--num-envs", "8", "--num-steps", "8", "--num-minibatches", "2")
    found = dry(capsys, CARTPOLE, "--agent", "ppo", "--hidden", "8", *small)
    assert set(found["compiled"]) == {"step"} and found["env_steps_per_second"] > 0
    found = dry(capsys, "gymnasium/CartPole-v1", "--hidden", "8", "--population", "8", "--generations", "3")
    assert found["compiled"] == {} and found["env_steps_per_second"] > 0


def test_tables_are_for_people(capsys):
    assert main(["train", CARTPOLE, "--hidden", "8", "--population", "16", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("planned, on each device", "noise", "rollout", "temporary", "steps/s"):
        assert word in shown


def test_memory_bounds_how_many_play_at_once():
    def agent(**options):
        return esrl.eggroll(Walk(), TINY, population=256, mesh=sharding.one_device(), **options)

    each = sum(
        part.bytes for part in agent(chunk_pairs=1).plan.memory if part.name in ("noise", "worlds", "activations")
    )
    bounded = agent(memory_gib=5.5 * each / 2**30)
    assert bounded.plan.chunk == 5 and agent().plan.chunk > 5
    states = [a.step(a.init(seed_key(0)))[0] for a in (bounded, agent())]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), *(s.params for s in states))
    with pytest.raises(EsrlError, match="memory_gib is -1"):
        agent(memory_gib=-1.0)


def test_a_larger_population_needs_no_larger_rollout():
    def temporary(population):
        agent = esrl.eggroll(Walk(), TINY, population=population, mesh=sharding.one_device())
        state = jax.eval_shape(agent.init, seed_key(0))
        results = population * (3 * 4 + 8)  # returns twice, lengths, steps
        return agent.rollout.lower(state).compile().memory_analysis().temp_size_in_bytes - results

    assert temporary(1 << 16) < 2 * temporary(1 << 12) + (1 << 20)


def test_widest_looks_at_operations_on_lanes_alone():
    def network(weights, x):
        big = weights @ weights.T  # made of parameters: shared by all lanes
        return jnp.tanh(x @ weights) @ big[:5]

    shapes = jax.ShapeDtypeStruct((7, 5), jnp.float32), jax.ShapeDtypeStruct((7,), jnp.float32)
    assert footprint.widest(network, *shapes) == 4 * (7 + 5)
