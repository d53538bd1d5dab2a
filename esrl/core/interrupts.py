"""Ctrl-C while the command line still imports its packages.

Python raises KeyboardInterrupt wherever it happens to be, and packages swallow it there (in a callback, in a class that
is being made), or die of it with pages of traceback. Until a run hears signals itself there is nothing to save, so the
command `esrl` ends as any program of C would: at once and without a word.
"""

from __future__ import annotations

import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path


def is_command() -> bool:
    """Whether this process is the command `esrl`, or `python -m esrl`, and no script that imports esrl."""
    asked = getattr(sys, "orig_argv", [])
    module = ("-m", "esrl") in pairwise(asked)
    return module or Path(sys.argv[0] if sys.argv else "").stem == "esrl"


def end_at_interrupts() -> None:
    """Lets an interrupt end this process at once; one that is to be ignored stays ignored."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if is_command():
    end_at_interrupts()
