"""What an estimate is worth: measured as defined, and followed as said."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from probes import ActionDependsOnObservation, ActionMatters, Constant, Target, Walk

import esrl
from esrl import EsrlError
from esrl.algorithms import signal as signals
from esrl.algorithms.es import estimate
from esrl.core import sharding
from esrl.core.types import seed_key

TINY = esrl.mlp((8,), "tanh")


class Still(ActionMatters):
    """The observation never differs, so that parameters alone decide."""

    def reset(self, key):
        return (jnp.ones(1), jnp.int32(0)), jnp.ones(1)


class Seldom(ActionMatters):
    """A reward of 1 in few episodes, by chance and only for action 1."""

    def step(self, state, action, key):
        state, observation, reward, terminated = super().step(state, action, key)
        return state, observation, jnp.where(jax.random.uniform(key) < 0.1, reward, 0.0), terminated


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


def run(agent, generations, seed=0, state=None):
    state = agent.init(seed_key(seed)) if state is None else state
    found = []
    for _ in range(generations):
        state, metrics = agent.step(state)
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


# ---- measured -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("population", [2, 6, 8, 64], ids=lambda n: f"{n} members")
def test_the_halves_are_the_even_and_the_odd_pairs_and_add_up(population):
    agent = esrl.eggroll(Walk(), TINY, population=population, optimizer="sgd")
    es, state = agent.config, agent.init(seed_key(1))
    fitness = agent.rollout(state).fitness
    weights = es.shaping(fitness) @ jnp.array(es.signs)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 1), 0)
    pairs = sharding.iota(es.pairs)
    noise = es.draw(key, pairs)
    for half, got in zip((0, 1), jax.jit(partial(estimate, es))(state, fitness), strict=True):
        want = es.noise.weighted_sum(jnp.where(pairs % 2 == half, weights, 0.0), noise, es.leaves)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, -b / (population * 0.05), rtol=1e-4, atol=1e-5)


def test_the_cosine_is_that_of_the_halves_whole_and_by_parameter():
    one, two = [jnp.array([1.0, 0.0]), jnp.array([2.0])], [jnp.array([1.0, 1.0]), jnp.array([-2.0])]
    found = signals.measured((one, two), ("a", "b"), jnp.array([[1.0, 1.0], [1.0, 2.0]]))
    assert found["signal_cosine"] == pytest.approx((1 - 4) / np.sqrt(5 * 6))
    assert found["signal_cosine/a"] == pytest.approx(1 / np.sqrt(2))
    assert found["signal_cosine/b"] == pytest.approx(-1)
    assert found["tied"] == 0.5


def test_equal_fitness_is_tied_and_has_no_cosine():
    agent = esrl.eggroll(Constant(), TINY, population=8, episodes_per_member=2)
    _, (metrics,) = run(agent, 1)
    assert metrics["tied"] == 1 and metrics["signal_cosine"] == 0 and metrics["agreement"] == 0


def agreement_of(parameters, chance, pairs=4000):
    """The measured agreement of differences that have these variances."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(pairs, 2, 1)) * np.sqrt(parameters)
    halves = common + rng.normal(size=(pairs, 2, 2)) * np.sqrt(chance)
    sizing = signals.Sizing()
    return signals.heard(signals.init(sizing, {}), jnp.asarray(halves, jnp.float32))


@pytest.mark.parametrize(("parameters", "chance"), [(1.0, 0.0), (1.0, 1.0), (1.0, 4.0), (0.0, 1.0)])
def test_agreement_is_the_share_of_variance_that_parameters_have(parameters, chance):
    signal = agreement_of(parameters, chance)
    assert signals.agreement(signal) == pytest.approx(parameters / (parameters + chance), abs=0.05)
    # Of the mean of both halves, chance has half the variance.
    assert signals.reliability(signal) == pytest.approx(parameters / (parameters + chance / 2), abs=0.07)


def test_a_half_that_is_not_finite_is_left_out():
    halves = jnp.array([[[1.0, 1.0], [0.0, 0.0]], [[jnp.nan, 1.0], [0.0, 0.0]]])
    assert signals.agreement(signals.heard(signals.init(signals.Sizing(), {}), halves)) == 1


def test_where_only_parameters_decide_the_halves_agree():
    agent = esrl.eggroll(Still(), TINY, population=64, episodes_per_member=2, sigma=0.5)
    _, found = run(agent, 3)
    assert found[-1]["agreement"] == pytest.approx(1, abs=1e-3)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_the_sum_of_small_generations_is_the_step_of_their_mean():
    """Nothing moves until the last of them, and then sgd moves by the mean of what each would have moved by."""
    options = {"episodes_per_member": 2, "optimizer": "sgd", "learning_rate": 0.1, "signal_sigma": False}
    plain = esrl.eggroll(Walk(), TINY, population=8, normalize_observations=False, **options)
    agent = esrl.eggroll(
        Walk(), TINY, population=8, max_population=30, signal_pairs=1e9, normalize_observations=False, **options
    )
    start = agent.init(seed_key(0))
    state, found = run(agent, 3, state=start)
    assert [row["updates"] for row in found] == [0, 0, 1]
    assert [row["update_norm"] > 0 for row in found] == [False, False, True]
    moves = []
    for generation in range(3):
        after, _ = plain.step(plain.init(seed_key(0))._replace(generation=jnp.uint32(generation)))
        moves.append(params_of(after) - params_of(start))
    np.testing.assert_allclose(params_of(state) - params_of(start), np.mean(moves, axis=0), rtol=1e-3, atol=1e-6)


