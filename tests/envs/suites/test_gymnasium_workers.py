"""Lanes over a few processes are the lanes of one process, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from adapter_laws import train_two_generations

import esrl
from esrl import EsrlError
from esrl.envs.suites import gymnasium_host

WORKERS = "vectorization=workers&workers=2"


class LateFuse(gymnasium.Env):
    """Raises in step 120."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        if self._steps == 120:
            raise RuntimeError("the fuse blew")
        return self.np_random.random(2, np.float32), 1.0, False, False, {}


def lanes_of(name, *shape, horizon=None):
    return [esrl.make(f"{name}?{how}", horizon=horizon).make_vec(*shape) for how in ("vectorization=sync", WORKERS)]


def assert_same(mine, other):
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["gymnasium/Acrobot-v1", "gymnasium/Pendulum-v1", "gymnasium/Blackjack-v1"])
def test_episodes_are_those_of_one_process(name):
    """Arrays and Tuples; five lanes are no whole number of shares; twins share their world across shares."""
    sync, several = lanes_of(name, 5, 1, 1, horizon=12)
    space = esrl.make(name).action_space
    for generation in range(2):
        seeds = np.array([1, 2, 3, 4, 1]).reshape(5, 1, 1) + 10 * generation
        seen = several.reset(seeds)
        assert_same(sync.reset(seeds), seen)
        for _ in range(12):
            actions = np.array([space.sample()] * 5)
            result = several.step(actions)
            assert_same(sync.step(actions), result)
            assert_same(*([x[lane] for x in jax.tree.leaves(result)] for lane in (0, 4)))


def test_lanes_go_on_when_they_are_told_to():
    """Also where no lane of a share begins anew."""
    streams = [esrl.make(f"gymnasium/Acrobot-v1?{how}").make_stream(4) for how in ("vectorization=sync", WORKERS)]
    for which in ([True] * 4, [True, False, False, False], [False, True, False, True]):
        begun = [stream.begin(np.array(which), np.arange(4)) for stream in streams]
        assert_same(*begun)
        for _ in range(3):
            assert_same(*(stream.step(np.array([0, 1, 2, 0])) for stream in streams))


def test_an_error_inside_is_said_as_in_one_process():
    gymnasium.register("LateFuse-v0", LateFuse, max_episode_steps=200)
    try:
        for lanes in lanes_of("gymnasium/LateFuse-v0", 4, 1, 1):
            lanes.reset(np.arange(4).reshape(4, 1, 1))
            with pytest.raises(EsrlError, match=r"LateFuse-v0.*: step 120 of an episode raised RuntimeError: the fuse"):
                for _ in range(200):
                    lanes.step(np.zeros(4, np.int32))
            assert lanes.failed
    finally:
        del gymnasium.registry["LateFuse-v0"]


def test_a_process_that_is_killed_is_said():
    env = esrl.make(f"gymnasium/Acrobot-v1?{WORKERS}")
    lanes = env.make_vec(2, 1, 1)
    lanes.reset(np.zeros((2, 1, 1)))
    os.kill(lanes._envs[0]._processes[1].pid, signal.SIGKILL)
    with pytest.raises(EsrlError, match=r"a process that steps its lanes ended with exit code -9"):
        for _ in range(3):
            lanes.step(np.zeros(2, int))
    assert lanes.failed and env.make_vec(2, 1, 1) is not lanes


def test_after_an_interrupted_step_lanes_are_made_anew():
    env = esrl.make(f"gymnasium/Acrobot-v1?{WORKERS}")
    lanes = env.make_vec(2, 1, 1)
    seeds = np.arange(2).reshape(2, 1, 1)
    first = lanes.reset(seeds)
    workers = lanes._envs[0]
    pipe = workers._pipes[0]

    class Interrupted:
        send = pipe.send

        def recv(self):
            raise KeyboardInterrupt

    workers._pipes[0] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        lanes.step(np.ones(2, int))
    workers._pipes[0] = pipe
    assert all(os.getsid(process.pid) != os.getsid(0) for process in workers._processes)  # no Ctrl-C of this terminal
    assert lanes.failed and env.make_vec(2, 1, 1) is not lanes
    np.testing.assert_array_equal(env.make_vec(2, 1, 1).reset(seeds), first)


def test_processes_end_with_the_one_that_made_them(tmp_path):
    """Also when it has no time to end them; and a script needs no guard of its main part."""
    script = tmp_path / "script.py"
    script.write_text(
        "import esrl, os, signal\n"
        f"lanes = esrl.make('gymnasium/Acrobot-v1?{WORKERS}').make_vec(2, 1, 1)\n"
        "print(*(process.pid for process in lanes._envs[0]._processes), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    pids = [int(pid) for pid in run.stdout.split()]
    assert run.returncode == -signal.SIGKILL and len(pids) == 2
    end = time.monotonic() + 20
    while any(running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_many_lanes_go_to_processes_by_themselves(monkeypatch):
    """Where there are cores for them; and what cannot be made in other processes is made in this one."""
    many = gymnasium_host.MANY
    monkeypatch.setattr(gymnasium_host, "cores", lambda: 2)
    env = esrl.make("gymnasium/Acrobot-v1")
    kinds = [type(env.make_vec(lanes, 1, 1)._envs[0]).__name__ for lanes in (many - 1, many)]
    assert kinds == ["SyncVectorEnv", "WorkersVectorEnv"]
    monkeypatch.setattr(gymnasium_host, "cores", lambda: 1)
    assert type(env.make_stream(many)._env).__name__ == "SyncVectorEnv"
    monkeypatch.setattr(gymnasium_host, "cores", lambda: 2)
    held = threading.Lock()  # cannot be sent
    gymnasium.register("Held-v0", lambda: (held, LateFuse())[1], max_episode_steps=5)
    try:
        assert type(esrl.make("gymnasium/Held-v0").make_stream(many)._env).__name__ == "SyncVectorEnv"
        with pytest.raises(EsrlError, match=r"Held-v0.* cannot be sent to other processes; use vectorization=sync"):
            esrl.make(f"gymnasium/Held-v0?{WORKERS}").make_stream(2)
    finally:
        del gymnasium.registry["Held-v0"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("vectorization=workers&workers=0", "workers is 0, but must be a whole number of at least 1"),
        ("workers=2", "workers is 2, but must be a whole number of at least 1, with vectorization=workers"),
        ("vectorization=threads", "must be one of auto, sync, async, vector, workers"),
    ],
)
def test_what_does_not_fit_is_said(query, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(f"gymnasium/Acrobot-v1?{query}")
    assert "\n" not in str(caught.value)


def test_names_make_the_same_again():
    name = f"gymnasium/Acrobot-v1?horizon=9&{WORKERS}"
    assert esrl.make(name).name == name


@pytest.mark.parametrize("agent", ["eggroll", "ppo"])
def test_agents_train(agent):
    train_two_generations(f"gymnasium/Pendulum-v1?horizon=10&{WORKERS}", agent)
