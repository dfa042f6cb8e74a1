"""k-sparse probing: how well a few features tell labelled texts apart.

1. Each text becomes one row: the mean activation of every feature over its tokens.
2. On the training share of the texts, the k features whose means differ most between the two labels are chosen.
3. A logistic regression on those k is fitted there, and scored on the other texts.

Source: Gurnee et al. 2023, arXiv:2305.01610; as in SAEBench, the choice is by difference of means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfsae.attach import Attachment
from hfsae.errors import InvalidValue
from hfsae.features.firings import firings, read
from hfsae.measuring.passes import at_rest
from hfsae.sites import unwrap

_STEPS, _DECAY = 100, 1e-3


@dataclass(frozen=True)
class Probe:
    """How well k features predict a label."""

    features: tuple[int, ...]
    """Which ones, the most telling first."""
    accuracy: float
    """Share of the held-out texts that they label rightly."""
    majority: float
    """Share that the commoner label of the training texts would get right: what to compare with."""


def sparse_probe(  # noqa: PLR0913
    attachment: Attachment,
    texts: Sequence[Any],
    labels: Sequence[bool],
    *,
    k: int = 1,
    held_out: float = 0.25,
    seed: int = 0,
    tokenizer: Any = None,
) -> Probe:
    """Return how well the k most telling features predict a yes-or-no label of texts, on texts held out.

    Args:
        texts: Any texts, or rows of token ids; each is read up to the model's context.
        labels: One for each.
        held_out: Share of the texts of each label that is scored and not learned from.
        seed: Which ones.

    Raises: InvalidValue: when labels and texts differ in number, a label is too rare, or k is out of range.
    """
    d_sae = attachment.dictionary.config.d_sae
    wanted = torch.tensor([bool(label) for label in labels])
    if len(texts) != len(wanted) or not 0 < held_out < 1:
        raise InvalidValue(
            f"{len(texts)} texts, {len(wanted)} labels and held_out={held_out}. One label for each text, and a share "
            "between 0 and 1 were expected."
        )
    if not 1 <= k <= d_sae:
        raise InvalidValue(f"k={k} is out of range. 1 to d_sae={d_sae} features can be chosen.")
    train = _training_share(wanted, held_out, seed)
    rows = _means(attachment, texts, tokenizer)
    apart = rows[train & wanted].mean(0) - rows[train & ~wanted].mean(0)
    chosen = apart.abs().topk(k).indices
    said = _fitted(rows[:, chosen], wanted, train)
    common = bool(2 * int(wanted[train].sum()) >= int(train.sum()))
    return Probe(
        features=tuple(chosen.tolist()),
        accuracy=float((said == wanted)[~train].float().mean()),
        majority=float((wanted == common)[~train].float().mean()),
    )


def _training_share(wanted: Tensor, held_out: float, seed: int) -> Tensor:
    """A mask of the texts to learn from, the same share of each label."""
    generator = torch.Generator().manual_seed(seed)
    train = torch.zeros_like(wanted)
    for label in (True, False):
        mine = (wanted == label).nonzero()[:, 0]
        held = max(1, round(held_out * len(mine)))
        if len(mine) <= held:
            raise InvalidValue(f"{len(mine)} texts are labelled {label}. Two or more were expected. Give more texts.")
        train[mine[torch.randperm(len(mine), generator=generator)[held:]]] = True
    return train


def _means(attachment: Attachment, texts: Sequence[Any], tokenizer: Any) -> Tensor:
    """The mean activation of each feature over each text's tokens, ``[texts, d_sae]``."""
    sums: list[Tensor] = []
    model = unwrap(attachment.model)
    with at_rest(model):
        for text in texts:
            total, tokens = torch.zeros(attachment.dictionary.config.d_sae), 0
            for _, encoded, fired in firings(attachment, read(attachment, [text], tokenizer, {"batch_size": 1})):
                total.index_add_(0, fired.feature, fired.value)
                tokens += int(encoded.sum())
            sums.append(total / max(tokens, 1))
    return torch.stack(sums)


def _fitted(rows: Tensor, wanted: Tensor, train: Tensor) -> Tensor:
    """What a logistic regression, fitted on the training rows, says of every row."""
    scale = rows[train].std(0).clamp(min=1e-6)
    x = ((rows - rows[train].mean(0)) / scale).double()
    weight = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = x[train] @ weight[1:] + weight[0]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted[train].double())
        value = value + _DECAY * weight[1:].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (x @ weight[1:] + weight[0]).detach() > 0
