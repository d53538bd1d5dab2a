"""Environments that raise, exit, hang, or take their process with them: what that costs, and what is said of it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import esrl
from esrl import EsrlError
from esrl.envs import faults
from esrl.training.logs import Metrics


class Flaky(gymnasium.Env):
    """Four steps of reward 1. In one of four worlds, the second step does what `kind` says."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str = "raise", one_in: int = 4) -> None:
        self.kind, self.one_in, self.bad, self.time = kind, one_in, False, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        # Not while it is checked, before the test begins.
        self.bad, self.time = "FLAKY" in os.environ and self.np_random.integers(self.one_in) == 0, 0
        if self.bad and self.kind == "reset":
            raise OSError("the simulator is gone")
        if self.bad and self.kind == "reset-kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.bad and self.time == 2:
            DOES.get(self.kind, lambda: None)()
        observation = np.full(2, np.nan if self.bad and self.kind == "nan" else 0.5, np.float32)
        return observation, 1.0, self.time == 4, False, {}


def _raise(error):
    raise error


DOES = {
    "raise": lambda: _raise(RuntimeError("boom")),
    "exit": lambda: sys.exit(7),
    "interrupt": lambda: _raise(KeyboardInterrupt),
    "sleep": lambda: time.sleep(1e6),
    "loop": lambda: [None for _ in iter(int, 1)],
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
    "leave": lambda: os._exit(3),
}
# As in C code that waits and lets nobody in.
DOES["stubborn"] = lambda: _stubborn()


def _stubborn():
    """Takes whatever is raised for its own business, once."""
    try:
        time.sleep(1e6)
    except BaseException:
        time.sleep(1e6)


DOES["deaf"] = lambda: ctypes.PyDLL(None).sleep(10_000)


@pytest.fixture
def quick(monkeypatch):
    """Looks at hanging calls more often than users need."""
    monkeypatch.setattr(faults, "_LOOK", 0.02)
    monkeypatch.delenv("FLAKY", raising=False)
    gymnasium.register("Flaky-v0", Flaky, max_episode_steps=10)
    yield
    os.environ.pop("FLAKY", None)
    del gymnasium.registry["Flaky-v0"]


def agent_on(env, agent="eggroll"):
    os.environ["FLAKY"] = "1"
    if agent == "ppo":
        return esrl.ppo(env, esrl.mlp((4,)), num_envs=16, num_steps=8, num_minibatches=2, num_epochs=1)
    return esrl.eggroll(env, esrl.mlp((4,)), population=16, episodes_per_member=1)


def trained(env, out=None, agent="eggroll", **given):
    given = {"generations": 3, "num_evals": 1, "eval_episodes": 8, "env_timeout": 0.3, "max_failed": 0.9, **given}
    return esrl.train(agent_on(env, agent), out=out, **given)


SAYS = {
    "raise": "step 2 of an episode raised RuntimeError: boom (",
    "exit": "step 2 of an episode raised SystemExit: 7 (",
    "sleep": "step 2 of an episode took longer than 0.3 s (env_timeout)",
    "loop": "step 2 of an episode took longer than 0.3 s (env_timeout)",
    "reset": "reset raised OSError: the simulator is gone (",
}


@pytest.mark.parametrize(("kind", "agent"), [*((kind, "eggroll") for kind in SAYS), ("raise", "ppo"), ("reset", "ppo")])
def test_a_fault_costs_its_episode(tmp_path, capsys, quick, kind, agent):
    trained(esrl.make(Flaky, kind=kind), tmp_path / "run", agent)
    rows = Metrics(tmp_path / "run" / "metrics.jsonl").rows()
    assert len(rows) == 3 and all(row["env_faults"] > 0 and row["nonfinite"] > 0 for row in rows)
    if agent == "eggroll":  # PPO counts what an episode had before it failed
        assert all(row["return_mean"] == 4.0 for row in rows)
    assert rows[-1]["eval_return_mean"] == 4.0
    said = capsys.readouterr().err
    assert said.count("env_faults") == 1  # the first of them
    assert "Flaky" in said and SAYS[kind] in said and ("test_faults.py, line" in said or "longer" in said)


