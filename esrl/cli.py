"""The command line: train, evaluate, render, describe, envs (level 7)."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from esrl.console import Progress, say
from esrl.types import EsrlError

_BUDGET = 1_000_000  # environment steps when neither budget is given


# ---- arguments ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Evaluate:
    """Score a trained agent's unperturbed parameters on held-out episodes."""

    folder: tyro.conf.Positional[Path]
    """The run's folder."""
    episodes: int = 128
    """Episodes, played all at once."""
    seed: int = 1000
    """Of the episodes' worlds."""
    json: bool = False
    """End with one JSON object on standard output."""


@dataclasses.dataclass(frozen=True)
class _Render:
    """Write an episode of a trained agent: a page that opens offline (Brax), or an MP4 or GIF."""

    folder: tyro.conf.Positional[Path]
    """The run's folder; the file goes there as episode.html, .mp4 or .gif."""
    seed: int = 1000
    """Of the episode's world."""
    form: Literal["auto", "html", "mp4", "gif"] = "auto"
    """Kind of file."""
    out: Path | None = None
    """The file without its ending, to write it somewhere else."""


@dataclasses.dataclass(frozen=True)
class _Envs:
    """List the environments that are installed, and how to install the others."""

    pattern: tyro.conf.Positional[str] = ""
    """Only names that contain this."""
    json: bool = False
    """Print one JSON object instead."""


def _run_fields(recipe: Any) -> list[tuple[str, Any, Any]]:
    """Fields of a run, with a recipe's values as defaults: (name, annotated type, default)."""
    policy = recipe.policy
    hidden = policy.get("hidden", [128] if policy.get("network") == "gru" else [256, 256, 256])
    hidden = tuple(hidden) if isinstance(hidden, (list, tuple)) else (hidden,)
    return [
        _field("env_steps", float | None, recipe.env_steps, "Live environment steps to train for; 1e6 unless a budget is given."),
        _field("generations", int | None, recipe.generations, "Generations to train for."),
        _field("seed", int, recipe.seed, "Of everything random."),
        _field("out", Path | None, None, "Folder for the run; runs/ENV-AGENT-seedN-TIME unless given."),
        _field("resume", Path | None, None, "Folder of a run to go on with."),
        _field("network", str, policy.get("network", "mlp"), "mlp, gru, or path/to/file.py:Name."),
        _field("hidden", tuple[int, ...], hidden, "Widths of the hidden layers."),
        _field("activation", str, policy.get("activation", "pqn"), "pqn (relu of LayerNorm), relu, tanh, silu, gelu or elu."),
        _field("output_scale", float, policy.get("output_scale", 1.0), "Size of the network's outputs at the start."),
        _field("evaluations", int, recipe.evaluations, "Times that the unperturbed parameters are scored in a run."),
        _field("evaluate_episodes", int, recipe.evaluate_episodes, "Held-out episodes of each."),
        _field("checkpoint_every", int | None, recipe.checkpoint_every, "Generations between checkpoints; with each evaluation unless given."),
        _field("json", bool, False, "End with one JSON object on standard output."),
    ]


def _field(name: str, kind: Any, default: Any, help: str) -> tuple[str, Any, Any]:
    return name, Annotated[kind, tyro.conf.arg(help=help)], dataclasses.field(default=default)


