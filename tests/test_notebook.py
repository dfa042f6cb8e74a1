"""The nnsight notebook runs from top to bottom."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("nnsight")


@pytest.mark.filterwarnings("ignore")
def test_the_nnsight_notebook_runs(tmp_path, capsys):
    import nbformat

    notebook = nbformat.read(Path(__file__).parents[1] / "demos" / "nnsight_trace.ipynb", as_version=4)
    # A file, not a string: nnsight reads the source of what it traces.
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    runpy.run_path(str(script))
    shown = capsys.readouterr().out
    assert "untouched: True" in shown
    assert "feature" in shown
