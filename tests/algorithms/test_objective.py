"""Laws of objectives: a score in the place of an episode changes nothing else."""

from functools import partial
from textwrap import dedent

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrl
from esrl import EsrlError
from esrl.cli.main import main
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.rollouts import scoring
from esrl.rollouts.scoring import Apply

TINY = esrl.mlp((8,), "tanh")
POINTS = jnp.linspace(-1.0, 1.0, 16)[:, None]


@esrl.objective(inputs=1, outputs=1)
def parabola(apply, key):
    """How well the network is x^2, at points that the key draws."""
    x = jax.random.uniform(key, (8, 1), minval=-1.0)
    return -jnp.mean((apply(x) - x**2) ** 2)


class Reader(nn.Module):
    """A lookup, a convolution, and a memory."""

    @nn.compact
    def __call__(self, carry, byte):
        x = nn.Embed(8, 6)(byte)
        x = nn.Conv(4, (3,))(x[:, None]).reshape(-1)
        carry, x = nn.GRUCell(5)(carry, x)
        return carry, nn.Dense(8)(x)


def next_byte(apply, key):
    """Calls the network before a scan, and in it."""
    text = jax.random.randint(key, (7, 2), 0, 8)
    out, carry = apply(text[0], apply.start(2))

    def step(now, seen):
        (out, carry), right = now, jax.nn.one_hot(seen, 8)
        score = jnp.mean(jnp.sum(jax.nn.log_softmax(out) * right, axis=-1))
        return apply(seen, carry), score

    return jnp.mean(jax.lax.scan(step, (out, carry), text[1:])[1])


def fitness_of(agent):
    return np.asarray(agent.rollout(agent.init(seed_key(0))).fitness)


def trained(agent, generations=3):
    state = agent.init(seed_key(0))
    for _ in range(generations):
        state, _ = agent.step(state)
    return state


def same(one, other, rtol=0.0):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("shared", ["population", "pair"])
def test_the_fitness_of_a_member_is_the_score_of_its_own_weights(shared):
    objective = esrl.objective(next_byte, inputs=gymnasium.spaces.Discrete(8), outputs=8, shared=shared)
    network = esrl.network(Reader(), carry=jnp.zeros(5))
    agent = esrl.eggroll(objective, network, population=8, sigma=0.3, chunk_pairs=3, mesh=sharding.one_device())
    config, state = agent.config, agent.init(seed_key(0))
    assert sum(leaf.rank for leaf in config.leaves) >= 3
    from esrl.algorithms.es import noise_key, world_key, world_keys

    pairs = sharding.iota(4)
    eps = config.draw(noise_key(state), pairs)
    keys = world_keys(world_key(state), pairs * 0 if shared == "population" else pairs, 2, 2)
    wanted = np.zeros((4, 2))
    for s, sign in enumerate((1, -1)):
        members = config.noise.perturb(state.params, eps, config.leaves, sign * state.sigma)
        for p in range(4):
            params = jax.tree.map(lambda x, p=p: x[p], members)
            wanted[p, s] = np.mean([config.policy.apply(params, key, ())[0][0] for key in keys[p, s]])
    np.testing.assert_allclose(agent.rollout(state).fitness, wanted, rtol=1e-4)


def test_it_is_an_environment_of_one_step():
    class OneStep:
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        max_episode_steps = 1

        def reset(self, key):
            x = jax.random.normal(key, (3,))
            return x, x

        def step(self, state, action, key):
            return state, state, -jnp.sum((action - state[:2]) ** 2), jnp.bool_(True)

    def score(apply, key):
        x = jax.random.normal(jax.random.fold_in(key, 0), (3,))  # as an episode's world is drawn
        return -jnp.sum((apply(x) - x[:2]) ** 2)

    objective = esrl.objective(score, inputs=3, outputs=2, shared="pair")
    options = {"population": 16, "normalize_observations": False}
    one, other = (trained(esrl.eggroll(env, TINY, **options)) for env in (OneStep(), objective))
    same(one.params, other.params, 1e-5)
    assert int(one.env_steps) == int(other.env_steps) == 3 * 16 * 2


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.open_es])
def test_on_a_linear_objective_the_estimates_error_is_what_theory_says(make):
    m, n, pairs, runs = 4, 3, 16, 256
    wanted = np.asarray(jax.random.normal(seed_key(1), (m, n)))
    linear = esrl.objective(lambda apply, key: jnp.sum(wanted * apply(jnp.eye(m))), inputs=m, outputs=n, name="linear")
    network = esrl.network(lambda w, x: x @ w, params=jnp.zeros((m, n)))
    agent = make(
        linear, network, population=2 * pairs, shaping="none", optimizer="sgd", learning_rate=1.0, averaging=0.0,
        episodes_per_member=1, mesh=sharding.one_device(),
    )  # fmt: skip
    start = jax.vmap(agent.init)(jax.random.split(seed_key(2), runs))
    found = np.asarray(jax.vmap(agent.step)(start)[0].params["network"])
    error = np.mean(np.sum((found - wanted) ** 2, axis=(1, 2))) / np.sum(wanted**2)
    excess = 2 * (m + n + 1) if make is esrl.eggroll else 0
    np.testing.assert_allclose(np.mean(found, axis=0), wanted, atol=0.25)
    np.testing.assert_allclose(error, (m * n + 1 + excess) / pairs, rtol=0.2)


