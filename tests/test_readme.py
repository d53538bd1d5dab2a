"""Every block of README.md runs, in order and in one folder, with smaller budgets than it says."""

import re
import shlex
from pathlib import Path

import pytest

from esrl.cli.main import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
FIRST_SCREEN = 4
SMALLER = {"env_steps=1e6": "env_steps=2e4", "--env-steps 1e6": "--env-steps 2e4", "--env-steps 2e6": "--env-steps 4e4",
           "--env-steps 1e5": "--env-steps 5e3", "eggroll.toml --seed 3": "eggroll.toml --seed 3 --env-steps 1e4",
           "--population 65536": "--population 256 --hidden 8"}  # fmt: skip


def test_the_first_screen_is_four_blocks_of_at_most_ten_lines():
    assert [kind for kind, _ in BLOCKS][:FIRST_SCREEN] == ["python", "python", "python", "sh"]
    assert all(len(text.splitlines()) <= 10 for _, text in BLOCKS[:FIRST_SCREEN])


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch, capsys, lenient):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agents").symlink_to(ROOT / "agents")
    names: dict = {}
    for kind, text in BLOCKS:
        for whole, small in SMALLER.items():
            text = text.replace(whole, small)
        if "class Reach" in text:
            (tmp_path / "reach.py").write_text(text)
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
        else:
            for line in text.splitlines():
                command = shlex.split(line, comments=True)
                assert command[0] == "esrl" and main(command[1:]) == 0, line
    said = capsys.readouterr().out
    assert "runs/first" in said and "CartPole" in said
    assert (tmp_path / "runs" / "first" / "episode.html").exists()
