"""The tutorial notebook, executed as a reader would, and its figures."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "assets" / "tutorial.ipynb"
FIGURE = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def executed() -> NotebookNode:
    """The notebook after all its cells have run. Raises the first error that a cell does."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # The kernel needs no more than this; a second copy of every figure would be for notebooks on paper.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PLOTLY_RENDERER": "plotly_mimetype"}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    return client.execute(env=environment)


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def figures(notebook: NotebookNode) -> list[dict]:
    return [output.data[FIGURE] for output in outputs(notebook) if FIGURE in output.get("data", {})]


@pytest.mark.slow
def test_every_figure_is_drawn(executed: NotebookNode) -> None:
    titles = [
        (
            figure["layout"].get("xaxis", {}).get("title", {}).get("text"),
            figure["layout"].get("yaxis", {}).get("title", {}).get("text"),
        )
        for figure in figures(executed)
    ]
    against_k = [("K (operations ahead)", y) for y in ("Accuracy (%)", "Divergence (nats)", "Time (s)", "Memory (MB)")]
    assert titles == [
        ("Loss (mean squared error)", None),
        ("Conjugate-gradient iteration", "Residual ÷ gradient"),
        ("Residual ÷ gradient when the solve ended", None),
        *[(None, None)] * 3,  # attention on the image
        ("Attention", None),
        *[("Head", None)] * 2,
        *against_k,
    ]
    assert all(figure["data"] or figure["layout"].get("images") for figure in figures(executed))


@pytest.mark.slow
def test_what_it_says_is_so(executed: NotebookNode) -> None:
    text = printed(executed)
    dense, masked, refitted, refined = (float(line.split("%")[0].split()[-1]) for line in text.splitlines()[:4])
    assert dense > refitted > masked + 10  # the method is worth a notebook
    assert refined > masked + 10
    assert "K = " in text
    dense, cut, fitted, looking_ahead = (float(line.split(":")[1].rstrip("%")) for line in text.splitlines()[-4:])
    assert dense > looking_ahead > fitted > cut + 5  # the next character
    (study,) = [f for f in figures(executed) if f["layout"].get("yaxis", {}).get("title", {}).get("text") == "Accuracy (%)"]
    assert study["layout"]["xaxis"]["ticktext"] == ["0", "1", "3", "6"]


def test_it_is_kept_without_outputs() -> None:
    """They would be megabytes, and change with every execution."""
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
