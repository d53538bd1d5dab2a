"""Environments by text: files with their neighbors, modules, and ids behind a module."""

import sys
from functools import partial

import gymnasium
import numpy as np
import pytest

import esrl
from esrl import EsrlError
from esrl.cli.list_envs import is_one
from esrl.cli.main import main
from esrl.envs.suites.gymnasium_lanes import SyncPool
from esrl.envs.suites.gymnasium_workers import WorkersPool

OWN = """
import gymnasium
import numpy as np
from gymnasium import spaces


class Own(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)
    max_episode_steps = 7

    def __init__(self, gain=1.0, render_mode=None):
        self.gain, self.render_mode = gain, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), self.gain, False, False, {}
"""
REGISTER = '\ngymnasium.register("Brought-v0", "brought:Own", max_episode_steps=7)\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module `brought` that registers an id; neither stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as the script `esrl` has it
    (tmp_path / "brought.py").write_text(OWN + REGISTER)
    yield tmp_path
    gymnasium.registry.pop("Brought-v0", None)
    for name in ("brought", "neighbor_of_ours"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["gymnasium/brought:Brought-v0", "brought:Brought-v0"])
def test_a_module_before_an_id_is_imported_first(folder, name):
    env = esrl.make(name, gain=2)
    assert env.name == "gymnasium/brought:Brought-v0?gain=2" and env.max_episode_steps == 7
    again = esrl.make(env.name)
    assert again.name == env.name and again.make_one().unwrapped.gain == 2


def test_a_module_and_a_class_are_as_a_file_and_a_class(folder, capsys):
    env = esrl.make("brought:Own?gain=3")
    assert env.name == "brought:Own?gain=3" and env.max_episode_steps == 7 and env.make_one().unwrapped.gain == 3
    assert is_one("brought:Own") and is_one("gymnasium/brought:Brought-v0") and not is_one("gymnasium")
    assert main(["envs", "brought:Own"]) == 0 and "7 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:Own-v0", "there is no module 'no_such_module'; pip install the package that has it"),
        ("gymnasium/no.such:Own-v0", "there is no module 'no.such'; .*pip install no"),
        ("brought:Owm", "brought has no 'Owm'; did you mean Own"),
        ("gymnasium/brought:Brougt-v0", "gymnasium has no environment 'brought:Brougt-v0'; did you mean Brought-v0"),
        ("half:Own", "half cannot be imported: ModuleNotFoundError: No module named 'nothing_here'"),
    ],
)
def test_modules_that_are_not_there_are_said(folder, name, words):
    (folder / "half.py").write_text("import nothing_here\n")
    with pytest.raises(EsrlError, match=words):
        esrl.make(name)


def test_files_import_what_lies_beside_them(folder):
    made = {}
    for part in ("one", "two"):  # the same names in two folders
        (folder / part).mkdir()
        (folder / part / "neighbor_of_ours.py").write_text(f'GAIN = "{part}"\n')
        (folder / part / "late_of_ours.py").write_text("LATE = 5\n")
        late = "\n    def late(self):\n        import late_of_ours\n        return late_of_ours.LATE\n"
        text = "from neighbor_of_ours import GAIN\n" + OWN + late
        (folder / part / "world.py").write_text(text.replace("gain=1.0", "gain=GAIN").replace(", self.gain,", ", 1.0,"))
        made[part] = esrl.make(f"{part}/world.py:Own")
    for part, env in made.items():
        one = env.make_one().unwrapped
        assert one.gain == part and one.late() == 5 and part == sys.modules[type(one).__module__].GAIN
    pool = WorkersPool("world", partial(SyncPool, "world", type(one)), 2, 2)  # each makes its own from the class
    assert pool.begin(np.arange(2), np.arange(2)).shape == (2, 2)
    pool.close()
    sys.modules.pop("late_of_ours")


def test_paths_begin_at_home_and_relative_imports_are_said(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert esrl.make("~/brought.py:Own").max_episode_steps == 7
    (folder / "dotted.py").write_text("from .brought import Own\n")
    with pytest.raises(EsrlError, match=r"import without the leading dot, or name it package.module:Name"):
        esrl.make("dotted.py:Own")