def _train_arguments(recipe: Any, options: type) -> type:
    """The dataclass of `esrl train` for one agent: the run, the network, and this agent's own options."""
    own = []
    for f in dataclasses.fields(options):
        plain = f.metadata.get("plain")
        if plain is None:
            continue
        default = recipe.options.get(f.name, f.default)
        kind = plain | None if f.default is None else plain
        own.append(_field(f.name, kind, default, f.metadata["help"][0].upper() + f.metadata["help"][1:] + "."))
    target = ("target", Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV", help="Environment, as brax/hopper, gymnasium/CartPole-v1 or file.py:Class; or a recipe, as agents/brax/hopper/eggroll.toml.")], dataclasses.field(default=recipe.env))
    agent = _field("agent", str, recipe.agent, "eggroll; the options below are this agent's.")
    cls = dataclasses.make_dataclass("Train", [target, agent, *_run_fields(recipe), *own], frozen=True)
    cls.__doc__ = f"Train {recipe.agent} on an environment or by a recipe; flags override the recipe."
    return cls


# ---- commands -------------------------------------------------------------------------------------------------------


def _train(argv: Sequence[str]) -> int:
    from esrl import recipe as recipes

    base, resume = _base_recipe(argv)
    _, options = recipes.agent_named(base.agent)
    cls = _train_arguments(base, options)
    args = _parse(cls, argv, "esrl train")
    recipe = _with_flags(base, args, options)
    out = resume or args.out or _default_out(recipe)
    progress = Progress(recipe, to=sys.stderr if args.json else sys.stdout)
    agent = recipe.build()
    training = recipe.train(agent, out, resume=resume is not None)
    last: dict[str, Any] = {}
    interrupted = False
    progress.start(agent, out)
    try:
        for _, state, last in training:
            progress.show(last, training.progress(state))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stop()
    progress.end(last, out, interrupted)
    if args.json:
        say(json.dumps(_summary(last, out)))
    return 130 if interrupted else 0


def _base_recipe(argv: Sequence[str]) -> tuple[Any, Path | None]:
    """The recipe that the flags are laid over: that of --resume, of a file, or an empty one for an environment."""
    from esrl import recipe as recipes
    from esrl.log import RunFolder

    resume = _peek(argv, "--resume")
    if resume is not None:
        return recipes.read(RunFolder.existing(resume).recipe), Path(resume)
    target = next((a for a in argv[:1] if not a.startswith("-")), None)
    if target is not None and target.endswith(".toml"):
        recipe = recipes.read(target)
    elif target is None and not {"-h", "--help"} & set(argv):
        raise EsrlError("say what to train on, right after train: an environment as brax/hopper, or a recipe file")
    else:
        recipe = recipes.Recipe(env=target or "brax/hopper")
    agent = _peek(argv, "--agent")
    if agent is not None and agent != recipe.agent:
        recipe = dataclasses.replace(recipe, agent=agent, options={})
    return recipe, None


def _peek(argv: Sequence[str], flag: str) -> str | None:
    for i, argument in enumerate(argv):
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
        if argument == flag and i + 1 < len(argv):
            return argv[i + 1]
    return None


def _with_flags(base: Any, args: Any, options: type) -> Any:
    """The recipe with what the flags changed."""
    network = args.network
    policy: dict[str, Any] = {"network": network}
    if network in ("mlp", "gru"):
        policy |= {"hidden": list(args.hidden), "activation": args.activation, "output_scale": args.output_scale}
        kept = {k: v for k, v in base.policy.items() if k not in policy and base.policy.get("network", "mlp") == network}
        policy |= kept
        if network == "gru" and base.policy.get("network") != "gru" and args.hidden == (256, 256, 256):
            policy["hidden"] = [128]
    chosen = {}
    for f in dataclasses.fields(options):
        if f.metadata.get("plain") is None:
            continue
        value = getattr(args, f.name)
        if value != f.default:
            chosen[f.name] = value
    kept = {k: v for k, v in base.options.items() if k not in {f.name for f in dataclasses.fields(options) if f.metadata.get("plain")}}
    env_steps, generations = args.env_steps, args.generations
    if env_steps is None and generations is None:
        env_steps = float(_BUDGET)
    if generations != base.generations and env_steps == base.env_steps:
        env_steps = None
    if env_steps is not None and env_steps != base.env_steps and generations == base.generations:
        generations = None
    return dataclasses.replace(
        base,
        env=base.env,
        env_steps=env_steps,
        generations=generations,
        seed=args.seed,
        evaluations=args.evaluations,
        evaluate_episodes=args.evaluate_episodes,
        checkpoint_every=args.checkpoint_every,
        policy=policy,
        options={**kept, **chosen},
    )


def _default_out(recipe: Any) -> Path:
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in recipe.env.partition("?")[0])
    return Path("runs") / f"{name}-{recipe.agent}-seed{recipe.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


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


