"""What a model says of the tokens that it reads: how many in a row, which ids there are, which of them are special."""

from typing import Any

from torch import nn

_LONGEST_ROW = 1024  # tokens; models that could read more would need more memory than a default should take
_TOKENS_AT_ONCE = 4096
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_SPECIAL = ("bos", "eos", "pad", "sep", "cls")


def longest_row(model: nn.Module) -> int:
    """Return how many tokens the model reads in a row, by its config; at most 1024."""
    for name in _LENGTHS:
        length = _setting(model, name)
        if isinstance(length, int) and length > 1:
            return min(length, _LONGEST_ROW)
    return _LONGEST_ROW


def reading_of(model: nn.Module, context: int | None, batch_size: int | None) -> dict[str, Any]:
    """Return the arguments of `batches` by which a model is read where only its activations are wanted.

    Args: context: Tokens in a row; None: `longest_row`.  batch_size: Rows in a pass; None: about 4096 tokens of them.
    """
    context = longest_row(model) if context is None else context
    return {"context": context, "batch_size": max(_TOKENS_AT_ONCE // context, 1) if batch_size is None else batch_size}


def vocabulary_size(model: nn.Module) -> int | None:
    """Return how many token ids the model has an embedding for; None where it does not say."""
    size = getattr(getattr(model, "get_input_embeddings", lambda: None)(), "num_embeddings", None)
    return size if isinstance(size, int) else None


def special_ids(model: nn.Module) -> list[int]:
    """Return the special tokens that the model's config names, for ids that come without a tokenizer."""
    found = [_setting(model, f"{name}_token_id") for name in _SPECIAL]
    return [token for value in found for token in (value if isinstance(value, list) else [value]) if token is not None]


def _setting(model: nn.Module, name: str) -> Any:
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    return getattr(text, name, None)
