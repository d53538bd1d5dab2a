"""EGGROLL in integers: the same laws as those of floats, and some that only integers can keep, bit for bit."""

import itertools
from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from probes import ActionDependsOnObservation, Broken, ChoiceAndTarget, Constant, Memory, Target, Walk

import esrl
from esrl import EsrlError
from esrl.algorithms import integer_es
from esrl.core import sharding
from esrl.core.integers import LARGEST
from esrl.core.types import seed_key
from esrl.perturbation import forward, integer_noise
from esrl.perturbation.classify import classify
from esrl.perturbation.noise import Leaf, LowRank
from esrl.policies import integer_statistics
from esrl.policies.policy import bind, float_operation

TINY = esrl.mlp((8,), dtype="int8")


def params_of(state):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state.params)])


def run(agent, generations=1, seed=0):
    state = agent.init(seed_key(seed))
    for _ in range(generations):
        state, metrics = agent.step(state)
    return state, metrics


# ---- numbers --------------------------------------------------------------------------------------------------------


def rounded(value, bits):
    return (value + integer_noise.half(bits)) >> bits


def one_member(x, w, a, b, sign, shift):
    """x (W + s A B^T 2^-..) of one member, by Python's integers, which are of any size."""
    inner = [rounded(sum(int(p) * int(q) for p, q in zip(x, row, strict=True)), 4) for row in a]
    total = shift + {1: 0, 4: 1}[len(a)]
    thin = [rounded(sum(t * int(row[j]) for t, row in zip(inner, b, strict=True)), total) for j in range(w.shape[1])]
    return [sum(int(p) * int(w[i, j]) for i, p in enumerate(x)) + sign * thin[j] for j in range(w.shape[1])]


@pytest.mark.parametrize("rank", [1, 4])
def test_the_forward_of_a_population_is_that_of_each_member_by_hand(rank):
    m, n, pairs, episodes, shift = 24, 12, 3, 2, 1

    def network(w, x):
        return jax.lax.dot_general(x, w, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)

    w = integer_noise.table(seed_key(1), m * n).reshape(m, n)
    (leaf,) = integer_noise.plan(classify(network, w, jnp.zeros(m, jnp.int8)), rank, shift)
    assert leaf.rank == rank
    eps = integer_noise.sample(seed_key(2), (leaf,), jnp.arange(pairs, dtype=jnp.uint32))
    x = jax.random.randint(seed_key(3), (pairs * 2 * episodes, m), -127, 128).astype(jnp.int8)
    out = forward.population(network, (leaf,))(w, eps, jnp.array([1, -1], jnp.int32), x)
    for lane, (p, s, _) in enumerate(itertools.product(range(pairs), (1, -1), range(episodes))):
        given = [np.asarray(v) for v in (x[lane], w, eps[0].a[p], eps[0].b[p])]
        assert out[lane].tolist() == one_member(*given, s, shift)


def test_no_sum_overflows_at_the_bound():
    """At the widest layer that is allowed, the worst numbers there are give what Python's integers give."""
    shift, rank = 2, 1
    rows = max(m for m in range(1, 200_000, 64) if integer_noise.largest_sum(m, rank, shift) <= LARGEST)
    a, b = np.full((1, rows), 55), np.full((1, 1), 55)
    x, w = np.full(rows, 127), np.full((rows, 1), 127)
    exact = one_member(x, w, a, b, 1, shift)
    assert exact[0] <= integer_noise.largest_sum(rows, rank, shift) <= LARGEST

    def network(w, x):
        return jax.lax.dot_general(x, w, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)

    leaf = Leaf("w", (rows, 1), (0,), "used by dot_general", rank=rank, shift=shift)
    small = [jnp.asarray(v, jnp.int8) for v in (w, x, a, b)]
    eps = [LowRank(small[2][None], small[3][None])]
    out = forward.population(network, (leaf,))(small[0], eps, jnp.array([1, -1], jnp.int32), jnp.stack([small[1]] * 2))
    assert out.tolist() == [exact, one_member(x, w, a, b, -1, shift)]


