"""Any data becomes the right rows, nothing is lost, and the masks say what a dictionary stands for."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from hfsae.data.limits import longest_row, reading_of
from hfsae.data.tokens import TokenBatch, batches, spliced_mask
from hfsae.errors import InvalidType, InvalidValue
from hfsae.sae.config import SAEConfig

BOS, EOS = 1, 2


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A word tokenizer: "w5" is id 5; ids 1 and 2 are BOS and EOS."""
    vocab = {"<pad>": 0, "<bos>": BOS, "<eos>": EOS} | {f"w{i}": i for i in range(3, 96)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **special)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos_token="<bos>", eos_token="<eos>")


def rows(data: object, **options: object) -> list[list[int]]:
    """All rows of all batches, without padding."""
    return [
        batch.input_ids[i][batch.valid[i]].tolist()
        for batch in batches(data, **options)
        for i in range(len(batch.valid))
    ]


def test_packing_joins_texts_with_bos_and_begins_every_row_with_it(tokenizer):
    found = rows(["w3 w4", "w5 w6 w7 w8"], tokenizer=tokenizer, context=5)
    assert found == [[BOS, 3, 4, BOS, 5], [BOS, 6, 7, 8]]


def test_packing_ends_texts_with_eos_when_there_is_no_bos():
    found = rows(["w3 w4", "w5"], tokenizer=make_tokenizer(eos_token="<eos>"), context=4)
    assert found == [[3, 4, EOS, 5], [EOS]]


def test_packing_adds_nothing_without_special_tokens_or_bos_when_told():
    assert rows(["w3 w4", "w5"], tokenizer=make_tokenizer(), context=8) == [[3, 4, 5]]


def test_unpacked_texts_keep_their_rows_and_long_ones_go_on_in_the_next(tokenizer):
    stream = batches(["w3 w4 w5 w6", "w7"], tokenizer=tokenizer, context=3, pack=False)
    batch = next(stream)
    assert batch.input_ids.tolist() == [[BOS, 3, 4], [BOS, 5, 6], [BOS, 7, 0]]
    assert batch.valid.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert batch.special_mask.tolist() == [[True, False, False], [True, False, False], [True, False, True]]
    assert (stream.counts.documents, stream.counts.cut, stream.counts.rows, stream.counts.tokens) == (2, 1, 3, 8)


def test_every_token_is_in_exactly_one_row(tokenizer):
    texts = [" ".join(f"w{3 + (i * j) % 90}" for j in range(1, i)) for i in range(1, 40)]
    plain = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    for pack in (True, False):
        found = rows(texts, tokenizer=tokenizer, context=7, pack=pack)
        assert [token for row in found for token in row if token != BOS] == plain
        assert max(map(len, found)) == 7


def test_empty_texts_are_counted(tokenizer):
    stream = batches(["", "w3", ""], tokenizer=tokenizer)
    assert [batch.input_ids.tolist() for batch in stream] == [[[BOS, 3]]]
    assert (stream.counts.documents, stream.counts.empty) == (3, 2)


def generator() -> Iterator[list[int]]:
    yield [5, 6, 7]
    yield [8, 9]