def test_a_step_does_not_wait_for_pairs_that_no_tie_lacks():
    agent = esrl.eggroll(Target(), TINY, population=64, max_population=640, signal_pairs=32)
    _, found = run(agent, 3)
    assert [row["updates"] for row in found] == [1, 2, 3]


@pytest.mark.parametrize(("population", "antithetic"), [(2, True), (4, True), (64, True), (3, False), (8, False)])
def test_small_generations_without_ties_do_not_wait_by_default(population, antithetic):
    agent = esrl.eggroll(Target(), TINY, population=population, max_population=512, antithetic=antithetic)
    _, found = run(agent, 3)
    assert [row["updates"] for row in found] == [1, 2, 3]


def test_a_step_waits_until_enough_pairs_are_not_tied():
    agent = esrl.eggroll(
        Seldom(), TINY, population=16, max_population=1600, sigma=1.0, episodes_per_member=1, signal_pairs=6
    )
    _, found = run(agent, 40)
    told, updates = 0.0, 0
    for row in found:
        told += 8 * (1 - row["tied"])
        if told >= 6:
            told, updates = 0.0, updates + 1
        assert row["updates"] == updates
    assert 0 < updates < 20


def test_a_step_of_ties_alone_is_taken_at_last_and_moves_nothing():
    agent = esrl.eggroll(Constant(), TINY, population=8, max_population=24)
    start = agent.init(seed_key(0))
    state, found = run(agent, 6, state=start)
    assert [row["updates"] for row in found] == [0, 0, 1, 1, 1, 2]
    np.testing.assert_array_equal(params_of(state), params_of(start))


@pytest.mark.parametrize(
    ("fitness", "told"),
    [
        ([[1.0, 2.0], [3.0, 3.0], [4.0, 0.0]], 2),
        ([[1.0, np.nan], [np.inf, 0.0], [4.0, 0.0]], 1),
        ([[0.0], [0.0], [1.0], [0.0]], 1),
        ([[1.0], [1.0], [0.0], [np.nan]], 1),
        ([[1.0], [2.0], [3.0], [4.0]], 3),
        ([[5.0], [5.0]], 0),
    ],
)
def test_pairs_that_are_told_apart(fitness, told):
    assert signals.told(jnp.array(fitness)) == told


def test_pairs_that_are_missing_tell_nothing():
    fitness, present = jnp.array([[1.0, 2.0], [jnp.nan, jnp.nan]]), jnp.array([True, False])
    assert signals.told(fitness, present) == 1
    assert signals.told(fitness[:, :1], present) == 0


def test_a_step_waits_for_live_steps_as_well():
    agent = esrl.eggroll(
        Still(), TINY, population=64, max_population=640, episodes_per_member=2, sigma=0.5, signal_pairs=1,
        generation_steps=300,
    )  # fmt: skip
    _, found = run(agent, 3)  # an episode has one step: 128 in a generation
    assert [row["updates"] for row in found] == [0, 0, 1]


