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
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from esrl.algorithms.agent import Agent
from esrl.algorithms.eggroll_ac_agent import NETWORK as AC_NETWORK
from esrl.algorithms.eggroll_ac_agent import eggroll_ac
from esrl.algorithms.es_agents import NETWORK as ES_NETWORK
from esrl.algorithms.es_agents import OF_OBJECTIVE, eggroll, es, open_es
from esrl.algorithms.integer_es_agent import NETWORK as INTEGER_NETWORK
from esrl.algorithms.integer_es_agent import eggroll_int8
from esrl.algorithms.ppo_agent import NETWORK as PPO_NETWORK
from esrl.algorithms.ppo_agent import ppo
from esrl.algorithms.random_agent import random
from esrl.core.brief import options_text
from esrl.core.names import todays_name, todays_value
from esrl.core.options import Option, options_of
from esrl.core.types import EsrlError, nearest
from esrl.envs.faults import LIMIT, trying_for
from esrl.envs.objectives import Objective
from esrl.envs.registry import load_attribute, make
from esrl.policies.networks import NETWORKS, network_of
from esrl.policies.user_network import Network, network
from esrl.training.budget import Budget
from esrl.training.loop import MAX_FAILED, Run, iterate
from esrl.training.recipe_file import read_table
from esrl.training.recipe_table import MADE, with_former_defaults
from esrl.training.suite_defaults import ES

Constructor = Callable[..., Agent]
AGENTS: dict[str, Constructor] = {
    "eggroll": eggroll,
    "eggroll_ac": eggroll_ac,
    "eggroll_int8": eggroll_int8,
    "open_es": open_es,
    "ppo": ppo,
    "es": es,
    "random": random,
}
_POLICY_DEFAULTS = (
    {"ppo": PPO_NETWORK.spec or {}}
    | dict.fromkeys(ES, ES_NETWORK.spec or {})
    | {"eggroll_ac": AC_NETWORK.spec or {}, "eggroll_int8": INTEGER_NETWORK.spec or {}}
)
_OF_MLP = ("hidden", "skip")  # the widths of the others are their own
NETWORK_KEYS = {  # the keys of [policy]; their defaults depend on the network, see `policy_defaults`
    option.name: option
    for option in (
        Option("network", str, help=f"{', '.join(NETWORKS)}, or path/to/file.py:Name"),
        Option("hidden", tuple, help="widths of the hidden layers; the one width of a gru"),
        Option("channels", tuple, help="numbers of channels of a cnn's convolutions"),
        Option(
            "activation",
            str,
            help="layernorm_relu (relu of LayerNorm), relu, tanh, silu, gelu or elu; of int8 saturate or relu",
        ),
        Option("output_scale", float, help="size of the network's outputs at the start"),
        Option("bias", bool, help="give layers biases"),
        Option("skip", bool, help="add a linear map of the observation to the outputs"),
        Option("one_hot", bool, help="code whole numbers within narrow bounds one-hot"),
        Option("dtype", str, help="float32, or int8 for the agent eggroll_int8"),
    )
}
CUSTOM = "custom"  # stands for what only Python code can make


