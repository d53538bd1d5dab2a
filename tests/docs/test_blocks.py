"""Every block of code in the documentation runs, or says why not.

The Python of a page runs in one namespace and one folder, with smaller budgets than it says. Commands are read by the
parser of the command line and not carried out; `tests/test_readme.py` carries some of them out.
"""

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import esrl
from esrl.cli.invocation import invocation
from esrl.cli.main import command as command_named

from .pages import PAGES, ROOT, Block, blocks, commands, name_of

KINDS = {"python", "sh", "toml", "text", "math"}
SMALLER = (
    (r"\benv_steps=[\d.e_]+", "env_steps=300"),
    (r"\bgenerations=\d+", "generations=2"),
    (r"\b(eval_)?episodes=\d+", r"\1episodes=4"),
    (r"\bpopulation=\d+", "population=8"),
    (r"\bnum_(steps|envs)=\d\d+", r"num_\1=8"),
    (r"\bnum_minibatches=\d+", "num_minibatches=2"),
    (r"\bnum_epochs=\d+", "num_epochs=1"),
)
LANES = {"num_envs": 8, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1}
AGENTS = {"eggroll": {}, "open_es": {}, "ppo": LANES, "eggroll_ac": LANES}
SCORED = {"eval_episodes": 4, "num_evals": 0}
EACH = [pytest.param(page, id=name_of(page)) for page in PAGES]


def smaller(text: str) -> str:
    for whole, small in SMALLER:
        text = re.sub(whole, small, text)
    return text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder where a page's blocks run, with the repository's recipes in it."""
    (tmp_path / "agents").symlink_to(ROOT / "agents")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registered, modules = set(gymnasium.registry), set(sys.modules)
    yield tmp_path
    for name in set(gymnasium.registry) - registered:
        del gymnasium.registry[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write_files(folder: Path, found: list[Block]) -> None:
    for block in found:
        if block.file:
            (folder / block.file).write_text(block.text)


@pytest.mark.parametrize("page", EACH)
def test_blocks_have_a_known_kind_and_hold_together(page):
    for block in blocks(page):
        where = f"{name_of(page)}, line {block.line}"
        assert block.kind in KINDS, f"{where}: a block of the kind {block.kind!r}"
        if block.kind == "python":
            ast.parse(block.text, where)
        if block.kind == "toml":
            tomllib.loads(block.text)


PYTHON = [p for p in EACH if any(b.kind == "python" and not b.not_run for b in blocks(p.values[0]))]


@pytest.fixture
def cheap(monkeypatch):
    """What a block leaves out is small as well: networks, lanes, and evaluations."""

    def defaults(name: str, **small: Any) -> None:
        function = getattr(esrl, name)
        monkeypatch.setattr(esrl, name, lambda *args, **given: function(*args, **small | given))

    def agent(name: str, small: dict[str, Any]) -> None:
        make = getattr(esrl, name)
        monkeypatch.setattr(esrl, name, lambda env, policy=None, **given: make(env, policy or NET, **small | given))

    for name, small in AGENTS.items():
        agent(name, small)
    for name in ("train", "iterate", "train_many"):
        defaults(name, **SCORED)
    monkeypatch.setattr(esrl, "evaluate", lambda agent, state, episodes=4: EVALUATE(agent, state, 4))


NET, EVALUATE = esrl.mlp((8,)), esrl.evaluate


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page, folder, cheap, lenient):
    found = [block for block in blocks(page) if block.kind == "python" and not block.not_run]
    write_files(folder, found)
    names: dict = {"__name__": "page"}
    for block in found:
        if not block.file:
            where = "\n" * (block.line - 1)  # so that an error has the page's line
            exec(compile(where + smaller(block.text), name_of(page), "exec"), names)


SHELL = [p for p in EACH if any(b.kind == "sh" for b in blocks(p.values[0]))]


@pytest.mark.parametrize("page", SHELL)
def test_the_commands_of_a_page_are_understood(page, folder, capsys):
    write_files(folder, blocks(page))
    for block in blocks(page):
        if block.kind == "sh" and not block.not_run:
            for line in commands(block.text):
                check(line, folder)


def check(line: str, folder: Path) -> None:
    """Fails unless a command is one that could be given."""
    program, *argv = shlex.split(line, comments=True)
    if program == "esrl":
        check_esrl(argv, folder)
    elif program == "make":
        targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert argv[0] in targets, line
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert argv[0] == "install" and set(re.findall(r"\w+", re.search(r"\[(.*)\]", line)[1])) <= set(extras), line
    else:
        assert program == "python" and argv[0] == "-m", f"{line}: not a command that a page should have"
        check_module(argv[1], [a for a in argv[2:] if a.startswith("--")])


def check_esrl(argv: list[str], folder: Path) -> None:
    command, *rest = argv
    if "--resume" in rest:  # the run has to be there
        run = folder / rest[rest.index("--resume") + 1]
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.toml").write_text('env = "gymnasium/phys2d/CartPole-v1"\n')
    try:
        invocation(command_named(command), rest)
    except SystemExit as stop:
        assert "--help" in rest and not stop.code, argv


def check_module(name: str, flags: list[str]) -> None:
    """Fails unless the repository has the module, and its folder's code every flag as a word."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, name
    said = " ".join(path.read_text() for path in Path(found.origin).parent.glob("*.py"))
    for flag in flags:
        assert re.search(rf"\b{flag[2:].replace('-', '_')}\b", said), f"{name} has no {flag}"
