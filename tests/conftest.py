"""The strictest settings, for tests only: four fake devices, strict promotion, shapes and types checked at calls.

Tests compile far more than they run, so programs are compiled with as little optimization as XLA has.
"""

import importlib.metadata
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")):  # a flag that XLA does not know ends the process
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from jaxtyping import install_import_hook

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "esrl" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# As in mypy, an int will do for a float.
install_import_hook("esrl", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.fixture(autouse=True)
def own_memory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a machine remembers of its owner (`esrl.training.trust`) is remembered for one test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def lenient() -> Iterator[None]:
    """JAX's ordinary promotion rules, for third-party environments that rely on them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def script(monkeypatch: Any, capsys: Any, lenient: None) -> Callable[..., str]:
    """Runs a module as `python -m` does, but in this process, and returns what it prints to standard output."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return capsys.readouterr().out

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--heavy", action="store_true", help="also run what takes minutes: suites that compile long, clusters"
    )
    parser.addoption("--gpu-anywhere", action="store_true", help="run tests marked gpu on the device that is there")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--heavy"):
        for item in items:
            if "heavy" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --heavy"))
    for_gpu = [item for item in items if "gpu" in item.keywords]
    if for_gpu and not config.getoption("--gpu-anywhere") and jax.default_backend() != "gpu":
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU; --gpu-anywhere runs it on what is there"))
