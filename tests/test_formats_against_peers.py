"""Files written by the peers' own classes, and what those classes compute from them; skipped where a peer is absent."""

import json

import pytest
import torch
from conftest import build
from test_formats_saelens_writer import EXPRESSIBLE, make

from hfsae.attach import attach
from hfsae.dictionary import SAE

D, F, OUT, K = 6, 20, 5, 3
X = torch.randn(4, 9, D, generator=torch.Generator().manual_seed(9)) * 2


def randomise(module):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        if "threshold" in name:
            parameter.data.abs_()
    return module


def close(found, expected):
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5, f"relative error {error:.2e}"


SAELENS = {
    "StandardSAE": {},
    "GatedSAE": {},
    "JumpReLUSAE": {},
    "TopKSAE": {"k": K},
    "Transcoder": {"d_out": OUT},
    "SkipTranscoder": {"d_out": OUT},
    "JumpReLUTranscoder": {"d_out": OUT},
    "JumpReLUSkipTranscoder": {"d_out": OUT},
}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("kind", SAELENS)
def test_saelens_writes_what_we_read(kind, normalize, centred, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    transcoder = "Transcoder" in kind
    if transcoder and centred:
        pytest.skip("SAELens' transcoders subtract nothing")
    extra = SAELENS[kind] | {"apply_b_dec_to_input": centred, "normalize_activations": normalize}
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="gpt2-small", hook_name="blocks.3.hook_resid_post")
    config = getattr(sae_lens, f"{kind}Config")(d_in=D, d_sae=F, metadata=metadata, **extra)
    theirs = randomise(getattr(sae_lens, kind)(config))
    theirs.save_model(tmp_path / "a")
    ours = SAE.from_pretrained(tmp_path / "a")
    close(ours.encode(X), theirs.encode(X))
    if not (transcoder and "Skip" in kind and normalize == "layer_norm"):
        close(ours(X), theirs(X))
    assert (ours.config.site, ours.config.layer) == ("resid_post", 3)


@pytest.mark.parametrize("rescale", [True, False])
def test_saelens_rescaled_topk(rescale, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    theirs = randomise(
        sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=D, d_sae=F, k=K, rescale_acts_by_decoder_norm=rescale))
    )
    theirs.save_model(tmp_path / "a")
    ours = SAE.from_pretrained(tmp_path / "a")
    close(ours.encode(X), theirs.encode(X))
    close(ours(X), theirs(X))


@pytest.mark.parametrize("fields", [f for f in EXPRESSIBLE.values() if f.get("dtype") is None])
def test_saelens_reads_what_we_write(fields, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    ours = make(**fields)
    theirs = sae_lens.SAE.load_from_disk(ours.save_pretrained(tmp_path / "a", format="saelens"))
    close(ours.encode(X), theirs.encode(X))
    close(ours(X), theirs(X))


CLASSES = {
    "AutoEncoder": ("dictionary", {}),
    "AutoEncoderNew": ("dictionary", {}),
    "GatedAutoEncoder": ("dictionary", {}),
    "JumpReluAutoEncoder": ("dictionary", {}),
    "AutoEncoderTopK": ("trainers.top_k", {"k": K}),
    "BatchTopKSAE": ("trainers.batch_top_k", {"k": K}),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k", {"k": K, "group_sizes": [8, 12]}),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_writes_what_we_read(kind, tmp_path):
    pytest.importorskip("dictionary_learning")
    from importlib import import_module

    module, extra = CLASSES[kind]
    theirs = randomise(getattr(import_module(f"dictionary_learning.{module}"), kind)(D, F, **extra))
    if "BatchTopK" in kind:
        theirs.threshold.fill_(0.6)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    ours = SAE.from_pretrained(tmp_path)
    x = X.flatten(0, 1)
    close(ours.encode(x), theirs.encode(x))
    close(ours(x), theirs(x))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("transcode", [True, False])
def test_sparsify_writes_what_we_read(transcode, skip, tmp_path):
    sparsify = pytest.importorskip("sparsify")
    if skip and not transcode:
        pytest.skip("only a transcoder can skip here")
    config = sparsify.SparseCoderConfig(k=K, num_latents=F, transcode=transcode, skip_connection=skip)
    theirs = randomise(sparsify.SparseCoder(D, config))
    theirs.save_to_disk(tmp_path / "layers.4.mlp")
    ours = SAE.from_pretrained(tmp_path / "layers.4.mlp")
    x = X.flatten(0, 1)
    acts, ids, _ = theirs.encode(x)
    close(ours.encode(x), torch.zeros(len(x), F).scatter(-1, ids, acts))
    close(ours(x), theirs(x).sae_out)


WIDTH, LAYER = 32, 1


def peer_of(kind, folder):
    """Write a dictionary of the tiny model's width with the peer's own class; return what it reconstructs."""
    if kind == "sparsify":
        sparsify = pytest.importorskip("sparsify")
        theirs = randomise(sparsify.SparseCoder(WIDTH, sparsify.SparseCoderConfig(k=K, num_latents=64)))
        theirs.save_to_disk(folder / "layers.1")
        return folder / "layers.1", lambda x: theirs(x.flatten(0, 1)).sae_out.reshape(x.shape)
    if kind == "dictionary_learning":
        pytest.importorskip("dictionary_learning")
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE

        theirs = randomise(BatchTopKSAE(WIDTH, 64, K))
        theirs.threshold.fill_(0.6)
        torch.save(theirs.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": "BatchTopKSAE", "activation_dim": WIDTH, "dict_size": 64, "layer": LAYER}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer | {"lm_name": "gpt2"}, "buffer": {}}))
        return folder, theirs
    sae_lens = pytest.importorskip("sae_lens")
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="gpt2", hook_name=f"blocks.{LAYER}.hook_resid_post")
    config = getattr(sae_lens, f"{kind}Config")
    theirs = randomise(getattr(sae_lens, kind)(config(d_in=WIDTH, d_sae=64, metadata=metadata, **SAELENS[kind])))
    theirs.save_model(folder)
    return folder, theirs


@pytest.mark.parametrize(
    "kind", ["StandardSAE", "JumpReLUSAE", "TopKSAE", "GatedSAE", "dictionary_learning", "sparsify"]
)
def test_splice_is_the_peers_reconstruction_in_place_of_the_activation(kind, tmp_path, ids):
    folder, theirs = peer_of(kind, tmp_path)
    model = build("gpt2")

    def replaced(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        return (theirs(first), *output[1:]) if isinstance(output, tuple) else theirs(first)

    with torch.no_grad():
        clean = model(ids).logits
        handle = model.transformer.h[LAYER].register_forward_hook(replaced)
        expected = model(ids).logits
        handle.remove()
        with attach(model, LAYER, sae=folder, force=True) as att, att.splice():
            close(model(ids).logits, expected)
    assert not torch.allclose(clean, expected, atol=1e-2)
