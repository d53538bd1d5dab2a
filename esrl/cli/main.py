"""The command line: train, evaluate, render, describe, envs, watch. Each is a function; its docstring is its help."""

from __future__ import annotations

import contextlib
import json as jsons
import math
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import esrl
from esrl.cli import dry_run as dry_runs
from esrl.cli.arguments import HELP
from esrl.cli.inspection import inspect_env
from esrl.cli.invocation import invocation
from esrl.cli.list_envs import as_text, inspection_text, is_one, listing
from esrl.core.extras import import_extra
from esrl.core.runtime import check_jax
from esrl.core.types import EsrlError, nearest
from esrl.envs.base import name_of
from esrl.envs.faults import show_tracebacks
from esrl.training.loop import finish
from esrl.training.progress import Progress
from esrl.training.recipe import Recipe
from esrl.training.run_folder import RunFolder, at
from esrl.training.stopping import Stopped

# ---- commands -------------------------------------------------------------------------------------------------------


def train(
    recipe: Recipe,
    *,
    out: str | None = None,
    resume: str | None = None,
    trust: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Train a policy on an environment, or by a recipe.

    Metrics, checkpoints and the learning curve go to a folder; Ctrl-C (or SIGTERM) stops with everything saved. Flags
    left out have the values in brackets.

    Args:
      out: folder for the run. Without it: runs/ENV-AGENT-seedN-TIME.
      resume: go on with the run in this folder; it ends as if it had never stopped.
      trust: with --resume, run the code that the folder's recipe names, though nobody has named it here before.
      dry_run: say what the run would take (memory, compiling, steps/s), and train nothing.
      json: end with one JSON object on standard output.
    """
    if not recipe.env:
        raise EsrlError("say what to train on: an environment as brax/hopper, or a recipe file")
    if dry_run:
        found = dry_runs.dry_run(recipe)
        return _tell(found, dry_runs.text(found, _width()), json)
    agent = recipe.build()
    folder = at(resume or out or _default_out(recipe))
    missing = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    run = recipe.run(agent, folder, resume is not None)
    progress = Progress(sys.stderr if json else sys.stdout)
    status = 0
    try:
        last = finish(run, progress).metrics
    except KeyboardInterrupt as error:
        status = 128 + (error.signum if isinstance(error, Stopped) else signal.SIGINT)
        last = RunFolder(folder).last_row()
        progress.stopped(last, folder, max(RunFolder(folder).checkpoints.generations(), default=0))
    except EsrlError as error:
        saved = max(RunFolder(folder).checkpoints.generations(), default=0)
        if saved and run.begun:
            raise EsrlError(
                f"{error}; generation {saved} is saved, go on with: esrl train --resume {folder}"
            ) from error
        if resume is None and not saved and not RunFolder(folder).last_row():
            _remove(folder, missing)
        raise
    if json:
        _say_json(_summary(last, folder))
    return status


def evaluate(
    folder: str,
    *,
    episodes: int = 128,
    seed: int = 1000,
    generation: int | str | None = None,
    trust: bool = False,
    json: bool = False,
) -> int:
    """Score a trained agent's unperturbed parameters on episodes that training never saw.

    Args:
      folder: the folder of a run.
      episodes: held-out episodes.
      seed: seed of the episodes' worlds.
      generation: whose checkpoint, or "best": the one with the highest held-out score. Without it: the last.
      trust: run the code that the folder's recipe names, though nobody has named it here before.
      json: end with one JSON object on standard output.
    """
    agent, state, recipe = esrl.load(folder, generation=generation, trust=trust)
    scored = esrl.evaluate(agent, state, episodes, seed)
    text = (
        f"{recipe.agent} on {name_of(agent.env)}: return {scored.return_mean:.2f} +- {scored.return_std:.2f}"
        f" (mean and standard deviation of {scored.episodes} held-out episodes), length {scored.length_mean:.1f}"
    )
    return _tell({k: v for k, v in scored._asdict().items() if k != "returns"}, text, json)


def render(
    folder: str,
    *,
    form: str = "auto",
    out: str | None = None,
    seed: int = 1000,
    generation: int | str | None = None,
    trust: bool = False,
) -> int:
    """Write an episode of a trained agent: a page that opens offline (Brax), or an MP4 or GIF.

    Args:
      folder: the folder of a run.
      form: kind of file: html, mp4, gif, or auto: a page for Brax, else a video.
      out: the file without its ending. Without it: FOLDER/episode.
      seed: seed of the episode's world.
      generation: whose checkpoint, or "best": the one with the highest held-out score. Without it: the last.
      trust: run the code that the folder's recipe names, though nobody has named it here before.
    """
    agent, state, _ = esrl.load(folder, generation=generation, trust=trust)
    path, episode = esrl.render(agent, state, out or at(folder) / "episode", seed, form)
    print(f"{path}: return {episode.total:.1f} in {len(episode.rewards)} steps")
    return 0


def describe(recipe: Recipe, *, trust: bool = False) -> int:
    """Print how each parameter would be perturbed, and how many random numbers that takes.

    Flags are those of train; ENV may also be the folder of a run.

    Args:
      trust: run the code that a run's folder names, though nobody has named it here before.
    """
    if not recipe.env:
        raise EsrlError("say what to describe: an environment as brax/hopper, a recipe file, or the folder of a run")
    print(esrl.describe(recipe.build(), _width()))
    return 0


def envs(pattern: str = "", *, json: bool = False) -> int:
    """List environments, or show one.

    Lists the suites that are installed and how to install the others; the names in a suite; or one environment: its
    spaces, the size of a policy, and how fast a random policy steps it here.

    Args:
      pattern: a suite or a part of a name, in any case, lists names; a whole name, or file.py:Class, shows that one.
      json: end with one JSON object on standard output.
    """
    if is_one(pattern):
        shown = inspect_env(esrl.make(pattern))
        return _tell(shown._asdict(), inspection_text(shown), json)
    found = listing(pattern)
    return _tell(found, as_text(found, whole=bool(pattern)), json)


def watch(
    folders: tuple[str, ...] = ("runs",), *, host: str = "127.0.0.1", port: int = 8642, open: bool = False
) -> int:
    """Show runs in a browser, while they train and afterwards: curves, the population, films, time left.

    Serves a page to this machine alone, until Ctrl-C. Needs no network and no account.

    Args:
      folders: folders of runs, or folders that hold such. Without them: runs.
      host: address to listen to. Any other than 127.0.0.1 lets whoever reaches it read the runs.
      port: port to listen to, or the next one that is free; 0 is any.
      open: open a browser.
    """
    from esrl.watch.server import watch as serve

    serve([at(folder) for folder in folders], host, port, open)
    return 0


COMMANDS = {command.__name__: command for command in (train, evaluate, render, describe, envs, watch)}


# ---- parts of them --------------------------------------------------------------------------------------------------


def _default_out(recipe: Recipe) -> str:
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in recipe.env.partition("?")[0])
    return f"runs/{name}-{recipe.agent}-seed{recipe.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _remove(out: Path, made: list[Path]) -> None:
    """Removes what a run wrote that trained nothing, and the folders that were made for it."""
    with contextlib.suppress(OSError):  # it may be gone
        for inside in out.iterdir():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
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


def _width() -> int:
    """Characters of a line of a table."""
    return max(100, min(140, shutil.get_terminal_size((110, 24)).columns))


def _tell(found: dict[str, Any], text: str, as_json: bool) -> int:
    """Prints what was found, as JSON or as a text for people."""
    if as_json:
        _say_json(found)
    else:
        print(text)
    return 0


def _say_json(found: dict[str, Any]) -> None:
    print(jsons.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}))


# ---- all of them ----------------------------------------------------------------------------------------------------

USAGE = """usage: esrl COMMAND ...

Reinforcement learning by evolution strategies.

commands:
{commands}

esrl COMMAND --help says more. A first run:
  esrl train brax/inverted_pendulum --hidden 32 32 --population 256 --env-steps 2e6 --out runs/first
With --traceback an error is shown with all of Python's traceback, an environment's own too."""


def _dispatch(argv: Sequence[str]) -> int:
    for package in ("rich", "tyro"):
        import_extra(package, "cli", "the command line")
    if not argv or argv[0] in HELP:
        short = {name: (command.__doc__ or "").partition("\n")[0] for name, command in COMMANDS.items()}
        lines = "\n".join(f"  {name:10s}{text}" for name, text in short.items())
        print(USAGE.format(commands=lines), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, rest = argv[0], list(argv[1:])
    if name == "--version":
        print(esrl.__version__)
        return 0
    if name not in COMMANDS:
        raise EsrlError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    if name == "describe" and rest and (at(rest[0]) / "recipe.toml").is_file():
        rest[0] = str(at(rest[0]) / "recipe.toml")
    arguments = invocation(COMMANDS[name], rest)
    esrl.configure()
    check_jax()  # said before anything else fails for want of one
    return COMMANDS[name](**arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 2 for bad input (one line says what), or 130 when interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    whole = "--traceback" in given
    if whole:
        given.remove("--traceback")
        show_tracebacks()
    try:
        return _dispatch(given)
    except EsrlError as error:
        if whole:
            traceback.print_exception(error)
        print(f"esrl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as stop:  # tyro ends so after --help
        if isinstance(stop.code, str):  # of an environment's own
            print(f"esrl: error: exit was called: {stop.code}", file=sys.stderr)
            return 2
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("esrl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:  # a name that is too long, a folder of another user, a terminal that is gone
        with contextlib.suppress(OSError):
            print(f"esrl: error: {error}", file=sys.stderr)
        return 2
