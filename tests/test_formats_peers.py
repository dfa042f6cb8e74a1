"""Every foreign format: files by its documented layout, encode and decode by a computation written from that layout."""

import io
import json
import math
import zipfile
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hfsae.dictionary import SAE
from hfsae.errors import CheckpointError, HfsaeWarning
from hfsae.formats import FORMATS, detect, named

D, F, OUT, K = 6, 10, 5, 3


@dataclass
class Sample:
    """A saved dictionary, and what it must compute."""

    path: object
    encode: object
    decode: object
    belongs: dict = field(default_factory=dict)
    format: str = ""


def weights(seed=0, d_out=D):
    """Random parameters in our orientation, every bias random, no dimension equal to another."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "W_enc": random(F, D),
        "b_enc": random(F),
        "W_dec": random(F, d_out),
        "b_dec": random(d_out),
        "threshold": random(F).abs(),
    }


def jump(z, threshold):
    return z * (z > threshold) * (z > 0)


def keep_top(z, k):
    values, ids = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, ids, values.relu())


def linear(w):
    return lambda f: f @ w["W_dec"] + w["b_dec"]


def plain(w, x):
    return x @ w["W_enc"].T + w["b_enc"]


def centred(w, x):
    return (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]


def saelens(folder, architecture, tensors, cfg=None, metadata=None, legacy=False):
    folder.mkdir(parents=True, exist_ok=True)
    values = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", **(cfg or {})}
    about = {"model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre", **(metadata or {})}
    (folder / "cfg.json").write_text(json.dumps(values | about if legacy else values | {"metadata": about}))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def saelens_plain(w, *more):
    return {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]} | {
        k: w[k] for k in more
    }


GPT2 = {"base_model": "openai-community/gpt2", "site": "resid_pre", "layer": 8}


def saelens_standard(tmp):
    w = weights()
    path = saelens(tmp / "a", "standard", saelens_plain(w), {"apply_b_dec_to_input": True})
    return Sample(path, lambda x: centred(w, x).relu(), linear(w), GPT2, "saelens")


def saelens_standard_not_centred(tmp):
    w = weights()
    path = saelens(tmp / "a", "standard", saelens_plain(w), {"apply_b_dec_to_input": False})
    return Sample(path, lambda x: plain(w, x).relu(), linear(w), GPT2, "saelens")


def saelens_layer_norm(tmp):
    w = weights()
    path = saelens(tmp / "a", "topk", saelens_plain(w), {"k": K, "normalize_activations": "layer_norm"})

    def encode(x):
        x = x - x.mean(-1, keepdim=True)
        return keep_top(centred(w, x / (x.std(-1, keepdim=True) + 1e-5)), K)

    return Sample(path, encode, None, GPT2, "saelens")


def saelens_jumprelu(tmp):
    w = weights()
    path = saelens(tmp / "a", "jumprelu", saelens_plain(w, "threshold"), {"apply_b_dec_to_input": False})
    return Sample(path, lambda x: jump(plain(w, x), w["threshold"]), linear(w), GPT2, "saelens")


def saelens_gated(tmp):
    w = weights()
    gate, magnitude, bias = weights(1)["b_enc"], weights(2)["b_enc"], weights(3)["b_enc"]
    tensors = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    path = saelens(tmp / "a", "gated", tensors | {"b_gate": gate, "r_mag": magnitude, "b_mag": bias})

    def encode(x):
        z = (x - w["b_dec"]) @ w["W_enc"].T
        return (z + gate > 0) * (z * magnitude.exp() + bias).relu()

    return Sample(path, encode, linear(w), GPT2, "saelens")


def saelens_rescaled_topk(tmp):
    w = weights()
    path = saelens(tmp / "a", "topk", saelens_plain(w), {"k": K, "rescale_acts_by_decoder_norm": True})
    norm = w["W_dec"].norm(dim=1)
    return Sample(
        path, lambda x: keep_top(centred(w, x) * norm, K), lambda f: (f / norm) @ w["W_dec"] + w["b_dec"], GPT2
    )


def saelens_skip_transcoder(tmp):
    w, skip = weights(d_out=OUT), torch.randn(OUT, D)
    cfg = {"d_out": OUT, "apply_b_dec_to_input": False}
    hooks = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    tensors = saelens_plain(w, "threshold") | {"W_skip": skip}
    path = saelens(tmp / "a", "jumprelu_skip_transcoder", tensors, cfg, hooks)
    belongs = {"site": "mlp_in", "layer": 3, "write_site": "mlp_out", "write_layer": 3}
    sample = Sample(path, lambda x: jump(plain(w, x), w["threshold"]), None, belongs, "saelens")
    sample.forward = lambda x: linear(w)(sample.encode(x)) + x @ skip.T
    return sample


def saelens_legacy_topk(tmp):
    w = weights()
    cfg = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    tensors = saelens_plain(w) | {"scaling_factor": torch.ones(F)}
    about = {"hook_point": "blocks.8.hook_resid_pre"}
    path = saelens(tmp / "a", "standard", tensors, cfg, about, legacy=True)
    return Sample(path, lambda x: keep_top(centred(w, x), K), linear(w), GPT2, "saelens")


def saelens_centred_gpt2(tmp):
    w = weights()
    folder = tmp / "models--jbloom--GPT2-Small-SAEs-Reformatted" / "snapshots" / "0" / "blocks.8.hook_resid_pre"
    path = saelens(folder, "standard", saelens_plain(w), legacy=True)
    return Sample(path, lambda x: centred(w, x - x.mean(-1, keepdim=True)).relu(), linear(w), GPT2, "saelens")


def gemma_scope(tmp):
    w = weights()
    folder = tmp / "models--google--gemma-scope-9b-it-att" / "snapshots" / "0" / "layer_20/width_16k/average_l0_91"
    folder.mkdir(parents=True)
    arrays = {k: v.numpy() for k, v in w.items()} | {"W_enc": w["W_enc"].T.contiguous().numpy()}
    np.savez(folder / "params.npz", **arrays)
    belongs = {"base_model": "google/gemma-2-9b-it", "site": "attn_z", "layer": 20, "exclude_special_tokens": True}
    return Sample(folder, lambda x: jump(plain(w, x), w["threshold"]), linear(w), belongs, "gemma_scope")


def gemma_scope_2_files(folder, w, config, **more):
    folder.mkdir(parents=True)
    tensors = {"w_enc": w["W_enc"].T, "w_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    tensors |= {"threshold": w["threshold"], **more}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", **config}))
    return folder


def gemma_scope_2(tmp):
    w = weights()
    config = {"model_name": "gemma-v3-270m-pt", "hf_hook_point_in": "model.layers.5.self_attn.o_proj.input", "width": F}
    path = gemma_scope_2_files(tmp / "attn_out_all" / "layer_5_width_16k_l0_big", w, config)
    belongs = {"base_model": "google/gemma-3-270m", "site": "attn_z", "layer": 5}
    return Sample(path, lambda x: jump(plain(w, x), w["threshold"]), linear(w), belongs, "gemma_scope_2")


def gemma_scope_2_without_config(tmp):
    w = weights()
    root = tmp / "models--google--gemma-scope-2-4b-it" / "snapshots" / "0"
    path = gemma_scope_2_files(root / "mlp_out_all" / "layer_7_width_16k_l0_big", w, None)
    belongs = {"base_model": "google/gemma-3-4b-it", "site": "mlp_out", "layer": 7}
    return Sample(path, lambda x: jump(plain(w, x), w["threshold"]), linear(w), belongs, "gemma_scope_2")


def gemma_scope_2_transcoder(tmp):
    w, affine = weights(d_out=OUT), torch.randn(D, OUT)
    block = "model.layers.5"
    config = {"model_name": "gemma-3-1b-pt", "affine_connection": True}
    config |= {"hf_hook_point_in": f"{block}.pre_feedforward_layernorm.output"}
    config |= {"hf_hook_point_out": f"{block}.post_feedforward_layernorm.output"}
    path = gemma_scope_2_files(tmp / "transcoder_all" / "x", w, config, affine_skip_connection=affine)
    belongs = {"site": "mlp_in", "layer": 5, "write_site": "mlp_out", "write_layer": 5}
    sample = Sample(path, lambda x: jump(plain(w, x), w["threshold"]), None, belongs, "gemma_scope_2")
    sample.forward = lambda x: linear(w)(sample.encode(x)) + x @ affine
    return sample


def dictionary_learning(tmp, kind, state):
    folder = tmp / "resid_post_layer_3" / "trainer_0"
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "EleutherAI/pythia-70m"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return folder


PYTHIA = {"base_model": "EleutherAI/pythia-70m", "site": "resid_post", "layer": 3}


def as_linear(w):
    return {"encoder.weight": w["W_enc"], "decoder.weight": w["W_dec"].T.contiguous()}


def dl_auto_encoder(tmp):
    w = weights()
    path = dictionary_learning(tmp, "AutoEncoder", as_linear(w) | {"encoder.bias": w["b_enc"], "bias": w["b_dec"]})
    return Sample(path, lambda x: centred(w, x).relu(), linear(w), PYTHIA, "dictionary_learning")


def dl_auto_encoder_new(tmp):
    w = weights()
    state = as_linear(w) | {"encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
    return Sample(dictionary_learning(tmp, "AutoEncoderNew", state), lambda x: plain(w, x).relu(), linear(w), PYTHIA)


def dl_gated(tmp):
    w, gate, magnitude = weights(), weights(1)["b_enc"], weights(2)["b_enc"]
    state = as_linear(w) | {"decoder_bias": w["b_dec"], "r_mag": magnitude, "gate_bias": gate, "mag_bias": w["b_enc"]}

    def encode(x):
        z = (x - w["b_dec"]) @ w["W_enc"].T
        return (z + gate > 0) * (z * magnitude.exp() + w["b_enc"]).relu()

    return Sample(dictionary_learning(tmp, "GatedAutoEncoder", state), encode, linear(w), PYTHIA)


def dl_top_k(tmp):
    w = weights()
    state = as_linear(w) | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
    state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    return Sample(
        dictionary_learning(tmp, "AutoEncoderTopK", state), lambda x: keep_top(centred(w, x), K), linear(w), PYTHIA
    )


def dl_batch_top_k(tmp):
    w = weights()
    state = as_linear(w) | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
    state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
    return Sample(
        dictionary_learning(tmp, "BatchTopKSAE", state), lambda x: jump(centred(w, x), 0.7), linear(w), PYTHIA
    )


def dl_matryoshka(tmp):
    w = weights()
    state = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.7), "group_sizes": torch.tensor([4, 6])}
    belongs = PYTHIA | {"group_sizes": (4, 6)}
    return Sample(
        dictionary_learning(tmp, "MatryoshkaBatchTopKSAE", state),
        lambda x: jump(centred(w, x), 0.7),
        linear(w),
        belongs,
    )


def dl_jump_relu(tmp):
    w = weights()
    state = w | {"W_enc": w["W_enc"].T.contiguous()}
    return Sample(
        dictionary_learning(tmp, "JumpReluAutoEncoder", state),
        lambda x: jump(plain(w, x), w["threshold"]),
        linear(w),
        PYTHIA,
    )


def dl_interrupted(tmp):
    w, norm = weights(), 3.5
    state = as_linear(w) | {"encoder.bias": w["b_enc"], "bias": w["b_dec"]}
    path = dictionary_learning(tmp, "AutoEncoder", {"step": 5, "ae": state, "norm_factor": norm})
    return Sample(path, lambda x: norm * centred(w, x / norm).relu(), lambda f: norm * linear(w)(f / norm), PYTHIA)


def qwen_scope(tmp):
    w = weights()
    folder = tmp / "models--Qwen--SAE-Res-Qwen3-8B-Base-W64K-L0_3" / "snapshots" / "0"
    folder.mkdir(parents=True)
    state = {"W_enc": w["W_enc"], "W_dec": w["W_dec"].T.contiguous(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    torch.save(state, folder / "layer11.sae.pt")
    belongs = {"base_model": "Qwen/Qwen3-8B-Base", "site": "resid_post", "layer": 11, "k": 3}
    return Sample(folder / "layer11.sae.pt", lambda x: keep_top(plain(w, x), K), linear(w), belongs, "qwen_scope")


def sparsify(tmp):
    w = weights()
    folder = tmp / "run" / "layers.10"
    folder.mkdir(parents=True)
    (tmp / "run" / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "dataset": "pile"}))
    cfg = {"activation": "topk", "expansion_factor": 32, "num_latents": F, "k": K, "d_in": D, "normalize_decoder": True}
    (folder / "cfg.json").write_text(json.dumps(cfg | {"skip_connection": False, "transcode": False}))
    tensors = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file(tensors, folder / "sae.safetensors")
    belongs = {"base_model": "EleutherAI/pythia-160m", "site": "resid_post", "layer": 10}
    return Sample(folder, lambda x: keep_top(centred(w, x), K), linear(w), belongs, "sparsify")


def sparsify_transcoder(tmp):
    w, skip = weights(), torch.randn(D, D)
    folder = tmp / "layers.4.mlp"
    folder.mkdir(parents=True)
    cfg = {"num_latents": F, "k": K, "d_in": D, "skip_connection": True, "transcode": True}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    tensors = {"encoder.weight": w["W_enc"], "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file(tensors | {"W_skip": skip}, folder / "sae.safetensors")
    belongs = {"site": "mlp_in", "layer": 4, "write_site": "mlp_out", "write_layer": 4}
    sample = Sample(folder, lambda x: keep_top(plain(w, x), K), None, belongs, "sparsify")
    sample.forward = lambda x: linear(w)(sample.encode(x)) + x @ skip.T
    return sample


def llama_scope(tmp):
    w, norm, threshold = weights(), 2.5, 0.4
    folder = tmp / "Llama3_1-8B-Base-L15R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    hook = "blocks.15.hook_resid_post"
    values = {"d_model": D, "d_sae": F, "jump_relu_threshold": threshold, "hook_point_in": hook, "hook_point_out": hook}
    values |= {"dataset_average_activation_norm": {"in": norm, "out": norm}, "act_fn": "jumprelu"}
    (folder / "hyperparams.json").write_text(json.dumps(values))
    save_file(
        as_linear(w) | {"encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]},
        folder / "checkpoints/final.safetensors",
    )
    s = math.sqrt(D) / norm
    belongs = {"site": "resid_post", "layer": 15}
    return Sample(
        folder, lambda x: jump(plain(w, s * x), threshold * s), lambda f: linear(w)(f) / s, belongs, "llama_scope"
    )


def llama_scope_current(tmp):
    w, norm = weights(), 2.5
    folder = tmp / "L3R"
    folder.mkdir()
    hook = "blocks.3.hook_resid_post"
    values = {"d_model": D, "expansion_factor": 2, "act_fn": "jumprelu", "hook_point_in": hook, "hook_point_out": hook}
    values |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {"W_E": w["W_enc"].T.contiguous(), "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"]}
    tensors["activation_function.log_jumprelu_threshold"] = w["threshold"].log()
    save_file(
        tensors | {f"dataset_average_activation_norm.{hook}": torch.tensor(norm)}, folder / "sae_weights.safetensors"
    )
    s, lengths = math.sqrt(D) / norm, w["W_dec"].norm(dim=1)

    def encode(x):
        z = plain(w, s * x) * lengths
        return jump(z, w["threshold"]) / lengths

    return Sample(folder, encode, lambda f: linear(w)(f) / s, {"site": "resid_post", "layer": 3}, "llama_scope")


def llama_scope_r1(tmp):
    w = weights()
    folder = tmp / "L3R"
    folder.mkdir()
    hook = "blocks.3.hook_resid_post"
    values = {"d_model": D, "expansion_factor": 2, "hook_point_in": hook, "hook_point_out": hook}
    (folder / "config.json").write_text(json.dumps(values | {"norm_activation": "inference"}))
    tensors = as_linear(w) | {"encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
    save_file(tensors | {"log_jumprelu_threshold": w["threshold"].log()}, folder / "sae_weights.safetensors")
    return Sample(folder, lambda x: jump(plain(w, x), w["threshold"]), linear(w), {"layer": 3}, "llama_scope")


def openai_topk(tmp):
    w = weights()
    folder = tmp / "gpt2-small" / "resid_post_attn_v5_32k" / "autoencoders"
    folder.mkdir(parents=True)
    state = as_linear(w) | {"pre_bias": w["b_dec"], "latent_bias": w["b_enc"], "stats_last_nonzero": torch.zeros(F)}
    state |= {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    torch.save(state, folder / "8.pt")

    def encode(x):
        x = x - x.mean(-1, keepdim=True)
        return keep_top(centred(w, x / (x.std(-1, keepdim=True) + 1e-5)), K)

    def forward(x):
        mean = x.mean(-1, keepdim=True)
        return linear(w)(encode(x)) * (x - mean).std(-1, keepdim=True) + mean

    belongs = {"base_model": "openai-community/gpt2", "site": "resid_mid", "layer": 8}
    sample = Sample(folder / "8.pt", encode, None, belongs, "openai")
    sample.forward = forward
    return sample


def openai_relu(tmp):
    w = weights()
    path = tmp / "0.pt"
    torch.save(as_linear(w) | {"pre_bias": w["b_dec"], "latent_bias": w["b_enc"], "activation": "ReLU"}, path)
    return Sample(path, lambda x: centred(w, x).relu(), linear(w), {}, "openai")


def circuit_tracer(tmp):
    w, skip = weights(d_out=OUT), torch.randn(OUT, D)
    (tmp / "config.yaml").write_text(
        "model_name: Qwen/Qwen3-4B\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    tensors = {k: w[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
    tensors |= {"activation_function.threshold": w["threshold"], "W_skip": skip}
    save_file(tensors, tmp / "layer_12.safetensors")
    belongs = {"base_model": "Qwen/Qwen3-4B", "site": "mlp_in", "layer": 12, "write_site": "mlp_out", "write_layer": 12}
    sample = Sample(
        tmp / "layer_12.safetensors", lambda x: jump(plain(w, x), w["threshold"]), None, belongs, "circuit_tracer"
    )
    sample.forward = lambda x: linear(w)(sample.encode(x)) + x @ skip.T
    return sample


def goodfire(tmp):
    w = weights()
    path = tmp / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    state = {"encoder_linear.weight": w["W_enc"], "encoder_linear.bias": w["b_enc"]}
    torch.save(state | {"decoder_linear.weight": w["W_dec"].T.contiguous(), "decoder_linear.bias": w["b_dec"]}, path)
    belongs = {"base_model": "meta-llama/Llama-3.1-8B-Instruct", "site": "resid_post", "layer": 19}
    return Sample(path, lambda x: plain(w, x).relu(), linear(w), belongs, "goodfire")


SAMPLES = [
    saelens_standard,
    saelens_standard_not_centred,
    saelens_layer_norm,
    saelens_jumprelu,
    saelens_gated,
    saelens_rescaled_topk,
    saelens_skip_transcoder,
    saelens_legacy_topk,
    saelens_centred_gpt2,
    gemma_scope,
    gemma_scope_2,
    gemma_scope_2_without_config,
    gemma_scope_2_transcoder,
    dl_auto_encoder,
    dl_auto_encoder_new,
    dl_gated,
    dl_top_k,
    dl_batch_top_k,
    dl_matryoshka,
    dl_jump_relu,
    dl_interrupted,
    qwen_scope,
    sparsify,
    sparsify_transcoder,
    llama_scope,
    llama_scope_current,
    llama_scope_r1,
    openai_topk,
    openai_relu,
    circuit_tracer,
    goodfire,
]


@pytest.fixture(params=SAMPLES, ids=lambda make: make.__name__)
def sample(request, tmp_path):
    return request.param(tmp_path)


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


X = torch.randn(4, 7, D, generator=torch.Generator().manual_seed(9)) * 2


def test_every_foreign_format_has_a_sample():
    covered = {make.__name__.split("_")[0] for make in SAMPLES} | {
        "gemma_scope_2",
        "dictionary_learning",
        "llama_scope",
    }
    for module in FORMATS:
        assert module.name == "hfsae" or any(module.name.startswith(c) for c in covered), module.name


def test_format_is_detected_by_content_and_by_one_alone(sample):
    if sample.format:
        assert detect(sample.path).name == sample.format
    assert [module.name for module in FORMATS if module.matches(sample.path)] == [detect(sample.path).name]


def test_encode_is_what_the_layout_says(sample):
    sae = SAE.from_pretrained(sample.path)
    assert sample.encode(X).count_nonzero() > 10
    close(sae.encode(X), sample.encode(X))


def test_reconstruction_is_what_the_layout_says(sample):
    sae = SAE.from_pretrained(sample.path)
    f = sample.encode(X)
    if hasattr(sample, "forward"):
        close(sae(X), sample.forward(X))
    elif sample.decode is not None:
        close(sae.decode(f), sample.decode(f))
        close(sae(X), sample.decode(f))


def test_config_says_where_it_belongs(sample):
    config = SAE.from_pretrained(sample.path).config
    assert {key: getattr(config, key) for key in sample.belongs} == sample.belongs


def test_rows_alone_are_the_rows_of_the_whole(sample):
    whole, rows = SAE.from_pretrained(sample.path), SAE.from_pretrained(sample.path, features=[7, 2])
    assert torch.equal(rows.W_enc, whole.W_enc[[7, 2]])
    assert torch.equal(rows.W_dec, whole.W_dec[[7, 2]])


def test_conversion_to_our_format_changes_nothing(sample, tmp_path):
    sae = SAE.from_pretrained(sample.path)
    again = SAE.from_pretrained(sae.save_pretrained(tmp_path / "ours"))
    close(again(X), sae(X))
    assert again.config.place == sae.config.place


class TestMatchingTrouble:
    def test_dictionary_learning_threshold_that_was_never_set_warns(self, tmp_path):
        w = weights()
        state = as_linear(w) | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
        state |= {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
        path = dictionary_learning(tmp_path, "BatchTopKSAE", state)
        with pytest.warns(HfsaeWarning, match="before a threshold was set"):
            close(SAE.from_pretrained(path).encode(X), centred(w, X).relu())

    def test_unknown_class_shows_the_config(self, tmp_path):
        path = dictionary_learning(tmp_path, "FutureSAE", as_linear(weights()))
        with pytest.raises(CheckpointError, match=r"dict_class='FutureSAE' is not known.*\"activation_dim\": 6"):
            SAE.from_pretrained(path)

    @pytest.mark.parametrize(
        ("cfg", "message"),
        [
            ({"normalize_activations": "expected_average_only_in"}, "the scale is in neither file"),
            (
                {"normalize_activations": "constant_norm_rescale"},
                "normalize_activations='constant_norm_rescale' is not known",
            ),
            ({"architecture": "temporal"}, "architecture='temporal' is not known"),
            ({"architecture": "topk"}, "'k' is missing"),
            ({"d_sae": 11}, "the config says d_sae=11, the weights have 10"),
            ({"d_in": "6"}, "'d_in' is of type str"),
            ({"d_in": True}, "'d_in' is of type bool"),
            ({"architecture": "jumprelu"}, "'threshold' is missing"),
            ({"reshape_activations": "other"}, "reshape_activations is not known"),
        ],
    )
    def test_saelens_config_that_cannot_be_followed_is_shown(self, tmp_path, cfg, message):
        path = saelens(tmp_path / "a", "standard", saelens_plain(weights()), cfg)
        with pytest.raises(CheckpointError, match=message) as caught:
            SAE.from_pretrained(path)
        assert "blocks.8.hook_resid_pre" in str(caught.value)

    def test_transposed_weights_are_refused(self, tmp_path):
        w = weights()
        path = saelens(tmp_path / "a", "standard", saelens_plain(w) | {"W_enc": w["W_enc"]})
        with pytest.raises(CheckpointError, match="the config says d_in=6, the weights have 10"):
            SAE.from_pretrained(path)

    @pytest.mark.parametrize(
        "change", [{"b_enc": torch.full((F,), math.nan)}, {"b_dec": torch.ones(D, 1)}, {"b_x": torch.ones(1)}]
    )
    def test_tensors_that_do_not_fit_are_refused(self, tmp_path, change):
        path = saelens(tmp_path / "a", "standard", saelens_plain(weights()) | change)
        with pytest.raises(CheckpointError, match="b_"):
            SAE.from_pretrained(path)

    def test_llama_scope_without_its_norm_is_refused(self, tmp_path):
        path = llama_scope_current(tmp_path).path
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(values | {"hook_point_in": "blocks.9.hook_resid_post"}))
        with pytest.raises(CheckpointError, match=r"the mean norm at 'blocks.9.hook_resid_post' is missing"):
            SAE.from_pretrained(path)

    def test_qwen_scope_out_of_its_repository_is_refused(self, tmp_path):
        moved = tmp_path / "layer1.sae.pt"
        moved.write_bytes(qwen_scope(tmp_path).path.read_bytes())
        with pytest.raises(CheckpointError, match="k and layer cannot be known"):
            SAE.from_pretrained(moved)

    def test_unknown_content_lists_the_formats(self, tmp_path):
        (tmp_path / "weights.bin").write_bytes(b"x")
        with pytest.raises(CheckpointError, match=r"is of no known format. Known: hfsae, saelens"):
            SAE.from_pretrained(tmp_path / "weights.bin")

    @pytest.mark.parametrize("name", ["hook_name", "model_name", "dataset_path", "exclude_special_tokens", "hfsae"])
    @pytest.mark.parametrize("value", [5, [1], {"a": 1}, None, "x" * 10_000, True])
    def test_saelens_metadata_of_any_type_loads_or_is_one_clear_error(self, tmp_path, name, value):
        path = saelens(tmp_path / "a", "standard", saelens_plain(weights()), metadata={name: value})
        message = ""
        try:
            SAE.from_pretrained(path)
        except CheckpointError as error:
            message = str(error)
        assert not message or "cfg.json" in message

    def test_yaml_of_references_is_cut_short(self, tmp_path):
        path = circuit_tracer(tmp_path).path
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        (tmp_path / "config.yaml").write_text("\n".join(lines))
        with pytest.raises(CheckpointError, match="'feature_input_hook' is missing"):
            SAE.from_pretrained(path)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


class TestHostileFiles:
    @pytest.mark.parametrize("name", ["layer1.sae.pt", "Llama-3.1-8B-Instruct-SAE-l19.pth", "8.pt"])
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("format", ["qwen_scope", "goodfire", "openai"])
    def test_pickle_bomb_stays_unexploded(self, tmp_path, name, legacy, format):
        folder = tmp_path / "SAE-Res-X-W1K-L0_3"
        folder.mkdir()
        torch.save({"W_enc": Bomb(tmp_path / "boom")}, folder / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError):
            SAE.from_pretrained(folder / name, format=format)
        with pytest.raises(CheckpointError, match="no known format"):
            SAE.from_pretrained(folder / name)
        assert not (tmp_path / "boom").exists()

    def test_npz_of_objects_stays_unexploded(self, tmp_path):
        bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
        np.savez(tmp_path / "params.npz", **dict.fromkeys(("W_enc", "W_dec", "b_enc", "b_dec", "threshold"), bomb))
        with pytest.raises(CheckpointError, match="objects are never unpickled"):
            SAE.from_pretrained(tmp_path / "params.npz")
        assert not (tmp_path / "boom").exists()

    def test_npz_bomb_is_refused_by_its_declared_size(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
                archive.writestr(f"{key}.npy", bytes(2**22))
        with pytest.raises(CheckpointError, match=r"Weights do not compress like that"):
            SAE.from_pretrained(tmp_path / "params.npz")

    def test_npz_header_that_lies_is_refused(self, tmp_path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)})
        with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
            for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
                archive.writestr(f"{key}.npy", header.getvalue())
        with pytest.raises(CheckpointError, match=r"Its shape \[1000000000, 1000000000\] needs"):
            SAE.from_pretrained(tmp_path / "params.npz")

    def test_tensor_that_claims_more_than_its_storage_is_refused(self, tmp_path):
        folder = tmp_path / "SAE-Res-X-W1K-L0_3"
        folder.mkdir()
        huge = torch.ones(1).expand(10**6, 10**6)
        torch.save(dict.fromkeys(("W_enc", "W_dec", "b_enc", "b_dec"), huge), folder / "layer1.sae.pt")
        with pytest.raises(CheckpointError, match="is more than the file holds"):
            SAE.from_pretrained(folder / "layer1.sae.pt", format="qwen_scope")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04", b"<html>", bytes(1000)])
    @pytest.mark.parametrize("name", ["layer1.sae.pt", "params.npz", "params.safetensors"])
    def test_damaged_weights_are_one_clear_error(self, tmp_path, content, name):
        (tmp_path / name).write_bytes(content)
        format = {"params.npz": "gemma_scope", "params.safetensors": "gemma_scope_2"}.get(name, "goodfire")
        with pytest.raises(CheckpointError, match=name):
            SAE.from_pretrained(tmp_path / name, format=format)

    def test_good_checkpoint_beside_a_bomb_loads_and_touches_nothing_else(self, tmp_path):
        path = saelens_standard(tmp_path).path
        torch.save({"W_enc": Bomb(tmp_path / "boom")}, path / "ae.pt")
        assert SAE.from_pretrained(path, format="saelens").config.d_sae == F
        assert not (tmp_path / "boom").exists()


def test_peer_formats_have_unique_names():
    names = [module.name for module in FORMATS]
    assert len(set(names)) == len(names)
    assert named("saelens").write is not None
