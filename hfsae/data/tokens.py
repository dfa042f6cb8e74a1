"""Text or token ids to batches of ids, and the mask of the tokens that a dictionary stands for.

1. Whatever comes in is read as documents (documents.py).
2. Packed, documents follow one another, each begun by BOS (or, where the tokenizer has none, ended by EOS), and are cut
   into windows of `context` tokens. Unpacked, each document is its own row, and a long one goes on in the next row.
   A window that starts inside a document begins with BOS too, so that no token is predicted from nothing.
3. Rows are padded on the right, which gives every token the position it has alone: no number depends on how the caller
   padded. Nothing is dropped but texts without a token, and those are counted.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hfsae.data.documents import Document, documents
from hfsae.errors import InvalidValue
from hfsae.sae.config import SAEConfig


@dataclass(frozen=True)
class TokenBatch:
    """Rows of token ids, padded on the right."""

    input_ids: Int[Tensor, "batch seq"]
    """Token ids; whatever stands under the padding means nothing."""
    attention_mask: Bool[Tensor, "batch seq"]
    """True for tokens, False for padding."""
    special_mask: Bool[Tensor, "batch seq"]
    """True for special tokens (BOS, EOS and their like), valid or not."""
    counted_mask: Bool[Tensor, "batch seq"] | None = None
    """True for tokens that a dictionary is to stand for, where only some are: what the assistant says; None: all."""

    @property
    def valid(self) -> Bool[Tensor, "batch seq"]:
        """True for tokens, False for padding; the *valid* mask of an evaluation."""
        return self.attention_mask

    @property
    def tokens(self) -> int:
        """Number of valid tokens."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the same batch on another device."""
        masks = (self.attention_mask, self.special_mask, self.counted_mask)
        return TokenBatch(self.input_ids.to(device), *(None if mask is None else mask.to(device) for mask in masks))  # type: ignore[arg-type]

    def model_inputs(self) -> dict[str, Tensor]:
        """Return what a HuggingFace model is called with: ``input_ids`` and ``attention_mask``."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask.long()}


@dataclass
class TokenCounts:
    """What became of the data, counted as it is read."""

    documents: int = 0
    """Texts, or rows of ids, that were read."""
    empty: int = 0
    """Those without a single token: nothing of them is in a batch."""
    cut: int = 0
    """Those that did not fit in one row and go on in the next."""
    rows: int = 0
    """Rows given out."""
    tokens: int = 0
    """Valid tokens given out, special ones included."""


@dataclass(frozen=True)
class _Rules:
    """How documents become rows; `batches` says what each field means."""

    tokenizer: Any
    batch_size: int
    context: int
    max_tokens: int | None
    pack: bool | None
    prepend_bos: bool | None
    special_ids: frozenset[int]
    vocab_size: int | None
    assistant_only: bool

    def __post_init__(self) -> None:
        for name in ("batch_size", "context", "max_tokens", "vocab_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidValue(f"{name}={value!r} is not a positive whole number. It counts tokens or rows.")
        if self.context < 2:
            raise InvalidValue(
                f"context={self.context} leaves no token to predict. Give a context of 2 or more tokens."
            )
        if self.prepend_bos and self.bos_id is None:
            raise InvalidValue(
                "prepend_bos=True needs a BOS token and there is none. It is read from `tokenizer.bos_token_id`. "
                "Pass a tokenizer that has one, or leave prepend_bos out."
            )

    @property
    def bos_id(self) -> int | None:
        return getattr(self.tokenizer, "bos_token_id", None)

    @property
    def eos_id(self) -> int | None:
        return getattr(self.tokenizer, "eos_token_id", None)


class TokenBatches(Iterator[TokenBatch]):
    """The batches of `batches`, one after the other, and ``counts`` of what was read so far."""

    def __init__(self, data: object, rules: _Rules) -> None:
        self.counts = TokenCounts()
        self._batches = _batches(data, rules, self.counts)

    def __next__(self) -> TokenBatch:
        return next(self._batches)


def batches(  # noqa: PLR0913
    data: object,
    *,
    tokenizer: Any = None,
    batch_size: int = 8,
    context: int = 256,
    max_tokens: int | None = None,
    pack: bool | None = None,
    prepend_bos: bool | None = None,
    special_ids: Collection[int] | None = None,
    vocab_size: int | None = None,
    assistant_only: bool = False,
) -> TokenBatches:
    """Return an iterator over token batches of any data, in the order of the data.

    Args:
        data: A string, token ids (a tensor ``[seq]`` or ``[rows, seq]``, a list of numbers), what a tokenizer returns,
            a conversation (messages with a "role" and a "content"), or an iterable of any of these: lists, generators,
            rows with a "text", an "input_ids" or a "messages" column, `datasets`. Under an ``attention_mask`` of 0 ids
            are left out.
        tokenizer: A HuggingFace tokenizer; needed for texts and conversations. Its special tokens fill
            ``special_mask``.
        batch_size: Rows in a batch; the last batch may have fewer.
        context: Most tokens in a row. Longer documents go on in the next row.
        max_tokens: Stop after so many tokens, special ones included; the last row is cut to hit the number.
        pack: Join documents into full rows, or give each its own. By default texts are packed and ids are not.
        prepend_bos: Begin documents and rows with BOS. By default texts are where the tokenizer has a BOS, ids are not.
            An id row that already begins with BOS gets no second one.
        special_ids: Ids that count as special, in place of the tokenizer's.
        vocab_size: Refuse ids that the model has no embedding for.
        assistant_only: Of conversations, a dictionary is to stand only for what the assistant says (``counted_mask``).

    Raises:
        InvalidValue: when the data hold no token, when ids are out of range, or a number makes no sense.
        InvalidType: for data of another kind, and for texts without a tokenizer.

    Example:
        >>> [batch.input_ids.tolist() for batch in batches([[5, 6, 7], [8]], batch_size=2, context=4)]
        [[[5, 6, 7], [8, 0, 0]]]
    """
    known = special_ids if special_ids is not None else getattr(tokenizer, "all_special_ids", ())
    rules = _Rules(
        tokenizer, batch_size, context, max_tokens, pack, prepend_bos, frozenset(known), vocab_size, assistant_only
    )
    return TokenBatches(data, rules)


def spliced_mask(
    batch: TokenBatch, x: Float[Tensor, "batch seq d_in"] | None, config: SAEConfig
) -> Bool[Tensor, "batch seq"]:
    """Return the tokens that the dictionary stands for: valid, and not excluded by its own policy.

    A token is a norm outlier when its |x| exceeds ``config.norm_outlier`` times the median over the other tokens of its
    own row: a median over the batch would make results depend on the batch size.

    Args:
        x: Activations at the site; only read where the policy has a ``norm_outlier``.

    Raises:
        InvalidValue: when the policy needs ``x`` and it is None.
    """
    mask = batch.valid.clone()
    if config.exclude_first_position:
        mask &= batch.valid.cumsum(1) > 1
    if config.exclude_special_tokens:
        mask &= ~batch.special_mask
    if batch.counted_mask is not None:
        mask &= batch.counted_mask
    if config.norm_outlier is None:
        return mask
    if x is None:
        raise InvalidValue(
            "The dictionary excludes norm outliers, which needs the activations x. Got x=None. Pass them."
        )
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).masked_fill(~mask, torch.nan)
    typical = norms.nanmedian(dim=1, keepdim=True).values
    return mask & (norms <= typical * config.norm_outlier)


def _batches(data: object, rules: _Rules, counts: TokenCounts) -> Iterator[TokenBatch]:
    rows = _within_budget(_rows(data, rules, counts), rules.max_tokens)
    while chunk := list(islice(rows, rules.batch_size)):
        counts.rows += len(chunk)
        counts.tokens += sum(map(len, chunk))
        yield _pad(chunk, rules.special_ids)
    if not counts.rows:
        raise InvalidValue(
            "The data hold no tokens. At least one text or row of ids with a token is needed. "
            "An iterator that was used up before gives none: pass the data anew."
        )


def _pad(rows: list["_Row"], special_ids: frozenset[int]) -> TokenBatch:
    width = max(map(len, rows))
    input_ids = torch.tensor([row.ids + [0] * (width - len(row)) for row in rows])
    attention_mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    special_mask = torch.isin(input_ids, torch.tensor(sorted(special_ids), dtype=torch.long))
    if all(all(row.counted) for row in rows):
        return TokenBatch(input_ids, attention_mask, special_mask)
    counted_mask = torch.tensor([row.counted + [False] * (width - len(row)) for row in rows])
    return TokenBatch(input_ids, attention_mask, special_mask, counted_mask)


def _within_budget(rows: Iterator["_Row"], max_tokens: int | None) -> Iterator["_Row"]:
    if max_tokens is None:
        yield from rows
        return
    left = max_tokens
    for row in rows:
        yield row[:left]
        left -= len(row)
        if left <= 0:
            return


@dataclass(frozen=True)
class _Row:
    """Ids of a row, and which of them count."""

    ids: list[int]
    counted: list[bool]

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: "_Row") -> "_Row":
        return _Row(self.ids + other.ids, self.counted + other.counted)

    def __getitem__(self, part: slice) -> "_Row":
        return _Row(self.ids[part], self.counted[part])


def _rows(data: object, rules: _Rules, counts: TokenCounts) -> Iterator[_Row]:
    """Cut documents into rows; each kind of data by its own default of packing."""
    row = _Row([], [])
    for document in documents(data, rules.tokenizer, rules.assistant_only):
        counts.documents += 1
        counts.empty += not document.ids
        _check_ids(document.ids, rules.vocab_size)
        pack = document.is_text if rules.pack is None else rules.pack
        if row and not pack:
            yield row
            row = _Row([], [])
        pieces = list(_pieces(document, pack, rules, room=rules.context - len(row)))
        counts.cut += len(pieces) > 1
        for piece in pieces:
            row = row + piece
            if len(row) == rules.context or not pack:
                yield row
                row = _Row([], [])
    if row:
        yield row


def _pieces(document: Document, pack: bool, rules: _Rules, room: int) -> Iterator[_Row]:
    """Cut a document to fit ``room`` tokens first and whole rows from there, each piece begun by BOS where wanted."""
    wanted = document.is_text if rules.prepend_bos is None else rules.prepend_bos
    bos, ids = rules.bos_id if wanted else None, document.ids
    if ids and pack and document.is_text and bos is None and rules.eos_id is not None:
        ids = [*ids, rules.eos_id]
    whole = _Row(ids, [True] * len(ids) if document.counted is None else document.counted)
    start = 0
    while start < len(ids):
        head = _Row([], []) if bos is None or ids[start] == bos else _Row([bos], [True])
        stop = start + room - len(head)
        yield head + whole[start:stop]
        start, room = stop, rules.context


def _check_ids(ids: list[int], vocab_size: int | None) -> None:
    if not ids:
        return
    low, high = min(ids), max(ids)
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        worst = low if low < 0 else high
        end = f"{vocab_size - 1}" if vocab_size is not None else "the size of the vocabulary"
        raise InvalidValue(
            f"Token id {worst} is out of range. The model's ids go from 0 to {end}. "
            "Use the tokenizer that belongs to the model."
        )
