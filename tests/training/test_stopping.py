"""Signals: heard at once, obeyed after the generation, and never in the middle of a save."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import esrl
from esrl.training.checkpoint import Checkpoints
from esrl.training.stopping import SIGNALS, Stop, Stopped, protected

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def handlers():
    """Python's own, also in a shell's background job, which ignores SIGINT; and as they were afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert all(signal.getsignal(n) is before[n] for n in SIGNALS if n != signal.SIGINT)
    signal.signal(signal.SIGINT, before[signal.SIGINT])


def agent():
    return esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((4,)), population=8)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_generation_ends_and_is_saved(tmp_path, capsys, number):
    def ask(generation, *_):
        if generation == 3:
            signal.raise_signal(number)

    with pytest.raises(Stopped) as caught:
        esrl.train(agent(), generations=50, num_evals=0, out=tmp_path / "run", on_generation=ask)
    assert caught.value.signum == number and isinstance(caught.value, KeyboardInterrupt)
    assert Checkpoints(tmp_path / "run" / "checkpoints").generations()[-1] == 3
    result = esrl.train(agent(), generations=5, num_evals=0, out=tmp_path / "run", resume=True)
    assert int(result.state.generation) == 5


def test_a_run_that_ends_by_itself_is_not_stopped():
    def ask(generation, *_):
        if generation == 2:
            signal.raise_signal(signal.SIGINT)

    assert int(esrl.train(agent(), generations=2, num_evals=0, on_generation=ask).state.generation) == 2


def test_the_second_one_leaves_at_once():
    with pytest.raises(Stopped), Stop(lambda text: None) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")


def test_it_is_said_while_nothing_of_python_runs():
    """As while a program compiles: the line comes from a thread, before the handler of the main thread."""
    said, heard = [], threading.Event()
    with Stop(lambda text: (said.append(text), heard.set())) as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, ())  # any call; the signal itself is sent to the process
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.wait(10) and stop.asked == signal.SIGINT
    assert said == ["stopping after this generation; again to leave now"]


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop(lambda text: None) as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.asked == 0
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_hear_nothing():
    found = []

    def work():
        with Stop(lambda text: None) as stop, protected():
            found.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_a_save_is_not_interrupted():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with protected():
            with protected():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("after")
    assert done == ["inner", "outer"]
    with Stop(lambda text: None) as stop:
        with protected():
            signal.raise_signal(signal.SIGINT)
            assert not stop.asked
        assert stop.asked == signal.SIGINT


HANGS = """
    import signal, time, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from esrl.training import stopping
    stopping.PATIENCE = {patience}
    with stopping.Stop(lambda text: print(text, flush=True)):
        while True:
            try:
                print("hangs", flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                pass
"""


@pytest.mark.parametrize(("times", "patience"), [(2, 0.5), (3, 600)], ids=["the second and patience", "the third"])
def test_what_hangs_is_ended(times, patience):
    program = textwrap.dedent(HANGS.format(patience=patience))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("stopping after this generation")
        for _ in range(times - 1):
            process.send_signal(signal.SIGINT)
            if times > 2:
                process.stdout.readline()
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_an_interrupt_that_a_callback_swallows_is_no_traceback(capsys):
    """Python prints what is raised in a callback of its own, as a garbage collector's, and goes on."""

    class Collected:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with Stop(lambda text: None) as stop:
        signal.raise_signal(signal.SIGINT)
        found = Collected()
        del found
        assert stop.times == 2
    assert "Traceback" not in capsys.readouterr().err
