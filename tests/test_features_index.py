"""The index equals a brute-force computation in any batches and shards, and is kept, searched and shown whole."""

import json
import lzma
import re
import zlib
from base64 import b64decode
from dataclasses import fields

import pytest
import torch
from indexed import BOS, attached, features_of, make_dictionary
from safetensors.torch import load_file
from torch import nn

from hfsae.attach import attach
from hfsae.dictionary import SAE
from hfsae.errors import (
    CheckpointError,
    CheckpointNotFound,
    InvalidType,
    InvalidValue,
    Mismatch,
    OutOfRange,
    Unsupported,
)
from hfsae.features import FeatureIndex, collecting, index_features
from hfsae.features.collecting import Collected, to_tensors
from hfsae.features.contexts import LEFT, WIDTH, BestContexts, Contexts
from hfsae.features.labelling import Rule
from hfsae.features.storing import read_index, write_index
from hfsae.hooks import capture

attachment = pytest.fixture(attached)


@pytest.fixture
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 40, (30,), generator=generator).tolist()
    return [[BOS, *torch.randint(3, 20, (n,), generator=generator).tolist()] for n in lengths]


def assert_same(one: Collected, other: Collected) -> None:
    first, second = to_tensors(one), to_tensors(other)
    assert first.keys() == second.keys()
    for name in first:
        if first[name].is_floating_point():
            assert torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6), name
        else:
            assert torch.equal(first[name], second[name]), name
    assert (one.tokens, one.rows) == (other.tokens, other.rows)


def test_numbers_and_contexts_equal_brute_force(attachment, rows):
    index = index_features(attachment, rows, batch_size=4, contexts=3)
    by_row = [features_of(attachment, row) for row in rows]
    f = torch.cat(by_row)
    tokens = sum(len(row) - 1 for row in rows)
    assert index.tokens == tokens
    assert torch.equal(index.collected.count, (f > 0).sum(0))
    assert torch.allclose(index.density, (f > 0).sum(0) / tokens)
    assert torch.allclose(index.max, f.amax(0), rtol=1e-5)
    for feature in range(24):
        card = index[feature]
        peaks = sorted((float(f[:, feature].max()) for f in by_row if f[:, feature].max() > 0), reverse=True)
        assert [example.f[example.at] for example in card.top] == pytest.approx(peaks[:3], rel=1e-5)
        assert card.mean == pytest.approx(float(f[:, feature].sum() / max(1, (f[:, feature] > 0).sum())), rel=1e-5)
        strengths = f[:, feature][f[:, feature] > 0]
        bins = ((strengths.log2() + 10) * 2).floor().long().clamp(0, 39)
        assert list(card.histogram) == torch.bincount(bins, minlength=40).tolist()


def test_contexts_hold_the_tokens_and_activations_around(attachment, rows):
    index = index_features(attachment, rows, batch_size=4)
    by_row = [features_of(attachment, row) for row in rows]
    top = index.collected.top.best()
    for i in range(0, len(top), 7):
        feature, score = int(top.group[i]), float(top.score[i])
        found = (top.ids[i].tolist(), top.f[i])
        windows = [
            window(row, f[:, feature], at)
            for row, f in zip(rows, by_row, strict=True)
            for at in (f[:, feature] == score).nonzero()[:, 0].tolist()
        ]
        assert any(ids == found[0] and torch.allclose(f, found[1]) for ids, f in windows)


def window(row: list[int], f: torch.Tensor, at: int) -> tuple[list[int], torch.Tensor]:
    positions = [at + offset - LEFT for offset in range(WIDTH)]
    inside = [1 <= position < len(row) for position in positions]  # without the BOS that opens the row
    ids = [row[position] if there else -1 for position, there in zip(positions, inside, strict=True)]
    return ids, torch.tensor([f[p] if there else 0.0 for p, there in zip(positions, inside, strict=True)])


