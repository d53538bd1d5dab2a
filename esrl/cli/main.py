"""The command line. Only what a command needs is imported: JAX takes seconds, and a refusal needs none of it."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import esrl
from esrl.cli.output import HELP, Helped
from esrl.core.errors import EsrlError, nearest
from esrl.core.extras import import_extra
from esrl.envs.catalog import check_spelling, spoken


class Command(NamedTuple):
    """A command: the module that has it as a function of its name, what it does, and whether it needs JAX."""

    module: str
    does: str
    jax: bool = True


COMMANDS = {
    "train": Command("esrl.cli.commands", "Train a policy on an environment, or by a recipe."),
    "evaluate": Command(
        "esrl.cli.commands", "Score a trained agent's unperturbed parameters on episodes that training never saw."
    ),
    "render": Command(
        "esrl.cli.commands",
        "Write an episode of a trained agent: a page that opens offline (Brax), or an MP4 or GIF.",
    ),
    "export": Command("esrl.cli.commands", "Write a trained policy as files that act without esrl."),
    "describe": Command(
        "esrl.cli.commands", "Print how each parameter would be perturbed, and how many random numbers that takes."
    ),
    "watch": Command(
        "esrl.cli.watching",
        "Show runs in a browser, while they train and afterwards: curves, the population, films, time left.",
        jax=False,
    ),
    "plot": Command(
        "esrl.cli.plotting",
        "Draw learning curves of runs; those that differ by their seeds alone are one line.",
        jax=False,
    ),
    "compare": Command(
        "esrl.cli.comparing", "Train agents on an environment with several seeds, and compare what they reach."
    ),
    "tune": Command("esrl.cli.tuning", "Search an agent's options on an environment, and write the best as a recipe."),
    "envs": Command("esrl.cli.list_envs", "List environments, or show one.", jax=False),
    "completion": Command("esrl.cli.completion", "Print a script that completes commands in your shell.", jax=False),
}
TAKE_ENV = ("train", "describe", "compare", "tune")  # commands whose first argument is an environment or a recipe
USAGE = """usage: esrl COMMAND ...

Reinforcement learning by evolution strategies.

commands:
{commands}

esrl COMMAND --help says more. A first run:
  esrl train brax/inverted_pendulum --hidden 32 32 --population 256 --env-steps 2e6 --out runs/first
With --traceback an error is shown with all of Python's traceback, an environment's own too."""


def command(name: str) -> Callable[..., int]:
    """A command's function.

    Raises:
      EsrlError: there is none of that name.
    """
    if name not in COMMANDS:
        raise EsrlError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    return getattr(importlib.import_module(COMMANDS[name].module), name)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in HELP:
        lines = "\n".join(f"  {name:11s}{known.does}" for name, known in COMMANDS.items())
        print(USAGE.format(commands=lines), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, rest = argv[0], list(argv[1:])
    if name == "--version":
        print(esrl.__version__)
        return 0
    if name not in COMMANDS:
        raise EsrlError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    for package in ("rich", "tyro"):
        import_extra(package, "cli", "the command line")
    # Importing JAX takes a second or two of silence, so what is about to happen is said before.
    if name in TAKE_ENV and rest and not rest[0].startswith("-"):
        rest[0] = spoken(rest[0])
        check_spelling(rest[0])
    if name == "train" and not {"--json", *HELP} & set(rest):
        target = "" if rest[:1] and rest[0].startswith("-") else " ".join(rest[:1])
        print(f"esrl {esrl.__version__}: {name} {target}".rstrip(), flush=True)
    from esrl.cli.invocation import invocation

    if name == "describe" and rest and Path(rest[0], "recipe.toml").expanduser().is_file():
        rest[0] = str(Path(rest[0], "recipe.toml"))
    function = command(name)
    arguments: dict[str, Any] = invocation(function, rest)
    if COMMANDS[name].jax:
        from esrl.core.runtime import check_jax

        esrl.configure()
        check_jax()  # said before anything else fails for want of one
    return function(**arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 2 for bad input (one line says what), or 130 when interrupted."""
    status = _main(argv)
    if status and (processes := sys.modules.get("esrl.core.processes")):
        if processes.several():
            processes.abandon()  # what has failed here waits for nobody
        processes.leave(status)  # one that others wait for, or that waits for a process that is gone
    return status


def _main(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    whole = "--traceback" in given
    if whole:
        from esrl.envs.faults import show_tracebacks

        given.remove("--traceback")
        show_tracebacks()
    try:
        return _dispatch(given)
    except EsrlError as error:
        if whole:
            traceback.print_exception(error)
        print(f"esrl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Helped:
        return 0
    except SystemExit as stop:  # of an environment's own, or of other code of the user's
        print(f"esrl: error: exit was called: {'status 0' if stop.code is None else stop.code}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("esrl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:  # a name that is too long, a folder of another user, a terminal that is gone
        with contextlib.suppress(OSError):
            print(f"esrl: error: {error}", file=sys.stderr)
        return 2
