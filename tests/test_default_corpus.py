import pytest

import hfsae.default
from hfsae.default import corpus, default_texts, shipped_texts
from hfsae.errors import CheckpointError, CheckpointNotFound, InvalidValue


def test_the_split_is_a_law_of_names_alone():
    shipped = shipped_texts()
    assert {corpus.split_of(path) for path in shipped["validation"]} == {"validation"}
    assert {corpus.split_of(path) for path in shipped["heldout"]} == {"heldout"}
    assert not any(path.startswith(corpus.LEFT_OUT) for split in shipped.values() for path in split)


def test_default_texts_of_no_two_splits_share_a_document():
    splits = {
        split: {text for text in default_texts(split) if text.strip()} for split in ("train", "validation", "heldout")
    }
    assert all(len(texts) > 20 for texts in splits.values())
    assert not splits["validation"] & (splits["train"] | splits["heldout"])
    assert not splits["heldout"] & splits["train"]


def test_default_texts_names_the_splits_when_there_is_no_such_split():
    with pytest.raises(InvalidValue, match=r"no split 'valid'.*Did you mean 'validation'"):
        default_texts("valid")


def test_a_changed_text_is_refused_by_name(tmp_path, monkeypatch):
    shipped = hfsae.default.FILES
    hashes = (shipped / "texts.json").read_text()
    (tmp_path / "texts.json").write_text(hashes.replace(hashes.split('"difflib.py": "')[1][:8], "0" * 8))
    (tmp_path / "texts.json.xz").write_bytes((shipped / "texts.json.xz").read_bytes())
    monkeypatch.setattr("hfsae.default.FILES", tmp_path)
    with pytest.raises(CheckpointError, match=r"'difflib\.py' of split 'validation' differs"):
        shipped_texts.__wrapped__()


def test_a_python_without_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "library_root", lambda: tmp_path)
    with pytest.raises(CheckpointNotFound, match=r"No standard-library sources under .*'train' split"):
        corpus.library_texts("train")


def test_clean_drops_licence_headers_and_keeps_the_rest():
    header = "# Copyright 2001 Someone.\n# All rights reserved.\n\n"
    code = '"""A module."""\n# A comment.\nx = 1\n'
    assert corpus.clean(header + code) == code
    assert corpus.clean("# What this is for.\n" + code) == "# What this is for.\n" + code
    assert corpus.clean(code + "# Copyright 1999 Other.\n") == code


def test_prose_is_docstrings_and_comment_blocks_in_order():
    doc, comment = "First words. " * 6, "A remark that is long enough to be a block of its own, certainly."
    assert corpus.prose(f'"""{doc}"""\nx = 1\n    # {comment}\ny = 2  # short\n') == f"{doc.strip()}\n\n{comment}"


def test_seen_finds_a_passage_in_another_file_whatever_its_indentation():
    lines = [f"statement_{n} = compute({n})" for n in range(9)]
    seen = corpus.Seen(["\n".join(lines)])
    assert seen.count("\n".join("    " + line for line in lines[2:8])) == 2
    assert seen.count("\n".join(lines[:4] + lines[5:8])) == 0
