"""esrl's OpenES against evosax's `Open_ES`, on the same environments.

    python -m experiments.peers.open_es                    # both parts, five seeds
    python -m experiments.peers.open_es --part speed --only CartPole
    python -m experiments.peers.open_es --table

Both sides have the same population, sigma, Adam, learning rate, centered ranks, antithetic pairs, network (layers,
activation, LeCun-normal weights), deterministic actions (argmax; tanh onto the bounds), horizon, normalized
observations, and budget of live environment steps. They run in turn in one process. Scored is the mean of the search
distribution, on the same 128 held-out episodes, through `esrl.evaluate`; scoring is not timed.

What is each side's own way: evosax plays every member in one and the same world of a generation, esrl each pair in a
world of its own; evosax steps every member for the whole horizon and resets it in between, and what it sees after an
episode's end also goes into its normalization, esrl stops counting there and stops stepping once all of a chunk are
done. Live steps are those before a member's first end; `padded_steps` are the others. evosax runs on one device by
itself; "evosax, 2 devices" is the same program with its population split over JAX's devices by one added line, as
esrl's always is.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import esrl
from esrl.core.sharding import one_device
from esrl.core.types import seed_key
from esrl.envs.base import max_episode_steps_of
from esrl.policies.networks import ACTIVATIONS
from experiments import script
from experiments.lab.recipes import FORMER
from experiments.peers import common
from experiments.peers.common import Results, Row, Stopwatch, blocked, numbers, rate_text, score_text


@dataclasses.dataclass(frozen=True)
class Line:
    """One environment's settings, the same for both sides."""

    population: int
    sigma: float
    learning_rate: float
    env_steps: float
    activation: str = "tanh"  # as in esrl.mlp


LINES = {
    "gymnax/CartPole-v1": Line(256, 0.1, 0.03, 2e6),
    "gymnax/Pendulum-v1": Line(256, 0.1, 0.03, 10e6, "layernorm_relu"),  # with tanh both sides stay near -850
    "brax/inverted_pendulum": Line(256, 0.05, 0.02, 2e6),
    "brax/hopper": Line(256, 0.05, 0.02, 4e6),
}
LEARN = ("gymnax/CartPole-v1", "gymnax/Pendulum-v1", "brax/inverted_pendulum")
SPEED = {"gymnax/Pendulum-v1": 1, "brax/hopper": 0}  # on so many devices as well as on all
SPEED_WIDTHS = ((32, 32), (256, 256, 256))


class Esrl:
    """esrl's side; `mib` is what a generation's program holds."""

    def __init__(self, env: Any, line: Line, hidden: tuple[int, ...], devices: int) -> None:
        agent = agent_of(env, line, hidden, one_device() if devices == 1 else None)
        self.init, self._step, self.devices, self.mib = common.one_step(agent)
        self.score = common.scorer(env, lambda: agent.act)

    def generation(self, state: Any) -> tuple[Any, int, int]:
        """(state, live steps, padded steps) of one generation."""
        before = int(state.env_steps), int(state.padded_steps)
        state = self._step(state)
        return state, int(state.env_steps) - before[0], int(state.padded_steps) - before[1]


