"""Lanes over a few processes are the lanes of one process, whatever happens to the processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from adapter_laws import Playing, train_two_generations

import esrl
from esrl import EsrlError
from esrl.envs.suites import gymnasium_host
from esrl.envs.suites.gymnasium_lanes import SyncPool
from esrl.envs.suites.gymnasium_workers import WorkersPool

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


class Sleepy(LateFuse):
    """Takes half a minute for step 120."""

    def step(self, action):
        if self._steps == 119:
            time.sleep(30)
        self._steps += 1
        return self.np_random.random(2, np.float32), 1.0, False, False, {}


@pytest.fixture
def registered(request):
    """The id of a class that is registered with Gymnasium for a test."""
    cls, *checked = request.param
    name = f"{cls.__name__}-v0"
    gymnasium.register(name, *checked or [cls], max_episode_steps=200)
    yield f"gymnasium/{name}"
    del gymnasium.registry[name]


def playing(name, *shape, **options):
    """Lanes of one process, and of two."""
    return [Playing(esrl.make(f"{name}?{how}", **options), *shape) for how in ("vectorization=sync", WORKERS)]


def children(pid):
    """The processes that a process has started and that run; instead of one that has started others, these."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        if not any(line.startswith("State:\tZ") for line in lines):
            parents[int(status.parent.name)] = next(int(line[5:]) for line in lines if line.startswith("PPid:"))

    def below(pid):
        own = [child for child, parent in parents.items() if parent == pid]
        return set().union(*(below(child) or {child} for child in own))

    return below(pid)


def running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def assert_same(mine, other):
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["gymnasium/Acrobot-v1", "gymnasium/Pendulum-v1", "gymnasium/Blackjack-v1"])
def test_episodes_are_those_of_one_process(name):
    """Arrays and Tuples; five lanes are no whole number of shares; twins share their world across shares."""
    sync, several = playing(name, 5, 1, 1, max_episode_steps=12)
    space = esrl.make(name).action_space
    for generation in range(2):
        seeds = np.array([1, 2, 3, 4, 1]).reshape(5, 1, 1) + 10 * generation
        assert_same(sync.reset(seeds), several.reset(seeds))
        for _ in range(12):
            actions = np.array([space.sample()] * 5)
            result = several.step(actions)
            assert_same(sync.step(actions), result)
            assert_same(*([x[lane] for x in jax.tree.leaves(result)] for lane in (0, 4)))


def test_lanes_go_on_when_they_are_told_to():
    """Also where no lane of a share begins a new episode, or none of it is stepped."""
    both = [esrl.make(f"gymnasium/Acrobot-v1?{how}").make_lanes((4,)) for how in ("vectorization=sync", WORKERS)]
    for which in ([True] * 4, [True, False, False, False], [False, True, False, True]):
        assert_same(*(lanes.begin(np.array(which), np.arange(4)) for lanes in both))
        for live in (np.ones(4, bool), np.array(which)):
            assert_same(*(lanes.step(np.array([0, 1, 2, 0]), live) for lanes in both))


@pytest.mark.parametrize("registered", [[LateFuse]], indirect=True)
def test_an_error_inside_is_said_as_in_one_process(registered):
    for lanes in playing(registered, 4, 1, 1):
        lanes.reset(np.arange(4).reshape(4, 1, 1))
        with pytest.raises(EsrlError, match=r"LateFuse-v0.*: step 120 of an episode raised RuntimeError: the fuse"):
            for _ in range(200):
                lanes.step(np.zeros(4, np.int32))
        assert lanes.lanes.failed


def test_a_process_that_is_killed_is_said():
    env, others = esrl.make(f"gymnasium/Acrobot-v1?{WORKERS}"), children(os.getpid())
    lanes = Playing(env, 2, 1, 1)
    lanes.reset(np.zeros((2, 1, 1)))
    os.kill(max(children(os.getpid()) - others), signal.SIGKILL)
    with pytest.raises(EsrlError, match=r"a process that steps its lanes was ended by SIGKILL"):
        for _ in range(3):
            lanes.step(np.zeros(2, int))
    assert lanes.lanes.failed and Playing(env, 2, 1, 1).lanes is not lanes.lanes


