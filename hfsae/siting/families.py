"""How the blocks of each model family are wired: rows of data, from which the sites inside a block are read.

A row is a hypothesis. It is believed of a block only when its identity holds on a probe of that very model (`wirings`),
so a new model with a known wiring needs no new row, and a wrong row finds nothing instead of something wrong.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One way to wire a block. Each field lists module paths inside the block; the first that fits is taken."""

    name: str
    """What the wiring is called in tables and messages."""
    examples: tuple[str, ...]
    """Model types that have it, as ``config.model_type``."""
    attn_out: tuple[str, ...] = ()
    """Modules whose output attention, or what mixes tokens in its place, gives to the residual stream."""
    mlp_out: tuple[str, ...] = ()
    """Modules whose output the MLP gives to the residual stream."""
    mlp_in: tuple[str, ...] = ()
    """Modules whose input the MLP reads; empty: the module of ``mlp_out``."""
    cross_out: tuple[str, ...] = ()
    """Modules whose output cross-attention gives, in decoders that have it, or another third part of the sum."""
    norms_the_sum: bool = False
    """False: ``resid_post - resid_pre == attn_out + mlp_out``. True: each sum is normalised before it goes on."""


_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mamba", "temporal_block", "conv")
_MIXERS = (
    *_ATTENTION,
    "short_conv",
    "self_att.self_attention",
    "attn.attention",
    "linear_attention",
    "layer.0.SelfAttention",
)
_MLPS = (
    "mlp",
    "feed_forward",
    "block_sparse_moe",
    "moe",
    "ffn",
    "mlp_block",
    "ff",
    "feedforward",
    "ffn.ffn",
    "mlp_layer",
)

FAMILIES = (
    Family(
        "norms after both",
        ("gemma2", "gemma3_text", "gemma4_text", "olmo2", "olmo3", "glm4", "exaone4", "afmoe", "t5gemma"),
        attn_out=(
            "post_attention_layernorm",
            "post_self_attn_layernorm",
            "post_operator_norm",
            "post_norm1",
            "post_attention_convolution",
            "attn_sconv",
        ),
        mlp_out=(
            "post_feedforward_layernorm",
            "post_mlp_layernorm",
            "post_ffn_norm",
            "post_norm2",
            "post_mlp_convolution",
            "mlp_sconv",
        ),
        mlp_in=_MLPS,
        cross_out=("post_cross_attn_layernorm", "post_per_layer_input_norm"),
    ),
    Family("layer scale", ("dinov2",), ("layer_scale1",), ("layer_scale2",), mlp_in=_MLPS),
    Family(
        "modules added",
        ("gpt2", "llama", "gpt_neox", "qwen3", "mixtral", "phi", "falcon"),
        attn_out=_MIXERS,
        mlp_out=_MLPS,
        cross_out=("encoder_attn", "crossattention", "cross_attention", "cross_attn"),
    ),
    Family(
        "residual inside the modules",
        ("bloom", "mpt"),
        attn_out=("self_attention.dense", "attn.out_proj", "attention.dense"),
        mlp_out=("mlp.dense_4h_to_h", "ffn.down_proj", "ffn.w_out"),
        mlp_in=("mlp", "ffn"),
    ),
    Family(
        "two linear maps in the block",
        ("opt", "xglm", "mbart", "pegasus", "m2m_100"),
        attn_out=("self_attn", "attention"),
        mlp_out=("fc2",),
        mlp_in=("fc1",),
        cross_out=("encoder_attn",),
    ),
    Family(
        "sublayers with the residual inside",
        ("t5", "mt5", "umt5", "longt5", "switch_transformers"),
        attn_out=(
            "layer.0.SelfAttention",
            "layer.0.LocalSelfAttention",
            "layer.0.TransientGlobalSelfAttention",
            "layer.0.attention",
        ),
        mlp_out=("layer.2.DenseReluDense", "layer.1.DenseReluDense", "layer.2.mlp", "layer.1.mlp"),
        cross_out=("layer.1.EncDecAttention",),
    ),
    Family(
        "output modules, norms before",
        ("esm", "megatron-bert", "xlm-roberta-xl", "vit"),
        attn_out=("attention.output.dense", "attention.output"),
        mlp_out=("output.dense", "mlp"),
        mlp_in=("intermediate.dense", "intermediate", "mlp"),
        cross_out=("crossattention.output.dense",),
    ),
    Family(
        "output modules, norms of the sums",
        ("bert", "roberta", "electra", "deberta", "big_bird"),
        attn_out=("attention.output.dense", "attention.o_proj", "fourier"),
        mlp_out=("output.dense",),
        mlp_in=("intermediate.dense", "intermediate"),
        cross_out=("crossattention.output.dense",),
        norms_the_sum=True,
    ),
    Family(
        "two linear maps, norms of the sums",
        ("bart", "marian", "blenderbot-small", "plbart", "gpt_bigcode"),
        attn_out=("self_attn",),
        mlp_out=("fc2",),
        mlp_in=("fc1",),
        cross_out=("encoder_attn",),
        norms_the_sum=True,
    ),
    Family(
        "modules, norms of the sums",
        ("distilbert", "openai-gpt", "gte"),
        attn_out=_MIXERS,
        mlp_out=("ffn", "mlp", "feed_forward"),
        cross_out=("encoder_attn", "cross_attention"),
        norms_the_sum=True,
    ),
    Family("a mixer alone", ("mamba", "falcon_mamba", "mamba2"), attn_out=("mixer", "mamba", "self_attn")),
    Family("an MLP alone", ("nemotron_h",), mlp_out=("mixer", "mlp")),
)
"""Every known wiring, in the order in which they are tried; the narrower stand first."""
