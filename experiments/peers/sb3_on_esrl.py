"""stable-baselines3's PPO learns on a JAX environment of esrl, exported as a Gymnasium vector environment.

    python -m experiments.peers.sb3_on_esrl                                   # gymnasium/phys2d/CartPole-v1, 3 seeds
    python -m experiments.peers.sb3_on_esrl brax/inverted_pendulum --env-steps 1e6 --num-envs 64

`esrl.as_vector_env` steps all lanes in one compiled call. stable-baselines3 has an interface of its own for that,
`VecEnv`, onto which `Lanes` below lays Gymnasium's: an episode's end begins the next one in the same step, and the last
observation goes with the infos. What SB3 trained then plays held-out episodes through `esrl.as_vector_env` again.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from tyro.conf import Positional

import esrl
from experiments import script
from experiments.lab.store import Row, Store, folder_name
from experiments.peers.common import EPISODES, RESULTS


@dataclass(frozen=True)
class Options:
    env: Positional[str] = "gymnasium/phys2d/CartPole-v1"
    env_steps: float = 1e5
    num_envs: int = 16
    num_steps: int = 128
    seeds: int = 3
    episodes: int = EPISODES
    out: Path = RESULTS


class Lanes(VecEnv):
    """A `gymnasium.vector.VectorEnv` in SAME_STEP mode as stable-baselines3's `VecEnv`."""

    def __init__(self, env: Any) -> None:
        self.env, self._seed = env, 0
        self.render_mode = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        return self.env.reset(seed=self._seed)[0]

    def seed(self, seed: int | None = None) -> list[int | None]:
        self._seed = 0 if seed is None else seed
        return [self._seed + i for i in range(self.num_envs)]

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        each: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(done):
            each[lane] = {"terminal_observation": infos["final_obs"][lane], "TimeLimit.truncated": truncated[lane]}
        return observation, reward.astype(np.float32), done, each

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the lanes are one compiled program; they have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("the lanes are one compiled program; they have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def score(model: PPO, name: str, episodes: int) -> np.ndarray:
    """Returns [episodes] of the mode of SB3's policy, in worlds that training has not seen."""
    env = esrl.as_vector_env(name, episodes, AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=1_000_000)
    total, live = np.zeros(episodes), np.ones(episodes, bool)
    while live.any():
        actions, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(actions)
        total += np.where(live, reward, 0.0)
        over = terminated | truncated
        live &= ~over
        if over.any():
            observation, _ = env.reset(options={"reset_mask": over})
    return total


def train(name: str, seed: int, given: Options) -> Row:
    """One run of SB3's PPO: returns before and after, steps and seconds."""
    lanes = VecMonitor(Lanes(esrl.as_vector_env(name, given.num_envs, AutoresetMode.SAME_STEP)))
    model = PPO("MlpPolicy", lanes, n_steps=given.num_steps, batch_size=256, seed=seed, device="cpu")
    before = score(model, name, given.episodes).mean()
    begun = time.perf_counter()
    model.learn(int(given.env_steps))
    seconds = time.perf_counter() - begun
    after = score(model, name, given.episodes)
    row = {"env": name, "agent": "sb3 ppo", "seed": seed}
    row |= {"env_steps": model.num_timesteps, "seconds": round(seconds, 2)}
    return {**row, "return_before": before, "return_mean": after.mean(), "return_std": after.std()}


def main() -> None:
    given = script.options(Options, __doc__)
    torch.set_num_threads(1)  # networks this small only lose by more
    store = Store(given.out / f"sb3_on_esrl-{folder_name(given.env)}.csv", ("seed",))
    store.forget()
    for seed in range(given.seeds):
        row = train(given.env, seed, given)
        store.add([row], about={"recipe": {"num_envs": given.num_envs, "num_steps": given.num_steps}})
        print(
            f"seed {seed}: {row['return_before']:.1f} before, {row['return_mean']:.1f} +- {row['return_std']:.1f} after"
            f" {row['env_steps']:,} steps in {row['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
