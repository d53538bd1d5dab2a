"""`esrl.load`: a trained agent from a run's folder, also where its environment is not at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from esrl.algorithms.agent import Agent
from esrl.core.options import checked
from esrl.core.types import EsrlError, seed_key
from esrl.envs.registry import check_again, make
from esrl.envs.stand_in import StandIn
from esrl.training import stored_spaces
from esrl.training.recipe import Recipe, read
from esrl.training.run_folder import RunFolder
from esrl.training.trained import Trained
from esrl.training.trust import check_code

_WORLDS = ("lanes",)  # fields of states that hold worlds


@checked
def load(folder: str | Path, *, env: Any = None, policy: Any = None, agent: Agent | None = None,
         generation: int | str | None = None, seed: int = 0, trust: bool = False) -> Trained:  # fmt: skip
    """A trained agent from a run's folder: its recipe and its last checkpoint.

    Neither holds code. A recipe may name some, as `file.py:Class`; it is run where it was trained with, or by `trust`.
    Acting needs no environment: where it cannot be made, because its package is not installed or its code not trusted,
    one stands in that has its spaces, and whatever would step it says what is missing.

    Args:
      folder: what `out` was.
      env: the environment, when it was a Python object; or another one with the same spaces.
      policy: the network, when it was a Python object.
      agent: the agent itself, when only Python code can make it (a noise space of your own, say).
      generation: generation of the checkpoint; None is the last, "best" the one with the highest held-out score.
      seed: of the actions of `predict`, for policies that sample.
      trust: run the code that the recipe names, also where nobody has named it here before.

    Returns:
      A `Trained`: `esrl.load(folder).predict(observation)`, or `agent, state, recipe = esrl.load(folder)`.

    Raises:
      EsrlError: not a run's folder, no checkpoint in it yet, one that does not fit, a network of code that nobody has
        named here, or an environment that cannot be made and whose spaces an older esrl did not store.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> result = esrl.train(agent, generations=2, num_evals=0, out=tmp_path / "run")
      >>> esrl.load(tmp_path / "run").predict(np.zeros(4, np.float32)) in (0, 1)
      True
    """
    run = RunFolder.existing(folder)
    recipe = read(run.recipe, run=True)
    if generation == "best":
        run.say_if_best_is_gone()
    if agent is None:
        check_code({"policy": recipe.policy if policy is None else {}}, folder, trust)
        env = _environment(run, recipe, trust) if env is None else env
    key = seed_key(recipe.seed)
    if isinstance(env, StandIn) and agent is None:
        with env.traced():
            built = recipe.build(env, policy)
            state = _acting_state(run, built, key, generation)
        return Trained(dataclasses.replace(built, step=env.refuse, rollout=env.refuse), state, recipe, seed)
    built = agent or recipe.build(env, policy)
    run.checkpoints.check(built.init, key, generation)
    state = run.checkpoints.restore(built.init(key), generation)
    return Trained(built, state, recipe, seed)


def _environment(run: RunFolder, recipe: Recipe, trust: bool) -> Any:
    """The environment of a run, or one that stands in where it cannot be made and its spaces are stored."""
    try:
        check_again(recipe.env)
        check_code({"env": recipe.env}, run.path, trust)
        return make(recipe.env)
    except EsrlError as error:
        found = stored_spaces.read(run.spaces)
        if found is None:
            raise
        return StandIn(recipe.env, *found[1:], why=str(error))


def _acting_state(run: RunFolder, agent: Agent, key: Any, generation: int | str | None) -> Any:
    """A run's state without its worlds, which belong to an environment that is not here."""

    def init(key: Any) -> Any:
        state = agent.init(key)
        return state._replace(**dict.fromkeys(set(_WORLDS) & set(state._fields), ()))

    run.checkpoints.check(init, key, generation, _WORLDS)
    # Compiled, so that the worlds which nobody needs are not made: a stranger may ask for any number of them.
    return run.checkpoints.restore(jax.jit(init)(key), generation, _WORLDS)
