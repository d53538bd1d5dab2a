"""An exported policy acts as `predict` does: NumPy, ONNX and StableHLO, without esrl and without the environment."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.cli.main import main
from esrl.policies.spaces import map_space
from esrl.training.export.exporting import FORMATS

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
        "keys": spaces.Tuple(
            [spaces.MultiBinary(3), spaces.MultiDiscrete([[2, 3], [4, 2]]), spaces.Box(0, 3, (2,), np.int8)]
        ),
    }
)
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
    """Samples of a space; real numbers of the first ones are not finite, as a broken sensor gives them."""
    space.seed(1)
    given = map_space(lambda _, *rows: np.stack(rows), space, *(space.sample() for _ in range(many)))
    for x in jax.tree.leaves(given):
        if np.issubdtype(x.dtype, np.floating):
            x[:3] = np.reshape([np.nan, np.inf, -np.inf], (3, *[1] * (x.ndim - 1)))
    return given


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
            kinds = {name: np.int16 if "int16" in self.types[name] else np.float32 for name in self.about["start"]}
            start = {name: np.asarray(x, kinds[name]) for name, x in self.about["start"].items()}
            self.carry = {name: np.repeat(x[None], lanes, 0) for name, x in start.items()}
        names = [x.name for x in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, given | self.carry), strict=True))
        self.carry = {name: found[f"next_{name}"].copy() for name in self.carry}
        return {k: x for k, x in found.items() if k.partition("/")[0] == "action"}, found["output"]


def numpy_policy(folder):
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.Policy()


def agree(space, given, wanted):
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
    "mlp in bfloat16": (
        spaces.Box(-2, 2, (4,)), spaces.MultiBinary(3), esrl.mlp((8,), "relu"), {"precision": "bfloat16"},
    ),
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
        action = ours.predict(given)
        agree(acted, flat("action", action), wanted)
        agree(acted, theirs.decide(given)[0], wanted)
        fresh = rng.random(1000) < 0.3
        given = jax.tree.map(lambda x: x[rng.permutation(1000)], given)
        for policy in (found, ours, theirs):
            policy.reset(fresh)
    ours.reset()
    assert module.self_test(ours) < 1e-4
    # one alone is as in a batch
    found.reset()
    ours.reset()
    alone, wanted = (p.predict(one_of(observed, given, 0)) for p in (ours, found))
    agree(acted, flat("action", alone), wanted)
    assert acted.contains(alone)


# ---- networks of one's own ------------------------------------------------------------------------------------------

OPERATIONS = [
    lambda x: jnp.stack([x, x[::-1]], 1) @ jnp.array([1.0, 2.0]),
    lambda x: jnp.where(x > 0.3, jnp.round(x), jnp.sign(x) * jnp.cbrt(x)),
    lambda x: jnp.sort(x) + jnp.argsort(x).astype(jnp.float32),
    lambda x: jnp.cumsum(x) + jax.lax.cumsum(x, reverse=True),
    lambda x: jnp.tile(x[:3], 2) + jnp.pad(x[1:4], (1, 2)),
    lambda x: jnp.take(jnp.arange(12.0).reshape(4, 3), (x > 0).astype(jnp.int32)[:2], axis=0).ravel(),
    lambda x: x[jnp.clip((x * 3).astype(jnp.int32), 0, 5)],
    lambda x: jnp.outer(x, x).sum(0) + jnp.max(jnp.outer(x, x), 1) - jnp.prod(x[:2]),
    lambda x: jax.lax.scan(lambda c, y: (c * 0.5 + y, c), jnp.float32(0), x)[1],
    lambda x: jax.lax.cond(x[0] > 0, lambda: x, lambda: -x),
    lambda x: jax.nn.softplus(x) + jax.nn.gelu(x, approximate=False) + jnp.expm1(x) + jnp.log1p(jnp.abs(x)),
    lambda x: jnp.linalg.norm(x) * x + x**3 + jnp.abs(x) ** 0.5 + 1 / (1 + x**2) + jnp.exp2(x),
    lambda x: jax.lax.rsqrt(1 + x**2) + x.astype(jnp.float16).astype(jnp.float32),
    lambda x: jnp.einsum("ij,jk,kl->il", x.reshape(2, 3), x.reshape(3, 2), x.reshape(2, 3)).ravel(),
    lambda x: jnp.einsum("bij,bjk->bik", x.reshape(2, 1, 3), x.reshape(2, 3, 1)).ravel().repeat(3),
    lambda x: jnp.tan(x / 9) + jnp.sinh(x / 3) + jnp.arctan(x) + jnp.fmod(x, 0.7) + jnp.floor(x) + jnp.ceil(x),
    lambda x: jnp.where((x > 0) ^ (x < 1), 1.0, 0.0) + jnp.any(x > 1.5) + jnp.all(x > -1).astype(jnp.float32),
    lambda x: nn.max_pool(x.reshape(1, 6, 1), (2,), (1,), "SAME").ravel(),
    lambda x: nn.avg_pool(x.reshape(2, 3, 1), (2, 2), (1, 1), ((1, 0), (1, 1))).ravel()[:6],
    lambda x: jax.lax.dynamic_slice(x, (2,), (3,)).repeat(2) + jnp.squeeze(jnp.split(x, 2)[1].sum(keepdims=True)),
    lambda x: jnp.bfloat16(1.7) * x.astype(jnp.bfloat16).astype(jnp.float32) + jnp.argmin(x),
]  # fmt: skip


def test_every_operation_is_what_jax_has(tmp_path, lenient):
    many = len(OPERATIONS)
    network = esrl.network(
        lambda p, x: jnp.concatenate([f(x * p).astype(jnp.float32).ravel() for f in OPERATIONS]), params=jnp.ones(())
    )
    found = trained(
        spaces.Box(-2, 2, (6,)),
        spaces.Box(-np.inf, np.inf, (6 * many,)),
        network,
        spread=0,
        normalize_observations=False,
    )
    given = observations(found.agent.env.observation_space, 200)
    wanted = found.predict(given)
    for to in ("numpy", "onnx"):
        esrl.export(found, to=to, out=tmp_path / to)
    for output in (numpy_policy(tmp_path / "numpy")[1].decide(given)[1], Onnx(tmp_path / "onnx").decide(given)[1]):
        for i in range(many):
            part = slice(6 * i, 6 * i + 6)
            np.testing.assert_allclose(output[:, part], wanted[:, part], 1e-5, 1e-5, err_msg=str(i))


class Attends(nn.Module):
    """Layers that esrl's own networks do not have."""

    @nn.compact
    def __call__(self, observation):
        rows = nn.Embed(5, 8)(observation["kinds"])
        rows = rows + nn.Dense(8)(observation["seen"])
        rows = nn.LayerNorm()(rows + nn.MultiHeadDotProductAttention(num_heads=2)(rows))
        rows = nn.GroupNorm(2)(nn.Conv(8, (3,), feature_group_count=2, kernel_dilation=2)(rows))
        return nn.Dense(3)(nn.Einsum((4, 8, 5), "...ij,ijk->...k")(rows))