def test_widths_that_could_overflow_are_refused():
    wide = esrl.mlp((65_536, 16), dtype="int8")
    with pytest.raises(EsrlError, match=r"Dense_1/kernel has 65,537 inputs.*overflow.*narrower") as error:
        esrl.eggroll_int8(Target(), wide, population=4, sigma_shift=0, rank=8)
    assert "\n" not in str(error.value)
    with pytest.raises(EsrlError, match="votes of more than"):
        esrl.eggroll_int8(Walk(), TINY, population=100_000, shaping="z_score", group_pairs=8)
    with pytest.raises(EsrlError, match="steps, and integer statistics"):
        integer_statistics.init(jnp.zeros(1), True, 2**26 + 1)


def test_sums_over_pairs_are_the_explicit_ones():
    leaves = (
        Leaf("w", (12, 20), (0,), "used by dot_general", rank=2, shift=1),
        Leaf("b", (5,), None, "not a matrix", shift=1),
    )
    eps = integer_noise.sample(seed_key(0), leaves, jnp.arange(6, dtype=jnp.uint32))
    f = np.array([3, -1, 0, 63, -63, 1])
    w, b = integer_noise.weighted_sum(jnp.asarray(f, jnp.int32), eps, leaves)
    a_, b_ = (np.asarray(x, np.int64) for x in eps[0])
    np.testing.assert_array_equal(w, np.einsum("p,prm,prn->mn", f, a_, b_))
    np.testing.assert_array_equal(b, f @ np.asarray(eps[1].e, np.int64))
    signs = jnp.asarray(np.sign(f), jnp.int32)  # which int8 products sum
    for whole, narrow in zip(*(integer_noise.weighted_sum(signs, eps, leaves, most) for most in (63, 1)), strict=True):
        np.testing.assert_array_equal(whole, narrow)


def test_noise_differs_between_pairs_and_generations_and_is_centered():
    leaf = Leaf("b", (4096,), None, "not a matrix")
    one, two = (
        np.asarray(integer_noise.sample(seed_key(k), (leaf,), jnp.arange(2, dtype=jnp.uint32))[0].e, np.int64)
        for k in (0, 1)
    )
    for x, y in ((one[0], one[1]), (one[0], two[0])):
        assert abs(np.mean(x * y)) < 4 * 256 / 64
    assert abs(one.mean()) < 4 * 16 / 90 and abs(one.std() / 16 - 1) < 0.05 and np.abs(one).max() <= 55


def test_a_table_gives_slices_that_a_counter_chooses():
    leaf = Leaf("b", (7,), None, "not a matrix")
    table = integer_noise.table(seed_key(5), 64)
    e = integer_noise.sample(seed_key(0), (leaf,), jnp.arange(9, dtype=jnp.uint32), table)[0].e
    found = [next(i for i in range(58) if (table[i : i + 7] == row).all()) for row in e]
    assert len(set(found)) > 3
    again = integer_noise.sample(seed_key(0), (leaf,), jnp.arange(4, 6, dtype=jnp.uint32), table)[0].e
    np.testing.assert_array_equal(again, e[4:6])


# ---- no floats ------------------------------------------------------------------------------------------------------


class Picture(Walk):
    """A picture of bytes, one of numbers with its channels first, and numbers beside them."""

    observation_space = gymnasium.spaces.Dict({
        "bytes": gymnasium.spaces.Box(0, 255, (18, 6, 2), np.uint8),
        "numbers": gymnasium.spaces.Box(-1, 1, (1, 3, 4), np.float32),
        "x": gymnasium.spaces.Box(-9, 9, (3,), np.float32), "kind": gymnasium.spaces.Discrete(3),
        "count": gymnasium.spaces.Box(0, 9, (2,), np.uint16),
    })  # fmt: skip

    def reset(self, key):
        state, _ = super().reset(key)
        return state, self.seen(key)

    def step(self, state, action, key):
        state, _, *rest = super().step(state, action, key)
        return state, self.seen(key), *rest

    def seen(self, key):
        return {
            "bytes": jax.random.randint(key, (18, 6, 2), 0, 256).astype(jnp.uint8),
            "numbers": jax.random.normal(key, (1, 3, 4)), "x": jax.random.normal(key, (3,)),
            "kind": jax.random.randint(key, (), 0, 3), "count": jnp.array([0, 9], jnp.uint16),
        }  # fmt: skip


