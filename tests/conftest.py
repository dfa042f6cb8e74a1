"""Tiny random models built from their configs, and the check that no test leaves a hook behind."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

torch.set_num_threads(1)

pytest_plugins = ("headless",)

_SMALL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ROPE = {
    **_SMALL,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GQA = {**_ROPE, "num_key_value_heads": 2, "head_dim": 8}

CAUSAL: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**_SMALL, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "llama": lambda: LlamaConfig(**_GQA),
    "gpt_neox": lambda: GPTNeoXConfig(**_ROPE),
    "qwen3": lambda: Qwen3Config(**_GQA),
    "gemma3": lambda: Gemma3TextConfig(**_GQA, sliding_window=16),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """Build the tiny causal model of that family, random and in eval mode."""
    torch.manual_seed(seed)
    model: nn.Module = AutoModelForCausalLM.from_config(CAUSAL[name]())
    for parameter in model.parameters():  # fresh norms are all ones and biases zero: hide no mistake behind that
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=sorted(CAUSAL))
def tiny_model(request: pytest.FixtureRequest) -> nn.Module:
    """Each tiny causal family in turn."""
    return build(request.param)


@pytest.fixture
def tiny_gpt2() -> nn.Module:
    """GPT-2 with 3 blocks of width 32 and a vocabulary of 96."""
    return build("gpt2")


@pytest.fixture
def tiny_llama() -> nn.Module:
    """Llama with 3 blocks of width 32 and a vocabulary of 96."""
    return build("llama")


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids ``[2, 12]``, none of them special."""
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_global_hook_left_behind() -> Iterator[None]:
    """Fail a test that leaves a global module hook registered."""
    from torch.nn.modules import module as torch_module

    tables = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    before = [len(getattr(torch_module, name)) for name in tables]
    yield
    assert [len(getattr(torch_module, name)) for name in tables] == before
