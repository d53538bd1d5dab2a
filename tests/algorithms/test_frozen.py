"""Frozen parameters: no noise is drawn for them, and the rest is trained as if they were constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ActionDependsOnObservation, Target

import esrl
from esrl import EsrlError
from esrl.core.types import seed_key

FIRST = jax.random.normal(seed_key(7), (1, 8))


def two_layers(params, observation):
    return jnp.tanh(jnp.ravel(observation)[None, :1] @ params["first"])[0] @ params["second"]


def starts(key):
    return {"first": FIRST, "second": 0.1 * jax.random.normal(key, (8, 1))}


def after(agent, generations=3):
    state = agent.init(seed_key(0))
    for _ in range(generations):
        state, _ = agent.step(state)
    return state


@pytest.mark.parametrize("optimizer", ["clipup", "adamw"])
def test_the_rest_is_trained_as_if_they_were_constants(optimizer):
    def objective(network):
        fn = lambda apply, key: -jnp.mean((apply(jnp.ones((4, 1))) - 2.0) ** 2)  # noqa: E731
        return esrl.objective(fn, network, inputs=1, outputs=1, name="two")

    constant = esrl.network(
        lambda params, x: two_layers({"first": FIRST, **params}, x), init=lambda key: {"second": starts(key)["second"]}
    )
    options = {"population": 16, "optimizer": optimizer, "weight_decay": 0.1}
    frozen = esrl.eggroll(objective(esrl.network(two_layers, init=starts)), frozen=("first",), **options)
    whole = esrl.eggroll(objective(constant), **options)
    assert frozen.plan.num_random == whole.plan.num_random and frozen.plan.num_params == 8
    one, other = after(frozen), after(whole)
    np.testing.assert_allclose(one.params["network"]["second"], other.params["network"]["second"], rtol=1e-5)
    np.testing.assert_array_equal(frozen.acts_by(one)["network"]["first"], FIRST)


def test_on_an_environment_they_stay_and_the_run_is_loaded_whole(tmp_path):
    agent = esrl.open_es(Target(), esrl.mlp((8,)), population=16, frozen=("Dense_0/*",))
    result = esrl.train(agent, generations=2, num_evals=1, out=tmp_path / "run")
    begun = agent.acts_by(agent.init(seed_key(0)))["network"]
    ended = agent.acts_by(result.state)["network"]
    for leaf, stays in (("Dense_0", True), ("Dense_1", False)):
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), begun[leaf], ended[leaf])
        assert any(jax.tree.leaves(moved)) is not stays
    loaded = esrl.load(tmp_path / "run", env=Target())
    np.testing.assert_array_equal(loaded.agent.acts_by(loaded.state)["network"]["Dense_0"]["kernel"],
                                  begun["Dense_0"]["kernel"])  # fmt: skip
    assert "none" in esrl.describe(agent) and "frozen" in esrl.describe(agent)


def test_ppo_trains_the_others_alone():
    agent = esrl.ppo(
        ActionDependsOnObservation(),
        esrl.mlp((8,)),
        num_envs=8,
        num_steps=4,
        num_minibatches=2,
        frozen=("actor/*/Dense_0/*",),
    )
    begun, ended = agent.init(seed_key(0)).params["actor"], after(agent, 2).params["actor"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), begun, ended)["network"]
    assert not any(jax.tree.leaves(moved["Dense_0"])) and any(jax.tree.leaves(moved["Dense_1"]))
    assert [leaf.path for leaf in agent.plan.frozen] == ["actor/network/Dense_0/bias", "actor/network/Dense_0/kernel"]


LAYERS = {"first": FIRST, "second": jax.random.normal(seed_key(8), (8, 6)) / 3, "third": jnp.full((6, 2), 0.1)}


def three_layers(params, observation):
    x = jnp.tanh(jnp.ravel(observation)[None, :1] @ params["first"])
    return (params["scale"] * jnp.tanh(x @ params["second"]) @ params["third"])[0, :2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("first", {}),
        ("second", {"feedback": False, "pairs": 2}),
        ("second", {"noise_space": "weights", "window": 4}),
        ("first", {"gradient": "backprop"}),
    ],
    ids=["aligned", "measured", "weights", "backprop"],
)
def test_an_actor_critics_rest_is_trained_as_if_they_were_constants(name, options):
    every = LAYERS | {"scale": jnp.ones(())}
    rest = {key: value for key, value in every.items() if key != name}
    whole = esrl.network(three_layers, params=every)
    constant = esrl.network(lambda params, x: three_layers({name: LAYERS[name], **params}, x), params=rest)
    sizes = {"num_envs": 8, "num_steps": 8, "num_minibatches": 2, "num_epochs": 2, "critic": esrl.mlp((4,))}
    frozen = esrl.eggroll_ac(ActionDependsOnObservation(), whole, frozen=(name,), **sizes, **options)
    other = esrl.eggroll_ac(ActionDependsOnObservation(), constant, **sizes, **options)
    one, two = after(frozen, 2), after(other, 2)
    moved = dict(one.params["actor"]["network"])
    np.testing.assert_array_equal(moved.pop(name), LAYERS[name])
    for key, value in two.params["actor"]["network"].items():
        np.testing.assert_allclose(moved[key], value, rtol=1e-4, atol=1e-6)
        assert np.any(moved[key] != every[key])
    assert [leaf.path for leaf in frozen.plan.frozen] == [f"actor/network/{name}"]
    norms = [agent.step(agent.init(seed_key(0)))[1]["grad_norm"] for agent in (frozen, other)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


def test_an_actor_critic_refuses_what_would_be_fitted_or_leaves_noise_nothing_to_move():
    for patterns, words in (("critic",), "fitted anew"), (("actor/network/*",), "noise has nothing to move"):
        with pytest.raises(EsrlError, match=words):
            esrl.eggroll_ac(ActionDependsOnObservation(), esrl.mlp((8,)), critic="ridge", frozen=patterns)


def test_the_norm_of_ppos_gradient_is_that_of_what_is_trained():
    env, sizes = ActionDependsOnObservation(), {"num_envs": 8, "num_steps": 4, "num_minibatches": 1, "num_epochs": 1}
    known = esrl.ppo(env, esrl.mlp((8,)), frozen=("critic/*",), value_coef=0.5, **sizes)
    other = esrl.ppo(env, esrl.mlp((8,)), frozen=("critic/*",), value_coef=50.0, **sizes)
    norms = [agent.step(agent.init(seed_key(0)))[1]["grad_norm"] for agent in (known, other)]
    assert norms[0] > 0
    np.testing.assert_allclose(*norms, rtol=1e-5)


@pytest.mark.parametrize("make", [esrl.eggroll, esrl.eggroll_ac, esrl.ppo])
@pytest.mark.parametrize(("patterns", "words"), [(("Dense_9/*",), "Dense_9"), (("*",), "nothing to train")])
def test_patterns_that_name_nothing_or_everything_are_refused_with_the_names(make, patterns, words):
    with pytest.raises(EsrlError) as raised:
        make(ActionDependsOnObservation(), esrl.mlp((8,)), frozen=patterns)
    assert words in str(raised.value) and "network/Dense_0/kernel" in str(raised.value)
