"""Gradients through edits: detached errors, and layers that backward recomputes."""

import pytest
import torch
from attach_cases import dictionary, inputs_for, tiny

from hfsae.attach import attach

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at turning checkpointing on


def gradients(model, inputs, edit, *, late=False):
    model.zero_grad()
    with edit:
        loss = model(**inputs).logits.square().mean()
        if not late:
            loss.backward()
    if late:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("module", [None, "model.layers.1.mlp", "model.layers.1.self_attn"])
def test_recomputed_layers_see_the_edits_of_their_own_forward(module, reentrant):
    model, inputs = tiny("llama").train(), inputs_for("llama")
    place = {"layer": 1} if module is None else {"module": module}
    with attach(model, sae=dictionary(), force=True, **place) as att:
        edits = [att.steer(3, 3.0, positions=[1, 4]) | att.scale(range(4, 64), 2.0), att.ablate(range(64))]
        plain = [gradients(model, inputs, edit) for edit in edits]
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        late = [gradients(model, inputs, edit, late=True) for edit in edits]
    for one, other in zip(plain, late, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-4)


def test_detaching_leaves_the_checkpointing_functions_as_they_were():
    model, inputs = tiny("llama").train(), inputs_for("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = [layer._gradient_checkpointing_func for layer in model.model.layers]
    with attach(model, module="model.layers.1.mlp", sae=dictionary()) as att, att.ablate(3):
        model(**inputs).logits.sum().backward()
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_detached_error_lets_gradients_pass_through_the_features_alone(dtype):
    model, inputs, sae = tiny("llama").to(dtype), inputs_for("llama"), dictionary()
    bare = model(**inputs).logits
    embedding = model.model.embed_tokens.weight

    def reference(_module, _args, x):
        f = sae.encode(x.to(torch.float32))
        return (x.detach() + (f - f.detach()) @ sae.W_dec).to(x.dtype)

    handle = model.model.layers[1].register_forward_hook(reference)
    (expected,) = torch.autograd.grad(model(**inputs).logits.float().square().sum(), embedding)
    handle.remove()
    with attach(model, 1, sae=sae, error="detach"):
        y = model(**inputs).logits
        assert torch.equal(y, bare)
        (found,) = torch.autograd.grad(y.float().square().sum(), embedding)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.abs().sum() > 0


def test_a_trainable_dictionary_is_seen_by_optimizers():
    model, inputs = tiny("gpt2"), inputs_for("gpt2")
    sae = dictionary().requires_grad_(True)
    names = {name for name, _ in model.named_parameters()}
    with attach(model, 1, sae=sae, trainable=True) as att:
        assert {name for name, _ in model.named_parameters()} - names == {
            f"transformer.h.1.sae.dictionary.{name}" for name, _ in sae.named_parameters()
        }
        with att.splice():
            model(**inputs).logits.sum().backward()
        assert sae.W_enc.grad.abs().sum() > 0
        assert sae.W_dec.grad.abs().sum() > 0
    assert {name for name, _ in model.named_parameters()} == names
