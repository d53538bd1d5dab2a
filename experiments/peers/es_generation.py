"""Other libraries' generations for experiments/throughput/run.py: evosax's `Open_ES`, and `brax.training.agents.es`.

evosax is open_es.py's side: population, network, sigma, Adam, centered ranks, deterministic actions, horizon and
normalization are those of esrl's OpenES. All members of a generation are in one world, and every member is stepped for
the whole horizon. It runs on one device by itself, and here on all of them by one added line.

brax's ES has the same number of members (it counts pairs), network (by its own factory), sigma, centered ranks, horizon
and normalization. It samples its actions, steps every member for the whole horizon, and keeps all observations. Its
own `train` runs it, with a learning rate of 0, so that parameters stay fresh. After each generation it reports its
progress, and there it waits for its next turn. Its seconds are its own, of the epoch alone; what it does between
generations (scoring two episodes) is not counted.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import numpy as np

from esrl.core.compile_time import compile_seconds
from esrl.envs.base import max_episode_steps_of
from esrl.policies.networks import ACTIVATIONS
from experiments.throughput.generation import Side
from experiments.throughput.machine_limits import held
from experiments.throughput.timing import compiled

SIGMA, LEARNING_RATE = 0.05, 0.01
WORLDS = 32  # of evosax, in turn: the same parameters, other keys
WARM = 2  # generations of brax's ES that compile: its epoch is compiled twice


def peer_sides(env: Any, population: int, hidden: tuple[int, ...]) -> dict[str, Callable[[], Side]]:
    """The peers that have an environment; one that is not installed raises when it is made."""
    suite = env.name.partition("/")[0]
    found: dict[str, Callable[[], Side]] = {}
    if suite in ("gymnax", "brax"):
        found["evosax Open_ES"] = lambda: _evosax(env, population, hidden)
    if suite == "brax":
        found["brax ES"] = lambda: _brax(env, population, hidden)
    return found


class _Named:
    """An environment by the name that its own suite knows, without esrl's options."""

    def __init__(self, env: Any) -> None:
        self._env, self.name = env, env.name.partition("?")[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def _evosax(env: Any, population: int, hidden: tuple[int, ...]) -> Side:
    from experiments.peers.open_es import Evosax, Line

    begun = compile_seconds()
    line = Line(population, SIGMA, LEARNING_RATE, 0, "layernorm_relu")
    devices = max(d for d in range(1, len(jax.local_devices()) + 1) if (population // 2) % d == 0)
    side = Evosax(_Named(env), line, hidden, devices)
    seconds = compile_seconds() - begun
    key, *rest = side.init(0)
    states = itertools.cycle([(side._place(jax.random.fold_in(key, i)), *rest) for i in range(WORLDS)])

    def call() -> tuple[float, ...]:
        _, live, padded = side.generation(next(states))
        return float(live), float(live + padded), 1.0

    weights = sum(int(np.size(x)) for x in jax.tree.leaves(side._start(0)))
    return Side(call, seconds, side.mib * 2**20, weights * population // 2)


# ---- brax -----------------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends brax's training."""


class _Turns:
    """brax's training in a thread of its own, which goes on by one generation at a time."""

    def __init__(self, train: Callable[..., Any]) -> None:
        self._go: queue.Queue[bool] = queue.Queue()
        self._done: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._run, args=(train,), daemon=True).start()

    def _run(self, train: Callable[..., Any]) -> None:
        try:
            train(progress_fn=self._progress)
        except _Enough:
            return
        except Exception as error:
            self._done.put(error)

    def _progress(self, steps: int, metrics: Any) -> None:
        self._done.put((steps, metrics))
        if not self._go.get():
            raise _Enough

    def first(self) -> tuple[int, Any]:
        """(live steps so far, metrics) before any generation."""
        found = self._done.get()
        if isinstance(found, Exception):
            raise found
        return found

    def next(self) -> tuple[int, Any]:
        """The same after the next generation."""
        self._go.put(True)
        return self.first()

    def end(self) -> None:
        self._go.put(False)


def _brax(env: Any, population: int, hidden: tuple[int, ...]) -> Side:
    import brax.envs
    from brax.training.agents.es import networks as es_networks
    from brax.training.agents.es import train as es

    name = env.name.partition("?")[0].partition("/")[2]
    horizon = max_episode_steps_of(env)
    options = {
        "environment": brax.envs.get_environment(name, backend="spring"),
        "num_timesteps": 2**40,
        "num_evals": 2**40 + 1,  # asks for progress after every generation
        "num_eval_envs": 2,
        "episode_length": horizon,
        "population_size": population // 2,
        "learning_rate": 0.0,
        "fitness_shaping": es.FitnessShaping.CENTERED_RANK,
        "perturbation_std": SIGMA,
        "normalize_observations": True,
        "network_factory": partial(
            es_networks.make_es_networks, hidden_layer_sizes=hidden, activation=ACTIVATIONS["layernorm_relu"]
        ),
    }
    seen: dict[str, Any] = {}
    real = jax.jit

    def jit(function: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Remembers the shapes that the epoch is called with."""
        if getattr(function, "__name__", "") != "training_epoch":
            return real(function, *args, **kwargs) if function is not None else real(*args, **kwargs)
        epoch = real(function, *args, **kwargs)

        def called(*given: Any) -> Any:
            if "program" not in seen:
                seen["program"], seen["seconds"] = compiled(epoch, *given)
            return epoch(*given)

        return called

    with mock.patch.object(jax, "jit", jit):
        turns = _Turns(partial(es.train, **options))
        turns.first()
        for _ in range(WARM):
            turns.next()
    live = [0]

    def call() -> tuple[float, ...]:
        steps, metrics = turns.next()
        done, live[0] = steps - live[0], steps
        seconds = population * horizon / metrics["training/sps"]
        return float(done), float(population * horizon), 1.0, seconds

    call()  # what comes before it is not counted
    numbers = _weights(env, hidden) * population // 2
    return Side(call, seen["seconds"], held(seen["program"], len(jax.local_devices())), numbers, turns.end)


def _weights(env: Any, hidden: tuple[int, ...]) -> int:
    """Weights of brax's network, whose outputs are means and deviations."""
    sizes = [env.observation_space.shape[0], *hidden, 2 * env.action_space.shape[0]]
    return sum(m * n + n for m, n in itertools.pairwise(sizes))
