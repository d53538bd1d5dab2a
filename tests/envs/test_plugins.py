"""Environments of installed packages: found by their entry points, made, listed, and what is wrong with them said."""

import json

import pytest

import esrl
from esrl import EsrlError
from esrl.cli.list_envs import is_one, listing
from esrl.cli.main import main
from esrl.envs import plugins
from esrl.envs.base import HostEnv
from esrl.envs.catalog import names_of, suites
from esrl.envs.checks.environment import check_env
from esrl.envs.registry import names
from esrl.envs.suites._common import with_options

CODE = """
import gymnasium
import jax
import jax.numpy as jnp
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv

print("what a package says when it is imported")


class Line:
    observation_space = spaces.Box(-9.0, 9.0, (1,))
    action_space = spaces.Discrete(2)
    max_episode_steps = 10

    def __init__(self, stride=1.0):
        self.stride = stride

    def reset(self, key):
        place = jax.random.uniform(key, (1,))
        return place, place

    def step(self, state, action, key):
        place = jnp.clip(state + self.stride * (2.0 * action.astype(jnp.float32) - 1.0), -9.0, 9.0)
        return place, place, place[0], jnp.bool_(False)


class Echo(Line):
    def __init__(self, value):
        super().__init__()
        self.value = value


class Functional(FuncEnv):
    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(2)
    max_episode_steps = 10

    def initial(self, rng, params=None):
        return jax.random.uniform(rng, (1,))

    def transition(self, state, action, rng, params=None):
        return state

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return jnp.float32(1.0)

    def terminal(self, state, rng, params=None):
        return jnp.bool_(False)


class Stateful(gymnasium.Env):
    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)
    max_episode_steps = 10

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return int(self.np_random.integers(3)), {}

    def step(self, action):
        return int(self.np_random.integers(3)), 1.0, False, False, {}


line = Line(2.0)
"""
SUITE = """
from my_envs.worlds import Functional, Line, Stateful

ENVS = {"Line": Line, "Functional": Functional, "Stateful": Stateful}


def names():
    return ["mine/Line", *(name for name in ENVS if name != "Line")]


def make(name, **options):
    return ENVS[name](**options) if name == "Line" else ENVS[name]
"""
ENTRY_POINTS = """
[esrl.envs]
mine = my_envs.suite
mine/Extra = my_envs.worlds:Line
walk = my_envs.worlds:Line
echo = my_envs.worlds:Echo
made = my_envs.worlds:line
stateful = my_envs.worlds:Stateful
functional = my_envs.worlds:Functional
broken = my_envs.missing
empty = my_envs.worlds
brax/mine = my_envs.worlds:Line
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A distribution `my-envs 1.2` on the path, as pip leaves one."""
    package, info = tmp_path / "my_envs", tmp_path / "my_envs-1.2.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "worlds.py").write_text(CODE)
    (package / "suite.py").write_text(SUITE)
    (package / "missing.py").write_text("import nothing_of_that_name\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-envs\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["mine/Line", "mine/Line?stride=3.0", "mine/Extra", "mine/Functional", "mine/Stateful", "walk", "walk?stride=2.0"],
)
def test_announced_environments_are_made_and_sound(name, capsys):
    env = esrl.make(name)
    assert env.name == name and env.max_episode_steps == 10
    check_env(env)
    assert esrl.make(env.name).name == name
    assert isinstance(env, HostEnv) == ("Stateful" in name)
    assert getattr(env, "stride", 1.0) == float(name.partition("=")[2] or 1)
    assert capsys.readouterr().out == ""


def test_objects_and_single_classes_are_made():
    assert esrl.make("made").stride == 2 and esrl.make("made").name == "made"
    assert isinstance(esrl.make("stateful"), HostEnv) and esrl.make("functional").name == "functional"


def test_they_train_by_their_names(lenient):
    recipe = esrl.Recipe("mine/Line", options={"population": 8}, policy={"hidden": [4]})
    agent = recipe.build()
    state, _ = agent.step(agent.init(esrl.core.types.seed_key(0)))
    assert int(state.generation) == 1


def test_they_are_listed(capsys):
    assert names_of("mine") == ["mine/Extra", "mine/Functional", "mine/Line", "mine/Stateful"]
    assert names_of("walk") == ["walk"] and "mine" in suites()
    assert "brax/mine" not in plugins.announced(("brax",))
    assert listing("mine/l") == {"mine": {"version": "my-envs 1.2", "names": ["mine/Line"]}}
    assert is_one("mine/Line?stride=2") and is_one("walk") and not is_one("mine")
    assert main(["envs", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mine"]["version"] == "my-envs 1.2"
    assert main(["envs", "broken"]) == 0
    assert "my-envs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine/Lin", "mine has no environment 'Lin'; did you mean Line"),
        ("mine", "mine is a suite; say which environment, as mine/Line or mine/Functional"),
        ("walk/Far", "walk has no environment 'Far'"),
        ("mine/Line?colour=red", "mine/Line cannot be made: TypeError"),
        ("made?stride=3", "options {'stride': 3} were given for an environment that is already made"),
        ("broken/Line", "the installed package my-envs announces as my_envs.missing, cannot be imported: Module"),
        ("broken", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("empty", r"is the module my_envs.worlds without names\(\) and make\(name, \*\*options\)"),
        ("brax/mine", "brax has no environment 'mine'"),
    ],
)
def test_errors_are_one_sentence(name, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(name)
    assert "\n" not in str(caught.value)


def test_a_package_that_fails_keeps_no_other_from_being_listed():
    listed = names()
    assert "my-envs" in listed["broken"] and listed["walk"] == ["walk"]
    assert "gymnasium/CartPole-v1" in listed["gymnasium"]


def test_near_names_offer_them():
    with pytest.raises(EsrlError, match="unknown environment 'wlak'; did you mean walk"):
        esrl.make("wlak")


@pytest.mark.parametrize("value", [1e20, "a b&c", True, -3, 0.5])
def test_names_with_options_are_read_back(value):
    given = esrl.make(with_options("echo", {"value": value})).value
    assert given == value and type(given) is type(value)


def test_options_for_a_host_environment_that_is_made_are_refused():
    made = esrl.make("gymnasium/CartPole-v1")
    with pytest.raises(EsrlError, match=r"options \{'horizon': 3\} were given for an environment that is already made"):
        esrl.make(made, horizon=3)
    with pytest.raises(EsrlError, match="does not take these options"):
        esrl.make("brax/hopper?name=x")
