"""What a run says of itself from outside: status.json, quantiles, films, and a curve that is redrawn."""

import itertools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import esrl
from esrl.algorithms.es import QUANTILES, quantiles
from esrl.cli.main import main
from esrl.training import films as film_module
from esrl.training import run_folder, status
from esrl.training.films import Films, keep, read_films
from esrl.training.rendering import Episode, small_gif
from esrl.training.status import Status, alive, is_held, read_status

ROOT = Path(__file__).resolve().parents[2]
CARTPOLE = "gymnasium/phys2d/CartPole-v1"


def agent(population=8):
    return esrl.eggroll(CARTPOLE, esrl.mlp((4,)), population=population)


# ---- status ---------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "_SECONDS", 0.0)
    told = []
    put = status.replace_bytes
    monkeypatch.setattr(status, "replace_bytes", lambda path, data: (told.append(json.loads(data)), put(path, data)))
    esrl.train(agent(), generations=4, num_evals=2, eval_episodes=4, out=tmp_path / "run")
    states = [each["state"] for each in told]
    assert states[0] == "compiling" and states[-1] == "finished" and "evaluating" in states and "training" in states
    progress = [each["progress"] for each in told]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 1
    assert all(each["process"] == os.getpid() for each in told)
    found = read_status(tmp_path / "run")
    assert (found["state"], found["progress"], found["generation"]) == ("finished", 1.0, 4)


def test_it_is_written_at_most_once_a_second(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(status, "replace_bytes", lambda path, data: written.append(data))
    now = [100.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    told = Status(tmp_path / "status.json")
    told.begin(0.0)
    for generation in range(1, 1001):
        now[0] += 0.01
        told.evaluating()
        told.generation(generation, generation / 1000)
    told.end(1.0, None)
    assert len(written) <= 10 + 3


def test_the_time_left_is_that_of_the_pace_so_far(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    told = Status(tmp_path / "status.json")
    told.begin(0.5)
    now[0] += 60  # of compiling, which says nothing of the pace
    told.generation(1, 0.5)
    for generation in range(2, 12):
        now[0] += 2
        told.generation(generation, 0.5 + (generation - 1) / 40)
    assert json.loads((tmp_path / "status.json").read_text())["seconds_left"] == pytest.approx(20)


def test_a_run_that_is_broken_off_is_stopped_and_one_that_fails_says_why(tmp_path, monkeypatch):
    for generation, *_ in esrl.iterate(agent(), generations=4, num_evals=0, out=tmp_path / "stopped"):
        if generation == 2:
            break
    found = read_status(tmp_path / "stopped")
    assert (found["state"], found["progress"], found["generation"]) == ("stopped", 0.5, 2)
    esrl.train(agent(), generations=4, num_evals=0, out=tmp_path / "stopped", resume=True)
    assert read_status(tmp_path / "stopped")["state"] == "finished"

    run = esrl.iterate(agent(), generations=4, num_evals=0, out=tmp_path / "failed")
    broken = esrl.EsrlError("the world\nended")
    monkeypatch.setattr(run, "_generation", lambda *_, **__: (_ for _ in ()).throw(broken))
    with pytest.raises(esrl.EsrlError):
        list(run)
    found = read_status(tmp_path / "failed")
    assert (found["state"], found["sentence"]) == ("failed", "the world ended")


def test_a_status_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status, "replace_bytes", full)
    assert esrl.train(agent(), generations=1, num_evals=0, out=tmp_path / "run").metrics["generation"] == 1


HOLDER = """
import sys, time
from esrl.training.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.hold()
folder.status.begin(0.0)
print("held", flush=True)
time.sleep(60)
"""


def test_a_process_that_is_gone_is_killed_whatever_it_said(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        assert is_held(tmp_path / "run" / "checkpoints" / ".lock") in (True, None)
        assert read_status(tmp_path / "run")["state"] == "compiling"
        # To look takes nothing: the lock is still that process's.
        with pytest.raises(esrl.EsrlError, match="another process"):
            run_folder.RunFolder(tmp_path / "run").hold()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert read_status(tmp_path / "run")["state"] == "killed"


def test_of_another_machine_nothing_is_said_where_no_lock_tells(tmp_path):
    assert alive(tmp_path, {"host": "elsewhere.invalid", "process": 1}) is None
    assert alive(tmp_path, {}) is None
    assert is_held(tmp_path / "nothing") is None
    (tmp_path / "free").write_text("")
    assert is_held(tmp_path / "free") in (False, None)


# ---- quantiles ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=6, max_size=6))
def test_quantiles_are_those_of_the_finite_members(values):
    finite = sorted(value for value in values if np.isfinite(value))
    found = quantiles(np.array(values, np.float32).reshape(3, 2))
    assert len(found) == (len(QUANTILES) if finite else 0)
    for percent in QUANTILES if finite else ():
        place = (len(finite) - 1) * percent / 100
        low, high = finite[int(place)], finite[min(int(place) + 1, len(finite) - 1)]
        assert found[f"fitness_q{percent:02d}"] == pytest.approx(low + (place - int(place)) * (high - low), abs=1e-6)


def test_a_row_has_its_quantiles_on_any_number_of_devices(tmp_path):
    order = ["fitness_min", *(f"fitness_q{percent:02d}" for percent in QUANTILES), "fitness_max"]
    rows = []
    for devices in (4, 1):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("pairs",))
        made = esrl.eggroll(CARTPOLE, esrl.mlp((4,)), population=16, mesh=mesh)
        esrl.train(made, generations=1, num_evals=0, out=tmp_path / str(devices))
        (row,) = (json.loads(line) for line in (tmp_path / str(devices) / "metrics.jsonl").read_text().splitlines())
        values = [row[name] for name in order]
        assert values == sorted(values) and all(type(value) is float for value in values)
        rows.append(values)
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


# ---- films ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=12))
def test_the_first_the_best_and_the_last_film_are_kept(scores):
    kept: dict = {}
    for generation, score in enumerate(scores):
        kept = keep(kept | {f"{generation:08d}.gif": {"generation": generation, "score": score}})
        assert len(kept) <= 3
    generations = [film["generation"] for film in kept.values()]
    assert generations[0] == 0 and generations[-1] == len(scores) - 1
    sound = [score for score in scores if score is not None]
    if sound:
        assert scores.index(max(sound)) in generations


class Drawn:
    """A world whose state is a number, and which draws it."""

    def __init__(self, error=None):
        from gymnasium import spaces

        self.observation_space, self.action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))
        self.max_episode_steps, self.error = 5, error

    def reset(self, key):
        at = jax.random.uniform(key, (1,))
        return at, at

    def step(self, at, action, key):
        at = at + 0.1 * action
        return at, at, -jnp.abs(at[0]), at[0] > 5.0

    def render(self, at):
        if self.error:
            raise self.error
        return np.full((8, 8, 3), 100, np.uint8)


