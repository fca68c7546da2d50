"""The notebooks run as they stand, but with fewer steps, and what is stored in them is of their own cells."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FEWER = {
    "diffusion_from_scratch": {"TOY_STEPS": 20, "DDPM_STEPS": 10, "SAMPLES": 1000},
    "lora": {"STEPS": 2, "RANK": 2},
    "pixel_vs_latent": {
        "FOLDER": "__import__('tempfile').mkdtemp()",
        "CHANGES": [
            *["data.limit=240", "held_out=40", "timing=null", "train.steps=2", "train.batch_size=8", "draw.steps=1"],
            *[
                "quality.points=2",
                "quality.seeds=[0]",
                "quality.count=10",
                "quality.judge={epochs: 10, batch_size: 100}",
            ],
            *["vae.train.steps=1", "vae.train.batch_size=8", "vae.scale_from=16"],
        ],
    },
}


@pytest.fixture(scope="module", params=FEWER)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(FEWER)


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """How many pictures each cell shows."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return [sum("image/png" in output.get("data", {}) for output in shown) for shown in outputs]


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


# a minute, most of it in what test_compare.py and the README's commands run too
SLOW = pytest.param("pixel_vs_latent", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [SLOW if name in SLOW.values else name for name in FEWER], indirect=True)
def test_it_runs_from_top_to_bottom(
    name: str, stored: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.from_dict(stored)
    fewer = FEWER[name]
    assert set(fewer) <= {node.targets[0].id for node in ast.parse(parameters(stored).source).body}  # type: ignore
    parameters(notebook).source += "".join(f"\n{name} = {value}" for name, value in fewer.items())
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    before = sorted(NOTEBOOKS.iterdir())
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    assert sorted(NOTEBOOKS.iterdir()) == before
    assert pictures(notebook) == pictures(stored)  # those stored are of these cells
    assert sum(pictures(notebook)) >= 6


def test_what_is_stored_is_small_and_tells_nothing_of_its_maker(name: str, stored: nbformat.NotebookNode) -> None:
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 1_000_000
    for cell in stored.cells:
        for output in cell.get("outputs", []):
            assert output.output_type in ("stream", "display_data")
            if output.output_type == "stream":
                assert output.name == "stdout", output.text  # no warnings
                assert str(Path.home()) not in output.text
                assert "/tmp" not in output.text