def test_batches_do_not_show(attachment, rows):
    one, other = (index_features(attachment, rows, batch_size=size).collected for size in (1, 30))
    assert_same(one, other)


def test_two_shards_merge_to_one_pass(attachment, rows):
    whole = index_features(attachment, rows, batch_size=5)
    first, second = (index_features(attachment, part, batch_size=5) for part in (rows[:11], rows[11:]))
    assert_same(first.merge(second).collected, whole.collected)
    assert_same(second.merge(first).collected, whole.collected)


def test_a_pass_that_was_killed_goes_on_without_loss(attachment, rows, tmp_path):
    class Killed(Exception):
        pass

    def dying():
        yield from rows[:17]
        raise Killed

    whole = index_features(attachment, rows, batch_size=4)
    with pytest.raises(Killed):
        index_features(attachment, dying(), batch_size=4, folder=tmp_path / "index", save_every=50)
    assert 0 < FeatureIndex.load(tmp_path / "index").tokens < whole.tokens
    resumed = index_features(attachment, rows, batch_size=4, folder=tmp_path / "index")
    assert_same(resumed.collected, whole.collected)


def test_saving_and_loading_keeps_everything(attachment, rows, tmp_path):
    index = index_features(attachment, rows)
    index.save(tmp_path / "index")
    loaded = FeatureIndex.load(tmp_path / "index")
    assert_same(loaded.collected, index.collected)
    assert [str(loaded[i]) for i in range(24)] == [str(index[i]) for i in range(24)]


def test_a_trimmed_and_packed_index_shows_the_same_cards_shorter(attachment, rows, tmp_path):
    whole = index_features(attachment, rows)
    whole.trimmed(contexts=3, samples=2, around=(4, 2)).save(tmp_path / "index", packed=True)
    small = FeatureIndex.load(tmp_path / "index")
    assert [small[i].label for i in range(24)] == [whole[i].label for i in range(24)]
    assert small.rules == small.fixed_rules
    assert torch.equal(small.density, whole.density)
    assert torch.allclose(small.max, whole.max, rtol=1e-3)
    for feature in range(24):
        one, other = whole[feature], small[feature]
        assert other.histogram == one.histogram
        assert other.mean == pytest.approx(one.mean, rel=1e-6)
        assert [token for token, _ in other.promoted] == [token for token, _ in one.promoted]
        assert len(other.top) == min(3, len({tuple(example.tokens[-7:]) for example in one.top}))
        assert len(other.samples) == min(2, len(one.samples))
        for example in (*other.top, *other.samples):
            assert example.at <= 4
            assert len(example.tokens) <= 7
            assert "".join(example.tokens) in "".join("".join(e.tokens) + "|" for e in (*one.top, *one.samples))
    whole.save(tmp_path / "whole")
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).iterdir()) for name in ("index", "whole")]
    assert sizes[0] < sizes[1] / 3


def test_a_trimmed_index_is_not_merged_or_gone_on_with(attachment, rows, tmp_path):
    whole = index_features(attachment, rows)
    small = whole.trimmed(contexts=0, samples=0)
    assert small[0].top == small[0].samples == ()
    with pytest.raises(Unsupported, match="was trimmed"):
        whole.merge(small)
    small.save(tmp_path / "index")
    with pytest.raises(Unsupported, match="Use the index that it was trimmed from"):
        index_features(attachment, rows, folder=tmp_path / "index")
    with pytest.raises(InvalidValue, match="none may be negative"):
        whole.trimmed(contexts=-1)


def test_an_index_is_found_beside_its_dictionary(attachment, rows, tmp_path):
    assert FeatureIndex.of(attachment.dictionary) is None
    place = attachment.dictionary.save_pretrained(tmp_path / "dictionaries")
    loaded = SAE.from_pretrained(place)
    assert FeatureIndex.of(loaded) is None
    attached = attach(attachment.model, 1, sae=loaded, name="again")
    index_features(attached, rows).save(place / "index")
    found = FeatureIndex.of(loaded)
    assert found is not None
    assert found.dictionary == loaded.id
    with torch.no_grad():
        loaded.b_dec.add_(1)
    with pytest.raises(Mismatch, match="Make the index again"):
        FeatureIndex.of(loaded)


