"""Forms in which people bring an environment: each is taken as what it means, or refused in one sentence."""

import functools
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TimeLimit

import esrl
from esrl import EsrlError
from esrl.cli.main import main
from esrl.core.types import seed_key
from esrl.envs.base import recipe_name_of
from esrl.envs.registry import check_again
from esrl.training import stored_spaces


class Own(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, gain=1.0, render_mode=None):
        self.gain, self.render_mode = gain, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), self.gain, False, False, {}


class OnDevice:
    observation_space = spaces.Box(-5, 5, (4,))
    action_space = spaces.Discrete(3)
    max_episode_steps = 6

    def __init__(self, gain=1.0):
        self.gain = gain

    def reset(self, key):
        state = jax.random.uniform(key, (4,))
        return state, state

    def step(self, state, action, key):
        return state, state, self.gain * jnp.sum(state), jnp.bool_(False)


def stacked(n=4):
    return FlattenObservation(FrameStackObservation(gymnasium.make("CartPole-v1"), n))


class Maker:
    def __call__(self):
        return Own()


def unrecorded():
    return NotRecorded(gymnasium.make("CartPole-v1"))


class NotRecorded(gymnasium.Wrapper):
    pass


class Pretends(Own):
    """Says a spec that makes something else."""

    def __init__(self):
        super().__init__()
        self.spec = gymnasium.spec("CartPole-v1")


@pytest.mark.parametrize(
    ("env", "options", "steps", "entries"),
    [
        (stacked, {}, 500, 16),
        (stacked, {"n": 2}, 500, 8),
        (functools.partial(stacked, 3), {"max_episode_steps": 9}, 9, 12),
        (lambda: gymnasium.make("CartPole-v1"), {}, 500, 4),
        (lambda: TimeLimit(TimeLimit(Own(), 30), 20), {}, 20, 2),
        (lambda **options: gymnasium.make("CartPole-v1", **options), {"max_episode_steps": 9}, 9, 4),
        (Own, {}, 1000, 2),
        (Maker(), {}, 1000, 2),
        (lambda: OnDevice(), {}, 6, 4),
        (gymnasium.spec("CartPole-v1"), {}, 500, 4),
        (gymnasium.spec("CartPole-v1"), {"max_episode_steps": 9}, 9, 4),
        (gymnasium.make("CartPole-v1", max_episode_steps=9, sutton_barto_reward=True), {}, 9, 4),
        (gymnasium.make("CartPole-v1", render_mode="rgb_array"), {}, 500, 4),
        (stacked(2), {}, 500, 8),
        (stacked(2), {"max_episode_steps": 9}, 9, 8),
        (stacked(2).spec, {}, 500, 8),
    ],
)
def test_what_makes_an_environment_is_taken(env, options, steps, entries):
    made = esrl.make(env, **options)
    assert made.max_episode_steps == steps and made.observation_space.shape == (entries,)


def test_each_lane_has_its_own():
    made = []

    def make_env():
        made.append(Own())
        return made[-1]

    env = esrl.make(make_env)
    made.clear()
    env.make_lanes((3,), True)
    assert len(set(map(id, made))) == 3
    one = Own()
    with pytest.raises(EsrlError, match="returned one environment twice; let every call make a new one"):
        esrl.make(lambda: one)


def test_options_of_a_spec_stay():
    env = esrl.make(gymnasium.make("CartPole-v1", sutton_barto_reward=True, render_mode="rgb_array"))
    assert env.name == "gymnasium/CartPole-v1?sutton_barto_reward=True"
    frame = esrl.make(stacked).make_one(render_mode="rgb_array")
    frame.reset(seed=0)
    assert frame.render().shape[-1] == 3


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (None, "the environment is None; give a name, a class, or a function that makes it"),
        (Own(), "Own is one Gymnasium environment; give its class or its id, .* or a function that makes it"),
        (unrecorded(), "NotRecorded is one Gymnasium environment"),
        (gymnasium.make_vec("CartPole-v1", 2), "is a batch of environments, and esrl makes its lanes itself"),
        (gymnasium.vector.VectorEnv, "is a batch of environments"),
        (lambda: None, "returned None; let it return the environment"),
        (lambda: 1 / 0, "cannot be constructed with {}: ZeroDivisionError"),
        (lambda size: Own(), "does not take these options {}: missing a required argument: 'size'"),
    ],
)
def test_what_cannot_be_taken_is_said(env, words):
    with pytest.raises(EsrlError, match=words):
        esrl.make(env)


