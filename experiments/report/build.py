"""One HTML page with the project's measurements: conclusions, figures, tables, settings, and how to rerun each.

    python -m experiments.report.build                             # experiments/report/report.html
    python -m experiments.report.build --out somewhere.html

The page needs nothing outside it: figures are embedded, there is no script. Tables are made from each question's
results/, figures are those beside them and in plots/ (`make figures` redraws them), and the prose is conclusions.md:
its numbers are looked up in the results, see values.py. What is not measured says so, with its command. A number that
no result file has ends with a sentence, and no page.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import pandas as pd

from experiments.lab.record import ROOT, versions
from experiments.report import tables
from experiments.report.page import figure, folded, markdown, missing, page
from experiments.report.values import UnknownValue, fill, place

TITLE = "EGGROLL, OpenES and PPO: what was measured"
SECTIONS = {
    "use": "What to use when",
    "comparison": "Comparison",
    "paper": "The paper beside ours",
    "sweeps": "Rank, sigma, population",
    "defaults": "Defaults, and where they differ from the paper",
    "claims": "Claims",
    "tuning": "Tuning",
    "speed": "Speed",
    "rerun": "How to rerun it",
    "limits": "Limits",
}
COMMANDS = {
    "comparison": "python -m experiments.study.tune ENV ... --space study --trials 10 --seconds 6"
    " --final-seconds 15 --out experiments/study/results/study",
    "statistics": "python -m experiments.study.analysis",
    "steps": "python -m experiments.paper.steps",
    "paper": "python -m experiments.paper.run gymnax/CartPole-v1 --agent eggroll ppo --minutes 20",
    "sweeps": "python -m experiments.sweep.run",
    "defaults": "python -m experiments.ablation.run",
    "claims": "python -m experiments.claims.run",
    "tuning": "python -m experiments.study.tune",
    "speed": "python -m experiments.throughput.run",
    "figures": "make figures",
    "report": "python -m experiments.report.build",
}
SCRIPTS = {  # the script that draws a figure, by how the figure's name begins
    "ablation": "ablation/figures.py",
    "claims": "claims/figures.py",
    "growth": "throughput/figures.py",
    "sweep": "sweep/figures.py",
    "throughput": "throughput/figures.py",
}
CAPTIONS = {
    "study": "Normalised scores over all environments (interquartile mean, median, mean, optimality gap) and the"
    " probability that a run of one agent is better than one of another, with 95 % bootstrap intervals.",
    "study_profiles": "Performance profiles: the part of all runs whose normalised score is above a value.",
    "curves": "Held-out return over environment steps: interquartile means over seeds, 95 % bootstrap intervals.",
    "curves_seconds": "The same over seconds: of training, and what compiling took before.",
    "curves_episodes": "The same over episodes.",
}


def prose(path: Path, results: Path) -> dict[str, str]:
    """The parts of conclusions.md by section, in HTML, with their numbers filled in.

    Raises:
      UnknownValue: a number that no result file has, or a part whose section the report does not have.
    """
    text = re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL) if path.exists() else ""
    pieces = re.split(r"^# (\S+)\s*$", text, flags=re.MULTILINE)
    found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    for key in found:
        if key not in SECTIONS:
            raise UnknownValue(f"{path} has a part {key}, which is none of {', '.join(SECTIONS)}")
    return {key: markdown(fill(part, results)) for key, part in found.items() if part.strip()}


def made(table: str, command: str, summary: str = "") -> str:
    """A table, folded if it has a summary; or how to measure it."""
    if not table:
        return missing(command)
    return folded(summary, markdown(table)) if summary else markdown(table)


def pictures(folders: tuple[Path, Path], *names: str) -> str:
    """Figures by pattern, with their captions, from a question's results and from plots/."""
    found = [path for name in names for folder in folders for path in sorted(folder.glob(f"{name}.png"))]
    return "".join(figure(path, caption(path.stem)) for path in dict.fromkeys(found))


def caption(stem: str) -> str:
    """What a figure shows: by its name, or its script's first line."""
    curve = re.fullmatch(r"(?:compare|study_curves)(_seconds|_episodes|)", stem)
    key = f"curves{curve[1]}" if curve else stem
    if key in CAPTIONS:
        return CAPTIONS[key]
    names = [name for name in SCRIPTS if re.match(rf"{name}\b|{name}_", stem)]
    if not names:
        return stem
    first = (ROOT / "experiments" / SCRIPTS[names[0]]).read_text().partition("\n")[0]
    return f"{stem}: {first.strip(chr(34))}"