CNN = esrl.cnn((3, 4), (5,), dtype="int8")


def test_a_convolution_of_a_population_is_that_of_each_member_by_hand():
    depth, width, pairs, shift, rank = 3, 5, 2, 1, 1

    def network(w, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x[None], w, (2, 2), "SAME", dimension_numbers=numbers, preferred_element_type=jnp.int32
        )[0]

    w = integer_noise.table(seed_key(1), 9 * depth * width).reshape(3, 3, depth, width)
    (leaf,) = integer_noise.plan(classify(network, w, jnp.zeros((5, 4, depth), jnp.int8)), rank, shift)
    assert leaf.rank == rank
    eps = integer_noise.sample(seed_key(2), (leaf,), jnp.arange(pairs, dtype=jnp.uint32))
    x = jax.random.randint(seed_key(3), (pairs * 2, 5, 4, depth), -127, 128).astype(jnp.int8)
    out = forward.population(network, (leaf,))(w, eps, jnp.array([1, -1], jnp.int32), x)
    for lane, (p, s) in enumerate(itertools.product(range(pairs), (1, -1))):
        padded = np.pad(np.asarray(x[lane]), ((1, 1), (0, 1), (0, 0)))  # as SAME pads 5x4 in strides of 2
        a, b = np.asarray(eps[0].a[p]).reshape(rank, -1), np.asarray(eps[0].b[p])
        for i, j in itertools.product(range(3), range(2)):
            window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].ravel()
            assert out[lane, i, j].tolist() == one_member(window, np.asarray(w).reshape(-1, width), a, b, s, shift)


def test_a_cnn_has_no_floats_and_its_devices_change_nothing():
    one, *others = [
        esrl.eggroll_int8(Picture(), CNN, population=8, quantile=0.9, chunk_pairs=chunk,
                          mesh=Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,)))
        for devices, chunk in ((1, 4), (2, 1))
    ]  # fmt: skip
    kinds = {leaf.path: leaf.rank for leaf in one.config.leaves}
    assert kinds["network/Conv_1/kernel"] == 1 and kinds["network/Conv_1/bias"] == 0 and len(kinds) == 10
    policy, params = one.policy, one.policy.init(seed_key(0))
    seen = integer_statistics.quantized(None, Picture().seen(seed_key(1)), policy.normalizable)
    assert float_operation(jax.make_jaxpr(policy.apply)(params, seen, ()).jaxpr) == ""
    output = policy.apply(params, seen, ())[0][0]
    assert output.dtype == jnp.int16 and np.any(output != 0)
    moved = run(one, 2)[0]
    assert np.any(params_of(moved) != params_of(one.init(seed_key(0))))
    for other in others:
        np.testing.assert_array_equal(params_of(moved), params_of(run(other, 2)[0]))


def spaces_of_all_heads():
    s = gymnasium.spaces
    return {
        "Discrete": s.Discrete(3, start=2),
        "MultiDiscrete": s.MultiDiscrete([2, 3]),
        "MultiBinary": s.MultiBinary(4),
        "Box of whole numbers": s.Box(0, 3, (2,), np.int8),
        "Tuple": s.Tuple([s.Discrete(2), s.MultiBinary(2)]),
        "Dict": s.Dict({"a": s.Discrete(2), "b": s.MultiDiscrete([2, 2])}),
    }


