"""The superposition notebook and script run, and the pictures show what they are given."""

import re
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfsae.toy import holding, phase_grid, pictures, shape
from hfsae.toy.basis import Privilege
from hfsae.toy.comparison import Interval, Standing
from hfsae.toy.sweep import RecoverySweep

DEMOS = Path(__file__).parents[1] / "demos"


def words(figure) -> str:
    """All that is written in a figure."""
    texts = [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title, *axes.get_yticklabels())]
    return "\n".join(texts)


def saved(figure, tmp_path) -> bytes:
    path = tmp_path / "picture.png"
    figure.savefig(path, dpi=80)
    return path.read_bytes()


def figure_of(name: str):
    scores = torch.tensor([[0.95, 0.4], [0.8, 0.1]])
    if name == "geometry":
        return pictures.geometry({each: shape(each) for each in ("digon", "pentagon", "square antiprism")})
    if name == "holding":
        return pictures.holding(holding(6, 2, torch.tensor([1.0, 0.1]), steps=20), d=2)
    if name == "phases":
        return pictures.phases(phase_grid(torch.tensor([0.1, 1.0]), torch.tensor([0.1, 1.0]), restarts=1, steps=20))
    if name == "crosstalk":
        return pictures.crosstalk({"(1, 1)": [0.0, 0.0]}, {64: [(1, 0.125), (5, 0.28)]})
    if name == "recovery":
        sweep = RecoverySweep(
            coherences=(0.0, 0.6), l0s=(1.0, 4.0), rec90=scores, f1=scores, mutual_coherence=torch.tensor([0.5, 0.9])
        )
        return pictures.recovery(sweep)
    if name == "meanings":
        rows = [("trained dictionary", 0.4), ("random directions", 0.1)]
        return pictures.meanings(
            [Standing(name=n, purity=Interval(v, 0.01), f1=Interval(v / 2, 0.01), live=1200.0) for n, v in rows], "here"
        )
    row = Privilege(name="mlp_act.layer_2", own=58.0, turned=3.78, spread=0.1, largest=99.0)
    return pictures.privileges([row])


SAYS = {
    "geometry": ("pentagon", "share 0.400", "exact 0.375"),
    "holding": ("2 dimensions", "1/2 pair"),
    "phases": ("both, back to back", "4I / (2 + 5I)"),
    "crosstalk": ("(1, 1)", "d = 64"),
    "recovery": ("coherence 0.6", "theory is sure"),
    "meanings": ("1,200 live", "0.400", "0.200"),
    "privileges": ("58.00 / 3.78", "own axes", "mlp_act.layer_2"),
}


@pytest.mark.parametrize("name", SAYS)
def test_picture_labels_what_it_draws_and_is_small(name, tmp_path):
    figure = figure_of(name)
    for said in SAYS[name]:
        assert said in words(figure)
    png = saved(figure, tmp_path)
    assert png.startswith(b"\x89PNG")
    assert len(png) < 100_000


def test_the_superposition_notebook_runs(tmp_path, capsys):
    pytest.importorskip("IPython")
    import nbformat

    notebook = nbformat.read(DEMOS / "superposition.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    runpy.run_path(str(script))
    shown = capsys.readouterr().out
    assert "(1, -1): 0.0  (1, 1): 1.0" in shown
    assert "16 on a circle: r² = 13.1371" in shown
    assert "angles between neighbours: [72, 72, 72, 72, 72]" in shown


@pytest.mark.slow
def test_the_superposition_script_writes_its_pictures_in_less_than_90_cpu_seconds(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, DEMOS / "superposition.py", "--pictures", tmp_path],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(DEMOS.parent), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime < 90
    assert len(list(tmp_path.glob("*.png"))) == 7
    standing = dict(re.findall(r"shipped model: (.+), [\d,]+ live: purity ([\d.]+)", done.stdout))
    assert float(standing["trained dictionary"]) > 1.5 * float(standing["neuron basis"])
    assert float(standing["trained dictionary"]) > 1.5 * float(standing["random directions"])
