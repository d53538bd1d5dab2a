"""Atari games of ale-py, preprocessed in C++: grey frames, four stacked, one action for four frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from esrl.core.runtime import cores
from esrl.core.types import EsrlError, PyTree
from esrl.envs.base import HostEnv
from esrl.envs.host_lanes import Outcome
from esrl.envs.suites._common import check_reserved, checked_name, construct, quiet
from esrl.envs.suites._pools import pool_env

_RESERVED = ("game", "num_envs", "batch_size", "num_threads", "autoreset_mode", "thread_affinity_offset")
_WHOLE = 210, 160  # rows and columns of the screen
_SEEDS = 2**31 - 1  # ale-py takes seeds of 31 bits


class AtariPool:
    """Lanes of ale-py: each is a vector environment of one lane, with a thread of its own.

    So the operating system spreads the lanes over the cores, each lane is seeded when it begins, and a lane that is
    done is not stepped (ale-py steps a vector environment's lanes all together, or none).
    """

    def __init__(self, lanes: int, make: Callable[[], Any], workers: int) -> None:
        self._workers = workers
        self._lanes = self._each(lambda _: make(), range(lanes))

    def _each(self, call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(call, items))

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        given = seeds.astype(np.int64) & _SEEDS
        return np.concatenate(self._each(lambda i: self._lanes[i].reset(seed=given[i : i + 1])[0], ids))

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        chosen = np.asarray(actions)
        chosen = chosen.astype(np.float32 if chosen.dtype.kind == "f" else np.int32)
        for lane in ids:  # all lanes get their actions before the first is waited for
            self._lanes[lane].send(chosen[lane : lane + 1])
        results = [self._lanes[lane].recv()[:4] for lane in ids]
        observation, reward, terminated, truncated = (np.concatenate(column) for column in zip(*results, strict=True))
        return observation, reward, terminated, truncated

    def close(self) -> None:
        self._lanes = []  # which ends their threads


class ShownPool:
    """Lanes with a second set of them that gets the same seeds and actions, and sees the whole screen in colour."""

    def __init__(self, played: AtariPool, seen: AtariPool) -> None:
        self._played, self._seen = played, seen
        self._frame: np.ndarray | None = None

    def begin(self, ids: np.ndarray, seeds: np.ndarray) -> PyTree:
        self._frame = self._seen.begin(ids, seeds)[0, -1]
        return self._played.begin(ids, seeds)

    def step(self, ids: np.ndarray, actions: PyTree) -> Outcome:
        self._frame = self._seen.step(ids, actions)[0][0, -1]
        return self._played.step(ids, actions)

    def close(self) -> None:
        self._played.close()
        self._seen.close()

    def draw(self) -> np.ndarray:
        """The frame [210, 160, 3] of the first lane."""
        if self._frame is None:
            raise EsrlError("the lane has no frame yet; reset it first")
        return self._frame


def _games() -> dict[str, dict[str, Any]]:
    """For each name, the arguments with which Gymnasium registers the game (as `ALE/` and the name)."""
    with quiet():
        import ale_py

        gymnasium.register_envs(ale_py)
    return {spec.name + "-v5": dict(spec.kwargs) for spec in gymnasium.registry.values() if spec.namespace == "ALE"}


def names() -> list[str]:
    """Names that `make` takes, with the suite in front."""
    return sorted(f"atari/{name}" for name in _games())


def make(name: str, max_episode_steps: int | None = None, **options: Any) -> HostEnv:
    """An Atari game, Gymnasium's `ALE/` and the name, stepped on the host by C++ threads.

    Observations are uint8 [4, 84, 84], the last frame last; rewards are the game's own, not clipped; an action is
    repeated with probability 0.25 (sticky), an episode begins with up to 30 steps of doing nothing.

    Args:
      name: without the suite, as `Breakout-v5`.
      max_episode_steps: steps of an episode; 27000 (108000 frames, four a step) when left out.
      **options: arguments of `ale_py.AtariVectorEnv` (`stack_num`, `frameskip`, `reward_clipping`, `episodic_life`,
        `repeat_action_probability`, `full_action_space`, `img_height`, ...).

    Raises:
      EsrlError: unknown game, a time limit below 1, or options that it does not take.
    """
    games = _games()
    full = checked_name("atari", name, games, options, max_episode_steps, "max_num_frames_per_episode")
    check_reserved(full, options, _RESERVED)
    arguments = {"reward_clipping": False, **games[name], **options}

    def lane(**kwargs: Any) -> Any:
        from ale_py.vector_env import AtariVectorEnv

        return AtariVectorEnv(num_envs=1, num_threads=1, **{**arguments, **kwargs})

    def pool(lanes: int, render_mode: str | None = None) -> Any:
        played = AtariPool(lanes, lane, cores())
        if render_mode is None:
            return played
        rows, columns = _WHOLE
        whole = {"grayscale": False, "stack_num": 1, "img_height": rows, "img_width": columns}
        return ShownPool(played, AtariPool(lanes, lambda: lane(**whole), cores()))

    one = construct(full, lane)
    frames, skip = int(arguments["max_num_frames_per_episode"]), int(arguments["frameskip"])
    steps = max_episode_steps or max(1, frames // skip)
    # The game's own limit also counts the frames in which nothing is done at the beginning, so it must come later.
    arguments["max_num_frames_per_episode"] = frames + steps * skip
    observations, actions = one.single_observation_space, one.single_action_space
    return pool_env(full, observations, _plain(actions), steps, pool)


def _plain(space: spaces.Space) -> spaces.Space:
    """A Discrete space of a whole number of actions."""
    return spaces.Discrete(int(space.n)) if isinstance(space, spaces.Discrete) else space
