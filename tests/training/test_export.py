"""An exported policy acts as `predict` does: NumPy, ONNX and StableHLO, without esrl and without the environment."""

import importlib.util
import json
import subprocess
import sys

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.cli.main import main
from esrl.policies.spaces import map_space

ort = pytest.importorskip("onnxruntime")

PICTURE = spaces.Box(0, 255, (9, 9, 2), np.uint8)
SCALED = spaces.Box(np.array([-3, 0, -np.inf], np.float32), np.array([5, 100, 2], np.float32))
NESTED = spaces.Dict(
    {
        "picture": spaces.Box(0.0, 1.0, (20, 18, 1)),
        "far": spaces.Box(-1e6, 1e6, (2,), np.float64),
        "kinds": spaces.MultiDiscrete([3, 4], start=[1, -2]),
        "bits": spaces.MultiBinary((2, 2)),
        "goal": spaces.Tuple([spaces.Discrete(5, start=2), spaces.Box(0, 7, (3,), np.int64)]),
    }
)
PARTS = spaces.Dict(
    {
        "turn": spaces.Discrete(3, start=-1),
        "arm": spaces.Box(-2.0, 3.0, (2,), np.float64),
        "keys": spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([[2, 3], [4, 2]]), spaces.Box(0, 3, (2,), np.int8)]),
    }
)  # fmt: skip
MASKED = spaces.Dict({"seen": spaces.Box(-1, 1, (3,)), "action_mask": spaces.Box(0, 1, (4,), np.int8)})


