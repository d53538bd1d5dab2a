"""An interrupt while the command imports its packages."""

import signal
import subprocess
import sys
import time

import pytest

from esrl.core import interrupts


@pytest.mark.parametrize(
    ("asked", "argv", "command"),
    [
        (["python", "-m", "esrl", "train"], ["-m", "train"], True),
        (["python", "/usr/bin/esrl", "envs"], ["/usr/bin/esrl", "envs"], True),
        (["python", "script.py"], ["script.py"], False),
        (["python", "-m", "pytest", "esrl"], ["pytest", "esrl"], False),
        (["python"], [], False),
    ],
)
def test_what_is_the_command(monkeypatch, asked, argv, command):
    monkeypatch.setattr(sys, "orig_argv", asked)
    monkeypatch.setattr(sys, "argv", argv)
    assert interrupts.is_command() == command


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.end_at_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.end_at_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_an_interrupt_ends_the_command_without_a_word(seconds, tmp_path):
    def heard():  # a background job of a shell ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "esrl", "train", "gymnasium/phys2d/CartPole-v1", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=heard) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err and process.returncode in (-signal.SIGINT, 130)
