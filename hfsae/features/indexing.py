"""`index_features`: one pass over data that shows what every feature fires on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hfsae.attaching.attachment import Attachment
from hfsae.data.limits import longest_row, special_ids, vocabulary_size
from hfsae.data.tokens import TokenBatch, batches
from hfsae.errors import InvalidValue, Mismatch
from hfsae.features.attribution import logit_attribution, nearest
from hfsae.features.collecting import Collected
from hfsae.features.firings import CONTEXT, firings
from hfsae.features.index import FeatureIndex, check_whole
from hfsae.features.labelling import AUTOMATIC
from hfsae.measuring.passes import at_rest
from hfsae.sites import unwrap

_NEIGHBOURS, _TOKENS = 8, 16


def index_features(  # noqa: PLR0913
    attachment: Attachment,
    data: object,
    *,
    tokenizer: Any = None,
    batch_size: int = 16,
    context: int | None = None,
    max_tokens: int | None = None,
    contexts: int = 16,
    folder: str | Path | None = None,
    save_every: int = 1_000_000,
    progress: bool = True,
) -> FeatureIndex:
    """Return an index of what the features of a dictionary fire on, made in one pass over the data.

    The model runs no further than the site. Tokens that the dictionary's policy excludes are left out.

    Args:
        attachment: From `attach`.
        data: Texts or token ids of any kind that `hfsae.data.tokens.batches` reads.
        tokenizer: Needed for texts, and to show tokens as text.
        context: Tokens in a row, where texts are packed; by default what the model reads, at most 256.
        max_tokens: Stop after so many tokens.
        contexts: Strongest contexts kept for each feature.
        folder: Where the index is kept; a pass that was interrupted goes on from what lies there, over the same data.
        save_every: Tokens between two saves.
        progress: Show a bar when it takes more than two seconds.

    Raises:
        InvalidValue: when the data hold no token that is encoded.
        Mismatch: when the folder holds the index of another dictionary.
        Unsupported: when it holds one that was trimmed.
    """
    model = unwrap(attachment.model)
    collected = _begun(attachment, folder, contexts, _vocabulary_size(model, tokenizer))
    stream = batches(
        data,
        tokenizer=tokenizer,
        batch_size=batch_size,
        context=min(CONTEXT, longest_row(model)) if context is None else context,
        max_tokens=max_tokens,
        special_ids=special_ids(model) if tokenizer is None else None,
        vocab_size=collected.vocabulary,
    )
    saved_at = collected.tokens
    with at_rest(model):
        for batch, mask, fired in firings(attachment, _with_bar(_rest(stream, collected.rows), progress)):
            collected.add(batch, mask, fired)
            if folder is not None and collected.tokens - saved_at >= save_every:
                _finished(attachment, model, collected, tokenizer).save(folder)
                saved_at = collected.tokens
    if not collected.tokens:
        raise InvalidValue("No token was encoded: all are special or excluded. Give longer texts.")
    index = _finished(attachment, model, collected, tokenizer)
    if folder is not None:
        index.save(folder)
    return index


def _begun(attachment: Attachment, folder: str | Path | None, contexts: int, vocabulary: int) -> Collected:
    if folder is None or not (Path(folder) / "index.json").exists():
        return Collected(attachment.dictionary.config.d_sae, vocabulary, contexts)
    index = FeatureIndex.load(folder)
    if index.dictionary != _id(attachment):
        raise Mismatch(
            f"{folder} holds the index of {index.dictionary!r}. One of {_id(attachment)!r} was to be made. "
            "Choose another folder."
        )
    check_whole(index)
    return index.collected


def _rest(stream: Iterator[TokenBatch], done: int) -> Iterator[TokenBatch]:
    """Pass over the rows that an earlier run has counted."""
    seen = 0
    for batch in stream:
        rows = len(batch.valid)
        if seen + rows > done:
            fresh = slice(max(done - seen, 0), None)
            yield TokenBatch(batch.input_ids[fresh], batch.attention_mask[fresh], batch.special_mask[fresh])
        seen += rows


def _finished(attachment: Attachment, model: nn.Module, collected: Collected, tokenizer: Any) -> FeatureIndex:
    dictionary = attachment.dictionary
    weights: dict[str, Tensor] = {}
    effects = logit_attribution(model, dictionary.W_dec, _TOKENS)
    if effects is not None:
        names = ("promoted_ids", "promoted_values", "suppressed_ids", "suppressed_values")
        weights |= dict(zip(names, effects, strict=True))
    if len(dictionary.W_dec) > 1:
        weights["neighbour_ids"], weights["neighbour_values"] = nearest(dictionary.W_dec, _NEIGHBOURS)
    known = getattr(dictionary, "labels", {}).items()
    # Automatic ones are left out: those of this index follow from its own counts.
    labels = {i: (label.text, label.source) for i, label in known if label.source != AUTOMATIC}
    return FeatureIndex(_id(attachment), collected, _vocabulary(tokenizer, collected.vocabulary), weights, labels)


def _id(attachment: Attachment) -> str:
    return str(getattr(attachment.dictionary, "id", attachment.dictionary.config.place))


def _vocabulary_size(model: nn.Module, tokenizer: Any) -> int:
    size = vocabulary_size(model) or (len(tokenizer) if tokenizer is not None else None)
    if size is None:
        raise InvalidValue(f"{type(model).__name__} does not say how many tokens it knows. Pass its tokenizer.")
    return size


def _vocabulary(tokenizer: Any, size: int) -> list[str]:
    if tokenizer is None:
        return [f"⟨{token}⟩" for token in range(size)]
    known = len(tokenizer)
    return [tokenizer.decode([token]) if token < known else f"⟨{token}⟩" for token in range(size)]


def _with_bar(items: Iterator[TokenBatch], progress: bool) -> Iterator[TokenBatch]:
    from tqdm import tqdm

    # disable=None: no bar where no one watches, such as a file.
    yield from tqdm(items, desc="index", unit="batch", delay=2, leave=False, disable=None if progress else True)