def comparison(results: Path, plots: Path) -> str:
    study, recipes = place(results, "study/study"), place(results, "study/compare")
    shown = place(results, "study"), plots
    parts = [pictures(shown, "study", "study_profiles", "study_curves", "study_curves_*")]
    parts += [made(tables.statistics(study), f"{COMMANDS['comparison']}; {COMMANDS['statistics']}")]
    if tables.settings(study):
        parts += [made(tables.settings(study), "", "settings, budgets, seeds and machine of every run")]
    parts += ["<h3>With the repository's recipes</h3>", pictures(shown, "compare", "compare_*")]
    parts += [made(tables.comparison(recipes), "python -m experiments.study.compare")]
    return "".join([*parts, made(tables.settings(recipes), "", "their settings") if tables.settings(recipes) else ""])


def swept(folder: Path, command: str) -> str:
    """A table for each file of a sweep or ablation."""
    files = sorted([*folder.glob("*.parquet"), *folder.glob("*.csv")])
    if not files:
        return missing(command)
    return "".join(f"<h3>{path.stem}</h3>" + markdown(tables.sweep(path)) for path in files)


def speed(results: Path, plots: Path) -> str:
    parts = [pictures((place(results, "throughput"), plots), "throughput-*", "growth-*")]
    for path in sorted(place(results, "throughput").glob("*-forward.csv")):
        rows = pd.read_csv(path)
        shown = [
            c for c in ("kind", "hidden", "population", "dtype", "ms_per_step", "fraction_of_inference") if c in rows
        ]
        cells = [[tables.plain(x) for x in row] for row in rows[shown].itertuples(index=False)]
        parts.append(folded(f"forward passes, {path.stem}", markdown(tables.study_table.lines(shown, cells))))
    return "".join(parts) if len(parts) > 1 else missing(COMMANDS["speed"])


def sections(results: Path, plots: Path, said: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Every section: its heading, and its prose before its figures and tables."""
    commands = "\n".join(f"- {key}: `{command}`" for key, command in COMMANDS.items())
    bodies = {
        "use": "" if "use" in said else '<p class="missing">No conclusions are written yet.</p>',
        "comparison": comparison(results, plots),
        "paper": made(tables.steps(place(results, "paper/steps.csv")), COMMANDS["steps"])
        + "<h3>The paper's own configurations</h3>"
        + made(tables.paper(place(results, "paper")), COMMANDS["paper"]),
        "sweeps": pictures((place(results, "sweep"), plots), "sweep", "sweep_*")
        + swept(place(results, "sweep"), COMMANDS["sweeps"]),
        "defaults": markdown(tables.defaults())
        + pictures((place(results, "ablation"), plots), "ablation", "ablation_*")
        + made(tables.ablation(place(results, "ablation")), COMMANDS["defaults"]),
        "claims": pictures((place(results, "claims"), plots), "claims", "claims_*", "claims-*")
        + made(tables.claims(place(results, "claims")), COMMANDS["claims"]),
        "tuning": made(
            tables.tuned(place(results, "study/study")) or tables.tuned(place(results, "study/tune")),
            COMMANDS["tuning"],
        ),
        "speed": speed(results, plots),
        "rerun": markdown("Each goes on where it was; `--help` says what it writes.\n\n" + commands),
        "limits": "" if "limits" in said else '<p class="missing">Not written yet.</p>',
    }
    return {key: (SECTIONS[key], said.get(key, "") + body) for key, body in bodies.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "experiments", help="a folder of questions, each with its results/"
    )
    parser.add_argument("--plots", type=Path, default=ROOT / "plots")
    parser.add_argument("--conclusions", type=Path, default=ROOT / "experiments" / "report" / "conclusions.md")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "report" / "report.html")
    arguments = parser.parse_args()
    try:
        said = prose(arguments.conclusions, arguments.results)
    except UnknownValue as error:
        sys.exit(str(error))
    lead = f"<p>Made from the result files at commit {versions()['commit']}. Intervals are of 95 %.</p>"
    text = page(TITLE, lead, sections(arguments.results, arguments.plots, said))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    part = arguments.out.with_name(arguments.out.name + ".part")
    part.write_text(text)
    os.replace(part, arguments.out)
    print(f"{arguments.out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
