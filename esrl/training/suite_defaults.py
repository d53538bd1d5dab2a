"""esrl's own defaults for the environments of a suite: what `esrl train ENV` takes when nothing else is said.

They stand between the defaults of the options and what the user says. The constructors (`esrl.eggroll(...)`) and
recipes know nothing of them.
"""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

ES = ("eggroll", "open_es")


class Defaults(NamedTuple):
    """Keys of a recipe's [policy] and [options], for the environments whose names fit `pattern`."""

    pattern: str
    agents: tuple[str, ...]
    policy: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012


EVERY = (*ES, "ppo")
_PICTURES = {"network": "cnn"}
_GRIDS: dict[str, Any] = {"deterministic": False}  # memoryless and partially observed: needs stochastic actions
DEFAULTS = (
    Defaults("gymnax/*-MinAtar", EVERY, policy={"network": "cnn", "channels": [16]}),
    Defaults("craftax/*-Pixels-*", EVERY, policy=_PICTURES),
    Defaults("atari/*", EVERY, policy=_PICTURES),
    Defaults("navix/*", ES, options=_GRIDS),
    Defaults("craftax/*", ES, options=_GRIDS),
    Defaults("jumanji/*", ES, options=_GRIDS),
)


def suite_defaults(env: str, agent: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(policy, options)` that an environment's suite has for an agent; both empty when it has none of its own."""
    name = env.partition("?")[0]
    policy: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for found in DEFAULTS:
        if agent in found.agents and fnmatch.fnmatchcase(name, found.pattern):
            policy, options = policy | found.policy, options | found.options
    return policy, options
