"""Noise on weights, drawn anew in each window of steps: its fitness, its estimate, its laws, and the probes."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jax.sharding import Mesh
from probes import ActionDependsOnObservation, Constant, Delayed, Probe, Target, Walk

import esrl
from esrl import EsrlError
from esrl.algorithms import weight_windows
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.training.checkpoint import Checkpoints

ppo = importlib.import_module("esrl.algorithms.ppo")

TINY = esrl.mlp((7, 11), "tanh")
SMALL = {"noise_space": "weights", "num_envs": 16, "num_steps": 8, "window": 4, "num_minibatches": 4, "num_epochs": 2}
PLAIN = {"critic": "ridge", "normalize_rewards": False, "normalize_advantages": False}  # whose values begin at 0


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Four fake devices compile several times longer, and one test is of them."""
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())


class Bandit(Probe):
    """Each action is worth the observation for each unit of it: linear in the action."""

    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reward(self, seen, action, time):
        return seen * action[0]


class Whole(Walk):
    """A walk that goes on to its last step."""

    def step(self, state, action, key):
        return (*super().step(state, action, key)[:3], jnp.bool_(False))


def windows_of(agent):
    """How the windows of an agent are weighed."""
    return agent.config.estimate.args[0]


def run(agent, generations=1, seed=0):
    state = agent.init(seed_key(seed))
    for _ in range(generations):
        state, metrics = agent.step(state)
    return state, metrics


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


def rewards_of(agent, state, experience):
    return ppo.normalize_rewards(agent.config, state, experience.trajectory)[0]


