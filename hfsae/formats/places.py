"""Where other libraries' files say they belong: their names for models and places, and what a path tells.

TransformerLens calls a place by a hook, HuggingFace by a module's path; some publishers put it in the name of the
folder or of the repository alone, and the cache of huggingface_hub keeps that name in the path.
"""

import re
from pathlib import Path
from typing import NamedTuple

# TransformerLens' names within a block. `ln2.hook_normalized` and `hook_mlp_in` are absent: the first is taken before
# the norm's gain, the second before the norm, and neither is what a HuggingFace module reads or returns.
_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_out": "mlp_out",
}
# A module's path within a block, and which side of it.
_MODULES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_z",
    "post_feedforward_layernorm.output": "mlp_out",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.output": "mlp_out",
    "mlp.input": "mlp_in",
    "self_attn.output": "attn_out",
    "attention.output": "attn_out",
    "attn.output": "attn_out",
}
# TransformerLens' names of models, by their beginning, and who publishes them.
_PUBLISHERS = (
    (r"gpt2-small|gpt2$", "openai-community/gpt2"),
    (r"gpt2-(medium|large|xl)$", r"openai-community/gpt2-\1"),
    (r"(pythia-.*)", r"EleutherAI/\1"),
    (r"(gemma-.*)", r"google/\1"),
    (r"gemma-v3-(.*)", r"google/gemma-3-\1"),
    (r"mistral-7b$", "mistralai/Mistral-7B-v0.1"),
    (r"(Llama-.*|Meta-Llama-.*)", r"meta-llama/\1"),
    (r"qwen3-([\d.]+)b$", r"Qwen/Qwen3-\1B"),
    (r"(Qwen.*)", r"Qwen/\1"),
)


class Place(NamedTuple):
    """A place in a model; None where the name says nothing that can be found in a HuggingFace model."""

    site: str | None
    layer: int | None


def from_hook(hook: object) -> Place:
    """Return the place that TransformerLens calls by that name.

    Example:
        >>> from_hook("blocks.8.hook_resid_pre")
        Place(site='resid_pre', layer=8)
    """
    match = re.fullmatch(r"blocks\.(\d{1,5})\.(.+)", hook) if isinstance(hook, str) else None
    site = _HOOKS.get(match.group(2)) if match else None
    return Place(site, int(match.group(1))) if match and site else Place(None, None)


def to_hook(site: str | None, layer: int | None) -> str | None:
    """Return TransformerLens' name of a place, where it has one.

    Example:
        >>> to_hook("attn_z", 3)
        'blocks.3.attn.hook_z'
    """
    names = {ours: theirs for theirs, ours in _HOOKS.items()}
    return f"blocks.{layer}.{names[site]}" if site in names and layer is not None else None


def from_module(path: object) -> Place:
    """Return the place that is that side of that module, wherever the stack of blocks hangs in the model.

    Example:
        >>> from_module("model.layers.5.self_attn.o_proj.input")
        Place(site='attn_z', layer=5)
    """
    pattern = r"(?:[\w.]{1,100}\.)?(?:layers|h|blocks)\.(\d{1,5})\.(.+)"
    match = re.fullmatch(pattern, path) if isinstance(path, str) else None
    site = _MODULES.get(match.group(2)) if match else None
    return Place(site, int(match.group(1))) if match and site else Place(None, None)


def model_id(name: object) -> str | None:
    """Return the Hub id of a model that a config calls by that name.

    Example:
        >>> model_id("gpt2-small")
        'openai-community/gpt2'
    """
    if not isinstance(name, str) or not name:
        return None
    short = name.removeprefix("google/") if name.startswith("google/gemma-v3-") else name
    if "/" in short:
        return short
    for pattern, identity in reversed(_PUBLISHERS):
        if match := re.fullmatch(pattern, short):
            return match.expand(identity)
    return short


def origin(path: Path) -> str:
    """Return a path as one string in which a repository of the Hub's cache reads ``owner/name``.

    Example:
        >>> origin(Path("/cache/models--google--gemma-scope-2b-pt-res/snapshots/ab/layer_0"))
        '/cache/google/gemma-scope-2b-pt-res/snapshots/ab/layer_0'
    """
    parts = path.absolute().as_posix().split("/")
    return "/".join(p.removeprefix("models--").replace("--", "/") if p.startswith("models--") else p for p in parts)
