"""What users bring: Gymnasium environments as they are written, and JAX ones as one writes them first."""

import gymnasium
import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.envs.suites.gymnasium_lanes import outcome_of
from esrl.policies.spaces import seen, visible

TINY = esrl.mlp((), "tanh")


class Base(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


def registered(name, cls=Base, **given):
    gymnasium.register(name, cls, **given)
    return f"gymnasium/{name}"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)


# ---- time limits


class Own(Base):
    def __init__(self, size=2, render_mode=None):
        self.max_episode_steps = 4 * size


class Old(Base):
    def __init__(self):
        self.horizon = 7


class Limited(gymnasium.Wrapper):
    def __init__(self):
        super().__init__(gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1"), 9))


def test_the_time_limit_is_the_users_or_what_the_object_says_or_a_thousand():
    assert esrl.make(Own).max_episode_steps == 8
    assert esrl.make(Own, size=3).max_episode_steps == 12
    assert esrl.make(Own, max_episode_steps=5).max_episode_steps == 5
    assert esrl.make(Old).max_episode_steps == 7
    assert esrl.make(Base).max_episode_steps == 1000
    assert esrl.make(Limited).max_episode_steps == 9
    assert esrl.make(registered("A-v0", max_episode_steps=6)).max_episode_steps == 6
    assert esrl.make(registered("B-v0")).max_episode_steps == 1000
    assert esrl.make(registered("C-v0", Own)).max_episode_steps == 8
    assert esrl.make("gymnasium/A-v0?max_episode_steps=4").max_episode_steps == 4


@pytest.mark.parametrize("limit", [0, -1, "10", 1.5, True])
def test_a_limit_that_makes_no_sense_is_said(limit):
    class Odd(Base):
        def __init__(self):
            self.max_episode_steps = limit

    with pytest.raises(EsrlError, match="max_episode_steps is"):
        esrl.make(Odd)


class Many(gymnasium.vector.VectorEnv):
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = Base.observation_space, Base.action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions):
        n = self.num_envs
        return np.zeros((n, 2), np.float32), np.ones(n), np.zeros(n, bool), np.zeros(n, bool), {}


@pytest.mark.parametrize("how", ["id", "class", "vector", "workers"])
def test_no_episode_is_longer_than_its_limit_wherever_it_is_played(how, tmp_path):
    vector = {"vector_entry_point": Many} if how == "vector" else {}
    name = registered("Endless-v0", **vector) + "?max_episode_steps=5"
    name += "&vectorization=workers&workers=1" if how == "workers" else ""
    env = esrl.make(Base, max_episode_steps=5) if how == "class" else esrl.make(name)
    agent = esrl.eggroll(env, TINY, population=4)
    assert esrl.train(agent, generations=1, num_evals=0).metrics["length_mean"] == 5
    scored = esrl.evaluate(agent, agent.init(jax.random.key(0)), episodes=2)
    assert scored.length_mean == 5 and scored.return_mean == 5
    if how in ("id", "class"):
        ppo = esrl.ppo(env, TINY, num_envs=2, num_steps=11, num_minibatches=1, num_epochs=1)
        assert esrl.train(ppo, generations=1, num_evals=0).metrics["length_mean"] == 5


def test_an_environment_that_cannot_be_made_again_is_one_sentence():
    class Third(Base):
        made = 0

        def __init__(self):
            Third.made += 1
            if Third.made > 4:
                raise RuntimeError("no license\nfor more")

    with pytest.raises(
        EsrlError, match=r"Third: \d of \d environments could be made, the next could not \(RuntimeError: no license"
    ) as caught:
        esrl.train(esrl.eggroll(Third, TINY, population=4), generations=1, num_evals=0)
    assert "\n" not in str(caught.value)


# ---- what reset and step return


def test_the_meaning_of_step_is_taken_where_it_is_clear():
    obs = np.zeros(2)
    assert outcome_of("E", (obs, np.array([1.5]), np.bool_(True), 0, None), "step")[1:] == (1.5, True, False)
    assert outcome_of("E", (obs, 1, np.array(False), np.array([True]), {}), "step")[1:] == (1.0, False, True)


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ((0, 1.0, True, {}), "4 values.*truncated is new since Gymnasium 0.26"),
        ((0, np.zeros(3), False, False, {}), r"an array \[3\] as reward, but it must be one float"),
        ((0, None, False, False, {}), "None as reward, but it must be one float"),
        ((0, 1.0, "no", False, {}), "'no' as terminated, but it must be one bool"),
        ((0, 1.0, np.zeros(2, bool), False, {}), r"an array \[2\] as terminated, but it must be one bool"),
        (0.5, "a float, but must return"),
    ],
)
def test_a_step_of_another_kind_is_said(out, sentence):
    with pytest.raises(EsrlError, match=sentence):
        outcome_of("E", out, "step 1")

    class Odd(Base):
        def step(self, action):
            return out

    with pytest.raises(EsrlError, match="Odd: step 1 returns"):
        esrl.make(Odd)