def test_numbers_are_stored_in_the_narrowest_type_that_keeps_them(tmp_path):
    tensors = {
        "small": torch.tensor([-1, 100]),
        "large": torch.tensor([2**40]),
        "half": torch.tensor([0.5, 3.0]),
        "fine": torch.tensor([1.0 + 2**-20]),
        "double": torch.tensor([1.0 + 2**-40], dtype=torch.float64),
        "none": torch.zeros(0, dtype=torch.int64),
    }
    for packed in (False, True):
        write_index(tmp_path / "index", {}, tensors, packed=packed)
        _, read = read_index(tmp_path / "index")
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    write_index(tmp_path / "index", {}, tensors, packed=False)
    stored = {name: t.dtype for name, t in load_file(tmp_path / "index" / "index.safetensors").items()}
    assert stored["small"] == torch.int8
    assert stored["half"] == torch.bfloat16
    assert stored["double"] == torch.float64


def test_the_rule_of_a_feature_that_follows_a_token_is_that_token(tiny_gpt2, rows):
    dictionary = make_dictionary()
    attachment = attach(tiny_gpt2, 0, "resid_pre", sae=dictionary)
    (x,) = capture(tiny_gpt2, [attachment.point], input_ids=torch.arange(3, 20)[:, None])
    direction = x[5, 0] - x[:, 0].mean(0)
    dictionary.W_enc.zero_()
    dictionary.W_enc[0] = direction / direction.norm()
    dictionary.b_dec.zero_()
    dictionary.b_enc.fill_(-1e3)
    dictionary.b_enc[0] = -0.9 * float(x[5, 0] @ dictionary.W_enc[0])
    rule = index_features(attachment, rows).rules[0]
    assert rule is not None
    assert (rule.kind, rule.tokens[0]) == ("on", 8)
    assert index_features(attachment, rows).rules[1] is None
    assert "never fires" in str(index_features(attachment, rows)[1])


def test_promoted_tokens_are_those_of_the_unembedded_direction(attachment, rows):
    index = index_features(attachment, rows)
    model, d = attachment.model, attachment.dictionary.W_dec[5]
    logits = (d - d.mean()) * model.transformer.ln_f.weight @ model.lm_head.weight.T
    logits = logits.detach()
    assert index[5].promoted[0] == (
        f"⟨{int(logits.argmax())}⟩",
        pytest.approx(float(logits.max() - logits.mean()), rel=1e-4),
    )
    assert index[5].suppressed[0][0] == f"⟨{int(logits.argmin())}⟩"


def test_neighbours_have_the_highest_cosine(attachment, rows):
    index = index_features(attachment, rows)
    unit = nn.functional.normalize(attachment.dictionary.W_dec, dim=1)
    cosines = (unit @ unit[3]).detach()
    cosines[3] = -2
    found, cosine = index.features_like(3)[0]
    assert (found, cosine) == (int(cosines.argmax()), pytest.approx(float(cosines.max()), rel=1e-5))


def test_features_that_fire_together_are_found(attachment, rows, monkeypatch, tmp_path):
    monkeypatch.setattr(collecting, "EVERY", 1)
    index = index_features(attachment, rows, batch_size=4)
    fires = torch.cat([features_of(attachment, row)[1:] for row in rows]) > 0
    expected = torch.corrcoef(fires.T.double()).nan_to_num(0.0).fill_diagonal_(-1)
    expected[fires.T.double() @ fires.double() < 3] = -1
    for feature in range(24):
        found = index.fires_with(feature)
        best = expected[feature].topk(len(found)).values.tolist()
        assert [value for _, value in found] == pytest.approx(best, abs=1e-6)
        assert all(value == pytest.approx(float(expected[feature, other]), abs=1e-6) for other, value in found)
        assert len(found) == min(5, int((expected[feature] > 0).sum()))
    assert sum(len(index.fires_with(feature)) for feature in range(24)) > 24
    index.trimmed().save(tmp_path / "index")
    small = FeatureIndex.load(tmp_path / "index")
    assert all([i for i, _ in small.fires_with(f)] == [i for i, _ in index.fires_with(f)] for f in range(24))
    assert any("fires with" in str(small[feature]) for feature in range(24))


