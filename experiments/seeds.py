"""A recipe on several seeds, each in a process of its own: held-out returns, steps and seconds.

    python experiments/seeds.py agents/gymnasium/phys2d/CartPole-v1/eggroll.toml --seeds 5 --threshold 495

Every run starts from scratch with an empty compilation cache, so its seconds hold everything: start-up, compilation,
training and scoring. The score is that of the unperturbed parameters on held-out episodes. Written to
experiments/results/seeds/<environment>-<agent>.json, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jax", "flax", "optax", "gymnasium", "brax", "numpy")


def esrl(*arguments: str, cache: str) -> dict:
    """A command's JSON object."""
    environment = {**os.environ, "ESRL_CACHE_DIR": cache}
    command = [sys.executable, "-m", "esrl", *arguments, "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(recipe: str, seed: int, episodes: int, extra: list[str]) -> dict:
    """One seed: trains and scores it."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        begun = time.perf_counter()
        trained = esrl("train", recipe, "--seed", str(seed), "--out", out, *extra, cache=str(Path(folder) / "cache"))
        seconds = time.perf_counter() - begun
        scored = esrl("evaluate", out, "--episodes", str(episodes), "--seed", "1000", cache="")
        lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scores = [r for r in rows if r.get("eval_return_mean") is not None]
    curve = [[r["env_steps"], r["eval_return_mean"], r["seconds"]] for r in scores]
    keep = ("env_steps", "generations", "seconds_compile", "env_steps_per_second")
    return {
        "seed": seed,
        "return_mean": scored["return_mean"],
        "return_std": scored["return_std"],
        "length_mean": scored["length_mean"],
        "start_return": rows[0].get("start_return_mean"),
        "seconds_all": round(seconds, 2),
        **{k: trained[k] for k in keep},
        "curve": curve,
    }


def interquartile_mean(x: np.ndarray) -> float:
    """Mean of the middle half (with fractional weights at its ends)."""
    x = np.sort(x)
    edges = np.linspace(0, 1, len(x) + 1)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float(np.sum(weights * x) / np.sum(weights))


def interval(x: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the interquartile mean over seeds."""
    random = np.random.default_rng(0)
    means = [interquartile_mean(random.choice(x, len(x))) for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=None)
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "seeds")
    arguments, extra = parser.parse_known_args()

    recipe = tomllib.loads((ROOT / arguments.recipe).read_text())
    runs = []
    for seed in range(arguments.seeds):
        runs.append(run(arguments.recipe, seed, arguments.episodes, extra))
        r = runs[-1]
        print(
            f"seed {seed}: return {r['start_return']:.1f} -> {r['return_mean']:.1f} +- {r['return_std']:.1f}"
            f" ({arguments.episodes} episodes), {r['env_steps']:,} steps, {r['seconds_all']:.1f} s in all"
            f" ({r['seconds_compile']:.1f} s compiling)",
            flush=True,
        )
    returns = np.array([r["return_mean"] for r in runs])
    low, high = interval(returns)
    print(f"interquartile mean {interquartile_mean(returns):.1f}, 95 % bootstrap interval [{low:.1f}, {high:.1f}]")
    if arguments.threshold is not None:
        print(f"{int(np.sum(returns >= arguments.threshold))} of {len(runs)} seeds reach {arguments.threshold:g}")
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    name = recipe["env"].partition("?")[0].replace("/", "-") + "-" + recipe.get("agent", "eggroll")
    arguments.results.mkdir(parents=True, exist_ok=True)
    result = {"recipe": recipe, "extra": extra, "machine": machine, "versions": versions, "runs": runs}
    (arguments.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