@pytest.mark.parametrize("network", [esrl.mlp((8, 8), skip=True, dtype="int8"), esrl.gru(8, dtype="int8")])
@pytest.mark.parametrize("actions", spaces_of_all_heads())
def test_no_floating_point_operation_is_in_the_policys_program(network, actions):
    s = gymnasium.spaces
    observations = s.Dict({
        "x": s.Box(-9, 9, (3,), np.float32), "bits": s.MultiBinary(2),
        "kind": s.Discrete(3), "bytes": s.Box(0, 255, (2, 2), np.uint8),
    })  # fmt: skip
    policy = bind(network, observations, spaces_of_all_heads()[actions], squash="clip", integer=True)
    params = policy.init(seed_key(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), policy.observation)
    seen = integer_statistics.quantized(None, zeros, policy.normalizable)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"int8"}
    assert seen["x"].dtype == jnp.int8 and seen["bytes"].dtype == jnp.int8

    def act(params, seen, carry):
        (output, _), carry = policy.apply(params, seen, carry)
        return policy.head.mode(output), output, carry

    assert float_operation(jax.make_jaxpr(act)(params, seen, policy.carry).jaxpr) == ""
    output = act(params, seen, policy.carry)[1]
    assert output.dtype == jnp.int16


def test_a_box_action_is_an_integer_until_it_meets_the_bounds():
    policy = bind(TINY, Walk.observation_space, Target.action_space, squash="clip", integer=True)
    program = jax.make_jaxpr(policy.apply)(policy.init(seed_key(0)), jnp.zeros(1, jnp.int8), ())
    assert float_operation(program.jaxpr) == ""
    for raw, unit in ((0, 0.0), (128, 0.5), (256, 1.0), (9999, 1.0), (-300, -1.0)):
        space = Target.action_space
        wanted = (space.high + space.low) / 2 + unit * (space.high - space.low) / 2
        np.testing.assert_array_equal(policy.head.action(jnp.full(space.shape, raw, jnp.int16).ravel()), wanted)


def test_the_forward_of_a_population_has_no_floats_and_no_members_matrix():
    agent = esrl.eggroll_int8(Walk(), esrl.mlp((24, 40), dtype="int8"), population=8)
    config = agent.config
    params = agent.policy.init(seed_key(0))
    eps = integer_noise.sample(seed_key(0), config.leaves, jnp.arange(4, dtype=jnp.uint32))
    jaxpr = jax.make_jaxpr(config.forward)(params, eps, jnp.array([1, -1], jnp.int32), jnp.zeros((8, 1), jnp.int8), ())
    assert float_operation(jaxpr.jaxpr) == ""
    m, n = 25, 40  # of the hidden layer, with its row of biases
    assert (m, n) in [leaf.matrix_shape for leaf in config.leaves if leaf.rank]
    shapes = [v.aval.shape for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars]
    assert not [shape for shape in shapes if {m, n} <= set(shape)]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (esrl.mlp((8,), "tanh"), "parameter Dense_0/bias is float32"),
        (
            esrl.network(lambda w, x: jnp.tanh((x @ w).astype(jnp.float32)), params=jnp.ones((1, 2), jnp.int8)),
            "operation .*float32",
        ),
    ],
)
def test_a_network_that_cannot_be_integer_is_refused_by_what_is_in_it(network, words):
    with pytest.raises(EsrlError, match=f"cannot be integer: its {words}") as error:
        esrl.eggroll_int8(Walk(), network, population=4)
    assert "\n" not in str(error.value)


def test_other_refusals():
    with pytest.raises(EsrlError, match="eggroll_int8 trains int8"):
        esrl.eggroll(Walk(), TINY, population=4)
    with pytest.raises(EsrlError, match=r"'tanh' takes floating point.*'saturate' or 'relu'"):
        esrl.mlp((8,), "tanh", dtype="int8")
    with pytest.raises(EsrlError, match="even number; use 6"):
        esrl.eggroll_int8(Walk(), TINY, population=5)
    with pytest.raises(EsrlError, match=r"noise_table is 3, but a member takes"):
        esrl.eggroll_int8(Walk(), TINY, population=4, noise_table=3)
    with pytest.raises(EsrlError, match="group_pairs is 3"):
        esrl.eggroll_int8(Walk(), TINY, population=8, group_pairs=3)