def test_chunks_and_devices_do_not_change_fitness():
    several = jax.sharding.Mesh(np.array(jax.devices()[:4]), (sharding.AXIS,))
    whole = fitness_of(esrl.eggroll(parabola, TINY, population=24, mesh=sharding.one_device()))
    for mesh, chunk in ((sharding.one_device(), 5), (several, 3), (several, 2)):
        agent = esrl.eggroll(parabola, TINY, population=24, mesh=mesh, chunk_pairs=chunk)
        np.testing.assert_allclose(fitness_of(agent), whole, rtol=1e-5)


def test_all_members_share_minibatches_unless_pairs_have_their_own():
    drawn = lambda apply, key: jax.random.uniform(key) + 0 * jnp.sum(apply(POINTS))  # noqa: E731
    for shared, different in (("population", 1), ("pair", 8)):
        objective = esrl.objective(drawn, inputs=1, outputs=1, shared=shared, name="drawn")
        fitness = fitness_of(esrl.eggroll(objective, TINY, population=16, episodes_per_member=1))
        np.testing.assert_array_equal(fitness[:, 0], fitness[:, 1])
        assert len(np.unique(fitness)) == different


def test_a_product_of_shared_inputs_has_no_copy_for_each_member():
    rows, width, members = 11, 13, 14
    data = jnp.ones((rows, width))
    objective = esrl.objective(lambda apply, key: jnp.mean(apply(data)), inputs=width, outputs=3, name="wide")
    agent = esrl.eggroll(objective, esrl.mlp(()), population=members, mesh=sharding.one_device(), chunk_pairs=7)
    text = agent.rollout.lower(jax.eval_shape(agent.init, seed_key(0))).as_text()
    assert f"tensor<{rows}x{width}xf32>" in text
    assert f"{members}x{rows}x{width}x" not in text and f"{members}x2x{rows}x{width}x" not in text


def test_held_out_scores_are_those_of_evaluate():
    objective = esrl.objective(
        parabola.fn, inputs=1, outputs=1, name="split", evaluate=lambda apply, key: jnp.sum(apply(POINTS) ** 2)
    )
    agent = esrl.eggroll(objective, TINY, population=16)
    state = agent.init(seed_key(0))
    found = esrl.evaluate(agent, state, 6)
    outputs = esrl.Trained(agent, state).predict(np.asarray(POINTS))
    np.testing.assert_allclose(found.returns, np.full(6, (outputs**2).sum()), rtol=1e-5)
    assert esrl.evaluate(esrl.eggroll(parabola, TINY, population=16), state, 6).return_std > 0


def test_a_resumed_run_ends_as_if_it_had_never_stopped(tmp_path):
    agent = esrl.eggroll(parabola, TINY, population=16)
    whole = esrl.train(agent, generations=4, num_evals=0).state
    esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "run")
    same(esrl.train(agent, generations=4, num_evals=0, out=tmp_path / "run", resume=True).state.params, whole.params)
    many = esrl.train_many(agent, [0, 1], generations=4, num_evals=1)
    same(many.state_of(0).params, whole.params, 1e-5)


