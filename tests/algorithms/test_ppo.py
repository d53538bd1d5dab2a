"""PPO: its parts against plain NumPy loops, its laws, and the probe environments."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from jax.sharding import Mesh
from probes import (
    ActionDependsOnObservation,
    ActionMatters,
    ChoiceAndTarget,
    Constant,
    Delayed,
    LaterReward,
    Memory,
    Probe,
    SignIsValue,
    Target,
    Terminating,
    Walk,
)

import esrl
from esrl import EsrlError
from esrl.algorithms.advantages import discounted_sums, gae, next_values
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.training.checkpoint import Checkpoints

ppo = importlib.import_module("esrl.algorithms.ppo")

TINY = esrl.mlp((16,), "tanh")
PLAIN = {"normalize_observations": False, "normalize_rewards": False}
SMALL = {"num_envs": 16, "num_steps": 8, "num_minibatches": 4, "num_epochs": 2}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Four fake devices compile several times longer, and one test is of them."""
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())


def run(agent, generations=1, seed=0):
    state = agent.init(seed_key(seed))
    for _ in range(generations):
        state, metrics = agent.step(state)
    return state, metrics


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


# ---- oracles --------------------------------------------------------------------------------------------------------


def random_trajectory(seed, lanes=7, steps=23):
    rng = np.random.default_rng(seed)
    terminated = rng.random((lanes, steps)) < 0.15
    truncated = (rng.random((lanes, steps)) < 0.15) & ~terminated
    rewards, values, final = rng.normal(size=(3, lanes, steps)).astype(np.float32)
    return rewards, values, final, rng.normal(size=lanes).astype(np.float32), terminated, truncated


def loop_gae(rewards, values, final, last, terminated, truncated, gamma, lam):
    """The definition: A_t = sum_k (gamma lambda)^k delta_t+k up to the episode's end, by two loops."""
    lanes, steps = rewards.shape
    delta = np.zeros((lanes, steps))
    for i in range(lanes):
        for t in range(steps):
            following = values[i, t + 1] if t + 1 < steps else last[i]
            after = 0.0 if terminated[i, t] else final[i, t] if truncated[i, t] else following
            delta[i, t] = rewards[i, t] + gamma * after - values[i, t]
    advantages = np.zeros((lanes, steps))
    for i in range(lanes):
        for t in range(steps):
            for k in range(t, steps):
                advantages[i, t] += (gamma * lam) ** (k - t) * delta[i, k]
                if terminated[i, k] or truncated[i, k]:
                    break
    return advantages


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_are_those_of_the_definition(seed, gamma, lam):
    rewards, values, final, last, terminated, truncated = random_trajectory(seed)
    after = next_values(*map(jnp.asarray, (values, final, last, truncated)))
    got = gae(*map(jnp.asarray, (rewards, values)), after, *map(jnp.asarray, (terminated, truncated)), gamma, lam)
    want = loop_gae(rewards, values, final, last, terminated, truncated, gamma, lam)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_running_returns_are_those_of_a_loop(seed):
    rewards, _, _, start, terminated, truncated = random_trajectory(seed)
    ended, gamma = terminated | truncated, 0.9
    sums, last = discounted_sums(*map(jnp.asarray, (start, rewards, ended)), gamma)
    for i, total in enumerate(start):
        for t in range(rewards.shape[1]):
            total = gamma * total + rewards[i, t]
            np.testing.assert_allclose(sums[i, t], total, rtol=1e-5, atol=1e-5)
            total = 0.0 if ended[i, t] else total
        np.testing.assert_allclose(last[i], total, rtol=1e-5, atol=1e-5)


def loop_loss(log_probs, entropies, values, part, eps, value_coef, entropy_coef, clip_value):
    total = []
    for i in range(len(log_probs)):
        ratio = np.exp(log_probs[i] - part["log_prob"][i])
        clipped = min(max(ratio, 1 - eps), 1 + eps)
        policy = -min(ratio * part["advantage"][i], clipped * part["advantage"][i])
        error = (values[i] - part["target"][i]) ** 2
        if clip_value:
            near = part["value"][i] + min(max(values[i] - part["value"][i], -eps), eps)
            error = max(error, (near - part["target"][i]) ** 2)
        total.append(policy + value_coef * 0.5 * error - entropy_coef * entropies[i])
    return np.mean(total)