# ---- laws of a generation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shaping", "group"), [("sign", 1), ("z_score", 4)])
def test_equal_fitness_moves_nothing(shaping, group):
    agent = esrl.eggroll_int8(Constant(), TINY, population=16, shaping=shaping, group_pairs=group, quantile=1.0)
    start = agent.init(seed_key(0))
    after, metrics = agent.step(start)
    np.testing.assert_array_equal(params_of(start), params_of(after))
    assert metrics["moved"] == 0 and metrics["tied"] == 1


def played(devices, chunk, **options):
    mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
    agent = esrl.eggroll_int8(
        Walk(), TINY, population=32, mesh=mesh, chunk_pairs=chunk, quantile=0.9, averaging_shift=1, **options
    )
    state, _ = run(agent, 3, seed=3)
    return [np.asarray(x) for x in jax.tree.leaves((state.params, state.average, state.moments))]


@pytest.mark.parametrize(
    "options",
    [
        {"shaping": "z_score", "group_pairs": 8},
        {"noise_table": 4096, "noise_reuse": 2, "group_pairs": 4},
        {"momentum_shift": 2},
    ],
)
def test_chunks_and_devices_change_nothing_bit_for_bit(options):
    whole = played(1, 16, **options)
    for devices, chunk in [(1, 3), (2, 8), (4, 1)]:
        for one, other in zip(whole, played(devices, chunk, **options), strict=True):
            np.testing.assert_array_equal(one, other)


def test_numbers_do_not_depend_on_the_version_of_jax():
    """Frozen on purpose, as a promise between versions: what a key draws, and what a small run learns."""
    numbers = integer_noise.table(seed_key(7), 8)
    assert numbers.tolist() == FROZEN_NUMBERS
    state, _ = run(esrl.eggroll_int8(Walk(), TINY, population=8, quantile=0.9), 3)
    assert int(np.sum(params_of(state).astype(int) * np.arange(params_of(state).size))) == FROZEN_RUN


FROZEN_NUMBERS = [-15, -1, -9, -12, -7, 5, -5, 0]
FROZEN_RUN = 766


def test_chance_moves_as_many_weights_as_the_quantile_says():
    leaves = (Leaf("w", (40, 40), (0,), "used by dot_general", rank=1), Leaf("b", (400,), None, "not a matrix"))
    f = jnp.where(jax.random.bernoulli(seed_key(1), shape=(512,)), 1, -1).astype(jnp.int32)
    eps = integer_noise.sample(seed_key(0), leaves, jnp.arange(512, dtype=jnp.uint32))
    for quantile in (0.5, 0.1):
        first, _ = integer_es.schedule(quantile, 0.0)
        for scores in (f, 5 * f):
            sums = integer_noise.weighted_sum(scores, eps, leaves)
            for s, leaf in zip(sums, leaves, strict=True):
                moved = float(
                    jnp.mean(jnp.abs(s) > integer_es.least_vote(jnp.int32(first), jnp.sum(scores * scores), leaf))
                )
                assert abs(moved - quantile) < 4 * np.sqrt(quantile / leaf.shape[0] / (10 if leaf.rank else 1)) + 0.02


def test_momentum_sums_the_votes_of_generations_and_what_chance_would_make_of_them():
    agent = esrl.eggroll_int8(Walk(), TINY, population=16, quantile=0.9, momentum_shift=3)
    state = agent.init(seed_key(0))
    votes = jax.jit(partial(integer_es.votes, agent.config))
    sums, chance = [np.zeros(leaf.shape) for leaf in agent.config.leaves], 0.0
    for _ in range(20):
        experience = agent.rollout(state)
        scores = integer_es.signs(experience.fitness)
        new = votes(state, scores)
        sums = [old * 7 / 8 + np.asarray(vote) for old, vote in zip(sums, new, strict=True)]
        chance = chance * 49 / 64 + float(jnp.sum(scores * scores))
        state, _ = agent.update(state, experience)
        for one, other in zip(sums, state.votes, strict=True):
            assert np.abs(one - np.asarray(other)).max() <= 8  # what a shift loses in a generation, eight times
        assert abs(chance - int(state.chance)) <= 8
    with pytest.raises(EsrlError, match=r"votes of more than .* or a smaller momentum_shift"):
        esrl.eggroll_int8(Walk(), TINY, population=100_000, momentum_shift=8)