def test_an_object_that_its_spec_does_not_make_is_refused():
    env = gymnasium.make("CartPole-v1")
    cut = gymnasium.wrappers.TransformObservation(env, lambda x: x[:2], spaces.Box(-np.inf, np.inf, (2,)))
    assert esrl.make(cut).observation_space.shape == (2,)
    with pytest.raises(EsrlError, match="is one Gymnasium environment"):
        esrl.make(Pretends())


# ---- the suites' own environments -----------------------------------------------------------------------------------


def _played(env, steps=3):
    """Observations, rewards and ends of an episode's first steps, by one program."""
    action = jnp.zeros(env.action_space.shape, jax.dtypes.canonicalize_dtype(env.action_space.dtype))

    def step(state, key):
        state, *seen = env.step(state, action, key)
        return state, seen

    def play(key):
        state, observation = env.reset(key)
        return observation, jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    return jax.tree.leaves(jax.jit(play)(seed_key(3)))


def _gymnax():
    return pytest.importorskip("gymnax").make("CartPole-v1")[0]


def _gymnax_pair():
    gymnax = pytest.importorskip("gymnax")
    env, params = gymnax.make("CartPole-v1")
    return env, params.replace(gravity=5.0)


def _jumanji():
    return pytest.importorskip("jumanji").make("Snake-v1")


def _navix():
    return pytest.importorskip("navix").make("Navix-Empty-5x5-v0")


def _brax():
    brax = pytest.importorskip("brax.envs")
    return brax.get_environment("inverted_pendulum", backend="generalized")


def _craftax():
    return pytest.importorskip("craftax.craftax_env").make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", True)


def _playground():
    registry = pytest.importorskip("mujoco_playground").registry
    return registry.load("CartpoleBalance", config_overrides={"impl": "jax"})


