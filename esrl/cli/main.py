"""The command line: train, evaluate, render, describe, envs."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esrl.algorithms.description import describe
from esrl.cli import dry_run
from esrl.cli.arguments import HELP, Flag, Groups, help_text, raw, values
from esrl.cli.invocation import JSON, TARGET, invocation
from esrl.cli.list_envs import as_text, inspection_text, is_one, listing
from esrl.cli.progress import Progress, say
from esrl.core.runtime import configure
from esrl.core.types import EsrlError, nearest
from esrl.envs.inspection import inspect_env
from esrl.envs.registry import make
from esrl.training.evaluation import evaluate
from esrl.training.recipe import Recipe, load
from esrl.training.rendering import render
from esrl.training.run_folder import RunFolder

_FOLDER = Flag("folder", Path, "the folder of a run", metavar="DIR")
_PATTERN = Flag(
    "pattern",
    str,
    "a suite or a part of a name, in any case, lists names; a whole name, or file.py:Class, shows one environment",
    "",
    metavar="[TEXT]",
)
_SEED = Flag("seed", int, "of the episodes' worlds", 1000)
_EPISODES = Flag("episodes", int, "held-out episodes, played all at once", 128)
_FORM = Flag(
    "form", str, "kind of file; auto is a page for Brax, else a video", "auto", False, ("auto", "html", "mp4", "gif")
)
_FILE = Flag("out", Path, "the file without its ending; DIR/episode unless given", metavar="FILE")


# ---- training -------------------------------------------------------------------------------------------------------


def _train(argv: Sequence[str]) -> int:
    asked = invocation(argv)
    recipe, resume = asked.recipe, asked.resume is not None
    if not recipe.env:
        raise EsrlError("say what to train on: an environment as brax/hopper, or a recipe file")
    if asked.dry_run:
        found = dry_run.dry_run(recipe)
        return _tell(found, dry_run.text(found, _width()), asked.json)
    agent = recipe.build()
    out = asked.resume or asked.out or _default_out(recipe)
    missing = _missing(out)
    training = recipe.train(agent, out, resume=resume)
    progress = Progress(recipe, to=sys.stderr if asked.json else sys.stdout)
    progress.start(agent, out)
    last: dict[str, Any] = {}
    interrupted = False
    try:
        generations: Any = iter(training)
        with contextlib.closing(generations):
            for _, state, last in generations:
                progress.show(last, training.progress(state))
    except KeyboardInterrupt:
        interrupted = True
        last = (RunFolder(out).rows()[-1:] or [last])[0]
    except EsrlError as error:
        if RunFolder(out).rows():
            raise EsrlError(f"{error}; earlier generations are saved, go on with: esrl train --resume {out}") from error
        if not resume:
            _remove(out, missing)
        raise
    finally:
        progress.stop()
    progress.end(last, out, interrupted)
    if asked.json:
        _say_json(_summary(last, out))
    return 130 if interrupted else 0


def _default_out(recipe: Recipe) -> Path:
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in recipe.env.partition("?")[0])
    return Path("runs") / f"{name}-{recipe.agent}-seed{recipe.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _missing(out: Path) -> list[Path]:
    """The folder and its parents that do not exist yet, innermost first."""
    return [path for path in (out, *out.parents) if not path.exists()]


def _remove(out: Path, made: list[Path]) -> None:
    """Takes back a run's folder in which nothing was trained, and the parents that were made for it."""
    for inside in out.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()


def _summary(last: dict[str, Any], out: Path) -> dict[str, Any]:
    working = last.get("seconds", 0.0) - last.get("seconds_compile", 0.0)
    return {
        "out": str(out),
        "env_steps": last.get("env_steps", 0),
        "generations": last.get("generation", 0),
        "seconds": last.get("seconds", 0.0),
        "seconds_compile": last.get("seconds_compile", 0.0),
        "env_steps_per_second": round(last.get("env_steps", 0) / working, 1) if working > 0 else 0.0,
        "return_mean": last.get("eval_return_mean"),
    }


# ---- the other commands ---------------------------------------------------------------------------------------------


def _evaluate(argv: Sequence[str]) -> int:
    given = _given("evaluate", argv)
    loaded = load(given["folder"])
    scored = evaluate(loaded.agent, loaded.state, given["episodes"], given["seed"])
    text = (
        f"{loaded.recipe.agent} on {loaded.recipe.env}: return {scored.return_mean:.2f} +- {scored.return_std:.2f}"
        f" (mean and standard deviation of {scored.episodes} held-out episodes), length {scored.length_mean:.1f}"
    )
    found = {k: v for k, v in scored._asdict().items() if k != "returns"}
    return _tell(found, text, given["json"])


