"""What holds for every model: idle and detached it is itself; edited it is what a plain hook makes of it."""

import copy
import gc
import io
import weakref

import pytest
import torch
from architectures import tiny as tiny_architecture
from attach_cases import FAMILIES, dictionary, hooked, inputs_for, logits, tiny, traces
from torch import nn

from hfsae.attach import attach, attachments, detach_all
from hfsae.errors import HfsaeWarning, InvalidValue, OutOfRange
from hfsae.sites import resolve


@pytest.mark.parametrize("family", FAMILIES)
def test_idle_spliced_ablated_and_detached_models_compute_what_they_should(family):
    model, inputs, sae = tiny(family), inputs_for(family), dictionary()
    before, bare = traces(model), logits(model, inputs)
    att = attach(model, 1, sae=sae, force=True)
    module = att.point.module
    assert torch.equal(logits(model, inputs), bare)
    with att.splice():
        spliced = logits(model, inputs)
    assert torch.equal(spliced, hooked(model, module, sae, inputs))
    with att.ablate(range(64)) as edit:
        ablated = logits(model, inputs)
    by_hook = hooked(model, module, lambda x: x - sae.encode(x)[..., :64] @ sae.W_dec[:64], inputs)
    torch.testing.assert_close(ablated, by_hook, atol=1e-5, rtol=1e-5)
    assert edit.tokens_changed > 0
    assert not torch.equal(ablated, bare)
    assert torch.equal(logits(model, inputs), bare)
    att.detach()
    att.detach()
    assert traces(model) == before
    assert torch.equal(logits(model, inputs), bare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "batchtopk", "matching_pursuit"])
def test_an_edit_that_changes_no_feature_is_bit_for_bit_the_model(architecture, dtype):
    model, inputs = tiny("llama").to(dtype), inputs_for("llama")
    sae = dictionary(architecture, **({"k": 8} if architecture in ("batchtopk", "matching_pursuit") else {}))
    bare = logits(model, inputs)
    with attach(model, 1, sae=sae) as att:
        for edit in (att.scale(range(96), 1.0), att.clamp(range(96), min=0.0), att.steer(3, 0.0)):
            with edit:
                assert torch.equal(logits(model, inputs), bare)
            assert edit.tokens_changed == 0
            assert edit.tokens_met == 20


def test_a_hook_on_the_features_reads_and_edits_them_all():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)

    def clear(_module, _args, f):
        assert f.shape == (2, 10, 96)
        f[..., :64] = 0

    with attach(model, 1, sae=dictionary()) as att:
        with att.ablate(range(64)):
            expected = logits(model, inputs)
        handle = att.mount.features.register_forward_hook(clear)
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)
        handle.remove()
        assert not torch.equal(expected, bare)
        assert torch.equal(logits(model, inputs), bare)


def test_names_and_state_of_the_model_stay_its_own_while_attached(tmp_path):
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    state, modules = model.state_dict(), [n for n, _ in model.named_modules()]
    parameters = [n for n, _ in model.named_parameters()]
    attach(model, 1, sae=dictionary())
    assert list(model.state_dict()) == list(state)
    assert [n for n, _ in model.named_modules()] == modules
    assert [n for n, _ in model.named_parameters()] == parameters
    model.load_state_dict(state, strict=True)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(loaded.eval(), inputs), bare)


def test_casting_the_model_leaves_the_dictionary_in_its_own_dtype():
    model, sae = tiny("llama"), dictionary()
    weights = sae.W_dec.clone()
    att = attach(model, 1, sae=sae)
    model.to(torch.bfloat16)
    assert att.dictionary.W_dec.dtype == torch.float32
    assert torch.equal(sae.W_dec, weights)
    with att.splice():
        assert logits(model, inputs_for("llama")).dtype == torch.bfloat16