@pytest.mark.parametrize("clip_value", [False, True])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-1, 1, (2,)),
        spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])),
    ],
    ids=["choice", "choices", "numbers", "nested"],
)
def test_loss_is_that_of_a_plain_loop(space, clip_value):
    class Any(Probe):
        action_space = space

        def reward(self, seen, action, time):
            return 0.0

    agent = esrl.ppo(Any(), TINY, **SMALL, clip_value=clip_value, entropy_coef=0.1, value_coef=0.7, clip_eps=0.15)
    setup = agent.config
    state = agent.init(seed_key(0))
    samples = ppo.make_samples(setup, state, agent.rollout(state), jnp.ones((16, 8)))
    played = np.asarray(samples.log_prob)[:, 0]
    rng = np.random.default_rng(0)
    shift = rng.normal(scale=0.3, size=(2, 128, 1)).astype(np.float32)
    samples = samples._replace(log_prob=samples.log_prob + shift[0], value=samples.value + shift[1])
    got, metrics = ppo.loss(setup, state.params, state, samples)
    apply = jax.vmap(lambda obs: setup.nets.apply(state.params, obs, setup.nets.carry)[0])
    out = apply(samples.observations[:, 0])
    head = setup.nets.policy.head
    logs = jax.vmap(head.log_prob, in_axes=(0, None if out.log_std is None else 0, 0))
    entropies = jax.vmap(head.entropy, in_axes=(0, None if out.log_std is None else 0))(out.output, out.log_std)
    part = {name: np.asarray(getattr(samples, name))[:, 0] for name in ("log_prob", "advantage", "target", "value")}
    again = logs(out.output, out.log_std, jax.tree.map(lambda x: x[:, 0], samples.raw_action))
    np.testing.assert_allclose(again, played, rtol=1e-5, atol=1e-5)  # every ratio is 1 before the first step
    args = (again, entropies, out.value)
    want = loop_loss(*map(np.asarray, args), part, 0.15, 0.7, 0.1, clip_value)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert 0 < metrics["clip_fraction"] < 1


# ---- laws -----------------------------------------------------------------------------------------------------------


def value_of(env, gamma=0.5, **options):
    """Values of the observations that a trained critic's last rollout saw, by observation."""
    agent = esrl.ppo(env, TINY, **{**PLAIN, **SMALL, **options}, gamma=gamma, learning_rate=0.01)
    state, _ = run(agent, 120)
    batch = agent.rollout(state)
    seen = np.asarray(batch.trajectory.observations).ravel()
    values = np.asarray(batch.trajectory.record.value).ravel()
    return {x: values[seen == x].mean() for x in np.unique(seen).tolist()}


def test_critic_learns_the_value_of_a_constant_of_an_observation_and_of_a_delayed_reward():
    for value in value_of(Terminating()).values():
        np.testing.assert_allclose(value, 1.0, atol=0.05)
    values = value_of(SignIsValue(), critic="shared")
    np.testing.assert_allclose([values[-1.0], values[1.0]], [-1, 1], atol=0.1)
    values = value_of(LaterReward())
    np.testing.assert_allclose([values[0.0], values[1.0]], [0.5, 1], atol=0.1)


def test_truncation_is_not_termination():
    """Reward 1 at every step for ever is worth 1 / (1 - gamma), however soon a time limit cuts the episode off."""
    for value in value_of(Constant()).values():
        np.testing.assert_allclose(value, 2.0, atol=0.1)


