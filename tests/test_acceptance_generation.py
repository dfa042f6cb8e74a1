"""Edits inside generate: with and without the cache, beams, padding, rows of a sweep, continuous batching."""

import copy

import pytest
import torch
from attach_cases import GENERATING, dictionary, inputs_for, logits, tiny

from hfsae.attach import attach
from hfsae.attaching.edits import sweep
from hfsae.errors import HfsaeWarning, InvalidValue, Unsupported

GREEDY = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}


def generate(model, ids, **options):
    return model.generate(ids, **({"attention_mask": torch.ones_like(ids)} | GREEDY | options))


@pytest.mark.parametrize("family", GENERATING)
def test_an_edit_gives_the_same_tokens_with_and_without_the_cache(family):
    model, ids = tiny(family), inputs_for(family)["input_ids"]
    with attach(model, 1, sae=dictionary()) as att, att.steer(3, 3.0) | att.ablate(range(5, 64)):
        expected = generate(model, ids)
        assert torch.equal(generate(model, ids, use_cache=False), expected)
        if family not in ("gemma2", "gemma3"):
            assert torch.equal(generate(model, ids, cache_implementation="static"), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_one_value_per_row_equals_one_run_per_value(beams):
    model, ids = tiny("gpt2"), inputs_for("gpt2", batch=1)["input_ids"]
    strengths = [0.0, 2.0, 5.0, 9.0]
    with attach(model, 1, sae=dictionary()) as att:
        with att.steer(3, torch.tensor(strengths)):
            together = generate(model, ids.repeat(4, 1), num_beams=beams)
        with sweep([att.steer(3, s) for s in strengths]) as swept:
            assert torch.equal(generate(model, ids.repeat(4, 1), num_beams=beams), together)
        assert swept.tokens_changed > 0
        for row, strength in enumerate(strengths):
            with att.steer(3, strength):
                assert torch.equal(generate(model, ids, num_beams=beams)[0], together[row])


def test_returned_sequences_of_one_prompt_are_one_row():
    model, ids = tiny("gpt2"), inputs_for("gpt2")["input_ids"]
    options = {"num_beams": 4, "num_return_sequences": 2}
    with attach(model, 1, sae=dictionary()) as att:
        with att.steer(3, torch.tensor([0.0, 6.0])):
            together = generate(model, ids, **options)
        with att.steer(3, 6.0):
            alone = generate(model, ids[1:], **options)
    assert torch.equal(together[2:], alone)
    assert torch.equal(together[:2], generate(model, ids[:1], **options))


def test_values_for_another_number_of_rows_are_refused():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    with attach(model, 1, sae=dictionary()) as att:
        with pytest.raises(ValueError, match="3 rows, the batch has 2"), att.steer(3, torch.tensor([0.0, 1.0, 2.0])):
            model(**inputs)
        with pytest.raises(InvalidValue, match="3 rows"), att.steer(3, torch.tensor([0.0, 1.0, 2.0])):
            generate(model, inputs["input_ids"], num_beams=3)
        with pytest.raises(IndexError, match="rows=5"), att.steer(3, 1.0, rows=[5]):
            model(**inputs)
        assert torch.equal(logits(model, inputs), bare)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bloom", "mamba"])
def test_positions_mean_the_same_tokens_with_and_without_the_cache(family):
    model, ids = tiny(family), inputs_for(family)["input_ids"]
    with attach(model, 1, sae=dictionary()) as att:
        results = {}
        for name, where in {
            "some": {"positions": [0, 4, 12]},
            "last": {"positions": -1},
            "behind": {"positions": slice(-2, None)},
            "all": {},
            "prompt": {"phase": "prompt"},
            "generated": {"phase": "generated"},
        }.items():
            with att.steer(3, 6.0, **where) as edit:
                results[name] = generate(model, ids)
                met = edit.tokens_met
            with att.steer(3, 6.0, **where):
                assert torch.equal(generate(model, ids, use_cache=False), results[name]), name
            per_row = {"some": 3, "last": 1, "behind": 6, "all": 14, "prompt": 10, "generated": 4}
            assert met == 2 * per_row[name], name
    assert family == "bloom" or not torch.equal(results["some"], results["all"])


def test_positions_that_a_model_cannot_count_are_refused():
    model, inputs = tiny("mamba"), inputs_for("mamba")
    with attach(model, 1, sae=dictionary()) as att:
        with att.steer(3, 1.0, positions=[2]) as edit:
            states = model(**inputs, use_cache=True).cache_params
        assert edit.tokens_met == 2
        following = {"input_ids": inputs["input_ids"][:, :1], "cache_params": states}
        with pytest.raises(Unsupported, match="how many tokens came before"), att.steer(3, 1.0, positions=[11]):
            model(**following)
        with att.steer(3, 1.0, positions=[10]) as edit:
            model(**following, attention_mask=torch.ones(2, 11))
        assert edit.tokens_met == 2


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_prompts_of_embeddings_and_in_chunks_are_counted_alike(family):
    model, ids = tiny(family), inputs_for(family)["input_ids"]
    embedded = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": torch.ones_like(ids), **GREEDY}
    with attach(model, 1, sae=dictionary()) as att:
        for where in ({"positions": [2, 7, 11]}, {"positions": -1}, {"phase": "prompt"}, {"phase": "generated"}):
            with att.steer(3, 9.0, **where):
                expected = generate(model, ids)
                assert torch.equal(model.generate(**embedded), expected[:, 10:]), where
                if family == "llama":
                    assert torch.equal(generate(model, ids, prefill_chunk_size=4), expected), where


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_positions_of_beams_mean_the_same_tokens_with_and_without_the_cache(family):
    model, ids = tiny(family), inputs_for(family)["input_ids"]
    with attach(model, 1, sae=dictionary()) as att, att.steer(3, torch.tensor([2.0, 9.0]), positions=[0, 4, 11, 12]):
        cached = generate(model, ids, num_beams=3)
        assert torch.equal(generate(model, ids, num_beams=3, use_cache=False), cached)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_padding_on_either_side_changes_nothing(family):
    model, ids = tiny(family), inputs_for(family, batch=1)["input_ids"]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(14) >= 4).long()[None]
    both = torch.cat([padded, inputs_for(family, batch=1, length=14)["input_ids"]])
    with attach(model, 1, sae=dictionary()) as att:
        for where in ({}, {"positions": [0, 3]}, {"positions": [-1, 11]}, {"positions": slice(2, -3)}):
            with att.steer(3, 6.0, **where) as edit:
                expected = generate(model, ids)
                counted = edit.tokens_changed
            with att.steer(3, 6.0, **where) as edit:
                assert torch.equal(generate(model, padded, attention_mask=mask)[:, 4:], expected)
                assert edit.tokens_changed == counted
            with att.steer(3, 6.0, **where):
                full = torch.cat([mask, torch.ones_like(mask)])
                assert torch.equal(generate(model, both, attention_mask=full)[:1, 4:], expected)
        right = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
        with att.steer(3, 6.0, positions=-1), torch.no_grad():
            alone = model(ids).logits
            shorter = model(right, attention_mask=mask.flip(1)).logits[:, :10]
        torch.testing.assert_close(shorter, alone, atol=1e-5, rtol=1e-5)


