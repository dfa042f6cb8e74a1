"""Labels come back from files as they went in, and from those of Neuronpedia."""

import json

import pytest

from hfsae.errors import CheckpointError, CheckpointNotFound
from hfsae.features import load_labels, save_labels
from hfsae.sae.statistics import Label


def test_labels_come_back_as_they_were_saved(tmp_path):
    labels = {7: Label("`import` at line starts", "a person"), 2: Label("Größe <b>")}
    save_labels(tmp_path / "labels.json", labels)
    assert load_labels(tmp_path / "labels.json") == labels


@pytest.mark.parametrize("lines", [False, True])
def test_explanations_of_neuronpedia_are_read(tmp_path, lines):
    rows = [
        {
            "modelId": "gpt2-small",
            "layer": "8-res-jb",
            "index": "12",
            "description": " cats",
            "explanationModelName": "m",
        },
        {"index": 3, "description": "dogs", "typeName": "t"},
        {"index": 3, "description": "a second opinion"},
    ]
    path = tmp_path / "export.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    assert load_labels(path) == {12: Label(" cats", "m"), 3: Label("dogs", "t")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no JSON"),
        ("not json", "is no JSON"),
        ("[1]", "entry 0 is no label"),
        ('[{"feature": 1, "label": "a"}, {"feature": -1, "label": "b"}]', "entry 1 is no label"),
        ('[{"feature": true, "label": "a"}]', "entry 0 is no label"),
        ('[{"feature": 1}]', "entry 0 is no label"),
    ],
)
def test_what_is_no_label_is_refused_by_entry(tmp_path, text, message):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_labels(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointNotFound, match=r"nowhere\.json is no file"):
        load_labels(tmp_path / "nowhere.json")
