"""TensorBoard's events of a run: numbers in groups over environment steps, histograms of fitness, the recipe, films."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from esrl.training.logs import Row
from esrl.training.trackers import grouped

_BINS = 32  # of a histogram
_LARGEST = 4 << 20  # bytes of a film that events hold


class Events:
    """One file for each time that a run was gone on with. Needs tensorboardX.

    tensorboardX's own SummaryWriter hands what it is given to a thread by a queue, in which an interrupt can hang; here
    its file is written by whoever has something to write.
    """

    def __init__(self, folder: Path, generation: int, env_steps: int = 0) -> None:
        """Args:
        folder: of the run. generation, env_steps: after which the run goes on; 0 for a new one.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._event = event_pb2.Event
        # The suffix tells two processes of one second apart, whose files would else have one name.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{generation}")
        if generation:  # TensorBoard then leaves out what an earlier process wrote beyond it
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(event_pb2.Event(step=env_steps + 1, file_version="brain.Event:2"))
            self._writer.write_event(event_pb2.Event(step=env_steps + 1, session_log=start))

    def write(self, row: Row, fitness: np.ndarray | None = None) -> None:
        """Adds the numbers of a row in their groups, at its environment steps, and a histogram of the fitness."""
        from tensorboardX.proto.summary_pb2 import Summary

        step = int(row.get("env_steps") or 0)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in grouped(row).items()]
        self._add(Summary(value=values), step)
        if fitness is not None and (sound := fitness[np.isfinite(fitness)]).size:
            from tensorboardX.summary import histogram

            # NumPy's own "auto" asks for as many bins as there is memory where two members are far from the rest.
            edges = np.linspace(sound.min(), sound.max(), _BINS + 1) if np.ptp(sound) else _BINS
            self._add(histogram("population/fitness", sound.astype(np.float64), edges), step)
        self._writer.flush()

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Adds a text in Markdown."""
        from tensorboardX.summary import text as as_text

        self._add(as_text(tag, text), step)
        self._writer.flush()

    def film(self, tag: str, gif: bytes, step: int) -> None:
        """Adds a GIF; one of many megabytes is left out."""
        from tensorboardX.proto.summary_pb2 import Summary

        if len(gif) <= _LARGEST:
            width, height = struct.unpack_from("<HH", gif, 6)
            image = Summary.Image(encoded_image_string=gif, colorspace=3, width=width, height=height)
            self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
            self._writer.flush()

    def close(self) -> None:
        """Closes the file; what a full disk did not take is lost."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _add(self, summary: Any, step: int) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
