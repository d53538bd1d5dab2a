"""The perturbed forward pass equals the dense one, for every kind of layer, and says what it cannot do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrl.core.types import seed_key
from esrl.perturbation import forward as perturb
from esrl.perturbation import noise
from esrl.perturbation.classify import classify

P, S, E = 3, 2, 2
L = P * S * E


class Everything(nn.Module):
    """Dense, LayerNorm, tied embedding, convolution, attention, and an RNN that scans."""

    @nn.compact
    def __call__(self, x, token, image):
        x = nn.relu(nn.LayerNorm()(nn.Dense(16)(x)))
        embed = nn.Embed(10, 12)
        picture = nn.relu(nn.Conv(6, (3, 3), strides=2)(image)).reshape(-1)
        x = nn.Dense(12)(jnp.concatenate([x, embed(token), picture]))
        carry, out = nn.RNN(nn.GRUCell(8), return_carry=True)(jnp.stack([x, 2 * x, -x]))
        out = nn.MultiHeadDotProductAttention(2, qkv_features=8)(out, out)
        return jnp.concatenate([embed.attend(nn.Dense(12)(out[-1])), carry])


def everything():
    module = Everything()
    one = (jnp.ones(5), jnp.int32(3), jnp.ones((6, 6, 2)))
    keys = jax.random.split(seed_key(1), 3)
    many = (
        jax.random.normal(keys[0], (L, 5)),
        jax.random.randint(keys[1], (L,), 0, 10),
        jax.random.normal(keys[2], (L, 6, 6, 2)),
    )
    return module.apply, module.init(seed_key(0), *one), one, many


def functional():
    """Weights on the left, transposed, of rank three, used twice, sliced by a scan, and looked up."""

    def fn(p, x):
        left = p["left"] @ x
        both = jnp.tanh(left) @ p["right"].T
        twice = p["twice"] @ jnp.tanh(p["twice"] @ both)
        heads = jnp.einsum("d,dhk->hk", twice, p["heads"])
        scanned = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), heads.reshape(-1), p["layers"])[0]
        held = jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["held"] + p["bias"]), h), scanned, None, length=3)[0]
        return held + jnp.sum(p["table"] ** 2) * p["scale"] + p["unused"][0, 0] * 0

    shapes = {
        "left": (6, 5), "right": (4, 6), "twice": (4, 4), "heads": (4, 2, 3), "layers": (2, 6, 6),
        "held": (6, 6), "bias": (6,), "table": (7, 6), "scale": (), "unused": (3, 3),
    }  # fmt: skip
    keys = jax.random.split(seed_key(0), len(shapes))
    params = {
        name: 0.5 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return fn, params, (jnp.ones(5),), (jax.random.normal(seed_key(1), (L, 5)),)


def nnx_mlp():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 16, rngs=rngs)
            self.last = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.gelu(self.first(x)))

    graph, params = nnx.split(Net(nnx.Rngs(0)))
    return (lambda p, x: nnx.merge(graph, p)(x)), params, (jnp.ones(5),), (jax.random.normal(seed_key(1), (L, 5)),)


@pytest.mark.parametrize("rank", [1, 2, 6])
@pytest.mark.parametrize("case", [everything, functional, nnx_mlp])
def test_low_rank_forward_equals_the_dense_forward(case, rank):
    check(case, noise.low_rank(rank))


@pytest.mark.parametrize("kind", [("normal", "bfloat16"), ("rademacher", "int8")], ids="-".join)
@pytest.mark.parametrize("space", [noise.dense, lambda *kind: noise.low_rank(2, None, *kind)], ids=["dense", "rank2"])
def test_noise_of_any_type_is_used_exactly(kind, space):
    check(functional, space(*kind))


def test_stored_signs_pass_every_kind_of_layer():
    check(everything, noise.low_rank(2, None, "rademacher", "int8"))


@pytest.mark.parametrize("case", [everything, functional])
def test_dense_forward_equals_one_network_for_each_member(case):
    check(case, noise.dense())


@pytest.mark.usefixtures("lenient")
def check(case, space):
    fn, params, one, many = case()
    leaves = space.plan(classify(fn, params, *one))
    eps = space.sample(seed_key(2), leaves, jnp.arange(P))
    sigma = 0.1
    got = jax.jit(perturb.population(fn, leaves))(params, eps, jnp.array([sigma, -sigma]), *many)

    def by_sign(x):
        return x.reshape(P, S, E, *x.shape[1:])

    for s, sign in enumerate([1, -1]):
        members = space.perturb(params, eps, leaves, sign * sigma)
        mine = [by_sign(x)[:, s] for x in many]
        want = jax.vmap(lambda p, *xs: jax.vmap(fn, in_axes=(None, *(0 for _ in xs)))(p, *xs))(members, *mine)
        np.testing.assert_allclose(by_sign(got)[:, s], want, rtol=2e-4, atol=2e-5)


def test_classification_names_what_is_low_rank_and_why_the_rest_is_not():
    fn, params, one, _ = functional()
    leaves = {leaf.path: leaf for leaf in classify(fn, params, *one)}
    low = {path for path, leaf in leaves.items() if leaf.row_axes is not None}
    assert low == {"left", "right", "twice", "heads", "held"}
    assert leaves["heads"].matrix_shape == (4, 6)
    assert "scan" in leaves["layers"].reason and "not a matrix" in leaves["bias"].reason
    assert "no low-rank rule" in leaves["table"].reason and "unused" in leaves
    fn, params, one, _ = everything()
    low = {leaf.path for leaf in classify(fn, params, *one) if leaf.row_axes is not None}
    assert {"params/Conv_0/kernel", "params/Embed_0/embedding", "params/GRUCell_0/hn/kernel"} <= low


def test_a_plan_that_the_network_cannot_keep_fails_loudly():
    """A low-rank weight is never made dense in silence."""
    fn, params, one, many = functional()
    leaves = list(noise.low_rank(1).plan(classify(fn, params, *one)))
    table = next(i for i, leaf in enumerate(leaves) if leaf.path == "table")
    leaves[table] = leaves[table]._replace(row_axes=(0,), rank=1)
    eps = noise.sample(seed_key(0), leaves, jnp.arange(P))
    with pytest.raises(AssertionError, match="classified as low-rank"):
        perturb.population(fn, leaves)(params, eps, jnp.array([0.1, -0.1]), *many)


def test_no_weight_matrix_for_each_member_is_ever_formed():
    """Not in the jaxpr of the forward, whatever the compiler does later."""
    module = nn.Dense(64)
    params = module.init(seed_key(0), jnp.ones(48))
    leaves = noise.low_rank(1).plan(classify(module.apply, params, jnp.ones(48)))
    eps = noise.sample(seed_key(1), leaves, jnp.arange(P))
    apply = perturb.population(module.apply, leaves)
    text = str(jax.make_jaxpr(apply)(params, eps, jnp.array([0.1, -0.1]), jnp.ones((L, 48))))
    for members in (P, P * S, L):
        assert f"[{members},48,64]" not in text and f"[{members},64,48]" not in text
