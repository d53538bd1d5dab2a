"""Where a run comes from: the table [made] of its recipe, which nothing reads; and what no recipe can hold."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import esrl
from esrl.core.errors import EsrlError, notice
from esrl.envs.catalog import SUITES
from esrl.envs.registry import check_again

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "gymnasium")
_PATIENCE = 5.0  # seconds for git
_LONGEST = 4000  # characters of a command


def made(env: str) -> dict[str, Any]:
    """Date, command, versions, device and commits of the run that begins now.

    Args:
      env: the environment's name in the recipe.

    Example:
      >>> sorted(made("brax/hopper")["versions"])[:2]
      ['brax', 'esrl']
    """
    devices = jax.devices()
    here, own = Path.cwd(), Path(esrl.__file__).parent
    commits = {"commit": _commit(here), "commit_of_esrl": _commit(own)}
    if commits["commit"] == commits["commit_of_esrl"]:
        commits.pop("commit_of_esrl")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "machine": platform.platform(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        **{name: commit for name, commit in commits.items() if commit},
        "versions": _versions(env),
    }


def say_what_is_lost(recipe: dict[str, Any], options: dict[str, Any]) -> None:
    """Says what of a run only Python code can make, so that nobody finds out when it is to be loaded.

    Args:
      recipe: of the run. options: what the agent was given.
    """
    lost = [name for name in options if recipe["options"].get(name) == "custom"]
    again = "esrl.load(folder, agent=...)" if lost else "esrl.load(folder, env=..., policy=...)"
    if recipe["policy"].get("network") == "custom":
        lost.insert(0, "the network")
    try:
        check_again(recipe["env"])
    except EsrlError:
        lost.insert(0, "the environment")
    if lost:
        what = " and ".join(lost)
        notice(f"recipe.toml cannot hold {what}, made in Python; keep the code, and give them again to {again}")


def _command() -> str:
    """What was typed, as far as Python knows it."""
    if not sys.argv or not sys.argv[0] or sys.argv[0] == "-c":
        return "python"
    program = Path(sys.argv[0])
    if program.name == "ipykernel_launcher.py":
        return "a notebook"
    ours = program.name == "esrl" or program.parts[-2:] == ("esrl", "__main__.py")
    return shlex.join([*(["esrl"] if ours else ["python", program.name]), *sys.argv[1:]])[:_LONGEST]


def _versions(env: str) -> dict[str, str]:
    suite = SUITES.get(env.partition("/")[0])
    packages = [*_PACKAGES, *([suite.distribution or suite.module.replace("_", "-")] if suite else [])]
    found = {"python": platform.python_version(), "esrl": esrl.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _commit(folder: Path) -> str:
    """The commit that a folder of a git repository is at, "-changed" behind it where a file differs; "" for others."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # asks, and writes nothing
        )
        done.check_returncode()
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-changed" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return ""
