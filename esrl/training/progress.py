"""Progress of a run for a person: one live line on a terminal or in a notebook, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrl.envs.base import max_episode_steps_of, name_of
from esrl.envs.objectives import Objective, unit_of
from esrl.training.notebook import NotebookLine, in_notebook

_BARS = "▁▂▃▄▅▆▇█"


def watched() -> bool:
    """Whether a person looks: standard output is a terminal, or belongs to a notebook."""
    return sys.stdout.isatty() or in_notebook()


class Progress:
    """Progress of one run, written to the text stream `to`: generation, steps, steps/s, fitness, return, time left.

    The live line needs rich; without it, lines are printed as into a pipe.
    """

    def __init__(self, to: Any = None) -> None:
        self._to = to or sys.stdout
        self._live: Any = None
        self._begun = time.monotonic()
        self._begun_at: float | None = None
        self._shown = 0.0
        self._text = ""  # of the live line; empty while the first generation is compiled
        self._return: float | None = None
        self._start: float | None = None
        self._scores: list[tuple[int, float]] = []  # environment steps, held-out return
        self._warned = False
        self._unit, self._format = "steps", ".1f"  # of scores: an accuracy needs more digits than a return

    def start(self, agent: Any, out: Path | None) -> None:
        """Says what will run, before compilation."""
        plan = agent.plan
        evolves = agent.kind == "evolution"
        each = f", {plan.num_random:,} random numbers each" if evolves else ""
        self._unit, episodes = unit_of(agent.env)
        self._format = ".1f" if self._unit == "steps" else ".4g"
        each_generation = f"{episodes} a generation"
        at_once = "environments side by side" if agent.kind in ("gradient", "actor_critic") else each_generation
        writing = f"; writing {out}" if out is not None else ""
        how = getattr(agent.env, "how", None)  # of an environment that Python steps
        at_once += f" ({text})" if how is not None and (text := how(plan.lanes)) else ""
        what = f"{agent.name} on {name_of(agent.env)}"
        # An episode that is cut off at a limit which nobody gave looks like a perfect one.
        played = not isinstance(agent.env, Objective)
        limit = f", episodes of at most {max_episode_steps_of(agent.env):,} steps" if played else ""
        self._print(f"{what}: {plan.lanes:,} {at_once}, {plan.num_params:,} weights{each}{limit}{writing}")
        self._begun = time.monotonic()
        self._live = _live_line(self._to, self._now)
        if self._live is None:
            self._print("compiling ...")

    def show(self, row: dict[str, Any], progress: float) -> None:
        """One generation's line; in a pipe at most one every two seconds, and every score."""
        now = time.monotonic()
        if self._begun_at is None:
            self._begun_at = progress
            self._begun = now
        scored = row.get("eval_return_mean")
        self._return = scored if scored is not None else self._return
        if self._start is None and "start_return_mean" in row:
            self._start = row["start_return_mean"]
            if self._start is not None and math.isfinite(self._start):
                self._scores.append((0, self._start))
            self._print(f"return at the start: {_number(self._start, self._format)}")
        self._warn(row)
        line = self._line(row, progress, now)
        best = scored is not None and math.isfinite(scored) and all(scored > past for _, past in self._scores)
        if scored is not None and math.isfinite(scored):
            self._scores.append((row.get("env_steps") or 0, scored))
        if self._live is not None:
            first, self._text = not self._text, line
            if first or isinstance(self._live, NotebookLine):  # which has no thread
                self._live.refresh()
            if scored is not None:
                self._scored(row, scored, best)
        elif scored is not None or now - self._shown > 2:
            self._shown = now
            self._print(line + ("  best" if best else ""))

    def _now(self) -> str:
        """What the live line says: a clock before the first generation is there."""
        return self._text or f"compiling ... {_clock(time.monotonic() - self._begun)}"

    def _scored(self, row: dict[str, Any], scored: float, best: bool) -> None:
        """A line that stays above the live one, for each score."""
        spread = row.get("eval_return_std")
        around = f" +- {spread:{self._format}}" if spread is not None else ""
        text = f"{_short(row.get('env_steps') or 0):>8s} {self._unit}  return {scored:{self._format}}{around}"
        # A color only: NO_COLOR and terminals without colors show the word alone.
        self._print(text + ("  best" if best else ""), style="green" if best else None)

    def _line(self, row: dict[str, Any], progress: float, now: float) -> str:
        fresh = progress - (self._begun_at or 0.0)
        left = (now - self._begun) * (1 - progress) / fresh if fresh > 0 else None
        parts = [
            f"gen {row['generation']}",
            f"{_short(row.get('env_steps') or 0)} {self._unit} ({progress:.0%})",
            f"{_short(row.get('env_steps_per_second') or 0)}/s",
            f"fitness {_number(row['fitness_mean'], self._format)}"
            if "fitness_mean" in row
            else f"training {_number(row.get('return_mean'), self._format)}",
            f"return {self._return:{self._format}}" if self._return is not None else "return -",
            f"{_clock(left)} left" if left is not None else "",
        ]
        bad, what = row.get("nonfinite", 0), self._counted(row)
        return "  ".join(p for p in [*parts, f"{bad} {what} not finite" if bad else ""] if p)

    def _warn(self, row: dict[str, Any]) -> None:
        """Says once that something is not finite, and what to do."""
        if self._warned:
            return
        bad, skipped = row.get("nonfinite", 0), row.get("skipped_steps") or 0.0
        if bad:
            what = self._counted(row)
            effect = {"members": "a fitness that is not finite ranks worst", "steps": "they are left out"}.get(what, "")
            self._print(
                f"warning: {bad} {what} of generation {row['generation']} have an observation or reward that is not"
                f" finite{f' ({effect})' if effect else ''}; esrl.check_env says where"
            )
        elif skipped:
            self._print(
                f"warning: {skipped:.0%} of the gradient steps of generation {row['generation']} are not finite and"
                " left out; lower the learning rate, or normalize observations"
            )
        self._warned = bool(bad or skipped)

    @staticmethod
    def _counted(row: dict[str, Any]) -> str:
        """What the metric `nonfinite` counts."""
        return "members" if "fitness_mean" in row else "steps" if "skipped_steps" in row else "episodes"

    def stop(self) -> None:
        """Takes the live line away, leaving its last state."""
        if self._live is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Shows a line of its own."""
        self._print(text)

    def stopped(self, row: dict[str, Any], out: Path, saved: int) -> None:
        """Says where a run was stopped that is to go on: `saved` is the last generation on disk, 0 for none."""
        last = row.get("generation", 0)
        done = f"after generation {last}" if last else "before the first generation"
        whole = "everything" if saved == last else f"generation {saved}"
        kept = f"{whole} is saved" if saved else "nothing is saved yet"
        self._print(f"stopped {done}; {kept}. Go on with: esrl train --resume {out}")

    def end(self, row: dict[str, Any], out: Path | None) -> None:
        """Says what came out, and what to do next."""
        start = f"{self._start:{self._format}} -> " if self._start is not None else ""
        reached = f"return {start}{self._return:{self._format}}, " if self._return is not None else ""
        self._print(
            f"done: {reached}{_short(row.get('env_steps') or 0)} {self._unit} in {row.get('seconds') or 0:.1f} s"
            f" ({row.get('seconds_compile') or 0:.1f} s of them compiling)"
        )
        if len(self._scores) > 2:
            steps, best = max(self._scores, key=lambda score: score[1])
            self._print(f"returns {self._bars()} best {best:{self._format}} after {_short(steps)} {self._unit}")
        if out is not None:
            curve = f"curve: {out / 'curve.png'}   " if (out / "curve.png").exists() else ""
            self._print(f"{curve}look: esrl render {out}   score: esrl evaluate {out}")

    def _bars(self) -> str:
        """The scores as a row of bars, where the stream can hold them."""
        scores = [score for _, score in self._scores][-60:]
        low, high = min(scores), max(scores)
        bars = "".join(_BARS[round((score - low) / (high - low or 1.0) * (len(_BARS) - 1))] for score in scores)
        try:
            bars.encode(getattr(self._to, "encoding", None) or "utf-8")
        except (UnicodeError, LookupError):
            return f"of {len(scores)} evaluations:"
        return bars

    def _print(self, text: str, style: str | None = None) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; the run goes on
            if isinstance(self._live, NotebookLine):
                self._live.say(text)
            elif self._live is not None:
                from rich.text import Text

                self._live.console.print(Text(text, style=style or ""))
            else:
                print(text, file=self._to, flush=True)


def _number(value: float | None, form: str) -> str:
    # A row that was read back has None where it was not finite.
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def _live_line(to: Any, text: Callable[[], str]) -> Any:
    """A started live line on a terminal (by rich) or in a notebook, which asks for its text; else None."""
    if to is sys.stdout and in_notebook():
        return NotebookLine(text)
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=to, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        return None
    live = Live(get_renderable=text, console=console, refresh_per_second=4)
    live.start()
    return live
