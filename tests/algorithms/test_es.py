"""Laws of a generation: what does not change it, what must, and what never reaches the parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from probes import (
    ActionDependsOnObservation,
    ActionMatters,
    Broken,
    ChoiceAndTarget,
    Constant,
    Delayed,
    Memory,
    Target,
    Walk,
)

import esrl
from esrl import EsrlError
from esrl.algorithms.es_agents import BASE_RATE, RATES
from esrl.algorithms.optimizers import clipup, make_optimizer
from esrl.core import sharding
from esrl.core.types import seed_key

TINY = esrl.mlp((8,), "tanh")


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


def run(agent, generations=1, seed=0):
    state = agent.init(seed_key(seed))
    for _ in range(generations):
        state, metrics = agent.step(state)
    return state, metrics


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.open_es])
@pytest.mark.parametrize("shaping", ["centered_rank", "z_score", "group", "sign", "none", "leave_one_out"])
@pytest.mark.parametrize("antithetic", [True, False])
def test_equal_fitness_moves_nothing(shaping, antithetic, make):
    if shaping == "sign" and not antithetic:
        pytest.skip("needs pairs")
    agent = make(Constant(), TINY, population=16, shaping=shaping, antithetic=antithetic, optimizer="sgd")
    start = agent.init(seed_key(0))
    after, metrics = agent.step(start)
    np.testing.assert_array_equal(params_of(start), params_of(after))
    assert metrics["grad_norm"] == 0 and metrics["fitness_mean"] == 1


@pytest.mark.parametrize(
    "numbers", [{}, {"noise_distribution": "rademacher", "noise_dtype": "int8"}], ids=["normal", "signs"]
)
def test_chunks_and_devices_do_not_change_fitness(numbers):
    def play(devices, chunk):
        mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        agent = esrl.eggroll(
            Walk(), TINY, population=32, episodes_per_member=2, mesh=mesh, chunk_pairs=chunk, **numbers
        )
        state = agent.init(seed_key(3))
        batch = agent.rollout(state)
        return np.asarray(batch.fitness), np.asarray(batch.lengths), params_of(agent.update(state, batch)[0])

    whole = play(1, 16)
    for devices, chunk in [(1, 4), (2, 8), (4, 2), (4, 1)]:
        fitness, lengths, params = play(devices, chunk)
        np.testing.assert_array_equal(whole[1], lengths)
        np.testing.assert_allclose(whole[0], fitness, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(whole[2], params, rtol=1e-4, atol=1e-5)


def test_noise_is_new_in_every_generation():
    agent = esrl.eggroll(Walk(), TINY, population=8)
    state = agent.init(seed_key(0))
    later = state._replace(generation=state.generation + 1)
    a, b = agent.rollout(state), agent.rollout(later)
    assert np.all(np.asarray(a.fitness) != np.asarray(b.fitness))
    np.testing.assert_array_equal(a.fitness, agent.rollout(state).fitness)


def test_both_signs_of_a_pair_share_worlds_and_action_noise():
    """With next to no perturbation the two signs play the same episodes, and other pairs play others."""
    agent = esrl.eggroll(Walk(), TINY, population=16, sigma=1e-9, deterministic=False, episodes_per_member=3)
    returns = np.asarray(agent.rollout(agent.init(seed_key(0))).returns)
    np.testing.assert_array_equal(returns[:, 0], returns[:, 1])
    assert len(np.unique(returns[:, 0])) == 8 * 3


def test_not_finite_fitness_is_counted_and_never_reaches_the_parameters():
    for shaping in ("centered_rank", "z_score", "none", "group", "sign", "leave_one_out"):
        agent = esrl.eggroll(Broken(), TINY, population=32, shaping=shaping)
        state, metrics = run(agent, 3)
        assert metrics["nonfinite"] > 0
        assert np.isfinite(params_of(state)).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.moments))


def test_an_observation_that_is_not_finite_is_counted_and_never_summed():
    class Blind(Walk):
        def step(self, state, action, key):
            state, observation, reward, terminated = super().step(state, action, key)
            return state, jnp.where(observation > 0.3, jnp.nan, observation), reward, terminated

    state, metrics = run(esrl.eggroll(Blind(), TINY, population=8), 2)
    assert metrics["nonfinite"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.opt_state, state.moments)))


def test_a_users_shaping_that_lets_nan_through_moves_nothing():
    agent = esrl.eggroll(Broken(), TINY, population=32, shaping=lambda fitness: fitness - jnp.mean(fitness))
    state, metrics = run(agent, 2)
    assert metrics["nonfinite"] > 0 and np.isfinite(params_of(state)).all()


@pytest.mark.parametrize("numbers", [("normal", "float32"), ("rademacher", "int8")], ids="-".join)
@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_a_gradient_step_is_the_estimator_of_the_equation(kind, numbers):
    """Parameters move by -rate * sum_i f_i E_i / (N sigma), with E_i formed in full."""
    make = partial(esrl.eggroll, rank=2) if kind == "low rank" else esrl.open_es
    agent = make(
        Target(), TINY, population=64, shaping="none", optimizer="sgd", learning_rate=0.5, sigma=0.2,
        normalize_observations=False, noise_distribution=numbers[0], noise_dtype=numbers[1],
    )  # fmt: skip
    assert agent.plan.noise_bytes == agent.plan.num_random * {"float32": 4, "int8": 1}[numbers[1]]
    state = agent.init(seed_key(1))
    batch = agent.rollout(state)
    after, _ = agent.update(state, batch)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), 0)
    eps = esrl.noise.sample(key, agent.plan.leaves, sharding.iota(32), *numbers)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    full = esrl.noise.perturb(zeros, eps, agent.plan.leaves, 1.0)
    difference = batch.fitness[:, 0] - batch.fitness[:, 1]
    for old, new, e in zip(*map(jax.tree.leaves, (state.params, after.params, full)), strict=True):
        step = 0.5 * jnp.einsum("p,p...->...", difference, e) / (64 * 0.2)
        np.testing.assert_allclose(new - old, step, rtol=1e-3, atol=1e-5)


def test_both_gradient_scales_differ_by_sigma_squared_root_n():
    """The paper's rate for SGD is the plain one over sigma^2 sqrt(N)."""
    common = {"population": 64, "optimizer": "sgd", "sigma": 0.1}
    plain, _ = run(esrl.eggroll(Target(), TINY, learning_rate=0.3 * 0.1**2 * 8, **common))
    paper, _ = run(esrl.eggroll(Target(), TINY, learning_rate=0.3, gradient_scale="paper", **common))
    np.testing.assert_allclose(params_of(plain), params_of(paper), rtol=1e-5, atol=1e-6)


