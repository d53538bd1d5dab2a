"""esrl: reinforcement learning by evolution strategies, without backpropagation.

In Python:

    import esrl

    env = esrl.make("brax/hopper")
    agent = esrl.eggroll(env, esrl.mlp((64, 64)), population=512, rank=1)
    for generation, state, metrics in esrl.train(agent, env_steps=1e7, seed=0, out="runs/hopper"):
        print(generation, metrics["return_mean"])
    print(esrl.evaluate(agent, state, episodes=128).return_mean)
"""

from esrl import noise, shaping
from esrl.agent import Agent
from esrl.describe import describe
from esrl.env import Env, check_env
from esrl.es import eggroll, open_es
from esrl.evaluate import Evaluation, evaluate
from esrl.export import as_gymnasium, as_vector_env
from esrl.many import Many, train_many
from esrl.networks import cnn, gru, mlp
from esrl.player import play_as
from esrl.ppo import ppo
from esrl.recipe import Recipe, load
from esrl.registry import make
from esrl.render import render
from esrl.runtime import configure
from esrl.train import Result, Training, train
from esrl.types import EsrlError
from esrl.wrap import policy

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
