"""Numbers and words as the tables and the headers of recipes show them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np


def count(x: float) -> str:
    """A number of steps: "2.06M"; a dash when there is none."""
    if not np.isfinite(x):
        return "–"
    return f"{x / 1e6:.3g}M" if x >= 1e5 else f"{x / 1e3:.3g}k" if x >= 1e3 else f"{x:.0f}"


def seconds(x: float) -> str:
    """Seconds, whole from 10 on; a dash when there are none."""
    return f"{x:.0f}" if 10 <= x < np.inf else f"{x:.1f}" if x < 10 else "–"


def number(x: float) -> str:
    """A return: one decimal below 1000."""
    return f"{x:.1f}" if abs(x) < 1000 else f"{x:.0f}"


def bounded(value: float, interval: Sequence[float]) -> str:
    """A return with its interval, if it has one: "9342 [9340, 9343]"."""
    low, high = interval
    return number(value) + (f" [{number(low)}, {number(high)}]" if np.isfinite(low) else "")


def measured_words(
    measured: list[dict[str, Any]], seeds: Sequence[int], value: float, interval: Any, low: float
) -> str:
    """How a recipe's header begins: date, commits, seeds, and the return that was reached."""
    text = f"{measured[-1]['date']}, commit {', '.join(dict.fromkeys(entry['commit'] for entry in measured))}, "
    text += f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    text += f": held-out return {number(value)} (interquartile mean),"
    if np.isfinite(interval[0]):
        text += f" 95 % bootstrap interval [{number(interval[0])},\xa0{number(interval[1])}],"
    return text + f" lowest seed {number(low)}"


def machine_words(measured: list[dict[str, Any]]) -> str:
    """The machine of the last measurement: "1 core (AMD EPYC, 1 x cpu)"."""
    machine = measured[-1]["machine"]
    device = machine["device"].replace(" x ", "\xa0x\xa0")
    return f"{machine['cores']} core{'s' * (machine['cores'] > 1)} ({machine['processor']}, {device})"


def comment(text: str) -> str:
    """A text as a TOML file's comment; what a no-break space joins is in one line."""
    filled = textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return filled.replace("\xa0", " ") + "\n"
