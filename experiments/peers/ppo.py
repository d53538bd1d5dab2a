"""esrl's PPO against rejax's and brax.training's, with the peer's published hyper-parameters on both sides.

    python -m experiments.peers.ppo                            # the lines that are not slow, five seeds
    python -m experiments.peers.ppo --only rejax/gymnax --seeds 3
    python -m experiments.peers.ppo --table
    JAX_NUM_CPU_DEVICES=1 python -m experiments.peers.ppo --results one_device    # one device for every side

Each line is an environment, a peer, and one set of hyper-parameters: the peer's own, and their translation for esrl,
side by side in `LINES`. Sides run in turn in one process, on the same environment (spring backend), with the same
number of environment steps. `return_mean` is that of the policies' modes on the same 128 held-out episodes, through
`esrl.evaluate`; `return_sampled` that of actions drawn from them. brax.training offers the mode, rejax only draws, so
there the mode is taken from the distribution that it draws from. Scoring is not timed, and no side evaluates while it
trains.

What could not be made the same is in `REMAINS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import esrl
from experiments import script
from experiments.peers import common
from experiments.peers.common import Options, Results, Row, Stopwatch, numbers, score_text
from experiments.peers.ppo_peers import Brax, Rejax

REMAINS = """
- rejax takes gymnax's `done` at the time limit for the end of the world; esrl takes the value of what comes after.
- rejax bounds every entry of a gradient by max_grad_norm, and gives actor and critic an optimizer each; esrl bounds the
  global norm of both together.
- rejax normalizes by statistics of the very step, esrl and brax.training by those at the start of an iteration or after
  it.
- brax.training begins every episode of a lane in the state of its first one, which costs nothing; rejax and esrl draw a
  new one, and work it out in every step. rejax plays Brax through two automatic resets, its wrapper's and gymnax's.
- rejax runs on one device, with all cores; brax.training and esrl on one device for each core.
- brax.training computes advantages within unrolls of 5 steps, from values that it works out again in every gradient
  step, its deviation depends on the observation, and its entropy counts the tanh; esrl's advantages are over all of an
  iteration's steps, the deviation is a parameter, the entropy the Gaussian's.
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
      env: what `esrl.make` takes.
      source: where the peer's settings come from.
      config: the peer's. hidden, activation, options: esrl's network and options, the same in esrl's words.
      env_steps: budget of each run.
      published: whether the peer publishes these settings for this environment. default: measured without `--only`.
    """

    env: str
    source: str
    config: dict[str, Any]
    hidden: tuple[int, ...]
    activation: str
    options: dict[str, Any]
    env_steps: float
    published: bool = True
    default: bool = True


ESRLS = {"swish": "silu"}  # activations by other names
REJAX = (
    "num_envs",
    "num_steps",
    "num_epochs",
    "num_minibatches",
    "learning_rate",
    "max_grad_norm",
    "gamma",
    "ent_coef",
)


def rejax_line(
    env: str, file: str, env_steps: float, activation: str, numbers: Sequence[float], given: dict[str, Any]
) -> Line:
    """A line against rejax: its file's numbers, of which esrl's are a translation; networks are its default, 2x64.

    Args:
      file: of rejax. numbers: of `REJAX`. given: what else its file says.
    """
    same: dict[str, Any] = dict(zip(REJAX, numbers, strict=True)) | {"gae_lambda": 0.95, "clip_eps": 0.2}
    config = {**same, "vf_coef": 0.5, "agent_kwargs": {"activation": activation}, **given}
    options = {**same, "entropy_coef": same["ent_coef"], "value_coef": 0.5, "clip_value": True, "squash": "clip"}
    options |= {"normalize_observations": given.get("normalize_observations", False), "normalize_rewards": False}
    del options["ent_coef"]
    return Line(env, f"rejax, configs/{file}", config, (64, 64), ESRLS.get(activation, activation), options, env_steps)


def brax_line(env: str, env_steps: float, critic: tuple[int, ...], **more: bool) -> Line:
    """A line against brax.training: its notebook's settings for inverted_double_pendulum, its default policy."""
    same: dict[str, Any] = {
        "num_envs": 2048,
        "num_minibatches": 32,
        "learning_rate": 3e-4,
        "normalize_observations": True,
    }
    config = {**same, "unroll_length": 5, "batch_size": 1024, "num_updates_per_batch": 4, "discounting": 0.97}
    config |= {"entropy_cost": 1e-2, "reward_scaling": 10, "policy": (32,) * 4, "value": critic}
    steps = config["batch_size"] * config["num_minibatches"] * config["unroll_length"] // config["num_envs"]
    options = {**same, "num_steps": steps, "num_epochs": 4, "gamma": 0.97, "gae_lambda": 0.95, "clip_eps": 0.3}
    options |= {"entropy_coef": 1e-2, "value_coef": 0.5, "max_grad_norm": None, "reward_scale": 10.0}
    options |= {"normalize_rewards": False, "squash": "tanh", "critic": critic}
    source = "Brax, notebooks/training.ipynb"
    return Line(env, source, config, (32,) * 4, "silu", options, env_steps, **more)


