"""The public face: documented and typed arguments, examples that run, and no name that is taken twice."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import typing
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import esrl
from esrl.core.options import arguments_of, options_of

ROOT = Path(__file__).parents[1]
FUNCTIONS = {name: getattr(esrl, name) for name in esrl.__all__ if inspect.isfunction(getattr(esrl, name))}
AGENTS = ["eggroll", "eggroll_ac", "eggroll_int8", "open_es", "es", "ppo", "random"]
FUNCTIONS |= {f"noise.{f.__name__}": f for f in (esrl.noise.low_rank, esrl.noise.dense)}
WITHOUT_EXAMPLE = {"render": "draws for seconds"}


def modules():
    for found in pkgutil.walk_packages(esrl.__path__, "esrl."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        for test in finder.find(module):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(examples()))
def test_an_example_prints_what_it_says(test, tmp_path, lenient):
    test.globs |= {"esrl": esrl, "gymnasium": gymnasium, "jax": jax, "jnp": jnp, "np": np, "tmp_path": tmp_path}
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_its_arguments_are(name):
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    assert (
        not any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or name == "make"
    )  # suites have options of their own
    hints = typing.get_type_hints(function)
    told = " ".join(arguments_of_all(function))
    for parameter in parameters:
        assert parameter in hints, f"{name}({parameter}) has no type"
        assert re.search(rf"\b{parameter}\b", told), f"{name} does not say what {parameter} means"
    assert name in WITHOUT_EXAMPLE or ">>>" in function.__doc__, f"{name} has no example"


def arguments_of_all(function):
    """The lines of the Args section."""
    doc = inspect.getdoc(function) or ""
    begun = doc.partition("Args:\n")[2]
    return re.split(r"\n\S", begun)[0].splitlines()


@pytest.mark.parametrize("name", AGENTS)
def test_help_shows_every_option_of_an_agent(name):
    constructor = getattr(esrl, name)
    meanings = arguments_of(constructor.__doc__)
    assert "**shared" not in constructor.__doc__
    for option in options_of(constructor).values():
        assert len(meanings[option.name]) > 10 and option.help == meanings[option.name]


def test_the_three_evolution_strategies_have_the_same_options_and_defaults():
    shared = {name: o for name, o in options_of(esrl.es).items() if name != "noise"}
    for face in (esrl.eggroll, esrl.open_es):
        own = options_of(face)
        for name, option in shared.items():
            assert own[name][1:4] == option[1:4], name
            assert own[name].help == option.help, name


def test_no_module_of_the_package_has_the_name_of_a_public_function():
    """`import esrl.train` would give a module, `esrl.train` a function."""
    for name in esrl.__all__:
        if inspect.isfunction(getattr(esrl, name)):
            assert importlib.util.find_spec(f"esrl.{name}") is None


def test_an_old_name_of_the_face_is_said():
    with pytest.raises(AttributeError, match=r"esrl\.policy is called esrl\.network now"):
        esrl.policy  # noqa: B018
    with pytest.raises(esrl.EsrlError, match="max_excess_variance"):
        esrl.eggroll("gymnasium/phys2d/CartPole-v1", thin=0.5)


USER = """
import jax

import esrl

env = esrl.make("gymnasium/phys2d/CartPole-v1")
agent = esrl.eggroll(env, esrl.mlp((16,)), population=32, rank=2, sigma=0.1, shaping="z_score", chunk_pairs=None)
other = esrl.es(env, noise=esrl.noise.low_rank(4), population=32)
yardstick: esrl.Agent = esrl.ppo(env, num_envs=8, gamma=0.99)
result: esrl.Result = esrl.train(agent, env_steps=1e4, seconds=5.0)
for generation, state, metrics in esrl.iterate(other, generations=2):
    print(generation + 1, metrics["fitness_mean"])
score: float = esrl.evaluate(agent, result.state).return_mean
"""
WRONG = {
    "esrl.eggroll(env, poplation=32)": "poplation",
    "esrl.eggroll(env, population='many')": "population",
    "esrl.train(agent, env_stps=3)": "env_stps",
}


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict_and_a_wrong_option_does_not(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(USER + "\n".join(WRONG))
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "user.py", "wrong.py"],
        capture_output=True, text=True, cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    errors = [line for line in run.stdout.splitlines() if "error:" in line and line.startswith(("user", "wrong"))]
    assert not [e for e in errors if e.startswith("user.py")], run.stdout
    assert len(errors) == len(WRONG) and all(word in run.stdout for word in WRONG.values()), run.stdout