@pytest.fixture
def interruptible():
    """Python interrupts, also in a shell's background job, which would ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("registered", [[Sleepy]], indirect=True)
@pytest.mark.usefixtures("interruptible")
def test_after_an_interrupted_step_lanes_are_made_anew(registered):
    env, others = esrl.make(f"{registered}?{WORKERS}"), children(os.getpid())
    lanes = Playing(env, 2, 1, 1)
    seeds = np.arange(2).reshape(2, 1, 1)
    first = lanes.reset(seeds)
    processes = children(os.getpid()) - others
    assert all(os.getsid(pid) != os.getsid(0) for pid in processes)  # a terminal's Ctrl-C does not reach them
    for _ in range(119):
        lanes.step(np.zeros(2, int))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        lanes.step(np.zeros(2, int))
    again = Playing(env, 2, 1, 1)
    assert lanes.lanes.failed and again.lanes is not lanes.lanes
    assert not any(map(running, processes))
    np.testing.assert_array_equal(again.reset(seeds), first)


def test_processes_end_with_the_one_that_made_them(tmp_path):
    """Also when it has no time to end them; and a script needs no guard of its main part."""
    script = tmp_path / "script.py"
    script.write_text(
        "import esrl\n"
        f"lanes = esrl.make('gymnasium/Acrobot-v1?{WORKERS}').make_lanes((2,))\n"
        "print('made', flush=True)\n"
        "input()\n"
    )
    pipe, folder = subprocess.PIPE, Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe, text=True, cwd=folder) as run:
        assert run.stdout.readline() == "made\n"
        pids = children(run.pid)
        run.kill()
    assert len(pids) == 2
    end = time.monotonic() + 20
    while any(running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


HELD = threading.Lock()  # cannot be sent


@pytest.mark.parametrize("registered", [[Sleepy, lambda: (HELD, Sleepy())[1]]], indirect=True)
def test_many_lanes_go_to_processes_by_themselves(monkeypatch, registered):
    """Where there are cores for them; and what cannot be made in other processes is made in this one."""
    many, others = gymnasium_host.MANY, children(os.getpid())

    def processes(name, lanes, cores):
        monkeypatch.setattr(gymnasium_host, "cores", lambda: cores)
        made = esrl.make(name).make_lanes((lanes,))
        started = children(os.getpid()) - others
        made.close()
        return len(started)

    assert processes("gymnasium/Acrobot-v1", many - 1, 2) == 0
    assert processes("gymnasium/Acrobot-v1", many, 2) == 2
    assert processes("gymnasium/Acrobot-v1", many, 1) == 0
    assert processes(registered, many, 2) == 0
    with pytest.raises(EsrlError, match=r"Sleepy-v0.* cannot be sent to other processes; use vectorization=sync"):
        processes(f"{registered}?{WORKERS}", 2, 2)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("vectorization=workers&workers=0", "workers is 0, but must be a whole number of at least 1"),
        ("vectorization=sync&workers=2", "workers is 2, but must be a whole number of at least 1"),
        ("vectorization=threads", "must be one of auto, sync, async, vector, workers"),
    ],
)
def test_what_does_not_fit_is_said(query, words):
    with pytest.raises(EsrlError, match=words) as caught:
        esrl.make(f"gymnasium/Acrobot-v1?{query}")
    assert "\n" not in str(caught.value)


def test_names_make_the_same_again():
    name = f"gymnasium/Acrobot-v1?max_episode_steps=9&{WORKERS}"
    assert esrl.make(name).name == name


@pytest.mark.parametrize("agent", ["eggroll", "ppo"])
def test_agents_train(agent):
    train_two_generations(f"gymnasium/Pendulum-v1?max_episode_steps=10&{WORKERS}", agent)


class Dear(gymnasium.Env):
    """Ten steps, each of which waits, or works, for two milliseconds."""

    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, waits=True, seconds=0.002):
        self.waits, self.seconds = waits, seconds

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.random(3, np.float32), {}

    def step(self, action):
        self.time += 1
        end = time.thread_time() + self.seconds
        if self.waits:
            time.sleep(self.seconds)
        else:
            while time.thread_time() < end:
                pass
        return self.np_random.random(3, np.float32), float(action), self.time == 10, False, {}


class Drawing(Dear):
    """Begins with a number of NumPy's global generator."""

    def reset(self, *, seed=None, options=None):
        return np.full(3, np.random.random(), np.float32), {}


def processes_of(env, lanes):
    made = env.make_lanes((lanes,))
    try:
        return len(getattr(made._pool, "_processes", [None]))
    finally:
        made.close()


