"""Numbers on their way between environment and policy: what `step` gets lies in the space, what is seen is near the
truth, and what is not finite goes no further."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key

TINY = esrl.mlp((), "tanh")
NESTED = spaces.Dict(
    turn=spaces.Discrete(3, start=-1), push=spaces.Tuple([spaces.Box(2, 9, (2,), np.float16), spaces.MultiBinary(2)])
)


class World(gymnasium.Env):
    observation_space = spaces.Box(0, 2**40, (1,), np.int64)
    action_space = NESTED
    max_episode_steps = 3
    lost = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([2**33 + 5]), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return np.array([2**33 + 5]), 1.0, False, False, {}


AGENTS = {
    "es": lambda env: esrl.eggroll(env, TINY, population=4, deterministic=False),
    "ppo": lambda env: esrl.ppo(env, TINY, num_envs=2, num_steps=4, num_minibatches=1, num_epochs=1),
    "random": lambda env: esrl.random(env, population=4),
}


@pytest.mark.parametrize("name", AGENTS)
def test_step_gets_what_the_space_contains_and_integers_do_not_wrap_round(name):
    agent = AGENTS[name](World)
    state, _ = agent.step(agent.init(seed_key(0)))
    trained = esrl.Trained(agent, state)
    assert NESTED.contains(trained.predict(np.array([2**33 + 5])))
    assert agent.policy.observation.dtype == np.float32
    if name == "ppo":
        assert float(np.asarray(state.lanes.observation)[0, 0]) == np.float32(2**33 + 5)


class Lost(World):
    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def step(self, action):
        return np.full(1, [np.nan, np.inf][int(action)], np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("name", ["es", "ppo"])
def test_a_lost_reading_is_counted_and_goes_no_further(name):
    agent = AGENTS[name](Lost)
    state = agent.init(seed_key(0))
    for _ in range(2):
        state, metrics = agent.step(state)
        assert metrics["nonfinite"] > 0
    kept = (state.params, state.opt_state, state.moments)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


def test_a_ready_made_network_starts_from_what_is_given():
    env = "gymnasium/phys2d/CartPole-v1"
    params = esrl.eggroll(env, TINY, population=4).init(seed_key(3)).params["network"]
    for make in (lambda net: esrl.eggroll(env, net, population=4), lambda net: esrl.ppo(env, net)):
        started = make(esrl.network(TINY, params=params)).init(seed_key(0)).params
        started = started.get("actor", started)["network"]
        jax.tree.map(np.testing.assert_array_equal, started, params)
    with pytest.raises(EsrlError, match="has a carry of its own"):
        esrl.network(TINY, carry=np.zeros(2))
