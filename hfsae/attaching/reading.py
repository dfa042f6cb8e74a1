"""Reading features: what fired where, in one forward (`TopFeatures`) or in every forward of a while (`Recording`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.attaching import scope
from hfsae.attaching.mount import Mount
from hfsae.attaching.plan import Counter, Entry
from hfsae.attaching.scope import Opening
from hfsae.errors import InvalidType, InvalidValue
from hfsae.interventions import Record
from hfsae.registry import SHIPPED
from hfsae.sae.base import SparseCoder
from hfsae.sae.sparse import FeatureList, SparseFeatures
from hfsae.sites import base_model_id

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")


# How byte-level and sentence-piece tokenizers write a space, a line break and a tab.
_READABLE = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "↵", "ĉ": "⇥"})


class Recording:
    """While open, keeps the features of every token that passes the attachment in this thread: one entry per forward.

    Features are those of the activation as the model made it, before edits at the same attachment.

    Example: ``with att.record() as seen: model(**inputs)``; then ``seen.at([3012])`` is ``[batch, tokens, 1]``.
    """

    def __init__(self, mount: Mount) -> None:
        self.forwards: list[SparseFeatures] = []
        self._mount = mount
        self._opening: Opening | None = None

    def __enter__(self) -> "Recording":
        if self._opening is not None:
            raise InvalidValue("This recording is already open. It is entered once at a time. Make a second one.")
        self._opening = Opening(((self._mount, Entry(Record(keep=self._keep), Counter())),))
        scope.enter(self._opening)
        return self

    def __exit__(self, *_: object) -> None:
        if self._opening is not None:
            scope.leave(self._opening)
            self._opening = None

    def _keep(self, features: SparseFeatures) -> None:
        self.forwards.append(features)

    def __len__(self) -> int:
        return len(self.forwards)

    def __repr__(self) -> str:
        return f"Recording({len(self)} forwards of {self._mount.dictionary})"

    def __iter__(self) -> Iterator[SparseFeatures]:
        return iter(self.forwards)

    def __getitem__(self, forward: int) -> SparseFeatures:
        return self.forwards[forward]

    def at(self, features: FeatureList) -> Tensor:
        """Return those features of all forwards end to end, ``[batch, tokens, n]``: with a KV cache, of the whole text.

        Raises: InvalidValue: when nothing was recorded, or the forwards have different batches.
        """
        if len({forward.shape[:-2] for forward in self.forwards}) != 1:
            raise InvalidValue(
                f"{len(self)} forwards were recorded, of batches {[forward.shape[0] for forward in self][:8]}. "
                "Forwards of one batch were expected. Read them one by one."
            )
        return torch.cat([forward.at(features) for forward in self.forwards], -2)


@dataclass(frozen=True)
class TokenFeatures:
    """The strongest features of one token."""

    row: int
    """Row of the batch."""
    position: int
    """Column of the token in its row."""
    token: str
    """The token as text, or its id."""
    features: tuple[tuple[int, float, str], ...]
    """Feature, activation and label (empty where it has none), strongest first."""


class TopFeatures(Sequence[TokenFeatures]):
    """What fires where: one entry per real token, in order. Prints as a table."""

    def __init__(self, tokens: Sequence[TokenFeatures], sparse: SparseFeatures) -> None:
        self._tokens = tuple(tokens)
        self.sparse = sparse

    def __getitem__(self, index: Any) -> Any:
        return self._tokens[index]

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        width = max((len(t.token) for t in self._tokens), default=0)
        rows = sorted({t.row for t in self._tokens})
        lines = []
        for t in self._tokens:
            shown = "  ".join(f"{i} {value:.2f}{f' ({label})' if label else ''}" for i, value, label in t.features)
            place = f"{t.row}:{t.position}" if len(rows) > 1 else f"{t.position}"
            lines.append(f"{place:>5}  {t.token:<{width}}  {shown}".rstrip())
        return "\n".join(lines)


def top_features(
    dictionary: SparseCoder, codes: SparseFeatures, inputs: Mapping[str, Tensor], names: Sequence[Sequence[str]], k: int
) -> TopFeatures:
    """Return the ``k`` strongest features of each real token."""
    labels = getattr(dictionary, "labels", {})
    mask = inputs.get("attention_mask")
    found = []
    for row, texts in enumerate(names):
        for position, text in enumerate(texts):
            if mask is not None and not mask[row, position]:
                continue
            features, values = codes[row, position]
            strongest = [
                (i, value, labels[i].text if i in labels else "")
                for i, value in zip(features[:k].tolist(), values[:k].tolist(), strict=True)
            ]
            found.append(TokenFeatures(row, position, text, tuple(strongest)))
    return TopFeatures(found, codes)


def as_inputs(given: Any, model: nn.Module) -> dict[str, Any]:
    """Return what a user passed as a model's inputs: tensors with a batch dimension, on the model's device.

    Args: given: A BatchEncoding or mapping (of lists or tensors), or token ids.
    Raises: InvalidType: when it is neither; text needs a tokenizer.
    """
    if isinstance(given, Tensor) or (isinstance(given, list) and given and not isinstance(given[0], str)):
        given = {"input_ids": given}
    if not isinstance(given, Mapping) and not hasattr(given, "keys"):
        raise InvalidType(
            f"inputs is a {type(given).__name__}. What a tokenizer returns, or token ids, was expected. "
            "Pass tokenizer(text)."
        )
    device = next(model.parameters()).device
    named = {name: given[name] for name in given.keys()}  # noqa: SIM118 - a BatchEncoding iterates otherwise
    inputs = {name: torch.as_tensor(value) for name, value in named.items() if value is not None}
    for name, value in inputs.items():
        batched = value[None] if name in _PER_TOKEN and value.ndim == 1 else value
        inputs[name] = batched if device.type == "meta" else batched.to(device)
    return inputs


def token_names(given: object, inputs: Mapping[str, Tensor]) -> list[list[str]]:
    """Return each token as its tokenizer writes it, where ``given`` comes from one that tells; else its id."""
    ids = inputs.get("input_ids")
    if ids is None:
        return []
    encodings = getattr(given, "encodings", None)
    if encodings and len(encodings) == len(ids):
        return [[token.translate(_READABLE) for token in encoding.tokens] for encoding in encodings]
    return [[str(i) for i in row] for row in ids.tolist()]


def pad(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return token ids padded at the end, and their mask."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.as_tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def without(codes: SparseFeatures, padding: Tensor) -> SparseFeatures:
    """Return the codes with no feature firing on padding."""
    gone = padding.flatten()[codes.token_of_value()].view_as(codes.values)
    return replace(codes, values=codes.values.masked_fill(gone, 0))


def find_tokenizer(model: object) -> Any:
    """Return the tokenizer of the place that a model was loaded from.

    Raises: InvalidValue: when the model was not loaded from anywhere.
    """
    name = base_model_id(model)
    if name is None:
        raise InvalidValue("The model was not loaded from anywhere, so its tokenizer is unknown. Pass tokenizer=.")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(files("hfsae") / "default" / "files" if name == SHIPPED else name)