@dataclass(frozen=True, repr=False)
class Recipe:
    """A run as plain data: environment, agent, network and options by name, budget and seed.

    Attributes:
      env: what `esrl.make` takes. agent: a name in AGENTS.
      policy, options: the tables [policy] and [options] of the file.
      env_steps, generations, seconds, seed, num_evals, early_evals, eval_episodes, eval_seed, checkpoint_every, keep,
        films, stop_at_return, minutes, track, on_env_error, max_failed, env_timeout, ray_address, workers, broadcast,
        block_pairs, block_envs, block_timeout, close_at: the arguments of `esrl.iterate`.
    """

    env: str
    agent: str = "eggroll"
    env_steps: float | None = None
    generations: int | None = None
    seconds: float | None = None
    seed: int = 0
    num_evals: int = 20
    early_evals: int = 0
    eval_episodes: int = 128
    eval_seed: int | None = None
    checkpoint_every: int | None = None
    keep: str = "last"
    films: bool = False
    stop_at_return: float | None = None
    minutes: float | None = None
    track: str | None = None
    on_env_error: str = "fail"
    max_failed: float = MAX_FAILED
    env_timeout: float = LIMIT
    ray_address: str | None = None
    workers: int | None = None
    broadcast: str = "parameters"
    block_pairs: int | None = None
    block_envs: int | None = None
    block_timeout: float | None = None
    close_at: float = 1.0
    policy: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        constructor = AGENTS.get(self.agent)
        options = {} if constructor is None else {name: o.default for name, o in options_of(constructor).items()}
        policy = policy_defaults(self.agent, self.network, self.policy.get("hidden"), self.policy.get("dtype"))
        own = {f.name: f.default for f in dataclasses.fields(self) if f.name not in ("env", "policy", "options")}
        told = [repr(self.env)]
        for values, defaults in ((vars(self), own), (self.policy, policy), (self.options, options)):
            told += [options_text({k: v}) for k, v in values.items() if k in defaults and not _same(v, defaults[k])]
        return f"Recipe({', '.join(told)})"

    @property
    def network(self) -> str:
        """The network's name."""
        return self.policy.get("network", "mlp")

    def override(
        self, run: dict[str, Any], policy: dict[str, Any] | None = None, options: dict[str, Any] | None = None
    ) -> Recipe:
        """The recipe with other values laid over it: its fields, keys of [policy], keys of [options].

        Another agent or network starts from its own defaults. A budget given replaces all budgets of the recipe.
        """
        budget: dict[str, Any] = {} if run.keys().isdisjoint(Budget._fields) else dict.fromkeys(Budget._fields)
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
        constructor = agent_named(self.agent)
        custom = sorted(name for name, value in self.options.items() if isinstance(value, str) and value == CUSTOM)
        if custom:
            raise EsrlError(f"the recipe's {', '.join(custom)} was a Python object and cannot be made from the recipe")
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}
        for name in options:
            if name not in options_of(constructor):
                raise EsrlError(f"unknown option {name!r} of {self.agent}{nearest(name, options_of(constructor))}")
        defaults = policy_defaults(self.agent, self.network, self.policy.get("hidden"), self.policy.get("dtype"))
        if env is None:
            with trying_for(self.env_timeout):
                env = make(self.env)
        brought = getattr(env, "network", None) if isinstance(env, Objective) else None
        of_objective = self.policy == OF_OBJECTIVE or not self.policy
        if network is None and self.policy == OF_OBJECTIVE and brought is None:
            raise EsrlError(f"the recipe's network is that of the objective {self.env}, which is not at hand")
        if network is None and not (of_objective and brought is not None):
            network = network_from(defaults | self.policy)
        return constructor(env, network, **options)

    def run(self, agent: Agent, out: str | Path | None, resume: bool = False) -> Run:
        """The run of the agent with this recipe's budget, seed and evaluations."""
        return iterate(agent, out=out, resume=resume, **{name: getattr(self, name) for name in run_keys()})


def _same(value: Any, default: Any) -> bool:
    one, other = (list(each) if isinstance(each, tuple) else each for each in (value, default))
    return one == other


@cache
def run_keys() -> dict[str, Option]:
    """The keys of a recipe that are arguments of `esrl.iterate`."""
    ours = {f.name for f in dataclasses.fields(Recipe)}
    return {name: option for name, option in options_of(iterate).items() if name in ours}