@pytest.mark.parametrize(
    "data",
    [
        [[5, 6, 7], [8, 9]],
        generator,
        [torch.tensor([5, 6, 7]), torch.tensor([8, 9])],
        [np.array([5, 6, 7]), np.array([8, 9])],
        {"input_ids": [[5, 6, 7], [8, 9]]},
        [{"input_ids": [5, 6, 7]}, {"input_ids": torch.tensor([8, 9])}],
        BatchEncoding({"input_ids": [[5, 6, 7], [0, 8, 9]], "attention_mask": [[1, 1, 1], [0, 1, 1]]}),
        BatchEncoding(
            {
                "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
                "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
            }
        ),
        Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]], "labels": [0, 1]}),
        Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]]}).to_iterable_dataset(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_ids_of_every_kind_are_kept_as_rows(data):
    assert rows(data() if callable(data) else data) == [[5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    "data",
    ["w3 w4", ["w3 w4"], iter(["w3 w4"]), np.array(["w3 w4"]), {"text": "w3 w4"}, [{"text": ["w3 w4"], "id": 7}]],
    ids=lambda data: type(data).__name__,
)
def test_texts_of_every_kind_are_tokenised(data, tokenizer):
    assert rows(data, tokenizer=tokenizer) == [[BOS, 3, 4]]


def test_text_datasets_are_tokenised_in_both_forms(tokenizer):
    dataset = Dataset.from_dict({"text": ["w3 w4", "w5"]})
    for data in (dataset, dataset.to_iterable_dataset()):
        assert rows(data, tokenizer=tokenizer) == [[BOS, 3, 4, BOS, 5]]


def test_one_list_of_numbers_is_one_row_and_long_rows_are_cut():
    assert rows([5, 6, 7, 8, 9], context=3) == [[5, 6, 7], [8, 9]]
    assert rows(torch.arange(3, 8), context=3, pack=True) == [[3, 4, 5], [6, 7]]


def test_bos_is_added_to_ids_on_request_but_never_twice(tokenizer):
    assert rows([[5, 6], [BOS, 7]], tokenizer=tokenizer, prepend_bos=True) == [[BOS, 5, 6], [BOS, 7]]
    assert rows(["w3"], tokenizer=tokenizer, prepend_bos=False) == [[3, EOS]]


@pytest.mark.parametrize("max_tokens", [1, 4, 6, 100])
def test_max_tokens_is_met_exactly(max_tokens):
    found = rows([[5, 6, 7, 8], [9, 10, 11]], max_tokens=max_tokens)
    assert [token for row in found for token in row] == [5, 6, 7, 8, 9, 10, 11][:max_tokens]


def test_an_endless_stream_is_read_no_further_than_the_budget(tokenizer):
    def endless() -> Iterator[str]:
        while True:
            yield "w3 w4 w5"

    assert sum(map(len, rows(endless(), tokenizer=tokenizer, max_tokens=500, context=16))) == 500


def test_the_padding_side_of_the_input_changes_nothing():
    left = {"input_ids": [[0, 5, 6], [7, 8, 9]], "attention_mask": [[0, 1, 1], [1, 1, 1]]}
    right = {"input_ids": [[5, 6, 0], [7, 8, 9]], "attention_mask": [[1, 1, 0], [1, 1, 1]]}
    for one, other in zip(batches(left), batches(right), strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.valid, other.valid)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, InvalidValue, r"hold no tokens.*pass the data anew"),
        ([[], []], {}, InvalidValue, "hold no tokens"),
        (["w3"], {}, InvalidType, r"are texts \('w3'\) and there is no tokenizer"),
        ([[5, 96]], {"vocab_size": 96}, InvalidValue, "Token id 96 is out of range.*0 to 95"),
        ([[-1, 5]], {}, InvalidValue, "Token id -1 is out of range"),
        (torch.rand(2, 3), {}, InvalidType, r"dtype torch\.float32"),
        (torch.ones(1, 2, 3, dtype=torch.long), {}, InvalidValue, r"shape \[1, 2, 3\]"),
        ({"train": [1], "test": [2]}, {}, InvalidType, r"\['test', 'train'\].*one split"),
        ([{"body": "w3"}], {}, InvalidType, r"\['body'\]\. Expected \"text\", \"input_ids\" or \"messages\""),
        (b"w3", {}, InvalidType, "type bytes cannot be read"),
        (7, {}, InvalidType, "type int cannot be read"),
        ([5, "w3"], {}, InvalidType, "holds 'w3'"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, {}, InvalidValue, "differ in shape"),
        ([[5]], {"batch_size": 0}, InvalidValue, "batch_size=0 is not a positive"),
        ([[5]], {"max_tokens": True}, InvalidValue, "max_tokens=True is not a positive"),
        ([[5]], {"context": 1}, InvalidValue, "context=1 leaves no token to predict"),
        ([[5]], {"prepend_bos": True}, InvalidValue, "needs a BOS token"),
    ],
)
def test_bad_data_is_one_clear_error(data, options, error, message):
    with pytest.raises(error, match=message):
        list(batches(data, **options))


def make_batch() -> TokenBatch:
    return next(batches([[BOS, 5, 6, 7, 8], [9, 10, EOS]], special_ids=[BOS, EOS]))


def config(**fields: object) -> SAEConfig:
    return SAEConfig(architecture="topk", d_in=2, d_sae=4, k=1, **fields)


def test_spliced_mask_leaves_out_padding_special_and_first_tokens():
    batch = make_batch()
    assert torch.equal(spliced_mask(batch, None, config(exclude_special_tokens=False)), batch.valid)
    assert spliced_mask(batch, None, config()).tolist() == [[False, True, True, True, True], [True, True] + [False] * 3]
    first = spliced_mask(batch, None, config(exclude_special_tokens=False, exclude_first_position=True))
    assert first.tolist() == [[False, True, True, True, True], [False, True, True, False, False]]


def test_spliced_mask_leaves_out_norm_outliers_row_by_row():
    batch = make_batch()
    x = torch.ones(2, 5, 2)
    x[0, 2], x[1, 0], x[1, 3:] = 50.0, 9.0, 1e6
    mask = spliced_mask(batch, x, config(norm_outlier=10.0))
    assert mask.tolist() == [[False, True, False, True, True], [True, True] + [False] * 3]
    with pytest.raises(InvalidValue, match="needs the activations x"):
        spliced_mask(batch, None, config(norm_outlier=10.0))


def test_a_batch_gives_the_inputs_of_a_model(tiny_gpt2):
    batch = make_batch().to("cpu")
    assert tiny_gpt2(**batch.model_inputs()).logits.shape == (2, 5, 96)
    assert batch.tokens == 8


def test_a_model_is_read_in_rows_as_long_as_it_can_read_and_no_more_tokens_at_once_than_it_should(tiny_gpt2):
    context = longest_row(tiny_gpt2)
    assert context == tiny_gpt2.config.n_positions
    assert reading_of(tiny_gpt2, None, None) == {"context": context, "batch_size": 4096 // context}
    assert reading_of(tiny_gpt2, 5000, None) == {"context": 5000, "batch_size": 1}
    assert reading_of(torch.nn.Linear(2, 2), None, 3) == {"context": 1024, "batch_size": 3}
