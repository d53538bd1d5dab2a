"""Policies: any network on any observation; what does not fit is said before anything runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gymnasium import spaces
from probes import Memory, Probe

import esrl
from esrl import EsrlError
from esrl.core.sharding import one_device
from esrl.core.types import seed_key
from esrl.policies import running_statistics as moment
from esrl.policies.policy import bind
from esrl.policies.spaces import features, observation_zeros, outside, pictures_and_rest
from esrl.policies.user_network import network

OBSERVATIONS = [
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(0, 255, (4, 4, 1), np.uint8),
    spaces.Discrete(5, start=-1),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([[2, 3], [3, 2]]),
    spaces.MultiBinary(3),
    spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(-1.0, 1.0, (2,))),
    spaces.Tuple((spaces.Discrete(2), spaces.Dict(x=spaces.Box(-1.0, 1.0, (2, 2))))),
]
ACTIONS = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (2,))]


class World(Probe):
    """Two steps; the observation never changes; the reward is the first number of the action."""

    max_episode_steps = 2

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, key):
        observation_space = self.observation_space
        observation_space.seed(0)
        observation = jax.tree.map(
            lambda like, x: jnp.asarray(x, like.dtype), observation_zeros(observation_space), _sample(observation_space)
        )
        return (observation, jnp.int32(0)), observation

    def step(self, state, action, key):
        observation, time = state
        reward = jnp.ravel(action)[0].astype(jnp.float32)
        return (observation, time + 1), observation, reward, jnp.bool_(False)


def _sample(space):
    sample = space.sample()
    return dict(sample) if isinstance(space, spaces.Dict) else sample


def one_generation(env, network, **options):
    """Parameters before and after a generation of eight members."""
    agent = esrl.eggroll(env, network, **{"population": 8, "optimizer": "sgd", "mesh": one_device(), **options})
    before = agent.init(seed_key(0))
    after, metrics = agent.step(before)
    assert int(after.generation) == 1 and metrics["nonfinite"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
    return before.params, after.params


@pytest.mark.parametrize("space", OBSERVATIONS, ids=str)
def test_any_observation(space):
    space.seed(1)
    observation = jax.tree.map(lambda like, x: jnp.asarray(x, like.dtype), observation_zeros(space), _sample(space))
    assert outside(space, jax.device_get(observation)) == ""
    flat = features(space, observation)
    assert flat.shape == (spaces.flatdim(space),) and flat.dtype == jnp.float32


@pytest.mark.parametrize("space", [OBSERVATIONS[1], *OBSERVATIONS[-2:]], ids=str)
def test_images_and_nested_observations_run_a_generation(space):
    one_generation(World(space, spaces.Discrete(2)), esrl.mlp((4,)))


def test_features_are_one_hot_and_ordered_by_the_space():
    space = spaces.Dict(b=spaces.Discrete(3, start=1), a=spaces.MultiDiscrete([2, 2]), c=spaces.Box(-9.0, 9.0, (1,)))
    observation = {"a": jnp.array([1, 0]), "b": jnp.int32(2), "c": jnp.array([7.0])}
    parts = {"a": [0, 1, 1, 0], "b": [0, 1, 0], "c": [7]}
    np.testing.assert_array_equal(features(space, observation), np.concatenate([parts[k] for k in space.spaces]))


@pytest.mark.parametrize(
    ("space", "deterministic"), [*((space, True) for space in ACTIONS), (ACTIONS[-1], False)], ids=str
)
def test_any_action_space(space, deterministic):
    env = World(spaces.Box(-1.0, 1.0, (3,)), space)
    before, after = one_generation(env, esrl.mlp((4,), "tanh"), deterministic=deterministic)
    assert ("log_std" in before) == (isinstance(space, spaces.Box) and not deterministic)
    assert jax.tree.structure(before) == jax.tree.structure(after)


def test_unusable_observation_space_is_refused():
    with pytest.raises(EsrlError, match="cannot be used; use Box"):
        bind(None, spaces.Text(3), spaces.Discrete(2))


# ---- networks -------------------------------------------------------------------------------------------------------


class Linen(nn.Module):
    size: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.size)(nn.tanh(nn.Dense(3)(x)))


class LinenOf(nn.Module):
    width: int


class LinenGRU(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        carry, y = nn.GRUCell(4)(carry, x)
        return carry, nn.Dense(2)(y)


class NNX(nnx.Module):
    def __init__(self, size=2, *, rngs):
        self.first = nnx.Linear(1, 3, rngs=rngs)
        self.last = nnx.Linear(3, size, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.tanh(self.first(x)))


class NNXMemory(nnx.Module):
    def __init__(self, *, rngs):
        self.layer = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, carry, x):
        y = self.layer(jnp.concatenate([carry, x]))
        return jnp.tanh(y[:2]), y[2:]


def linear(params, x):
    return x @ params["w"] + params["b"]


def remembering(params, x, carry):
    return carry @ params, carry + x


LINEAR = {"w": jnp.ones((1, 2)), "b": jnp.zeros(2)}
NETWORKS = {
    "default": None,
    "mlp": esrl.mlp((4, 4), bias=False),
    "gru": esrl.gru(4),
    "linen": Linen(),
    "linen gru": network(LinenGRU(), carry=jnp.zeros(4)),
    "nnx instance": NNX(rngs=nnx.Rngs(0)),
    "nnx class": NNX,
    "nnx factory": lambda rngs: NNX(rngs=rngs),
    "nnx gru": network(lambda rngs: NNXMemory(rngs=rngs), carry=jnp.zeros(2)),
    "function, params": network(linear, params=LINEAR),
    "function, init": network(linear, init=lambda key: {"w": jax.random.normal(key, (1, 2)), "b": jnp.zeros(2)}),
    "function, carry": network(remembering, params=jnp.ones((1, 2)), carry=jnp.zeros(1)),
}


def test_a_skip_adds_a_linear_map_of_the_observation():
    space, actions = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    bound, plain = (bind(esrl.mlp((8,), "tanh", skip=skip), space, actions) for skip in (True, False))
    params, seen = bound.init(seed_key(0)), jnp.array([0.3, -0.2, 0.9])
    layers = dict(params["network"])
    straight = layers.pop("Skip")["kernel"]
    assert straight.shape == (3, 2)
    inside = {**params, "network": layers}
    whole, rest = (p.apply(of, seen, p.carry)[0][0] for p, of in ((bound, params), (plain, inside)))
    np.testing.assert_allclose(whole, rest + seen @ straight, rtol=1e-5)
    with pytest.raises(EsrlError, match="skip"):
        esrl.mlp((), skip=True)


def test_categories_are_coded_one_hot():
    """As Discrete ones are, and without the statistics that would move them; amounts stay numbers."""
    grid = spaces.Box(np.array([[0, -1, 2]] * 2), np.array([[2, 3, 2]] * 2), dtype=np.int32)
    space = spaces.Dict({"bytes": spaces.Box(0, 255, (2,), np.uint8), "grid": grid, "x": spaces.Box(-1.0, 1.0, (1,))})
    seen = {"bytes": jnp.array([7, 200], jnp.uint8), "grid": jnp.array([[1, -1, 2], [9, 3, 2]]), "x": jnp.array([0.5])}
    coded = [[0, 1, 0], [1, 0, 0, 0, 0], [1], [0, 0, 0], [0, 0, 0, 0, 1], [1]]  # 9 is no value of that entry
    np.testing.assert_array_equal(features(space, seen, one_hot=True), [7, 200, *np.concatenate(coded), 0.5])
    assert features(space, seen).shape == (9,)
    for coding in (esrl.mlp((4,), one_hot=True), esrl.gru(4, one_hot=True)):
        bound = bind(coding, space, spaces.Discrete(2))
        assert bound.normalizable == {"bytes": True, "grid": False, "x": True}
        assert bound.init(seed_key(0))["network"]["Dense_0"]["kernel"].shape == (21, 4)
    binary = spaces.Box(0, 1, (3,), np.int8)  # two values are a number already
    assert features(binary, jnp.array([0, 1, 1], jnp.int8), one_hot=True).shape == (3,)


@pytest.mark.parametrize("space", [s for s in OBSERVATIONS if isinstance(s, spaces.MultiDiscrete)])
def test_several_choices_are_coded_one_after_another(space):
    seen = space.sample()
    each = zip(np.ravel(seen), np.ravel(space.start), np.ravel(space.nvec), strict=True)
    expected = np.concatenate([np.eye(n)[x - first] for x, first, n in each])
    np.testing.assert_array_equal(features(space, jnp.asarray(seen)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_runs_a_generation(name):
    env = World(Memory.observation_space, Memory.action_space)
    before, after = one_generation(env, NETWORKS[name], learning_rate=1.0, sigma=1.0, shaping="none")
    moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    assert any(moved)


PICTURE = spaces.Box(0, 255, (20, 12, 2), np.uint8)


@pytest.mark.parametrize("space", [PICTURE, spaces.Dict(view=PICTURE, speed=spaces.Box(-1.0, 1.0, (3,)))])
def test_a_cnn_sees_pictures_and_what_is_beside_them(space):
    """Its kernels are perturbed low-rank and move; a picture in bytes lies between 0 and 1."""
    before, after = one_generation(World(space, spaces.Discrete(3)), esrl.cnn((4, 8), (16,)), sigma=1.0)
    kernels = [x for x in jax.tree.leaves(after) if x.ndim == 4]
    assert [x.shape for x in kernels] == [(3, 3, 2, 4), (3, 3, 4, 8)]
    joined = 10 * 6 * 8 + 3 * isinstance(space, spaces.Dict)  # 20 x 12 is halved once
    assert (joined, 16) in [x.shape for x in jax.tree.leaves(after)]
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    stacked = spaces.Box(0, 255, (2, 20, 12), np.uint8)  # channels first
    assert pictures_and_rest(stacked, observation_zeros(stacked))[0][0].shape == (20, 12, 2)
    pictures, rest = pictures_and_rest(PICTURE, jnp.full((20, 12, 2), 255, jnp.uint8))
    np.testing.assert_array_equal(pictures[0], 1.0)
    assert rest.shape == (0,)


@pytest.mark.parametrize("name", ["default", "linen", "nnx class", "nnx factory", "function, init"])
def test_seeds_start_differently(name):
    bound = bind(NETWORKS[name], Memory.observation_space, Memory.action_space)
    first, second = (jax.tree.leaves(bound.init(seed_key(seed))) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_given_parameters_are_where_a_module_starts():
    module = Linen()
    trained = module.init(seed_key(7), jnp.zeros(1))["params"]
    bound = bind(network(module, params=trained), Memory.observation_space, Memory.action_space)
    for seed in (0, 1):
        assert jax.tree.all(jax.tree.map(np.array_equal, bound.init(seed_key(seed))["network"], trained))


@pytest.mark.parametrize("name", ["linen", "nnx instance", "function, params"])
def test_output_is_the_networks_own(name):
    """The bound policy computes what the module computes by itself."""
    bound = bind(NETWORKS[name], Memory.observation_space, Memory.action_space)
    params, x = bound.init(seed_key(0)), jnp.array([0.3])
    (output, _), _ = bound.apply(params, x, bound.carry)
    own = {
        "linen": lambda: Linen().apply({"params": params["network"]}, x),
        "nnx instance": lambda: NETWORKS["nnx instance"](x),
        "function, params": lambda: linear(LINEAR, x),
    }[name]()
    np.testing.assert_allclose(output, own, rtol=1e-6)


@pytest.mark.parametrize("name", ["gru", "linen gru", "nnx gru", "function, carry"])
def test_what_was_seen_before_counts(name):
    bound = bind(NETWORKS[name], Memory.observation_space, Memory.action_space)
    params = jax.tree.map(lambda x: x + 0.1, bound.init(seed_key(0)))
    first, after = bound.apply(params, jnp.ones(1), bound.carry)
    again, _ = bound.apply(params, jnp.ones(1), bound.carry)
    second, _ = bound.apply(params, jnp.ones(1), after)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], second[0])


def test_carry_starts_anew_with_every_episode():
    """A policy that acts by what it has seen before can only ever see zero in the first step."""
    seen = network(lambda p, x, c: (jnp.stack([p, c[0]]), c + 1.0), params=jnp.float32(0.5), carry=jnp.zeros(1))
    bound = bind(seen, Memory.observation_space, Memory.action_space)
    params, carry, actions = bound.init(seed_key(0)), bound.carry, []
    for _ in range(3):
        output, carry = bound.apply(params, jnp.zeros(1), carry)
        actions.append(int(bound.action(output, seed_key(0))))
    assert actions == [0, 1, 1] and float(bound.carry[0]) == 0

    class FirstAction(Probe):
        """Reward 1 for action 0 in the one step that there is."""

        def reward(self, seen, action, time):
            return (action == 0).astype(jnp.float32)

    agent = esrl.eggroll(FirstAction(), seen, population=2, sigma=1e-6)
    state = agent.init(seed_key(0))
    for _ in range(2):
        state, metrics = agent.step(state)
        assert metrics["return_mean"] == 1
    assert esrl.evaluate(agent, state, 4).return_mean == 1


# ---- what is refused ------------------------------------------------------------------------------------------------


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x))


class NNXBatchNorm(NNX):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinenBatchNorm(), r"LinenBatchNorm keeps state outside its parameters \(batch_stats\).*LayerNorm"),
        (lambda: NNXBatchNorm(rngs=nnx.Rngs(0)), r"NNXBatchNorm keeps state outside its parameters \(BatchStat\)"),
        (lambda: Linen(3), r"output has shape \(3,\), but action space Discrete\(2\) needs shape \(2,\)"),
        (lambda: NNX(5, rngs=nnx.Rngs(0)), r"output has shape \(5,\)"),
        (lambda: network(lambda p, x: {"a": p}, params=jnp.zeros(2)), "output has a dict"),
        (lambda: network(lambda p, x: p, params=jnp.zeros(2, jnp.int32)), "parameter of type int32"),
        (lambda: network(lambda p, x: jnp.zeros(2), params=()), "nothing to train"),
        (lambda: network(lambda p, x: p @ x, params=jnp.zeros((2, 9))), r"cannot take one observation float32\[1\]"),
        (lambda: network(lambda p, x, c: (p, c[:1]), params=jnp.zeros(2), carry=jnp.zeros(2)), "carry changes"),
        (lambda: LinenOf, "LinenOf is a Linen class whose fields have no defaults; give an instance"),
        (lambda: esrl.gru, r"needs its parameters: .* called first, as esrl\.gru\(\)"),
        (lambda: linear, "needs its parameters"),
        (lambda: network(linear, params=LINEAR, init=lambda key: LINEAR), "both were given"),
        (lambda: 3, "a Flax module or a function, but got int"),
        (lambda: esrl.mlp((0,)), r"hidden is \(0,\), but must be a list of whole numbers in 1"),
        (lambda: esrl.gru(0), "hidden is 0"),
        (lambda: esrl.mlp(activation="rleu"), "unknown activation 'rleu'"),
        (lambda: esrl.cnn((0,)), "channels is .0,., but must be a list of whole numbers in 1"),
        (lambda: esrl.cnn(), "needs a picture .H, W, C. in the observation, but its space is Box"),
    ],
)
def test_what_does_not_fit_is_said(make, words):
    with pytest.raises(EsrlError, match=words):
        bind(make(), Memory.observation_space, Memory.action_space)


def test_a_linen_class_whose_fields_have_defaults_stands_for_its_instance():
    spaces_of = Memory.observation_space, Memory.action_space
    one, other = (bind(module, *spaces_of).init(seed_key(0)) for module in (Linen, Linen()))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, one, other))


def masked_space(entries):
    return spaces.Dict({"action_mask": spaces.MultiBinary(entries), "view": spaces.Box(-1.0, 1.0, (3,), np.float32)})


@pytest.mark.parametrize("space", [spaces.Discrete(5, start=2), spaces.MultiDiscrete([2, 3])])
@pytest.mark.parametrize("deterministic", [True, False])
def test_an_action_that_is_masked_is_never_taken(space, deterministic):
    bound = bind(esrl.mlp((8,)), masked_space(5), space, deterministic)
    params = bound.init(seed_key(0))
    mask = jnp.asarray([0, 1, 1, 0, 1], jnp.int8)

    def act(key):
        view = jax.random.normal(key, (3,))
        return bound.action(bound.apply(params, {"action_mask": mask, "view": view}, ())[0], key)

    actions = np.asarray(jax.vmap(act)(jax.random.split(seed_key(1), 200)))
    if isinstance(space, spaces.Discrete):
        assert set(actions.tolist()) <= {3, 4, 6}
    else:
        assert set(actions[:, 0].tolist()) == {1} and set(actions[:, 1].tolist()) <= {0, 2}


def test_a_mask_of_floats_is_not_normalised():
    space = spaces.Dict(action_mask=spaces.Box(0.0, 1.0, (2,)), view=spaces.Box(-1.0, 1.0, (3,)))
    bound = bind(esrl.mlp((8,)), space, spaces.Discrete(2))
    assert bound.normalizable == {"action_mask": False, "view": True}


def test_codes_and_pictures_are_normalised_for_networks_that_flatten_them():
    box, mask = spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Box(0, 1, (2,), np.int8)
    space = spaces.Dict(action_mask=mask, grid=box, kind=spaces.Discrete(3), number=spaces.Box(0, 9, (2,), np.int32))
    flat = {"action_mask": False, "grid": True, "kind": False, "number": True}
    for flattening in (esrl.mlp((8,)), esrl.gru(8)):
        assert bind(flattening, space, spaces.Discrete(2)).normalizable == flat
    kept = dict.fromkeys(flat, False)
    assert bind(esrl.cnn((2,), (4,)), space, spaces.Discrete(2)).normalizable == kept
    own = esrl.network(lambda p, obs: p[obs["kind"]], params=jnp.zeros((3, 2)))
    assert bind(own, space, spaces.Discrete(2)).normalizable == kept


def test_normalised_codes_are_numbers_of_mean_0_and_deviation_1():
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 11, (64, 5, 2)), jnp.uint8)
    moments = moment.init(codes[0], True)
    sums = moment.accumulate(moment.zero_sums(moments), moments, codes, jnp.ones(64, bool))
    moments = moment.merge(moments, sums)
    seen = jax.vmap(lambda x: moment.normalize(moments, x))(codes)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(seen.std(0), 1.0, atol=1e-4)


def test_a_mask_leaves_the_probabilities_of_what_is_allowed_as_they_were_among_themselves():
    bound = bind(esrl.mlp((8,)), masked_space(4), spaces.Discrete(4), False, extra=1)
    params = bound.init(seed_key(0))
    view = jnp.asarray([0.1, -0.5, 0.9])
    full, some = (
        bound.apply(params, {"action_mask": jnp.asarray(mask, jnp.int8), "view": view}, ())[0][0]
        for mask in ([1, 1, 1, 1], [1, 0, 1, 0])
    )
    assert full.shape == some.shape == (5,)  # what is beyond the logits is left alone
    log_prob = [float(bound.head.log_prob(some[:4], None, jnp.asarray([i]))) for i in range(4)]
    np.testing.assert_allclose(np.exp(log_prob)[[0, 2]].sum(), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(np.exp(log_prob)[[1, 3]], 0.0)
    assert np.isfinite(float(bound.head.entropy(some[:4], None)))


@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (
            masked_space(3),
            spaces.Discrete(4),
            "action_mask has shape .3,., but action space Discrete.4. needs 4 entries",
        ),
        (masked_space(4), spaces.Box(-1, 1, (4,)), "action_mask is for Discrete and MultiDiscrete actions"),
    ],
)
def test_a_mask_that_does_not_fit_is_said(observations, actions, words):
    with pytest.raises(EsrlError, match=words):
        bind(esrl.mlp((8,)), observations, actions)