class Still:
    """Any spaces; nothing ever happens."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space, self.max_episode_steps = observation_space, action_space, 3

    def reset(self, key):
        return (), self._zeros()

    def step(self, state, action, key):
        return (), self._zeros(), jnp.float32(0), jnp.bool_(False)

    def _zeros(self):
        return map_space(lambda s: jnp.zeros(s.shape, jax.dtypes.canonicalize_dtype(s.dtype)), self.observation_space)


def trained(observation_space, action_space, network, make=esrl.eggroll, spread=0.5, **options):
    """An agent whose parameters and statistics are random, so that every part of it shows."""
    options = {"population": 4} | options if make is not esrl.ppo else options
    agent = make(Still(observation_space, action_space), network, **options)
    state = agent.init(jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(x):
        return x + jnp.asarray(spread * rng.normal(size=x.shape), x.dtype)

    state = state._replace(params=jax.tree.map(drawn, state.params))
    if getattr(state, "average", None) is not None:
        state = state._replace(average=state.params)
    if state.moments is not None:
        mean = jax.tree.map(drawn, state.moments.mean)
        m2 = jax.tree.map(lambda x: jnp.asarray(rng.uniform(1, 99, x.shape), x.dtype), state.moments.m2)
        state = state._replace(moments=state.moments._replace(seen=jnp.float32(50), mean=mean, m2=m2))
    return esrl.Trained(agent, state)


def observations(space, many):
    space.seed(1)
    return map_space(lambda _, *rows: np.stack(rows), space, *(space.sample() for _ in range(many)))


def flat(prefix, tree):
    """Arrays by the names that ONNX has for them."""
    if isinstance(tree, dict):
        return {name: x for key, part in tree.items() for name, x in flat(f"{prefix}/{key}", part).items()}
    if isinstance(tree, tuple):
        return {name: x for i, part in enumerate(tree) for name, x in flat(f"{prefix}/{i}", part).items()}
    return {prefix: tree}


class Onnx:
    """A policy.onnx, as its page says it is used."""

    def __init__(self, folder):
        self.session = ort.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
        self.about = {k: json.loads(v) for k, v in self.session.get_modelmeta().custom_metadata_map.items()}
        self.types = {x.name: x.type for x in self.session.get_inputs()}
        self.carry = None

    def reset(self, mask=None):
        if mask is None:
            self.carry = None
        else:
            for name, start in self.about["start"].items():
                self.carry[name][mask] = start

    def decide(self, observation):
        given = flat("observation", observation)
        given = {k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in given.items()}
        if self.carry is None:
            lanes = len(next(iter(given.values())))
            self.carry = {k: np.repeat(np.asarray(x, np.float32)[None], lanes, 0) for k, x in self.about["start"].items()}
        names = [x.name for x in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, given | self.carry), strict=True))
        self.carry = {name: found[f"next_{name}"].copy() for name in self.carry}
        return {k: x for k, x in found.items() if k.partition("/")[0] == "action"}, found["output"]


def numpy_policy(folder):
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.Policy()


def agree(space, given, wanted, output):
    """Box entries to 1e-5 of their width, choices wherever they do not hang on a rounding."""
    wanted = flat("action", wanted)
    assert given.keys() == wanted.keys()
    for name, part in flat("action", map_space(lambda s: s, space)).items():
        x, y = given[name], wanted[name]
        assert x.dtype == y.dtype == part.dtype and x.shape == y.shape
        if isinstance(part, spaces.Box) and np.issubdtype(part.dtype, np.floating):
            width = np.maximum(1, np.where(np.isfinite(part.high - part.low), part.high - part.low, 1))
            assert np.max(np.abs(np.float64(x) - y) / np.maximum(width, np.abs(y))) < 1e-5
            assert (x >= part.low).all() and (x <= part.high).all()
        else:
            assert np.mean(x != y) <= 0.002, name  # of equal outputs


def one_of(space, tree, i):
    return map_space(lambda s, x: x[i] if isinstance(s, spaces.Discrete) else x[i, ...], space, tree)


CASES = {
    "mlp to a box": (SCALED, SCALED, esrl.mlp((16, 16)), {}),
    "mlp, skip, clipped": (spaces.Box(-9, 9, (4,)), SCALED, esrl.mlp((8,), "tanh", skip=True), {"squash": "clip"}),
    "mlp, no bias, nothing normalized": (
        spaces.Box(-2, 2, (4,)), spaces.Discrete(5, start=3), esrl.mlp((8,), "gelu", bias=False),
        {"normalize_observations": False},
    ),
    "mlp of everything to everything": (NESTED, PARTS, esrl.mlp((16,), "silu", one_hot=True), {}),
    "mlp, masked": (MASKED, spaces.Discrete(4), esrl.mlp((8,), "elu"), {}),
    "mlp in bfloat16": (spaces.Box(-2, 2, (4,)), spaces.MultiBinary(3), esrl.mlp((8,), "relu"), {"precision": "bfloat16"}),
    "linear": (spaces.Discrete(7), spaces.MultiDiscrete([2, 3]), esrl.mlp(()), {}),
    "gru": (spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (2,)), esrl.gru(12), {}),
    "gru to choices": (NESTED, spaces.Discrete(4), esrl.gru(8, "tanh", one_hot=True), {}),
    "cnn": (PICTURE, spaces.Discrete(6), esrl.cnn((4, 4), (8,)), {}),
    "cnn with the rest": (NESTED, SCALED, esrl.cnn((3, 4), (8,), "tanh"), {}),
    "cnn, channels first": (spaces.Box(0, 1, (2, 20, 19)), spaces.Box(-1, 1, (1,)), esrl.cnn((4,), ()), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_thousand_observations_give_the_actions_of_predict(case, tmp_path):
    observed, acted, network, options = CASES[case]
    found = trained(observed, acted, network, **options)
    esrl.export(found, to="numpy", out=tmp_path / "numpy")
    esrl.export(found, to="onnx", out=tmp_path / "onnx")
    module, ours = numpy_policy(tmp_path / "numpy")
    theirs = Onnx(tmp_path / "onnx")
    given = observations(observed, 1000)
    rng = np.random.default_rng(2)
    recurrent = bool(ours.about["carry"])
    for _ in range(4 if recurrent else 1):
        wanted = found.predict(given)
        action, output = ours.decide(given)
        agree(acted, flat("action", action), wanted, output)
        agree(acted, theirs.decide(given)[0], wanted, output)
        fresh = rng.random(1000) < 0.3
        given = jax.tree.map(lambda x: x[rng.permutation(1000)], given)  # noqa: B023
        for policy in (found, ours, theirs):
            policy.reset(fresh)
    ours.reset()
    assert module.self_test(ours) < 1e-4
    # one alone is as in a batch
    found.reset()
    ours.reset()
    alone, wanted = (p.predict(one_of(observed, given, 0)) for p in (ours, found))
    agree(acted, flat("action", alone), wanted, None)
    assert acted.contains(alone)