def test_a_reset_of_the_old_interface_is_said():
    class Only(Base):
        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32)

    with pytest.raises(EsrlError, match=r"Only: reset returns a ndarray, but must return \(observation, info\)"):
        esrl.make(Only)


# ---- entries that no network reads


class Mission(Base):
    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (3, 3, 3), np.uint8), more=spaces.Dict(mission=spaces.Text(20), x=spaces.Discrete(3))
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"image": np.zeros((3, 3, 3), np.uint8), "more": {"mission": "go", "x": 1}}, {}

    def step(self, action):
        return self.reset()[0], 1.0, False, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


def test_text_inside_a_dict_is_left_out_with_a_notice(capsys, tmp_path):
    env = esrl.make(registered("Mission-v0", Mission, max_episode_steps=3))
    assert "more/mission is a Text" in capsys.readouterr().err
    assert "mission" not in str(env.observation_space)
    agent = esrl.eggroll(env, TINY, population=4)
    result = esrl.train(agent, generations=1, num_evals=1, eval_episodes=2, out=tmp_path / "run")
    raw = Mission().reset()[0]
    trained = esrl.load(tmp_path / "run")
    assert trained.predict(raw) in (0, 1) and trained.predict(seen(env.observation_space, raw)) in (0, 1)
    assert esrl.render(agent, result.state, tmp_path / "episode", form="gif")[1].total == 3


def test_what_is_nothing_but_text_is_said_with_its_place():
    class Words(Base):
        observation_space = spaces.Tuple([spaces.Discrete(2), spaces.Text(5)])

    with pytest.raises(EsrlError, match="observation entry 1: space Text"):
        esrl.make(Words)
    space, hidden = visible(spaces.Dict(a=spaces.Dict(b=spaces.Text(3)), c=spaces.Discrete(2)))
    assert list(space.spaces) == ["c"] and hidden == {"a/b": "Text"}
    space, hidden = visible(spaces.Dict(a=spaces.Text(3)))
    assert isinstance(space, spaces.Dict) and not hidden  # nothing would be left


# ---- pictures


class Drawn(Base):
    frame = None
    max_episode_steps = 2

    def render(self):
        return self.frame


@pytest.mark.parametrize(
    ("frame", "brightest"),
    [
        (np.full((4, 4, 3), 0.8, np.float32), 204),
        (np.full((4, 4, 3), 204.0), 204),
        (np.full((4, 4, 4), 204, np.uint8), 204),
        (np.full((4, 4), 0.8), 204),
        (np.ones((5, 5, 1), bool), 255),
        ([np.full((4, 4, 3), 9, np.uint8), np.full((4, 4, 3), 204, np.int64)], 204),
        (jnp.full((4, 4, 3), 0.8), 204),
    ],
)
def test_pictures_of_every_kind_are_drawn(tmp_path, monkeypatch, frame, brightest):
    monkeypatch.setattr(Drawn, "frame", frame)
    path = drawn(tmp_path)
    assert np.max(imageio.mimread(path)[0]) == pytest.approx(brightest, abs=2)


def drawn(tmp_path):
    agent = esrl.eggroll(Drawn, TINY, population=4)
    return esrl.render(agent, agent.init(jax.random.key(0)), tmp_path / "episode", form="gif")[0]


@pytest.mark.parametrize("frame", [None, "text", np.zeros(3), np.zeros((3, 5, 5)), np.zeros((0, 4, 3))])
def test_what_is_no_picture_is_said(tmp_path, monkeypatch, frame):
    monkeypatch.setattr(Drawn, "frame", frame)
    with pytest.raises(EsrlError, match=r"Drawn: render returned .* but a picture is needed"):
        drawn(tmp_path)


# ---- states of JAX environments


class Count:
    """Python's and NumPy's numbers, None, and keys of both kinds in the state, as one writes them first."""

    observation_space = spaces.Box(-5, 5, (2,))
    action_space = spaces.Discrete(2)
    max_episode_steps = 5

    def reset(self, key):
        x = jax.random.uniform(key, (2,))
        return {"x": x, "t": 0, "gain": 1.0, "wall": np.ones(2, np.float32), "none": None, "key": key}, x

    def step(self, state, action, key):
        after = {**state, "t": state["t"] + 1, "gain": state["gain"] * 0.9}
        return after, state["x"], 1.0, state["t"] > 3


def test_python_numbers_in_a_state_pass_the_check():
    env = esrl.make(Count)
    esrl.check_env(env)
    agent = esrl.eggroll(env, TINY, population=4)
    assert esrl.train(agent, generations=1, num_evals=0).metrics["length_mean"] == 5
