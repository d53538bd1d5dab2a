"""Packages that only some of esrl needs: imported where they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from esrl.core.errors import EsrlError


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """A module of a package that an extra of esrl installs.

    Args:
      module: what to import. extra: of esrl, "cli". purpose: what it is needed for, as the sentence's subject.

    Raises:
      EsrlError: it is not installed; the command that installs it is named.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise EsrlError(
            f"{purpose} needs the package {package}; install it with: pip install 'esrl[{extra}]'"
        ) from error
