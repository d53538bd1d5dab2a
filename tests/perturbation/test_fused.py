"""The fused kernel, interpreted: equal to the path without it in any network, lowered for CUDA, chosen well."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrl
from esrl.core.types import EsrlError, seed_key
from esrl.perturbation import fastest, forward, fused, noise
from esrl.perturbation.classify import classify

P = 5
SIGMAS = (0.1, -0.1)


class Layers(nn.Module):
    """Layers of any widths; with a LayerNorm of its own scale and bias, or none; and an activation by name."""

    widths: tuple
    activation: str
    layernorm: bool
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.Dense(width, dtype=self.dtype, param_dtype=self.dtype)(x)
            x = nn.LayerNorm(dtype=self.dtype, param_dtype=self.dtype)(x) if self.layernorm else x
            x = getattr(nn, self.activation)(x) if self.activation else x
        return x


class Residual(nn.Module):
    """What a kernel takes in part: a sum with what came in, a result that is used twice, a softmax, a scan."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(24)(x)
        y = y + nn.tanh(nn.Dense(24)(nn.silu(y)))
        y = jax.nn.softmax(nn.Dense(20)(y))
        carry, _ = nn.RNN(nn.SimpleCell(18), return_carry=True)(jnp.stack([y, 2 * y]))
        return nn.gelu(nn.Dense(17)(carry))


def drawn(module, inputs, rank, episodes=1, dtype=jnp.float32, kind=("normal", "float32")):
    """A population's forward pass, not yet traced, and its arguments."""
    params = module.init(seed_key(0), jnp.ones(inputs, dtype))
    params = jax.tree.map(lambda w: w + jnp.asarray(0.1, w.dtype), params)  # no bias is zero
    space = noise.low_rank(rank, None, *kind)
    leaves = space.plan(classify(module.apply, params, jnp.ones(inputs, dtype)))
    eps = space.sample(seed_key(1), leaves, jnp.arange(P))
    x = jax.random.normal(seed_key(2), (P * 2 * episodes, inputs), dtype)
    return forward.population(module.apply, leaves), (params, eps, jnp.array(SIGMAS), x)


def kernels(run, given):
    """How many kernels a forward pass calls on one platform: "always" has one for CUDA, and the same interpreted."""
    number = str(jax.make_jaxpr(run)(*given)).count("pallas_call[")
    return number // 2 if fused.mode() == "always" else number


def both(monkeypatch, run, given):
    """The results without the kernel and with it, and how many kernels there were."""
    found = []
    for mode in ("never", "always"):
        monkeypatch.setenv("ESRL_FUSED", mode)
        called = lambda *given: run(*given)  # noqa: E731  a new function, so that nothing traced is used again
        found.append((np.asarray(jax.jit(called)(*given), np.float32), kernels(called, given)))
    (plain, none), (result, number) = found
    assert none == 0
    return plain, result, number


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(
    ("widths", "activation", "layernorm", "rank", "episodes"),
    [
        ((33, 40), "relu", True, 1, 1),  # the paper's, and widths that fill no block
        ((150,), "tanh", False, 2, 1),  # several blocks of columns
        ((64,), "", True, 4, 2),
        ((24,), "tanh", True, 2, 4),
        ((48, 17), "relu", False, 1, 1),
        ((20,), "", False, 4, 64),  # a pair has more rows than a block
    ],
)
def test_the_kernel_equals_the_path_without_it(monkeypatch, widths, activation, layernorm, rank, episodes):
    run, given = drawn(Layers(widths, activation, layernorm), 37, rank, episodes)
    plain, result, number = both(monkeypatch, run, given)
    assert number == len(widths)
    np.testing.assert_allclose(result, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("lenient")
def test_what_cannot_be_fused_stays_as_it_is(monkeypatch):
    plain, result, number = both(monkeypatch, *drawn(Residual(), 30, 1))
    assert number >= 4
    np.testing.assert_allclose(result, plain, rtol=1e-5, atol=1e-5)
    # Three lanes of a sign fill no block of rows: XLA keeps them.
    assert both(monkeypatch, *drawn(Layers((20,), "tanh", False), 30, 1, episodes=3))[2] == 0


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("kind", [("normal", "float32"), ("rademacher", "int8")], ids="-".join)
def test_a_kernel_in_bfloat16_rounds_as_its_type_does(monkeypatch, kind):
    dtype = jnp.bfloat16
    plain, result, number = both(monkeypatch, *drawn(Layers((33,), "tanh", True, dtype), 40, 2, 2, dtype, kind))
    assert number == 1
    np.testing.assert_allclose(result, plain, atol=4 * float(jnp.finfo(dtype).eps))


@pytest.mark.usefixtures("lenient")
def test_a_kernel_for_each_seed_of_a_batch(monkeypatch):
    run, (params, *given) = drawn(Layers((20,), "tanh", False), 30, 1)
    many = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)
    plain, result, _ = both(monkeypatch, jax.vmap(run, in_axes=(0, None, None, None)), (many, *given))
    np.testing.assert_allclose(result, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "elu", "silu", "sigmoid", "softplus", "log_softmax"])
