"""A part of throughput/run.py: its columns, the lines that it shows, and the options that all parts are measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import script
from experiments.lab.store import Row, Store, results
from experiments.throughput.machine_limits import Ceilings, Loads, on_cpu
from experiments.throughput.timing import Call, turns

RESULTS = results("throughput")
Name = Literal["forward", "layer", "generation", "growth"]


@dataclass
class Options:
    part: tuple[Name, ...] = ("forward", "layer", "generation", "growth")
    widths: tuple[int, ...] = ()  # of the hidden layers
    populations: tuple[int, ...] = ()  # members, even numbers
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ()
    ranks: tuple[int, ...] = (1, 4, 16)
    layer_width: int | None = None
    layer_population: int = 1024
    envs: tuple[str, ...] = ()  # of the generations
    generation_population: int | None = None  # of the generations; each environment's own unless given
    horizon: int | None = None  # of the generations, at most; 0 leaves each environment its own
    peers: bool = True  # other libraries too
    base_population: int = 1024  # of what grows
    base_width: int = 64  # of what grows
    rank_width: int = 256  # where the rank grows
    growth_population: tuple[int, ...] = (256, 1024, 4096, 16384, 65536, 262144)
    growth_width: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    growth_rank: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    growth_episodes: tuple[int, ...] = (1, 2, 4, 8, 16)
    chunk: int | None = None  # lanes of a chunk on a device; esrl's own choice unless given
    repeats: int = 5  # windows of each
    seconds: float = 0.5  # of each window, at least
    seconds_limit: float = 20.0  # of each window, at most; else it is left out
    out: Path = RESULTS
    name: str | None = None  # of the result files; the devices' unless given
    table: bool = False  # measure nothing; print what is there

    def fit(self) -> None:
        """Sizes that fit the machine, where none are given."""
        small = on_cpu()
        self.widths = self.widths or ((64, 256, 1024, 2048) if small else (64, 256, 1024, 2048, 4096, 8192))
        self.populations = self.populations or ((256, 2048) if small else (256, 2048, 16384, 65536, 262144))
        self.dtypes = self.dtypes or (("float32",) if small else ("float32", "bfloat16"))
        self.horizon = (100 if small else 0) if self.horizon is None else self.horizon
        self.layer_width = self.layer_width or (2048 if small else 8192)


class Bench(NamedTuple):
    """What a part is measured with: the options, the machine's limits, and the loads that found them."""

    options: Options
    ceilings: Ceilings
    loads: Loads

    def too_much(self, memory: float, seconds: float) -> str:
        """Why something of so many bytes, and a window of so many seconds, is left out; empty if it is not."""
        if memory > self.ceilings.memory:
            return f"would hold {memory / 2**30:.3g} GiB, of {self.ceilings.memory / 2**30:.3g}"
        if seconds > self.options.seconds_limit:
            return f"would take {seconds:.3g} s or more a window"
        return ""

    def turns(self, calls: Mapping[str, Call], once: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Windows of all calls in turn: [windows, 1 + numbers], seconds first."""
        own = self.options
        return turns(calls, once, own.repeats, own.seconds, own.seconds_limit * own.repeats)


class Part(NamedTuple):
    """A part.

    Attributes:
      run: measures it, and gives every row to `add`.
      key, columns: of its CSV: the columns that tell rows apart, and the others.
      names: of the key, as the table shows them: title and column.
      cells: the other titles: column, and its format for `script.shown`.
    """

    run: Callable[[Bench, Callable[[Row], None]], None]
    key: tuple[str, ...]
    columns: tuple[str, ...]
    names: dict[str, str]
    cells: dict[str, tuple[str, str]]

    def head(self) -> str:
        """The first two lines of the Markdown table."""
        return script.table([*self.names, *self.cells, "left out"])

    def line(self, row: Row) -> str:
        """A row's line; dashes where it was left out."""
        why = row.get("left_out") or ""
        cells = ["–" if why else script.shown(row, *cell) for cell in self.cells.values()]
        return script.line([*(row[column] for column in self.names.values()), *cells, why])

    def measure(self, bench: Bench, path: Path, settings: dict[str, Any]) -> None:
        """Measures the part, writes and prints row by row."""
        store, columns = Store(path, self.key), (*self.key, *self.columns, "left_out")
        print(self.head(), flush=True)

        def add(row: Row) -> None:
            store.add([{name: row.get(name) for name in columns}], replace=True, about={"recipe": settings})
            print(self.line(row), flush=True)

        self.run(bench, add)