def test_the_quantile_decays_as_it_says():
    agent = esrl.eggroll_int8(Walk(), TINY, population=8, quantile=0.5, quantile_decay=0.25)
    for generation in (0, 4, 40, 400):
        z = float(integer_es.threshold_z(agent.config, jnp.uint32(generation))) / 256
        wanted = integer_es.NormalDist().inv_cdf(1 - 0.5 / (1 + 0.25 * generation) / 2)
        assert abs(z - wanted) < 1 / 256


def test_z_scores_are_those_of_floats_nearly():
    fitness = np.random.default_rng(0).normal(size=(4096, 2)).astype(np.float32)
    far = fitness[:, 0] - fitness[:, 1]
    for scale in (1e-3, 1.0, 3e5):
        found = np.asarray(integer_es.z_scores(4096)(jnp.asarray(fitness * np.float32(scale)))) / 8
        assert np.abs(found - far / far.std()).max() < 0.25
    broken = jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]])
    assert integer_es.z_scores(1)(broken).tolist() == [0, -6]
    assert integer_es.signs(broken).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("env", "network", "options", "best"),
    [
        (ActionDependsOnObservation(), esrl.mlp((8,), dtype="int8"), {}, 0.95),
        (Target(), TINY, {"shaping": "sign"}, -0.1),
        (ChoiceAndTarget(), TINY, {"sigma_shift": 1}, -0.9),
        (Memory(), esrl.gru(8, dtype="int8"), {"sigma_shift": 1}, 0.95),
    ],
)
def test_probes_are_solved(env, network, options, best):
    agent = esrl.eggroll_int8(env, network, population=128, quantile=0.5, quantile_decay=0.05, **options)
    state, _ = run(agent, 60)
    assert esrl.evaluate(agent, state, episodes=64).return_mean > best


def test_a_member_that_is_not_finite_never_reaches_the_weights():
    agent = esrl.eggroll_int8(Broken(), TINY, population=16, quantile=1.0)
    state, metrics = run(agent, 2)
    assert metrics["nonfinite"] > 0
    assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(state._replace(key=())))


def test_resuming_is_never_having_stopped(tmp_path):
    agent = esrl.eggroll_int8(Walk(), TINY, population=16, noise_table=1024, momentum_shift=3)
    whole = esrl.train(agent, generations=4, num_evals=0, out=tmp_path / "whole")
    esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "part")
    again = esrl.train(agent, generations=4, num_evals=0, out=tmp_path / "part", resume=True)
    for one, other in zip(jax.tree.leaves(whole.state.params), jax.tree.leaves(again.state.params), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded = esrl.load(tmp_path / "part")
    assert loaded.agent.name == "eggroll_int8" and "int8" in (tmp_path / "part" / "recipe.toml").read_text()
    assert "rank 1" in esrl.describe(agent) or "dense" in esrl.describe(agent)


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_what_was_seen():
    rng = np.random.default_rng(0)
    scales, means = np.array([1e-3, 1.0, 3e4]), np.array([5.0, -2.0, 1e5])
    moments = integer_statistics.init(jnp.zeros(3), True, 10_000)
    for _ in range(12):
        sums = integer_statistics.zero_sums(moments)
        for _ in range(10):
            x = jnp.asarray(rng.normal(size=(1000, 3)) * scales + means, jnp.float32)
            sums = integer_statistics.accumulate(sums, moments, x, jnp.arange(1000) < 900)
        assert int(sums.seen) == 9000
        moments = integer_statistics.merge(moments, sums)
    x = jnp.asarray(rng.normal(size=(4000, 3)) * scales + means, jnp.float32)
    q = np.asarray(jax.vmap(lambda row: integer_statistics.quantized(moments, row, True))(x), np.float64)
    assert q.dtype and np.abs(q.mean(0)).max() < 6 and np.abs(q.std(0) / 32 - 1).max() < 0.2
    odd = integer_statistics.quantized(moments, jnp.array([jnp.nan, jnp.inf, -jnp.inf]), True)
    assert odd.tolist() == [0, 127, -127]