class Evosax:
    """evosax's side: its problem, network and algorithm, a whole generation in one compiled program.

    It begins with the parameters that esrl begins with: both name the layers of a Flax network alike.
    """

    def __init__(self, env: Any, line: Line, hidden: tuple[int, ...], devices: int) -> None:
        from evosax.algorithms import Open_ES
        from evosax.problems.networks import MLP

        size, output = _head(env)
        network = MLP((*hidden, size), activation=ACTIVATIONS[line.activation], output_fn=output)
        self.problem, self.steps = _problem(env, network), line.population * max_episode_steps_of(env)
        agent = agent_of(env, line, hidden, one_device())
        self._start = lambda seed: {"params": agent.init(seed_key(seed)).params["network"]}
        adam = optax.adam(line.learning_rate)
        std = optax.constant_schedule(line.sigma)
        self.es = Open_ES(line.population, self._start(0), optimizer=adam, std_schedule=std)
        self.devices = devices
        split = NamedSharding(Mesh(np.array(jax.local_devices()[:devices]), ("members",)), PartitionSpec("members"))

        def generation(state: Any) -> tuple[Any, Any]:
            key, es, world = state
            key, ask, play, tell = jax.random.split(key, 4)
            population, es = self.es.ask(ask, es, self.es.default_params)
            if devices > 1:
                population = jax.lax.with_sharding_constraint(population, split)
            # evosax's name for playing a population's episodes; nothing is executed from text
            fitness, world, info = self.problem.eval(play, population, world)
            es, _ = self.es.tell(tell, population, -fitness, es, self.es.default_params)
            return (key, es, world), jnp.sum(_lengths(info["env_states"]))

        def act(state: Any, observation: Any, carry: Any, key: Any) -> tuple[Any, Any]:
            seen = self.problem.normalize_obs(observation, state[2])
            return network.apply(self.es.get_mean(state[1]), seen, key), carry

        place = NamedSharding(split.mesh, PartitionSpec())
        self._place = lambda state: jax.device_put(jax.tree.map(jnp.asarray, state), place)
        lowered = jax.jit(generation, out_shardings=place).lower(self.init(0))
        self._program = lowered.compile()
        self.mib = common.mib(self._program, devices)
        self.score = common.scorer(env, lambda: act)

    def init(self, seed: int) -> Any:
        key, other = jax.random.split(jax.random.key(seed))
        state = key, self.es.init(other, self._start(seed), self.es.default_params), self.problem.init(other)
        return self._place(state)

    def generation(self, state: Any) -> tuple[Any, int, int]:
        """(state, live steps, padded steps) of one generation."""
        state, live = blocked(self._program(state))
        return state, int(live), self.steps - int(live)


SIDES: dict[str, Callable[..., Any]] = {"esrl": Esrl, "evosax": Evosax}


def agent_of(env: Any, line: Line, hidden: tuple[int, ...], mesh: Any) -> esrl.Agent:
    options: dict[str, Any] = FORMER | {k: getattr(line, k) for k in ("population", "sigma", "learning_rate")}
    return esrl.open_es(env, esrl.mlp(hidden, line.activation), mesh=mesh, **options)


def _problem(env: Any, network: Any) -> Any:
    """evosax's own problem class for the environment, with its own normalization."""
    from evosax.problems.rl.brax import BraxProblem
    from evosax.problems.rl.gymnax import GymnaxProblem

    suite, _, name = env.name.partition("/")
    if suite == "gymnax":
        return GymnaxProblem(name, network, episode_length=max_episode_steps_of(env))
    return BraxProblem(name, network, episode_length=max_episode_steps_of(env), env_kwargs={"backend": "spring"})


def _head(env: Any) -> tuple[int, Any]:
    """Outputs of the network, and how they become an action: as esrl's deterministic heads."""
    space = env.action_space
    if hasattr(space, "n"):
        return int(space.n), lambda x, key=None: jnp.argmax(x, axis=-1).astype(jnp.int32)
    high = jnp.asarray(space.high)
    return int(np.prod(space.shape)), lambda x, key=None: high * jnp.tanh(x)


def _lengths(states: Any) -> Any:
    """Steps up to each member's first end, from the states [P, 1, T] of all steps."""
    over = states[1].time == 0 if isinstance(states, tuple) else states.done > 0  # gymnax has reset it by then
    over = over[:, 0]
    return jnp.where(jnp.any(over, axis=1), jnp.argmax(over, axis=1) + 1, over.shape[1])


# ---- the two parts --------------------------------------------------------------------------------------------------


def learn(results: Results, name: str, seeds: int, env_steps: float | None) -> None:
    """Trains both sides in turn, seed by seed, on all devices."""
    budget, arguments = int(env_steps or LINES[name].env_steps), (LINES[name], (32, 32), len(jax.local_devices()))
    sides = {who: partial(side, esrl.make(name), *arguments) for who, side in SIDES.items()}
    results.compare(name, sides, budget, seeds, partial(_learned, budget))


