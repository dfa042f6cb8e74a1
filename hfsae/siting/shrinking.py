"""Shrink a model's config until the model is tiny, with the layout of its blocks unchanged.

Depth, layer types, norms, residual wiring and activation functions stay. Widths, heads, experts and vocabulary shrink
so that what must divide still divides:

1. Head counts become powers of two, at most four, in proportion to each other.
2. Widths are divided by one factor for the whole config, so that equal widths stay equal, and rounded to sixteens.
3. ``heads * head_dim`` keeps its ratio to the hidden size; ranks and other head dimensions are divided by one factor.
4. The vocabulary is cut and special tokens beyond its end move inside it, none onto another.
"""

import copy
import math
import re
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

VOCABULARY = 320
_WIDTH, _POSITIONS, _EXPERTS, _EXPERTS_CHOSEN, _HEADS_LEFT = 64, 512, 4, 2, 4

_HEADS = re.compile(r"(^|_)(n_?heads?|num_heads|heads|kv_n_heads)$")
_INNER = re.compile(
    r"(^|_)(head_?dim|d_head|dim_head|d_kv|head_size|kv_channels|key_dim|value_dim|rank|rotary_dim|state_size|d_state|"
    r"\w+_head_dim|\w+_rank|lowrank)$"
)
_GROUPS = re.compile(r"^(n_groups?|topk_group|num_expert_group|mamba_n_groups|mamba_ngroups)$")
_MODEL_WIDTH = re.compile(r"^(hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|hidden_dim|embedding_dim)$")
_WIDTH_NAMES = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim", "embed_dim")
_HEADS_AND_DIM = (
    ("num_attention_heads", "head_dim"),
    ("num_attention_heads", "attention_head_dim"),
    ("num_attention_heads", "attention_head_size"),
    ("num_attention_heads", "kv_channels"),
    ("num_heads", "head_dim"),
    ("num_heads", "d_kv"),
    ("n_head", "d_head"),
    ("n_heads", "head_dim"),
    ("mamba_n_heads", "mamba_d_head"),
    ("n_mamba_heads", "mamba_headdim"),
    ("mamba_num_heads", "mamba_head_dim"),
)
_WIDE = re.compile(
    r"(^|_)(hidden_sizes?|d_model|n_embd|n_inner|dim|emb_dim|embed_dim|hidden_dim|embedding_size|intermediate_size|d_ff|ffn_dim|"
    r"d_inner|d_ssm|ffn_hidden_size|lru_width|dim_ff|proj_dim|embedding_dim|d_embed|mlp_dim|feed_forward_size|bottleneck_size|"
    r"emb_size|out_dim|output_dim|input_dim|attn_dim|final_dim|query_dim|hidden_channels|width|embed_proj_dim)$"
    r"|^intermediate_size|^hidden_size"
)
_VOCABULARY = re.compile(r"vocab_size|^ngram_vocab|codebook_size|vocab_size_per_layer_input")
_POSITION = re.compile(r"max_\w*position|^n_positions$|^n_ctx$|max_\w*seq\w*_len\w*$|max_target_positions|^seq_length$")
_EXPERT = re.compile(r"(^|_)(num|n|moe)_(\w+_)?experts$|expert_num$|^n_routed_experts$|^num_local_experts$")
_CHOSEN = re.compile(r"experts_per_tok|moe_topk|moe_top_k|moe_k$|num_experts_per_token|top_k_experts")
_TOKEN = re.compile(r"(token_(id|index)|_token_ids|_tok_id|token_idx)$")


@dataclass(frozen=True)
class _Scale:
    heads: float
    width: float
    inner: float


def shrink(config: Any) -> Any:
    """Return a tiny copy of a transformers config, its sub-configs included."""
    small = copy.deepcopy(config)
    moved: dict[int, int] = {}
    for part in config_parts(small):
        before = {name: value for name, value in vars(part).items() if not name.startswith("_")}
        scale = _scale(before)
        for name, value in before.items():
            changed = _shrunk(name, value, scale, moved)
            if changed is not value:
                setattr(part, name, changed)
        for overrides in _per_layer(part):
            overrides.update({name: _shrunk(name, value, scale, moved) for name, value in overrides.items()})
        _fit_head_dims(part, before)
        _fit_rope(part)
    return small


