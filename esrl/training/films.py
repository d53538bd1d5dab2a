"""Films of the policy while it is trained: a short episode of the unperturbed parameters at each evaluation.

Three are kept: the first, the best (by its held-out return) and the last. `films/films.json` says what each one shows.
Played and drawn in this process, outside of the clock of training. An environment that cannot be drawn says so once.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError, notice, reason_of
from esrl.training.files import read_bytes, replace_bytes

FOLDER, INDEX = "films", "films.json"
STEPS = 400  # of a film at most
NAME = re.compile(r"[0-9]{8,18}\.(html|mp4|gif)", re.ASCII)
_LONGEST = 1 << 16  # bytes of the index at most
_KEYS = ("score", "return", "steps")

Film = dict[str, Any]  # generation, score (None before the first evaluation), return, steps


class Films:
    """The films of one run.

    Attributes:
      folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._given_up = False

    def take(self, agent: Any, state: Any, score: float | None, seed: int, seconds: float) -> bytes:
        """Makes a film of a state, and deletes those that are not kept. Returns it as a small GIF; empty where there is
        none, as of Brax's pages.

        Args:
          agent, state: of the run. score: its mean held-out return, where it has one.
          seed: of the film's world, the same for all of a run.
          seconds: that an environment which Python steps may take.
        """
        if self._given_up:
            return b""
        from esrl.envs.faults import WATCH, Hang  # here: who reads films, as `esrl watch`, needs no JAX

        try:
            WATCH.start(seconds, "a film's environment")
            try:
                return self._take(agent, state, score, seed)
            finally:
                WATCH.stop()
        except (EsrlError, OSError) as error:
            self._give_up(str(error))
        except Hang:
            self._give_up(f"it took longer than {seconds:g} s (env_timeout)")
        except (Exception, SystemExit) as error:  # an environment's own
            self._give_up(reason_of(error))
        return b""

    def _give_up(self, why: str) -> None:
        self._given_up = True
        notice(f"no films are made: {why}")

    def _take(self, agent: Any, state: Any, score: float | None, seed: int) -> bytes:
        from esrl.training.rendering import render, small_gif

        if self.folder.is_symlink():
            raise EsrlError(f"{self.folder} is a link, and none is followed in a run's folder; put a folder there")
        self.folder.mkdir(exist_ok=True)
        generation = int(state.generation)
        films = read_films(self.folder)
        path, episode = render(agent, state, self.folder / f"{generation:08d}", seed, max_steps=STEPS)
        films[path.name] = {
            "generation": generation,
            "score": score,
            "return": episode.total if math.isfinite(episode.total) else None,
            "steps": len(episode.rewards),
        }
        kept = keep(films)
        replace_bytes(self.folder / INDEX, (json.dumps(kept) + "\n").encode())
        for old in self.folder.iterdir():
            if NAME.fullmatch(old.name) and old.name not in kept:
                with contextlib.suppress(OSError):
                    old.unlink()
        return small_gif(episode)


def keep(films: dict[str, Film]) -> dict[str, Film]:
    """The first film, the one with the highest score (the first of equal ones), and the last.

    Example:
      >>> films = {f"{g:08d}.gif": {"generation": g, "score": s} for g, s in ((0, None), (2, 9.0), (4, 1.0), (6, 2.0))}
      >>> list(keep(films))
      ['00000000.gif', '00000002.gif', '00000006.gif']
    """
    order = sorted(films, key=lambda name: films[name]["generation"])
    scored = [name for name in order if films[name]["score"] is not None]
    best = max(scored, key=lambda name: films[name]["score"], default=None)
    return {name: films[name] for name in order if name in (order[0], best, order[-1])}


def read_films(folder: Path) -> dict[str, Film]:
    """What the films in a folder show, by the names of their files, in the order of their generations."""
    try:
        found = json.loads(read_bytes(folder / INDEX, _LONGEST)) if not folder.is_symlink() else {}
    except (OSError, ValueError, RecursionError):  # EsrlError is a ValueError
        return {}
    if not isinstance(found, dict):
        return {}
    films = {}
    for name, film in found.items():
        sound = isinstance(film, dict) and NAME.fullmatch(name) and (folder / name).is_file()
        if sound and type(film.get("generation")) is int and 0 <= film["generation"] < 2**53:
            numbers = {key: _number(film.get(key)) for key in _KEYS}
            films[name] = {"generation": film["generation"], **numbers}
    return dict(sorted(films.items(), key=lambda item: item[1]["generation"]))


def _number(value: Any) -> float | int | None:
    sound = type(value) in (int, float) and abs(value) < 2**53 and math.isfinite(value)
    return value if sound else None
