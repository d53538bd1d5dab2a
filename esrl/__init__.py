"""esrl: reinforcement learning by evolution strategies, without backpropagation.

In Python:

    import esrl

    env = esrl.make("brax/hopper")
    agent = esrl.eggroll(env, esrl.mlp((64, 64)), population=512, rank=1)
    for generation, state, metrics in esrl.train(agent, env_steps=1e7, seed=0, out="runs/hopper"):
        print(generation, metrics["return_mean"])
    print(esrl.evaluate(agent, state, episodes=128).return_mean)
"""

from esrl.algorithms import shaping
from esrl.algorithms.agent import Agent
from esrl.algorithms.description import describe
from esrl.algorithms.es import eggroll, open_es
from esrl.algorithms.ppo import ppo
from esrl.core.runtime import configure
from esrl.core.types import EsrlError
from esrl.envs.base import Env
from esrl.envs.checks.environment import check_env
from esrl.envs.registry import make
from esrl.envs.to_gymnasium import as_gymnasium, as_vector_env
from esrl.perturbation import noise
from esrl.policies.networks import cnn, gru, mlp
from esrl.policies.user_network import policy
from esrl.training.evaluation import Evaluation, evaluate
from esrl.training.loop import Result, Training, train
from esrl.training.player import play_as
from esrl.training.recipe import Recipe, load
from esrl.training.rendering import render
from esrl.training.vmapped import Many, train_many

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Env",
    "EsrlError",
    "Evaluation",
    "Many",
    "Recipe",
    "Result",
    "Training",
    "as_gymnasium",
    "as_vector_env",
    "check_env",
    "cnn",
    "configure",
    "describe",
    "eggroll",
    "evaluate",
    "gru",
    "load",
    "make",
    "mlp",
    "noise",
    "open_es",
    "play_as",
    "policy",
    "ppo",
    "render",
    "shaping",
    "train",
    "train_many",
]
