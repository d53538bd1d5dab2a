"""Defaults for the environments of a suite, which `esrl train ENV` uses where no flag is given.

They override the defaults of the options, and flags override them. The constructors (`esrl.eggroll(...)`) and recipe
files do not use them.
"""

from __future__ import annotations

import fnmatch
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
# Robots: from a search on three of Brax (experiments/defaults/README.md). Of those that it did not see, walker2d has
# 893 [540, 1056] by the other defaults, 1214 [1164, 1308] by these; the lander -47 [-115, -12] and 85 [43, 195].
_ROBOT_POLICY: dict[str, Any] = {"hidden": [32, 32], "activation": "tanh"}
_ROBOT: dict[str, Any] = {"episodes_per_member": 1, "optimizer": "clipup", "learning_rate": 0.1}
_GYMNASIUM_ROBOTS = (
    *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Pusher", "Reacher", "Swimmer", "Walker2d"),
    *("InvertedPendulum", "InvertedDoublePendulum"),
    *("BipedalWalker", "BipedalWalkerHardcore", "LunarLander", "LunarLanderContinuous"),
)
DEFAULTS = (
    Defaults("gymnax/*-MinAtar", EVERY, policy={"network": "cnn", "channels": [16]}),
    Defaults("craftax/*-Pixels-*", EVERY, policy=_PICTURES),
    Defaults("atari/*", EVERY, policy=_PICTURES),
    *(
        Defaults(pattern, ES, policy=_ROBOT_POLICY, options=_ROBOT)
        for pattern in ("brax/*", *(f"gymnasium/{name}-v*" for name in _GYMNASIUM_ROBOTS))
    ),
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
