"""Tiny random models of every causal, masked, encoder-decoder and image architecture of the installed transformers."""

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from hfsae.siting.probes import model_failures
from hfsae.siting.shrinking import shrink

KINDS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
_IMAGE = {"image": modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES}
_DEPTHS = ("n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
# What the defaults of these configs leave out and their own models then need, by model type or class.
_COMPLETED: dict[str, dict[str, Any]] = {
    "ReformerModelWithLMHead": {"is_decoder": True},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "xmod": {"default_language": "en_XX"},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
}


def architectures() -> list[tuple[str, str]]:
    """Return kind and model type of every architecture, in the order in which transformers lists them."""
    return [(kind, name) for kind, mapping in {**KINDS, **_IMAGE}.items() for name in mapping]


def tiny(kind: str, name: str) -> nn.Module:
    """Build the tiny random model of that kind (or ``"image"``) and model type, where possible four blocks deep."""
    entry = {**KINDS, **_IMAGE}[kind][name]
    model_class = getattr(transformers, entry if isinstance(entry, str) else entry[0])
    config = shrink(_config(name, model_class))
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if size > 60_000_000:
        raise ValueError(f"{name} is not tiny: {size:,} parameters")
    model: nn.Module = model_class(config).float().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def tiny_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return token ids for a tiny model, for its decoder too where it has two halves; pixels where it reads no text."""
    generator = torch.Generator().manual_seed(1)
    config: Any = model.config
    if model.main_input_name == "pixel_values":
        vision = getattr(config, "vision_config", None) or config
        side = getattr(vision, "image_size", 32)
        sides = (side, side) if isinstance(side, int) else side
        return {"pixel_values": torch.randn(2, getattr(vision, "num_channels", 3), *sides, generator=generator)}
    size = min(getattr(config.get_text_config(decoder=True), "vocab_size", 0) or 100, 200)
    inputs = {"input_ids": torch.randint(10 % size, size, (2, 12), generator=generator)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(10 % size, size, (2, 10), generator=generator)
    return inputs


def _config(name: str, model_class: Any) -> Any:
    config_class = CONFIG_MAPPING[name]
    if not issubclass(config_class, model_class.config_class):
        config_class = model_class.config_class
    completed = _COMPLETED.get(model_class.__name__, _COMPLETED.get(name, {}))
    try:
        config = config_class(num_hidden_layers=4, **completed)
        short = copy.deepcopy(config)
        for field in _DEPTHS:
            if isinstance(getattr(short, field, None), int) and "layer_types" not in vars(short):
                setattr(short, field, 4)
        with torch.device("meta"):
            model_class(copy.deepcopy(shrink(short)))
    except model_failures():
        return config_class(**completed)
    return short
