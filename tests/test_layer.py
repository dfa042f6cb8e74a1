"""SAELayer: a dictionary in place of a layer."""

import pytest
import torch

from hfsae import SAE, SAEConfig, SAELayer
from hfsae.errors import InvalidValue, Unsupported


@pytest.fixture
def sae() -> SAE:
    torch.manual_seed(0)
    return SAE(SAEConfig(architecture="topk", d_in=32, d_sae=64, k=4))


def test_observing_leaves_every_output_as_it_was(tiny_model, ids, sae):
    before = tiny_model(ids).logits
    blocks = tiny_model.base_model.h if hasattr(tiny_model.base_model, "h") else tiny_model.base_model.layers
    blocks[1] = SAELayer(blocks[1], sae)
    assert torch.equal(tiny_model(ids).logits, before)
    assert blocks[1].features.shape == (2, 12, 64)


def test_splicing_equals_a_plain_hook(tiny_model, ids, sae):
    blocks = tiny_model.base_model.h if hasattr(tiny_model.base_model, "h") else tiny_model.base_model.layers
    handle = blocks[1].register_forward_hook(
        lambda _m, _a, out: (sae(out[0]), *out[1:]) if isinstance(out, tuple) else sae(out)
    )
    wanted = tiny_model(ids).logits
    handle.remove()
    blocks[1] = SAELayer(blocks[1], sae, mode="splice")
    assert torch.equal(tiny_model(ids).logits, wanted)
    blocks[1] = blocks[1].unwrap()
    assert not torch.equal(tiny_model(ids).logits, wanted)


def test_generate_and_training_pass_through(tiny_gpt2, ids, sae):
    tiny_gpt2.transformer.h[1] = SAELayer(tiny_gpt2.transformer.h[1], sae, mode="splice")
    written = tiny_gpt2.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    again = tiny_gpt2.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, use_cache=False
    )
    assert torch.equal(written, again)
    tiny_gpt2(ids, labels=ids).loss.backward()
    assert sae.W_dec.grad is not None
    assert sae.W_dec.grad.abs().sum() > 0


def test_attributes_are_those_of_the_layer(tiny_gpt2, sae):
    block = tiny_gpt2.transformer.h[1]
    assert SAELayer(block, sae).attn is block.attn


def test_what_cannot_work_is_refused(tiny_gpt2, sae):
    block = tiny_gpt2.transformer.h[1]
    with pytest.raises(InvalidValue, match=r"mode='splise' is unknown\. Did you mean 'splice'"):
        SAELayer(block, sae, mode="splise")
    transcoder = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=64, d_out=32, k=4, write_site="mlp_out"))
    with pytest.raises(Unsupported, match=r"Use hfsae\.attach"):
        SAELayer(block, transcoder)


def test_the_dictionary_is_saved_with_the_model_and_loads_back(tiny_gpt2, ids, sae):
    tiny_gpt2.transformer.h[1] = SAELayer(tiny_gpt2.transformer.h[1], sae, mode="splice")
    spliced = tiny_gpt2(ids).logits
    state = {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}
    assert "transformer.h.1.dictionary.W_dec" in state
    with torch.no_grad():
        sae.W_dec.zero_()
    assert not torch.equal(tiny_gpt2(ids).logits, spliced)
    tiny_gpt2.load_state_dict(state)
    assert torch.equal(tiny_gpt2(ids).logits, spliced)
