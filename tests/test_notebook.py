"""The notebook runs as it stands, but with fewer steps, and what is stored in it is of its own cells."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "diffusion_from_scratch.ipynb"
FEWER = {"TOY_STEPS": 20, "DDPM_STEPS": 10, "SAMPLES": 1000}


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """How many pictures each cell shows."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return [sum("image/png" in output.get("data", {}) for output in shown) for shown in outputs]


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_it_runs_from_top_to_bottom(
    stored: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.from_dict(stored)
    assert set(FEWER) <= {node.targets[0].id for node in ast.parse(parameters(stored).source).body}  # type: ignore
    parameters(notebook).source += "".join(f"\n{name} = {value}" for name, value in FEWER.items())
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    before = sorted(NOTEBOOK.parent.iterdir())
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert sorted(NOTEBOOK.parent.iterdir()) == before
    assert pictures(notebook) == pictures(stored)  # those stored are of these cells
    assert sum(pictures(notebook)) >= 8


def test_what_is_stored_is_small_and_tells_nothing_of_its_maker(stored: nbformat.NotebookNode) -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000
    for cell in stored.cells:
        for output in cell.get("outputs", []):
            assert output.output_type in ("stream", "display_data")
            if output.output_type == "stream":
                assert output.name == "stdout", output.text  # no warnings
                assert str(Path.home()) not in output.text
                assert "/tmp" not in output.text