def _learned(budget: int, make: Callable[[], Any], seed: int) -> Row:
    watch = Stopwatch()
    one = make()
    state, live, padded, generations = one.init(seed), 0, 0, 0
    while live < budget:
        state, more, idle = one.generation(state)
        live, padded, generations = live + more, padded + idle, generations + 1
    timed = {"generations": generations, "padded_steps": padded, **common.times(watch, live)}
    return {**timed, "return_mean": one.score(state), "mib": one.mib}


def speed(results: Results, name: str, seconds: float) -> None:
    """Times the first generation again and again: sides, devices and widths in turn, three times over."""
    env, devices = esrl.make(name), len(jax.local_devices())
    for hidden in SPEED_WIDTHS:

        @cache
        def make(who: str, number: int, hidden: tuple[int, ...] = hidden) -> Any:
            return SIDES[who](env, LINES[name], hidden, number)

        for repeat, number, who in itertools.product(range(3), sorted({SPEED[name] or devices, devices}), SIDES):
            key = {"env": name, "network": "x".join(map(str, hidden)), "side": who, "devices": number, "repeat": repeat}
            results.attempt(key, _timed, partial(make, who, number), seconds)


def _timed(make: Callable[[], Any], seconds: float) -> Row:
    watch = Stopwatch()
    one = make()
    compiling, state = watch.seconds()[1], one.init(0)
    watch, live, padded = Stopwatch(), 0, 0
    while live == 0 or watch.seconds()[0] < seconds:
        _, more, idle = one.generation(state)
        live, padded = live + more, padded + idle
    timed = {**common.times(watch, live), "seconds_compile": round(compiling, 3)}
    return {"padded_steps": padded, **timed, "mib": one.mib}


def learned_table(results: Results) -> str:
    lines = []
    for (env, _, who), rows in common.grouped(results.read(), "env", "budget", "side").items():
        million = [f"{np.mean(numbers(rows, name)) / 1e6:.2f}M" for name in ("env_steps", "padded_steps")]
        lines.append([env, who, len(rows), *million, score_text(numbers(rows, "return_mean")), *common.cost(rows)])
    head = ("environment", "side", "seeds", "env steps", "padded", "return, IQM [95 %]")
    return script.table([*head, *common.COST], lines)


def speed_table(results: Results) -> str:
    lines = []
    for key, rows in common.grouped(results.read(), "env", "network", "side", "devices").items():
        live, padded, seconds = (numbers(rows, name) for name in ("env_steps", "padded_steps", "seconds"))
        rates = rate_text((live + padded) / seconds), rate_text(live / seconds)
        lines.append([*key, *rates, *common.largest(rows, "seconds_compile", "mib")])
    head = ("environment", "network", "side", "devices", "all steps/s", "live steps/s", "compile s", "MiB")
    return script.table(head, lines)


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    part: Literal["learn", "speed", "both"] = "both"
    seconds: float = 3.0  # of each speed measurement, at least


def main() -> None:
    given = script.options(Options, __doc__)
    settings = {name: dataclasses.asdict(line) for name, line in LINES.items()}
    learning = Results(given.results / "open_es.csv", ("env", "side", "budget", "seed"), settings)
    key = ("env", "network", "side", "devices", "repeat")
    speeds = Results(given.results / "open_es_speed.csv", key, settings)
    for name in given.chosen(LEARN) if given.part != "speed" else []:
        learn(learning, name, given.seeds, given.env_steps)
    for name in given.chosen(SPEED) if given.part != "learn" else []:
        speed(speeds, name, given.seconds)
    print(f"\n2x32, held-out return of the mean parameters\n\n{learned_table(learning)}")
    print(f"\nThe first generation, median of three\n\n{speed_table(speeds)}")


if __name__ == "__main__":
    main()