def test_a_truncated_step_is_valued_by_its_final_observation():
    class Count(Probe):
        max_episode_steps = 3

        def reset(self, key):
            return jnp.float32(0), jnp.zeros(1)

        def step(self, state, action, key):
            return state + 1, (state + 1)[None], jnp.float32(0), jnp.bool_(False)

    agent = esrl.ppo(Count(), TINY, **PLAIN, **SMALL)
    state = agent.init(seed_key(0))
    batch = agent.rollout(state)
    seen = np.asarray(batch.trajectory.observations)[0].ravel()
    np.testing.assert_array_equal(seen, [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(batch.trajectory.truncated[0], [0, 0, 1, 0, 0, 1, 0, 0])
    assert not batch.trajectory.terminated.any()
    setup = agent.config
    final = setup.value((state.params, None), jnp.full((1, 1), 3.0), setup.nets.carry)[0]
    np.testing.assert_allclose(batch.trajectory.bootstrap_value[0], [0, 0, final, 0, 0, final, 0, 0], rtol=1e-6)


def test_episodes_begin_anew_in_other_worlds():
    agent = esrl.ppo(Walk(), TINY, num_envs=8, num_steps=64, num_minibatches=4)
    batch = agent.rollout(agent.init(seed_key(0)))
    over = np.asarray(batch.trajectory.terminated | batch.trajectory.truncated)
    starts = np.asarray(batch.trajectory.observations)[:, 1:][over[:, :-1]].ravel()
    assert len(np.unique(starts)) == len(starts) > 16
    assert np.all(np.abs(starts) <= 0.5)
    assert int(batch.stats.episodes) == over.sum()
    assert int(batch.stats.lengths) + int(batch.lanes.time.sum()) == 8 * 64


def test_devices_do_not_change_what_is_played_and_learnt(monkeypatch):
    found = []
    for devices in (1, 2, 4):
        mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        monkeypatch.setattr(sharding, "default_mesh", lambda _, mesh=mesh: mesh)
        agent = esrl.ppo(Walk(), TINY, **SMALL, entropy_coef=0.01)
        state = agent.init(seed_key(1))
        found.append((agent.rollout(state), params_of(run(agent, 2, seed=1)[0])))
    for batch, params in found[1:]:
        np.testing.assert_array_equal(found[0][0].trajectory.terminated, batch.trajectory.terminated)
        np.testing.assert_allclose(found[0][0].trajectory.observations, batch.trajectory.observations, atol=1e-6)
        np.testing.assert_allclose(found[0][1], params, rtol=1e-3, atol=1e-4)


def test_gradient_clipping_bounds_the_global_norm():
    options = {**SMALL, **PLAIN, "num_minibatches": 1, "num_epochs": 1, "optimizer": "sgd", "learning_rate": 1.0}
    agent = esrl.ppo(Walk(), TINY, **options, max_grad_norm=1e-3, reward_scale=100.0)
    start = agent.init(seed_key(0))
    after, metrics = agent.step(start)
    assert metrics["grad_norm"] > 1e-3
    np.testing.assert_allclose(np.linalg.norm(params_of(after) - params_of(start)), 1e-3, rtol=1e-2)


def test_learning_rate_falls_to_zero_over_the_given_steps():
    agent = esrl.ppo(Walk(), TINY, **SMALL, learning_rate=0.1, anneal_steps=4 * 16 * 8)
    state = agent.init(seed_key(0))
    rates = []
    for _ in range(5):
        state, metrics = agent.step(state)
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025, 0.0], atol=1e-7)


def test_rewards_are_scaled_by_the_deviation_of_the_running_return():
    agent = esrl.ppo(Walk(), TINY, **SMALL)
    setup = agent.config
    state = agent.init(seed_key(0))
    batch = agent.rollout(state)
    scaled, moments, _ = ppo.normalize_rewards(setup, state, batch.trajectory)
    running, _ = discounted_sums(
        jnp.zeros(16), batch.trajectory.rewards, batch.trajectory.terminated | batch.trajectory.truncated, 0.99
    )
    np.testing.assert_allclose(scaled * np.std(running), batch.trajectory.rewards, rtol=1e-3, atol=1e-5)
    assert float(moments.seen) == 128
    louder = esrl.ppo(Walk(), TINY, **SMALL, reward_scale=50.0)
    quiet, loud = (params_of(run(a, 2)[0]) for a in (agent, louder))
    np.testing.assert_allclose(quiet, loud, rtol=1e-3, atol=1e-4)


