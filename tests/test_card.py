import re
from importlib.resources import files
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hfsae import card
from hfsae.card import BEGIN, END, CardEntry, render
from hfsae.errors import InvalidValue
from hfsae.hub import publishing
from hfsae.registry import SHIPPED

MEASURED = {
    "ce_clean": 3.2517,
    "ce_spliced": 3.5214,
    "ce_zero": 9.1234,
    "ce_mean": 8.7071,
    "recovered_zero": 0.954072,
    "recovered_mean": 0.95057,
    "explained_variance": 0.87619,
    "fvu": 0.12381,
    "l0": 31.75,
    "kl": 0.2718,
    "dead_fraction": 0.0129,
    "tokens_scored": 65411,
    "data": "the standard library",
    "density": [0.1, 0.2],
    "examples": [
        {
            "feature": 7,
            "density": 0.0123,
            "context": "import os | <b>",
            "promotes": ["path", "sys"],
            "suppresses": ["the"],
            "label": "imports",
            "source": "a person",
        }
    ],
    "steering": {"tested_range": "0 to 8", "kl_at_4": 0.35},
}
CONFIG = {
    "architecture": "batchtopk",
    "d_in": 192,
    "d_sae": 1536,
    "site": "resid_post",
    "layer": 1,
    "base_model": "me/base",
    "base_revision": "607a30d",
    "training": {"tokens": 123_456, "seed": 0, "data": "stdlib"},
}


def entry(place="resid_post.layer_1", measured=MEASURED, **config):
    digest = "ab" * 32
    return CardEntry(place=place, config=CONFIG | config, measured=measured, files=[("sae.safetensors", 4096, digest)])


def test_card_parses_and_its_metadata_is_complete():
    parsed = ModelCard(render("me/tiny", [entry()], license="apache-2.0"))
    data = parsed.data.to_dict()
    assert data["library_name"] == "hfsae"
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "me/base"
    assert data["base_model_relation"] == "adapter"
    assert set(card.TAGS) <= set(data["tags"])


def test_every_number_of_the_model_index_is_that_of_eval_json():
    parsed = ModelCard(render("me/tiny", [entry()]))
    found = {result.metric_type: result.metric_value for result in parsed.data.eval_results}
    assert found == {key: MEASURED[key] for key in found}
    assert {"recovered_zero", "l0", "fvu", "ce_zero"} <= set(found)


def test_every_number_of_the_table_is_that_of_eval_json_rounded():
    row = next(
        line for line in render("me/tiny", [entry()]).splitlines() if line.startswith("| `resid_post.layer_1` |")
    )
    numbers = [cell.strip() for cell in row.split("|")[7:-1]]
    keys = ["l0", "explained_variance", "ce_clean", "ce_spliced", "ce_zero", "ce_mean"]
    keys += ["recovered_zero", "recovered_mean", "dead_fraction"]
    assert numbers == [f"{MEASURED[key]:.4g}" for key in keys]


def test_use_pins_the_base_revision_and_names_the_dictionary():
    text = render("me/tiny", [entry()])
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(code, "card", "exec")
    assert "from_pretrained('me/base', revision='607a30d')" in code
    assert "SAE.from_pretrained('me/tiny', subfolder='resid_post.layer_1')" in code


def test_labels_stand_for_examples_where_none_were_recorded():
    measured = {key: value for key, value in MEASURED.items() if key != "examples"}
    labels = {
        "1": {"text": "imports", "source": "a person"},
        "x": {"text": "no feature"},
        "9" * 50: {"text": "too far"},
    }
    text = render("me/tiny", [CardEntry(place="a", config=CONFIG, measured=measured, labels=labels)])
    assert "| 1 | 0.2 | – | – | – | imports (a person) |" in text
    assert "no feature" not in text


def test_results_of_two_dictionaries_stay_apart():
    two = [entry(), entry("resid_post.layer_2", measured=MEASURED | {"l0": 8.5}, layer=2)]
    results = ModelCard(render("me/set", two)).data.eval_results
    found = {result.dataset_config: result.metric_value for result in results if result.metric_type == "l0"}
    assert found == {"resid_post.layer_1": 31.75, "resid_post.layer_2": 8.5}


