"""What the scripts share: one line for an option that cannot be read, and Markdown tables."""

import sys
from dataclasses import dataclass

import pytest

pytest.importorskip("tyro")

from tyro.conf import Positional

from experiments import script as scripts


@dataclass(frozen=True)
class Options:
    envs: Positional[tuple[str, ...]] = ()
    lanes: int = 4
    hidden: tuple[int, ...] = (8, 8)
    table: bool = False


def read(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    return scripts.options(Options, "What it does.")


def test_options_are_flags_and_positions(monkeypatch):
    assert read(monkeypatch) == Options()
    given = read(monkeypatch, "a", "b", "--lanes=2", "--hidden", "--table")
    assert given == Options(("a", "b"), 2, (), True)


@pytest.mark.parametrize(("words", "part"), [(("--lanes", "two"), "'two'"), (("--lane", "2"), "--lane")])
def test_what_cannot_be_read_is_one_line(monkeypatch, capsys, words, part):
    with pytest.raises(SystemExit) as end:
        read(monkeypatch, *words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("run.py: ") and part in said and said.count("\n") == 1


def test_tables():
    assert scripts.table(("a", "b"), [(1, ""), ("x", 2.5)]) == "| a | b |\n|---|---|\n| 1 | |\n| x | 2.5 |"
    row = {"x": "0.25", "y": 2, "y_lowest": 1, "y_highest": 3, "bytes": 3 * 2**20, "none": ""}
    cells = [("x", ".1f"), ("x", "%"), ("y", "[g]"), ("bytes", "MiB"), ("none", "g"), ("gone", "g")]
    assert [scripts.shown(row, *cell) for cell in cells] == ["0.2", "25 %", "2 [1, 3]", "3", "–", "–"]
