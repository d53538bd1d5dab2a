"""Columns of a metrics.jsonl: what is thinned keeps what matters, and a growing file is read as a whole one is."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esrl.watch import table as tables
from esrl.watch.table import AXES, EVALUATIONS, Table, thinned

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def row(generation, **more):
    place = {"generation": generation, "env_steps": 10 * generation}
    return {**place, **more, "seconds": generation / 2, "seconds_training": generation / 4}


def write(path, rows, mode="w"):
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(numbers, min_size=60, max_size=60), min_size=1, max_size=4), st.integers(2, 80))
def test_the_ends_and_the_extremes_of_every_column_are_kept(columns, most):
    kept = thinned(columns, most)
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == 59
    assert len(kept) == 60 if most >= 60 else len(kept) <= max(most, 2 * len(columns)) + 2
    for column in columns:
        there = [column[i] for i in kept]
        assert min(there) == min(column) and max(there) == max(column)


def test_nothing_is_thinned_to_nothing():
    assert thinned([], 5) == [] and thinned([[]], 5) == [] and thinned([[1.0]], 5) == [0]


def test_a_thinned_column_stands_at_its_own_rows(tmp_path):
    draw = random.Random(0)
    rows = [row(g, a=draw.gauss(0, 1), b=draw.gauss(0, 1)) for g in range(1, 3001)]
    write(tmp_path / "metrics.jsonl", rows)
    table = Table(tmp_path / "metrics.jsonl")
    table.refresh()
    found = table.columns(["a", "b"], most=100)
    assert 20 <= len(found["a"]) <= 104 and table.rows == 3000
    for i, generation in enumerate(found["generation"]):
        assert {name: found[name][i] for name in (*AXES, "a", "b")} == rows[int(generation) - 1]
    assert max(found["a"]) == max(r["a"] for r in rows) and min(found["b"]) == min(r["b"] for r in rows)


def test_every_row_with_a_score_is_kept_and_the_start_is_one(tmp_path):
    rows = [row(g, x=1.0, **({"eval_return_mean": float(g), "eval_return_std": 0.5} if g % 7 == 0 else {}))
            for g in range(1, 2001)]  # fmt: skip
    rows[0] |= {"start_return_mean": -3.0, "start_return_std": 1.5}
    write(tmp_path / "metrics.jsonl", rows)
    table = Table(tmp_path / "metrics.jsonl")
    table.refresh()
    scores = table.evaluations()
    assert (scores[0].generation, scores[0].mean, scores[0].std) == (0, -3.0, 1.5)
    assert [(s.generation, s.env_steps, s.seconds, s.mean) for s in scores[1:]] == [
        (g, 10 * g, g / 2, g) for g in range(7, 2001, 7)
    ]


def test_very_many_scores_are_thinned_with_their_extremes(tmp_path):
    draw = random.Random(1)
    means = [draw.gauss(0, 1) for _ in range(EVALUATIONS + 500)]
    write(tmp_path / "metrics.jsonl", (row(g, eval_return_mean=mean) for g, mean in enumerate(means, 1)))
    table = Table(tmp_path / "metrics.jsonl")
    table.refresh()
    found = [score.mean for score in table.evaluations()]
    assert len(found) <= EVALUATIONS + 2 and {min(means), max(means), means[0], means[-1]} <= set(found)


@pytest.mark.parametrize("block", [tables._BLOCK, 700])
def test_a_file_that_grows_is_read_as_a_whole_one(tmp_path, monkeypatch, block):
    monkeypatch.setattr(tables, "_BLOCK", block)
    draw = random.Random(2)
    rows = [row(g, a=draw.random(), **({"late": 1.0, "eval_return_mean": draw.random()} if g % 5 == 0 else {}))
            for g in range(1, 61)]  # fmt: skip
    text = "".join(json.dumps(each) + "\n" for each in rows)
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    table = Table(path)
    cuts = sorted(draw.sample(range(len(text)), 25))
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        with path.open("a") as file:
            file.write(text[begin:end])  # also a part of a row
        table.refresh()
        table.columns(["a"])
    whole = Table(path)
    whole.refresh()
    for name in ("rows", "last", "first", "scores", "strange"):
        assert getattr(table, name) == getattr(whole, name)
    assert set(table.names) == set(whole.names) == set().union(*rows)
    assert table.columns(["a"]) == whole.columns(["a"]) and table.columns(["late"]) == whole.columns(["late"])
    assert whole.columns(["a"])["a"] == [each["a"] for each in rows] and not table.refresh()


def test_a_file_that_was_cut_and_went_on_is_read_anew(tmp_path):
    """`--resume` cuts what lies beyond the checkpoint, and may have written more by the next look."""
    path = tmp_path / "metrics.jsonl"
    write(path, (row(g, a=1.0) for g in range(1, 101)))
    table = Table(path)
    table.refresh()
    table.columns(["a"])
    with path.open("r+") as file:
        file.truncate(sum(len(line) for line in path.read_text().splitlines(keepends=True)[:50]))
    write(path, (row(g, a=2.0) for g in range(51, 121)), "a")
    table.refresh()
    assert table.rows == 120 and table.columns(["a"])["a"] == [1.0] * 50 + [2.0] * 70
    path.unlink()
    assert table.refresh() and table.rows == 0


HOSTILE = {
    "no json": b"\x00\xff\n[1, 2]\nnonsense\n",
    "wrong types": b'{"generation": "one", "env_steps": [1], "eval_return_mean": {"a": 1}}\n' * 5,
    "not finite": b'{"generation": 1, "env_steps": NaN, "a": Infinity, "eval_return_mean": 1e999}\n' * 5,
    "huge numbers": b'{"generation": 1, "a": ' + b"9" * 5000 + b', "env_steps": 1e400}\n',
    "a huge row": b'{"generation": 1, "a": "' + b"x" * (3 << 20) + b'"}\n' + b'{"generation": 2, "a": 5.0}\n',
    "a row without an end": b'{"generation": 1, "a": "' + b"x" * (3 << 20),
    "many names": json.dumps({"generation": 1, **{f"m{i}": i for i in range(5000)}}).encode() + b"\n",
    "nested": b'{"generation": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "blank": b"\n\n\n",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_file_breaks_nothing(tmp_path, data):
    (tmp_path / "metrics.jsonl").write_bytes(data)
    table = Table(tmp_path / "metrics.jsonl")
    table.refresh()
    found = {"scores": table.evaluations(), "columns": table.columns(["a", "generation"])}
    json.dumps(found, allow_nan=False)
    assert len(table.names) <= tables._NAMES


def test_a_row_without_an_end_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(HOSTILE["a row without an end"])
    table = Table(tmp_path / "metrics.jsonl")
    table.refresh()
    assert "which esrl never writes" in table.sentence


def test_no_link_is_followed(tmp_path):
    write(tmp_path / "elsewhere", [row(1)])
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    table = Table(tmp_path / "metrics.jsonl")
    table.refresh()
    assert table.rows == 0 and "link" in table.sentence
