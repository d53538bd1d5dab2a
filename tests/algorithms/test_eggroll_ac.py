"""EGGROLL with credit for every step: its estimate against backpropagation, its laws, and the probe environments.

The oracles backpropagate. The training program does not, which one test shows.
"""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from probes import ActionDependsOnObservation, ChoiceAndTarget, Constant, Delayed, LaterReward, Target, Walk

import esrl
from esrl import EsrlError
from esrl.algorithms import node_perturbation
from esrl.core import sharding
from esrl.core.types import seed_key
from esrl.policies import running_statistics
from esrl.training.checkpoint import Checkpoints

ppo = importlib.import_module("esrl.algorithms.ppo")

TINY = esrl.mlp((7, 11), "tanh")
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


def samples_of(agent, state):
    """An iteration's samples, as the estimate gets them in a minibatch of all; the policy has moved since."""
    config, experience = agent.config, agent.rollout(state)
    rewards, _, _ = ppo.normalize_rewards(config, state, experience.trajectory)
    samples = ppo.make_samples(config, state, experience, rewards)
    return samples._replace(advantage=ppo.standardize(samples.advantage))


def moved(state, size=0.1):
    """A state with other parameters, so that ratios are not all 1."""
    shake = lambda x: x + size * jax.random.normal(seed_key(x.size), x.shape)  # noqa: E731
    return state._replace(params=jax.tree.map(shake, state.params))


def estimates(agent, state, samples, number):
    """Gradients of the actor by `number` draws of noise."""
    found = jax.jit(lambda key: agent.config.gradient(agent.config, state.params, state.memory, state, samples, key)[0])
    return [found(seed_key(i))["actor"] for i in range(number)]


def backpropagated(agent, state, samples):
    return ppo.backpropagated(agent.config, state.params, (), state, samples, seed_key(0))[0]


# ---- the estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [Walk, Target, ChoiceAndTarget], ids=lambda env: env.__name__)
@pytest.mark.parametrize("feedback", [False, True], ids=["", "feedback"])
def test_its_mean_is_the_gradient_of_the_surrogate(env, feedback):
    """Within Monte Carlo error, hidden layers too; with feedback of any quality when all of what it misses counts."""
    agent = esrl.eggroll_ac(env(), TINY, sigma=0.01, residual=1.0, feedback=feedback, entropy_coef=0.1, **SMALL)
    state, _ = run(agent, 2)
    state = moved(state)
    samples = samples_of(agent, agent.init(seed_key(3)))
    expected = backpropagated(agent, state, samples)["actor"]
    found = estimates(agent, state, samples, 200)
    for one, *draws in zip(*map(jax.tree.leaves, [expected, *found]), strict=True):
        draws = np.stack(draws)
        error = draws.std(0) / np.sqrt(len(draws))
        # Five standard errors: hundreds of weights are looked at. The rest is the surrogate's curvature and rounding.
        assert (np.abs(draws.mean(0) - one) < 5 * error + 0.01 * np.abs(one).max() + 1e-5).all()


def test_many_pairs_are_the_gradient_of_the_surrogate():
    agent = esrl.eggroll_ac(Walk(), TINY, sigma=0.01, pairs=5000, feedback=False, **SMALL)
    state = moved(agent.init(seed_key(0)))
    samples = jax.tree.map(lambda x: x[:32], samples_of(agent, agent.init(seed_key(3))))
    (found,) = estimates(agent, state, samples, 1)
    for own, other in zip(*map(jax.tree.leaves, [found, backpropagated(agent, state, samples)["actor"]]), strict=True):
        cosine = np.vdot(own, other) / (np.linalg.norm(own) * np.linalg.norm(other))
        assert cosine > 0.98


def test_the_output_layer_and_the_critic_have_their_exact_gradient():
    agent = esrl.eggroll_ac(ChoiceAndTarget(), esrl.mlp((7,), "tanh", skip=True), entropy_coef=0.1, **SMALL)
    state = moved(agent.init(seed_key(0)))
    samples = samples_of(agent, agent.init(seed_key(3)))
    expected = backpropagated(agent, state, samples)
    found = agent.config.gradient(agent.config, state.params, state.memory, state, samples, seed_key(1))[0]
    exact = [("actor", "log_std"), ("actor", "network", "Dense_1"), ("actor", "network", "Skip"), ("critic",)]
    for path in exact:
        own, other = found, expected
        for name in path:
            own, other = own[name], other[name]
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_feedback_learns_the_weights_behind_a_linear_hidden_layer():
    """Outputs follow such a unit as the output weights say."""
    params = {"first": jax.random.normal(seed_key(1), (1, 6)), "last": jax.random.normal(seed_key(2), (6, 2))}
    network = esrl.network(lambda params, seen: (seen @ params["first"]) @ params["last"], params=params)
    agent = esrl.eggroll_ac(Walk(), network, feedback_decay=0.9, optimizer="sgd", learning_rate=1e-9, **SMALL)
    state, metrics = run(agent, 20)
    (point,) = state.memory.feedback.follows
    found = node_perturbation.weights_of(state.memory.feedback, int(point))
    np.testing.assert_allclose(found, params["last"], atol=0.35)
    assert metrics["feedback_explains"] > 0.8


