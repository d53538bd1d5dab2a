"""Arguments at the edge: any value of any argument is taken as the plain value that it means, or is said by name."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from probes import Walk

import esrl
from esrl import EsrlError
from esrl.core.options import arguments

TINY = esrl.mlp((), "tanh")
TINY_INT8 = esrl.mlp((), dtype="int8")
SMALL = {"num_envs": 2, "num_steps": 4, "num_minibatches": 2}
AGENTS = {
    "eggroll": (esrl.eggroll, {"population": 4}),
    "open_es": (esrl.open_es, {"population": 4}),
    "es": (esrl.es, {"population": 4}),
    "eggroll_int8": (esrl.eggroll_int8, {"population": 4}),
    "ppo": (esrl.ppo, SMALL),
    "random": (esrl.random, {"population": 4}),
}
NUMBERS = some.one_of(
    some.integers(-(10**30), 10**30), some.integers(-2, 9), some.floats(), some.sampled_from([0.5, 1e-60, 10**400])
)
SCALARS = NUMBERS.flatmap(
    lambda x: some.sampled_from([x, np.float64(float(min(x, 1e300))), np.float32(0.5), np.int64(4), np.array(0.25)])
)
OTHERS = some.sampled_from([
    None, True, np.bool_(False), "x", "4", np.str_("adam"), [4], [], (2, 3), {}, b"4", 1j, object(), Walk,
    np.array([1.0, 2.0]), np.array([3]), optax.adam(1e-2), optax.adam, optax.lbfgs(),
    optax.linear_schedule(1.0, 0.0, 9), float, lambda: 1, lambda generation: "x",
])  # fmt: skip
VALUES = some.one_of(SCALARS, OTHERS)
PLAIN = (bool, int, float, str)


def accepted_or_said(name, call):
    """The result of a call, or None where one line that names the option was said."""
    try:
        return call()
    except EsrlError as error:
        assert name in str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize("agent", AGENTS)
@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(data=some.data())
def test_an_option_is_plain_or_said(agent, data):
    make, small = AGENTS[agent]
    options = {n: o for n, o in arguments(make).items() if n not in ("env", "policy")}
    name = data.draw(some.sampled_from(sorted(options)))
    value = data.draw(VALUES)
    network = TINY_INT8 if agent == "eggroll_int8" else TINY
    made = accepted_or_said(name, lambda: make(Walk(), network, **{**small, name: value}))
    kept = made and made.options.get(name)
    assert kept is None or type(kept) in PLAIN or kept is value


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(make=some.sampled_from([esrl.mlp, esrl.gru, esrl.cnn]), data=some.data())
def test_a_network_is_plain_or_said(make, data):
    name, value = data.draw(some.sampled_from(sorted(arguments(make)))), data.draw(VALUES)
    made = accepted_or_said(name, lambda: make(**{name: value}))
    if made is not None:
        assert all(type(x) in PLAIN or all(type(part) is int for part in x) for x in made.spec.values())


@pytest.fixture(scope="module")
def agent():
    return esrl.eggroll(Walk(), TINY, population=4)


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(data=some.data())
def test_an_argument_of_a_run_is_plain_or_said(agent, data):
    names = [name for name in arguments(esrl.iterate) if name not in ("agent", "out", "resume")]
    name, value = data.draw(some.sampled_from(names)), data.draw(VALUES)
    run = accepted_or_said(name, lambda: esrl.iterate(agent, **{"generations": 1, name: value}))
    if run is not None:
        assert all(type(x) in PLAIN for k, x in run.recipe().items() if k not in ("policy", "options"))


def test_the_obvious_meaning_is_taken():
    assert esrl.mlp(64).spec == esrl.mlp((64,)).spec == esrl.mlp(np.array([64])).spec
    made = esrl.eggroll(Walk(), TINY, population=np.int64(4), sigma=jnp.float32(0.5), antithetic=np.bool_(True))
    always = {"optimizer": "clipup", "episodes_per_member": 2, "averaging": 0.97}
    assert made.options == {"population": 4, "sigma": 0.5, **always} and type(made.options["sigma"]) is float


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.eggroll_ac, esrl.ppo])
def test_an_optax_transformation_has_its_own_rate(make):
    small = {"population": 4} if make is esrl.eggroll else SMALL
    key = jax.random.key(0)
    assert make(Walk(), TINY, optimizer=optax.adam(1e-2), **small).init(key).learning_rate == 1
    assert make(Walk(), TINY, optimizer=optax.adam(1e-2), learning_rate=0.5, **small).init(key).learning_rate == 0.5


def test_a_schedule_of_ppo_multiplies_the_rate_of_the_state():
    agent = esrl.ppo(Walk(), TINY, learning_rate=optax.linear_schedule(0.5, 0.0, 2), **SMALL)
    state = agent.init(jax.random.key(0))
    rates = [float(agent.config.learning_rate(state._replace(generation=jnp.uint32(g)))) for g in range(3)]
    assert rates == [0.5, 0.25, 0.0]
    with pytest.raises(EsrlError, match="give one of them"):
        esrl.ppo(Walk(), TINY, learning_rate=lambda g: 0.1, anneal_steps=10, **SMALL)


def test_what_is_not_plain_is_custom_in_a_recipe(tmp_path):
    made = esrl.eggroll(Walk(), TINY, population=4, optimizer=optax.adam(1e-2), sigma=lambda g: 0.1)
    esrl.iterate(made, generations=np.int64(1), seed=np.int64(1), out=tmp_path / "run")
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert 'optimizer = "custom"' in text and 'sigma = "custom"' in text and "seed = 1" in text


def test_a_platform_without_a_device_is_said(monkeypatch):
    def none():
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(EsrlError, match="JAX has no device of the platform"):
        esrl.eggroll(Walk(), TINY, population=4)


def test_the_64_bit_mode_is_said():
    with jax.enable_x64(True), pytest.raises(EsrlError, match="64-bit mode"):
        esrl.eggroll(Walk(), TINY, population=4)


def test_a_forked_process_says_so(agent):
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and JAX warn of forks as such
        child = os.fork()
    if not child:
        try:
            agent.init(jax.random.key_data)  # looked at before its argument is
        except EsrlError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert "forked after JAX had been used" in os.read(reader, 1000).decode()
