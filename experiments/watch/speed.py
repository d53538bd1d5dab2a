"""How fast does the page of `esrl watch` have its runs? Seconds, for many runs of many rows.

    python -m experiments.watch.speed                        # 50 runs of 10,000 rows, made in a temporary folder
    python -m experiments.watch.speed --runs 500 --rows 1000

Each row has the metrics that an evolution strategy writes of a network of three layers, and every 500th a held-out
score. The server is in a process of its own, and has seen none of the files; the system's page cache has.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN = ("agreement", "fitness_max", "fitness_mean", "fitness_min", "fitness_q05", "fitness_q25", "fitness_q50",
         "fitness_q75", "fitness_q95", "fitness_std", "grad_norm", "learning_rate", "length_mean", "param_norm",
         "return_mean", "sigma", "signal_cosine", "tied", "update_norm")  # fmt: skip
LAYERS = [f"signal_cosine/network/Dense_{i}/{part}" for i in range(3) for part in ("bias", "kernel")]
SHOWN = 10  # runs that the page has in its charts when it opens
ROOT = Path(__file__).resolve().parents[2]


def row(generation: int, draw: random.Random) -> dict[str, Any]:
    """A generation's metrics."""
    scored = {"eval_return_mean": draw.gauss(0, 1), "eval_return_std": 1.0, "eval_length_mean": 100.0}
    return {
        "generation": generation,
        "env_steps": 1000 * generation,
        "padded_steps": 100 * generation,
        **{name: draw.gauss(0, 1) for name in (*PLAIN, *LAYERS)},
        "nonfinite": 0,
        "updates": generation,
        **(scored if generation % 500 == 0 else {}),
        "seconds": round(0.1 * generation, 4),
        "seconds_compile": 9.5,
        "seconds_training": round(0.08 * generation, 4),
        "seconds_evaluate": 1.25,
        "env_steps_per_second": 12345.6,
    }


def write_runs(folder: Path, runs: int, rows: int) -> int:
    """Makes folders of runs; returns their bytes of metrics."""
    draw, size = random.Random(0), 0
    for number in range(runs):
        run = folder / f"run{number:03d}"
        run.mkdir(parents=True)
        (run / "recipe.toml").write_text(
            f'env = "brax/hopper"\nagent = "eggroll"\ngenerations = {rows}\nseed = {number}\n'
        )
        text = "".join(json.dumps(row(generation, draw)) + "\n" for generation in range(1, rows + 1))
        (run / "metrics.jsonl").write_text(text)
        size += len(text)
    return size


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The command in a process of its own; gives the page's address."""
    command = [sys.executable, "-m", "esrl", "watch", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().partition(" at ")[2].split()[0]
    finally:
        process.terminate()
        process.wait()


def get(address: str) -> Any:
    with urllib.request.urlopen(address) as answer:
        return json.loads(answer.read())


def timed(what: str, do: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    found = do()
    print(f"{what:58s}{time.perf_counter() - begun:8.3f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rows", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size = write_runs(folder, given.runs, given.rows)
        print(f"{given.runs} runs of {given.rows} rows, {size / 1e6:.0f} MB")
        with serving(folder) as address:
            api = f"{address}api/"
            begun = time.perf_counter()
            listed = timed("the list of runs, with last and best scores", lambda: get(f"{api}runs?since=0"))
            keys = listed["keys"]
            names = "&metric=".join(f"fitness_q{q}" for q in ("05", "25", "50", "75", "95"))

            def charts(keys: list[str]) -> None:
                for key in keys:
                    get(f"{api}scores?run={key}")
                    get(f"{api}run?run={key}")
                    get(f"{api}series?run={key}&metric=return_mean")

            timed("scores, recipe and a metric of the ten it shows at first", lambda: charts(keys[:SHOWN]))
            timed("the population of one", lambda: get(f"{api}series?run={keys[0]}&metric={names}"))
            print(f"{'    so far: the page as it opens':58s}{time.perf_counter() - begun:8.3f} s")
            timed("scores, recipe and a metric of all others", lambda: charts(keys[SHOWN:]))
            print(f"{'    so far: with every run in every chart':58s}{time.perf_counter() - begun:8.3f} s")
            time.sleep(2.1)
            number = listed["number"]
            timed("the list again, nothing new", lambda: get(f"{api}runs?since={number}"))
            with (folder / "run000" / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row(given.rows + 1, random.Random(1))) + "\n")
            time.sleep(2.1)
            changed = timed("the list again, one run grew by a row", lambda: get(f"{api}runs?since={number}"))
            assert len(changed["runs"]) == 1
            grown = changed["runs"][0]["key"]
            timed("one metric of that run", lambda: get(f"{api}series?run={grown}&metric=return_mean"))


if __name__ == "__main__":
    main()
