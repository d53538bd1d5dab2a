"""The agent: the only form in which training, evaluation, checkpoints and logs see an algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh

from esrl.algorithms.memory_plan import MemoryItem
from esrl.core import processes, sharding
from esrl.core.brief import options_text
from esrl.core.sharding import Compiled
from esrl.core.types import EsrlError, Key, PyTree, run_key
from esrl.envs.base import name_of, on_device
from esrl.envs.objectives import unit_of
from esrl.perturbation.noise import Leaf
from esrl.policies.policy import Policy
from esrl.rollouts.types import Runner

Metrics = dict[str, Any]
Kind = Literal["evolution", "gradient", "actor_critic", "random"]


class Plan(NamedTuple):
    """Sizes of a generation, known before it runs.

    Attributes:
      lanes: episodes of a generation (of PPO: environments side by side).
      leaves: how each parameter is perturbed (empty for agents that perturb nothing).
      frozen: the parameters that are not trained.
      num_random: random numbers that a member's perturbation takes. num_params: parameters that are trained.
      chunk: pairs (lanes, for agents that perturb nothing) at once on each device. devices: how many there are.
      noise_bytes: that a member's perturbation is stored in.
      memory: what a generation takes on each device, by what it is for (empty where that is not known before).
    """

    lanes: int
    leaves: tuple[Leaf, ...] = ()
    num_random: int = 0
    num_params: int = 0
    chunk: int = 0
    devices: int = 1
    noise_bytes: int = 0
    memory: tuple[MemoryItem, ...] = ()
    frozen: tuple[Leaf, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Agent:
    """An algorithm bound to an environment, as pure functions of its state.

    A state is what the next step needs, metrics are what an observer wants. `init` and `step` are compiled when they
    are called with arrays, and transform like any pure function: `jax.jit`, `jax.vmap` over keys or states,
    `jax.lax.scan`. (Where Python steps the environment, `step` cannot be traced.) `step` is `update` after `rollout`;
    both are there by themselves so that an observer can time them.

    Attributes:
      name: what the command line calls it, "eggroll".
      kind: "evolution" (perturbs parameters), "gradient" (backpropagates), "actor_critic" (perturbs activations, beside
        a critic), or "random" (learns nothing).
      env: the environment.
      policy: the policy bound to it.
      runner: plays its episodes.
      init: `init(key) -> state`, of any JAX key. A state has at least `generation`, `env_steps` (a `Count`) and
        `params`.
      step: `step(state) -> (state, metrics)`, one generation; on JAX environments one compiled program.
      rollout: `rollout(state) -> experience` of one generation.
      update: `update(state, experience) -> (state, metrics)`.
      act: `act(state, observation, carry, key) -> (action, carry)` for one lane, with the unperturbed parameters.
      acts_by: from a state, the policy's parameters by which `act` acts; None for an agent that has none.
      plan: sizes known before running.
      config: what `rollout` and `update` of the algorithm's module take first (an `es.ES`, a `ppo.PPO`); None without.
      hyperparams: names of float32 scalars in a state that may differ between runs of one compiled program.
      options: what was given to the constructor and differs from its defaults.
      in_force: every option of the constructor with its value, defaults too.
      call: the constructor and its arguments by their names, from which another process can make the agent again; None
        where it was made otherwise.
    """

    name: str
    kind: Kind
    env: Any
    policy: Policy
    runner: Runner
    init: Callable[[Key], Any]
    step: Callable[[Any], tuple[Any, Metrics]]
    rollout: Callable[[Any], Any]
    update: Callable[[Any, Any], tuple[Any, Metrics]]
    act: Callable[[Any, PyTree, PyTree, Key], tuple[PyTree, PyTree]]
    plan: Plan
    acts_by: Callable[[Any], PyTree] | None = None
    config: Any = None
    hyperparams: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    in_force: dict[str, Any] = field(default_factory=dict)
    call: tuple[Callable[..., Agent], dict[str, Any]] | None = None

    def __repr__(self) -> str:
        options = options_text(self.options)
        return f"Agent({agent_text(self)}{f'; {options}' if options else ''})"


def agent_text(agent: Agent) -> str:
    """What an agent is, in half a line: "eggroll on brax/hopper: 74,502 weights, 512 episodes a generation"."""
    each = f"{unit_of(agent.env)[1]} a generation"
    lanes = "environments side by side" if agent.kind in ("gradient", "actor_critic") else each
    return f"{agent.name} on {name_of(agent.env)}: {agent.plan.num_params:,} weights, {agent.plan.lanes:,} {lanes}"


def mesh_for(env: Any, rows: int, called: str, each: int = 1) -> Mesh:
    """The devices that an agent runs on unless it is given them.

    Args:
      env: the environment; where Python steps it, one device computes for all lanes.
      rows: pairs or lanes that devices share. called: the option that says how many, times `each`.

    Raises:
      EsrlError: several processes train together, and cannot share the rows, or not the environment.
    """
    if on_device(env):
        sharding.check_shared(rows, called, each)
        return sharding.default_mesh(rows)
    if processes.several():
        raise EsrlError(
            f"Python steps {name_of(env)}, and the processes of jax.distributed share only what JAX steps; spread it"
            " over hosts by workers of Ray instead (--ray-address), or train in one process"
        )
    return sharding.one_device()


def stepping(
    env: Any,
    init: Callable[[Key], Any],
    rollout: Callable[[Any], Any],
    update: Callable[[Any, Any], tuple[Any, Metrics]],
    mesh: Mesh,
) -> dict[str, Any]:
    """`init`, `step`, `rollout` and `update` of an `Agent`, from bare functions and the devices they run on."""
    place = partial(Compiled, mesh=mesh)
    start = place(lambda key: init(run_key(key)))
    learn = place(update)
    if not on_device(env):
        return {"init": start, "update": learn, "rollout": rollout, "step": lambda state: learn(state, rollout(state))}
    return {
        "init": start,
        "update": learn,
        "rollout": place(rollout),
        "step": place(lambda state: update(state, rollout(state))),
    }
