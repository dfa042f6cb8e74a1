"""Rings give each row just once and go on exactly; sources and stores read what was given, whole or not at all."""

import json
import sys

import pytest
import torch

from hfsae.data.ring import ShuffleRing
from hfsae.data.rows import IterableRows, TensorRows
from hfsae.data.sources import Mixture, open_source
from hfsae.data.store import ActivationStore, cache_activations
from hfsae.errors import CheckpointError, CheckpointNotFound, InvalidValue
from hfsae.train import TrainConfig, train


def numbered(count):
    return torch.arange(count, dtype=torch.float32)[:, None].expand(count, 3).contiguous()


def drained(ring, batch=7):
    taken = list(iter(lambda: ring.take(batch)[:, 0].tolist(), []))
    return [number for part in taken for number in part]


@pytest.mark.parametrize("capacity", [1, 10, 33, 100, 500])
def test_ring_gives_every_row_once_in_another_order(capacity):
    ring = ShuffleRing(IterableRows(iter(numbered(100).split(9))), capacity=capacity, limit=10**6, seed=0)
    order = drained(ring)
    assert sorted(order) == list(range(100))
    assert capacity < 10 or order != sorted(order)


def test_ring_reads_again_up_to_its_limit():
    order = drained(ShuffleRing(TensorRows(numbered(20), seed=0), capacity=8, limit=50, seed=0))
    assert len(order) == 50
    assert set(order) == set(range(20))


@pytest.mark.parametrize("before", [0, 1, 5, 12])
def test_ring_goes_on_exactly_from_its_state(before):
    def ring():
        return ShuffleRing(IterableRows(list(numbered(100).split(9))), capacity=30, limit=150, seed=3)

    one, two = ring(), ring()
    for _ in range(before):
        one.take(7)
    state = json.loads(json.dumps(one.state()["numbers"]))
    two.restore({"tensors": {k: v.clone() for k, v in one.state()["tensors"].items()}, "numbers": state})
    assert drained(one) == drained(two)


def test_peek_takes_nothing():
    ring = ShuffleRing(TensorRows(numbered(20), seed=0), capacity=20, limit=20, seed=0)
    seen = ring.peek(5)
    assert torch.equal(seen, ring.take(5))


def test_past_is_what_was_taken_last_and_changes_no_order(monkeypatch):
    def ring():
        return ShuffleRing(IterableRows(iter(numbered(100).split(9))), capacity=40, limit=100, seed=0)

    looked, plain = ring(), ring()
    assert not len(looked.past(4))
    for place in range(0, 35, 7):
        batch = looked.take(7)
        assert torch.equal(looked.past(7), batch)
        assert len(looked.past(1000)) == place + 7
    monkeypatch.setattr(sys.modules["hfsae.data.ring"], "_KEPT", 0)
    assert drained(plain)[35:] == drained(looked)


def test_lists_are_shuffled_alike_for_the_same_seed_and_epoch():
    source = open_source([str(i) for i in range(30)], seed=0)
    assert list(source.epoch(0)) == list(source.epoch(0))
    assert list(source.epoch(0)) != list(source.epoch(1))
    assert sorted(source.epoch(1), key=int) == [str(i) for i in range(30)]


def test_files_are_read_by_what_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    source = open_source([tmp_path / "a.txt", tmp_path / "b.jsonl"], seed=0)
    documents = list(source.epoch(0))
    assert len(documents) == 3
    assert "plain" in documents
    assert {"text": "two"} in documents
    (tmp_path / "b.jsonl").write_text("{half")
    with pytest.raises(InvalidValue, match="line 1, is no JSON"):
        list(open_source(tmp_path / "b.jsonl", seed=0).epoch(0))
    with pytest.raises(CheckpointNotFound, match=r"none.txt"):
        open_source(tmp_path / "none.txt", seed=0)


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
def test_text_files_are_read_in_shuffled_pieces_that_hold_each_line_once(size, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hfsae.data.sources"], "_PIECE", size)
    lines = [f"line {number} " + "é" * (number % 9) for number in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    first, second = (list(open_source(tmp_path / "a.txt", 0).epoch(number)) for number in (0, 1))
    assert sorted("\n".join(text.strip("\n") for text in first).split("\n")) == sorted(lines)
    assert (first != second) == (size < 1000)


def test_parquet_files_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "c.parquet")
    assert list(open_source(tmp_path / "c.parquet", seed=0).epoch(0)) == [{"text": "one"}, {"text": "two"}]


def test_mixtures_keep_their_proportions():
    stream = iter(Mixture([(["a"], 3.0), (["b", "b"], 1.0)]).epoch(0))
    drawn = [next(stream) for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(0.75, abs=0.04)
    with pytest.raises(InvalidValue, match="weights above 0"):
        Mixture([(["a"], 0.0)])


def test_cached_activations_are_those_of_the_model_and_can_be_trained_on(tmp_path, tiny_gpt2):
    ids = torch.randint(3, 96, (40, 32), generator=torch.Generator().manual_seed(0))
    options = {"layer": 1, "batch_size": 8, "tokens": 1000, "shard_tokens": 300}
    store = cache_activations(tiny_gpt2, ids, tmp_path / "x", **options)
    assert len(store) == 1000
    rows = torch.cat(list(store.chunks(0, 0)))
    hidden = tiny_gpt2(ids, output_hidden_states=True).hidden_states[2][:, 1:].reshape(-1, 32)
    assert torch.cdist(rows[:50], hidden.detach()).amin(1).max() < 1e-3
    assert torch.equal(torch.cat(list(store.chunks(0, 2))), rows[-len(torch.cat(list(store.chunks(0, 2)))) :])
    sae = train(activations=store, config=TrainConfig(d_sae=32, k=4, tokens=2048), progress=False)
    assert sae.config.place == "resid_post.layer_1"
    assert sae.config.exclude_first_position


def test_a_store_that_was_changed_is_refused(tmp_path, tiny_gpt2):
    ids = torch.randint(3, 96, (8, 16), generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "x"
    cache_activations(tiny_gpt2, ids, folder, layer=1, tokens=50)
    with pytest.raises(InvalidValue, match="is not empty"):
        cache_activations(tiny_gpt2, ids, folder, layer=1, tokens=50)
    shard = folder / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match=r"shard-00000.*sha256 differs"):
        list(ActivationStore(folder).chunks(0, 0))
    with pytest.raises(CheckpointNotFound, match=r"index.json"):
        ActivationStore(tmp_path)