class Recurs(nn.Module):
    @nn.compact
    def __call__(self, carry, observation):
        carry, x = nn.LSTMCell(6)(carry, observation)
        return carry, nn.Dense(2)(x)


def test_networks_of_ones_own(tmp_path):
    space = spaces.Dict({"kinds": spaces.Box(0, 4, (4,), np.int64), "seen": spaces.Box(-1, 1, (4, 3))})
    lstm = esrl.network(Recurs(), carry=(jnp.full(6, 0.3), jnp.zeros(6)))
    box = spaces.Box(-1, 1, (3,))
    for name, observed, acted, network in (
        ("attends", space, spaces.Discrete(3), Attends()),
        ("recurs", box, spaces.Box(-1, 1, (2,)), lstm),
    ):
        found = trained(observed, acted, network)
        given = observations(observed, 300)
        for to in ("numpy", "onnx"):
            found.reset()
            out = esrl.export(found, to=to, out=tmp_path / name / to)
            policy = numpy_policy(out)[1] if to == "numpy" else Onnx(out)
            for fresh in (None, np.arange(300) % 3 == 0, np.arange(300) % 2 == 0):
                found.reset(fresh)
                policy.reset(fresh)
                action = policy.decide(given)[0]
                action = flat("action", action) if to == "numpy" else action
                agree(acted, action, found.predict(given))


