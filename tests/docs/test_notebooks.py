"""The notebooks run from their first cell to their last, show what they promise, and lie here without outputs."""

import os

import nbformat
import pytest

from .pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
EACH = [pytest.param(path, id=path.stem) for path in NOTEBOOKS]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", EACH)
def test_a_notebook_lies_here_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_every_notebook_has_a_link():
    assert len(NOTEBOOKS) == 3
    index = (ROOT / "docs" / "notebooks" / "index.md").read_text()
    assert all(f"({path.name})" in index for path in NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", EACH)
def test_a_notebook_runs_and_shows_what_it_promises(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), before))))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it jupyter_core warns
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    curves = [output for output in shown if "data:image/png" in output.get("data", {}).get("text/html", "")]
    assert curves
    for cell in code(notebook):  # progress is one output, however many evaluations there are
        assert len(cell.outputs) <= 6
    films = "".join(output.get("data", {}).get("text/html", "") for output in shown)
    assert path.stem == "comparing" or "data:video/mp4;base64," in films or "data:image/gif;base64," in films
