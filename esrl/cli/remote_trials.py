"""Trials of a search on the nodes of a Ray cluster, several at once: each is a run of its own, on one core."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrl.cli.trials import Answer, Gone, Player, Step
from esrl.cluster.opening import Cluster
from esrl.cluster.player import agrees, settle
from esrl.cluster.ray_session import Session
from esrl.core.processes import versions
from esrl.core.types import EsrlError, reason_of
from esrl.training.recipe import Recipe

_LOOK = 0.5  # seconds that an answer is waited for, before a signal is looked for
_SAVED = 60.0  # seconds that trials have to save themselves when the search ends
_SILENT = 5.0  # seconds that trials may wait for cores which were taken from the start; then it is said
_STARTING = 60.0  # seconds after which that is said in any case: a process that has its core would have started
_PATIENCE = 20.0  # seconds that the process which had a trial before may take to end: that of a driver that was killed


class _Actor:
    """Plays trials in a process of Ray's, of one core. One call waits at most for a generation: that of `stop`."""

    def __init__(self, flags: str) -> None:
        settle(flags)
        self._stopping = threading.Event()
        self._player: Any = None

    def prepare(self, recipe: Recipe, home: str, study: str, mine: dict[str, str]) -> str:
        """Gets ready; returns a sentence where that is not possible, else ""."""
        theirs = {**versions(), "node": platform.node()}
        if wrong := agrees(mine, theirs):
            return wrong
        for path in (home, study):
            if not Path(path).exists():
                return f"node {theirs['node']} does not see {path}; give an --out in a folder that all nodes mount"
        os.chdir(home)  # a recipe may name files from there
        self._player = Player(recipe, self._stopping.is_set)
        return ""

    def begin(self, params: dict[str, Any], folder: str) -> Step | EsrlError:
        """Begins a trial, or goes on with it, and plays up to its first evaluation."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self._player.begin(params, Path(folder))
                return self.go_on()
            except EsrlError as error:
                if "being trained" not in str(error) or time.monotonic() > end:
                    return error
            time.sleep(0.5)

    def go_on(self) -> Step | EsrlError:
        """Plays up to the next evaluation."""
        try:
            return self._player.advance()
        except EsrlError as error:
            return error

    def stop(self) -> None:
        """The generation under way is the last one; the trial is saved."""
        self._stopping.set()


class Everywhere:
    """Trials on a cluster, one for a core. See `trials.Players`.

    Args:
      recipe: of all trials. folder: of the search, which every node has to see.
      address: as `esrl.iterate` has it. workers: trials at once, one for each core of the cluster where it is None.
      most: trials at once at most. tell: what says a line to who looks on.

    Raises:
      EsrlError: Ray is missing or does not answer.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        address: str,
        workers: int | None,
        most: int,
        *,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = Session(address, workers)
        self._ray = self._session.ray
        self._tell, self._clock = tell, clock
        self._free = self._session.free  # before anything of this search has a core
        self._silent = clock()  # since when nothing was heard, or said
        self._told = False
        self.slots = max(min(workers or self._session.cores, most), 1)
        self._common = recipe, os.getcwd(), str(folder.absolute() / "study.db"), versions()
        self._actors: dict[int, Any] = {}
        self._refs: dict[Any, int] = {}
        self._then: dict[Any, tuple[dict[str, Any], Path]] = {}  # what begins when an actor is ready
        self._unbegun: list[int] = []  # slots whose actor was not ready when they were asked to stop
        self._kind = self._ray.remote(_Actor)

    def begin(self, slot: int, params: dict[str, Any], folder: Path) -> None:
        if slot not in self._actors:
            # A second thread hears `stop` while the first one plays.
            options = {"num_cpus": 1, "max_restarts": 0, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
            self._actors[slot] = self._kind.options(**options).remote(os.environ.get("XLA_FLAGS", ""))
            ready = self._actors[slot].prepare.remote(*self._common)
            self._refs[ready], self._then[ready] = slot, (params, folder)
            return
        self._refs[self._actors[slot].begin.remote(params, str(folder.absolute()))] = slot

    def go_on(self, slot: int) -> None:
        self._refs[self._actors[slot].go_on.remote()] = slot

    def rest(self, slot: int) -> None:
        if (actor := self._actors.pop(slot, None)) is not None:
            with contextlib.suppress(Exception):  # its node may be gone
                self._ray.kill(actor)  # another one may wait for its core

    def wait(self) -> list[tuple[int, Answer]]:
        if self._unbegun:
            unbegun, self._unbegun = self._unbegun, []
            return [(slot, Step([], False, True, 0.0)) for slot in unbegun]
        ready, _ = self._ray.wait(list(self._refs), timeout=_LOOK) if self._refs else ([], [])
        self._say_what_waits()
        found: list[tuple[int, Answer]] = []
        for ref in ready:
            slot = self._refs.pop(ref)
            given = self._then.pop(ref, None)
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayActorError as error:  # also where its node is gone
                self._actors.pop(slot, None)
                found.append((slot, Gone(reason_of(error))))
                continue
            except self._ray.exceptions.RayError as error:
                raise EsrlError(f"a trial cannot be played ({reason_of(error)})") from error
            if given is None:
                found.append((slot, answer))
            elif answer:
                raise EsrlError(answer)
            else:
                self.begin(slot, *given)
        return found

    def _say_what_waits(self) -> None:
        """Says once that trials wait for cores, where that is why they have not begun: Ray itself is silent."""
        if not self._then:
            self._silent, self._told = self._clock(), False
            return
        # A process that was given its core starts for some seconds, in which it waits for nothing.
        taken = len(self._actors) > self._free
        if self._told or self._clock() - self._silent < (_SILENT if taken else _STARTING) or self._session.free:
            return
        self._told = True
        few = "1 trial waits for a core" if len(self._then) == 1 else f"{len(self._then)} trials wait for a core each"
        self._tell(
            f"{few}: the search asks for {len(self._actors)}, and of the cluster's {self._session.cores} none is free;"
            " it goes on by itself as soon as one is"
        )

    def stop(self) -> None:
        for ref in list(self._then):  # these may wait for a core without end
            slot = self._refs.pop(ref)
            del self._then[ref]
            self.rest(slot)
            self._unbegun.append(slot)
        for actor in self._actors.values():
            actor.stop.remote()

    def close(self) -> None:
        self.stop()
        with contextlib.suppress(Exception):  # what has been told is all that can be done
            if self._refs:
                self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=_SAVED)
        self._session.close()


def of_trials(recipe: Recipe) -> Recipe:
    """The recipe of trials that are each played by one process: nothing of who plays is in it.

    Raises:
      EsrlError: it has an option of workers that play one run together.
    """
    fields = Cluster._field_defaults
    for name in ("broadcast", "block_timeout", "close_at"):
        if getattr(recipe, name) != fields[name]:
            raise EsrlError(
                f"{name} is of workers that play one run together, and a trial on {recipe.env} is played by one"
                " process; leave it out"
            )
    return recipe.override({"ray_address": None, "workers": None})