def test_one_token_of_sixteen_is_sampled(attachment):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 20, (40, 60), generator=generator).tolist()
    index = index_features(attachment, rows)
    share = index.collected.together.tokens / index.tokens
    assert 0.5 / 16 < share < 2 / 16


def test_search_finds_words_in_contexts_labels_and_promoted_tokens(attachment, rows):
    attachment.dictionary.labels = {}
    index = index_features(attachment, rows)
    best = index.search("⟨8⟩")
    assert best
    assert "⟨8⟩" in str(best[0])
    assert [card.feature for card in index.search(r"⟨[8]⟩", regex=True)] == [card.feature for card in best]
    assert index.search("no such words") == []
    with pytest.raises(InvalidValue, match="no regular expression"):
        index.search("(", regex=True)
    with pytest.raises(InvalidValue, match="nothing to search for"):
        index.search("  ")


def test_html_escapes_every_text(attachment, rows, tmp_path):
    index = index_features(attachment, rows)
    hostile = "</script><script>alert(1)</script><b>&"
    index.vocabulary[:] = [hostile] * len(index.vocabulary)
    assert "<script>" not in index[0].to_html()
    page = index.to_html(tmp_path / "dashboard").read_text()
    assert page.count("<script>") == 1
    assert "alert(1)" not in page
    packed = (tmp_path / "dashboard" / "cards" / "0.js").read_text()
    assert "http" not in page
    assert re.fullmatch(r'packedCards\[0\] = "[A-Za-z0-9+/=]+";\n', packed)
    cards = json.loads(zlib.decompress(b64decode(packed.split('"')[1])))
    assert cards == [index[i].to_plain_html() for i in range(24)]
    assert all(set(re.findall("<([a-z0-9]+)", card)) <= HARMLESS for card in cards)


HARMLESS = {"div", "h2", "h3", "p", "small", "q", "a", "code", "span", "b", "figure", "svg", "path", "figcaption"}


def test_texts_are_shown_with_their_features(attachment, rows, tmp_path):
    index = index_features(attachment, rows)
    text = attachment.top_features({"input_ids": torch.tensor([rows[0]])}, k=2)
    page = index.to_html(tmp_path / "dashboard", [text]).read_text()
    assert page.count("<a data-feature=") == len(rows[0])


def test_bad_input_is_one_clear_error(attachment, rows, tmp_path):
    index = index_features(attachment, rows)
    with pytest.raises(InvalidValue, match="hold no tokens"):
        index_features(attachment, [])
    with pytest.raises(InvalidType, match="there is no tokenizer"):
        index_features(attachment, ["text"])
    with pytest.raises(OutOfRange, match="Feature 24 does not exist"):
        index[24]
    other = attach(attachment.model, 2, sae=make_dictionary(seed=4))
    with pytest.raises(Mismatch, match="Indexes of one dictionary"):
        index.merge(index_features(other, rows))
    index.save(tmp_path / "index")
    with pytest.raises(Mismatch, match="Choose another folder"):
        index_features(other, rows, folder=tmp_path / "index")
    with pytest.raises(InvalidValue, match="holds no dashboard"):
        index.to_html(tmp_path / "index")


def damaged(folder, name, change):
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