def test_not_finite_rewards_and_gradients_never_reach_the_parameters():
    class Bad(Walk):
        def step(self, state, action, key):
            state, observation, reward, terminated = super().step(state, action, key)
            return state, observation, jnp.where(observation[0] > 0.3, jnp.nan, reward), terminated

    state, metrics = run(esrl.ppo(Bad(), TINY, **SMALL), 3)
    assert metrics["nonfinite"] > 0 and np.isfinite(params_of(state)).all()

    class Blind(Walk):
        def step(self, state, action, key):
            state, observation, reward, terminated = super().step(state, action, key)
            return state, jnp.where(observation > 0.3, jnp.nan, observation), reward, terminated

    for network in (TINY, esrl.gru(8)):
        state, metrics = run(esrl.ppo(Blind(), network, **SMALL), 3)
        assert metrics["nonfinite"] > 0 and metrics["skipped_steps"] == 0
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.opt_state, state.moments)))


def test_one_compilation_whatever_values_change():
    agent = esrl.ppo(Walk(), TINY, **SMALL)
    start = agent.init(seed_key(0))
    agent.step(start)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    changed = start._replace(learning_rate=jnp.float32(1.0), gamma=jnp.float32(0.5), key=seed_key(4))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        agent.step(agent.step(changed)[0])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


@pytest.mark.parametrize("network", [TINY, esrl.gru(8)], ids=["mlp", "gru"])
def test_resuming_equals_never_having_stopped(network, tmp_path):
    agent = esrl.ppo(Walk(), network, **SMALL)
    straight, _ = run(agent, 4)
    state, _ = run(agent, 2)
    Checkpoints(tmp_path).save(state)
    state = Checkpoints(tmp_path).restore(agent.init(seed_key(9)))
    for _ in range(2):
        state, _ = agent.step(state)
    np.testing.assert_array_equal(params_of(straight), params_of(state))


def test_step_is_update_after_rollout():
    agent = esrl.ppo(Walk(), TINY, **SMALL)
    state = agent.init(seed_key(0))
    whole, _ = agent.step(state)
    parts, _ = agent.update(state, agent.rollout(state))
    np.testing.assert_allclose(params_of(whole), params_of(parts), rtol=1e-5, atol=1e-6)
    assert int(whole.env_steps) == 128 and int(whole.generation) == 1


def test_sequences_are_learnt_from_as_they_were_played():
    """Before any step, the networks say of a recurrent rollout what they said while it was played."""
    agent = esrl.ppo(Walk(), esrl.gru(8), **SMALL)
    setup = agent.config
    state, _ = run(agent, 2)  # carries of lanes in the middle of an episode
    batch = agent.rollout(state)
    samples = ppo.make_samples(setup, state, batch, batch.trajectory.rewards)
    assert samples.is_first.any() and np.abs(np.asarray(samples.carry[0])).max() > 0
    out = ppo.evaluate_sequences(setup, state.params, samples)
    np.testing.assert_allclose(out.value, samples.value, rtol=1e-4, atol=1e-5)


# ---- learning -------------------------------------------------------------------------------------------------------


class TwoChoices(Probe):
    """Reward for each of two choices that match: the first the sign that is seen, the second always 2."""

    action_space = spaces.MultiDiscrete([2, 3])

    def reward(self, seen, action, time):
        return 0.5 * ((action[0] == 1) == (seen > 0)).astype(jnp.float32) + 0.5 * (action[1] == 2).astype(jnp.float32)