def test_equal_advantages_move_no_policy():
    agent = esrl.eggroll_ac(Constant(), TINY, **SMALL, normalize_rewards=False, gamma=0.0)
    state = agent.init(seed_key(0))
    samples = samples_of(agent, state)
    samples = samples._replace(advantage=ppo.standardize(jnp.ones_like(samples.advantage)))
    for gradient in estimates(agent, moved(state), samples, 2):
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(gradient))


# ---- no pass backwards ----------------------------------------------------------------------------------------------


def transposed_products(jaxpr, shape):
    """Products in a program that contract the second side of a matrix of this shape."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contract, _ = eqn.params["dimension_numbers"]
            found += sum(
                v.aval.shape == shape and tuple(dims) == (1,) for v, dims in zip(eqn.invars, contract, strict=True)
            )
        for value in eqn.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                found += transposed_products(inner, shape) if hasattr(inner, "eqns") else 0
    return found


@pytest.mark.parametrize("gradient", ["perturbation", "backprop"])
def test_the_training_program_has_no_transposed_product_of_the_policy(gradient):
    """The control has one, so this test would see it; the critic, of another shape, may."""
    critic = esrl.mlp((5, 6), "tanh")
    agent = esrl.eggroll_ac(Walk(), TINY, critic=critic, gradient=gradient, **SMALL)
    state = agent.init(seed_key(0))
    program = jax.make_jaxpr(partial(ppo.update, agent.config))(state, agent.rollout(state)).jaxpr
    assert (transposed_products(program, (7, 11)) > 0) == (gradient == "backprop")
    ridge = esrl.eggroll_ac(Walk(), TINY, critic="ridge", gradient=gradient, **SMALL)
    assert ridge.init(seed_key(0)).params["critic"]["w"].ndim == 1


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["separate", "ridge"])
def test_devices_do_not_change_what_is_learnt(critic, monkeypatch):
    found = []
    for devices in (1, 2):
        mesh = Mesh(np.array(jax.devices()[:devices]), (sharding.AXIS,))
        monkeypatch.setattr(sharding, "default_mesh", lambda _, mesh=mesh: mesh)
        found.append(params_of(run(esrl.eggroll_ac(Walk(), TINY, critic=critic, **SMALL), 2, seed=1)[0]))
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_not_finite_rewards_and_observations_never_reach_the_parameters():
    class Bad(Walk):
        def step(self, state, action, key):
            state, observation, reward, terminated = super().step(state, action, key)
            bad = observation[0] > 0.3
            return state, jnp.where(bad, jnp.nan, observation), jnp.where(bad, jnp.nan, reward), terminated

    for critic in ("separate", "ridge"):
        state, metrics = run(esrl.eggroll_ac(Bad(), TINY, critic=critic, **SMALL), 3)
        assert metrics["nonfinite"] > 0 and metrics["skipped_steps"] == 0
        kept = (state.params, state.opt_state, state.moments, state.memory)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


@pytest.mark.parametrize("critic", ["separate", "ridge", "policy_ridge"])
def test_resuming_equals_never_having_stopped(critic, tmp_path):
    agent = esrl.eggroll_ac(Walk(), TINY, critic=critic, **SMALL)
    straight, _ = run(agent, 4)
    state, _ = run(agent, 2)
    Checkpoints(tmp_path).save(state)
    state = Checkpoints(tmp_path).restore(agent.init(seed_key(9)))
    for _ in range(2):
        state, _ = agent.step(state)
    np.testing.assert_array_equal(params_of(straight), params_of(state))


def test_the_control_is_ppo():
    """With `gradient="backprop"` nothing is left of noise: the parameters are those of PPO."""
    given = {**SMALL, "learning_rate": 1e-3, "entropy_coef": 0.01}  # whose defaults are others
    own, _ = run(esrl.eggroll_ac(Walk(), TINY, gradient="backprop", **given), 2)
    other, _ = run(esrl.ppo(Walk(), TINY, **given), 2)
    np.testing.assert_array_equal(params_of(own), params_of(other))


def test_runs_with_other_hyperparameters_share_a_program():
    agent = esrl.eggroll_ac(Walk(), TINY, **SMALL)
    many = esrl.train_many(agent, seeds=[0, 1], hyperparams={"learning_rate": [1e-3, 1e-2]}, generations=2)
    assert np.isfinite(params_of(many.states)).all()


def test_what_trains_each_parameter_is_described():
    text = esrl.describe(esrl.eggroll_ac(Target(), esrl.mlp((7,), skip=True), critic="ridge", **SMALL))
    rows = {line.split()[0]: line for line in text.splitlines() if "/" in line}
    assert "noise at 7 units" in rows["actor/network/Dense_0/kernel"]
    assert all(
        "closed form" in rows[f"actor/{name}"] for name in ("network/Dense_1/bias", "network/Skip/kernel", "log_std")
    )
    assert "ridge regression" in rows["critic/w"]


# ---- the critic by regression ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["ridge", "policy_ridge"])
def test_ridge_learns_the_values_of_a_later_reward(critic):
    agent = esrl.eggroll_ac(
        LaterReward(), TINY, critic=critic, gamma=0.5, gae_lambda=1.0, normalize_rewards=False, **SMALL
    )
    state, metrics = run(agent, 20)
    seen = jax.vmap(partial(running_statistics.normalize, state.moments))(jnp.array([[0.0], [1.0]]))
    values = agent.config.value((state.params, None), seen, ((), ()))
    np.testing.assert_allclose(values, [0.5, 1.0], atol=0.05)
    assert metrics["explained_variance"] > 0.9


def test_the_features_of_the_policy_are_what_its_output_layer_sees():
    agent = esrl.eggroll_ac(Walk(), esrl.mlp((7, 5), "tanh", skip=True), critic="policy_ridge", **SMALL)
    params = agent.init(seed_key(0)).params
    seen, w = jnp.array([0.3]), params["actor"]["network"]
    hidden = jnp.tanh(seen @ w["Dense_0"]["kernel"] + w["Dense_0"]["bias"])
    hidden = jnp.tanh(hidden @ w["Dense_1"]["kernel"] + w["Dense_1"]["bias"])
    phi = jnp.concatenate([jnp.ones(1), seen, hidden, seen])  # the last one by the skip
    assert params["critic"]["w"].shape == phi.shape
    known = {**params, "critic": {"w": jnp.arange(phi.size, dtype=jnp.float32)}}
    value = agent.config.nets.apply(known, seen, agent.config.nets.carry)[0].value
    np.testing.assert_allclose(value, known["critic"]["w"] @ phi, rtol=1e-5)


# ---- learning -------------------------------------------------------------------------------------------------------


def hard(params, seen):
    """A layer of threshold units, which have no derivative."""
    hidden = (seen @ params["first"] + params["bias"] > 0).astype(jnp.float32)
    return hidden @ params["last"]


HARD = esrl.network(
    hard,
    init=lambda key: {
        "first": jax.random.normal(key, (1, 16)),
        "bias": jax.random.normal(jax.random.fold_in(key, 1), (16,)),
        "last": jnp.zeros((16, 2)),
    },
)
LEARN = {
    "action depends on observation": (ActionDependsOnObservation, TINY, 1.0, {}),
    "hard thresholds": (ActionDependsOnObservation, HARD, 1.0, {"sigma": 0.5}),
    "delayed reward": (Delayed, TINY, 1.0, {"gamma": 0.9}),
    "delayed reward, ridge": (Delayed, TINY, 1.0, {"gamma": 0.9, "critic": "ridge"}),
    "measured alone": (ActionDependsOnObservation, TINY, 1.0, {"feedback": False, "pairs": 2}),
    "continuous": (Target, TINY, 0.0, {"anneal_steps": 120 * 32 * 16}),
    "a choice and a number": (ChoiceAndTarget, TINY, 0.0, {"anneal_steps": 120 * 32 * 16}),
}


@pytest.mark.parametrize("case", LEARN)
def test_probe_environments_are_solved(case):
    env, network, best, options = LEARN[case]
    defaults = {"num_envs": 32, "num_steps": 16, "num_minibatches": 4, "learning_rate": 0.01, "gamma": 0.5}
    agent = esrl.eggroll_ac(env(), network, **{**defaults, **options})
    result = esrl.train(agent, generations=120, num_evals=0)
    score = esrl.evaluate(agent, result.state, 128).return_mean
    assert score > best - 0.15, score


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"policy": esrl.gru(4)}, "eggroll_ac takes no policy with memory"),
        ({"critic": "shared"}, 'critic is "shared", which would train the policy by backpropagation'),
        ({"critic": "rigde"}, 'critic is \'rigde\', but must be "separate" or "ridge" or "policy_ridge"'),
        ({"gradient": "exact"}, "gradient is 'exact'"),
        ({"residual": 1.5}, "residual is 1.5, but must be a number in 0 .. 1"),
        ({"pairs": 0}, "pairs is 0"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"population": 8}, "eggroll_ac has no option 'population'"),
    ],
)
def test_bad_options_are_said_in_one_sentence(options, sentence):
    with pytest.raises(EsrlError, match=sentence) as caught:
        esrl.eggroll_ac(Walk(), **{"policy": TINY, **options})
    assert "\n" not in str(caught.value)
