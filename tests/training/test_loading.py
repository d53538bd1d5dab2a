"""A trained agent acts where its environment is not at hand: spaces are stored with the run."""

import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.cli.main import main
from esrl.training import stored_spaces
from esrl.training.stored_spaces import read, stored, table_of

ROOT = Path(__file__).parents[2]
MANY = [
    spaces.Box(-np.inf, np.inf, (3,)),
    spaces.Box(np.array([-1, -np.inf], np.float32), np.array([0.1, 1e30], np.float32)),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64),
    spaces.Box(0.1, 1, (2, 0), np.float64),
    spaces.Box(-1, 1, (), np.float16),
    spaces.Box(0, 1, (2,), bool),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4], start=[1, 2]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
]
NESTED = spaces.Dict(OrderedDict(z=spaces.Tuple(MANY[:3]), a=spaces.Dict({"b": MANY[7], "é": MANY[9]}), m=MANY[10]))


class Spaced:
    """An environment that has these spaces."""

    name, max_episode_steps = "a/Spaced", 77

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize("space", [*MANY, NESTED, spaces.Tuple(MANY)], ids=str)
def test_a_space_is_what_it_was(space, tmp_path):
    (tmp_path / "spaces.json").write_bytes(stored(Spaced(space, MANY[0])))
    found = read(tmp_path / "spaces.json")
    assert found[0] == "a/Spaced" and found[3] == 77 and found.action_space == MANY[0]
    assert found.observation_space == space and type(found.observation_space) is type(space)
    assert found.observation_space.dtype == space.dtype
    if isinstance(space, spaces.Dict):  # the network's inputs lie in this order
        assert list(found.observation_space.spaces) == list(space.spaces) == ["z", "a", "m"]


def test_what_the_file_cannot_say_is_left_out(tmp_path):
    text = spaces.Dict({"a": spaces.Text(3)})
    huge = spaces.Box(0, 255, (5000, 5000), np.uint8)
    for space in (text, huge):
        assert stored(Spaced(space, MANY[0])) is None
    with pytest.raises(EsrlError, match="cannot be stored; use Box"):
        table_of(spaces.Text(3))


BOX = {"kind": "Box", "shape": [2], "dtype": "float32", "low": -1.0, "high": 1.0}
NEST = BOX
for _ in range(40):
    NEST = {"kind": "Tuple", "spaces": [NEST]}
