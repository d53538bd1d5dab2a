"""The commands that train, score, draw and describe. Each is a function; its docstring is its help."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import esrl
from esrl.cli import dry_run as dry_runs
from esrl.cli.output import plain_name, say_json, tell, width
from esrl.core.errors import EsrlError
from esrl.core.processes import at_first, is_first, together
from esrl.envs.base import name_of
from esrl.envs.catalog import spoken
from esrl.envs.objectives import Objective
from esrl.training.loop import finish
from esrl.training.progress import Progress
from esrl.training.recipe import Recipe
from esrl.training.run_folder import RunFolder, at, check_new
from esrl.training.stopping import Stopped


def train(
    recipe: Recipe,
    *,
    out: str | None = None,
    resume: str | None = None,
    trust: bool = False,
    dry_run: bool = False,
    json: bool = False,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
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
      distributed: train together with the same command in other processes, one for each host; a cluster (SLURM, Open
        MPI, Kubernetes, Cloud TPU) says which, elsewhere the next three do. Process 0 keeps the folder.
      coordinator: HOST:PORT at which process 0 listens.
      processes: how many processes there are.
      process_id: which one this is, 0 for the one that the others connect to.
    """
    if not recipe.env:
        raise EsrlError("say what to train on: an environment as brax/hopper, or a recipe file")
    if dry_run:
        if distributed or any(given is not None for given in (coordinator, processes, process_id)):
            raise EsrlError(
                "dry_run tells of one process; leave it out, or what joins others (--distributed and so on)"
            )
        found = dry_runs.dry_run(recipe)
        return tell(found, dry_runs.text(found, width()), json)
    folder = at(resume or out or _default_out(recipe))
    if resume is None:
        at_first(lambda: check_new(folder))  # before an environment is made, which may take long
    agent = together(recipe.build)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    run = recipe.run(agent, folder, resume is not None)
    writes = is_first()
    progress = Progress(sys.stderr if json else sys.stdout) if writes else None
    status = 0
    try:
        last = finish(run, progress).metrics
    except KeyboardInterrupt as error:
        status = 128 + (error.signum if isinstance(error, Stopped) else signal.SIGINT)
        last = RunFolder(folder).last_row() if writes else {}
        if progress is not None:
            progress.stopped(last, folder, max(RunFolder(folder).checkpoints.generations(), default=0))
    except EsrlError as error:
        if not writes:
            raise
        saved = max(RunFolder(folder).checkpoints.generations(), default=0)
        if saved and run.begun:
            raise EsrlError(
                f"{error}; generation {saved} is saved, go on with: esrl train --resume {folder}"
            ) from error
        if resume is None and not saved and not RunFolder(folder).last_row():
            _remove(folder, missing)
        raise
    if json and writes:
        say_json(_summary(last, folder))
    return status


def evaluate(
    folder: str,
    *,
    episodes: int = 128,
    seed: int = 1000,
    generation: int | str | None = None,
    env: str | None = None,
    trust: bool = False,
    json: bool = False,
) -> int:
    """Score a trained agent's unperturbed parameters on episodes that training never saw.

    Args:
      folder: the folder of a run.
      episodes: held-out episodes.
      seed: seed of the episodes' worlds.
      generation: whose checkpoint, or "best": the one with the highest held-out score. Without it: the last.
      env: environment with the same spaces, where the run's own can be made no more, or another is asked for.
      trust: run the code that the folder's recipe names, though nobody has named it here before.
      json: end with one JSON object on standard output.
    """
    agent, state, recipe = esrl.load(folder, env=_made(env), generation=generation, trust=trust)
    scored = esrl.evaluate(agent, state, episodes, seed)
    if isinstance(agent.env, Objective):
        text = (
            f"{recipe.agent} on {name_of(agent.env)}: score {scored.return_mean:.5g} +- {scored.return_std:.3g}"
            f" (mean and standard deviation over {scored.episodes} held-out keys)"
        )
    else:
        text = (
            f"{recipe.agent} on {name_of(agent.env)}: return {scored.return_mean:.2f} +- {scored.return_std:.2f}"
            f" (mean and standard deviation of {scored.episodes} held-out episodes), length {scored.length_mean:.1f}"
        )
    return tell({k: v for k, v in scored._asdict().items() if k != "returns"}, text, json)


def render(
    folder: str,
    *,
    form: str = "auto",
    out: str | None = None,
    seed: int = 1000,
    generation: int | str | None = None,
    env: str | None = None,
    trust: bool = False,
) -> int:
    """Write an episode of a trained agent: a page that opens offline (Brax), or an MP4 or GIF.

    Args:
      folder: the folder of a run.
      form: kind of file: html, mp4, gif, or auto: a page for Brax, else a video.
      out: the file without its ending. Without it: FOLDER/episode.
      seed: seed of the episode's world.
      generation: whose checkpoint, or "best": the one with the highest held-out score. Without it: the last.
      env: environment with the same spaces, where the run's own can be made no more, or another is asked for.
      trust: run the code that the folder's recipe names, though nobody has named it here before.
    """
    agent, state, _ = esrl.load(folder, env=_made(env), generation=generation, trust=trust)
    path, episode = esrl.render(agent, state, out or at(folder) / "episode", seed, form)
    print(f"{path}: return {episode.total:.1f} in {len(episode.rewards)} steps")
    return 0


def export(
    folder: str,
    *,
    to: str = "numpy",
    out: str | None = None,
    generation: int | str | None = None,
    trust: bool = False,
) -> int:
    """Write a trained policy as files that act without esrl.

    Args:
      folder: the folder of a run.
      to: format: numpy (a module and its arrays, which need NumPy alone), onnx, or stablehlo.
      out: folder to create. Without it: FOLDER/policy-FORMAT.
      generation: whose checkpoint, or "best": the one with the highest held-out score. Without it: the last.
      trust: run the code that the folder's recipe names, though nobody has named it here before.
    """
    path = esrl.export(folder, to=to, out=out, generation=generation, trust=trust)
    print(f"{path}: {', '.join(sorted(file.name for file in path.iterdir()))}")
    return 0


def describe(recipe: Recipe, *, trust: bool = False) -> int:
    """Print how each parameter would be perturbed, and how many random numbers that takes.

    Flags are those of train; ENV may also be the folder of a run.

    Args:
      trust: run the code that a run's folder names, though nobody has named it here before.
    """
    if not recipe.env:
        raise EsrlError("say what to describe: an environment as brax/hopper, a recipe file, or the folder of a run")
    print(esrl.describe(recipe.build(), width()))
    return 0


# ---- parts of them --------------------------------------------------------------------------------------------------


def _made(env: str | None) -> Any:
    """An environment that was named on the command line, in whatever way people write it."""
    return None if env is None else esrl.make(spoken(env))


def _default_out(recipe: Recipe) -> str:
    return f"runs/{plain_name(recipe.env)}-{recipe.agent}-seed{recipe.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


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
