"""A policy exported to C acts as esrl's does: bit for bit where it is of integers, else to 1e-5."""

import json
import os
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from test_policy_export import NESTED, PARTS, SCALED, Onnx, Still, numpy_policy, trained

import esrl
from esrl import EsrlError
from esrl.training.export import to_c
from esrl.training.export.c_code import Code
from esrl.training.export.deployed import deployed
from experiments.integers.chip import CHILD

CC = shutil.which("cc")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover"]
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler")
NUMBERS = spaces.Box(-5, 5, (6,), np.float32)
FLAT = spaces.Dict({name: NESTED[name] for name in ("far", "kinds", "bits", "goal")})


class Pools(nn.Module):
    """Overlapping windows, with a margin and without one, and windows along one dimension."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        most = nn.max_pool(x, (3, 2), strides=(2, 1), padding="SAME")
        with jax.numpy_dtype_promotion("standard"):  # Flax divides by a whole number
            mean = nn.avg_pool(x, (2, 2), strides=(2, 2), padding="VALID")
        low = nn.max_pool(x[0], (2,), strides=(1,), padding="SAME")
        return nn.Dense(3)(jnp.concatenate([most.ravel(), mean.ravel(), low.ravel()]))


class Lines(nn.Module):
    """Sums along lines from both ends, order, places, margins, and whole numbers."""

    @nn.compact
    def __call__(self, x):
        ahead = jnp.cumsum(x, axis=0) + jax.lax.cumsum(x, axis=1, reverse=True)
        twice = jnp.concatenate([x[:1], x[:1]]) + jnp.sort(x, axis=0)[:2]
        places = jnp.argsort(jnp.round(2 * x), axis=1)  # with equal ones
        whole = jnp.cumsum(jnp.max(places, axis=0)) + jnp.sort(places[:, 0])[0]
        parts = (ahead, twice, jnp.pad(x, ((1, 0), (2, 1)), constant_values=0.5), places, whole)
        return nn.Dense(3)(jnp.concatenate([part.ravel().astype(jnp.float32) for part in parts]))


class Groups(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Conv(4, (3,), feature_group_count=2)(x.reshape(3, 2)).ravel())


CASES = {
    "int8": lambda: integer_policy(NUMBERS, spaces.Discrete(3, start=1), esrl.mlp((8,), skip=True, dtype="int8")),
    "int8, nested": lambda: integer_policy(FLAT, PARTS, esrl.mlp((8,), "relu", dtype="int8")),
    "int8, pictures": lambda: integer_policy(NESTED, spaces.Discrete(3), esrl.cnn((3,), (8,), dtype="int8")),
    "int8, recurrent": lambda: integer_policy(NUMBERS, SCALED, esrl.gru(6, dtype="int8")),
    "float": lambda: trained(FLAT, PARTS, esrl.mlp((8, 8), skip=True), spread=0.1),
    "float, recurrent": lambda: trained(NUMBERS, SCALED, esrl.gru(6, "tanh"), spread=0.1),
    "windows": lambda: trained(spaces.Box(-1, 1, (9, 7, 2), np.float32), spaces.Discrete(3), Pools(), spread=0.1),
    "lines": lambda: trained(spaces.Box(-1, 1, (4, 5), np.float32), spaces.Discrete(3), Lines(), spread=0.1),
    "pictures": lambda: trained(NESTED, spaces.Discrete(3), esrl.cnn((3,), (8,)), spread=0.1),
}


def integer_policy(observation_space, action_space, network):
    agent = esrl.eggroll_int8(Still(observation_space, action_space), network, population=4)
    state, rng = agent.init(jax.random.key(0)), np.random.default_rng(0)
    mean = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), state.moments.mean)
    shift = jax.tree.map(lambda x: jnp.asarray(rng.integers(9, 14, x.shape), jnp.int32), state.moments.shift)
    return esrl.Trained(agent, state._replace(moments=state.moments._replace(mean=mean, shift=shift)))


def compiled(folder, source, *flags):
    made = subprocess.run([CC, *FLAGS, *flags, source, "-o", "made", "-lm"], cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder / "made"


@needs_cc
@pytest.mark.parametrize("case", CASES)
def test_the_self_test_passes_under_sanitizers(case, tmp_path):
    folder = esrl.export(CASES[case](), to="c", out=tmp_path / "c")
    text = (folder / "policy.h").read_text()
    decides = re.search(r"void esrl_decide\(.*?\n}", text, re.S)[0]
    assert ("float" not in decides) == case.startswith("int8")
    assert "malloc" not in text and ("without any library" in text) == (
        not re.search(r"\b(tanh|exp|sqrt|rint)f\(", text)
    )
    done = subprocess.run([compiled(folder, "self_test.c")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The test can fail: one weight more or less is seen.
    constants = re.search(r"esrl_test_output\[\d+\] = \{(-?[\d.e+-]+)", text)
    broken = text[: constants.start(1)] + ("99" if case.startswith("int8") else "99.0") + text[constants.end(1) :]
    (folder / "policy.h").write_text(broken)
    assert subprocess.run([compiled(folder, "self_test.c")], check=False).returncode == 1


LIBRARY = """
#include "policy.h"
static esrl_carry carry;
void begin(void) { esrl_start(&carry); }
int act(const float *observation) { int64_t action[1]; esrl_act(observation, &carry, action); return (int)action[0]; }
"""


@needs_cc
@pytest.mark.slow
@pytest.mark.parametrize("network", [esrl.mlp((8,), dtype="int8"), esrl.gru(8, dtype="int8")], ids=["mlp", "gru"])
def test_c_numpy_and_onnx_play_gymnasiums_episodes_as_esrl_does(network, tmp_path):
    episodes = 5
    agent = esrl.eggroll_int8("gymnasium/phys2d/CartPole-v1", network, population=16)
    state, _ = agent.step(agent.init(jax.random.key(0)))
    whole = esrl.Trained(agent, state)
    folders = {to: esrl.export(whole, to=to, out=tmp_path / to) for to in ("c", "numpy", "onnx")}

    (folders["c"] / "library.c").write_text(LIBRARY)
    library = compiled(folders["c"], "library.c", "-shared", "-fPIC")
    preload = subprocess.run([CC, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    quiet = {"LD_PRELOAD": preload.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    child = [sys.executable, "-c", CHILD, str(library), str(episodes)]
    done = subprocess.run(child, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)

    env, copied, session = gymnasium.make("CartPole-v1"), numpy_policy(folders["numpy"])[1], Onnx(folders["onnx"])
    for seed, actions in enumerate(played):
        observation = env.reset(seed=seed)[0]
        for each in (whole, copied, session):
            each.reset()
        for action in actions:
            given = session.decide(observation[None])[0]["action"][0] if seed == 0 else action
            assert action == whole.predict(observation) == copied.predict(observation) == given
            observation, _, terminated, truncated, _ = env.step(action)
        assert terminated or truncated


@pytest.mark.parametrize("case", ["int8, nested", "int8, recurrent", "int8, pictures"])
def test_numpy_and_onnx_of_integers_agree_bit_for_bit(case, tmp_path):
    whole = CASES[case]()
    policy = deployed(whole, "test")
    copied, session = (
        numpy_policy(esrl.export(whole, to="numpy", out=tmp_path / "numpy"))[1],
        Onnx(esrl.export(whole, to="onnx", out=tmp_path / "onnx")),
    )
    stored = policy.self_test
    for step, fresh in enumerate(stored["self_test/reset"]):
        observation = to_nested(policy.about["observation"], lambda leaf, step=step: stored[f"self_test/{leaf}"][step])
        for each in (copied, session):
            each.reset(None if step == 0 else fresh)
        for each in (copied, session):
            np.testing.assert_array_equal(each.decide(observation)[1], stored["self_test/output"][step])


def to_nested(about, fn):
    if "dict" in about:
        return {name: to_nested(part, fn) for name, part in about["dict"]}
    if "tuple" in about:
        return tuple(to_nested(part, fn) for part in about["tuple"])
    return fn(about["name"])


def test_what_c_has_no_rule_for_is_named(tmp_path):
    with pytest.raises(EsrlError, match="to c: there is a rule for convolutions of pictures without groups") as error:
        esrl.export(trained(NUMBERS, spaces.Discrete(3), Groups()), to="c", out=tmp_path / "c")
    assert "\n" not in str(error.value) and not (tmp_path / "c").exists()


def test_numbers_are_written_exactly():
    code = Code("x")
    for x in np.float32([0.1, -1e-30, 3e38, 2.0, 1 / 3]):
        assert np.float32(code.number(x).removesuffix("f")) == x
    assert code.number(np.int32(-(2**31))) == "(-2147483647 - 1)"
    assert to_c.identifier("observation/a b") == "observation_a_b"
