"""The checkpoints of a run: which are kept, and which one is gone on from."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from esrl.core.sharding import here
from esrl.core.types import EsrlError, notice
from esrl.training import former_checkpoints, state_file
from esrl.training.files import sync, writing
from esrl.training.state_file import SUFFIX, Broken
from esrl.training.stopping import protected

WHOLE = 2  # states kept at least: the last one, and one before it in case that one breaks
_SHARE = 20  # seconds between waits for the disk, in multiples of what the last wait took


class Checkpoints:
    """A folder of states, one file each: `00000012.safetensors` is that after generation 12.

    Attributes:
      folder: where they are.
      keep: "last" keeps the last two, "best" also the one with the highest held-out score, "all" every one.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> result = esrl.train(agent, generations=3, num_evals=0, checkpoint_every=1, out=tmp_path / "run")
      >>> Checkpoints(tmp_path / "run" / "checkpoints").generations()
      [2, 3]
    """

    def __init__(self, folder: Path, keep: str = "last") -> None:
        self.folder, self.keep = folder, keep
        self._scores: dict[int, float | None] = {}  # as far as they are known
        self._synced: int | None = None  # the last one that a loss of power leaves
        self._wait_again = 0.0  # when the disk is waited for again

    def generations(self) -> list[int]:
        """Their generations, ascending; whether each is whole shows when it is read."""
        found = set()
        for path in self.folder.glob("*"):
            name = path.name.removesuffix(SUFFIX)
            if name.isascii() and name.isdecimal() and len(name) <= 18 and name == f"{int(name):08d}":
                found.add(int(name))
        return sorted(found)

    def path(self, generation: int) -> Path:
        """The file of a generation; a folder where an earlier esrl wrote it."""
        former = self.folder / f"{generation:08d}"
        return former if former.exists() or former.is_symlink() else self.folder / f"{generation:08d}{SUFFIX}"

    def save(self, state: Any, score: float | None = None) -> None:
        """Saves a state under its generation, and deletes what is not to be kept.

        A process that is killed leaves every state whole that was saved before. The disk is waited for as often as that
        takes a twentieth of the time, and what it certainly has is kept: that is what a loss of power leaves.

        Args:
          state: of the agent. score: its mean held-out return, where it has one.

        Raises:
          EsrlError: the folder cannot be written.
        """
        state = here(state)  # one process saves, and computes nothing with the others
        generation = int(state.generation)
        if self.path(generation).exists():
            return
        begun = time.monotonic()
        waits = begun >= self._wait_again
        try:
            with protected():
                state_file.write(self.folder / f"{generation:08d}{SUFFIX}", state, score, waits)
        except OSError as error:
            raise EsrlError(f"a checkpoint cannot be written to {self.folder}: {error.strerror or error}") from error
        if waits:
            self._synced, now = generation, time.monotonic()
            self._wait_again = now + _SHARE * (now - begun)
        self._scores[generation] = score
        self._prune()

    def settle(self) -> None:
        """Waits until the disk has the last state, at the end of a run."""
        there = self.generations()
        if there and self._synced != there[-1]:
            with contextlib.suppress(OSError, EsrlError):
                sync(self.path(there[-1]))
                self._synced = there[-1]
                self._prune()

    def rescue(self, state: Any) -> Path | None:
        """Saves a state among the temporary files, where its own folder cannot be written; None if that fails too."""
        with contextlib.suppress(OSError, EsrlError):
            path = Path(tempfile.mkdtemp(prefix="esrl-rescued-")) / f"{int(state.generation):08d}{SUFFIX}"
            state_file.write(path, here(state))
            return path
        return None

    def _prune(self) -> None:
        if self.keep == "all":
            return
        there = self.generations()
        kept = {*there[-WHOLE:], self._synced}
        if self.keep == "best":
            kept.add(self.best())
        for old in set(there) - kept:
            self._delete(old)

    def _delete(self, generation: int) -> None:
        path = self.path(generation)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()

    def best(self) -> int | None:
        """The generation with the highest held-out score, the first of equal ones; None where none was scored."""
        scores = {generation: self._score(generation) for generation in self.generations()}
        known = {generation: score for generation, score in scores.items() if score is not None}
        return max(known, key=lambda generation: known[generation], default=None)

    def _score(self, generation: int) -> float | None:
        if generation not in self._scores:
            self._scores[generation] = None
            with contextlib.suppress(Broken, EsrlError):
                self._scores[generation] = state_file.read_head(self.path(generation)).score
        score = self._scores[generation]
        return score if score is not None and math.isfinite(score) else None

    def check(
        self,
        init: Callable[[Any], Any],
        key: Any,
        generation: int | str | None = None,
        without: tuple[str, ...] = (),
    ) -> None:
        """Compares a checkpoint with the states of an agent before one is made: that of a stranger's may have any size.

        Args:
          init: `agent.init`. key: for it. generation, without: as in `restore`.

        Raises:
          EsrlError: it does not fit.
        """
        shapes = jax.eval_shape(lambda key: state_file.leaves(init(key)), key)
        for number in self._asked(generation):
            with contextlib.suppress(Broken):
                return state_file.check(self.path(number), shapes, without)

    def restore(self, template: Any, generation: int | str | None = None, without: tuple[str, ...] = ()) -> Any:
        """The state of a generation, or the last one that is whole, in the form and on the devices of a template.

        A broken checkpoint gives way to the one before it, with a notice on standard error.

        Args:
          template: a state of the same agent, such as `agent.init` gives.
          generation: which one, or "best"; the last whole one unless given.
          without: fields of a saved state that the template does not have, and that are left unread.

        Raises:
          EsrlError: there is none, none that is whole, or it is of another network, environment or optimizer.
        """
        reasons: dict[int, str] = {}
        for number in self._asked(generation):
            try:
                state = self._read(number, template, without)
            except Broken as error:
                reasons[number] = str(error)
                continue
            for broken, why in reasons.items():
                notice(f"checkpoint {broken} in {self.folder} is broken ({why}); {number} is used")
            return state
        why = "; ".join(f"{number}: {reason}" for number, reason in reasons.items())
        raise EsrlError(
            f"no checkpoint in {self.folder} is whole ({why})"
            if generation is None
            else f"the checkpoint of generation {number} in {self.folder} is broken ({why}); those that are whole:"
            f" {[n for n in self.generations() if n not in reasons and self._is_whole(n, template, without)] or 'none'}"
        )

    def _asked(self, generation: int | str | None) -> list[int]:
        """The generations that are meant, the first one to be tried first.

        Raises:
          EsrlError: there is none.
        """
        found = self.generations()
        if not found:
            raise EsrlError(f"there is no checkpoint in {self.folder}")
        if generation is None:
            return found[::-1]
        number = self.best() if generation == "best" else generation
        if number is None:
            raise EsrlError(f"no checkpoint in {self.folder} has a held-out score; take the last one")
        if number not in found:
            raise EsrlError(f"there is no checkpoint of generation {generation} in {self.folder}; there are {found}")
        return [int(number)]

    def _read(self, generation: int, template: Any, without: tuple[str, ...]) -> Any:
        path = self.path(generation)
        if path.is_symlink():
            raise Broken("it is a link")
        former = path.is_dir()
        state = former_checkpoints.read(path, template) if former else state_file.read(path, template, without)
        if int(state.generation) != generation:
            raise Broken(f"it is of generation {int(state.generation)}")
        return state

    def _is_whole(self, generation: int, template: Any, without: tuple[str, ...]) -> bool:
        try:
            self._read(generation, template, without)
        except Broken:
            return False
        return True

    def set_aside_beyond(self, generation: int) -> None:
        """Renames checkpoints after a generation to `.broken`: a run that goes on from it writes them anew.

        Raises:
          EsrlError: the folder cannot be written.
        """
        with writing(self.folder):
            for number in self.generations():
                if number > generation:
                    path = self.path(number)
                    aside = path.with_name(f"{path.name}.broken")
                    if aside.is_dir() and not aside.is_symlink():
                        shutil.rmtree(aside, ignore_errors=True)
                    os.replace(path, aside)
