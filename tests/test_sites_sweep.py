"""Sites on the architectures of transformers: proved and right by plain hooks, or refused with a clear message."""

from typing import Any

import pytest
import torch
from architectures import architectures, tiny, tiny_inputs
from torch import Tensor, nn

from hfsae.errors import HfsaeError, SiteNotFound
from hfsae.sites import Point, blocks, resolve

FORTY = [
    *(("causal", name) for name in (
        "bert", "bloom", "codegen", "cohere", "exaone4", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3_text",
        "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "llama", "mamba", "mistral",
        "mixtral", "mpt", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "stablelm", "starcoder2",
    )),
    *(("masked", name) for name in ("distilbert", "electra", "modernbert", "roberta")),
    *(("seq2seq", name) for name in ("bart", "marian", "mt5", "pegasus", "t5")),
]  # fmt: skip
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
    import inspect

    return "use_cache" in inspect.signature(model.forward).parameters


def _ablated_output(model: nn.Module, module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    def zero(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = torch.zeros_like(_first(output))
        if not isinstance(output, tuple | list):
            return hidden
        rest = (hidden, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    handle = module.register_forward_hook(zero)
    try:
        return _logits(model, inputs)
    finally:
        handle.remove()


def _ablated_input(model: nn.Module, module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    def zero(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (torch.zeros_like(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": torch.zeros_like(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(zero, with_kwargs=True)
    try:
        return _logits(model, inputs)
    finally:
        handle.remove()


def _ablated(model: nn.Module, point: Point, inputs: dict[str, Tensor]) -> Tensor:
    return (_ablated_input if point.io == "input" else _ablated_output)(model, point.module, inputs)


def check_stream(model: nn.Module) -> None:
    """Ablate the stream where `resolve` finds it, at the first, middle and last block: neighbours agree to the bit."""
    inputs, stack = tiny_inputs(model), blocks(model)
    bare, last = _logits(model, inputs), len(stack) - 1
    for layer in sorted({0, last // 2, last}):
        before, after = resolve(model, layer, "resid_pre"), resolve(model, layer, "resid_post")
        assert (before.module, after.module) == (stack[layer][1], stack[layer][1])
        ablated = _ablated(model, after, inputs)
        assert not torch.equal(ablated, bare)
        if layer < last:
            assert torch.equal(ablated, _ablated(model, resolve(model, layer + 1, "resid_pre"), inputs))
        if layer > 0:
            earlier = _ablated(model, resolve(model, layer - 1, "resid_post"), inputs)
            assert torch.equal(_ablated(model, before, inputs), earlier)
    assert torch.equal(_logits(model, inputs), bare)


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
    if name not in {"mamba", "falcon_mamba"}:  # mixers alone
        assert has_proved_outputs(model)


@pytest.mark.slow
def test_every_architecture_is_right_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: dict[str, list[str]] = {"right": [], "refused": [], "not built": [], "outputs": []}
    messages: list[str] = []
    for kind, name in architectures():
        try:
            model = tiny(kind, name)
            _logits(model, tiny_inputs(model))
        except Exception as error:  # whatever the model's own code raises: it cannot be built or run from its config
            outcomes["not built"].append(f"{kind}/{name}: {type(error).__name__} {str(error)[:90]}")
            continue
        try:
            check_stream(model)
        except HfsaeError as error:
            outcomes["refused"].append(f"{kind}/{name}: {str(error)[:160]}")
            messages.append(str(error))
            continue
        outcomes["right"].append(f"{kind}/{name}")
        if has_proved_outputs(model):
            outcomes["outputs"].append(f"{kind}/{name}")
    with capsys.disabled():
        report = {key: len(value) for key, value in outcomes.items()}
        lines = [str(report), *outcomes["refused"], *outcomes["not built"]]
        print("\n".join(lines))  # noqa: T201
    assert all("module=" in message for message in messages)
    assert len(outcomes["right"]) >= 200
    assert len(outcomes["outputs"]) >= 90
