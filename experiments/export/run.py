"""How near are the actions of exported policies to those of `predict`?

    python -m experiments.export.run                 # 1,000 observations for each network, NumPy and ONNX
    python -m experiments.export.run --many 100      # fewer of them

Networks of full size (mlp of 3 x 256, gru of 128, cnn as `esrl.cnn()` on 84 x 84 pictures of 4 channels), each to a Box
and to a Discrete, with a normalizer and tanh squashing where there is a Box. Parameters are those of a new agent, each
moved by normal noise of a tenth, as are the normalizer's statistics, so that every part of it shows. Of a Box the table
has the largest difference over the bounds' width; of choices the share that differs. A gru plays four steps on.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import esrl
from experiments import script

VECTOR = spaces.Box(-10.0, 10.0, (27,))
PICTURE = spaces.Box(0, 255, (84, 84, 4), np.uint8)
ACTIONS = {"Box": spaces.Box(-2.0, 3.0, (8,)), "Discrete": spaces.Discrete(6)}
NETWORKS: dict[str, tuple[spaces.Box, Callable[[], Any], int]] = {
    "mlp 3x256": (VECTOR, lambda: esrl.mlp((256, 256, 256)), 1),
    "gru 128": (VECTOR, lambda: esrl.gru(128), 4),
    "cnn 84x84x4": (PICTURE, esrl.cnn, 1),
}
AT_ONCE = 50  # observations in a batch: a picture's layers take megabytes


@dataclass
class Arguments:
    """The command line."""

    many: int = 1000  # observations
    seed: int = 0


class Still:
    """Any spaces; nothing ever happens."""

    max_episode_steps = 3

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, key: Any) -> tuple[tuple[()], Any]:
        return (), jnp.zeros(self.observation_space.shape, self.observation_space.dtype)

    def step(self, state: Any, action: Any, key: Any) -> tuple[Any, ...]:
        return (), self.reset(key)[1], jnp.float32(0), jnp.bool_(False)


def moved(agent: Any, rng: np.random.Generator) -> Any:
    """A new agent's state, with noise on parameters and statistics."""
    state = agent.init(jax.random.key(0))

    def drawn(x: Any) -> Any:
        return x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)

    params = jax.tree.map(drawn, state.params)
    state = state._replace(params=params)
    if state.average is not None:
        state = state._replace(average=params)
    if state.moments is not None:
        m2 = jax.tree.map(lambda x: jnp.asarray(rng.uniform(1, 99, x.shape), x.dtype), state.moments.m2)
        mean = jax.tree.map(drawn, state.moments.mean)
        state = state._replace(moments=state.moments._replace(seen=jnp.float32(50), mean=mean, m2=m2))
    return state


class Onnx:
    """A policy.onnx in ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        import json

        import onnxruntime

        self._session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
        found = self._session.get_modelmeta().custom_metadata_map
        self._start = {name: np.asarray(x, np.float32) for name, x in json.loads(found["start"]).items()}
        self._carry: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        self._carry = {}

    def predict(self, observation: np.ndarray) -> np.ndarray:
        lanes = len(observation)
        carry = self._carry or {name: np.repeat(x[None], lanes, 0) for name, x in self._start.items()}
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(None, {"observation": observation} | carry), strict=True))
        self._carry = {name: found[f"next_{name}"] for name in carry}
        return np.asarray(found["action"])


def in_numpy(folder: Path) -> Any:
    """The policy of an exported module."""
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Policy()


def compared(name: str, to: str, many: int, seed: int) -> dict[str, float]:
    """By format: of a Box the largest difference over its width, of choices the share that differs."""
    observed, network, steps = NETWORKS[name]
    acted = ACTIONS[to]
    rng = np.random.default_rng(seed)
    agent = esrl.eggroll(Still(observed, acted), network(), population=4)
    found = esrl.Trained(agent, moved(agent, rng))
    with tempfile.TemporaryDirectory() as made:
        for form in ("numpy", "onnx"):
            esrl.export(found, to=form, out=Path(made, form))
        policies: dict[str, Any] = {"numpy": in_numpy(Path(made, "numpy")), "onnx": Onnx(Path(made, "onnx"))}
        worst = dict.fromkeys(policies, 0.0)
        for first in range(0, many, AT_ONCE):
            number = min(AT_ONCE, many - first)
            for policy in (found, *policies.values()):
                policy.reset()
            for _ in range(steps):
                given = (
                    rng.integers(0, 256, (number, *observed.shape), np.uint8)
                    if observed is PICTURE
                    else rng.normal(size=(number, *observed.shape)).astype(np.float32)
                )
                wanted = found.predict(given)
                for form, policy in policies.items():
                    action = policy.predict(given)
                    if isinstance(acted, spaces.Box):
                        far = np.abs(np.float64(action) - wanted) / (acted.high - acted.low)
                        worst[form] = max(worst[form], float(far.max()))
                    else:
                        worst[form] += float(np.sum(action != wanted)) / (many * steps)
    return worst


def main() -> None:
    arguments = script.options(Arguments, __doc__)
    script.at_least(arguments, 1, "many")
    rows = []
    for name in NETWORKS:
        for to in ACTIONS:
            worst = compared(name, to, arguments.many, arguments.seed)
            rows.append([name, to, *(f"{worst[form]:.1e}" if worst[form] else "0" for form in ("numpy", "onnx"))])
    print(script.table(["network", "actions", "NumPy", "ONNX"], rows))


if __name__ == "__main__":
    main()