def test_gradient_clipping_bounds_the_global_norm():
    bound = 1e-3
    _, metrics = run(
        esrl.eggroll(Target(), TINY, population=32, optimizer="sgd", learning_rate=1.0, max_grad_norm=bound)
    )
    assert metrics["grad_norm"] > bound
    np.testing.assert_allclose(metrics["update_norm"], bound, rtol=1e-4)


def test_sigma_and_learning_rate_are_values_of_the_state_with_decay_and_schedules():
    agent = esrl.eggroll(Target(), TINY, population=8, sigma=0.2, sigma_decay=0.5, lr_decay=0.1)
    state, metrics = run(agent, 3)
    np.testing.assert_allclose(metrics["sigma"], 0.2 * 0.25, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], RATES["clipup"] * 0.01, rtol=1e-6)
    _, metrics = agent.step(state._replace(sigma=jnp.float32(2.0)))
    np.testing.assert_allclose(metrics["sigma"], 2.0 * 0.125, rtol=1e-6)
    ramp = optax.linear_schedule(1.0, 0.0, 4)
    _, metrics = run(esrl.eggroll(Target(), TINY, population=8, learning_rate=ramp), 3)
    np.testing.assert_allclose(metrics["learning_rate"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["clipup", "sgd", "adam", "rmsprop"])
def test_the_rate_unless_given_is_the_optimizers(optimizer):
    agent = esrl.open_es(Target(), TINY, population=4, optimizer=optimizer)
    assert agent.init(seed_key(0)).learning_rate == jnp.float32(RATES.get(optimizer, BASE_RATE))


def test_clipup_is_its_equations():
    """v = m v + g / |g|, shortened to 2; W = W - rate v (arXiv 2008.02387, algorithm 1), for any |g|."""
    rng, rate, momentum = np.random.default_rng(0), 0.3, 0.9
    step, direction = clipup(rate, momentum), rng.normal(size=5)
    params = {"w": jnp.zeros(5)}
    state, velocity, weights = step.init(params), np.zeros(5), np.zeros(5)
    for length in (1e-6, 1.0, 1e6, 0.0, 3.0, 1.0):
        gradient = length * direction
        velocity = momentum * velocity + (gradient / np.linalg.norm(gradient) if length else 0.0)
        velocity *= min(1.0, 2 / np.linalg.norm(velocity))
        weights -= rate * velocity
        updates, state = step.update({"w": jnp.asarray(gradient, jnp.float32)}, state)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], weights, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(weights) > 5 * rate, "it reached the bound on its velocity"


