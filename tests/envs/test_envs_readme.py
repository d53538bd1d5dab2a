"""Everything in envs/README.md runs: Python blocks through check_env, the package through its entry points."""

import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import gymnasium
import pytest

import esrl
from esrl.cli.invocation import invocation
from esrl.cli.main import command as command_named
from esrl.envs.catalog import names_of
from esrl.envs.checks.environment import check_env

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "envs" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {found[1]: text for kind, text in BLOCKS if kind == "python" and (found := re.match(r"# (\w+)\.py\n", text))}
SCRIPTS = [text for kind, text in BLOCKS if kind == "python" and not re.match(r"# \w+\.py\n", text)]
SAID = [text.strip() for kind, text in BLOCKS if kind == "text"]
SHELL = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """The page's files in a folder, where its scripts and commands run."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registered = set(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - registered:
        del gymnasium.registry[name]
    for name in FILES:
        sys.modules.pop(name, None)


def environments():
    """`file.py:Class` of every environment on the page."""
    return [
        f"{name}.py:{cls}" for name, text in FILES.items() for cls in re.findall(r"^class (\w+)", text, re.MULTILINE)
    ]


def test_the_page_shows_what_it_should():
    assert {kind for kind, _ in BLOCKS} == {"python", "sh", "text", "toml"}
    assert len(environments()) == 5 and len(SAID) == 1
    assert all(len(text.splitlines()) <= 30 for _, text in BLOCKS)


@pytest.mark.parametrize("name", environments())
def test_environments_are_what_the_page_says(name):
    if "Counting" in name:
        with pytest.raises(esrl.EsrlError) as caught:
            check_env(esrl.make(__import__("counting").Counting))
        assert str(caught.value) == SAID[0]
    else:
        check_env(esrl.make(name))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run(script, tmp_path):
    (tmp_path / "script.py").write_text(script)
    made = runpy.run_path(str(tmp_path / "script.py"))
    if not isinstance(made.get("env"), (gymnasium.Env, type(None))):  # what goes out again is Gymnasium's
        check_env(made["env"])


def test_the_package_announces_its_environments(tmp_path):
    project = tomllib.loads(next(text for kind, text in BLOCKS if kind == "toml"))
    info = tmp_path / "my_envs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-envs\nVersion: 1.0\n")
    points = project["project"]["entry-points"]["esrl.envs"]
    (info / "entry_points.txt").write_text("\n".join(["[esrl.envs]", *(f"{k} = {v}" for k, v in points.items())]))
    assert names_of("mine") == ["mine/Corridor", "mine/Drift"] and names_of("walk") == ["walk"]
    for name in ("mine/Corridor", "mine/Drift", "walk"):
        assert esrl.make(name).name == name


@pytest.mark.parametrize("line", SHELL)
def test_commands_are_understood(line):
    program, command, *argv = shlex.split(line)
    assert program == "esrl"
    found = invocation(command_named(command), argv)
    assert argv[0] == (found["pattern"] if command == "envs" else found["recipe"].env)