def test_a_mask_of_columns_selects_tokens_of_the_prompt():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    chosen = torch.zeros(2, 10, dtype=torch.bool)
    chosen[0, 3] = chosen[1, 7] = True
    bare = logits(model, inputs)
    with attach(model, 1, sae=dictionary()) as att:
        with att.splice(positions=chosen) as edit:
            y = logits(model, inputs)
        assert edit.tokens_met == 2
        assert torch.equal(y[0, :3], bare[0, :3])
        assert torch.equal(y[1, :7], bare[1, :7])
        assert not torch.equal(y[0, 3], bare[0, 3])
        with att.replace(torch.zeros(32), positions=chosen):
            cached = generate(model, inputs["input_ids"])
        with att.replace(torch.zeros(32), positions=chosen):
            assert torch.equal(generate(model, inputs["input_ids"], use_cache=False), cached)
        with pytest.raises(InvalidValue, match="mask"), att.splice(positions=chosen[:, :4]):
            model(**inputs)


def test_assisted_and_prompt_lookup_decoding_equal_greedy():
    model, ids = tiny("llama"), inputs_for("llama", batch=1)["input_ids"]
    with attach(model, 1, sae=dictionary()) as att:
        for where in ({}, {"phase": "generated"}, {"positions": [2, 11, 12]}):
            with att.steer(3, 6.0, **where):
                expected = generate(model, ids)
                assert torch.equal(generate(model, ids, prompt_lookup_num_tokens=2), expected)
                assert torch.equal(generate(model, ids, assistant_model=tiny("llama")), expected)


def test_an_edit_that_meets_no_token_says_so():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    with attach(model, 1, sae=dictionary()) as att:
        with (
            pytest.warns(HfsaeWarning, match=r"steer\(3, 1.0, positions=50\) closed without meeting"),
            att.steer(3, 1.0, positions=50),
        ):
            model(**inputs)
        with pytest.warns(HfsaeWarning, match="bind"), att.steer(3, 1.0):
            pass
        quiet = att.ablate(3)
        with quiet:
            model(**inputs)
        assert quiet.tokens_met == 20


def test_continuous_batching_refuses_what_it_cannot_tell_apart():
    from hfsae.forwards import Forward
    from hfsae.selectors import Selector, Tokens

    tokens = Tokens((1, 16), torch.device("cpu"), Forward(packed=True, shape=(1, 16)))
    with pytest.raises(Unsupported, match="continuous batching"):
        Selector.of(positions=[3]).mask(tokens)
    with pytest.raises(Unsupported, match="continuous batching"):
        tokens.per_row(torch.zeros(2, 1, 1))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_continuous_batching_obeys_applied_edits_and_refuses_others_in_the_callers_thread():
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, prompts = tiny("llama"), [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32)  # else it sizes its cache from the free memory
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1)

    def batched(model=model):
        done = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=small)
        return [output.generated_tokens for output in done.values()]

    bare = batched()
    att = attach(model, 1, sae=dictionary())
    assert batched() == bare
    for opened in (att.steer(3, 20.0), att.record()):
        with opened, pytest.raises(Unsupported, match=r"continuous batching runs in another.*edit\.apply\(\)"):
            batched()
    for edit in (att.steer(3, torch.tensor([1.0, 2.0])), att.steer(3, 1.0, positions=[2])):
        edit.apply()
        with pytest.raises(Unsupported, match="packs prompts into one row"):
            batched()
        att.clear()
    edit = att.steer(3, 20.0).apply()
    steered = batched()
    assert steered != bare
    assert edit.tokens_changed > 0
    copied = copy.deepcopy(model)
    att.detach()
    assert batched() == bare
    assert batched(copied) == steered