def test_shipped_model_is_used_through_load_default():
    text = render("me/tiny", [entry(base_model="hfsae/stdlib-gpt2", base_revision=None)])
    assert "model, tokenizer = hfsae.load_default()" in text
    compile(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), "card", "exec")


def test_features_steering_training_and_hashes_are_told():
    text = render("me/tiny", [entry()])
    assert "| 7 | 0.0123 | import os &#124; &lt;b&gt; | path, sys | the | imports (a person) |" in text
    assert "tested range 0 to 8; kl at 4 0.35" in text
    assert "tokens 123456; seed 0; data stdlib" in text
    assert "ab" * 32 in text


def test_unmeasured_dictionary_shows_dashes_and_no_results():
    text = render("me/tiny", [entry(measured={})])
    assert "| – | – |" in text
    assert "not measured" in text
    assert ModelCard(text).data.eval_results is None


def test_undefined_numbers_are_dashes():
    text = render("me/tiny", [entry(measured=MEASURED | {"recovered_zero": None})])
    assert "recovered_zero" not in text.split(BEGIN)[0]


def test_set_of_dictionaries_has_a_row_each():
    text = render("me/set", [entry(), entry("resid_post.layer_2", layer=2)])
    assert text.count("| `resid_post.layer_2` | resid_post | 2 |") == 1


def test_hand_written_text_and_metadata_stay_and_the_rest_is_made_anew():
    first = render("me/tiny", [entry()], license="mit")
    head, body = first.split(BEGIN)
    edited = f"{head}Mine above.\n\n{BEGIN}{body}\nMine below.\n".replace(
        "license: mit", "license: mit\npipeline_tag: other"
    )
    second = render("me/tiny", [entry(measured=MEASURED | {"l0": 40.5})], existing=edited)
    assert second.index("Mine above.") < second.index(BEGIN) < second.index(END) < second.index("Mine below.")
    assert "40.5" in second
    assert "31.75" not in second
    data = ModelCard(second).data.to_dict()
    assert data["license"] == "mit"
    assert data["pipeline_tag"] == "other"


def test_rendering_again_changes_nothing():
    first = render("me/tiny", [entry()], license="mit")
    assert render("me/tiny", [entry()], existing=first) == first


def test_card_of_another_tool_is_kept_below():
    text = render("me/tiny", [entry()], existing="---\ntags:\n- mine\n---\n# An old card\n")
    assert text.index(END) < text.index("# An old card")
    assert "mine" in ModelCard(text).data.tags


def test_text_from_files_cannot_break_the_table_or_the_page():
    nasty = "<script>alert(1)</script> | `x`\n# heading {{ 7 * 7 }}"
    measured = MEASURED | {"data": nasty, "examples": [{"feature": 1, "label": nasty, "context": nasty}]}
    text = render("me/tiny", [entry(measured=measured, site=nasty)])
    assert "<script>" not in text.split("---", 2)[2]
    assert "\n# heading" not in text
    assert "{{ 7 * 7 }}" in text


def test_base_licence_is_told_where_known():
    assert "(me/base: gemma)" in render("me/tiny", [entry()], base_licenses={"me/base": "gemma"})


def test_no_dictionary_is_refused():
    with pytest.raises(InvalidValue, match="no dictionary to write a card about"):
        render("me/tiny", [])


def test_broken_metadata_is_named():
    with pytest.raises(InvalidValue, match="metadata that cannot be read"):
        render("me/tiny", [entry()], existing="---\n- a\n- list\n---\n# x\n")


def test_template_beside_the_cards_is_the_one_in_the_package():
    shown = Path(__file__).parents[1] / "model_cards" / "template.md"
    assert shown.read_text(encoding="utf-8") == (files("hfsae") / "card_template.md").read_text(encoding="utf-8")


def test_shipped_card_is_what_the_shipped_files_render():
    path = Path(__file__).parents[1] / "model_cards" / "stdlib-gpt2.md"
    text = path.read_text(encoding="utf-8")
    dictionaries = publishing.dictionaries_in([Path(str(files("hfsae"))) / "default" / "files"])
    again = render(SHIPPED, [dictionary.entry() for dictionary in dictionaries], existing=text)
    assert again == text, "run python model_cards/render.py"