def _evaluate(argv: Sequence[str]) -> int:
    args = _parse(_Evaluate, argv, "esrl evaluate")
    from esrl.evaluate import evaluate
    from esrl.recipe import load

    loaded = load(args.folder)
    scored = evaluate(loaded.agent, loaded.state, args.episodes, args.seed)
    values = {k: v for k, v in scored._asdict().items() if k != "returns"}
    if args.json:
        say(json.dumps(values))
    else:
        say(
            f"{loaded.recipe.agent} on {loaded.recipe.env}: return {scored.return_mean:.2f} +- {scored.return_std:.2f}"
            f" (mean and standard deviation of {scored.episodes} held-out episodes), length {scored.length_mean:.1f}"
        )
    return 0


def _render(argv: Sequence[str]) -> int:
    args = _parse(_Render, argv, "esrl render")
    from esrl.recipe import load
    from esrl.render import render

    loaded = load(args.folder)
    path, episode = render(loaded.agent, loaded.state, args.out or args.folder / "episode", args.seed, args.form)
    say(f"{path}: return {episode.total:.1f} in {len(episode.rewards)} steps")
    return 0


def _describe(argv: Sequence[str]) -> int:
    from esrl import recipe as recipes
    from esrl.describe import describe

    if argv and not argv[0].startswith("-") and (Path(argv[0]) / "recipe.toml").is_file():
        argv = [str(Path(argv[0]) / "recipe.toml"), *argv[1:]]
    base, _ = _base_recipe(argv)
    _, options = recipes.agent_named(base.agent)
    args = _parse(_train_arguments(base, options), argv, "esrl describe")
    say(describe(_with_flags(base, args, options).build(), width=max(100, min(140, _columns()))))
    return 0


def _envs(argv: Sequence[str]) -> int:
    args = _parse(_Envs, argv, "esrl envs")
    from esrl.registry import names

    found = names()
    shown = {k: [n for n in v if args.pattern in n] if isinstance(v, list) else v for k, v in found.items()}
    if args.json:
        say(json.dumps(shown))
        return 0
    for suite, listed in shown.items():
        if isinstance(listed, str):
            say(f"{suite}: {listed}")
        elif listed:
            say(f"{suite} ({len(listed)})")
            for name in listed:
                say(f"  {name}")
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "train a policy on an environment, or by a recipe"),
    "evaluate": (_evaluate, "score a trained agent on held-out episodes"),
    "render": (_render, "write an episode as a page or a video"),
    "describe": (_describe, "print which parameters get low-rank noise, and what it costs"),
    "envs": (_envs, "list environments"),
}

USAGE = """usage: esrl COMMAND ...

Reinforcement learning by evolution strategies.

commands:
{commands}

esrl COMMAND --help says more. A first run:
  esrl train brax/inverted_pendulum --hidden 32 32 --population 256 --env-steps 2e6 --out runs/first
"""


def _columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 110


def _parse(cls: type, argv: Sequence[str], prog: str) -> Any:
    return tyro.cli(cls, args=list(argv), prog=prog, config=(tyro.conf.OmitArgPrefixes,))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 2 for bad input (one line says what), or 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:10s}{text}" for name, (_, text) in COMMANDS.items())
        say(USAGE.format(commands=lines))
        return 0 if argv else 2
    if argv[0] == "--version":
        from esrl import __version__

        say(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            from esrl.types import nearest

            raise EsrlError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}")
        from esrl.runtime import configure

        configure()
        return COMMANDS[argv[0]][0](argv[1:])
    except EsrlError as error:
        print(f"esrl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("esrl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