OWN = [
    (_gymnax, "gymnax/CartPole-v1"),
    (_gymnax_pair, "gymnax/CartPole-v1?gravity=5.0"),
    (_jumanji, "jumanji/Snake-v1"),
    (_navix, "navix/Navix-Empty-5x5-v0"),
    pytest.param(_brax, "brax/inverted_pendulum?backend=generalized", marks=pytest.mark.slow),
    pytest.param(_craftax, "craftax/Craftax-Classic-Symbolic-v1", marks=pytest.mark.slow),
    pytest.param(_playground, "playground/CartpoleBalance", marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make_own", "name"), OWN)
def test_a_suites_own_environment_is_the_one_of_its_name(lenient, make_own, name):
    own = make_own()
    limit = getattr(own, "time_limit", None)
    given, by_name = esrl.make(own), esrl.make(name)
    assert type(given) is type(by_name) and given.max_episode_steps == by_name.max_episode_steps
    assert given.observation_space == by_name.observation_space and given.action_space == by_name.action_space
    assert getattr(own, "time_limit", None) == limit  # the object stays as it was
    if make_own in (_gymnax, _gymnax_pair, _navix):  # cheap to compile; the others share the adapter's code
        for one, other in zip(_played(given), _played(by_name), strict=True):
            np.testing.assert_array_equal(one, other)
    if make_own is not _jumanji:
        assert esrl.make(own, max_episode_steps=7).max_episode_steps == 7
    with pytest.raises(EsrlError, match="max_episode_steps is 0, but must be a whole number of at least 1"):
        esrl.make(own, max_episode_steps=0)


@pytest.mark.filterwarnings("ignore")
def test_a_suites_wrappers_for_what_esrl_does_are_refused(lenient):
    wrappers = pytest.importorskip("jumanji.wrappers")
    with pytest.raises(EsrlError, match="AutoResetWrapper does what esrl does itself"):
        esrl.make(wrappers.AutoResetWrapper(_jumanji()))
    with pytest.raises(EsrlError, match="it was made with a time limit of 4000; give time_limit to its constructor"):
        esrl.make(_jumanji(), max_episode_steps=7)


# ---- recipes --------------------------------------------------------------------------------------------------------


def _recipe_name(env, **options):
    return recipe_name_of(esrl.make(env, **options))


def factory(n=2):
    return stacked(n)


def test_a_class_or_function_is_found_again_by_its_module():
    for env, options in ((Own, {"gain": 2.0}), (OnDevice, {}), (OnDevice, {"gain": 3}), (factory, {"n": 3})):
        text = _recipe_name(env, **options)
        assert text.partition("?")[0] == f"{__name__}:{env.__name__}"
        assert esrl.make(env, **options).name == env.__name__  # what is shown stays short
        again = esrl.make(text)
        assert again.observation_space == esrl.make(env, **options).observation_space
        assert recipe_name_of(again) == text
    assert esrl.make(_recipe_name(OnDevice, gain=3)).gain == 3
    assert _recipe_name("gymnasium/CartPole-v1") == "gymnasium/CartPole-v1"


def test_what_has_no_text_is_asked_for_again(tmp_path, capsys, monkeypatch):
    class Local(OnDevice):
        pass

    monkeypatch.setattr("esrl.envs.catalog.names_of", lambda suite: pytest.fail(f"imported {suite}"))
    for number, env in enumerate((Local, OnDevice(), lambda: OnDevice())):
        out = tmp_path / str(number)
        agent = esrl.eggroll(env, esrl.mlp(()), population=4)
        esrl.iterate(agent, generations=1, num_evals=0, out=out)
        assert stored_spaces.read(out / stored_spaces.NAME).observation_space == OnDevice.observation_space
        (out / stored_spaces.NAME).unlink()  # as in a folder of an older esrl; with it the policy could act
        with pytest.raises(EsrlError, match=r"was a Python object; give it again: esrl.load\(folder, env=...\)"):
            esrl.load(out)
        assert main(["train", "--resume", str(out)]) == 2 and "was a Python object" in capsys.readouterr().err


def test_a_class_of_the_script_is_found_by_the_script_alone(monkeypatch):
    script = sys.modules["__main__"]
    cls = type("Scripted", (OnDevice,), {"__module__": "__main__", "__qualname__": "Scripted"})
    monkeypatch.setattr(script, "Scripted", cls, raising=False)
    assert _recipe_name(cls) == "__main__:Scripted" and isinstance(esrl.make("__main__:Scripted"), cls)
    monkeypatch.delattr(script, "Scripted")
    with pytest.raises(EsrlError, match="the recipe's environment Scripted was a Python object"):
        check_again("__main__:Scripted")


def test_near_names_import_no_suite(monkeypatch):
    monkeypatch.setattr("esrl.envs.catalog.adapter_of", lambda suite: pytest.fail(f"imported {suite}"))
    for suite in ("brax", "gymnax", "navix", "jumanji", "craftax", "playground", "envpool", "atari"):
        monkeypatch.delitem(sys.modules, f"esrl.envs.suites.{suite}", raising=False)
    for name, words in {
        "CartPol-v1": "did you mean gymnasium/CartPole-v1",
        "bracs/hopper": "did you mean brax/hopper",
        "J": "see the suites with",
    }.items():
        with pytest.raises(EsrlError, match=f"unknown environment '{name}'; {words}"):
            esrl.make(name)