def test_what_has_no_rule_is_named(tmp_path):
    unruly = esrl.network(lambda p, x: jnp.linalg.inv(x.reshape(2, 2) + p).ravel()[:3], params=jnp.eye(2))
    found = trained(spaces.Box(1, 2, (4,)), spaces.Discrete(3), unruly)
    for to in ("numpy", "onnx"):
        with pytest.raises(EsrlError, match=f"cannot be exported to {to}: .* no rule for .* lu; stablehlo takes any"):
            esrl.export(found, to=to, out=tmp_path / to)
    assert not list(tmp_path.iterdir())


# ---- StableHLO, and agents ------------------------------------------------------------------------------------------


def test_stablehlo_gives_the_actions_of_predict(tmp_path):
    acted = spaces.Box(-1, 3, (2,))
    found = trained(NESTED, acted, esrl.gru(8))
    out = esrl.export(found, to="stablehlo", out=tmp_path / "policy")
    policy = jax.export.deserialize((out / "policy.stablehlo").read_bytes())
    assert set(policy.platforms) == {"cpu", "cuda"}
    about = json.loads((out / "policy.json").read_text())
    given = observations(NESTED, 1000)
    device = esrl.policies.spaces.to_device(NESTED, given)
    carry = tuple(jnp.repeat(jnp.asarray(x, jnp.float32)[None], 1000, 0) for x in about["start"].values())
    for _ in range(3):
        action, _, carry = policy.call(device, carry)
        agree(acted, {"action": np.asarray(action)}, found.predict(given))
    tested = np.load(out / "self_test.npz", allow_pickle=False)
    assert tested["self_test/action"].shape == (6, 16, 2)


def test_a_policy_that_samples_says_so_and_gives_what_is_to_be_sampled(tmp_path):
    found = trained(spaces.Box(-2, 2, (3,)), SCALED, esrl.mlp((4,)), esrl.ppo, deterministic=False, num_envs=4)
    out = esrl.export(found, to="onnx", out=tmp_path / "onnx")
    about = Onnx(out).about
    assert about["samples"] and "exp(log_std)" in about["sampling"] and about["squash"] == "clip"
    assert np.allclose(about["log_std"], found.state.params["actor"]["log_std"])
    given = observations(spaces.Box(-2, 2, (3,)), 5)
    action, output = Onnx(out).decide(given)
    middle, half = np.array([1, 50]), np.array([4, 50])
    np.testing.assert_allclose(action["action"][:, :2], middle + half * np.clip(output[:, :2], -1, 1), rtol=1e-5)


def test_agents_with_critics(tmp_path):
    space, given = spaces.Box(-2, 2, (3,)), observations(spaces.Box(-2, 2, (3,)), 500)
    for name, make, options in (
        ("shared", esrl.ppo, {"critic": "shared", "num_envs": 4}),
        ("credit", esrl.eggroll_ac, {"num_envs": 4}),
    ):
        options |= {"num_steps": 8, "num_minibatches": 2}
        agent = make(Still(space, SCALED), esrl.mlp((4,)), **options)
        found = esrl.Trained(agent, agent.init(jax.random.key(0)))
        _, policy = numpy_policy(esrl.export(found, out=tmp_path / name))
        agree(SCALED, {"action": policy.predict(given)}, found.predict(given))


