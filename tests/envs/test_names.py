"""The law of names: options written behind a name are read back as they were, value and type."""

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

import esrl
from esrl import EsrlError
from esrl.envs.suites._common import options_in, with_options

number = st.integers() | st.floats(allow_nan=False)
lookalikes = st.sampled_from(
    ["", "1", "-1e3", "inf", "nan", "1_000", " 5 ", "TRUE", "None", "(1, 2)", "['a']", "'x'", "{", "[1"]
)
plain = st.none() | st.booleans() | number | st.text() | lookalikes
value = st.recursive(
    plain,
    lambda part: st.lists(part) | st.lists(part).map(tuple) | st.dictionaries(plain, part),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1), value, max_size=4))
@example({"code": "200", "goal": (3, 4), "desc": ["SF", "FG"], "map_name": None, "far": [float("inf"), (-0.0,)]})
def test_options_survive_their_name(options):
    name = with_options("suite/Name-v0", options)
    again = options_in(name.partition("?")[2])
    assert again == options and repr(again) == repr(options)  # repr tells True from 1, and a list from a tuple


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("max_episode_steps=200&code=abc", {"max_episode_steps": 200, "code": "abc"}),
        ("a=1.5&b=true&c=False&d=&e=a+b%26c", {"a": 1.5, "b": True, "c": False, "d": "", "e": "a b&c"}),
        ("backend=mjx&impl=jax&path=/a/b.xml", {"backend": "mjx", "impl": "jax", "path": "/a/b.xml"}),
        ("size=(3&tag=[x]", {"size": "(3", "tag": "[x]"}),
    ],
)
def test_names_written_by_hand_keep_their_meaning(query, options):
    assert repr(options_in(query)) == repr(options)


class Goal(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, goal=(0, 0), code="x", render_mode=None):
        if isinstance(goal, str) and goal == "fail":
            raise TypeError("the goal is bad")
        self.goal, self.code = goal, code

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.fixture
def registered():
    gymnasium.register("Goal-v0", Goal, max_episode_steps=5)
    yield "gymnasium/Goal-v0"
    gymnasium.registry.pop("Goal-v0")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ((3, 4), (3, 4)),
        ({"x": 1}, {"x": 1}),
        (None, None),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (jnp.float32(2), 2.0),
        (np.str_("7"), "7"),
    ],
)
def test_an_environment_is_made_again_by_its_name(registered, given, read):
    again = esrl.make(esrl.make(registered, goal=given, code="1").name).make_one().unwrapped
    assert again.goal == read and type(again.goal) is type(read) and again.code == "1"


@pytest.mark.parametrize("unfit", [object(), len, lambda x: x, {1, 2}, [float("nan")], [object()], np.zeros(2000)])
def test_what_no_name_can_hold_is_said(registered, unfit):
    with pytest.raises(EsrlError, match=r"goal is .*which a name cannot hold; give numbers, text"):
        esrl.make(registered, goal=unfit)


def test_only_a_signature_says_that_options_are_not_taken(registered):
    with pytest.raises(EsrlError, match="cannot be made: TypeError: the goal is bad"):
        esrl.make(registered, goal="fail")
    with pytest.raises(EsrlError, match="does not take these options"):
        esrl.make("gymnasium/phys2d/CartPole-v1?colour=red")
