"""README.md is short, and what it and the quickstart say is carried out, with smaller budgets than they say."""

import re
import shlex
from pathlib import Path

import pytest

from esrl.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALLER = {
    "--env-steps 1e6": "--env-steps 1e3 --num-evals 1 --eval-episodes 8",
    "--env-steps 2e6": "--env-steps 2e3",
    "--env-steps 1e5": "--env-steps 4e3 --num-evals 1 --eval-episodes 8",
    "--seed 3": "--seed 3 --env-steps 1e3 --num-evals 1 --eval-episodes 8 --hidden 8",
}
ELSEWHERE = ("brax/ant", "cartpole")  # they compile or import for long: tests/cli/test_dry_run.py, test_cli.py


def test_the_readme_is_short_and_names_the_commands():
    assert len(README.split()) <= 950
    kinds = [kind for kind, _ in BLOCK.findall(README)]
    assert kinds[:2] == ["python", "sh"]
    assert len(BLOCK.search(README)[2].splitlines()) <= 8
    assert "\nmake train\nmake test\n" in README


def test_what_the_readme_shows_is_small():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert shown and all((ROOT / path).stat().st_size < 1_500_000 for path in shown)


@pytest.mark.slow
def test_the_commands_of_the_quickstart_do_what_they_say(tmp_path, monkeypatch, capsys, lenient):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agents").symlink_to(ROOT / "agents")
    (tmp_path / "reach.py").write_text(next(text for _, text in BLOCK.findall(QUICKSTART) if "class Reach" in text))
    for kind, text in BLOCK.findall(QUICKSTART):
        for line in text.splitlines() if kind == "sh" else ():
            for whole, small in SMALLER.items():
                line = line.replace(whole, small)
            command = shlex.split(line, comments=True)
            if command[0] == "esrl" and command[2] not in ELSEWHERE:
                assert main(command[1:]) == 0, line
    said = capsys.readouterr().out
    assert "runs/first" in said and "CartPole" in said
    assert list((tmp_path / "runs" / "first").glob("episode.*"))
