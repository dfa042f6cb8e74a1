"""Attaching to the architectures of transformers: an ablation is what a plain hook makes of it, or is refused."""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import architectures, tiny, tiny_inputs
from torch import Tensor, nn

from hfsae.attach import attach
from hfsae.dictionary import SAE
from hfsae.errors import HfsaeError, SiteNotFound
from hfsae.sae.config import SAEConfig
from hfsae.sites import blocks, resolve

Change = Callable[[Tensor], Tensor]

FORTY = [
    *(("causal", name) for name in (
        "bert", "bloom", "cohere", "falcon", "falcon_h1", "falcon_mamba", "gemma", "gemma2", "gemma3_text",
        "gemma4_text", "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "llama",
        "mamba", "mistral", "mixtral", "mpt", "olmo2", "openai-gpt", "opt", "phi3", "qwen3", "qwen3_moe", "reformer",
        "stablelm",
    )),
    *(("masked", name) for name in ("distilbert", "electra", "modernbert", "roberta")),
    *(("seq2seq", name) for name in ("bart", "marian", "mt5", "pegasus", "t5")),
]  # fmt: skip
# Mixers alone, two mixers side by side, two streams.
WITHOUT_OUTPUTS = {"mamba", "falcon_mamba", "falcon_h1", "reformer"}
# Model code beyond our reach: an own deprecation, a numpy call, a missing optional package.
pytestmark = pytest.mark.filterwarnings("ignore")


def _first(value: Any) -> Tensor:
    value = value.to_tuple() if hasattr(value, "to_tuple") else value
    return value[0] if isinstance(value, tuple | list) else value


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)  # Reformer hashes with random vectors, in eval mode too
    with torch.no_grad():
        return _first(model(**inputs, use_cache=False) if _takes_cache(model) else model(**inputs))


def _takes_cache(model: nn.Module) -> bool:
    return "use_cache" in inspect.signature(model.forward).parameters


def _by_hand(model: nn.Module, place: tuple[nn.Module, str], change: Change, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits with ``change`` applied to a module's input or output, by a plain hook."""

    def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = change(_first(output))
        if not isinstance(output, tuple | list):
            return hidden
        rest = (hidden, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    module, side = place
    if side == "output":
        handle = module.register_forward_hook(on_output)
    else:
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    try:
        return _logits(model, inputs)
    finally:
        handle.remove()


def check_stream(model: nn.Module) -> None:
    """Ablate features in the stream at the first, middle and last block: the same as by plain hooks on the blocks."""
    inputs, stack = tiny_inputs(model), [block for _, block in blocks(model)]
    bare, last = _logits(model, inputs), len(stack) - 1
    for layer in sorted({0, last // 2, last}):
        check_ablation(model, layer, "resid_post", (stack[layer], "output"), bare)
        entering = (stack[layer - 1], "output") if layer else (stack[0], "input")
        check_ablation(model, layer, "resid_pre", entering, bare)
    assert torch.equal(_logits(model, inputs), bare)


def _firing_dictionary(width: int) -> SAE:
    """Return a random dictionary of which about half fires on any token, however small its activation."""
    sae = SAE(SAEConfig(architecture="standard", d_in=width, d_sae=48, b_pre="none"))
    generator = torch.Generator().manual_seed(width)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / width**0.5
    return sae.requires_grad_(False)


def check_ablation(model: nn.Module, layer: int, site: str, place: tuple[nn.Module, str], bare: Tensor) -> None:
    """Ablate half of the features of a random dictionary there, and compare with a plain hook at ``place``."""
    inputs, width = tiny_inputs(model), resolve(model, layer, site).width
    assert width is not None
    sae = _firing_dictionary(width)
    with attach(model, layer, site, sae=sae) as att, att.ablate(range(24)) as edit:
        ablated = _logits(model, inputs)
        assert edit.tokens_changed > 0
    by_hand = _by_hand(model, place, lambda x: x - sae.encode(x)[..., :24] @ sae.W_dec[:24], inputs)
    effect = (by_hand - bare).abs().max()
    assert effect > 1e-4
    assert (ablated - by_hand).abs().max() <= 1e-3 * effect


def has_proved_outputs(model: nn.Module) -> bool:
    """Say whether attn_out and mlp_out are proved on the first, middle and last block."""
    last = len(blocks(model)) - 1
    try:
        for layer in (0, last // 2, last):
            for site in ("attn_out", "mlp_out"):
                resolve(model, layer, site)
    except SiteNotFound:
        return False
    return True


@pytest.mark.parametrize(("kind", "name"), FORTY, ids=lambda value: value)
def test_sites_are_right_on_the_architecture(kind: str, name: str) -> None:
    model = tiny(kind, name)
    check_stream(model)
    assert has_proved_outputs(model) == (name not in WITHOUT_OUTPUTS)


def outcome(kind: str, name: str) -> tuple[str, str]:
    """Return what becomes of attaching to an architecture, and why."""
    try:
        model = tiny(kind, name)
        _logits(model, tiny_inputs(model))
    except Exception as error:  # whatever the model's own code raises: it cannot be built or run from its config
        return "not built", f"{type(error).__name__} {str(error)[:90]}"
    try:
        check_stream(model)
    except HfsaeError as error:
        return "refused", str(error)
    except AssertionError as error:
        return "wrong", str(error)
    return "right", "outputs proved" if has_proved_outputs(model) else ""


@pytest.mark.slow
def test_every_architecture_is_right_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    found = {(kind, name): outcome(kind, name) for kind, name in architectures()}
    counts = Counter(how for how, _ in found.values())
    proved = sum(why == "outputs proved" for _, why in found.values())
    with capsys.disabled():
        print(dict(counts), f"attn_out and mlp_out proved: {proved}")  # noqa: T201
        for (kind, name), (how, why) in found.items():
            if how != "right":
                print(f"{how}: {kind}/{name}: {why[:160]}")  # noqa: T201
    assert not counts["wrong"]
    assert all("module=" in why for how, why in found.values() if how == "refused")
    assert counts["right"] >= 200
    assert proved >= 90