def test_weight_decay_shrinks_parameters_by_rate_times_decay():
    for optimizer in ("sgd", "adam", "adamw"):
        agent = esrl.eggroll(Constant(), TINY, population=8, optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
        start = agent.init(seed_key(0))
        after, _ = agent.step(start)
        np.testing.assert_allclose(params_of(after), params_of(start) * (1 - 0.05), rtol=1e-5)


def test_one_compilation_whatever_values_change():
    agent = esrl.eggroll(Walk(), TINY, population=16)
    start = agent.init(seed_key(0))
    changed = [start._replace(sigma=jnp.float32(0.2), key=seed_key(1)), start._replace(learning_rate=jnp.float32(1.0))]
    agent.step(start)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for state in changed:
            agent.step(agent.step(state)[0])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_live_and_padded_steps_are_counted():
    agent = esrl.eggroll(Walk(), TINY, population=16, chunk_pairs=8, mesh=sharding.one_device())
    state, _ = run(agent, 1)
    batch = agent.rollout(agent.init(seed_key(0)))
    assert int(state.env_steps) == int(np.sum(batch.lengths))
    assert int(state.padded_steps) == agent.plan.lanes * int(np.max(batch.lengths)) - int(np.sum(batch.lengths))


def test_reward_offset_changes_fitness_and_not_the_return():
    agent = esrl.eggroll(Delayed(), TINY, population=8, reward_offset=-1.0)
    batch = agent.rollout(agent.init(seed_key(0)))
    np.testing.assert_allclose(batch.fitness, batch.returns[:, :, 0] - 3)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_gamma_discounts_fitness_and_not_the_return(gamma):
    """Of 3 steps with rewards 0, 0, r the fitness is gamma^2 r; an offset is discounted with each step's reward."""
    agent = esrl.eggroll(Delayed(), TINY, population=8, gamma=gamma, reward_offset=-1.0)
    batch = agent.rollout(agent.init(seed_key(0)))
    returns = np.asarray(batch.returns[:, :, 0])
    assert set(np.unique(returns)) <= {0.0, 1.0}
    np.testing.assert_allclose(batch.fitness, gamma**2 * returns - (1 + gamma + gamma**2), rtol=1e-6)


@pytest.mark.parametrize("env", ["gymnasium/CartPole-v1", "gymnasium/phys2d/CartPole-v1"])
def test_gamma_counts_from_each_episode_s_own_start(env):
    """A reward of 1 in every step of n is worth (1 - gamma^n) / (1 - gamma), by Python's steps and by JAX's."""
    agent = esrl.eggroll(env, TINY, population=8, episodes_per_member=2, gamma=0.9)
    batch = agent.rollout(agent.init(seed_key(0)))
    lengths = np.asarray(batch.lengths)
    assert len(np.unique(lengths)) > 1
    np.testing.assert_allclose(batch.fitness, np.mean((1 - 0.9**lengths) / (1 - 0.9), axis=2), rtol=1e-5)


def test_observation_moments_are_those_of_the_live_observations():
    class Recorded(Walk):
        def step(self, state, action, key):
            state, observation, _, terminated = super().step(state, action, key)
            return state, observation, observation[0], terminated

    agent = esrl.eggroll(Recorded(), TINY, population=64, episodes_per_member=4)
    state, _ = run(agent, 1)
    played = agent.rollout(agent.init(seed_key(0)))
    assert float(state.moments.seen) == float(np.sum(played.lengths))
    starts = 0.5**2 / 3  # variance of a uniform start in [-0.5, 0.5] is 1/12; the walk only widens it
    variance = float(state.moments.m2[0] / state.moments.seen)
    assert starts / 4 < variance < 1


LEARN = {
    "action matters": (ActionMatters, TINY, 1.0, {}),
    "action depends on observation": (ActionDependsOnObservation, TINY, 1.0, {}),
    "delayed reward": (Delayed, TINY, 1.0, {}),
    "memory": (Memory, esrl.gru(8, "tanh"), 1.0, {"sigma": 0.3, "learning_rate": 0.1}),
    "continuous": (Target, TINY, 0.0, {"squash": "clip"}),
    "a choice and a number": (ChoiceAndTarget, TINY, 0.0, {"squash": "clip"}),
    "sampled": (ActionDependsOnObservation, TINY, 1.0, {"deterministic": False}),
    "sampled continuous": (Target, TINY, -0.6, {"deterministic": False}),
    "signs": (ActionDependsOnObservation, TINY, 1.0, {"noise_distribution": "rademacher", "noise_dtype": "int8"}),
    "leave one out": (ActionDependsOnObservation, TINY, 1.0, {"antithetic": False, "shaping": "leave_one_out"}),
    "paper scale": (
        ActionDependsOnObservation,
        TINY,
        1.0,
        {"gradient_scale": "paper", "optimizer": "sgd", "learning_rate": 1.0},
    ),
}


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.open_es])
@pytest.mark.parametrize("case", LEARN)
def test_probe_environments_are_solved(case, make):
    env, network, best, options = LEARN[case]
    defaults = {"sigma": 0.2, "learning_rate": 0.05, "episodes_per_member": 8}
    agent = make(env(), network, population=64, **{**defaults, **options})
    result = esrl.train(agent, generations=100, num_evals=0)
    score = esrl.evaluate(agent, result.state, 128).return_mean
    assert score > best - 0.15, score