def test_dear_steps_are_taken_by_processes(monkeypatch, capsys):
    """One for each core where they work, more where they wait; cheap ones stay where they are, as do one lane's."""
    monkeypatch.setattr("esrl.envs.suites.gymnasium_host.WAITING", 3)
    monkeypatch.setattr("esrl.envs.suites.gymnasium_host.cores", lambda: 2)
    env = esrl.make(Dear)
    assert processes_of(env, 4) == 3
    assert re.fullmatch(r"4 lanes in 3 processes, \d+\.\d ms a step", env.how(4))
    assert processes_of(esrl.make(Dear, waits=False), 4) == 2
    assert processes_of(esrl.make(Dear, seconds=0.0), 4) == 1
    assert processes_of(esrl.make(Dear), 1) == 1
    assert processes_of(esrl.make(Dear, vectorization="sync"), 4) == 1
    assert processes_of(esrl.make(Dear, workers=2), 4) == 2
    assert processes_of(esrl.make(Dear, vectorization="async"), 4) == 4


def test_the_header_of_a_run_says_how_its_lanes_are_stepped(capsys):
    def header(env, **options):
        esrl.train(
            esrl.eggroll(env, esrl.mlp((4,)), population=4, **options), generations=1, num_evals=0, progress=True
        )
        return capsys.readouterr().out.splitlines()[0]

    assert re.search(r": 8 episodes a generation \(8 lanes in 2 processes\), ", header(esrl.make(Dear, workers=2)))
    few = esrl.make(Dear, seconds=0.0, instances=3)
    assert re.search(r" \(8 lanes in one process, 3 at a time, 0\.\d+ ms a step\), ", header(few))
    assert esrl.make("gymnasium/CartPole-v1").how(8) == ""  # its own vector of lanes
    assert "lanes" not in header("gymnasium/phys2d/CartPole-v1")


def test_processes_draw_numbers_of_their_own():
    """Where an environment takes them from NumPy's global generator, which a fork copies."""
    pool = WorkersPool("drawing", partial(SyncPool, "drawing", Drawing), 4, 4)
    assert len(np.unique(pool.begin(np.arange(4), np.zeros(4, np.uint32)))) == 4
    pool.close()


def test_where_nothing_may_fork_each_process_imports_for_itself(monkeypatch):
    monkeypatch.setattr("esrl.envs.processes.FORKED", False)
    both = [esrl.make(Dear, seconds=0.0, **how).make_lanes((2,)) for how in ({"vectorization": "sync"}, {"workers": 2})]
    assert_same(*(lanes.begin(np.ones(2, bool), np.arange(2)) for lanes in both))
    assert_same(*(lanes.step(np.array([0, 1]), np.ones(2, bool)) for lanes in both))
    processes = [process.pid for process in both[1]._pool._processes]
    for lanes in both:
        lanes.close()
    assert len(processes) == 2 and not any(map(running, processes))


def test_processes_are_started_again_by_another_nursery():
    """One that forks them is ended: they end as well, and others take their place."""
    env, others = esrl.make(f"gymnasium/Acrobot-v1?{WORKERS}"), children(os.getpid())
    lanes = env.make_lanes((2,))
    started = children(os.getpid()) - others
    os.kill(lanes._pool._nursery._process.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while any(map(running, started)):
        assert time.monotonic() < end
        time.sleep(0.05)
    with env.faults.tolerating(10.0, 1.0):
        lanes.begin(np.ones(2, bool), np.arange(2))
        _, rewards, terminated, _ = lanes.step(np.zeros(2, int), np.ones(2, bool))
    assert np.isfinite(rewards).all() and not terminated.any() and env.faults.count == 2
    lanes.close()


def test_a_class_in_processes_plays_the_same_episodes():
    both = [esrl.make(Dear, seconds=0.0, **how).make_lanes((5,)) for how in ({"vectorization": "sync"}, {"workers": 2})]
    assert_same(*(lanes.begin(np.ones(5, bool), np.arange(5)) for lanes in both))
    for _ in range(10):
        assert_same(*(lanes.step(np.array([0, 1, 1, 0, 1]), np.ones(5, bool)) for lanes in both))
    for lanes in both:
        lanes.close()


@pytest.mark.parametrize("how", [{"vectorization": "vector"}, {"workers": 0}, {"workers": 2, "vectorization": "sync"}])
def test_a_way_that_a_class_has_not_is_refused(how):
    with pytest.raises(EsrlError, match="vectorization"):
        esrl.make(Dear, **how)


def test_a_limit_of_its_own_below_the_given_one_is_said(capsys):
    def limited():
        return gymnasium.wrappers.TimeLimit(Dear(seconds=0.0), 7)

    assert esrl.make(limited, max_episode_steps=9).max_episode_steps == 9
    assert "it ends its episodes after 7 steps by itself, before max_episode_steps=9" in capsys.readouterr().err
    esrl.make(limited, max_episode_steps=5)
    assert "by itself" not in capsys.readouterr().err
