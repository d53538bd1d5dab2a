"""Defaults for the environments of a suite, which `esrl train ENV` uses where no flag is given.

They override the defaults of the options, and flags override them. The constructors (`esrl.eggroll(...)`) and recipe
files do not use them.
"""

from __future__ import annotations

import fnmatch
import math
from typing import Any, NamedTuple

ES = ("eggroll", "open_es", "es")


class Defaults(NamedTuple):
    """Keys of [policy] and [options] for some agents, on the environments whose names match `pattern`."""

    pattern: str
    agents: tuple[str, ...]
    policy: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012


EVERY = (*ES, "ppo", "eggroll_ac")
_PICTURES = {"network": "cnn"}
_GRIDS: dict[str, Any] = {"deterministic": False}  # memoryless and partially observed: needs stochastic actions
# Worlds with a reward at the end alone: many members, each once, and a wide network. On Navix-Empty-Random-8x8 the
# defaults reach 0.26 [0.19, 0.29] in a million steps, and these 0.53 [0.53, 0.54]: experiments/defaults/README.md.
_SPARSE_POLICY: dict[str, Any] = {"hidden": [256, 256, 256], "output_scale": 1.0, "skip": False}
_SPARSE: dict[str, Any] = {"population": 512, "episodes_per_member": 1, "optimizer": "adam", "averaging": 0.0}


class Robot(NamedTuple):
    """What decides how a robot is trained: the numbers of its action (of a discrete one its choices), and if it falls.

    To fall is to end an episode early by losing one's balance, which Brax's ant hardly does.
    """

    numbers: int
    falls: bool = False


_MUJOCO = {  # and Brax
    "InvertedPendulum": Robot(1, falls=True),
    "InvertedDoublePendulum": Robot(1, falls=True),
    "Hopper": Robot(3, falls=True),
    "Walker2d": Robot(6, falls=True),
    "Humanoid": Robot(17, falls=True),
    "Reacher": Robot(2),
    "Swimmer": Robot(2),
    "HalfCheetah": Robot(6),
    "Pusher": Robot(7),
    "Ant": Robot(8),
    "HumanoidStandup": Robot(17),
}
_BOX2D = {
    "LunarLander": Robot(4, falls=True),
    "LunarLanderContinuous": Robot(2, falls=True),
    "BipedalWalker": Robot(4, falls=True),
    "BipedalWalkerHardcore": Robot(4, falls=True),
}
_BRAX = {"InvertedPendulum": "inverted_pendulum", "InvertedDoublePendulum": "inverted_double_pendulum"}
ROBOTS = {f"brax/{_BRAX.get(name, name.lower())}": robot for name, robot in _MUJOCO.items()} | {
    f"gymnasium/{name}-v*": robot for name, robot in (_MUJOCO | _BOX2D).items()
}
# The network is from a search on three of Brax; the rest: experiments/defaults/README.md, "Robots".
_ROBOT_POLICY: dict[str, Any] = {"hidden": [32, 32], "activation": "tanh"}
_ROBOT: dict[str, Any] = {"episodes_per_member": 1, "optimizer": "clipup", "weight_decay": 0.01}
# Where no balance has to be kept, an episode's first steps say as much as all of them, with less chance in it: in a
# hundred steps an ant learns to walk, in a thousand to stand still.
_SHORT: dict[str, Any] = {"horizon": 100, "horizon_steps": 1e7}


def _robot(robot: Robot) -> dict[str, Any]:
    """The options for a robot.

    The more numbers an action has, the less a pair says of each: four members are best for one joint, and lose an ant.
    Short episodes say less and cost less: twice as many. The rate grows as an estimate's ratio of signal to noise
    does, up to 0.1: above it an ant does not walk.
    """
    population = (4 if robot.falls else 8) * robot.numbers
    rate = min(0.1, round(0.025 * math.sqrt(population), 3))
    return _ROBOT | {"population": population, "learning_rate": rate} | ({} if robot.falls else _SHORT)


DEFAULTS = (
    Defaults("gymnax/*-MinAtar", EVERY, policy={"network": "cnn", "channels": [16]}),
    Defaults("craftax/*-Pixels-*", EVERY, policy=_PICTURES),
    Defaults("atari/*", EVERY, policy=_PICTURES),
    *(Defaults(pattern, ES, policy=_ROBOT_POLICY, options=_robot(robot)) for pattern, robot in ROBOTS.items()),
    Defaults("navix/*", ES, policy=_SPARSE_POLICY, options=_GRIDS | _SPARSE),
    Defaults("navix/*", ("eggroll_ac",), options=_GRIDS | {"learning_rate": 1e-3, "entropy_coef": 0.01}),
    # PPO too: by the mode of its policy its defaults have 0.1 on Snake, by sampling 10: experiments/defaults/README.md.
    Defaults("navix/*", ("ppo",), options=_GRIDS),
    Defaults("craftax/*", EVERY, options=_GRIDS),
    Defaults("jumanji/*", EVERY, options=_GRIDS),
)


def suite_defaults(env: str, agent: str, optimizer: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(policy, options)` that a suite sets for an agent on this environment; both empty where it sets none.

    Args:
      env: a whole name, as "brax/hopper". agent: "eggroll", "ppo", ...
      optimizer: the one that is used whatever the suite says. Where a suite sets an optimizer and its rate, another one
        leaves that rate out.
    """
    name = env.partition("?")[0]
    policy: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for found in DEFAULTS:
        if agent in found.agents and fnmatch.fnmatchcase(name, found.pattern):
            policy, options = policy | found.policy, options | found.options
    if optimizer is not None and optimizer != options.get("optimizer", optimizer):
        options.pop("learning_rate", None)
    return policy, options