DAMAGE = {
    "truncated": ("index.safetensors", lambda data: data[:-100], "is cut off"),
    "no facts": ("index.json", lambda data: b"", "no valid JSON"),
    "another version": ("index.json", lambda data: data.replace(b'_version": 1', b'_version": 9'), "Make it again"),
    "a fact missing": ("index.json", lambda data: data.replace(b'"rows"', b'"rose"'), "is incomplete"),
    "another width": ("index.json", lambda data: data.replace(b'"d_sae": 24', b'"d_sae": 12'), "is incomplete"),
}
PACKED_DAMAGE = {
    "truncated": ("index.safetensors.xz", lambda data: data[:-100], "cut off"),
    "no xz": ("index.safetensors.xz", lambda data: b"hello" * 20, "cannot be unpacked"),
    "bomb": ("index.safetensors.xz", lambda data: lzma.compress(bytes(10_000_000)), "does not unpack to"),
    "sizeless": ("index.json", lambda data: data.replace(b'packed_bytes": ', b'packed_bytes": -'), "A size was"),
}


@pytest.mark.parametrize(
    ("packed", "case"), [*((False, c) for c in DAMAGE.values()), *((True, c) for c in PACKED_DAMAGE.values())]
)
def test_a_damaged_index_is_one_clear_error(attachment, rows, tmp_path, packed, case):
    name, change, message = case
    index_features(attachment, rows).save(tmp_path / "index", packed=packed)
    damaged(tmp_path / "index", name, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        FeatureIndex.load(tmp_path / "index")
    assert str(tmp_path / "index") in str(caught.value)


@pytest.mark.parametrize("name", ["top.ids", "top.group", "samples.ids", "weights.promoted_ids", "rules.tokens"])
def test_numbers_that_stand_for_nothing_are_refused_when_an_index_is_read(attachment, rows, tmp_path, name):
    index_features(attachment, rows).trimmed().save(tmp_path / "index")
    facts, tensors = read_index(tmp_path / "index")
    tensors["vocabulary"] = tensors["vocabulary"].to(torch.uint8)
    tensors[name] = tensors[name][:5] if name.startswith("weights") else tensors[name] + 10_000
    write_index(tmp_path / "index", facts, tensors, packed=False)
    with pytest.raises(CheckpointError, match=f"incomplete: {name}"):
        FeatureIndex.load(tmp_path / "index")


def test_a_missing_index_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointNotFound, match=r"index\.json"):
        FeatureIndex.load(tmp_path)


def test_one_token_texts_are_indexed(attachment):
    assert index_features(attachment, [[5], [6], [7]]).tokens == 3


def test_best_contexts_keep_the_highest_of_each_group_whatever_the_order():
    generator = torch.Generator().manual_seed(0)
    n = 500
    group, score = torch.randint(5, (n,), generator=generator), torch.rand(n, generator=generator)
    contexts = Contexts(group, score, torch.arange(n), torch.zeros(n, WIDTH, dtype=torch.int32), torch.zeros(n, WIDTH))
    best = BestContexts(5, 7)
    for part in torch.randperm(n, generator=generator).split(60):
        part = part[best.admits(group[part], score[part])]
        best.add(contexts.pick(part))
        best._cut()
    kept = best.best()
    for g in range(5):
        assert torch.equal(kept.score[kept.group == g], score[group == g].sort(descending=True).values[:7])
    assert {field.name for field in fields(kept)} == {"group", "score", "tie", "ids", "f"}


def test_a_rule_names_its_tokens_once_and_white_space_in_words():
    vocabulary = [" def", "Def", "def", "\n    ", "  ", "`", "class"]
    assert Rule("on", (0, 1, 2, 6), 1.0).text(vocabulary) == "on `def`, `class`"
    assert Rule("after", (3, 4, 5), 1.0).text(vocabulary) == "after line break, space, ```"
    assert Rule("on", (0, 6), 0.4).text(vocabulary) == "at times on `def`, `class`"
    assert Rule("on", tuple(range(7)), 1.0).text(vocabulary) == "on `def`, line break, space, ``` and 1 more"
