"""The server: what it tells of runs, and what it gives to nobody."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esrl.core.errors import EsrlError
from esrl.training.films import INDEX
from esrl.training.status import Status
from esrl.watch.runs import _KEYS, Runs, find_runs
from esrl.watch.server import Watcher

ROOT = Path(__file__).resolve().parents[2]


def rows(number, every=5):
    found = []
    for g in range(1, number + 1):
        scored = {"eval_return_mean": float(g), "eval_return_std": 1.0} if g % every == 0 else {}
        spent = {"seconds": g / 10, "seconds_training": g / 20}
        found.append({"generation": g, "env_steps": 10 * g, "return_mean": g / 2, **scored, **spent})
    return found


def film(folder, name="00000005.gif", data=b"GIF89a film", score=5.0):
    (folder / "films").mkdir(exist_ok=True)
    (folder / "films" / name).write_bytes(data)
    about = {"generation": 5, "score": score, "return": 4.0, "steps": 9}
    (folder / "films" / INDEX).write_text(json.dumps({name: about}))


def test_a_run_of_before_is_told_of_as_it_was_written(tmp_path, serve, write):
    write(tmp_path / "sweep" / "one", rows(100))
    with serve(tmp_path) as client:
        run = client.only()
        assert (run["name"], run["env"], run["agent"], run["seed"]) == ("sweep/one", "brax/hopper", "eggroll", 0)
        assert (run["state"], run["progress"], run["generation"], run["env_steps"]) == ("finished", 1.0, 100, 1000)
        assert (run["last"], run["last_std"], run["best"], run["best_generation"]) == (100.0, 1.0, 100.0, 100)
        scores = client.json(f"/api/scores?run={run['key']}")
        assert scores["env_steps"] == [10.0 * g for g in range(5, 101, 5)] and scores["mean"][-1] == 100.0
        series = client.json(f"/api/series?run={run['key']}&metric=return_mean")
        assert series["return_mean"] == [g / 2 for g in range(1, 101)] and series["seconds"][-1] == 10.0
        about = client.json(f"/api/run?run={run['key']}")
        assert 'env = "brax/hopper"' in about["recipe"] and "return_mean" in about["metrics"]


def test_only_what_changed_is_told_again(tmp_path, serve, write):
    for name in ("one", "two"):
        write(tmp_path / name, rows(10))
    with serve(tmp_path) as client:
        first = client.json("/api/runs?since=0")
        assert len(first["runs"]) == 2
        again = client.json(f"/api/runs?since={first['number']}")
        assert again["runs"] == [] and again["number"] == first["number"] and again["keys"] == first["keys"]
        with (tmp_path / "one" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"generation": 11, "env_steps": 110}) + "\n")
        (changed,) = client.json(f"/api/runs?since={first['number']}")["runs"]
        assert (changed["name"], changed["generation"], changed["rows"]) == ("one", 11, 11)
        assert len(client.json("/api/runs?since=999999")["runs"]) == 2  # of another server
        write(tmp_path / "three")
        for left in (tmp_path / "two").iterdir():
            left.unlink()
        assert {run["name"] for run in client.json("/api/runs?since=0")["runs"]} == {"one", "three"}


def test_seeds_of_one_recipe_are_one_group(tmp_path, serve, write):
    recipe = 'env = "brax/hopper"\nseed = {}\n[options]\nsigma = {}\n'
    for name, seed, sigma in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 0.2)):
        write(tmp_path / name, recipe=recipe.format(seed, sigma))
    with serve(tmp_path) as client:
        groups = {run["name"]: run["group"] for run in client.json("/api/runs?since=0")["runs"]}
    assert groups["a"] == groups["b"] != groups["c"]


def test_a_status_is_told_and_a_process_that_is_gone_is_killed(tmp_path, serve, write):
    folder = write(tmp_path / "one", rows(10))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Status(folder / "status.json").begin(0.0)
    with serve(tmp_path) as client:
        assert client.only()["state"] == "compiling"  # this process
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(status | {"process": gone.pid}))
        assert client.only()["state"] == "killed"
        (folder / "status.json").write_text(json.dumps(status | {"state": "failed", "sentence": "<b>it broke</b>"}))
        assert client.only()["sentence"] == "<b>it broke</b>"  # escaped by whoever shows it
        odd = '{"state": "training", "progress": NaN, "process": 1e300}'
        for strange in ("[]", "{", '{"state": 5}', odd, "9" * 99999):
            (folder / "status.json").write_text(strange)
            assert client.only()["state"] in ("stopped", "killed", "training")


STRANGE = {
    "recipe of nonsense": ("recipe.toml", b"\xff\x00 = ["),
    "recipe of other types": ("recipe.toml", b"env = [1]\nagent = {a = 1}\nseed = 1e300\nenv_steps = nan\n"),
    "recipe of a huge number": ("recipe.toml", b"seconds = 1" + b"0" * 400 + b"\nenv_steps = 1" + b"0" * 400 + b"\n"),
    "recipe with dates": ("recipe.toml", b"env = 2020-01-01\nseed = 07:30:00\n"),
    "rows of nonsense": ("metrics.jsonl", b"no row\n" * 10),
    "rows of other types": ("metrics.jsonl", b'{"generation": true, "eval_return_mean": "5"}\n' * 3),
    "films of nonsense": ("films/films.json", b'{"00000001.gif": 5, "../../x": {}, "a": {"generation": 1}}'),
}


@pytest.mark.parametrize(("name", "data"), STRANGE.values(), ids=STRANGE.keys())
def test_a_damaged_run_is_shown_beside_a_sound_one(tmp_path, serve, write, name, data):
    write(tmp_path / "sound", rows(10))
    folder = write(tmp_path / "bad", rows(10))
    (folder / "films").mkdir()
    (folder / name).write_bytes(data)
    with serve(tmp_path) as client:
        runs = {run["name"]: run for run in client.json("/api/runs?since=0")["runs"]}
        assert runs["sound"].keys() == runs["bad"].keys() == set(_KEYS)
        assert runs["sound"]["last"] == 10.0 and not runs["sound"]["wrong"]
        bad = runs["bad"]
        assert bad["wrong"] or b"generation" in data or b"env" in data  # the others can be shown as they are
        for path in ("scores", "run", "series"):
            client.json(f"/api/{path}?run={bad['key']}&metric=return_mean")


def test_films_are_given_whole_and_in_parts(tmp_path, serve, write):
    folder = write(tmp_path / "one", rows(10))
    film(folder)
    (folder / "episode.html").write_text("<script>1</script>")
    with serve(tmp_path) as client:
        run = client.only()
        assert [each["name"] for each in run["films"]] == ["00000005.gif", "episode.html"]
        at = f"/film?run={run['key']}&name=00000005.gif"
        status, headers, data = client.get(at)
        assert (status, headers["Content-Type"], data) == (200, "image/gif", b"GIF89a film")
        for asked, wanted in (("0-3", b"GIF8"), ("7-", b"film"), ("-4", b"film"), ("7-99", b"film")):
            status, headers, data = client.get(at, {"Range": f"bytes={asked}"})
            assert (status, data) == (206, wanted) and headers["Content-Range"].endswith("/11")
        assert client.get(at, {"Range": "bytes=50-60"})[0] == 416
        assert client.get(at, {"Range": "lines=1-2"})[2] == b"GIF89a film"
        assert client.get(at, method="HEAD")[2] == b""
        status, headers, _ = client.get(f"/film?run={run['key']}&name=episode.html")
        assert status == 200 and headers["Content-Security-Policy"].startswith(
            "sandbox allow-scripts; default-src 'none'"
        )


NOWHERE = [
    "/../recipe.toml", "/..%2f..%2fetc%2fpasswd", "/etc/passwd", "//etc/passwd", "/%00", "/main.js/",
    "/esrl/watch/server.py",
    "/film", "/film?run=x", "/film?run={}&name=", "/film?run={}&name=recipe.toml", "/film?run={}&name=../recipe.toml",
    "/film?run={}&name=..%2Frecipe.toml", "/film?run={}&name=films.json", "/film?run={}&name=00000005.gif%00",
    "/film?run={}&name=00000007.gif", "/film?run={}&name=00000008.gif", "/film?run={}&name=%2Fetc%2Fpasswd",
    "/film?run=..&name=00000005.gif", "/api/run?run=../one", "/api/scores", "/api/series?run=%2e%2e", "/api",
    "/api/nothing",
    "/film?run={}&name=episode.mp4", "/film?run={}&name=00000009.gif",
]  # fmt: skip


def test_nothing_but_films_of_runs_is_given(tmp_path, serve, write):
    folder = write(tmp_path / "runs" / "one", rows(10))
    film(folder)
    (tmp_path / "secret.gif").write_bytes(b"secret")
    (folder / "films" / "00000007.gif").symlink_to(tmp_path / "secret.gif")
    (folder / "films" / "00000008.gif").mkdir()
    os.mkfifo(folder / "films" / "00000009.gif")
    (folder / "episode.mp4").symlink_to(tmp_path / "secret.gif")
    other = write(tmp_path / "runs" / "two", rows(3))
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "00000001.gif").write_bytes(b"secret")
    (other / "films").symlink_to(tmp_path / "films")
    with serve(tmp_path / "runs") as client:
        keys = {run["name"]: run["key"] for run in client.json("/api/runs?since=0")["runs"]}
        paths = [path.format(keys["one"]) for path in NOWHERE]
        for path in (*paths, f"/film?run={keys['two']}&name=00000001.gif"):
            status, _, data = client.get(path)
            assert status == 404 and b"secret" not in data and b"root:" not in data, path
        assert client.get(f"/film?run={keys['one']}&name=00000005.gif")[0] == 200
        assert client.get("/api/runs", method="POST")[0] == 501


def test_links_lead_to_no_run(tmp_path, write):
    write(tmp_path / "elsewhere" / "hidden", rows(3))
    write(tmp_path / "runs" / "one", rows(3))
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / ".cache").mkdir()
    write(tmp_path / "runs" / ".cache" / "two", rows(3))
    (tmp_path / "runs" / "three").mkdir()
    (tmp_path / "runs" / "three" / "recipe.toml").symlink_to(tmp_path / "runs" / "one" / "recipe.toml")
    assert [path.name for path in find_runs(tmp_path / "runs")] == ["one"]
    (tmp_path / "door").symlink_to(tmp_path / "runs")
    assert [path.name for path in find_runs(tmp_path / "door")] == ["one"]  # the folder itself may lie behind one
    assert list(find_runs(tmp_path / "nowhere")) == []


def test_a_page_elsewhere_reaches_nothing(tmp_path, serve, write):
    """DNS rebinding: a name of someone's own that points to this machine."""
    write(tmp_path / "one", rows(3))
    with serve(tmp_path) as client:
        for host in (
            "evil.example",
            "evil.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "[",
            "a b",
        ):
            status, _, data = client.get("/api/runs?since=0", {"Host": host})
            assert status == 403 and b"hopper" not in data, host
        for host in ("localhost", "localhost:9999", "127.0.0.1:1", "[::1]:80"):
            status, headers, _ = client.get("/", {"Host": host})
            assert status == 200
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers
        _, _, page = client.get("/")
        assert b"<script>" not in page and b" style=" not in page and b"http" not in page  # nothing from elsewhere


def test_a_taken_port_is_followed_by_the_next(tmp_path):
    runs = Runs([tmp_path])
    with Watcher(runs, port=0) as first:
        assert first.address == f"http://127.0.0.1:{first.server_port}/"
        with Watcher(runs, port=first.server_port) as second:
            assert first.server_port < second.server_port <= first.server_port + 50
    with pytest.raises(EsrlError, match="port"):
        Watcher(runs, port=70000)
    with pytest.raises(EsrlError, match="port"):
        Watcher(runs, host="192.0.2.1", port=8642)


LIGHT = """
import sys, types
package = types.ModuleType("esrl")
package.__path__ = [sys.argv[1]]
sys.modules["esrl"] = package  # without its __init__, which imports everything
import esrl.watch.server
heavy = {"jax", "numpy", "flax", "optax", "gymnasium", "rich", "tyro", "tomli_w"} & sys.modules.keys()
print(sorted(heavy))
"""


def test_the_page_needs_the_standard_library_alone():
    command = [sys.executable, "-c", LIGHT, str(ROOT / "esrl")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_command_says_where_the_page_is_and_ends_quietly(tmp_path, write):
    write(tmp_path / "one", rows(3))
    command = [sys.executable, "-m", "esrl", "watch", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line and str(tmp_path) in line
        time.sleep(0.2)
        process.send_signal(2)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, rest, errors) == (0, "", "")
    finally:
        process.kill()
        process.wait()