def events_of(folder, tag):
    """Environment steps and values of a tag in a run's TensorBoard events, over all its processes."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            found += [(event.step, value) for value in event.summary.value if value.tag == tag]
            place += size + 16
    return found


def test_films_begin_where_a_run_goes_on(tmp_path, capsys):
    """On the command line as well: the run's recipe then says it."""
    pytest.importorskip("imageio")
    run = tmp_path / "run"
    (tmp_path / "drawn.py").write_text(DRAWN)
    path = f"{tmp_path}/drawn.py:Drawn"
    sizes = ["--population", "8", "--hidden", "4", "--num-evals", "2", "--eval-episodes", "2"]
    assert main(["train", path, "--generations", "2", *sizes, "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--generations", "4", "--films"]) == 0
    assert "films True (was False)" in capsys.readouterr().err
    films = read_films(run / "films")
    assert [film["generation"] for film in films.values()][-1] == 4
    steps = [step for step, _ in events_of(run, "eval/film")]
    assert steps and steps == sorted(steps) and steps[0] > 0


def test_a_small_gif_has_few_small_pictures():
    imageio = pytest.importorskip("imageio.v3")
    episode = Episode()
    episode.frames = [np.full((600, 400, 3), i % 256, np.uint8) for i in range(401)]
    pictures = imageio.imread(small_gif(episode), index=None)
    assert len(pictures) <= 100 and pictures.shape[1:] == (200, 134, 3)
    assert small_gif(Episode()) == b""


