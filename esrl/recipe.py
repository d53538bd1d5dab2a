"""Recipes: a run as a TOML file, and everything by its name (level 6).

    env = "brax/hopper"
    agent = "eggroll"
    env_steps = 1e7
    seed = 0

    [policy]
    network = "mlp"
    hidden = [64, 64]

    [options]
    population = 512
    sigma = 0.05
"""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from esrl import checkpoint, es
from esrl.agent import Agent
from esrl.log import RunFolder
from esrl.policy import Network, gru, mlp, policy
from esrl.registry import load_attribute, make
from esrl.train import Training, train
from esrl.types import EsrlError, nearest, seed_key

AGENTS: dict[str, tuple[Callable[..., Agent], type]] = {"eggroll": (es.eggroll, es.EggrollOptions)}
NETWORKS: dict[str, Callable[..., Network]] = {"mlp": mlp, "gru": gru}


@dataclass(frozen=True)
class Recipe:
    """A run as plain data: environment, agent, network and options by name, budget and seed."""

    env: str
    agent: str = "eggroll"
    env_steps: float | None = None
    generations: int | None = None
    seed: int = 0
    evaluations: int = 20
    evaluate_episodes: int = 128
    checkpoint_every: int | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, env: Any = None, network: Any = None) -> Agent:
        """The agent; `env` and `network` stand in for what only Python code can make.

        Raises:
          EsrlError: a name or value in the recipe that does not fit.
        """
        constructor, _ = agent_named(self.agent)
        custom = sorted(name for name, value in self.options.items() if isinstance(value, str) and value == "custom")
        if custom:
            raise EsrlError(f"the recipe's {', '.join(custom)} was a Python object and cannot be made from the recipe")
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}
        chosen = network_from(self.policy) if network is None else network
        return constructor(make(self.env) if env is None else env, chosen, **options)

    def train(self, agent: Agent, out: str | Path | None, resume: bool = False) -> Training:
        """Training of the agent with this recipe's budget, seed and evaluations."""
        names = ("env_steps", "generations", "seed", "evaluations", "evaluate_episodes", "checkpoint_every")
        return train(agent, out=out, resume=resume, **{name: getattr(self, name) for name in names})


def agent_named(name: str) -> tuple[Callable[..., Agent], type]:
    """Constructor and options of an agent.

    Raises:
      EsrlError: no agent has that name.
    """
    if name not in AGENTS:
        raise EsrlError(f"unknown agent {name!r}{nearest(name, AGENTS)}")
    return AGENTS[name]


def network_from(spec: dict[str, Any]) -> Any:
    """The network that a recipe's [policy] describes: `mlp`, `gru`, or `path/to/file.py:Name`.

    Raises:
      EsrlError: an unknown network or key, or a network that only Python code can make.
    """
    given = dict(spec)
    kind = given.pop("network", "mlp")
    if kind == "custom":
        raise EsrlError("the recipe's policy was made in Python; give it again: esrl.load(folder, policy=...)")
    if kind.rpartition(":")[0].endswith(".py"):
        if given:
            raise EsrlError(f"[policy] {', '.join(given)} cannot be set for a network from a file; set it in {kind}")
        found = load_attribute(kind)
        made = found() if inspect.isfunction(found) and not inspect.signature(found).parameters else found
        return policy(made)._replace(spec={"network": kind})
    if kind not in NETWORKS:
        raise EsrlError(f"unknown network {kind!r}{nearest(kind, NETWORKS)}, or path/to/file.py:Name")
    takes = inspect.signature(NETWORKS[kind]).parameters
    for name in given:
        if name not in takes:
            raise EsrlError(f"unknown key {name!r} in [policy] for network {kind}{nearest(name, takes)}")
    if "hidden" in given:
        widths = given["hidden"] if isinstance(given["hidden"], (list, tuple)) else [given["hidden"]]
        if kind == "gru" and len(widths) != 1:
            raise EsrlError(f"a gru has one width, but hidden is {list(widths)}")
        given["hidden"] = tuple(widths) if kind == "mlp" else widths[0]
    return NETWORKS[kind](**given)


def read(path: str | Path) -> Recipe:
    """A recipe from a TOML file.

    Raises:
      EsrlError: no such file, not TOML, or an unknown key (near ones are offered).
    """
    try:
        data = tomllib.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise EsrlError(f"there is no recipe {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EsrlError(f"{path} cannot be read as a recipe: {error}") from error
    known = {f.name for f in dataclasses.fields(Recipe)}
    for name in data:
        if name not in known:
            raise EsrlError(f"{path}: unknown key {name!r}{nearest(name, known)}")
    if "env" not in data:
        raise EsrlError(f"{path}: the key env is missing, as env = \"brax/hopper\"")
    _, options = agent_named(data.get("agent", "eggroll"))
    names = [f.name for f in dataclasses.fields(options)]
    for name in data.get("options", {}):
        if name not in names:
            raise EsrlError(f"{path}: unknown key {name!r} in [options]{nearest(name, names)}")
    return Recipe(**data)


class Loaded(NamedTuple):
    """A trained agent: `agent.act(state, ...)`, or `esrl.evaluate(agent, state)`."""

    agent: Agent
    state: Any
    recipe: Recipe


def load(folder: str | Path, *, env: Any = None, policy: Any = None, generation: int | None = None) -> Loaded:
    """A trained agent from a run's folder: its recipe and its last checkpoint. No code is taken from either.

    Args:
      folder: what `out` was.
      env: the environment, when it was a Python object; or another one with the same spaces.
      policy: the network, when it was a Python object.
      generation: of the checkpoint; None is the last.

    Raises:
      EsrlError: not a run's folder, no checkpoint in it yet, or one that does not fit.
    """
    run = RunFolder.existing(folder)
    recipe = read(run.recipe)
    agent = recipe.build(env, policy)
    state = checkpoint.restore(run.checkpoints, agent.init(seed_key(recipe.seed)), generation)
    return Loaded(agent, state, recipe)
