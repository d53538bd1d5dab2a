"""esrl: reinforcement learning by evolution strategies, without backpropagation.

import esrl

agent = esrl.eggroll("brax/hopper", esrl.mlp((64, 64)), population=512, rank=1)
result = esrl.train(agent, env_steps=1e7, seed=0, out="runs/hopper")
print(esrl.evaluate(agent, result.state, episodes=128).return_mean)
action = esrl.load("runs/hopper").predict(observation)
"""

import importlib
from typing import TYPE_CHECKING, Any

from esrl.core import interrupts as interrupts  # first: what is imported later takes seconds
from esrl.core.errors import EsrlError

if TYPE_CHECKING:
    from esrl.algorithms import shaping
    from esrl.algorithms.agent import Agent, Plan
    from esrl.algorithms.description import describe
    from esrl.algorithms.eggroll_ac_agent import eggroll_ac
    from esrl.algorithms.es_agents import eggroll, es, open_es
    from esrl.algorithms.integer_es_agent import eggroll_int8
    from esrl.algorithms.ppo_agent import ppo
    from esrl.algorithms.random_agent import random
    from esrl.core.joining import join
    from esrl.core.runtime import configure
    from esrl.envs.base import Env
    from esrl.envs.checks.environment import check_env
    from esrl.envs.objectives import objective
    from esrl.envs.registry import make
    from esrl.envs.to_gymnasium import as_gymnasium, as_vector_env
    from esrl.perturbation import noise
    from esrl.policies.networks import cnn, gru, mlp
    from esrl.policies.user_network import Network, network
    from esrl.training.evaluation import Evaluation, evaluate
    from esrl.training.export.exporting import export
    from esrl.training.loading import load
    from esrl.training.loop import Run, iterate, train
    from esrl.training.recipe import Recipe
    from esrl.training.rendering import render
    from esrl.training.result import Result
    from esrl.training.trained import Trained
    from esrl.training.vmapped import Many, train_many

__version__ = "0.2.0"

__all__ = [
    "Agent",
    "Env",
    "EsrlError",
    "Evaluation",
    "Many",
    "Network",
    "Plan",
    "Recipe",
    "Result",
    "Run",
    "Trained",
    "as_gymnasium",
    "as_vector_env",
    "check_env",
    "cnn",
    "configure",
    "describe",
    "eggroll",
    "eggroll_ac",
    "eggroll_int8",
    "es",
    "evaluate",
    "export",
    "gru",
    "iterate",
    "join",
    "load",
    "make",
    "mlp",
    "network",
    "noise",
    "objective",
    "open_es",
    "ppo",
    "random",
    "render",
    "shaping",
    "train",
    "train_many",
]

# Where each name is defined. JAX and what else they import is loaded when one of them is first asked for: the command
# line refuses a typing error, and lists environments, without it.
_HOMES = {
    "esrl.algorithms.shaping": "shaping",
    "esrl.algorithms.agent": "Agent Plan",
    "esrl.algorithms.description": "describe",
    "esrl.algorithms.eggroll_ac_agent": "eggroll_ac",
    "esrl.algorithms.es_agents": "eggroll es open_es",
    "esrl.algorithms.integer_es_agent": "eggroll_int8",
    "esrl.algorithms.ppo_agent": "ppo",
    "esrl.algorithms.random_agent": "random",
    "esrl.core.joining": "join",
    "esrl.core.runtime": "configure",
    "esrl.envs.base": "Env",
    "esrl.envs.checks.environment": "check_env",
    "esrl.envs.objectives": "objective",
    "esrl.envs.registry": "make",
    "esrl.envs.to_gymnasium": "as_gymnasium as_vector_env",
    "esrl.perturbation.noise": "noise",
    "esrl.policies.networks": "cnn gru mlp",
    "esrl.policies.user_network": "Network network",
    "esrl.training.evaluation": "Evaluation evaluate",
    "esrl.training.export.exporting": "export",
    "esrl.training.loading": "load",
    "esrl.training.loop": "Run iterate train",
    "esrl.training.recipe": "Recipe",
    "esrl.training.rendering": "render",
    "esrl.training.result": "Result",
    "esrl.training.trained": "Trained",
    "esrl.training.vmapped": "Many train_many",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
_ROOMS = ("algorithms", "cli", "cluster", "core", "envs", "perturbation", "policies", "rollouts", "training")
_RENAMED = {"policy": "network", "play_as": "Trained", "Training": "Run"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module = importlib.import_module(_HOME[name])
        found = module if _HOME[name].endswith(f".{name}") else getattr(module, name)
        globals()[name] = found  # from now on found without this function
        return found
    if name in _ROOMS:
        return importlib.import_module(f"esrl.{name}")
    if name in _RENAMED:
        raise AttributeError(f"esrl.{name} is called esrl.{_RENAMED[name]} now")
    raise AttributeError(f"module 'esrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