def test_an_agent_that_learns_nothing_has_no_policy(tmp_path):
    agent = esrl.random("gymnasium/phys2d/CartPole-v1")
    with pytest.raises(EsrlError, match="random has no policy that was trained"):
        esrl.export(esrl.Trained(agent, agent.init(jax.random.key(0))), out=tmp_path / "x")


# ---- a run's folder, an episode, a robot ----------------------------------------------------------------------------

ROBOT = """
import sys
for name in ("jax", "flax", "esrl", "gymnasium", "onnx"):
    sys.modules[name] = None
import numpy as np
from policy import Policy, self_test
policy = Policy()
print(self_test(policy) < 1e-4, policy.predict([0.0, 0.1, 0.0, -0.1]))
policy.reset()
print(policy.predict(np.zeros((3, 4))).shape)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "run"
    agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.gru(8), population=16, sigma=0.1)
    esrl.train(agent, generations=3, num_evals=1, eval_episodes=8, keep="best", out=out)
    return out


def test_a_copied_policy_plays_an_episode_as_esrl_does(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "numpy", "--generation", "best", "--out", str(tmp_path / "robot")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'robot'}: policy.npz, policy.py\n"
    found = esrl.load(run, generation="best")
    done = subprocess.run([sys.executable, "-c", ROBOT], cwd=tmp_path / "robot", capture_output=True, text=True)
    assert done.stdout == f"True {found.predict([0.0, 0.1, 0.0, -0.1])}\n(3,)\n", done.stderr
    done = subprocess.run([sys.executable, "-I", tmp_path / "robot" / "policy.py"], capture_output=True, text=True)
    assert done.stdout.startswith("ok: "), done.stderr
    _, policy = numpy_policy(tmp_path / "robot")
    env = esrl.as_gymnasium(found.agent.env)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        found.reset()
        policy.reset()
        for _ in range(60):
            action = found.predict(observation)
            assert policy.predict(observation) == action
            observation, _, ended, cut, _ = env.step(action)
            if ended or cut:
                break


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--to", "onyx"], "unknown format 'onyx'; did you mean onnx?"),
        (["--out", "{run}"], "exists; choose another out, or delete it"),
        (["--generation", "77"], "there is no checkpoint of generation 77"),
        (["--out", "{run}/recipe.toml/x"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, capsys, given, sentence):
    before = sorted(run.iterdir())
    assert main(["export", str(run), *(text.format(run=run) for text in given)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and sentence in said
    assert sorted(run.iterdir()) == before


def test_a_missing_package_names_the_extra(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EsrlError, match=r"an export to ONNX needs the package onnx; .*pip install 'esrl\[onnx\]'"):
        esrl.export(run, to="onnx", out=tmp_path / "x")


def test_without_out_it_lies_in_the_runs_folder(run):
    assert esrl.export(run, to="stablehlo") == run / "policy-stablehlo"
    with pytest.raises(EsrlError, match="policy-stablehlo exists"):
        esrl.export(run, to="stablehlo")
    with pytest.raises(EsrlError, match="say where to"):
        esrl.export(esrl.load(run))
    with pytest.raises(EsrlError, match="a trained agent has one state"):
        esrl.export(esrl.load(run), out=run / "x", generation=1)


def test_the_page_is_true(tmp_path, monkeypatch):
    """Every Python block of README.md runs on a fresh export."""
    text = (Path(esrl.__file__).parent / "training" / "export" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = trained(spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (2,)), esrl.mlp((4,)))
    observation = np.array([0.1, -0.2, 0.3], np.float32)
    monkeypatch.chdir(tmp_path)
    of_python = [to for to in FORMATS if to != "c"]  # whose tests are in test_c_export.py
    for to, block in zip(of_python, blocks, strict=True):
        folder = esrl.export(found, to=to, out="policy")
        monkeypatch.syspath_prepend(tmp_path / folder)
        names = {"observation": observation}
        exec(block, names)
        np.testing.assert_allclose(np.ravel(names["action"]), found.predict(observation), atol=1e-5)
        shutil.rmtree("policy")
    monkeypatch.delitem(sys.modules, "policy")
