import re

import pytest
import torch

from hfsae.attach import attach
from hfsae.default import default_texts, load_default

RAISE = 3707
"""The feature after block 2 that is labelled by the word ``raise``."""
STRENGTH = 8.0
NEW = 20


@pytest.fixture(scope="module")
def default():
    return load_default()


@pytest.fixture
def attachment(default):
    with attach(default[0], layer=2) as attachment:
        yield attachment


@pytest.fixture(scope="module")
def prompts():
    """Forty beginnings of held-back files, cut after a whole line."""
    texts = [text for split in ("validation", "heldout") for text in default_texts(split)]
    return [text[: text.index("\n", 200) + 1] for text in texts if len(text) > 400][:40]


def about_exceptions(tokenizer):
    """Ids of the tokens that name an exception or its raising."""
    words = re.compile(r"Error$|[Ee]xception|^ raise")
    return torch.tensor([i for i in range(len(tokenizer)) if words.search(tokenizer.decode([i]))])


def continuations(model, tokenizer, prompts):
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", truncation=True, max_length=200)
    torch.manual_seed(0)
    return model.generate(**batch, max_new_tokens=NEW, do_sample=True, top_p=0.9)[:, -NEW:]


def test_labels_are_among_the_features_and_say_where_they_come_from(attachment):
    labels = attachment.dictionary.labels
    assert len(labels) >= 10
    assert "raise" in labels[RAISE].text
    assert {label.source for label in labels.values()} == {"hand", "automatic"}
    assert sum(label.source == "hand" for label in labels.values()) >= 10
    assert max(labels) < attachment.dictionary.config.d_sae


def test_the_labelled_feature_fires_on_its_word(default, attachment):
    _, tokenizer = default
    ids = tokenizer("def f(x):\n    if x is None:\n        raise ValueError('x is None')\n", return_tensors="pt")
    with attachment.record() as record:
        default[0](**ids)
    values = record.at([RAISE]).detach()[0, :, 0]
    assert tokenizer.decode(ids.input_ids[0, int(values.argmax())]) == " raise"
    assert float(values.max()) > 4.0


def test_steering_the_raise_feature_makes_texts_about_exceptions(default, attachment, prompts):
    model, tokenizer = default
    wanted = about_exceptions(tokenizer)
    before = torch.isin(continuations(model, tokenizer, prompts), wanted).float().mean()
    with attachment.steer(RAISE, STRENGTH):
        after = torch.isin(continuations(model, tokenizer, prompts), wanted).float().mean()
    assert before < 0.01
    assert after > 0.03


def test_ablating_the_raise_feature_takes_the_exception_from_behind_the_word(default, attachment):
    model, tokenizer = default
    wanted = about_exceptions(tokenizer)
    raised = re.compile(r"\n +raise(?= \w+Error)")
    texts = [text[: end.end()][-400:] for text in default_texts("heldout") for end in raised.finditer(text)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    last = batch.attention_mask.sum(1) - 1

    def chance():
        logits = model(**batch).logits[torch.arange(len(last)), last]
        return float(logits.softmax(-1)[:, wanted].sum(-1).mean())

    with torch.no_grad():
        before = chance()
        with attachment.ablate(RAISE):
            after = chance()
    assert before > 0.3
    assert after < before / 8
