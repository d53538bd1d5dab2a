"""Recipes: a run as a TOML file, and everything by its name.

A whole one, where only `env` is needed:

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

from esrl.algorithms.agent import Agent, option
from esrl.algorithms.es import eggroll, open_es
from esrl.algorithms.es_options import EggrollOptions, OpenESOptions
from esrl.algorithms.ppo import ppo
from esrl.algorithms.ppo_options import PPOOptions
from esrl.core.types import EsrlError, nearest, seed_key
from esrl.envs.registry import load_attribute, make
from esrl.policies.networks import cnn, gru, mlp
from esrl.policies.user_network import Network, policy
from esrl.training import checkpoint
from esrl.training.loop import Training, train
from esrl.training.player import Player, play_as
from esrl.training.run_folder import RunFolder


class Algorithm(NamedTuple):
    """An agent by name: its constructor, its options, and keys of [policy] that have other defaults with it."""

    constructor: Callable[..., Agent]
    options: type
    policy: dict[str, Any] = {}  # noqa: RUF012


AGENTS: dict[str, Algorithm] = {
    "eggroll": Algorithm(eggroll, EggrollOptions),
    "open_es": Algorithm(open_es, OpenESOptions),
    "ppo": Algorithm(ppo, PPOOptions, {"output_scale": 0.01}),
}
NETWORKS: dict[str, Callable[..., Network]] = {"mlp": mlp, "gru": gru, "cnn": cnn}
NETWORK_KEYS: dict[str, tuple[type, str]] = {
    "hidden": (tuple, "widths of the hidden layers; the one width of a gru"),
    "channels": (tuple, "of the convolutions of a cnn"),
    "activation": (str, "pqn (relu of LayerNorm), relu, tanh, silu, gelu or elu"),
    "output_scale": (float, "size of the network's outputs at the start"),
    "bias": (bool, "whether layers have biases"),
}
CUSTOM = "custom"  # stands for what only Python code can make


@dataclass(frozen=True)
class Recipe:
    """A run as plain data: environment, agent, network and options by name, budget and seed."""

    env: str
    agent: str = "eggroll"
    env_steps: float | None = option(None, "environment steps to train for; 1e6 when no budget is given", float)
    generations: int | None = option(None, "generations to train for", int)
    seed: int = option(0, "of everything random", int)
    evaluations: int = option(20, "times that the unperturbed parameters are scored in a run", int)
    evaluate_episodes: int = option(128, "held-out episodes of each", int)
    checkpoint_every: int | None = option(
        None, "generations between checkpoints; with each evaluation unless given", int
    )
    policy: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """The network's name."""
        return self.policy.get("network", "mlp")

    def override(
        self, run: dict[str, Any], policy: dict[str, Any] | None = None, options: dict[str, Any] | None = None
    ) -> Recipe:
        """The recipe with other values laid over it.

        Another agent or network starts from its own defaults. A budget given replaces both budgets of the recipe.

        Args:
          run: fields of a recipe. policy: keys of [policy]. options: keys of [options].
        """
        budget = {} if run.keys().isdisjoint(("env_steps", "generations")) else {"env_steps": None, "generations": None}
        policy, options = policy or {}, options or {}
        same_agent = run.get("agent", self.agent) == self.agent
        same_network = policy.get("network", self.network) == self.network
        return dataclasses.replace(
            self,
            **budget | run,
            policy=(self.policy if same_network else {}) | policy,
            options=(self.options if same_agent else {}) | options,
        )

    def build(self, env: Any = None, network: Any = None) -> Agent:
        """The agent; `env` and `network` stand in for what only Python code can make.

        Raises:
          EsrlError: a name or value in the recipe that does not fit.
        """
        algorithm = agent_named(self.agent)
        custom = sorted(name for name, value in self.options.items() if isinstance(value, str) and value == CUSTOM)
        if custom:
            raise EsrlError(f"the recipe's {', '.join(custom)} was a Python object and cannot be made from the recipe")
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}
        chosen = network_from(policy_defaults(self.agent, self.network) | self.policy) if network is None else network
        return algorithm.constructor(make(self.env) if env is None else env, chosen, **options)

    def train(self, agent: Agent, out: str | Path | None, resume: bool = False) -> Training:
        """Training of the agent with this recipe's budget, seed and evaluations."""
        names = ("env_steps", "generations", "seed", "evaluations", "evaluate_episodes", "checkpoint_every")
        return train(agent, out=out, resume=resume, **{name: getattr(self, name) for name in names})


