"""Dict and Tuple actions under a nested mask, on every way that a run takes. This file has the environments, too."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

import esrl
from esrl.cli.main import main
from esrl.core import sharding
from esrl.core.types import seed_key

ACTIONS = spaces.Dict(
    turn=spaces.Discrete(3, start=-1), push=spaces.Tuple([spaces.Box(2, 9, (2,)), spaces.MultiBinary(2)])
)
OBSERVATIONS = spaces.Dict(here=spaces.Box(-1, 1, ()), action_mask=spaces.Dict(turn=spaces.MultiBinary(3)))
ALLOWED = np.array([1, 0, 1], np.int8)  # no turn of 0


class Arm:
    observation_space, action_space, max_episode_steps = OBSERVATIONS, ACTIONS, 3

    def reset(self, key):
        here = jax.random.uniform(key, ())
        return here, self.seen(here)

    def step(self, state, action, key):
        force, bits = action["push"]
        reward = jnp.sum(force) + jnp.sum(bits).astype(jnp.float32)
        return state, self.seen(state), jnp.where(action["turn"] == 0, -1000.0, reward), jnp.bool_(False)

    def seen(self, here):
        return {"here": here, "action_mask": {"turn": jnp.asarray(ALLOWED)}}

    def render(self, state):
        return jnp.zeros((4, 4, 3), jnp.uint8)


class HostArm(gymnasium.Env):
    observation_space, action_space, max_episode_steps = OBSERVATIONS, ACTIONS, 3
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def seen(self):
        return {"here": np.zeros((), np.float32), "action_mask": {"turn": ALLOWED}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(action) and action["turn"] != 0, action
        force, bits = action["push"]
        return self.seen(), float(force.sum()) + float(bits.sum()), False, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


class ManyArms(gymnasium.vector.VectorEnv):
    single_observation_space, single_action_space = OBSERVATIONS, ACTIONS
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs, max_episode_steps=3):
        self.num_envs, self.arms = num_envs, [HostArm() for _ in range(num_envs)]
        self.observation_space, self.action_space = (batch_space(s, num_envs) for s in (OBSERVATIONS, ACTIONS))

    def seen(self):
        return jax.tree.map(lambda *rows: np.stack(rows), *(arm.seen() for arm in self.arms))

    def reset(self, *, seed=None, options=None):
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        rows = [jax.tree.map(lambda x, i=i: x[i], action) for i in range(self.num_envs)]
        rewards = [arm.step(row)[1] for arm, row in zip(self.arms, rows, strict=True)]
        never = np.zeros(self.num_envs, bool)
        return self.seen(), np.array(rewards), never, never, {}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """One device, which compiles sooner, and the arms where Gymnasium finds them."""
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())
    spec = gymnasium.envs.registration.EnvSpec("Arm-v0", HostArm, max_episode_steps=3, vector_entry_point=ManyArms)
    monkeypatch.setitem(gymnasium.registry, "Arm-v0", spec)


PPO = {"num_envs": 2, "num_steps": 4, "num_minibatches": 1, "num_epochs": 1}
SMALL = {"eggroll": {"population": 4}, "ppo": PPO, "eggroll_ac": PPO}
ENVS = {"device": f"{__file__}:Arm", "host": "gymnasium/Arm-v0"}


@pytest.mark.parametrize(("name", "kind"), [("eggroll", "device"), ("ppo", "host"), ("eggroll_ac", "host")])
def test_a_run_is_planned_trained_gone_on_with_loaded_and_drawn(name, kind, tmp_path, capsys):
    agent = getattr(esrl, name)(ENVS[kind], esrl.mlp((), "tanh"), **SMALL[name])
    given = {"num_evals": 1, "eval_episodes": 2, "seed": 3}
    straight = esrl.train(agent, generations=2, **given)
    esrl.train(agent, generations=1, out=tmp_path / "run", **given)
    recipe = tmp_path / "run" / "recipe.toml"
    assert main(["train", str(recipe), "--dry-run"]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--generations", "2"]) == 0
    trained = esrl.load(tmp_path / "run")
    if kind == "device":
        jax.tree.map(np.testing.assert_array_equal, trained.state.params, straight.state.params)
    assert "Dict" in esrl.describe(agent)
    observation = {"here": np.float32(0.5), "action_mask": {"turn": ALLOWED}}
    action = trained.predict(observation)
    assert ACTIONS.contains(action) and action["turn"] != 0
    # What is forbidden costs 1000, so whoever did it once would score below.
    assert straight.metrics["eval_return_mean"] > 0
    assert main(["render", str(tmp_path / "run"), "--form", "gif"]) == 0
    assert list((tmp_path / "run").glob("*.gif"))


def test_every_pool_steps_alike():
    found = []
    for way in ("sync", "vector", "workers&workers=2"):
        agent = esrl.eggroll(f"gymnasium/Arm-v0?vectorization={way}", esrl.mlp((), "tanh"), population=4)
        found.append(agent.rollout(agent.init(seed_key(0))).fitness)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_an_exported_arm_keeps_to_its_spaces():
    env = esrl.as_gymnasium(Arm())
    assert OBSERVATIONS.contains(env.reset(seed=0)[0])
    assert OBSERVATIONS.contains(env.step(ACTIONS.sample())[0])
    lanes = esrl.as_vector_env(Arm(), 2)
    assert lanes.observation_space.contains(lanes.reset(seed=0)[0])
    observation, rewards, *_ = lanes.step(lanes.action_space.sample())
    assert lanes.observation_space.contains(observation) and rewards.shape == (2,)