def test_the_kernel_lowers_to_triton_without_a_gpu(monkeypatch, activation):
    monkeypatch.setenv("ESRL_FUSED", "always")
    run, given = drawn(Layers((40, 200), activation, True), 37, 2)
    lowered = jax.jit(run).trace(*given).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 2


def test_a_generation_with_kernels_is_the_same_to_rounding(monkeypatch):
    states = []
    for mode in ("never", "always"):
        monkeypatch.setenv("ESRL_FUSED", mode)
        agent = esrl.eggroll("gymnax/CartPole-v1?max_episode_steps=3", esrl.mlp((20,)), population=8, rank=1)
        states.append(agent.step(agent.init(jax.random.key(0)))[0].params)
    for plain, kernel in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(kernel, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("plain_seconds", "used"), [(1.0, 1), (0.001, 0)])
@pytest.mark.usefixtures("lenient")
def test_a_measurement_chooses_once_for_a_shape(monkeypatch, plain_seconds, used):
    """On a machine that says it has a GPU, with times that are made up: what is faster is taken, and remembered."""
    monkeypatch.setattr(fastest, "_known", {})
    asked = []

    def seconds(run, given):
        kernel = "pallas_call" in str(jax.make_jaxpr(run)(*given))
        asked.append(kernel)
        return 0.5 if kernel else plain_seconds

    monkeypatch.setattr(fastest, "seconds", seconds)
    monkeypatch.setattr(fused, "considered", lambda: True)
    run, given = drawn(Layers((20, 20), "tanh", False), 20, 1)
    assert kernels(run, given) == 2 * used  # both layers have one shape
    number = len(asked)
    assert any(asked) and not all(asked)
    assert kernels(lambda *given: run(*given), given) == 2 * used and len(asked) == number


def test_a_way_that_fails_is_left_out_and_a_tie_goes_to_the_first(monkeypatch):
    monkeypatch.setattr(fastest, "_known", {})
    monkeypatch.setattr(fastest, "seconds", lambda run, given: 1.0)

    def broken(x):
        raise ValueError("too little memory on the chip")

    ways = {"xla": lambda x: x + 1, "broken": broken, "kernel": lambda x: 1 + x}
    assert fastest.fastest(ways, [jnp.ones(3)], "kind") == "xla"


def test_a_cpu_takes_no_kernel_unless_told_and_a_wrong_word_is_refused(monkeypatch):
    monkeypatch.delenv("ESRL_FUSED", raising=False)
    assert not fused.considered()
    monkeypatch.setenv("ESRL_FUSED", "maybe")
    with pytest.raises(EsrlError, match='must be "auto", "always" or "never"'):
        fused.considered()