def policy_defaults(agent: str, network: str, hidden: Any = None, dtype: str | None = None) -> dict[str, Any]:
    """The keys that a ready-made network takes, with their defaults for an agent; nothing for other networks.

    Args:
      agent, network: by their names.
      hidden: the widths, if they are given: without a hidden layer there is none to skip.
      dtype: the type, if it is given: activations are of one type.
    """
    takes = inspect.signature(NETWORKS[network]).parameters if network in NETWORKS else {}
    its_type = _POLICY_DEFAULTS.get(agent, {}).get("dtype", "float32")
    own = {
        name: value
        for name, value in _POLICY_DEFAULTS.get(agent, {}).items()
        if name in takes and (network == "mlp" or name not in _OF_MLP)
    }
    if dtype is not None and dtype != its_type:
        own.pop("activation", None)
    linear = {"skip": False} if "skip" in takes and hidden in ((), []) else {}
    found = {name: parameter.default for name, parameter in takes.items()} | own | linear
    if "activation" in found and found["activation"] is None:
        found["activation"] = "saturate" if (dtype or found.get("dtype")) == "int8" else "layernorm_relu"
    return found


def agent_named(name: str) -> Constructor:
    """An agent's constructor.

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
        return _network_in_file(kind)
    if kind not in NETWORKS:
        raise EsrlError(f"unknown network {kind!r}; yours is path/to/file.py:Name{nearest(kind, NETWORKS)}")
    takes = inspect.signature(NETWORKS[kind]).parameters
    for name in given:
        if name not in takes:
            raise EsrlError(f"unknown key {name!r} in [policy] for network {kind}{nearest(name, takes)}")
    return network_of(kind, given)


def _network_in_file(name: str) -> Network:
    """The network that `path/to/file.py:Name` is, or that a function of that name makes."""
    found = load_attribute(name)
    if inspect.isfunction(found) and not inspect.signature(found).parameters:
        try:
            found = found()
        except Exception as error:
            raise EsrlError(f"{name}() raised {type(error).__name__}: {error}") from error
    return network(found)._replace(spec={"network": name})


# ---- reading --------------------------------------------------------------------------------------------------------


def read(path: str | Path, run: bool = False) -> Recipe:
    """A recipe from a TOML file.

    Args:
      path: of the file. run: it is that of a run's folder, which keeps the defaults that the run had.

    Raises:
      EsrlError: no such file, not TOML, an unknown key (near ones are offered), or a value of the wrong type.
    """
    try:
        # A recipe of one's own may lie behind a link.
        whole = Path(path) if run else Path(path).expanduser().resolve()
        if not whole.exists():
            raise EsrlError(f"there is no recipe {path}")
        data = read_table(whole)
    except (RuntimeError, OSError) as error:  # no home folder, links that go round
        raise EsrlError(f"{path} cannot be read as a recipe: {error}") from error
    own = {"env": str, "agent": str, "policy": dict, "options": dict, MADE: dict}
    found = _checked(f"{path}: ", data, {name: Option(name, kind) for name, kind in own.items()} | run_keys())
    found.pop(MADE, None)
    if "env" not in found:
        raise EsrlError(f'{path}: the key env is missing, as env = "brax/hopper"')
    options = options_of(agent_named(found.get("agent", "eggroll")))
    for table, keys in (("options", options), ("policy", NETWORK_KEYS)):
        found[table] = _checked(f"{path}: [{table}] ", found.get(table, {}), keys, custom=table == "options")
    return Recipe(**(with_former_defaults(found) if run else found))


def _checked(where: str, data: dict[str, Any], known: dict[str, Option], custom: bool = False) -> dict[str, Any]:
    """A table's values by today's names, each checked; `where` begins an error's sentence.

    Where `custom` is true, CUSTOM may stand for a Python object; `Recipe.build` says that it cannot be made.
    """
    found = {}
    for given, value in data.items():
        name = todays_name(given, known)
        if name not in known:
            raise EsrlError(f"{where}unknown key {name!r}{nearest(name, known)}")
        value = todays_value(name, value)
        found[name] = value if custom and value == CUSTOM else known[name].check(value, f"{where}{name}")
    return found
