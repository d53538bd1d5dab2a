"""What is wrong with a cluster, an address or an agent is said in one sentence, before anything is lost."""

import sys
import threading

import pytest

import esrl
from esrl.cluster.jobs import agent_of, job_of
from esrl.cluster.player import agrees, versions
from esrl.cluster.ray_session import Session
from esrl.core.types import EsrlError

HOST = "gymnasium/CartPole-v1?max_episode_steps=5&vectorization=sync"
TANK = """
import gymnasium
import numpy as np
from gymnasium import spaces

from leaks import LEAK


class Tank(gymnasium.Env):
    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))
    max_episode_steps = 3

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.full(1, LEAK, np.float32), LEAK, False, False, {}
"""


@pytest.fixture(scope="module")
def agent():
    return esrl.eggroll(HOST, esrl.mlp((4,)), population=8)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ray_address": "10.0.0.1"}, "HOST:PORT"),
        ({"ray_address": "ray://10.0.0.1:10001"}, "on a node"),
        ({"ray_address": "127.0.0.1:9"}, "no Ray cluster answers at 127.0.0.1:9"),
        ({"ray_address": "local", "workers": 9}, "at most 4"),
        ({"ray_address": "local", "workers": 3, "block_pairs": 2}, "at most 2"),
        ({"block_pairs": 5}, "4 pairs"),
        ({"workers": 2}, "ray_address"),
        ({"broadcast": "scalars"}, "ray_address"),
        ({"close_at": 0.5}, "ray_address"),
        ({"ray_address": "local", "broadcast": "gossip"}, "broadcast"),
        ({"ray_address": "local", "close_at": 0.0}, "close_at"),
    ],
)
def test_what_does_not_fit_is_said_and_no_folder_is_left(agent, options, words, tmp_path):
    if options.get("ray_address", "local") != "local":
        pytest.importorskip("ray")
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.iterate(agent, generations=1, out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_said_before_ray_is_started(agent, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(EsrlError, match="exists"):
        esrl.iterate(agent, generations=1, out=tmp_path, ray_address="local")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EsrlError, match=r"esrl\[ray\]"):
        Session("local", 1)


@pytest.mark.parametrize(
    "name, options, words",
    [
        (HOST, {"ray_address": "local", "broadcast": "scalars"}, "leave broadcast out"),
        (HOST, {"ray_address": "local", "close_at": 0.5}, "leave close_at out"),
        (HOST, {"block_pairs": 2}, "blocks of environments: block_envs"),
        (HOST, {"block_envs": 5}, "4 environments; give at most that$"),
        (HOST, {"ray_address": "local", "workers": 5}, "at most 4, or a larger num_envs"),
        (f"{HOST}&instances=1", {"ray_address": "local"}, "at most 1 instances"),
        (f"{HOST}&instances=9", {"block_envs": 2}, "or instances$"),
    ],
)
def test_what_does_not_fit_agents_whose_environments_live_on_is_said(name, options, words):
    agent = esrl.ppo(name, esrl.mlp((4,)), num_envs=4, num_steps=8, num_minibatches=1)
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.iterate(agent, generations=1, **options)
    assert "\n" not in str(caught.value)


def test_pairs_of_lanes_stay_in_one_block():
    sizes = {"num_envs": 4, "num_steps": 8, "num_minibatches": 1}
    agent = esrl.eggroll_ac(HOST, esrl.mlp((4,)), noise_space="weights", window=4, **sizes)
    with pytest.raises(EsrlError, match="in steps of 2"):
        esrl.iterate(agent, generations=1, block_envs=3)


def test_agents_that_no_worker_plays_are_refused(agent):
    with pytest.raises(EsrlError, match="random is none of them"):
        esrl.iterate(esrl.random(HOST), generations=1, ray_address="local")
    with pytest.raises(EsrlError, match="block_envs is of agents"):
        esrl.iterate(agent, generations=1, block_envs=2)


def test_versions_that_differ_are_named():
    mine = versions()
    assert agrees(mine, {**mine, "node": "far"}) == ""
    said = agrees(mine, {**mine, "jax": "0.1", "node": "far"})
    assert said.startswith("node far has jax 0.1 (here ") and "python" not in said


def test_the_environments_file_and_what_it_imports_are_sent_to_a_machine_without_them(tmp_path):
    (tmp_path / "tank.py").write_text(TANK)
    (tmp_path / "leaks.py").write_text("LEAK = 0.25\n")
    agent = esrl.eggroll(f"{tmp_path / 'tank.py'}:Tank?vectorization=sync", esrl.mlp((4,)), population=4)
    job = job_of(agent)
    assert len(job.files) == 2 and job.env.endswith("vectorization=sync")
    for file in tmp_path.glob("*.py"):
        file.unlink()
    made = agent_of(job)
    assert made.plan.num_params == agent.plan.num_params
    env = made.env.make_one()
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[1] == 0.25


def test_objects_are_sent_by_value_and_what_cannot_be_sent_is_said():
    lock = threading.Lock()
    agent = esrl.eggroll(HOST, esrl.mlp((4,)), population=4, shaping=lambda fitness, held=lock: fitness)
    with pytest.raises(EsrlError, match="cannot be sent to workers"):
        job_of(agent)
    agent = esrl.open_es(HOST, esrl.mlp((4,)), population=4, sigma=lambda generation: 0.1)
    made = agent_of(job_of(agent))
    assert made.name == "open_es" and callable(made.options["sigma"])