def test_sums_do_not_depend_on_devices_and_resume_exactly(tmp_path):
    def agent(devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        return esrl.eggroll(
            Walk(), TINY, population=16, max_population=64, episodes_per_member=2, signal_rate=True, mesh=mesh,
            averaging=0.5, signal_pairs=12,
        )  # fmt: skip

    one, found = run(agent(1), 7)
    assert 0 < found[-1]["updates"] < 7
    two, _ = run(agent(2), 7)
    np.testing.assert_allclose(params_of(one), params_of(two), rtol=1e-3, atol=1e-4)

    built, budget = agent(1), {"num_evals": 0, "checkpoint_every": 1}
    whole = esrl.train(built, generations=7, out=tmp_path / "whole", **budget)
    esrl.train(built, generations=3, out=tmp_path / "parts", **budget)
    parts = esrl.train(built, generations=7, out=tmp_path / "parts", resume=True, **budget)
    for a, b in zip(
        jax.tree.leaves(whole.state._replace(key=0)), jax.tree.leaves(parts.state._replace(key=0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


# ---- what follows ---------------------------------------------------------------------------------------------------


def test_sigma_follows_the_agreement_within_its_range():
    loud = signals.init(signals.Sizing(sigma=True), {})._replace(cross=jnp.float32(1), energy=jnp.float32(1))
    silent = loud._replace(cross=jnp.float32(0))
    for _ in range(100):
        loud = signals.followed(signals.Sizing(sigma=True), loud)
        silent = signals.followed(signals.Sizing(sigma=True), silent)
    assert loud.sigma == pytest.approx(1 / signals.SIGMA_RANGE) and silent.sigma == signals.SIGMA_RANGE


def test_the_generation_is_played_and_weighed_with_the_sigma_that_is_logged():
    agent = esrl.eggroll(Constant(), TINY, population=8, episodes_per_member=2, sigma=0.1)
    _, found = run(agent, 3)
    pace = np.exp(signals.SIGMA_PACE * signals.SIGMA_TARGET)  # all are tied: nothing agrees
    assert [row["sigma"] for row in found] == pytest.approx([0.1, 0.1 * pace, 0.1 * pace**2])


def test_the_rate_follows_what_the_estimate_is_worth():
    agent = esrl.eggroll(
        Still(), TINY, population=32, episodes_per_member=2, sigma=0.5, learning_rate=0.1, signal_rate=True,
        signal_pairs=4.0,
    )  # fmt: skip
    _, (metrics,) = run(agent, 1)  # 16 pairs that agree wholly
    assert metrics["learning_rate"] == pytest.approx(0.2, rel=1e-2)


@pytest.mark.parametrize("waiting", [{}, {"max_population": 16, "signal_pairs": 1e9}], ids=["steps", "waits"])
def test_the_average_is_the_moving_average_over_generations_and_acts(waiting):
    plain = esrl.eggroll(Walk(), TINY, population=8, **waiting)
    agent = esrl.eggroll(Walk(), TINY, population=8, averaging=0.75, **waiting)
    states = [plain.init(seed_key(0))]
    for _ in range(3):
        states.append(plain.step(states[-1])[0])
    state, _ = run(agent, 3)
    np.testing.assert_array_equal(params_of(state), params_of(states[-1]))
    want = params_of(states[0])
    for each in states[1:]:
        want = 0.75 * want + 0.25 * params_of(each)
    got = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.average)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    other = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    assert esrl.evaluate(agent, state, 8).return_mean == esrl.evaluate(agent, other, 8).return_mean


def test_warm_generations_gather_statistics_alone():
    agent = esrl.eggroll(Walk(), TINY, population=64, warm_statistics=2)
    start = agent.init(seed_key(0))
    state, found = run(agent, 3, state=start)
    assert [row["updates"] for row in found] == [0, 0, 1] and float(state.moments.seen) > 0
    assert [row["update_norm"] > 0 for row in found] == [False, False, True]


def test_the_horizon_caps_episodes_and_grows():
    agent = esrl.eggroll(Walk(), TINY, population=8, horizon=2, horizon_steps=100)
    _, found = run(agent, 12)
    assert found[0]["length_mean"] == 2
    lengths = [row["length_mean"] for row in found]
    assert lengths[-1] > 2 and max(lengths) <= 20
    _, capped = run(esrl.eggroll(Walk(), TINY, population=8, horizon=1000), 3)
    _, free = run(esrl.eggroll(Walk(), TINY, population=8), 3)
    assert [row["length_mean"] for row in capped] == [row["length_mean"] for row in free]  # as long as they are anyway


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.open_es])
def test_a_layers_sigma_is_a_change_of_variables(make):
    """A parameter with factor c moves as c times a parameter of its own: noise and step are c times as large."""
    options = {"population": 8, "optimizer": "sgd", "learning_rate": 1.0, "normalize_observations": False}
    plain, scaled = make(Walk(), TINY, **options), make(Walk(), TINY, layer_sigma={"*": 0.5}, **options)
    half = make(Walk(), TINY, **options | {"sigma": 0.025})
    start = plain.init(seed_key(0))
    played = scaled.rollout(start)
    np.testing.assert_allclose(played.fitness, half.rollout(half.init(seed_key(0))).fitness, rtol=1e-6)
    by_whole, by_half = plain.update(start, played)[0], scaled.update(start, played)[0]
    moved = [params_of(after) - params_of(start) for after in (by_whole, by_half)]
    np.testing.assert_allclose(0.5 * moved[0], moved[1], rtol=1e-4, atol=1e-7)


def test_fan_in_scales_wide_layers_alone():
    agent = esrl.eggroll(ActionDependsOnObservation(), esrl.mlp((256, 16)), layer_sigma="fan_in")
    scales = {leaf.path: leaf.scale for leaf in agent.plan.leaves}
    assert sorted(set(scales.values())) == [0.5, 1.0]
    assert [path for path, scale in scales.items() if scale == 0.5] == ["network/Dense_1/kernel"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"signal_sigma": True, "episodes_per_member": 1}, "use episodes_per_member=2 or more"),
        ({"max_population": 4}, "max_population is 4, but must be at least the population, which is 8"),
        ({"generation_steps": 100, "episodes_per_member": 2}, "generation_steps needs max_population"),
        ({"signal_sigma": True, "sigma_decay": 0.9}, "give one"),
        ({"layer_sigma": {"nothing": 2.0}}, "but the parameters are"),
        ({"layer_sigma": {"*": 0.0}}, "must be above 0"),
        ({"layer_sigma": "wide"}, 'must be "fan_in"'),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_options_that_do_not_fit_are_said(options, sentence):
    with pytest.raises(EsrlError, match=sentence):
        esrl.eggroll(Walk(), TINY, **{"population": 8} | options)
