"""What the recipes reached, from the result files of experiments/seeds.py, as a Markdown table.

python experiments/table.py               # prints the table
python experiments/table.py --headers     # also writes each recipe's header: date, commit, seeds, score
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from pathlib import Path

import numpy as np
from seeds import ROOT, interquartile_mean, interval


def row(result: dict) -> str:
    """One recipe's line."""
    runs, recipe = result["runs"], result["recipe"]
    returns = np.array([run["return_mean"] for run in runs])
    low, high = interval(returns)
    start = np.mean([run["start_return"] for run in runs])
    seconds = [run["seconds_all"] for run in runs]
    hidden = recipe["policy"]["hidden"]
    network = "x".join(map(str, hidden)) + " " + recipe["policy"]["activation"] if hidden else "linear"
    return (
        f"| `{recipe['env']}` | {network} | {runs[0]['env_steps'] / 1e6:.3g}M | {len(runs)} | {start:.0f} |"
        f" {interquartile_mean(returns):.1f} [{low:.1f}, {high:.1f}] | {returns.min():.1f} |"
        f" {min(seconds):.0f} to {max(seconds):.0f} |"
    )


def write_header(path: Path, result: dict, commit: str) -> None:
    """Says in the recipe's first lines what it reached."""
    returns = np.array([run["return_mean"] for run in result["runs"]])
    low, high = interval(returns)
    seconds = [run["seconds_all"] for run in result["runs"]]
    text = path.read_text()
    body = text[text.index("env =") :]
    header = (
        f"# {datetime.date.today()}, commit {commit}, seeds 0 to {len(returns) - 1}: held-out return, interquartile\n"
        f"# mean {interquartile_mean(returns):.1f}, 95 % bootstrap interval [{low:.1f}, {high:.1f}], lowest seed"
        f" {returns.min():.1f}; {min(seconds):.0f} to {max(seconds):.0f} s on two cores,\n"
        "# compilation included. python experiments/seeds.py measures it again.\n"
    )
    path.write_text(header + body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", action="store_true")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    print("| environment | network | env steps | seeds | start | return, IQM [95 %] | lowest seed | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted((ROOT / "experiments" / "results" / "seeds").glob("*.json")):
        result = json.loads(path.read_text())
        print(row(result))
        if arguments.headers:
            recipe = result["recipe"]
            file = ROOT / "agents" / recipe["env"].partition("?")[0] / f"{recipe.get('agent', 'eggroll')}.toml"
            write_header(file, result, commit.stdout.strip())


if __name__ == "__main__":
    main()
