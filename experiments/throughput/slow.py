"""Simulators whose step takes 5 ms: one that waits, and one that computes.

    esrl train experiments/throughput/slow.py:Slow --num-evals 0 --generations 8
    esrl train experiments/throughput/slow.py:Busy --num-evals 0 --generations 4

`env_steps_per_second` of the generations after the first, in which processes start, is the figure.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SECONDS = 0.005


class Slow(gymnasium.Env):
    """Waits in each of its hundred steps, as for another program."""

    observation_space = spaces.Box(-1.0, 1.0, (4,))
    action_space = spaces.Box(-1.0, 1.0, (2,))
    max_episode_steps = 100

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._spend()
        return self._observation(), -float(np.square(action).sum()), False, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 4).astype(np.float32)

    def _spend(self) -> None:
        time.sleep(SECONDS)


class Busy(Slow):
    """Computes instead."""

    def _spend(self) -> None:
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            pass
