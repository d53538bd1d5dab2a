"""The file of a recipe, read within bounds: it may be a stranger's."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from esrl.core.errors import EsrlError
from esrl.training.files import read_bytes

LONGEST = 1 << 16  # bytes of a recipe at most
_DOTS = 200  # dots of a line at most: what Python's reader takes for a dotted key grows with the square of its parts


def read_table(path: Path) -> dict[str, Any]:
    """A recipe as the tables that its file holds.

    Raises:
      EsrlError: there is none, or it is no TOML, too long, or nested too deeply.
    """
    try:
        text = read_bytes(path, LONGEST).decode()
        dotted = any(line.count(".") > _DOTS for line in text.splitlines())
        why = f"a line has over {_DOTS} dots"
        if not dotted:
            return tomllib.loads(text)
    except EsrlError:  # no plain file, or too long
        raise
    except FileNotFoundError as error:
        raise EsrlError(f"there is no recipe {path}") from error
    except OSError as error:
        why = error.strerror or str(error)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # TOML's own errors, other bytes than UTF-8, a number of thousands of digits
        why = str(error)
    raise EsrlError(f"{path} cannot be read as a recipe: {why}")
