"""The command that draws learning curves of runs. Needs no JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError, notice
from esrl.core.statistics import interquartile_mean, interval
from esrl.core.tables import Rows, aligned
from esrl.training.curves import Curve, curve, draw_groups, figure
from esrl.training.files import replacing, writing
from esrl.training.run_groups import StoredRun, grouped, read_run
from esrl.watch.runs import find_runs

_PANELS = 12  # environments of one picture at most


def plot(folders: tuple[str, ...] = ("runs",), *, out: str = "curves.png", x: str = "env_steps") -> int:
    """Draw learning curves of runs; those that differ by their seeds alone are one line.

    Held-out returns of the unperturbed parameters: the interquartile mean over seeds, with its 95 % bootstrap interval.
    A panel for each environment; the legend says what differs between the lines.

    Args:
      folders: folders of runs, or folders that hold such. Without them: runs.
      out: file to write; its ending says the format: png, svg or pdf.
      x: what the curves are over: env_steps, seconds (of training) or generations.
    """
    target = Path(out).expanduser()
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise EsrlError(f"--out is {out}, but must end in .png, .svg or .pdf")
    panels = panels_of([Path(folder).expanduser() for folder in folders], x)
    write_curves(panels, target, x)
    print(aligned(summary(panels)))
    print(f"{target}: {len(panels)} environment(s)")
    return 0


def panels_of(folders: list[Path], x: str) -> dict[str, dict[str, list[Curve]]]:
    """The held-out curves of the runs in some folders: by environment, and by what differs between them.

    Raises:
      EsrlError: there are no runs, or none with a held-out score.
    """
    paths = list(dict.fromkeys(path for folder in folders for path in find_runs(folder)))
    if not paths:
        raise EsrlError(f"there are no runs in {', '.join(map(str, folders))}; give folders of runs, as runs/first")
    by_env: dict[str, list[StoredRun]] = {}
    unscored = []
    for path in paths:
        try:
            run = read_run(path)
        except EsrlError as error:
            notice(f"{path} is left out: {error}")
            continue
        if curve(run.rows, x).x.size:
            by_env.setdefault(run.env, []).append(run)
        else:
            unscored.append(path)
    if not by_env:
        raise EsrlError(f"none of {len(paths)} runs has a held-out score to draw; train with --num-evals of at least 1")
    if unscored:
        notice(f"{len(unscored)} runs without a held-out score are left out, as {unscored[0]}")
    if len(by_env) > _PANELS:
        notice(f"of {len(by_env)} environments {_PANELS} are drawn; give fewer folders for the others")
    return {
        env: {label: [curve(run.rows, x) for run in members] for label, members in grouped(by_env[env]).items()}
        for env in sorted(by_env)[:_PANELS]
    }


def write_curves(panels: dict[str, dict[str, list[Curve]]], path: Path, x: str) -> None:
    """Draws groups of curves, a panel for each environment, into a file.

    Raises:
      EsrlError: matplotlib is not installed, or the file cannot be written.
    """

    def draw(each: Any) -> None:
        for ax, (env, groups) in zip(each if isinstance(each, list) else [each], panels.items(), strict=True):
            draw_groups(ax, groups, env, x)

    drawn = figure(draw, len(panels))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            drawn.savefig(part, dpi=120, format=path.suffix[1:])


def summary(panels: dict[str, dict[str, list[Curve]]]) -> Rows:
    """A table of where each line ends."""
    rows = Rows()
    for env, groups in panels.items():
        for label, curves in groups.items():
            ends = [float(each.mean[-1]) for each in curves]
            low, high = interval(ends)
            around = (float(low), float(high)) if len(ends) > 1 else None
            last = {"last return (IQM)": float(interquartile_mean(ends)), "95 % interval": around}
            rows.append({"environment": env, "line": label, "runs": len(ends), **last})
    return rows