def test_autocast_does_not_reach_into_the_dictionary():
    model, sae = tiny("llama"), dictionary()
    seen = []
    block = model.model.layers[1]
    att = attach(model, 1, sae=sae)
    raw = block.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        logits(model, inputs_for("llama"))
        with att.splice():
            logits(model, inputs_for("llama"))
        with att.set([3, 5, 8], 7.3):
            logits(model, inputs_for("llama"))
    raw.remove()
    x = seen[0].float()
    assert torch.equal(seen[1], sae(x).to(seen[0].dtype))
    changed = x + (7.3 - sae.encode(x)[..., [3, 5, 8]]) @ sae.W_dec[[3, 5, 8]]
    assert torch.equal(seen[2], changed.to(seen[0].dtype))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "vit", "mixtral"])
@pytest.mark.parametrize("used_before", [False, True])
def test_hidden_states_hold_what_the_attachment_put_there(family, used_before):
    model, inputs, sae = tiny(family), inputs_for(family), dictionary()
    key = "decoder_hidden_states" if family == "t5" else "hidden_states"
    if used_before:
        model(**inputs, output_hidden_states=True)
    att = attach(model, 1, sae=sae)
    with att.splice(), torch.no_grad():
        states = getattr(model(**inputs, output_hidden_states=True), key)
    with torch.no_grad():
        raw = getattr(model(**inputs, output_hidden_states=True), key)
    assert torch.equal(states[2], sae(raw[2]))


def test_two_dictionaries_on_one_block_act_in_order_and_leave_in_any_order():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    one, two = dictionary(seed=3), dictionary("topk", seed=4)
    bare, block = logits(model, inputs), model.transformer.h[1]
    first, second = attach(model, 1, sae=one), attach(model, 1, sae=two, name="second")
    assert attachments(model) == [first, second]
    first.splice().apply()
    second.splice().apply()
    assert torch.equal(logits(model, inputs), _both(model, one, two, inputs))
    first.detach()
    assert attachments(model) == [second]
    both = logits(model, inputs)
    second.detach()
    assert torch.equal(both, hooked(model, block, two, inputs))
    assert torch.equal(logits(model, inputs), bare)