def noise_of(agent, state, window):
    """The perturbed networks of every pair in a window, stacked: (plus, minus)."""
    windows, network = windows_of(agent), state.params["actor"]["network"]
    factors = windows.noise_of(state, jnp.int32(window), jnp.arange(agent.config.lanes // 2, dtype=jnp.uint32))
    return [windows.noise.perturb(network, factors, windows.leaves, sign * windows.sigma) for sign in (1, -1)]


# ---- fitness --------------------------------------------------------------------------------------------------------


def test_one_window_as_long_as_the_episode_is_whole_episode_fitness():
    """Without a critic and a discount: the return, weighed as `es` weighs it."""
    agent = esrl.eggroll_ac(
        Whole(),
        TINY,
        **{**SMALL, **PLAIN, "num_steps": Whole.max_episode_steps, "window": Whole.max_episode_steps},
        gamma=1.0,
    )
    state = agent.init(seed_key(0))
    experience = agent.rollout(state)
    rewards = rewards_of(agent, state, experience)
    found = weight_windows.fitness(windows_of(agent), agent.config, state, experience, rewards)
    returns = np.asarray(experience.trajectory.rewards).sum(1)
    assert returns.std() > 0 and np.asarray(experience.trajectory.truncated)[:, -1].all()
    np.testing.assert_allclose(found[:, 0], returns, rtol=1e-5)

    estimate = weight_windows.estimate(windows_of(agent), agent.config, state, experience, rewards)
    plus, minus = noise_of(agent, state, 0)
    weights = (returns[::2] - returns[1::2]) / (2 * len(returns) * windows_of(agent).sigma ** 2)
    expected = jax.tree.map(lambda a, b: -np.tensordot(weights, a - b, 1), plus, minus)
    for own, other in zip(jax.tree.leaves(estimate), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5)


def test_fitness_follows_its_recursion_where_episodes_end_within_windows():
    class Ends(Walk):
        max_episode_steps = 5

        def step(self, state, action, key):
            state, observation, reward, _ = super().step(state, action, key)
            return state, observation, reward, observation[0] > 0.4

    agent = esrl.eggroll_ac(Ends(), TINY, **{**SMALL, "num_steps": 24, "window": 6}, gamma=0.9, gae_lambda=0.7)
    state, _ = run(agent, 2)
    experience = agent.rollout(state)
    trajectory = jax.device_get(experience.trajectory)
    given = rewards_of(agent, state, experience)
    rewards = np.asarray(given)
    terminated, truncated = trajectory.terminated, trajectory.truncated
    assert terminated.any() and truncated.any()
    values, lanes, steps = trajectory.record.value, *rewards.shape
    expected = np.zeros((lanes, steps // 6))
    for lane in range(lanes):
        later = 0.0
        for t in reversed(range(steps)):
            follows = values[lane, t + 1] if t + 1 < steps else float(experience.last_value[lane])
            follows = trajectory.bootstrap_value[lane, t] if truncated[lane, t] else follows
            delta = rewards[lane, t] + 0.9 * follows * float(not terminated[lane, t]) - values[lane, t]
            goes_on = float(not (terminated[lane, t] or truncated[lane, t]))
            later = delta + 0.9 * (0.7 if (t + 1) % 6 == 0 else 1.0) * goes_on * later
            if t % 6 == 0 or terminated[lane, t - 1] or truncated[lane, t - 1]:
                expected[lane, t // 6] += later
    found = weight_windows.fitness(windows_of(agent), agent.config, state, experience, given)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_every_lane_plays_by_its_own_weights():
    agent = esrl.eggroll_ac(Target(), TINY, **SMALL)
    state = agent.init(seed_key(0))
    trajectory = agent.rollout(state).trajectory
    policy = agent.policy
    for window in range(2):
        both = noise_of(agent, state, window)
        for lane in range(6):
            own = jax.tree.map(lambda x, lane=lane: x[lane // 2], both[lane % 2])
            for t in range(4 * window, 4 * window + 4):
                (output, _), _ = policy.apply({"network": own}, trajectory.observations[lane, t], policy.carry)
                np.testing.assert_allclose(
                    policy.head.mode(output), trajectory.record.raw_action[lane, t], rtol=1e-4, atol=1e-5
                )


# ---- the estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["weights", "aligned"])
def test_on_a_linear_bandit_the_mean_is_the_policy_gradient(noise):
    """J = E[s f(s)] with a network that is linear in two steps, so that its gradient is known in closed form."""
    params = {"first": jax.random.normal(seed_key(1), (1, 6)), "last": jax.random.normal(seed_key(2), (6, 1))}
    network = esrl.network(lambda params, seen: (seen @ params["first"]) @ params["last"], params=params)
    # Aligned noise is smaller: what goes beyond the clipped ratio counts for nothing.
    own = (
        {"noise_space": "weights", "window": 1, "sigma": 0.05}
        if noise == "weights"
        else {"sigma": 0.005, "residual": 1.0}
    )
    agent = esrl.eggroll_ac(
        Bandit(), network, **own, **PLAIN, num_envs=2048, num_steps=8, gamma=0.0, normalize_observations=False
    )

    @jax.jit
    def estimate(key):
        state = agent.init(key)
        experience = ppo.rollout(agent.config, state) if noise == "aligned" else agent.rollout(state)
        rewards = rewards_of(agent, state, experience)
        if noise == "weights":
            return weight_windows.estimate(windows_of(agent), agent.config, state, experience, rewards)
        samples = ppo.make_samples(agent.config, state, experience, rewards)
        found = agent.config.gradient(agent.config, state.params, state.memory, state, samples, key)[0]
        return found["actor"]["network"]

    draws = [estimate(seed_key(i)) for i in range(30)]
    # s^2 is 1: dJ / dW_1 = W_2^T and dJ / dW_2 = W_1^T.
    for name, exact in (("first", params["last"].T), ("last", params["first"].T)):
        found = -np.stack([draw[name] for draw in draws])
        error = found.std(0) / np.sqrt(len(draws))
        assert (error < 0.5 * np.abs(exact).max()).all()
        assert (np.abs(found.mean(0) - exact) < 4.5 * error + 1e-3).all()


def test_equal_fitness_moves_no_policy():
    agent = esrl.eggroll_ac(Constant(), TINY, **SMALL, critic="ridge", normalize_rewards=False)
    before = agent.init(seed_key(0))
    after, _ = agent.step(before)
    for own, other in zip(*(jax.tree.leaves(x.params["actor"]) for x in (before, after)), strict=True):
        np.testing.assert_array_equal(own, other)
    assert (params_of(before) != params_of(after)).any()  # the critic learns what is always the same


# ---- laws -----------------------------------------------------------------------------------------------------------


def test_devices_do_not_change_what_is_learnt(monkeypatch):
    found = []
    for devices in (1, 2):
        mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        monkeypatch.setattr(sharding, "default_mesh", lambda _, mesh=mesh: mesh)
        found.append(params_of(run(esrl.eggroll_ac(Walk(), TINY, **SMALL), 2, seed=1)[0]))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_not_finite_rewards_and_observations_never_reach_the_parameters():
    class Bad(Walk):
        def step(self, state, action, key):
            state, observation, reward, terminated = super().step(state, action, key)
            bad = observation[0] > 0.3
            return state, jnp.where(bad, jnp.nan, observation), jnp.where(bad, jnp.nan, reward), terminated

    state, metrics = run(esrl.eggroll_ac(Bad(), TINY, **SMALL), 3)
    assert metrics["nonfinite"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.opt_state, state.memory)))


def test_resuming_equals_never_having_stopped(tmp_path):
    agent = esrl.eggroll_ac(Walk(), TINY, **SMALL)
    straight, _ = run(agent, 4)
    state, _ = run(agent, 2)
    Checkpoints(tmp_path).save(state)
    state = Checkpoints(tmp_path).restore(agent.init(seed_key(9)))
    for _ in range(2):
        state, _ = agent.step(state)
    np.testing.assert_array_equal(params_of(straight), params_of(state))


def test_worlds_that_python_steps():
    agent = esrl.eggroll_ac("gymnasium/CartPole-v1", TINY, **SMALL)
    state, metrics = run(agent, 2)
    assert int(state.env_steps) == 2 * 16 * 8 and np.isfinite(metrics["value_loss"])


def test_what_trains_each_parameter_is_described():
    text = esrl.describe(esrl.eggroll_ac(Target(), esrl.mlp((7, 9)), **SMALL))
    rows = {line.split()[0]: line for line in text.splitlines() if "/" in line}
    assert "rank-1 noise on itself, for 4 steps" in rows["actor/network/Dense_1/kernel"]
    assert "dense noise on itself" in rows["actor/network/Dense_1/bias"]
    assert "not at all" in rows["actor/log_std"]


@pytest.mark.parametrize(
    ("env", "best", "options"),
    [
        (ActionDependsOnObservation, 1.0, {"window": 1}),
        (Delayed, 1.0, {"gamma": 0.9}),
        (Target, 0.0, {"anneal_steps": 120 * 32 * 16}),
    ],
    ids=["action depends on observation", "delayed reward", "continuous"],
)
def test_probe_environments_are_solved(env, best, options):
    defaults = {"num_envs": 32, "num_steps": 16, "num_minibatches": 4, "learning_rate": 0.01, "gamma": 0.5}
    agent = esrl.eggroll_ac(env(), TINY, **{**defaults, "noise_space": "weights", "window": 2, **options})
    result = esrl.train(agent, generations=120, num_evals=0)
    score = esrl.evaluate(agent, result.state, 128).return_mean
    assert score > best - 0.15, score


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"noise_space": "weight"}, 'noise_space is \'weight\', but must be "aligned" or "weights"'),
        ({"num_envs": 15, "num_minibatches": 1}, "num_envs is 15, but antithetic pairs of lanes need an even number"),
        ({"window": 3}, "num_steps is 8, but must be a multiple of window 3"),
        ({"pairs": 2}, 'pairs has no meaning with noise_space="weights"'),
        ({"noise_space": "aligned"}, 'window has no meaning with noise_space="aligned"'),
        ({"gradient": "backprop"}, 'gradient is "backprop", which has no noise'),
        ({"window": 0}, "window is 0"),
    ],
)
def test_bad_options_are_said_in_one_sentence(options, sentence):
    with pytest.raises(EsrlError, match=sentence) as caught:
        esrl.eggroll_ac(Walk(), TINY, **{**SMALL, **options})
    assert "\n" not in str(caught.value)
