"""`esrl.export`: a trained policy as files that act without esrl."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from esrl.core.types import EsrlError, nearest
from esrl.training.export import to_c, to_numpy, to_onnx, to_stablehlo
from esrl.training.export.deployed import Deployed, deployed
from esrl.training.files import replace_bytes, writing
from esrl.training.loading import load
from esrl.training.run_folder import at
from esrl.training.trained import Trained

FORMATS: dict[str, Callable[[Deployed], dict[str, bytes]]] = {
    "numpy": to_numpy.write,
    "onnx": to_onnx.write,
    "c": to_c.write,
    "stablehlo": to_stablehlo.write,
}


def export(
    trained: Trained | str | os.PathLike[str],
    *,
    to: str = "numpy",
    out: str | os.PathLike[str] | None = None,
    generation: int | str | None = None,
    trust: bool = False,
) -> Path:
    """Writes a trained policy as files that act without esrl, by its most likely action.

    Each holds the statistics of observations, the bounds of actions, the carry of a policy with memory, the spaces, and
    a self-test: observations with the actions for them. `esrl/training/export/README.md` says how each is used.

    * "numpy": `policy.py` and `policy.npz`, which need NumPy alone: `Policy().predict(observation)`.
    * "onnx": `policy.onnx`, from observation and carry to action, output of the network, and carry; needs `esrl[onnx]`.
    * "c": `policy.h`, C99 without libraries or allocation, and `self_test.c`, which repeats what esrl did; floats agree
      to 1e-5, integers bit for bit.
    * "stablehlo": `policy.stablehlo`, for any network, which `jax.export.deserialize` reads.

    Args:
      trained: an `esrl.Trained`, or a run's folder.
      to: "numpy", "onnx", "c" or "stablehlo".
      out: the folder to create. None is `policy-FORMAT` in the run's folder.
      generation: of the checkpoint, where a folder is given, as in `esrl.load`.
      trust: run the code that a folder's recipe names, as in `esrl.load`.

    Returns:
      The folder.

    Raises:
      EsrlError: an unknown format, a folder that exists or cannot be written, a package that is missing, a network that
        the format cannot hold (its operation is named), or whatever `esrl.load` raises.

    Example:
      >>> agent = esrl.eggroll("gymnasium/phys2d/CartPole-v1", esrl.mlp((16,)), population=32)
      >>> trained = esrl.Trained(agent, agent.init(jax.random.key(0)))
      >>> folder = esrl.export(trained, to="numpy", out=tmp_path / "policy")
      >>> sorted(path.name for path in folder.iterdir())
      ['policy.npz', 'policy.py']
      >>> folder = esrl.export(trained, to="stablehlo", out=tmp_path / "hlo")
      >>> policy = jax.export.deserialize((folder / "policy.stablehlo").read_bytes())
      >>> action, output, carry = policy.call(jnp.zeros((3, 4)), ())
      >>> action.shape, output.shape
      ((3,), (3, 2))
    """
    if to not in FORMATS:
        raise EsrlError(f"unknown format {to!r}{nearest(to, FORMATS)}")
    if not isinstance(trained, (Trained, str, os.PathLike)):
        raise EsrlError(f"give an esrl.Trained, or a run's folder, not a {type(trained).__name__}")
    if isinstance(trained, Trained) and out is None:
        raise EsrlError("say where to: esrl.export(trained, out=folder)")
    if isinstance(trained, Trained) and generation is not None:
        raise EsrlError("generation is given, but a trained agent has one state; give the run's folder instead")
    folder = at(out) if out is not None else at(trained) / f"policy-{to}"  # type: ignore[arg-type]
    if os.path.lexists(folder):
        raise EsrlError(f"{folder} exists; choose another out, or delete it")
    found = trained if isinstance(trained, Trained) else load(at(trained), generation=generation, trust=trust)
    _write(folder, FORMATS[to](deployed(found, _version())))
    return folder


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Makes a folder with these files, or none."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".policy-", dir=folder.parent))
        try:
            for name, data in files.items():
                replace_bytes(part / name, data)
            part.chmod(0o755)
            os.rename(part, folder)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(part)


def _version() -> str:
    try:
        return version("esrl")
    except PackageNotFoundError:  # used from its sources
        return "unknown"
