"""Notebooks run from top to bottom with small settings, and store the outputs of large ones."""

import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

matplotlib.use("Agg")
FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "toy": {"NUM_STEPS": 250, "NUM_CHAINS": 64},
    "own_array": {"NUM_STEPS": 40, "NUM_SAMPLES": 600},
    "digits": {"NUM_STEPS": 20, "NUM_SAMPLES": 4, "NUM_BLOCKS": 1},
    "comparing": {"NUM_STEPS": 100, "DRAWS": 1},
}
"""Values of the cell tagged `parameters` with which a notebook runs in seconds."""


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def with_settings(text, settings):
    """The source of a parameters cell with other values."""
    for name, value in settings.items():
        text, number = re.subn(rf"^{name} = \S+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert number == 1, name
    return text


def test_all_notebooks_are_tested():
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    for cell in code_cells(path):
        text = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            text = with_settings(text, SMALL[path.stem])
        exec(compile(text, path.name, "exec"), scope)
        plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_stores_its_outputs(path):
    """Executed in order, without an error, with the pictures that it draws."""
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert kinds.count("display_data") >= 1
    text = path.read_text()
    assert "/tmp/" not in text
    assert "/home/" not in text