def test_a_film_is_made_at_each_evaluation_and_changes_nothing(tmp_path):
    pytest.importorskip("imageio")
    made = esrl.eggroll(Drawn(), esrl.mlp((4,)), population=8)
    result = esrl.train(made, generations=4, num_evals=4, eval_episodes=4, films=True, out=tmp_path / "run")
    films = read_films(tmp_path / "run" / "films")
    generations = [film["generation"] for film in films.values()]
    assert generations[0] == 0 and generations[-1] == 4 and len(films) <= 3
    assert {p.name for p in (tmp_path / "run" / "films").iterdir()} == {*films, "films.json"}
    assert all(film["steps"] == 5 for film in films.values())
    assert "films = true" in (tmp_path / "run" / "recipe.toml").read_text()
    shown = events_of(tmp_path / "run", "eval/film")
    assert [step for step, _ in shown] == [0, *(row["env_steps"] for row in result.rows)]
    assert all(v.image.encoded_image_string[:4] == b"GIF8" and v.image.width == 8 for _, v in shown)
    without = esrl.train(made, generations=4, num_evals=4, eval_episodes=4)
    for a, b in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(without.state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.metrics["eval_return_mean"] == without.metrics["eval_return_mean"]


DRAWN = """
import gymnasium
import numpy as np


class Drawn(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Box(-1, 1, (1,))
    max_episode_steps = 5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(1, np.float32), {}

    def step(self, action):
        return self.np_random.random(1, np.float32), float(action[0]), False, False, {}

    def render(self):
        return np.full((8, 8, 3), 100, np.uint8)
"""


@pytest.mark.parametrize("error", [RuntimeError("no display"), SystemExit("bye")], ids=["raises", "exits"])
def test_what_cannot_be_drawn_says_so_once_and_the_run_goes_on(tmp_path, capsys, error):
    made = esrl.eggroll(Drawn(error), esrl.mlp((4,)), population=8)
    esrl.train(made, generations=3, num_evals=3, eval_episodes=4, films=True, out=tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("no films are made") == 1 and str(error) in said
    assert read_status(tmp_path / "run")["state"] == "finished"


def test_films_need_a_folder_and_follow_no_link(tmp_path, capsys):
    with pytest.raises(esrl.EsrlError, match="give out as well"):
        esrl.iterate(agent(), generations=1, films=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "films").symlink_to(tmp_path / "elsewhere")
    made = agent()
    Films(tmp_path / "films").take(made, made.init(jax.random.key(0)), None, 0, 60.0)
    assert "is a link" in capsys.readouterr().err and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"../x.gif": {"generation": 1}}', '{"00000001.gif": {"generation": "1"}}', "9" * 70000]
)
def test_an_index_of_films_that_is_none_names_none(tmp_path, text):
    (tmp_path / "00000001.gif").write_bytes(b"GIF89a")
    (tmp_path / film_module.INDEX).write_text(text)
    assert read_films(tmp_path) == {}


# ---- the curve ------------------------------------------------------------------------------------------------------


def test_the_curve_is_drawn_while_a_run_goes_on_but_takes_a_twentieth_of_its_time(tmp_path, monkeypatch):
    now, drawn = [0.0], []

    def draw(*_):
        drawn.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_folder, "draw_curve", draw)
    folder = run_folder.RunFolder.create(tmp_path / "run", {"seed": 0}, esrl.make(CARTPOLE))
    folder.open(0)
    while now[0] < 200:
        now[0] += 0.1
        folder.redraw()
    assert drawn[0] >= 20 and all(b - a >= 10 for a, b in itertools.pairwise(drawn))
    assert 10 <= len(drawn) <= 20
    folder.close()


def test_a_curve_that_is_redrawn_is_whole_at_every_moment(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run_folder, "_SHARE", 0)
    seen = []
    for generation, *_ in esrl.iterate(agent(), generations=2, num_evals=2, eval_episodes=4, out=tmp_path / "run"):
        seen.append((tmp_path / "run" / "curve.png").read_bytes())
        assert seen[-1].startswith(b"\x89PNG") and seen[-1].endswith(b"IEND\xaeB`\x82"), generation
    assert seen[0] != seen[1]
