"""How runs of several processes end and what they keep: clocks, scores, films and trackers are process 0's."""

import json

import pytest
from launching import running, training

from esrl.training.films import read_films
from esrl.training.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

POLE = "gymnasium/phys2d/CartPole-v1?max_episode_steps=20"
MOST = 100_000  # generations that no run here has the time for


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes have found. The clocks of process 0 go by a hundredth, those of process 1 by days."""
    path = tmp_path_factory.mktemp("runs")
    run = {"agent": "eggroll", "generations": MOST}
    clocks = {"tick": 0.01, "of_process": {"1": {"tick": 86400.0}}}
    tasks = {
        "seconds": ["train", {**run, "seconds": 0.3, "num_evals": 2, **clocks}],
        "minutes": ["train", {**run, "minutes": 0.01, "num_evals": 0, **clocks}],
        "tracked": ["train", {**run, "generations": 4, "num_evals": 2, "tracked": True}],
        "begun": ["train", {**run, "seconds": 0.2, "num_evals": 2, "out": str(path / "run"), **clocks}],
        "gone_on": [
            "train",
            {**run, "seconds": 0.4, "num_evals": 2, "out": str(path / "run"), "resume": True, **clocks},
        ],
        # Every return is below that of staying at 0: the first evaluation is enough.
        "score": ["train", {**run, "stop_at_return": -1000.0, "num_evals": 1000}],
        "unscored": ["train", {**run, "generations": 4, "stop_at_return": 1000.0, "num_evals": 2}],
    }
    with running(path / "work", 2, 1, tasks) as group:
        return group.found()


def both(found, task):
    """A task's findings, which both processes agree about."""
    first, second = (each[task] for each in found)
    assert str(first["raised"]) == str(second["raised"]) == ""
    assert first["generation"] == second["generation"]
    assert all((first[name] == second[name]).all() for name in first if name.startswith("params"))
    return first


@pytest.mark.parametrize("task", ["seconds", "minutes", "gone_on"])
def test_clocks_are_those_of_process_0(found, task):
    assert 1 < both(found, task)["generation"] < MOST


def test_seconds_of_a_run_that_goes_on_count_from_those_it_had(found):
    assert both(found, "begun")["generation"] < both(found, "gone_on")["generation"]


def test_a_score_ends_all_after_the_same_generation(found):
    assert both(found, "score")["generation"] == MOST // 1000
    assert both(found, "unscored")["generation"] == 4


def test_process_0_alone_tells_a_tracker(found):
    both(found, "tracked")
    assert [each["tracked"]["tracked"].tolist() for each in found] == [[1, 4, 1], [0, 0, 0]]  # begun, rows, ended


def test_films_and_scores_by_the_command_line(tmp_path):
    folder = tmp_path / "run"
    told = [POLE, "--population", "8", "--hidden", "4", "--generations", "4", "--num-evals", "2", "--films"]
    with training(2, 1, *told, "--eval-episodes", "4", "--stop-at-return", "1000", "--out", str(folder)) as group:
        for status, _, err in group.ended():
            assert status == 0, err
            assert "no films" not in err, err
    films = read_films(folder / "films")
    assert [film["generation"] for film in films.values()][-1] == 4
    assert len(films) >= 2
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in rows] == [1, 2, 3, 4]
    assert max(RunFolder(folder).checkpoints.generations()) == 4