BAD = [
    b"", b"[]", b"{", b"[" * 100_000, b'{"format": "esrl-spaces"}', b"\xff", b"9" * 100_000, 3, {"version": 2},
    {"format": "x"}, {"env": 3}, {"max_episode_steps": 0}, {"max_episode_steps": True}, {"max_episode_steps": 1e3},
    *({"observation_space": BOX | change} for change in (
        {"kind": "Text"}, {"kind": []}, {"shape": [10**9, 10**9]}, {"shape": [-1]}, {"shape": [2.0]}, {"shape": 2},
        {"shape": [1] * 100}, {"dtype": "object"}, {"dtype": "O"}, {"dtype": []}, {"low": [1, 2, 3]}, {"low": "nan"},
        {"low": None}, {"low": []}, {"low": [[]]}, {"low": 10**400}, {"high": True}, {"dtype": "int8", "high": 300},
        {"shape": [1 << 22]},
    )),
    {"observation_space": NEST}, {"observation_space": None},
    {"observation_space": {"kind": "Dict", "spaces": [["a", BOX], ["a", BOX]]}},
    {"observation_space": {"kind": "Dict", "spaces": [[3, BOX]]}},
    {"observation_space": {"kind": "Tuple", "spaces": [BOX] * 20_000}},
    {"action_space": {"kind": "Discrete", "n": 0, "start": 0, "dtype": "int64"}},
    {"action_space": {"kind": "Discrete", "n": 10**30, "start": 0, "dtype": "int64"}},
    {"action_space": {"kind": "Discrete", "n": 3, "start": 0, "dtype": "float32"}},
    {"action_space": {"kind": "MultiBinary", "n": -3}}, {"action_space": {"kind": "MultiBinary", "n": [1 << 40]}},
    {"action_space": {"kind": "MultiDiscrete", "shape": [2], "dtype": "int64", "nvec": [3, -4], "start": 0}},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_strangers_spaces_have_bounds(bad, tmp_path):
    good = json.loads(stored(Spaced(MANY[0], spaces.Tuple([spaces.Box(0, 1, (1 << 21,))]))))
    data = bad if isinstance(bad, bytes) else json.dumps(good | bad if isinstance(bad, dict) else bad).encode()
    (tmp_path / "spaces.json").write_bytes(data)
    with pytest.raises(EsrlError, match=r"spaces.json cannot be read: .*; delete it"):
        read(tmp_path / "spaces.json")


# ---- runs -----------------------------------------------------------------------------------------------------------

CODE = """
import pathlib
import jax, jax.numpy as jnp
from gymnasium import spaces

pathlib.Path({mark!r}).touch()

class Far:
    observation_space, action_space, max_episode_steps = spaces.Box(-9, 9, (2,)), spaces.Box(-1, 1, (1,)), 5
    def reset(self, key):
        return (points := jax.random.uniform(key, (2,))), points
    def step(self, state, action, key):
        state = state + action
        return state, state, state[0], state[0] > 5.0
"""
AGENTS = {
    "eggroll": {"population": 4},
    "ppo": {"num_envs": 2, "num_steps": 4, "num_minibatches": 2},
    "eggroll_ac": {"num_envs": 2, "num_steps": 4, "num_minibatches": 2},
}
OBSERVATION = np.array([0.5, -1.5], np.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of every kind of agent on an environment in a file, and what each does."""
    home = tmp_path_factory.mktemp("loading")
    (home / "far.py").write_text(CODE.format(mark=str(home / "mark")))
    acts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        for name, options in AGENTS.items():
            agent = getattr(esrl, name)(f"{home}/far.py:Far", esrl.mlp((4,)), **options)
            result = esrl.train(agent, generations=1, num_evals=0, out=home / name)
            acts[name] = esrl.Trained(agent, result.state).predict(OBSERVATION)
    (home / "mark").unlink()
    return home, acts


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("why", ["not trusted", "gone"])
def test_a_policy_acts_without_its_environment(runs, name, why, monkeypatch, capsys, tmp_path):
    home, acts = runs
    if why == "gone":
        shutil.copytree(home / name, tmp_path / "run")
        recipe = tmp_path / "run" / "recipe.toml"
        recipe.write_text(recipe.read_text().replace("far.py", "nowhere.py"))
    folder = home / name if why == "not trusted" else tmp_path / "run"
    for module in [module for module in sys.modules if module.startswith("esrl_file_far")]:
        monkeypatch.delitem(sys.modules, module)
    found = esrl.load(folder, trust=why == "gone")
    np.testing.assert_array_equal(found.predict(OBSERVATION), acts[name])
    capsys.readouterr()
    missing = "far.py:Far; read it, and if you trust it" if why == "not trusted" else "nowhere.py"
    for call in (
        lambda: esrl.evaluate(found.agent, found.state, 4),
        lambda: esrl.render(found.agent, found.state, tmp_path / "x"),
        lambda: found.agent.step(found.state),
        lambda: found.agent.env.reset(jax.random.key(0)),
    ):
        with pytest.raises(EsrlError, match=rf"Far cannot be stepped here: .*{missing}"):
            call()
    assert not (home / "mark").exists()
    assert main(["evaluate", str(folder), "--episodes", "2"]) == 2 and capsys.readouterr().err.count("\n") == 1
    out = esrl.export(folder, to="numpy", out=tmp_path / "policy")
    assert sorted(path.name for path in out.iterdir()) == ["policy.npz", "policy.py"]


def test_an_older_run_asks_for_its_environment_and_keeps_its_spaces_when_it_goes_on(tmp_path):
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((2,)), population=4)
    esrl.train(agent, generations=1, num_evals=0, out=tmp_path / "run")
    text = (tmp_path / "run" / "spaces.json").read_text()
    (tmp_path / "run" / "spaces.json").unlink()
    recipe = tmp_path / "run" / "recipe.toml"
    whole = recipe.read_text()
    recipe.write_text(whole.replace("CartPole", "CartPoll"))
    with pytest.raises(EsrlError, match="gymnasium has no environment 'phys2d/CartPoll-v1'"):
        esrl.load(tmp_path / "run")
    recipe.write_text(whole)
    esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "spaces.json").read_text() == text


def test_spaces_behind_a_link_are_not_read(tmp_path):
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((2,)), population=4)
    esrl.train(agent, generations=1, num_evals=0, out=tmp_path / "run")
    path = tmp_path / "run" / "spaces.json"
    os.replace(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    esrl.load(tmp_path / "run")  # the environment is there, and nobody asks
    with pytest.raises(EsrlError, match="is a link, and none is followed"):
        stored_spaces.read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EsrlError, match="is no plain file"):
        stored_spaces.read(path)


WITHOUT = """
import sys
sys.modules["gymnax"] = None
import esrl
found = esrl.load("run")
print(found.predict([0.0, 0.1, 0.0, -0.1]), found.agent.env.action_space)
try:
    esrl.evaluate(found.agent, found.state)
except esrl.EsrlError as error:
    print(error)
"""


def test_a_policy_acts_without_the_environments_package(tmp_path):
    pytest.importorskip("gymnax")
    agent = esrl.eggroll("gymnax/CartPole-v1", esrl.mlp((4,)), population=4)
    result = esrl.train(agent, generations=1, num_evals=0, out=tmp_path / "run")
    acts = esrl.Trained(agent, result.state).predict([0.0, 0.1, 0.0, -0.1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines() == [
        f"{acts} Discrete(2)",
        "gymnax/CartPole-v1 cannot be stepped here: gymnax is not installed; install it with: pip install"
        " 'esrl[gymnax]'",
    ], done.stderr


@pytest.mark.parametrize("wrong", ["abc", {"a": 1}, [[0.0], [0.0, 1.0]]], ids=str)
def test_what_is_no_observation_is_refused_in_one_sentence(wrong):
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)))
    acts = esrl.Trained(agent, agent.init(jax.random.key(0)))
    with pytest.raises(EsrlError, match=r"was given, but an observation of Box.* is needed"):
        acts.predict(wrong)


def test_what_has_a_wrong_kind_is_told_what_is_needed():
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)))
    with pytest.raises(EsrlError, match="the state is a NoneType, but must be what training left"):
        esrl.evaluate(agent, None)
    with pytest.raises(EsrlError, match=r"agent is 'gymnasium/phys2d/CartPole-v1', but must be .*esrl\.eggroll"):
        esrl.train("gymnasium/phys2d/CartPole-v1")
    with pytest.raises(EsrlError, match="must be a text or a function"):
        esrl.eggroll("gymnasium/phys2d/CartPole-v1", shaping=3.0)
