"""Any data a user may hold, read as documents: one list of token ids after the other.

Texts are tokenised without special tokens: where those belong is decided when rows are cut. Conversations get theirs
from the chat template. Rows of ids lose their padding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfsae.data.chats import assistant_mask, conversation_ids, is_conversation
from hfsae.errors import InvalidType, InvalidValue

_TEXTS_AT_ONCE = 64  # a fast tokenizer earns its threads on lists, and a stream need not be read further ahead


@dataclass(frozen=True)
class Document:
    """One text, or one row of ids, as token ids without padding."""

    ids: list[int]
    """Token ids; empty where there was no token."""
    is_text: bool
    """Whether it came as text, so that special tokens are still to be placed."""
    counted: list[bool] | None = None
    """Which of them count; None: all. The others are read by the model, and stand for nothing more."""


@dataclass(frozen=True)
class Conversation:
    """Messages, each with a "role" and a "content"."""

    messages: Sequence[Mapping[str, Any]]


def documents(data: object, tokenizer: Any, assistant_only: bool = False) -> Iterator[Document]:
    """Return the documents of any data in their order, texts tokenised some at a time.

    Args: assistant_only: Of conversations, only what the assistant says counts.
    Raises:
        InvalidType: for data of a kind that is not read, and for texts or conversations without a tokenizer.
        InvalidValue: for ids of a wrong shape, or a mask that does not fit them.
    """
    texts: list[str] = []
    for item in _items(data):
        if isinstance(item, str):
            texts.append(item)
            if len(texts) < _TEXTS_AT_ONCE:
                continue
        yield from _tokenise(texts, tokenizer)
        texts = []
        if isinstance(item, Conversation):
            counted = assistant_mask(item.messages, tokenizer) if assistant_only else None
            yield Document(conversation_ids(item.messages, tokenizer), is_text=False, counted=counted)
        elif not isinstance(item, str):
            yield Document(item, is_text=False)
    yield from _tokenise(texts, tokenizer)


def _tokenise(texts: list[str], tokenizer: Any) -> Iterator[Document]:
    if not texts:
        return
    if tokenizer is None:
        raise InvalidType(
            f"The data are texts ({texts[0][:40]!r}) and there is no tokenizer. Pass the model's own, tokenizer=..., "
            "or give token ids."
        )
    # verbose=False: texts beyond the model's context are cut here, and need no warning that they are too long.
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        yield Document(list(ids), is_text=True)


def _items(data: object) -> Iterator[str | list[int] | Conversation]:
    """Flatten data to single texts, single rows of ids and single conversations."""
    if isinstance(data, str):
        yield data
    elif is_conversation(data):
        yield Conversation(data)
    elif isinstance(data, Mapping):
        yield from _columns(data)
    elif isinstance(data, Tensor):
        yield from _tensor_rows(data)
    elif isinstance(data, np.ndarray):
        yield from _items(torch.as_tensor(data) if data.dtype.kind in "iuf" else data.tolist())
    elif isinstance(data, Iterable) and not isinstance(data, bytes):
        entries = iter(data)
        first = next(entries, None)
        if first is None or isinstance(first, Integral):
            yield _plain_ids(entries if first is None else chain([first], entries))
        else:
            for entry in chain([first], entries):
                yield from _items(entry)
    else:
        raise InvalidType(
            f"Data of type {type(data).__name__} cannot be read. "
            "Expected texts, token ids, what a tokenizer returns, or an iterable of these."
        )


def _columns(row: Mapping[str, Any]) -> Iterator[str | list[int] | Conversation]:
    if "input_ids" in row:
        ids, mask = row["input_ids"], row.get("attention_mask")
        yield from _items(ids) if mask is None else _masked(list(_items(ids)), list(_items(mask)))
    elif "text" in row:
        yield from _items(row["text"])
    elif "messages" in row:
        yield from _items(row["messages"])
    else:
        raise InvalidType(
            f'The data have the columns or keys {sorted(map(str, row))}. Expected "text", "input_ids" or "messages". '
            "Rename one, or pass one split of a dataset."
        )


def _masked(rows: list[Any], masks: list[Any]) -> Iterator[list[int]]:
    if [len(row) for row in rows] != [len(mask) for mask in masks]:
        raise InvalidValue("input_ids and attention_mask differ in shape. Each token needs one entry in the mask.")
    for row, mask in zip(rows, masks, strict=True):
        yield [token for token, kept in zip(row, mask, strict=True) if kept]


def _tensor_rows(ids: Tensor) -> Iterator[list[int]]:
    if ids.is_floating_point() or ids.is_complex():
        raise InvalidType(f"Token ids have dtype {ids.dtype}. Expected whole numbers. Pass ids, not activations.")
    if ids.dim() not in (1, 2):
        raise InvalidValue(f"Token ids have shape {list(ids.shape)}. Expected [seq] or [rows, seq].")
    yield from ids.long().reshape(-1, ids.shape[-1]).tolist()


def _plain_ids(ids: Iterable[object]) -> list[int]:
    row: list[int] = []
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise InvalidType(
                f"A row of token ids holds {token!r}. Expected whole numbers only. Keep texts and ids apart."
            )
        row.append(int(token))
    return row
