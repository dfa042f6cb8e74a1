"""Conversations go through the chat template whole; of them, a dictionary may be trained on what the assistant says."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfsae.data.chats import assistant_mask
from hfsae.data.tokens import batches, spliced_mask
from hfsae.errors import InvalidType, InvalidValue
from hfsae.sae.config import SAEConfig
from hfsae.train import DataConfig, Mixture, TrainConfig, train

TURN = "{% if m.role == 'user' %}w9 {{ m.content }} <eos> {% else %}w8 "
PLAIN = f"{{% for m in messages %}}{TURN}{{{{ m.content }}}} <eos> {{% endif %}}{{% endfor %}}"
PLAIN += "{% if add_generation_prompt %}w8 {% endif %}"
MARKED = PLAIN.replace("w8 {{ m.content }} <eos> ", "w8 {% generation %}{{ m.content }} <eos>{% endgeneration %} ")
FORGETFUL = PLAIN.replace("w8 {{ m.content }}", "w8 {{ m.content if loop.last else 'w3' }}")
CONVERSATION = [
    {"role": "user", "content": "w10 w11"},
    {"role": "assistant", "content": "w20 w21 w22"},
    {"role": "user", "content": "w12"},
    {"role": "assistant", "content": "w23"},
]
IDS = [9, 10, 11, 2, 8, 20, 21, 22, 2, 9, 12, 2, 8, 23, 2]
SAID = [5, 6, 7, 8, 13, 14]


def tokenizer_of(template):
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, 96)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=template
    )


@pytest.mark.parametrize(
    "data", [CONVERSATION, [CONVERSATION], {"messages": CONVERSATION}, [{"messages": CONVERSATION}]]
)
def test_a_conversation_is_read_as_the_template_writes_it(data):
    batch = next(batches(data, tokenizer=tokenizer_of(PLAIN), context=64))
    assert batch.input_ids.tolist() == [IDS]
    assert batch.counted_mask is None


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_what_the_assistant_says_counts_and_the_model_reads_all(template):
    read = batches([CONVERSATION, [5, 6, 7]], tokenizer=tokenizer_of(template), context=64, assistant_only=True)
    batch = next(read).to("cpu")
    assert batch.input_ids[0].tolist() == IDS
    assert batch.counted_mask[0].nonzero().flatten().tolist() == SAID
    place = SAEConfig(architecture="topk", d_in=2, d_sae=4, k=1, exclude_special_tokens=False)
    assert spliced_mask(batch, None, place).sum(1).tolist() == [len(SAID), 3]


def test_the_mask_follows_a_conversation_into_its_next_row():
    (batch,) = batches(CONVERSATION, tokenizer=tokenizer_of(PLAIN), context=7, assistant_only=True)
    assert batch.valid.sum(1).tolist() == [7, 7, 1]
    assert batch.counted_mask[batch.valid].nonzero().flatten().tolist() == SAID


def test_turns_that_cannot_be_told_apart_are_said():
    with pytest.raises(InvalidValue, match="cannot be told from the rest"):
        assistant_mask(CONVERSATION, tokenizer_of(FORGETFUL))
    with pytest.raises(InvalidValue, match="no chat template"):
        next(batches(CONVERSATION, tokenizer=tokenizer_of(None)))
    for assistant_only in (False, True):
        with pytest.raises(InvalidType, match="conversations and there is no tokenizer"):
            next(batches(CONVERSATION, assistant_only=assistant_only))


def test_an_assistant_may_speak_first():
    mask = assistant_mask(CONVERSATION[1:3], tokenizer_of(PLAIN))
    assert mask == [True] * 5 + [False] * 3


def test_training_on_the_assistant_keeps_its_activations_in_their_context(tiny_gpt2):
    data = Mixture([([{"messages": CONVERSATION}] * 3, 1.0)])
    settings = DataConfig(assistant_only=True, exclude_special_tokens=False, norm_outlier=None, buffer_bytes=2**16)
    config = TrainConfig(d_sae=16, k=2, tokens=512, batch_size=64, data=settings)
    hidden = tiny_gpt2(torch.tensor([IDS]), output_hidden_states=True).hidden_states[2][0, SAID].detach()
    sae = train(tiny_gpt2, data, tokenizer=tokenizer_of(PLAIN), layer=1, config=config, progress=False)
    torch.testing.assert_close(sae.statistics.mean_activation, hidden.mean(0), rtol=1e-4, atol=1e-4)
