"""What a suite sets: robots by the numbers of their actions, as their environments have them."""

import pytest

import esrl
from esrl.training.suite_defaults import ROBOTS, suite_defaults

BRAX = [name for name in ROBOTS if name.startswith("brax/")]
GYMNASIUM = [name for name in ROBOTS if name.startswith("gymnasium/")]


def test_brax_has_these_robots_and_so_many_numbers_of_an_action():
    envs = pytest.importorskip("brax.envs")
    assert {f"brax/{name}" for name in envs._envs} - set(BRAX) <= {"brax/fast"}  # fast is of Brax's own tests
    for name in BRAX:
        assert ROBOTS[name].numbers == envs.get_environment(name.removeprefix("brax/")).action_size, name


@pytest.mark.parametrize("pattern", GYMNASIUM)
def test_gymnasium_has_these_robots_and_so_many_numbers_of_an_action(pattern):
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    pytest.importorskip("Box2D")
    name = pattern.removeprefix("gymnasium/").removesuffix("-v*")
    newest = max((spec for spec in gymnasium.registry.values() if spec.name == name), key=lambda spec: spec.version)
    space = gymnasium.make(newest.id).action_space
    assert ROBOTS[pattern].numbers == (space.n if hasattr(space, "n") else space.shape[0])


def test_a_robot_has_more_members_the_more_numbers_its_action_has():
    sizes = [suite_defaults(f"brax/{name}", "eggroll")[1] for name in ("inverted_double_pendulum", "hopper", "ant")]
    assert [options["population"] for options in sizes] == [4, 12, 64]
    rates = [options["learning_rate"] for options in sizes]
    assert rates == sorted(rates) and rates[0] == 0.05
    assert suite_defaults("brax/ant", "ppo") == ({}, {}) and suite_defaults("brax/ants", "eggroll") == ({}, {})
    assert suite_defaults("gymnasium/Hopper-v5", "open_es") == suite_defaults("brax/hopper?backend=spring", "open_es")


def test_a_suites_horizon_is_no_cap_where_episodes_are_shorter():
    pytest.importorskip("brax")
    policy, options = suite_defaults("brax/halfcheetah", "eggroll")
    assert options["horizon"] == 100
    recipe = esrl.Recipe("brax/halfcheetah?max_episode_steps=50", "eggroll", policy=policy, options=options)
    assert recipe.build().options["horizon"] == 100
