"""A film of an episode that a notebook shows in place, without a network or a file beside it."""

from __future__ import annotations

import base64
import html
import tempfile
from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError
from esrl.envs.base import name_of
from esrl.training.files import replace_bytes, writing
from esrl.training.rendering import render

_HEIGHT = 420  # pixels of a page
_LARGEST = 64 << 20  # bytes that are put into a notebook
_TYPES = {"gif": "image/gif", "mp4": "video/mp4"}


class Film:
    """A film of one episode. A notebook plays it; `save` writes it.

    Attributes:
      form: "html", "mp4" or "gif". data: the file's bytes.
      total: return of the episode. steps: how many are shown. title: the agent and its environment.
    """

    def __init__(self, form: str, data: bytes, total: float, steps: int, title: str) -> None:
        self.form, self.data, self.total, self.steps, self.title = form, data, total, steps, title

    def __repr__(self) -> str:
        size = f"{len(self.data) / 1e3:,.0f} kB of {self.form}"
        return f"Film({self.title}: return {self.total:.1f} in {self.steps} steps, {size})"

    def _repr_html_(self) -> str:
        if len(self.data) > _LARGEST:
            return f"<p>{html.escape(repr(self))}, which is too large to be shown here; save it</p>"
        if self.form == "html":
            # In a sandbox: the page is the trainer's own, and still needs nothing of the notebook.
            text = html.escape(self.data.decode(), quote=True)
            shown = (
                f'<iframe sandbox="allow-scripts" style="width:100%;height:{_HEIGHT}px;border:0" srcdoc="{text}">'
                "</iframe>"
            )
        else:
            address = f"data:{_TYPES[self.form]};base64,{base64.b64encode(self.data).decode()}"
            film = {"gif": f'<img alt="an episode" src="{address}">'}
            shown = film.get(self.form, f'<video controls autoplay muted loop src="{address}"></video>')
        return f"{shown}<p>{html.escape(repr(self))}</p>"

    def save(self, path: str | Path) -> Path:
        """Writes the film to a file.

        Raises:
          EsrlError: the name has another ending than the film's form, or the file cannot be written.
        """
        path = Path(path).expanduser()
        if path.suffix != f".{self.form}":
            raise EsrlError(
                f"{path} is to hold a film of the form {self.form}; name it {path.with_suffix('')}.{self.form}"
            )
        with writing(path):
            replace_bytes(path, self.data)
        return path


def film(agent: Any, state: Any, seed: int = 0, form: str = "auto", max_steps: int | None = None) -> Film:
    """An episode as a film; arguments and errors as `esrl.render` has them."""
    title = f"{agent.name} on {name_of(agent.env)}"
    with tempfile.TemporaryDirectory() as folder:
        path, episode = render(agent, state, Path(folder) / "episode", seed, form, max_steps)
        return Film(path.suffix[1:], path.read_bytes(), episode.total, len(episode.rewards), title)