class Early(gymnasium.Env):
    """Its second step does what `does` does, also while it is tried."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, does: str = "exit") -> None:
        self.does, self.time = does, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.time == 2:
            DOES[self.does]()
        return np.zeros(2, np.float32), 1.0, self.time == 4, False, {}


def test_an_environment_that_exits_while_it_is_tried_is_refused():
    """And does not end the process without a word."""
    with pytest.raises(EsrlError, match="step 2 raised SystemExit"):
        esrl.make(Early, does="exit")


def test_an_environment_that_hangs_while_it_is_tried_is_broken_off():
    with faults.trying_for(0.3), pytest.raises(EsrlError, match=r"step 2 took longer than 0.3 s \(env_timeout\)"):
        esrl.make(Early, does="sleep")


def test_an_interrupt_of_an_environments_own_is_its_fault(tmp_path, capsys, quick):
    trained(esrl.make(Flaky, kind="interrupt"), tmp_path / "run")
    assert "step 2 of an episode raised KeyboardInterrupt (" in capsys.readouterr().err


@pytest.mark.parametrize("heard", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_the_users_where_a_signal_raises_it(heard):
    """A shell has SIGINT ignored in a script's background, and a script may let SIGTERM interrupt."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert not faults.is_users(KeyboardInterrupt())
        signal.signal(heard, signal.default_int_handler)
        assert faults.is_users(KeyboardInterrupt()) and not faults.is_users(SystemExit())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_observations_that_are_not_finite_are_counted(tmp_path, quick):
    trained(esrl.make(Flaky, kind="nan"), tmp_path / "run")
    assert all(row["nonfinite"] > 0 for row in Metrics(tmp_path / "run" / "metrics.jsonl").rows())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("raise", "step 2 of an episode raised RuntimeError: boom ("),
        ("loop", "step 2 of an episode took longer than 0.3 s"),
        ("exit", "step 2 of an episode raised SystemExit: 7"),
        ("kill", "a process that steps its lanes was ended by SIGKILL"),
        ("crash", "a process that steps its lanes was ended by SIGSEGV"),
        ("leave", "a process that steps its lanes ended with exit code 3"),
    ],
)
def test_a_fault_in_a_worker_costs_its_episodes(tmp_path, capfd, quick, kind, says):
    env = esrl.make(f"gymnasium/Flaky-v0?vectorization=workers&workers=4&kind={kind}&one_in=12")
    trained(env, tmp_path / "run", generations=2, num_evals=0, max_failed=1.0)
    rows = Metrics(tmp_path / "run" / "metrics.jsonl").rows()
    assert len(rows) == 2 and 0 < sum(row["env_faults"] for row in rows) < 32
    assert says in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["deaf", "stubborn"])
def test_a_worker_that_cannot_be_broken_off_is_replaced(tmp_path, capfd, quick, monkeypatch, kind):
    monkeypatch.setattr("esrl.envs.suites.gymnasium_workers.GRACE", 0.2)
    env = esrl.make(f"gymnasium/Flaky-v0?vectorization=workers&workers=4&kind={kind}&one_in=12")
    trained(env, tmp_path / "run", generations=1, num_evals=0, max_failed=1.0)
    assert "a process that steps its lanes" in capfd.readouterr().err


def test_a_seed_that_kills_its_worker_costs_its_episodes(tmp_path, capfd, quick):
    env = esrl.make("gymnasium/Flaky-v0?vectorization=workers&workers=4&kind=reset-kill&one_in=12")
    trained(env, tmp_path / "run", generations=1, num_evals=0, max_failed=1.0)
    assert "was ended by SIGKILL" in capfd.readouterr().err
    assert Metrics(tmp_path / "run" / "metrics.jsonl").rows()[0]["env_faults"] > 0


