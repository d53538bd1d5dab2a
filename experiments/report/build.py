"""One HTML page with the project's measurements: conclusions, figures, tables, settings, and how to rerun each.

    python -m experiments.report.build                             # experiments/report/report.html
    python -m experiments.report.build --out somewhere.html

The page (page.html) needs nothing outside it: figures are embedded, there is no script. Tables are made from each
question's results/, figures are those beside them and in plots/ (`make figures` redraws them), and the prose is
conclusions.md: its numbers are looked up in the results, see values.py. What is not measured says so, with its command.
A number that no result file has ends with a sentence, and no page.
"""

import base64
import html
import os
import re
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from experiments import script
from experiments.lab.store import ROOT, versions
from experiments.report import tables
from experiments.report.values import UnknownValue, fill, place

HERE = ROOT / "experiments" / "report"
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
    "comparison": "python -m experiments.study.run",
    "statistics": "python -m experiments.study.analysis",
    "steps": "python -m experiments.paper.compare",
    "paper": "python -m experiments.paper.run gymnax/CartPole-v1 --agent eggroll ppo --minutes 20",
    "sweeps": "python -m experiments.sweep.run",
    "defaults": "python -m experiments.ablation.run",
    "claims": "python -m experiments.claims.run",
    "tuning": "python -m experiments.study.tune",
    "speed": "python -m experiments.throughput.run",
    "figures": "make figures",
    "report": "python -m experiments.report.build",
}
SCRIPTS = ("ablation", "claims", "sweep")  # whose figures.py draws figures that begin with its name
KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
CAPTIONS = {
    "study": "Normalised scores over all environments (interquartile mean, median, mean, optimality gap) and the"
    " probability that a run of one agent is better than one of another, with 95 % bootstrap intervals.",
    "study_profiles": "Performance profiles: the part of all runs whose normalized score is above a value.",
    "curves": "Held-out return over environment steps: interquartile means over seeds, 95 % bootstrap intervals.",
    "curves_seconds": "The same over seconds: of training, and what compiling took before.",
    "curves_episodes": "The same over episodes.",
    "throughput": "Fraction of plain inference against width for every kind of noise, from the files of"
    " experiments/throughput/run.py.",
    "growth": "Time and memory against population, width, rank and episodes, from the growth files of"
    " experiments/throughput/run.py.",
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


# ---- HTML -----------------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Markdown with tables as HTML. HTML in it is shown as text; a table that is too wide scrolls.

    Pictures are files by their path in the repository, and are embedded.
    """
    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    made = re.sub(r'(<img src=")([^":]+)"', lambda found: f'{found[1]}{embedded(ROOT / found[2])}"', made)
    return made.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def embedded(path: Path) -> str:
    """A picture's file as an address that holds its bytes."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def missing(command: str) -> str:
    """What stands where there are no results."""
    return f'<p class="missing">Not measured yet: <code>{html.escape(command)}</code></p>'


def made(table: str, command: str, summary: str = "") -> str:
    """A table; folded, to open by a click, if it has a summary. Without one, how to measure it."""
    if not table:
        return missing(command) if command else ""
    content = markdown(table)
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>" if summary else content


def figures(results: Path, plots: Path, question: str, *names: str) -> str:
    """Figures by pattern, with their captions, from a question's results and from plots/."""
    folders = place(results, question), plots
    found = [path for name in names for folder in folders for path in sorted(folder.glob(f"{name}.png"))]
    texts = {path: html.escape(caption(path.stem)) for path in found}
    picture = '<figure><img alt="{0}" src="{1}"><figcaption>{0}</figcaption></figure>'
    return "".join(picture.format(text, embedded(path)) for path, text in texts.items())


def caption(stem: str) -> str:
    """What a figure shows: by its name, or its script's first line."""
    curve = re.fullmatch(r"(?:compare|study_curves)(_seconds|_episodes|)", stem)
    key = f"curves{curve[1]}" if curve else stem
    if key in CAPTIONS:
        return CAPTIONS[key]
    first = re.split("[-_]", stem)[0]
    if first in SCRIPTS:
        text = (ROOT / "experiments" / first / "figures.py").read_text().partition("\n")[0].strip('"')
        return f"{stem}: {text}"
    return f"{stem}: {CAPTIONS[first]}" if first in CAPTIONS else stem


# ---- sections -------------------------------------------------------------------------------------------------------


def comparison(results: Path, shown: Callable[..., str]) -> str:
    study, recipes = place(results, "study/study"), place(results, "study/compare")
    return "".join(
        [
            shown("study", "study", "study_profiles", "study_curves", "study_curves_*"),
            made(tables.statistics(study), f"{COMMANDS['comparison']}; {COMMANDS['statistics']}"),
            made(tables.settings(study), "", "settings, budgets, seeds and machine of every run"),
            "<h3>With the repository's recipes</h3>",
            shown("study", "compare", "compare_*"),
            made(tables.comparison(recipes), "python -m experiments.study.compare"),
            made(tables.settings(recipes), "", "their settings"),
        ]
    )


def swept(folder: Path) -> str:
    """A table for each file of a sweep."""
    files = sorted([*folder.glob("*.parquet"), *folder.glob("*.csv")])
    return "".join(f"<h3>{path.stem}</h3>" + markdown(tables.sweep(path)) for path in files)


def sections(results: Path, plots: Path, said: dict[str, str]) -> dict[str, str]:
    """Every section: its prose before its figures and tables."""

    def at(name: str) -> Path:
        return place(results, name)

    def shown(question: str, *names: str) -> str:
        return figures(results, plots, question, *names)

    forward = [(path.stem, tables.forward(path)) for path in sorted(at("throughput").glob("*-forward.csv"))]
    speed = shown("throughput", "throughput-*", "growth-*")
    speed += "".join(made(table, "", f"forward passes, {name}") for name, table in forward)
    tuned = tables.tuned(at("study/study")) or tables.tuned(at("study/tune"))
    commands = "\n".join(f"- {key}: `{command}`" for key, command in COMMANDS.items())
    bodies = {
        "use": "" if "use" in said else '<p class="missing">No conclusions are written yet.</p>',
        "comparison": comparison(results, shown),
        "paper": made(tables.steps(at("paper/steps.csv")), COMMANDS["steps"])
        + "<h3>The paper's own configurations</h3>"
        + made(tables.paper(at("paper")), COMMANDS["paper"]),
        "sweeps": shown("sweep", "sweep", "sweep_*") + (swept(at("sweep")) or missing(COMMANDS["sweeps"])),
        "defaults": markdown(tables.defaults())
        + shown("ablation", "ablation", "ablation_*")
        + made(tables.ablation(at("ablation")), COMMANDS["defaults"]),
        "claims": shown("claims", "claims", "claims_*", "claims-*")
        + made(tables.claims(at("claims")), COMMANDS["claims"]),
        "tuning": made(tuned, COMMANDS["tuning"]),
        "speed": speed if forward else missing(COMMANDS["speed"]),
        "rerun": markdown("Each goes on where it was; `--help` says what it writes.\n\n" + commands),
        "limits": "" if "limits" in said else '<p class="missing">Not written yet.</p>',
    }
    return {key: said.get(key, "") + body for key, body in bodies.items()}


@dataclass(frozen=True)
class Options:
    results: Path = ROOT / "experiments"  # a folder of questions, each with its results/
    plots: Path = ROOT / "plots"
    conclusions: Path = HERE / "conclusions.md"
    out: Path = HERE / "report.html"


def main() -> None:
    given = script.options(Options, __doc__)
    try:
        said = prose(given.conclusions, given.results)
    except UnknownValue as error:
        sys.exit(str(error))
    bodies = sections(given.results, given.plots, said)
    text = string.Template((HERE / "page.html").read_text()).substitute(
        title=html.escape(TITLE),
        lead=f"<p>Made from the result files at commit {versions()['commit']}. Intervals are of 95 %.</p>",
        contents=" ".join(f'<a href="#{key}">{html.escape(SECTIONS[key])}</a>' for key in bodies),
        sections="\n".join(f'<h2 id="{k}">{html.escape(SECTIONS[k])}</h2>\n{body}' for k, body in bodies.items()),
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    part = given.out.with_name(given.out.name + ".part")
    part.write_text(text)
    os.replace(part, given.out)
    print(f"{given.out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
