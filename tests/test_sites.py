"""Sites: names, modules, proofs and refusals."""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import KINDS, tiny, tiny_inputs
from conftest import CAUSAL, build
from dictionaries import as_in_production
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from hfsae.errors import HubError, InvalidType, InvalidValue, OutOfRange, SiteNotFound, Unsupported
from hfsae.sites import SITES, Site, base_model_id, blocks, resolve, unwrap
from hfsae.siting.families import FAMILIES, Family
from hfsae.siting.proofs import prove_stack
from hfsae.siting.stacks import choose_stack
from hfsae.siting.tables import site_table

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
}


def _tensor(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def _read(model: nn.Module, ids: torch.Tensor, layer: int, *sites: str) -> list[torch.Tensor]:
    """Read sites by plain hooks, independently of the library's own."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for site in sites:
        point = resolve(model, layer, site)

        def keep(_m: nn.Module, args: Any, kwargs: Any, out: Any, site: str = site, io: str = point.io) -> None:
            seen[site] = _tensor(args[0] if args else kwargs["hidden_states"]) if io == "input" else _tensor(out)

        handles.append(point.module.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return [seen[site] for site in sites]


@pytest.mark.parametrize("name", sorted(CAUSAL))
def test_outputs_sum_to_what_the_block_adds(name: str, ids: torch.Tensor) -> None:
    for layer in (0, 1, 2):
        pre, attn, mlp, post = _read(build(name), ids, layer, "resid_pre", "attn_out", "mlp_out", "resid_post")
        assert torch.allclose(post - pre, attn + mlp, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma3"])
def test_mid_lies_between_attention_and_mlp(name: str, ids: torch.Tensor) -> None:
    pre, attn, mid = _read(build(name), ids, 1, "resid_pre", "attn_out", "resid_mid")
    assert torch.allclose(mid, pre + attn, atol=1e-6)


def test_maps_after_z_and_act_give_the_outputs(tiny_llama: nn.Module, ids: torch.Tensor) -> None:
    z, attn, act, mlp = _read(tiny_llama, ids, 1, "attn_z", "attn_out", "mlp_act", "mlp_out")
    assert torch.allclose(resolve(tiny_llama, 1, "attn_z").module(z), attn, atol=1e-6)
    assert torch.allclose(resolve(tiny_llama, 1, "mlp_act").module(act), mlp, atol=1e-6)


@pytest.mark.parametrize("name", sorted(CAUSAL))
def test_width_is_that_of_the_activation(name: str, ids: torch.Tensor) -> None:
    model = build(name)
    for site in SITES if name != "gpt_neox" else set(SITES) - {"resid_mid"}:
        (x,) = _read(model, ids, 2, site)
        assert resolve(model, 2, site).width == x.shape[-1]


def _wiring_seen(family: Family) -> bool:
    """Say whether the first example of a family has that wiring."""
    name = family.examples[0]
    kind = next((kind for kind in ("causal", "seq2seq", "masked") if name in KINDS[kind]), "image")
    model = tiny(kind, name)
    proof = prove_stack(model, choose_stack(model))
    return any(f"({family.name})" in place.how for block in proof.blocks for place in block.places.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_is_the_wiring_of_its_example(family: Family) -> None:
    assert _wiring_seen(family)


def test_negative_layer_counts_from_the_end(tiny_model: nn.Module) -> None:
    last = resolve(tiny_model, -1)
    assert last == resolve(tiny_model, 2)
    assert last.module is blocks(tiny_model)[-1][1]
    assert last.site == Site("resid_post", 2)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.1.hook_resid_pre", "resid_pre"),
        ("blocks.1.hook_resid_mid", "resid_mid"),
        ("blocks.1.hook_mlp_in", "resid_mid"),
        ("blocks.1.hook_resid_post", "resid_post"),
        ("blocks.1.attn.hook_z", "attn_z"),
        ("blocks.1.hook_attn_out", "attn_out"),
        ("blocks.1.ln2.hook_normalized", "mlp_in"),
        ("blocks.1.mlp.hook_post", "mlp_act"),
        ("blocks.1.hook_mlp_out", "mlp_out"),
        ("attn_out.layer_1", "attn_out"),
    ],
)
def test_names_of_hooks_are_understood(tiny_gpt2: nn.Module, name: str, site: str) -> None:
    assert resolve(tiny_gpt2, site=name) == resolve(tiny_gpt2, 1, site)
    assert Site.parse(str(Site(site, 1))) == Site(site, 1)


def test_module_path_names_any_module(tiny_gpt2: nn.Module) -> None:
    point = resolve(tiny_gpt2, module="transformer.h.1.mlp.c_fc", io="input")
    assert point.module is tiny_gpt2.transformer.h[1].mlp.c_fc
    assert (point.io, point.width, str(point.site)) == ("input", 32, "transformer.h.1.mlp.c_fc:input")
    assert resolve(tiny_gpt2, module="transformer.h.1.mlp.c_fc").width == 128
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert resolve(plain, module="0").width == 4


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (OutOfRange, r"layer=8 is out of range.*3 blocks.*0 to 2, or -1", {"layer": 8}),
        (OutOfRange, r"layer=-4 is out of range", {"layer": -4}),
        (InvalidType, r"layer=True is a bool. A whole number", {"layer": True}),
        (InvalidType, r"layer=1.0 is a float", {"layer": 1.0}),
        (InvalidType, r"layer='1' is a str", {"layer": "1"}),
        (InvalidType, r"site=3 is no string", {"layer": 1, "site": 3}),
        (SiteNotFound, r"'resid_pots'. Did you mean 'resid_post'\? Known: ", {"layer": 1, "site": "resid_pots"}),
        (SiteNotFound, r"Did you mean 'blocks.1.hook_resid_pre'", {"site": "blocks.1.hook_residpre"}),
        (OutOfRange, r"layer=7", {"site": "blocks.7.hook_resid_pre"}),
        (InvalidValue, r"name two layers", {"layer": 2, "site": "blocks.1.hook_resid_pre"}),
        (InvalidValue, r"Pass either layer= or module=", {}),
        (InvalidValue, r"Pass either layer= or module=", {"layer": 1, "module": "transformer"}),
        (InvalidValue, r"io='outputs' is unknown", {"module": "transformer", "io": "outputs"}),
        (InvalidType, r"module=3 is no string", {"module": 3}),
        (SiteNotFound, r"no module 'transformer.g'. Did you mean 'transformer.h'\?", {"module": "transformer.g"}),
        (SiteNotFound, r"no stack 'encoder'. Its stacks of \w+: transformer.h\[3\]", {"layer": 1, "stack": "encoder"}),
    ],
)  # fmt: skip
def test_bad_request_is_refused(
    tiny_gpt2: nn.Module, error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    with as_in_production(), pytest.raises(error, match=message):
        resolve(tiny_gpt2, **arguments)


def test_model_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidType, match=r"model is a str. An nn.Module was expected"):
        resolve("gpt2", 0)


def test_plain_module_needs_a_path() -> None:
    with pytest.raises(SiteNotFound, match=r"no list of blocks.*module="):
        resolve(nn.Linear(2, 2), 0)
    blocks_of_mine = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    with pytest.raises(SiteNotFound, match=r"cannot be proved. ModuleDict is no transformers model.*module='blocks.0'"):
        resolve(nn.ModuleDict({"blocks": blocks_of_mine}), 0)


def test_parallel_block_has_no_mid() -> None:
    with pytest.raises(SiteNotFound, match=r"nothing in the block reads.*Proved in this block: resid_pre, resid_post"):
        resolve(build("gpt_neox"), 1, "resid_mid")


def _t5() -> nn.Module:
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=96)
    return T5ForConditionalGeneration(config).eval()


def test_layer_means_the_decoder_unless_told(tiny_gpt2: nn.Module) -> None:
    model = _t5()
    assert resolve(model, -1).path == "decoder.block.2"
    assert resolve(model, -1, stack="encoder").path == "encoder.block.1"
    assert resolve(model, 0, "mlp_out", stack="encoder.block").path == "encoder.block.0.layer.1.DenseReluDense"
    assert str(resolve(model, 1, stack="encoder").site) == "resid_post.layer_1 of encoder"


def test_ambiguous_stacks_are_listed() -> None:
    tower = {**_VISION, "image_size": 16}
    config = CLIPConfig(text_config={**_VISION, "vocab_size": 96}, vision_config=tower, projection_dim=16)
    model = CLIPModel(config)
    text = resolve(model, 0)
    assert text.path.startswith("text_model")
    vision = resolve(model, 1, "attn_out", stack="vision_model")
    assert vision.path.startswith("vision_model")
    twins = tiny("causal", "hrm_text")
    with pytest.raises(SiteNotFound, match=r"several stacks of blocks: model.L_module.layers\[\d+\], model.H_module"):
        resolve(twins, 0)


def test_shared_block_is_told() -> None:
    config = AlbertConfig(hidden_size=32, embedding_size=16, num_attention_heads=4, intermediate_size=64, vocab_size=96)
    with pytest.raises(SiteNotFound, match=r"block is shared: one forward calls it 12 times"):
        resolve(AlbertForMaskedLM(config), 0)


def test_stream_with_another_order_of_dimensions_is_told() -> None:
    model = XLNetLMHeadModel(XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=64, vocab_size=96))
    with pytest.raises(SiteNotFound, match=r"has shape \[12, 2, 32\] where \[2, 12, width\] was expected"):
        resolve(model, 0)


def test_stream_that_changes_its_shape_is_told() -> None:
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    with pytest.raises(SiteNotFound, match=r"changes the stream's shape from \[2, 64, 16\] to \[2, 16, 32\]"):
        resolve(SwinModel(config), 0)


@pytest.mark.filterwarnings("ignore")
def test_skipped_block_is_told() -> None:
    model = tiny("causal", "mllama")
    skipped = set(model.config.cross_attention_layers) & set(range(len(blocks(model))))
    for layer in skipped:
        with pytest.raises(SiteNotFound, match="the block is skipped"):
            resolve(model, layer)
    assert resolve(model, min(set(range(len(blocks(model)))) - skipped)).io == "output"


@pytest.mark.filterwarnings("ignore")
def test_flattened_positions_are_said() -> None:
    model = tiny("causal", "opt")
    assert resolve(model, 1, "mlp_out").flat
    assert not resolve(model, 1, "attn_out").flat


def test_vision_models_have_sites() -> None:
    model = ViTModel(ViTConfig(**_VISION, image_size=16))
    assert resolve(model, 1, "mlp_out").path == "layers.1.mlp"
    assert resolve(model, 1, "mlp_act").width == 64


def test_text_model_of_a_multimodal_one_is_meant() -> None:
    text = CAUSAL["llama"]()
    model = LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config={"model_type": "clip_vision_model", **_VISION, "image_size": 16})
    )
    assert resolve(model, 2, "attn_out").path.endswith("language_model.layers.2.self_attn")
    tower = resolve(model, 0, "mlp_out", stack="vision_tower")
    assert "vision_tower" in tower.path
    assert tower.width == 32


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: __import__("nnsight").NNsight(model),
    ],
    ids=["data parallel", "compiled", "nnsight"],
)
@pytest.mark.filterwarnings("ignore")
def test_wrapped_model_is_looked_into(tiny_llama: nn.Module, wrap: Callable[[nn.Module], Any]) -> None:
    wrapped = wrap(tiny_llama)
    assert unwrap(wrapped) is tiny_llama
    assert resolve(wrapped, 1, "mlp_out").module is tiny_llama.model.layers[1].mlp


@pytest.mark.filterwarnings("ignore")
def test_peft_model_keeps_its_paths(tiny_llama: nn.Module) -> None:
    import peft

    wrapped = peft.get_peft_model(tiny_llama, peft.LoraConfig(target_modules=["o_proj", "down_proj"]))
    point = resolve(wrapped, 1, "mlp_out")
    assert point.path == "base_model.model.model.layers.1.mlp"
    assert wrapped.get_submodule(point.path) is point.module
    assert resolve(wrapped, 1, "attn_z").width == 32


def test_model_on_meta_is_never_run() -> None:
    config = LlamaConfig(num_hidden_layers=3)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    point = resolve(model, -1, "mlp_act")
    assert (point.path, point.width) == ("model.layers.2.mlp.down_proj", 11008)
    assert resolve(model, 0, "attn_out").width == 4096
    assert all(parameter.is_meta for parameter in model.parameters())


def test_shortened_stack_keeps_its_sites(tiny_llama: nn.Module) -> None:
    tiny_llama.model.layers = tiny_llama.model.layers[:2]
    assert resolve(tiny_llama, -1, "attn_out").path == "model.layers.1.self_attn"


def test_model_not_as_its_config_says_is_refused(tiny_gpt2: nn.Module) -> None:
    del tiny_gpt2.transformer.h[1].mlp
    with pytest.raises(SiteNotFound, match="the block is not as its config says"):
        resolve(tiny_gpt2, 1, "mlp_out")


def test_model_that_no_probe_can_run_is_refused() -> None:
    class Odd(GPT2Model):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("two inputs are needed")

    model = Odd(CAUSAL["gpt2"]())
    with pytest.raises(SiteNotFound, match=r"No tiny probe of Odd could be run \(ValueError: two inp.*module='h"):
        resolve(model, 0)


def test_proof_leaves_nothing_behind(ids: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=96)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [(path, type(part), sorted(part.__dict__)) for path, part in model.named_modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), torch.get_num_threads()
    with warnings.catch_warnings(record=True) as caught, as_in_production():  # beartype itself draws at random
        resolve(model, 1, "attn_out")
    assert not caught
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.get_num_threads() == states[3]
    assert torch.is_grad_enabled()
    assert modules == [(path, type(part), sorted(part.__dict__)) for path, part in model.named_modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_base_model_id_is_where_it_came_from(tiny_gpt2: nn.Module) -> None:
    assert base_model_id(tiny_gpt2) is None
    tiny_gpt2.config.name_or_path = "openai-community/gpt2"
    assert base_model_id(tiny_gpt2) == "openai-community/gpt2"
    assert base_model_id(nn.Linear(2, 2)) is None


def test_table_says_where_how_wide_and_how_proved(tmp_path: Path) -> None:
    config = GPT2Config()
    rows = site_table(config)
    assert [row.site for row in rows] == list(SITES)
    act = rows[6]
    assert (act.path, act.io, act.width) == ("transformer.h.{layer}.mlp.c_proj", "input", 3072)
    assert act.layers == tuple(range(12))
    assert "resid_post - resid_pre = attn_out + mlp_out (modules added)" in str(rows[7])
    config.save_pretrained(tmp_path)
    assert site_table(str(tmp_path)) == rows
    assert "refused" in str(next(row for row in site_table(build("gpt_neox")) if row.site == "resid_mid"))


def test_table_of_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidType, match="model is a int"):
        site_table(3)
    with pytest.raises(HubError, match=r"config of .* could not be read"):
        site_table(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 33, "n_head": 4}))
    with pytest.raises(Unsupported, match="could not be built from its config"):
        site_table(str(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_inputs_reach_every_example() -> None:
    assert tiny_inputs(_t5()).keys() == {"input_ids", "decoder_input_ids"}