# A Gaussian that narrows makes ever larger steps of the same rate, and the score would depend on where it ends.
ANNEALED = {"anneal_steps": 120 * 32 * 16}
LEARN = {
    "action matters": (ActionMatters, TINY, 1.0, {}),
    "action depends on observation": (ActionDependsOnObservation, TINY, 1.0, {}),
    "delayed reward": (Delayed, TINY, 1.0, {"gamma": 0.9}),
    "shared critic": (ActionDependsOnObservation, TINY, 1.0, {"critic": "shared"}),
    "memory": (Memory, esrl.gru(16, "tanh"), 1.0, {"num_steps": 12, "gamma": 0.9}),
    "memory, shared critic": (Memory, esrl.gru(16, "tanh"), 1.0, {"num_steps": 12, "gamma": 0.9, "critic": "shared"}),
    "continuous": (Target, TINY, 0.0, ANNEALED),
    "continuous by tanh": (Target, TINY, 0.0, {**ANNEALED, "squash": "tanh", "learning_rate": 0.02}),
    "several choices": (TwoChoices, TINY, 1.0, {}),
    "a choice and a number": (ChoiceAndTarget, TINY, 0.0, ANNEALED),
    "values clipped, sgd": (ActionMatters, TINY, 1.0, {"clip_value": True, "optimizer": "sgd", "learning_rate": 0.5}),
}


@pytest.mark.parametrize("case", LEARN)
def test_probe_environments_are_solved(case):
    env, network, best, options = LEARN[case]
    defaults = {"num_envs": 32, "num_steps": 16, "num_minibatches": 4, "learning_rate": 0.01, "gamma": 0.5}
    agent = esrl.ppo(env(), network, **{**defaults, **options})
    result = esrl.train(agent, generations=120, num_evals=0)
    score = esrl.evaluate(agent, result.state, 128).return_mean
    assert score > best - 0.15, score


def test_without_memory_the_memory_probe_is_not_solved():
    agent = esrl.ppo(Memory(), TINY, **SMALL, learning_rate=0.01)
    result = esrl.train(agent, generations=60, num_evals=0)
    assert esrl.evaluate(agent, result.state, 128).return_mean < 0.7


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_minibatches": 7}, r"num_envs x num_steps = 4096 steps cannot be split into num_minibatches=7; use 8"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"gamma": 1.5}, "gamma is 1.5, but must be a number in 0 .. 1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1"),
        ({"clip_eps": 0.0}, "clip_eps is 0.0, but must be a number above 0"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"entropy_coef": -1.0}, "entropy_coef is -1.0, but must be a number of at least 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"critic": "none"}, 'critic is \'none\', but must be "separate" or "shared"'),
        ({"num_epochs": -3}, "num_epochs is -3, but must be a whole number of at least 1"),
        ({"population": 8}, "ppo has no option 'population'"),
        ({"lerning_rate": 1.0}, "did you mean learning_rate"),
        ({"anneal_steps": 0.0}, "anneal_steps is 0.0"),
        ({"optimizer": "adma"}, "did you mean adam"),
    ],
)
def test_bad_options_are_said_in_one_sentence(options, sentence):
    with pytest.raises(EsrlError, match=sentence) as caught:
        esrl.ppo(Constant(), TINY, **options)
    assert "\n" not in str(caught.value)


def test_a_recurrent_policy_needs_minibatches_of_whole_sequences():
    words = "whole sequences, and num_envs=4 of them cannot be split into num_minibatches=8; use 4"
    with pytest.raises(EsrlError, match=words):
        esrl.ppo(Walk(), esrl.gru(8), num_envs=4, num_minibatches=8)


def test_critics_of_other_shapes_are_refused_and_the_users_network_gets_one_of_its_own():
    def function(params, obs):
        return obs @ params

    two = esrl.network(function, params=jnp.zeros((1, 2)))
    agent = esrl.ppo(Walk(), two, **SMALL)
    state = agent.init(seed_key(0))
    assert "Dense_0" in state.params["critic"] and int(agent.step(state)[0].generation) == 1
    with pytest.raises(EsrlError, match=r"critic's output has shape \(2,\)"):
        esrl.ppo(Walk(), TINY, **SMALL, critic=two)
    with pytest.raises(EsrlError, match=r"and 1 more needs shape \(3,\)"):
        esrl.ppo(Walk(), two, **SMALL, critic="shared")
