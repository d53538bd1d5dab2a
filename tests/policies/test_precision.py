"""bfloat16: close to float32, summed in float32, and small perturbations are not lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from probes import ActionDependsOnObservation, Memory, Target

import esrl
from esrl import EsrlError
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.perturbation import forward as perturb
from esrl.perturbation import noise
from esrl.perturbation.classify import classify
from esrl.policies.precision import arithmetic

ES = {"population": 16, "sigma": 1.0}
PPO = {"num_envs": 8, "num_steps": 4, "num_minibatches": 2, "num_epochs": 1}
AGENTS = {
    "eggroll": (esrl.eggroll, ES),
    "signs": (esrl.eggroll, {**ES, "noise_distribution": "rademacher", "noise_dtype": "int8", "rank": 2}),
    "open_es": (esrl.open_es, ES),
    "ppo": (esrl.ppo, PPO),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Four fake devices compile several times longer."""
    monkeypatch.setattr(sharding, "default_mesh", lambda _: sharding.one_device())


class Picture(ActionDependsOnObservation):
    """The sign as the brightness of a picture of bytes, which no network sees as a float."""

    observation_space = spaces.Box(0, 255, (5, 5, 1), np.uint8)

    def reset(self, key):
        state, seen = super().reset(key)
        return state, self.shown(seen)

    def step(self, state, action, key):
        state, seen, *rest = super().step(state, action, key)
        return state, self.shown(seen), *rest

    def shown(self, seen):
        return jnp.full((5, 5, 1), jnp.where(seen[0] > 0, 200, 50)).astype(jnp.uint8)


NETWORKS = {
    "mlp": (Target, esrl.mlp((16,), "tanh")),
    "paper": (ActionDependsOnObservation, esrl.mlp((16, 16))),
    "gru": (Memory, esrl.gru(8)),
    "cnn": (Picture, esrl.cnn((4,), (8,), "tanh")),
}


def random_like(tree, key):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    draw = lambda k, x: (  # noqa: E731
        jax.random.normal(k, x.shape) if floats(x) else jax.random.randint(k, x.shape, 0, 200).astype(x.dtype)
    )
    return structure.unflatten([draw(k, x) for k, x in zip(keys, leaves, strict=False)])


CASES = [
    (agent, network) for agent in AGENTS for network in (NETWORKS if agent in ("eggroll", "ppo") else ("mlp", "cnn"))
]


@pytest.mark.parametrize(("name", "network"), CASES)
def test_agents_train_with_parameters_and_optimizer_in_float32(name, network):
    make, options = AGENTS[name]
    env, net = NETWORKS[network]
    agent = make(env(), net, precision="bfloat16", **options)
    state = agent.init(seed_key(0))
    norms = []
    for _ in range(2):
        state, metrics = agent.step(state)
        norms.append(float(metrics["grad_norm"]))
    kept = jax.tree.leaves((state.params, state.opt_state))
    assert {x.dtype for x in kept if jnp.issubdtype(x.dtype, jnp.floating)} == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(x).all() for x in kept) and max(norms) > 0
    low, high = agent, make(env(), net, **options)
    obs = random_like(agent.policy.observation, seed_key(3))
    carry = random_like(agent.policy.carry, seed_key(4))
    params = state.params["actor"] if name == "ppo" else state.params
    got, want = (a.policy.apply(params, obs, carry) for a in (low, high))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-2, rtol=2e-2)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


@pytest.mark.parametrize("network", ["mlp", "gru", "cnn"])
def test_gradients_are_close_to_those_of_float32(network):
    env, net = NETWORKS[network]

    def gradient(precision):
        nets = esrl.ppo(env(), net, **PPO, precision=precision).config.nets
        obs = random_like(nets.policy.observation, seed_key(3))
        value = lambda p: nets.apply(p, obs, nets.carry)[0].value  # noqa: E731
        out = lambda p: value(p) + jnp.sum(nets.apply(p, obs, nets.carry)[0].output ** 2)  # noqa: E731
        return jax.jit(jax.grad(out))(nets.init(seed_key(0)))

    low, high = (jax.tree.leaves(gradient(p)) for p in ("bfloat16", "float32"))
    assert {x.dtype for x in low} == {jnp.dtype(jnp.float32)}
    flat, wanted = (np.concatenate([np.ravel(x) for x in xs]) for xs in (low, high))
    assert np.linalg.norm(flat - wanted) < 3e-2 * np.linalg.norm(wanted)


def test_all_products_have_operands_of_16_bits():
    """Those of an ES generation are summed in float32; PPO's backward pass has none with operands of 32 bits either."""
    env, net = NETWORKS["cnn"]
    for name, (make, options) in AGENTS.items():
        agent = make(env(), net, precision="bfloat16", **options)
        state = jax.eval_shape(agent.init, seed_key(0))
        run = agent.step if name == "ppo" else agent.rollout
        lines = jax.jit(run).lower(state).as_text().splitlines()
        products = [x for x in lines if "stablehlo.dot_general" in x or "stablehlo.convolution" in x]
        kinds = {x.rsplit(" : ", 1)[1] for x in products}
        assert len(products) > 3 and all("f32" not in kind.split("->")[0] for kind in kinds), kinds
        if name != "ppo":
            assert all(kind.split("->")[1].endswith("xf32>") for kind in kinds), kinds