def policy_defaults(agent: str, network: str) -> dict[str, Any]:
    """The keys that a ready-made network takes, with their defaults for an agent; nothing for other networks."""
    takes = inspect.signature(NETWORKS[network]).parameters if network in NETWORKS else {}
    own = {name: value for name, value in agent_named(agent).policy.items() if name in takes}
    return {name: parameter.default for name, parameter in takes.items()} | own


def agent_named(name: str) -> Algorithm:
    """An agent's constructor and options.

    Raises:
      EsrlError: no agent has that name.
    """
    if name not in AGENTS:
        raise EsrlError(f"unknown agent {name!r}{nearest(name, AGENTS)}")
    return AGENTS[name]


def network_from(spec: dict[str, Any]) -> Any:
    """The network that a recipe's [policy] describes: `mlp`, `gru`, `cnn`, or `path/to/file.py:Name`.

    Raises:
      EsrlError: an unknown network or key, or a network that only Python code can make.
    """
    given = dict(spec)
    kind = given.pop("network", "mlp")
    if kind == CUSTOM:
        raise EsrlError("the recipe's policy was made in Python; give it again: esrl.load(folder, policy=...)")
    if kind.rpartition(":")[0].endswith(".py"):
        if given:
            raise EsrlError(f"[policy] {', '.join(given)} cannot be set for a network from a file; set it in {kind}")
        found = load_attribute(kind)
        if inspect.isfunction(found) and not inspect.signature(found).parameters:
            try:
                found = found()
            except Exception as error:
                raise EsrlError(f"{kind}() raised {type(error).__name__}: {error}") from error
        return policy(found)._replace(spec={"network": kind})
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
        given["hidden"] = widths[0] if kind == "gru" else tuple(widths)
    if "channels" in given:
        channels = given["channels"]
        given["channels"] = tuple(channels) if isinstance(channels, (list, tuple)) else (channels,)
    return NETWORKS[kind](**given)


# ---- reading --------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Recipe:
    """A recipe from a TOML file.

    Raises:
      EsrlError: no such file, not TOML, an unknown key (near ones are offered), or a value of the wrong type.
    """
    try:
        data = tomllib.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise EsrlError(f"there is no recipe {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EsrlError(f"{path} cannot be read as a recipe: {error}") from error
    kinds: dict[str, Any] = {f.name: f.metadata.get("plain", str) for f in dataclasses.fields(Recipe)}
    read = _typed(f"{path}: ", data, kinds | {"policy": dict, "options": dict})
    if "env" not in read:
        raise EsrlError(f'{path}: the key env is missing, as env = "brax/hopper"')
    options = agent_named(read.get("agent", "eggroll")).options
    own = {f.name: f.metadata["plain"] for f in dataclasses.fields(options)}
    keys = {"network": str} | {name: kind for name, (kind, _) in NETWORK_KEYS.items()}
    for table, known in (("options", own), ("policy", keys)):
        if table in read:
            read[table] = _typed(f"{path}: [{table}] ", read[table], known, custom=table == "options")
    return Recipe(**read)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a table"}


def _typed(where: str, data: dict[str, Any], kinds: dict[str, Any], custom: bool = False) -> dict[str, Any]:
    """The data with numbers as their keys' types; `where` begins an error's sentence; `custom` lets CUSTOM stand."""
    typed = {}
    for name, value in data.items():
        if name not in kinds:
            raise EsrlError(f"{where}unknown key {name!r}{nearest(name, kinds)}")
        kind = kinds[name]
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple:
            if any(type(width) is not int for width in (value if isinstance(value, list) else [value])):
                raise EsrlError(f"{where}{name} is {value!r}, but must be a list of whole numbers")
        elif type(value) is not kind and not (custom and value == CUSTOM):
            raise EsrlError(f"{where}{name} is {value!r}, but must be {_WORDS.get(kind, 'given in Python')}")
        typed[name] = value
    return typed


# ---- trained agents -------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A trained agent: `esrl.evaluate(agent, state)`, or as a function from an observation to an action, `player()`."""

    agent: Agent
    state: Any
    recipe: Recipe

    def player(self, seed: int = 0) -> Player:
        """`player(observation) -> action`, NumPy in and out; see `esrl.play_as`."""
        return play_as(self.agent, self.state, seed)


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