def test_one_fault_of_lanes_that_live_on_is_one_of_all_lanes(tmp_path, quick):
    """Lanes of long episodes begin none in a generation, so one that fails is not all that began."""
    env = esrl.make(Flaky, one_in=40)
    env.faults.add([])
    lanes = env.make_lanes((16,))
    with env.faults.tolerating(1.0, 0.5):
        lanes.begin(np.ones(16, bool), np.arange(16))
        env.faults.taken()
        lanes.step(np.zeros(16, int), np.ones(16, bool))
        env.faults.add([faults.Fault("boom", "")])
        assert env.faults.taken() == 1


@pytest.mark.parametrize("kind", ["raise", "loop", "reset"])
def test_the_first_fault_stops_a_run_that_wants_that(tmp_path, quick, kind):
    with pytest.raises(EsrlError) as caught:
        trained(esrl.make(Flaky, kind=kind), tmp_path / "run", on_env_error="stop")
    assert SAYS[kind] in str(caught.value)


def test_a_run_stops_when_too_many_episodes_fail(tmp_path, quick):
    with pytest.raises(EsrlError, match=r"RuntimeError: boom .* of the \d+ episodes of a generation failed") as caught:
        trained(esrl.make(Flaky, one_in=1), tmp_path / "run", max_failed=0.5)
    assert "a share of more than 0.5 (max_failed)" in str(caught.value)


def test_elsewhere_a_fault_is_an_error(quick):
    agent = agent_on(esrl.make(Flaky, one_in=1))
    with pytest.raises(EsrlError, match="step 2 of an episode raised RuntimeError: boom"):
        esrl.evaluate(agent, agent.init(jax.random.key(0)), 8)


def test_a_new_environment_plays_on_in_the_lane(quick):
    """After its faults the lane is as good as new: the same seeds give what they give without."""
    lanes = esrl.make(Flaky).make_lanes((32,))
    os.environ["FLAKY"] = "1"
    lanes._faults.tolerated = 1.0
    seeds, every = np.arange(32), np.ones(32, bool)
    for _ in range(3):
        lanes.begin(every, seeds)
        rewards = np.array([lanes.step(np.zeros(32, int), every)[1] for _ in range(4)])
        bad = np.isnan(rewards).any(0)
        assert 0 < bad.sum() < 32 and np.all(rewards[:, ~bad] == 1)
        lanes.begin(every, seeds[~bad][np.arange(32) % (~bad).sum()])
        assert np.all([lanes.step(np.zeros(32, int), every)[1] for _ in range(4)] == np.ones((4, 32)))


def test_tracebacks_are_shown_where_they_are_asked_for(capsys, quick, monkeypatch):
    monkeypatch.setitem(faults._SHOWN, "traceback", True)
    trained(esrl.make(Flaky))
    assert "raise error\nRuntimeError: boom" in capsys.readouterr().err


def test_another_thread_is_not_interrupted(quick):
    """Only the main thread can be broken off; the calls of another are not timed, and harm nobody."""
    done = []
    env = esrl.make(Flaky, kind="none")
    thread = threading.Thread(target=lambda: done.append(trained(env, generations=1, num_evals=0, env_timeout=1e-6)))
    thread.start()
    thread.join()
    assert done


HANGS = """
import os, sys, gymnasium, esrl
sys.path.insert(0, "tests/envs")
import test_faults
gymnasium.register("Flaky-v0", test_faults.Flaky, max_episode_steps=10)
lanes = esrl.make("gymnasium/Flaky-v0?vectorization=workers&workers=2&kind=sleep&one_in=1")
import numpy as np
os.environ["FLAKY"] = "1"
lanes = lanes.make_lanes((2,))
lanes.begin(np.ones(2, bool), np.arange(2))
print(*[p.pid for p in lanes._pool._processes], flush=True)
lanes.step(np.zeros(2, int), np.ones(2, bool))
lanes.step(np.zeros(2, int), np.ones(2, bool))
"""


def test_workers_end_with_a_trainer_that_is_killed(quick):
    """Also while their environments hang, when nothing that is closed would wake them."""
    with subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True) as trainer:
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        time.sleep(0.5)
        trainer.kill()
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            break
        time.sleep(0.1)
    assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)