@pytest.mark.parametrize("space", [noise.low_rank(1), noise.dense()], ids=["rank1", "dense"])
@pytest.mark.parametrize("own", [False, True], ids=["precision", "the network's own"])
def test_a_perturbation_below_the_resolution_of_a_weight_is_not_lost(own, space):
    """bfloat16 next to 1 has steps of 2^-8 below and 2^-7 above: 1 + 1e-3 is 1."""
    sigma, pairs, sides = 1e-3, 32, (64, 48)
    cast = lambda x: x.astype(jnp.bfloat16) if own else x  # noqa: E731
    fn = lambda p, x: (cast(x) @ cast(p["w"])).astype(jnp.float32)  # noqa: E731
    params = {"w": jnp.where(jax.random.bernoulli(seed_key(0), 0.5, sides), 1.0, -1.0)}
    xs = jax.random.normal(seed_key(1), (pairs, sides[0])).astype(jnp.bfloat16).astype(jnp.float32)
    leaves = space.plan(classify(fn, params, xs[0]))
    eps = space.sample(seed_key(2), leaves, jnp.arange(pairs))

    def difference(fn):
        out = jax.jit(perturb.population(fn, leaves))(
            params, eps, jnp.array([sigma, -sigma]), jnp.repeat(xs, 2, axis=0)
        ).reshape(pairs, 2, -1)
        return np.ravel(out[:, 0] - out[:, 1])

    want = difference(lambda p, x: x @ p["w"])
    got = difference(fn if own else arithmetic(fn, "bfloat16"))
    if own:  # the network rounds its own output: right on average
        assert abs(got @ want / (want @ want) - 1) < 0.25 and np.corrcoef(got, want)[0, 1] > 0.1
    else:
        assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
    members = space.perturb(params, eps, leaves, sigma)["w"].astype(jnp.bfloat16)
    assert np.mean(np.asarray(members != params["w"].astype(jnp.bfloat16)[None])) < 0.1  # what would be left of it


@pytest.mark.usefixtures("lenient")
def test_a_dense_perturbation_is_added_before_the_weight_is_rounded():
    """A bias used in bfloat16 is rounded once: what a step of its resolution adds up to is kept."""
    fn = lambda p, x: x + jnp.tanh(p["b"].astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    params = {"b": jnp.full(3, 1.0 + 2.0**-9)}  # half a step above 1: bfloat16 rounds it to 1
    leaves = noise.dense().plan(classify(fn, params, jnp.zeros(3)))
    eps = [noise.Dense(jnp.ones((1, 3), jnp.int8))]
    scale = jnp.array([2.0**-8, -(2.0**-8)])
    got = perturb.population(fn, leaves)(params, eps, scale, jnp.zeros((2, 3)))
    want = [fn({"b": params["b"] + s}, jnp.zeros(3)) for s in scale]
    np.testing.assert_array_equal(got, np.stack(want))


def test_scans_and_functions_with_their_own_derivative_keep_their_meaning():
    @jax.custom_vjp
    def seven(x):
        return x

    seven.defvjp(lambda x: (x, None), lambda _, g: (7 * g,))

    def fn(w, x):
        h, ys = jax.lax.scan(lambda h, _: (jax.nn.relu(h @ w), h.sum()), x, None, length=3)
        return seven(jnp.sum(h)) + jnp.sum(ys)

    w, x = 0.3 * jax.random.normal(seed_key(0), (6, 6)), jnp.arange(6.0)
    for wanted in (False, True):
        low = arithmetic(fn, "bfloat16", wanted)
        assert "bf16" in str(jax.make_jaxpr(low)(w, x))
        np.testing.assert_allclose(low(w, x), fn(w, x), rtol=2e-2)
        np.testing.assert_allclose(jax.grad(low)(w, x), jax.grad(fn)(w, x), rtol=5e-2, atol=0.2)


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.ppo])
def test_another_precision_is_refused_in_one_sentence(make):
    with pytest.raises(EsrlError, match="precision is 'float16'") as caught:
        make(Target(), precision="float16")
    assert "\n" not in str(caught.value)


def test_what_is_recomputed_stays_recomputed():
    """`jax.checkpoint` trades time for memory, in bfloat16 as well."""

    def network(weights, x):
        return jax.checkpoint(lambda w, y: jnp.tanh(y @ w))(weights, x).sum()

    low = arithmetic(network, "bfloat16", differentiated=True)
    weights, x = jnp.ones((3, 3)) / 3, jnp.ones((2, 3))
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(low)(weights, x).eqns]
    assert {"remat2", "checkpoint"} & set(names)
    np.testing.assert_allclose(jax.grad(low)(weights, x), jax.grad(network)(weights, x), rtol=2e-2)
