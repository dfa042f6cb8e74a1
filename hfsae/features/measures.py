"""Measures of meaning that need no judge: how well features match a mask, two sets of texts, or another dictionary.

Each is a count over tokens or a product of weights, so it is the same whoever runs it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hfsae.attaching.attachment import Attachment
from hfsae.errors import InvalidValue, Mismatch
from hfsae.features.firings import firings, read
from hfsae.features.index import FeatureIndex
from hfsae.features.labelling import Rule
from hfsae.measuring.passes import at_rest
from hfsae.sae.base import SparseCoder
from hfsae.sites import unwrap

TokenMask = Callable[[Int[Tensor, "batch seq"]], Bool[Tensor, "batch seq"]]


@dataclass(frozen=True)
class Contrast:
    """How differently one feature fires on two sets of texts."""

    feature: int
    """Its id."""
    rate_a: float
    """Fraction of tokens of the first on which it fires."""
    rate_b: float
    """Of the second."""
    effect: float
    """Difference of the rates in standard deviations of firing over both; above zero where the first has more."""


def matching_tokens(tokenizer: Any, pattern: str) -> TokenMask:
    r"""Return the mask of the tokens whose text matches a regular expression, such as ``r"\d"`` or ``r"^\s*def$"``."""
    compiled = re.compile(pattern)
    ids = [token for token in range(len(tokenizer)) if compiled.search(tokenizer.decode([token]))]
    return lambda input_ids: torch.isin(input_ids, torch.tensor(ids, dtype=input_ids.dtype))


def line_starts(tokenizer: Any) -> TokenMask:
    """Return the mask of the tokens that follow one which ends a line."""
    ends = matching_tokens(tokenizer, r"\n[ \t]*\Z")
    return lambda input_ids: torch.nn.functional.pad(ends(input_ids)[:, :-1], (1, 0))


def positions(first: int, last: int) -> TokenMask:
    """Return the mask of the tokens at positions ``first`` to ``last`` of their row, both included."""

    def mask(input_ids: Tensor) -> Tensor:
        at = torch.arange(input_ids.shape[1])
        return ((at >= first) & (at <= last)).expand_as(input_ids)

    return mask


def mask_f1(
    attachment: Attachment, data: object, mask: TokenMask, *, tokenizer: Any = None, **reading: Any
) -> Float[Tensor, "d_sae"]:
    """Return how well each feature's firing agrees with a mask: the F1 of "it fires" against "the mask holds".

    Args:
        mask: From token ids ``[batch, seq]`` to a bool of the same shape.
        reading: How data become batches: ``batch_size``, ``context``, ``max_tokens`` and so on.

    Raises: InvalidValue: when the mask holds nowhere.
    """
    d_sae = attachment.dictionary.config.d_sae
    hits, fires, holds = torch.zeros(d_sae), torch.zeros(d_sae), 0
    with at_rest(unwrap(attachment.model)):
        for batch, encoded, fired in firings(attachment, read(attachment, data, tokenizer, reading)):
            wanted = mask(batch.input_ids) & encoded
            holds += int(wanted.sum())
            fires += torch.bincount(fired.feature, minlength=d_sae)
            hits += torch.bincount(fired.feature[wanted[fired.row, fired.position]], minlength=d_sae)
    if not holds:
        raise InvalidValue("The mask holds on no token of these data. At least one was expected.")
    return 2 * hits / (fires + holds)


def rule_f1(
    attachment: Attachment, index: FeatureIndex, data: object, *, tokenizer: Any = None, **reading: Any
) -> Float[Tensor, "d_sae"]:
    """Return how well the automatic label of each feature predicts its firing on other text: the F1 of its rule.

    Raises: Mismatch: when the index is of another dictionary.
    """
    if index.dictionary != str(getattr(attachment.dictionary, "id", index.dictionary)):
        raise Mismatch(f"The index is of {index.dictionary!r}. One of the attached dictionary was expected.")
    d_sae = len(index)
    table = _table(index.rules, index.collected.vocabulary)
    hits, fires, said = torch.zeros(d_sae), torch.zeros(d_sae), torch.zeros(d_sae)
    with at_rest(unwrap(attachment.model)):
        for batch, encoded, fired in firings(attachment, read(attachment, data, tokenizer, reading)):
            before = torch.nn.functional.pad(batch.input_ids[:, :-1], (1, 0), value=-1)
            for kind, ids in (("on", batch.input_ids), ("after", before)):
                token = ids[encoded]
                counts = torch.bincount(token[token >= 0], minlength=index.collected.vocabulary).float()
                said += torch.mv(table[kind], counts)
                token = ids[fired.row, fired.position]
                right = (token >= 0) & table[kind][fired.feature, token.clamp(min=0)].bool()
                hits += torch.bincount(fired.feature[right], minlength=d_sae)
            fires += torch.bincount(fired.feature, minlength=d_sae)
    return 2 * hits / (fires + said).clamp(min=1)


def compare(
    attachment: Attachment, a: object, b: object, *, most: int = 20, tokenizer: Any = None, **reading: Any
) -> list[Contrast]:
    """Return the features that tell two texts, or two sets of texts, apart, by the size of the effect."""
    (first, count_a), (second, count_b) = (_rates(attachment, data, tokenizer, reading) for data in (a, b))
    both = (first * count_a + second * count_b) / (count_a + count_b)
    effect = (first - second) / (both * (1 - both)).clamp(min=1e-12).sqrt()
    order = effect.abs().argsort(descending=True)[:most].tolist()
    return [Contrast(i, float(first[i]), float(second[i]), float(effect[i])) for i in order if effect[i] != 0]


def seed_stability(one: SparseCoder, other: SparseCoder) -> Float[Tensor, "d_sae"]:
    """Return for each feature of one dictionary the highest cosine of its direction with any of another.

    Features that training finds again from another seed score near 1.

    Raises: Mismatch: when they write activations of different widths.
    """
    if one.config.d_write != other.config.d_write:
        raise Mismatch(
            f"The dictionaries write widths {one.config.d_write} and {other.config.d_write}. "
            "Those of equal width can be compared."
        )
    first, second = (torch.nn.functional.normalize(d.W_dec.detach().float(), dim=1) for d in (one, other))
    return torch.cat([(first[i : i + 256] @ second.T).amax(1) for i in range(0, len(first), 256)])


def _rates(attachment: Attachment, data: object, tokenizer: Any, reading: dict[str, Any]) -> tuple[Tensor, int]:
    d_sae = attachment.dictionary.config.d_sae
    fires, tokens = torch.zeros(d_sae, dtype=torch.float64), 0
    with at_rest(unwrap(attachment.model)):
        for _, encoded, fired in firings(attachment, read(attachment, data, tokenizer, reading)):
            fires += torch.bincount(fired.feature, minlength=d_sae)
            tokens += int(encoded.sum())
    if not tokens:
        raise InvalidValue("No token of these texts was encoded: all are special or excluded. Give longer texts.")
    return fires / tokens, tokens


def _table(rules: list[Rule | None], vocabulary: int) -> dict[str, Tensor]:
    """Return, for each kind of rule, which feature names which token, as a sparse-in-rows matrix of 0 and 1."""
    table = {kind: torch.zeros(len(rules), vocabulary) for kind in ("on", "after")}
    for feature, rule in enumerate(rules):
        if rule is not None:
            table[rule.kind][feature, list(rule.tokens)] = 1.0
    return table
