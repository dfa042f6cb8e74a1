"""Dictionaries and models that the tests of attaching share; twelve families, tiny and random."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import CAUSAL, build
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    T5Config,
    ViTConfig,
)

from hfsae.dictionary import SAE
from hfsae.sae.config import SAEConfig
from hfsae.sae.statistics import FeatureStatistics

_SMALL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ROPE = {
    **_SMALL,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

MORE: dict[str, Callable[[], PretrainedConfig]] = {
    "gemma2": lambda: Gemma2Config(**_ROPE, head_dim=8, sliding_window=16),
    "mixtral": lambda: MixtralConfig(**_ROPE, num_local_experts=4),
    "bloom": lambda: BloomConfig(**_SMALL, hidden_size=32, n_layer=3, n_head=4),
    "mamba": lambda: MambaConfig(**_SMALL, hidden_size=32, num_hidden_layers=3, state_size=8),
}
OTHER: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    ),
    "vit": lambda: ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    ),
    "t5": lambda: T5Config(**_SMALL, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, decoder_start_token_id=0),
}
FAMILIES = (*sorted(CAUSAL), *MORE, *OTHER)
GENERATING = (*sorted(CAUSAL), "gemma2", "mixtral")


def tiny(name: str) -> nn.Module:
    """Build the tiny model of that family, in eval mode."""
    if name in CAUSAL:
        return build(name)
    torch.manual_seed(0)
    if name in MORE:
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_config(MORE[name]())
    else:
        model = AutoModel.from_config(OTHER[name]())
    return model.eval()


def tiny_tokenizer() -> Any:
    """Return a tokenizer of 96 words, for what insists on one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(96)}, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2")


def inputs_for(name: str, batch: int = 2, length: int = 10) -> dict[str, torch.Tensor]:
    """Return inputs for the tiny model of that family."""
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    ids = torch.randint(3, 96, (batch, length), generator=generator)
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :6]} if name == "t5" else {})


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the first tensor that the model computes, without gradient."""
    with torch.no_grad():
        return next(v for v in model(**inputs).values() if isinstance(v, torch.Tensor))


def dictionary(architecture: str = "standard", d_in: int = 32, d_sae: int = 96, seed: int = 3, **config: Any) -> SAE:
    """Return a random dictionary on which many features fire, with statistics."""
    torch.manual_seed(seed)
    if architecture == "topk":
        config.setdefault("k", 8)
    sae = SAE(SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, **config))
    for name, parameter in sae.named_parameters():
        scale = 0.1 if name == "threshold" else 0.2
        parameter.data.add_(scale * torch.randn_like(parameter.float()).abs().to(parameter.dtype))
    sae.statistics = FeatureStatistics(
        density=torch.full((d_sae,), 0.5),
        max=torch.arange(1, d_sae + 1).float(),
        mean=torch.arange(d_sae).float() / d_sae,
        mean_norm=4.0,
        tokens=100,
    )
    return sae.eval().requires_grad_(False)


def traces(model: nn.Module) -> dict[str, Any]:
    """Return what must be as before once everything is detached: classes, attributes, hooks."""
    return {
        name: (type(m), sorted(vars(m)), sorted(m._modules), [len(h) for h in (m._forward_hooks, m._forward_pre_hooks)])
        for name, m in model.named_modules()
    }


def hooked(model: nn.Module, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], inputs: Any) -> Any:
    """Return the model's first output with ``change`` applied to what ``module`` returns, by a plain hook."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook, prepend=True)
    try:
        return logits(model, inputs)
    finally:
        handle.remove()