def _both(model: nn.Module, one: nn.Module, two: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    copied = copy.deepcopy(model)
    detach_all(copied)
    return hooked(copied, copied.transformer.h[1], lambda x: two(one(x)), inputs)


def test_a_taken_or_impossible_name_is_refused():
    model = tiny("gpt2")
    attach(model, 1, sae=dictionary())
    with pytest.raises(InvalidValue, match="already has an attribute 'sae'"):
        attach(model, 1, sae=dictionary())
    for name in ("mlp", "output", "not a name"):
        with pytest.raises(InvalidValue, match="name"):
            attach(model, 1, sae=dictionary(), name=name)
    detach_all(model)
    assert attachments(model) == []


def test_an_exception_inside_an_edit_leaves_the_model_as_it_was():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    bare = logits(model, inputs)
    att = attach(model, 1, sae=dictionary())

    def fail(_x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), att.replace(fail):
        model(**inputs)
    assert torch.equal(logits(model, inputs), bare)
    with pytest.raises(RuntimeError, match="mine"), attach(model, 0, sae=dictionary(), name="other"):
        raise RuntimeError("mine")
    assert attachments(model) == [att]


def test_a_deep_copy_keeps_its_own_splice():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    before = traces(model)
    att = attach(model, 1, sae=dictionary())
    att.splice().apply()
    spliced = logits(model, inputs)
    copied = copy.deepcopy(model)
    att.detach()
    assert torch.equal(logits(copied, inputs), spliced)
    (other,) = attachments(copied)
    assert other.mount is not att.mount
    assert other.site == att.site
    assert other.live
    assert other.point.module is copied.transformer.h[1]
    other.clear()
    assert torch.equal(logits(copied, inputs), logits(model, inputs))
    other.detach()
    assert traces(copied) == before


def test_a_pickled_model_keeps_its_applied_edits():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    att = attach(model, 1, sae=dictionary("topk"))
    (att.steer(3, 2.0) | att.ablate(5)).apply()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert attachments(loaded)[0].module_path == att.module_path


def test_scan_on_the_meta_device_leaves_the_weights_where_they_are():
    from torch._subclasses import FakeTensorMode

    model, sae = tiny("gpt2"), dictionary()
    weights = sae.W_enc.clone()
    with attach(model, 1, sae=sae) as att:
        att.splice().apply()
        y = att.mount.act(torch.empty(2, 5, 32, device="meta"))
        assert y.shape == (2, 5, 32)
        with FakeTensorMode():
            assert att.mount.act(torch.empty(2, 5, 32)).shape == (2, 5, 32)
    assert sae.W_enc.device.type == "cpu"
    assert torch.equal(sae.W_enc, weights)


def test_layers_count_from_either_end():
    model = tiny("gpt2")
    with attach(model, -1, sae=dictionary()) as att:
        assert att.module_path == "transformer.h.2"
    with pytest.raises(OutOfRange, match="3 blocks"):
        attach(model, 8, sae=dictionary())


def test_detached_dictionaries_are_freed_without_the_collector():
    model, sae = tiny("gpt2"), dictionary()
    att = attach(model, 1, sae=sae)
    gc.collect()
    gc.disable()
    try:
        mount, weights = weakref.ref(att.mount), weakref.ref(sae)
        att.detach()
        del att, sae
        assert mount() is None
        assert weights() is None
    finally:
        gc.enable()


def test_inference_mode_equals_no_grad():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    with attach(model, 1, sae=dictionary()) as att, att.ablate(3) | att.splice():
        expected = logits(model, inputs)
        with torch.inference_mode():
            assert torch.equal(model(**inputs).logits, expected)


def test_a_replaced_module_is_noticed():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    att = attach(model, module="transformer.h.1.mlp", sae=dictionary())
    assert att.live
    model.transformer.h[1].mlp = nn.Identity()
    assert not att.live
    with pytest.warns(HfsaeWarning, match="was replaced"):
        model(**inputs)
    model(**inputs)
    att.detach()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("site", ["mlp_in", "mlp_act", "mlp_out"])
def test_rows_and_positions_are_told_apart_where_the_model_runs_them_as_one(site):
    model, inputs = tiny_architecture("causal", "opt"), inputs_for("gpt2")
    point = resolve(model, 1, site)
    assert point.flat
    sae = dictionary(d_in=point.width)

    def steered(x):
        x = x.view(2, 10, -1).clone()
        x[1, [2, 9]] += 5.0 * sae.W_dec[3]
        return x.view(20, -1)

    def on_input(_module, args):
        return (steered(args[0]),)

    if point.io == "input":
        handle = point.module.register_forward_pre_hook(on_input)
    else:
        handle = point.module.register_forward_hook(lambda _module, _args, x: steered(x))
    by_hand = logits(model, inputs)
    handle.remove()
    with attach(model, 1, site, sae=sae) as att:
        with att.steer(3, 5.0, positions=[2, -1], rows=1) as edit:
            torch.testing.assert_close(logits(model, inputs), by_hand, atol=1e-5, rtol=1e-5)
        assert edit.tokens_changed == 2
        options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones(2, 10)}
        with att.steer(3, torch.tensor([0.0, 9.0]), positions=[4, 11]):
            cached = model.generate(inputs["input_ids"], **options)
        with att.steer(3, 9.0, positions=[4, 11], rows=[1]):
            assert torch.equal(model.generate(inputs["input_ids"], use_cache=False, **options), cached)


def test_shared_blocks_are_told():
    from transformers import AlbertConfig, AlbertModel

    from hfsae.errors import HfsaeError

    model = AlbertModel(
        AlbertConfig(
            vocab_size=96,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )
    with pytest.raises(HfsaeError, match="1 blocks"):
        attach(model, 1, sae=dictionary())
    assert attachments(model) == []
