"""PPO and EGGROLL-AC on a real Ray of this machine, whose workers are killed and hang while they play."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

import esrl
from tests.cluster.test_lanes import learned
from tests.cluster.test_ray import GENERATIONS, SLOW, kill_soon, patiently, same

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    # Ray's own, on starting and ending processes
    pytest.mark.filterwarnings("ignore"),
]

# A world of JAX that takes its time, so that a worker can be killed in the middle of an iteration.
SLOW_JAX = """
import time

import jax
import jax.numpy as jnp
from gymnasium import spaces


def _wait(x):
    time.sleep(0.005)
    return x


class Slow:
    observation_space = spaces.Box(-9.0, 9.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))
    max_episode_steps = 5

    def reset(self, key):
        x = jax.random.normal(key, (2,))
        return x, x

    def step(self, state, action, key):
        x = 0.9 * state + 0.1 * action[0]
        x = jax.pure_callback(_wait, jax.ShapeDtypeStruct((2,), jnp.float32), x, vmap_method="sequential")
        return x, x, -jnp.abs(x).sum(), jnp.bool_(False)
"""
SIZES = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2}
OPTIONS = {"generations": GENERATIONS, "num_evals": 0, "progress": False, "block_envs": 2}


@pytest.fixture(scope="module", autouse=True)
def started():
    """One Ray of two cores for all runs: to start it takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
        patiently(
            lambda: ray.init(
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=80 << 20,
                log_to_driver=False,
                logging_level="ERROR",
            )
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("slow")
    (found / "slow.py").write_text(SLOW)
    (found / "slow_jax.py").write_text(SLOW_JAX)
    return found


@pytest.fixture(scope="module")
def agents(folder):
    on_device = f"{folder / 'slow_jax.py'}:Slow"
    by_python = esrl.make(f"{folder / 'slow.py'}:Slow?vectorization=sync", folder=str(folder))
    return {
        "ppo": esrl.ppo(on_device, esrl.mlp((4,)), **SIZES),
        "eggroll_ac": esrl.eggroll_ac(on_device, esrl.mlp((4,)), **SIZES),
        "ppo by Python": esrl.ppo(by_python, esrl.mlp((4,)), **SIZES),
    }


@pytest.mark.parametrize("name", ["ppo", "eggroll_ac"])
def test_workers_train_what_one_process_trains_though_they_are_killed_and_the_run_is_resumed(agents, name, tmp_path):
    alone = esrl.train(agents[name], **OPTIONS).state

    def on_generation(generation, state, metrics):
        if generation == 2:
            kill_soon(after=0.05)

    begun = OPTIONS | {"generations": 4, "out": tmp_path / "run", "checkpoint_every": 1}
    result = esrl.train(agents[name], ray_address="local", workers=2, on_generation=on_generation, **begun)
    assert sum(row["workers_lost"] for row in result.rows) >= 1
    # The block size is the run's own, though it is not given again.
    went_on = {key: value for key, value in begun.items() if key != "block_envs"} | {"generations": GENERATIONS}
    result = esrl.train(agents[name], ray_address="local", workers=1, resume=True, **went_on)
    assert same(result.state, alone)


def test_worlds_of_python_stay_with_their_workers_and_a_killed_one_costs_no_iteration(agents, folder):
    agent = agents["ppo by Python"]
    alone = esrl.train(agent, **OPTIONS).state
    state = esrl.train(agent, ray_address="local", workers=2, **OPTIONS).state
    assert same(learned(state), learned(alone))

    def on_generation(generation, state, metrics):
        if generation == 2:
            kill_soon(after=0.05)

    result = esrl.train(agent, ray_address="local", workers=2, on_generation=on_generation, **OPTIONS)
    assert result.metrics["generation"] == GENERATIONS and result.metrics["env_steps"] == 32 * GENERATIONS
    assert sum(row["workers_lost"] for row in result.rows) >= 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))
