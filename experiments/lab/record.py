"""What moved to lab/store.py, by its former names; and the JSON beside a CSV for scripts that write both themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.lab.store import (
    ROOT,
    Row,
    folder_name,
    machine,
    note,
    origin,
    plain,
    read_rows,
    result_names,
    results,
    versions,
    write_rows,
    written,
)

__all__ = ["ROOT", "About", "Row", "folder_name", "machine", "plain", "read_rows", "result_names", "results"]
__all__ += ["versions", "write_rows"]


class About:
    """The JSON beside a CSV, as lab/store.py describes it."""

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        self.path = path
        empty: dict[str, Any] = {"recipe": recipe, "measured": [], "failed": {}}
        self.values = json.loads(path.read_text()) if path.exists() else empty

    def ran(self, runs: Iterable[int | str]) -> None:
        """Notes that this process measured these runs."""
        note(self.values, {**origin(), "runs": list(runs)}, again=True)
        self._write()

    def failed(self, run: int | str, error: str) -> None:
        """Notes that a run broke off."""
        self.values["failed"][str(run)] = error
        self._write()

    def _write(self) -> None:
        written(self.path, json.dumps(self.values, indent=1) + "\n")
