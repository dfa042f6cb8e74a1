"""Labels come back from files as they went in, and from those of Neuronpedia."""

import gzip
import json

import pytest

from hfsae.errors import CheckpointError, CheckpointNotFound
from hfsae.features import load_labels, save_labels
from hfsae.sae.statistics import Label


def test_labels_come_back_as_they_were_saved(tmp_path):
    labels = {7: Label("`import` at line starts", "a person"), 2: Label("Größe <b>")}
    save_labels(tmp_path / "labels.json", labels)
    assert load_labels(tmp_path / "labels.json") == labels


def test_labels_are_written_as_neuronpedia_exports_them(tmp_path):
    labels = {7: Label("imports", "a person"), 2: Label("cats", "m")}
    save_labels(tmp_path / "labels.jsonl", labels, neuronpedia=("gpt2-small", "8-res-jb"))
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "modelId": "gpt2-small",
        "layer": "8-res-jb",
        "index": "2",
        "description": "cats",
        "explanationModelName": "m",
    }
    assert load_labels(tmp_path / "labels.jsonl") == labels
    (tmp_path / "batch-0.jsonl.gz").write_bytes(gzip.compress((tmp_path / "labels.jsonl").read_bytes()))
    assert load_labels(tmp_path / "batch-0.jsonl.gz") == labels
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "batch-0.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_labels(tmp_path / "cut.jsonl.gz")


def test_explanations_of_delphi_are_read_from_their_folder(tmp_path):
    (tmp_path / "layers.5_latent12.txt").write_text(json.dumps("words about cats"))
    (tmp_path / "layers.5_latent3.txt").write_text(json.dumps("dogs"))
    (tmp_path / "notes.txt").write_text("something else")
    assert load_labels(tmp_path) == {3: Label("dogs", "delphi"), 12: Label("words about cats", "delphi")}
    (tmp_path / "layers.5_latent4.txt").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_labels(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFound, match="holds no explanation"):
        load_labels(tmp_path / "empty")


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
