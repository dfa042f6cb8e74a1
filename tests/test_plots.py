"""Pictures show the numbers that they are made of."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hfsae.cli.evaluate import evaluate as command
from hfsae.default import FILES
from hfsae.errors import CheckpointError, CheckpointNotFound, InvalidValue
from hfsae.measuring.drawing import COLOURS
from hfsae.measuring.evaluation import Evaluation
from hfsae.plots import comparison

LAYERS = [FILES / f"resid_post.layer_{layer}" for layer in (1, 2)]


@pytest.fixture
def shipped() -> list[Evaluation]:
    return [Evaluation.load(folder) for folder in LAYERS]


def test_the_picture_of_an_evaluation_shows_its_numbers(shipped):
    counts = {"l0_histogram": torch.tensor([5, 0, 3]), "fvu_histogram": torch.tensor([7, 2])}
    evaluation = replace(shipped[1], **counts, fvu_histogram_from=0.25)
    losses, density, l0, fvu = evaluation.plot().axes
    heights = [bar.get_height() for bar in losses.patches]
    assert heights == [evaluation.ce_clean, evaluation.ce_spliced, evaluation.ce_mean, evaluation.ce_zero]
    assert sum(bar.get_height() for bar in density.patches) == int((evaluation.density > 0).sum())
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in l0.patches] == [(0, 5), (2, 3)]
    assert [bar.get_height() for bar in fvu.patches] == [7, 2]
    assert [bar.get_x() for bar in fvu.patches] == pytest.approx([0.25, 0.25 * 2**0.25])
    assert l0.get_title() == "L0 16.0"
    assert len(replace(evaluation, loss=None).plot().axes) == 3


def test_a_comparison_shows_losses_by_layer_and_the_pareto_front(shipped):
    worse = replace(shipped[0], l0=32.0, fvu=0.5, site="resid_post.layer_0")
    figure = comparison([shipped[1], worse, shipped[0]])
    places, front = figure.axes
    assert [tick.get_text() for tick in places.get_xticklabels()] == [e.site for e in (worse, *shipped)]
    lines = {line.get_label(): list(line.get_ydata()) for line in places.get_lines()}
    assert lines["spliced"] == [e.ce_spliced for e in (worse, *shipped)]
    assert len({line.get_marker() for line in places.get_lines()}) == len(COLOURS)
    (line,) = [line for line in front.get_lines() if line.get_label() == "Pareto front"]
    assert list(zip(*line.get_data(), strict=True)) == [(e.l0, e.fvu) for e in (shipped[0],)]
    with pytest.raises(InvalidValue, match="Give two or more"):
        comparison(shipped[:1])


def test_the_colours_differ_for_the_colour_blind():
    """Deuteranopia and protanopia leave lightness: no two colours may share it."""
    lightness = []
    for colour in COLOURS.values():
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        lightness.append(0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2)
    lightness.sort()
    assert all(after - before > 0.05 for before, after in pairwise(lightness))


def test_an_evaluation_is_read_as_it_was_saved(shipped, tmp_path):
    evaluation = replace(shipped[0], l0_histogram=torch.tensor([4, 2]), fvu_histogram_from=0.5)
    evaluation.save(tmp_path / "eval.json")
    assert Evaluation.load(tmp_path).to_dict() == evaluation.to_dict()
    (tmp_path / "eval.json").write_text('{"fvu": 1.0}')
    with pytest.raises(CheckpointError, match="is no evaluation"):
        Evaluation.load(tmp_path)
    with pytest.raises(CheckpointNotFound):
        Evaluation.load(tmp_path / "none.json")


def test_the_command_draws_both_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidValue, match=r"Give --plot"):
        command(beside=LAYERS[:1])
    plot = tmp_path / "eval.png"
    command(plot=plot, beside=LAYERS[:1], max_tokens=2_000)
    assert f"picture: {tmp_path / 'eval-beside.png'}" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"eval.png", "eval-beside.png"}
    with pytest.raises(InvalidValue, match="is not replaced unasked"):
        command(plot=tmp_path / "other.png", json_file=plot)