def _render(argv: Sequence[str]) -> int:
    given = _given("render", argv)
    loaded = load(given["folder"])
    out = given["out"] or given["folder"] / "episode"
    path, episode = render(loaded.agent, loaded.state, out, given["seed"], given["form"])
    say(f"{path}: return {episode.total:.1f} in {len(episode.rewards)} steps")
    return 0


def _describe(argv: Sequence[str]) -> int:
    folder = Path(argv[0]) / "recipe.toml" if argv else Path()
    asked = invocation([str(folder), *argv[1:]] if folder.is_file() else argv)
    if not asked.recipe.env:
        raise EsrlError("say what to describe: an environment as brax/hopper, a recipe file, or the folder of a run")
    say(describe(asked.recipe.build(), _width()))
    return 0


def _width() -> int:
    """Characters of a line of a table."""
    return max(100, min(140, shutil.get_terminal_size((110, 24)).columns))


def _envs(argv: Sequence[str]) -> int:
    given = _given("envs", argv)
    pattern = given["pattern"]
    if is_one(pattern):
        shown = inspect_env(make(pattern))
        found, text = shown._asdict(), inspection_text(shown)
    else:
        found = listing(pattern)
        text = as_text(found, whole=bool(pattern))
    return _tell(found, text, given["json"])


# ---- all of them ----------------------------------------------------------------------------------------------------


class _Command(NamedTuple):
    """A command: what runs it, what its help says, its argument (in capitals where it cannot be left out), its flags.

    `flags` is None where they depend on the arguments: see `invocation`.
    """

    run: Callable[[Sequence[str]], int]
    short: str
    about: str
    argument: Flag
    flags: Sequence[Flag] | None = None


COMMANDS = {
    "train": _Command(
        _train,
        "train a policy on an environment, or by a recipe",
        "Train a policy on an environment, or by a recipe. Metrics, checkpoints and the learning curve go to a folder;"
        " Ctrl-C stops with everything saved. Flags left out have the values in brackets.",
        TARGET,
    ),
    "evaluate": _Command(
        _evaluate,
        "score a trained agent on held-out episodes",
        "Score a trained agent's unperturbed parameters on episodes that training never saw.",
        _FOLDER,
        (_EPISODES, _SEED, JSON),
    ),
    "render": _Command(
        _render,
        "write an episode as a page or a video",
        "Write an episode of a trained agent: a page that opens offline (Brax), or an MP4 or GIF.",
        _FOLDER,
        (_FORM, _FILE, _SEED),
    ),
    "describe": _Command(
        _describe,
        "print which parameters get low-rank noise, and what it costs",
        "Print how each parameter would be perturbed and how many random numbers that takes. Flags are those of train;"
        " ENV may also be the folder of a run.",
        TARGET,
    ),
    "envs": _Command(
        _envs,
        "list environments, or show one",
        "List the suites that are installed, and how to install the others; the names in a suite; or show one"
        " environment: its spaces, the size of a policy, and how fast a random policy steps it here.",
        _PATTERN,
        (JSON,),
    ),
}

USAGE = """usage: esrl COMMAND ...

Reinforcement learning by evolution strategies.

commands:
{commands}

esrl COMMAND --help says more. A first run:
  esrl train brax/inverted_pendulum --hidden 32 32 --population 256 --env-steps 2e6 --out runs/first
"""


def _given(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """Every value of a command with fixed flags, defaults included."""
    command = COMMANDS[name]
    flags = (command.argument, *(command.flags or ()))
    given = raw(argv, command.flags or (), command.argument.name)
    if command.argument.default is None and command.argument.name not in given:
        raise EsrlError(f"say {command.argument.help}, as: esrl {name} runs/first")
    return {flag.name: flag.default for flag in flags} | values(given, flags)


def _help(name: str, argv: Sequence[str]) -> str:
    command = COMMANDS[name]
    groups: Groups = invocation(argv).groups if command.flags is None else {"options": command.flags}
    if name == "describe":
        groups = {heading: flags for heading, flags in groups.items() if heading != "run"}
    usage = f"esrl {name} {command.argument.metavar} [options]"
    return help_text(usage, command.about, command.argument, groups)


def _tell(found: dict[str, Any], text: str, as_json: bool) -> int:
    """Says what was found, as JSON or as a text for people."""
    if as_json:
        _say_json(found)
    else:
        say(text)
    return 0


def _say_json(found: dict[str, Any]) -> None:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
    say(json.dumps(clean))


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in HELP:
        lines = "\n".join(f"  {name:10s}{command.short}" for name, command in COMMANDS.items())
        print(USAGE.format(commands=lines).rstrip(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name == "--version":
        from esrl import __version__

        say(__version__)
    elif name not in COMMANDS:
        raise EsrlError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    elif set(HELP) & set(rest):
        say(_help(name, rest))
    else:
        configure()
        return COMMANDS[name].run(rest)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 2 for bad input (one line says what), or 130 when interrupted."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else list(argv))
    except EsrlError as error:
        print(f"esrl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("esrl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