def config_parts(config: Any) -> Iterator[Any]:
    """Yield a config and the configs inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from config_parts(value)


def _per_layer(part: Any) -> Iterable[dict[str, Any]]:
    """Return what single layers have in place of the config's own values (transformers 5.23, Gemma 4)."""
    spec = vars(part).get("_heterogeneity_spec")
    return () if spec is None else spec.per_layer_overrides.values()


def _scale(values: MutableMapping[str, Any]) -> _Scale:
    heads = [value for name, value in values.items() if _HEADS.search(name) and _is_count(value)]
    widths = [value for name, value in values.items() if _MODEL_WIDTH.search(name) and _is_count(value)]
    inner = [value for name, value in values.items() if _INNER.search(name) and _is_count(value) and value >= 8]
    return _Scale(
        heads=max([1.0, *(count / _HEADS_LEFT for count in heads)]),
        width=max([1.0, *(width / _WIDTH for width in widths[:1])]),
        inner=float(_power_of_two(min(inner, default=8) / 8)),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _power_of_two(value: float) -> int:
    return 1 << max(0, math.floor(math.log2(max(value, 1))))


def _shrunk(name: str, value: Any, scale: _Scale, moved: dict[int, int]) -> Any:
    """Return the smaller value of one field; what no rule speaks of is left as it is."""
    if isinstance(value, list | tuple) and value and all(map(_is_count, value)) and not name.endswith("layers"):
        return type(value)(_shrunk(name, item, scale, moved) for item in value)
    if _TOKEN.search(name) and isinstance(value, int) and value >= VOCABULARY:
        return moved.setdefault(value, VOCABULARY - 1 - len(moved))
    if not _is_count(value):
        return value
    rules: tuple[tuple[re.Pattern[str], int], ...] = (
        (_GROUPS, 1),
        (_CHOSEN, min(value, _EXPERTS_CHOSEN)),
        (_EXPERT, min(value, _EXPERTS)),
        (_HEADS, min(value, _power_of_two(value / scale.heads))),
        (_VOCABULARY, min(value, VOCABULARY)),
        (_POSITION, min(value, _POSITIONS)),
        (_INNER, max(1, int(value / scale.inner))),
        (_WIDE, min(value, max(16, round(value / scale.width / 16) * 16))),
    )
    return next((smaller for pattern, smaller in rules if pattern.search(name)), value)


def _fit_head_dims(part: Any, before: MutableMapping[str, Any]) -> None:
    """Keep ``heads * head_dim`` in the proportion to the hidden size that it had."""
    for heads_name, dim_name in _HEADS_AND_DIM:
        heads, dim = before.get(heads_name), before.get(dim_name)
        width = next((name for name in _WIDTH_NAMES if _is_count(before.get(name))), None)
        if not (_is_count(heads) and _is_count(dim) and width):
            continue
        if dim == before.get("qk_rope_head_dim"):  # the part of a head that is rotated, not the head
            continue
        assert isinstance(heads, int)
        assert isinstance(dim, int)
        ratio = heads * dim / before[width]
        fitted = ratio * vars(part)[width] / vars(part)[heads_name]
        if ratio * 4 == int(ratio * 4) and fitted == int(fitted):
            setattr(part, dim_name, int(fitted))


def _fit_rope(part: Any) -> None:
    """Cut what a rotary embedding lists per frequency, and deal its sections out anew, to the smaller head."""
    ropes = [value for value in (getattr(part, "rope_parameters", None), getattr(part, "rope_scaling", None)) if value]
    for rope in ropes:
        for table in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            _fit_rope_table(table, _head_dim(part))


def _head_dim(part: Any) -> int:
    names = ("head_dim", "num_attention_heads", "hidden_size")
    head_dim, heads, width = (vars(part).get(name) for name in names)
    if _is_count(head_dim):
        return int(head_dim)
    return int(width // heads) if _is_count(heads) and _is_count(width) else 16


def _fit_rope_table(table: dict[str, Any], head_dim: int) -> None:
    rotary = int(head_dim * table.get("partial_rotary_factor", 1.0))
    for name in ("short_factor", "long_factor"):
        if isinstance(table.get(name), list):
            table[name] = table[name][: rotary // 2]
    sections = table.get("mrope_section")
    if sections:
        cut = [rotary // 2 * section // sum(sections) for section in sections]
        table["mrope_section"] = [cut[0] + rotary // 2 - sum(cut), *cut[1:]]