LINES = {
    "rejax/gymnax/CartPole-v1": rejax_line(
        "gymnax/CartPole-v1",
        "gymnax/cartpole.yaml",
        1e5,
        "tanh",
        (5, 100, 5, 5, 7.5e-4, 0.5, 0.99, 0.01),
        {"env": "CartPole-v1"},
    ),
    "rejax/gymnax/Pendulum-v1": rejax_line(
        "gymnax/Pendulum-v1",
        "gymnax/pendulum.yaml",
        7.5e5,  # its total_timesteps is 150,000, but it trains an iteration of 10,000 for each of 75 evaluations
        "swish",
        (100, 100, 10, 10, 1e-3, 10.0, 0.995, 0.0),
        {"env": "Pendulum-v1", "normalize_observations": True},
    ),
    "rejax/brax/hopper": rejax_line(
        "brax/hopper",
        "brax/hopper.yaml",
        2e6,  # of 5.24 million
        "tanh",
        (32, 32, 9, 2, 0.00025674088686342003, 1.0, 0.995, 0.01),
        {"env": "brax/hopper", "env_params": {"backend": "spring"}, "normalize_observations": True},
    ),
    # brax.training's own critic is 5x256, on which two cores spend nine tenths of their time
    "brax/inverted_double_pendulum, critic 4x32": brax_line("brax/inverted_double_pendulum", 3e6, (32,) * 4),
    "brax/inverted_double_pendulum": brax_line("brax/inverted_double_pendulum", 2e6, (256,) * 5, default=False),
    "brax/hopper": brax_line("brax/hopper", 2e6, (256,) * 5, published=False, default=False),
}


def agent_of(env: Any, line: Line, deterministic: bool = True) -> esrl.Agent:
    """esrl's agent of a line."""
    options = dict(line.options)
    if isinstance(options.get("critic"), tuple):
        options["critic"] = esrl.mlp(options["critic"], line.activation)
    return esrl.ppo(env, esrl.mlp(line.hidden, line.activation), **options, deterministic=deterministic)


class Esrl:
    """esrl's side."""

    def __init__(self, env: Any, line: Line, env_steps: int) -> None:
        made = [partial(agent_of, env, line, mode) for mode in (True, False)]
        self._init, self._step, _, self.mib = common.one_step(made[0]())
        self.scores = common.scores(env, (partial(lambda make: make().act, make) for make in made))
        self.env_steps = env_steps

    def train(self, seed: int) -> tuple[Any, int]:
        """(state, environment steps)."""
        state = self._init(seed)
        while int(state.env_steps) < self.env_steps:
            state = self._step(state)
        return state, int(state.env_steps)


def measure(results: Results, name: str, seeds: int, env_steps: float | None) -> None:
    """Trains both sides of a line in turn, seed by seed."""
    line, peer = LINES[name], name.partition("/")[0]
    env, budget = esrl.make(line.env), int(env_steps or line.env_steps)
    other = partial(Rejax if peer == "rejax" else Brax, env, line.config, budget)
    results.compare(name, {"esrl": partial(Esrl, env, line, budget), peer: other}, budget, seeds, _measured)


def _measured(make: Callable[[], Any], seed: int) -> Row:
    watch = Stopwatch()
    one = make()
    state, steps = one.train(seed)
    return {**common.times(watch, steps), **one.scores(state), "mib": one.mib}


def table(results: Results) -> str:
    lines = []
    for (name, _, who), rows in common.grouped(results.read(), "line", "budget", "side").items():
        steps = f"{np.mean(numbers(rows, 'env_steps')) / 1e6:.3g}M"
        scores = [score_text(numbers(rows, column)) for column in ("return_mean", "return_sampled")]
        settings = LINES[name].source if LINES[name].published else LINES[name].source + " (of another environment)"
        lines.append([name, settings, who, len(rows), steps, *scores, *common.cost(rows)])
    head = ("line", "settings", "side", "seeds", "env steps", "return (mode), IQM [95 %]", "return (sampled)")
    return script.table([*head, *common.COST], lines)


def main() -> None:
    given = script.options(Options, __doc__)
    settings = {name: dataclasses.asdict(line) for name, line in LINES.items()}
    results = Results(given.results / "ppo.csv", ("line", "side", "budget", "seed"), settings)
    for name in given.chosen(name for name, line in LINES.items() if line.default or given.only):
        measure(results, name, given.seeds, given.env_steps)
    print(f"\n{table(results)}\n\nWhat remains different:{REMAINS}")


if __name__ == "__main__":
    main()
