"""What features do together, and what one of them does to the output: counts and runs of the model, no judge."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hfsae.attach import Attachment
from hfsae.data.tokens import TokenBatch
from hfsae.errors import InvalidValue
from hfsae.features.firings import Fired, firings, read
from hfsae.features.together import correlation
from hfsae.measuring.passes import at_rest
from hfsae.sae.sparse import FeatureList, feature_ids
from hfsae.sites import unwrap

_AFTER = 17


def cofiring(
    attachment: Attachment,
    data: object,
    features: FeatureList,
    *,
    most: int = 8,
    tokenizer: Any = None,
    **reading: Any,
) -> dict[int, list[tuple[int, float]]]:
    """Return for each of some features those that fire with it, with the correlation of the two firings, highest first.

    The correlation (phi) is 1 where both fire on the same tokens, 0 where they have nothing to do with each other.
    Memory is ``[features, d_sae]``.

    Args: reading: How data become batches: ``batch_size``, ``context``, ``max_tokens`` and so on.
    Raises: InvalidValue: when no token is encoded.
    """
    d_sae = attachment.dictionary.config.d_sae
    ids = feature_ids(features, d_sae)
    together, fires, tokens = torch.zeros(d_sae, len(ids), dtype=torch.float64), torch.zeros(d_sae), 0
    with at_rest(unwrap(attachment.model)):
        for batch, encoded, fired in firings(attachment, read(attachment, data, tokenizer, reading)):
            tokens += int(encoded.sum())
            fires += torch.bincount(fired.feature, minlength=d_sae)
            _add_pairs(together, batch, fired, ids)
    if not tokens:
        raise InvalidValue("No token was encoded: all are special or excluded. Give longer texts.")
    one, other = fires[ids, None].double(), fires[None].double()
    phi = correlation(together.T, one, other, tokens).float()
    phi[torch.arange(len(ids)), ids] = -torch.inf
    values, found = phi.topk(min(most, d_sae - 1), dim=1)
    return {
        feature: list(zip(found[row].tolist(), values[row].tolist(), strict=True))
        for row, feature in enumerate(ids.tolist())
    }


def _add_pairs(together: Tensor, batch: TokenBatch, fired: Fired, ids: Tensor) -> None:
    """Count, for every firing, which of the chosen features fire on the same token."""
    token = fired.row * batch.input_ids.shape[1] + fired.position
    here = torch.zeros(batch.input_ids.numel(), len(ids), dtype=torch.float64)
    for column, feature in enumerate(ids.tolist()):
        here[token[fired.feature == feature], column] = 1.0
    met = here[token].any(1)
    together.index_add_(0, fired.feature[met], here[token[met]])


@torch.no_grad()
def ablation_sparsity(
    attachment: Attachment,
    data: object,
    features: FeatureList,
    *,
    contexts: int = 32,
    tokenizer: Any = None,
    **reading: Any,
) -> dict[int, float]:
    """Return on how large a share of the logits the ablation of a feature acts: near 0 is few, 1 is all alike.

    In each context the feature is ablated where it fires first, and d is what that changes of the logits there and on
    the 16 tokens that follow, less the median over the vocabulary; (|d|_1 / |d|_2)^2 is how many logits take part, and
    is divided by how many there are. The mean over contexts is returned, NaN for a feature that fires in none.

    Args:
        contexts: Most rows of data looked at for each feature.
        reading: How data become batches: ``batch_size``, ``context``, ``max_tokens`` and so on.
    Source: Gao et al. 2024, arXiv:2406.04093, section 4.5.
    """
    ids = feature_ids(features, attachment.dictionary.config.d_sae).tolist()
    shares: dict[int, list[float]] = {feature: [] for feature in ids}
    model = unwrap(attachment.model)
    with at_rest(model):
        for batch, _, fired in firings(attachment, read(attachment, data, tokenizer, reading)):
            wanting = [feature for feature in ids if len(shares[feature]) < contexts]
            if not wanting:
                break
            found = {feature: _first(batch, fired, feature) for feature in wanting}
            for feature, first in found.items():
                rows = (first >= 0).nonzero()[: contexts - len(shares[feature]), 0]
                if len(rows):
                    shares[feature] += _shares(attachment, batch, feature, rows, first[rows])
    return {feature: float(torch.tensor(found).mean()) for feature, found in shares.items()}


def _first(batch: TokenBatch, fired: Fired, feature: int) -> Tensor:
    """The first position in each row where a feature fires; -1 where it does not."""
    length = batch.input_ids.shape[1]
    mine = fired.feature == feature
    first = torch.full((len(batch.input_ids),), length)
    first.scatter_reduce_(0, fired.row[mine], fired.position[mine], "amin")
    return first.masked_fill(first == length, -1)


def _shares(attachment: Attachment, batch: TokenBatch, feature: int, rows: Tensor, first: Tensor) -> Sequence[float]:
    """The share of logits that take part in the effect, in each of some rows."""
    model = unwrap(attachment.model)
    inputs = {name: value[rows] for name, value in batch.to(next(model.parameters()).device).model_inputs().items()}
    place = torch.arange(batch.input_ids.shape[1])
    clean = model(**inputs).logits
    with attachment.ablate(feature, positions=place == first[:, None]):
        change = (model(**inputs).logits - clean).float()
    shares = []
    for row, start in enumerate(first.tolist()):
        valid = batch.valid[rows[row]] & (place >= start) & (place < start + _AFTER)
        d = change[row, valid.to(change.device)]
        d = d - d.median(-1, keepdim=True).values
        shares.append(float((d.abs().sum() / d.norm().clamp(min=1e-30)) ** 2 / d.numel()))
    return shares
