"""Objects by text: `path/to/file.py:Name`, and `module:Name` of a package or of a file in the current folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from esrl.core.errors import EsrlError, nearest

_FILE = "esrl_file_"  # modules of files are called so, then by their stem and their place
_neighbors: dict[str, Path] = {}  # modules that files imported from their own folders, which these are


def is_file(name: str) -> bool:
    """Whether a text is `path/to/file.py:Name`."""
    return name.rpartition(":")[0].endswith(".py")


def is_module(name: str) -> bool:
    """Whether a text is `module:Name`, with dots in the module's name or without."""
    module, colon, attribute = name.partition(":")
    return bool(colon and attribute) and all(part.isidentifier() for part in module.split(".")) and not is_file(name)


def load_attribute(reference: str) -> Any:
    """`path/to/file.py:Name` or `module:Name` -> the object of that name, which may have dots.

    Raises:
      EsrlError: the file or module is missing, cannot be imported, or has no such name.
    """
    path, _, attribute = reference.rpartition(":")
    module = _load(Path(path).expanduser()) if is_file(reference) else import_module(path)
    if (found := attribute_of(module, attribute)) is None:
        own = [n for n, o in vars(module).items() if callable(o) and getattr(o, "__module__", "") == module.__name__]
        raise EsrlError(f"{path} has no {attribute!r}{nearest(attribute, own)}")
    return found


def attribute_of(module: ModuleType | None, attribute: str) -> Any:
    """An attribute of a module, or of a class in it (`Outer.Inner`); None where there is none."""
    return reduce(lambda found, part: getattr(found, part, None), attribute.split("."), module)


def reference_to(found: Any) -> str | None:
    """`module:Name` of a class or function, or None where that text does not lead back to it."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    return referable(module, name) if attribute_of(sys.modules.get(module), name) is found else None


def referable(module: str, name: str) -> str | None:
    """`module:name`, or None for the module of a file, which no other process finds by that name."""
    return None if module.startswith(_FILE) else f"{module}:{name}"


def import_module(name: str) -> ModuleType:
    """A module by its name; one in the current folder is found as well, as `python -m` finds it.

    Raises:
      EsrlError: there is none of that name, or it cannot be imported.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise EsrlError(f"there is no module {name!r}: the parts of its name would be letters, digits and _")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # the script `esrl` begins with its own folder instead
        sys.path.append(here)
    importlib.invalidate_caches()  # the file may be younger than what was last looked at
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise EsrlError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
        advice = f"pip install the package that has it (often: pip install {top}), or go to the folder of {top}.py"
        raise EsrlError(f"there is no module {name!r}; {advice}") from error
    except Exception as error:
        raise EsrlError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise EsrlError(f"there is no file {path}")
    path = path.resolve()
    # Files of one stem in two folders are two modules.
    name = f"{_FILE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EsrlError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        with _beside(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = "; a file by itself is in no package: import without the leading dot, or name it package.module:Name"
        raise EsrlError(f"{path} cannot be imported: {type(error).__name__}: {error}{hint}") from error
    cloudpickle.register_pickle_by_value(module)  # other processes cannot import it by this name
    return module


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """While a file of the folder is imported: modules beside it are found first, as `python file.py` finds them.

    Afterwards the folder stays on the path, behind all others: imports inside of methods and in other processes come
    later.
    """
    for name, other in list(_neighbors.items()):
        # A module of the same name beside another file is not the one that is meant.
        if other != folder and ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
            for loaded in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
                del sys.modules[loaded]
            del _neighbors[name]
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if "." not in name and file and Path(file).resolve().parent in (folder, folder / name):
                _neighbors[name] = folder
