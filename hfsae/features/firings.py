"""Run data to the site and read what fires: the stream that an index and the measures are made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfsae.attaching.attachment import Attachment
from hfsae.data.limits import longest_row, special_ids
from hfsae.data.tokens import TokenBatch, batches, spliced_mask
from hfsae.hooks import capture
from hfsae.sites import unwrap

CONTEXT = 256
"""Tokens in a row, where nothing else is asked for and the model reads so many."""


@dataclass(frozen=True, eq=False)
class Fired:
    """The firings of one batch, one per entry, on the CPU."""

    row: Tensor
    position: Tensor
    feature: Tensor
    value: Tensor


def firings(attachment: Attachment, stream: Iterable[TokenBatch]) -> Iterator[tuple[TokenBatch, Tensor, Fired]]:
    """Give each batch, the mask of its tokens that were encoded, and what fired on them; the model stops at the site.

    Tokens that the dictionary's policy excludes are not encoded. The model must be in eval mode.
    """
    model, dictionary = unwrap(attachment.model), attachment.dictionary
    device = next(model.parameters()).device
    for batch in stream:
        (x,) = capture(model, [attachment.point], **batch.to(device).model_inputs())
        mask = spliced_mask(batch.to(x.device), x, dictionary.config)
        f = dictionary.encode_sparse(x[mask].to(dictionary.W_enc.device))
        token, feature, value = (part.detach().cpu() for part in f.fired())
        mask = mask.cpu()
        row, position = mask.nonzero(as_tuple=True)
        yield batch, mask, Fired(row[token], position[token], feature, value.float())


def read(attachment: Attachment, data: object, tokenizer: Any, reading: dict[str, Any]) -> Iterator[TokenBatch]:
    """Return data as batches that fit the model; ``reading`` is what `hfsae.data.tokens.batches` may be told."""
    model = unwrap(attachment.model)
    known = None if tokenizer is not None else special_ids(model)
    reading = {"context": min(CONTEXT, longest_row(model))} | reading
    return batches(data, tokenizer=tokenizer, special_ids=known, **reading)