def test_without_memory_the_memory_probe_is_not_solved():
    agent = esrl.eggroll(Memory(), TINY, population=64, sigma=0.3, learning_rate=0.1, episodes_per_member=8)
    result = esrl.train(agent, generations=40, num_evals=0)
    assert esrl.evaluate(agent, result.state, 128).return_mean < 0.7


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"population": 7}, "even number"),
        ({"rank": 0}, "rank is 0"),
        ({"noise_distribution": "cauchy"}, "distribution is 'cauchy'"),
        ({"noise_dtype": "int8"}, 'needs distribution "rademacher"'),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"optimizer": "adma"}, "did you mean adam"),
        ({"optimizer": "lion", "momentum": -1.0}, "momentum is -1.0"),
        ({"gradient_scale": "big"}, "gradient_scale"),
        ({"poplation": 8}, "did you mean population"),
        ({"chunk_pairs": 3, "population": 8}, "chunk_pairs is 3"),
        ({"episodes_per_member": 0}, "episodes_per_member is 0"),
        ({"shaping": "sign", "antithetic": False, "population": 8}, "sign shaping"),
        ({"chunk_pairs": 2, "memory_gib": 1.0, "population": 8}, "memory_gib would choose it; give one of them"),
        ({"optimizer": optax.sgd(0.1), "momentum": 0.9}, "momentum is for an optimizer given by its name"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0, but must be a number above 0"),
        ({"critic": "shared"}, "has no option 'critic'"),
    ],
)
def test_bad_options_are_said_in_one_sentence(options, sentence):
    with pytest.raises(EsrlError, match=sentence) as caught:
        esrl.eggroll(Constant(), TINY, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [{"chunk_pairs": 1}, {"memory_gib": 1.0}], ids=str)
def test_where_python_steps_nothing_says_how_many_play_at_once(given):
    with pytest.raises(EsrlError, match="whole population at once; leave out chunk_pairs, memory_gib and mesh"):
        esrl.eggroll("gymnasium/CartPole-v1", TINY, population=4, **given)


def test_decay_and_bound_stand_beside_an_optax_transformation():
    given = {"weight_decay": 0.5, "max_grad_norm": 1e-3}
    agent = esrl.eggroll(Constant(), TINY, population=4, optimizer=optax.sgd(0.1), **given)
    before, (after, _) = agent.init(seed_key(0)), run(agent)
    # Equal fitness has no gradient, so all that moves the parameters is their decay.
    np.testing.assert_allclose(params_of(after), 0.5 * params_of(before), rtol=1e-6)
    steep = make_optimizer(optax.sgd(1.0), None, None, 1e-3, jnp.zeros(2))
    step, _ = steep.update(jnp.array([3.0, 4.0]), steep.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(jnp.linalg.norm(step), 1e-3, rtol=1e-6)


def test_optimizer_takes_any_optax_transformation():
    agent = esrl.eggroll(Target(), TINY, population=8, optimizer=optax.chain(optax.scale_by_adam(), optax.scale(-0.02)))
    _, metrics = run(agent)
    np.testing.assert_allclose(metrics["learning_rate"], 1.0)
    assert 0 < metrics["update_norm"] < 1
    assert make_optimizer("sgd", momentum=0.9)


def test_a_squash_of_choices_is_said(capsys):
    """It is no error: a run's recipe may hold it."""
    esrl.eggroll("gymnasium/phys2d/CartPole-v1", TINY, population=4, squash="clip")
    assert "squash changes nothing" in capsys.readouterr().err
    esrl.eggroll(Target(), TINY, population=4, squash="clip")
    esrl.eggroll("gymnasium/phys2d/CartPole-v1", TINY, population=4, squash="tanh")
    assert "squash" not in capsys.readouterr().err