FILE = """
    import flax.linen as nn
    import jax.numpy as jnp
    import esrl

    POINTS = jnp.linspace(-1.0, 1.0, 16)[:, None]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(jnp.tanh(nn.Dense(8)(x)))

    def score(apply, key):
        return -jnp.mean((apply(POINTS) - POINTS**2) ** 2)

    own = esrl.objective(score, Net(), inputs=1, outputs=1)

    def powers(power=2):
        return esrl.objective(
            lambda apply, key: -jnp.mean((apply(POINTS) - POINTS**power) ** 2), inputs=1, outputs=1, name="powers"
        )
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "scores.py").write_text(dedent(FILE))
    monkeypatch.chdir(tmp_path)
    return "scores.py"


def test_the_command_line_trains_what_a_file_scores(file, capsys):
    small = ["--population", "16", "--num-evals", "1"]
    assert main(["train", f"{file}:own", "--generations", "2", *small, "--out", "run"]) == 0
    assert "evaluations a generation" in capsys.readouterr().out
    assert main(["train", "--resume", "run", "--generations", "3"]) == 0
    loaded = esrl.load("run")
    assert int(loaded.state.generation) == 3 and loaded.predict(np.zeros(1, np.float32)).shape == (1,)
    assert (loaded.recipe.env, loaded.recipe.network) == (f"{file}:own", "objective")
    assert main(["evaluate", "run"]) == 0 and "held-out keys" in capsys.readouterr().out
    assert main(["describe", f"{file}:powers?power=3", "--frozen", "Dense_0/*"]) == 0
    assert "powers, an objective" in capsys.readouterr().out


def objective_of(fn, inputs=1, outputs=1, **given):
    return lambda: esrl.eggroll(esrl.objective(fn, inputs=inputs, outputs=outputs, name="bad", **given), TINY)


BAD = {
    "not pure": (objective_of(lambda apply, key: float(jnp.mean(apply(POINTS)))), "cannot be traced", "jax.numpy"),
    "numpy": (objective_of(lambda apply, key: np.mean(np.asarray(apply(POINTS)))), "cannot be traced", "jax.numpy"),
    "not a scalar": (objective_of(lambda apply, key: apply(POINTS)), "float32[16, 1]", "one number"),
    "nothing": (objective_of(lambda apply, key: None), "NoneType", "one number"),
    "other arguments": (objective_of(lambda apply: 0.0), "fn", "(apply, key)"),
    "inputs of no shape": (objective_of(parabola.fn, inputs="wide"), "inputs", "shape of one input"),
    "inputs of another shape": (objective_of(parabola.fn, inputs=3), "(8, 1)", "(3,)"),
    "shared by whom": (objective_of(parabola.fn, shared="all"), "shared", '"pair"'),
    "an option of steps": (lambda: esrl.eggroll(parabola, TINY, horizon=3), "no steps", "horizon"),
    "ppo": (lambda: esrl.ppo(parabola, TINY), "parabola", "no steps"),
    "eggroll_ac": (lambda: esrl.eggroll_ac(parabola, TINY), "parabola", "no steps"),
    "no sizes": (lambda: esrl.eggroll(lambda apply, key: 0.0, TINY), "@esrl.objective", "inputs"),
    "a memory": (
        lambda: esrl.eggroll(parabola, esrl.gru(4), population=16), "apply(inputs, carry)", "apply.start"
    ),
    "a film": (
        lambda: esrl.render(agent := esrl.eggroll(parabola, TINY), agent.init(seed_key(0)), "x"), "parabola", "draw"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_bad_input_is_one_sentence(case):
    call, *words = BAD[case]
    with pytest.raises(EsrlError) as raised:
        call()
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)


@pytest.mark.parametrize("shared", ["population", "pair"])
def test_integers_are_scored_too_and_devices_and_chunks_change_nothing(shared):
    objective = esrl.objective(next_byte, inputs=gymnasium.spaces.Discrete(8), outputs=8, shared=shared)
    network = esrl.gru(5, dtype="int8")
    ends = []
    for devices, chunk in ((1, 8), (2, 2)):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        agent = esrl.eggroll_int8(objective, network, population=16, mesh=mesh, chunk_pairs=chunk, quantile=0.9)
        ends.append(trained(agent, 2))
    same(ends[0].params, ends[1].params)
    begun = agent.init(seed_key(0))
    both = zip(*map(jax.tree.leaves, (begun.params, ends[0].params)), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in both)
    start = jax.tree.map(jnp.asarray, jax.device_get(begun.params))  # on one device
    assert int(ends[0].env_steps) == 2 * 16 and ends[0].moments is None
    # By hand: the network's outputs over 256 are what the score is of.
    fitness, keys = [], jax.random.split(seed_key(5), 4)
    for key in keys:

        def one(x, carry):
            (output, _), carry = agent.policy.apply(start, x, carry)
            return output.astype(jnp.float32) / 256, carry

        fitness.append(next_byte(Apply("by hand", one, jnp.int32(0), agent.policy.carry), key))
    scored = scoring.scored(agent.policy, objective)
    found = [scored.apply(start, key, ())[0][0] for key in keys]
    np.testing.assert_allclose(found, fitness, rtol=1e-6)


@pytest.mark.parametrize("agent", [esrl.eggroll, partial(esrl.eggroll_int8, policy=esrl.mlp((8,), dtype="int8"))])
def test_an_objective_without_one_finite_score_is_said_to_be_that(agent):
    nothing = esrl.objective(lambda apply, key: jnp.nan * jnp.mean(apply(POINTS)), inputs=1, outputs=1)
    with pytest.raises(EsrlError, match="generation 1 has not one finite score; the objective gives NaN"):
        esrl.train(agent(nothing, population=8), generations=2, num_evals=0)


def test_integers_learn_an_objective():
    agent = esrl.eggroll_int8(parabola, esrl.mlp((8,), dtype="int8"), population=128, sigma_shift=1)
    begun = agent.init(seed_key(0))
    before, after = (esrl.evaluate(agent, state, episodes=16).return_mean for state in (begun, trained(agent, 40)))
    assert after > before / 4
    assert not agent.in_force["normalize_observations"]
