"""Automatic labels: the rule on tokens that best predicts when a feature fires.

A rule is a set of tokens, and fires a feature on them ("on"), or on what follows them ("after"). Tokens enter in the
order of how often the feature fires on them; the set with the highest F1 over all data wins. These are statistics of
text, not meaning: the label says that it is automatic, and its F1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

AUTOMATIC = "automatic"
"""Source of a label that follows from counts."""
_MOST_TOKENS = 32
_SHOWN = 4
_SURE = 0.5
_NONE = ""
_KINDS = (_NONE, "on", "after")


@dataclass(frozen=True)
class Rule:
    """Fires on some tokens, or after them."""

    kind: str
    """"on" or "after"."""
    tokens: tuple[int, ...]
    """Ids, those that most often fire the feature first."""
    f1: float
    """How well it predicted firing on the data of the index."""

    def text(self, vocabulary: list[str]) -> str:
        """Return the rule in words; tokens that differ in case or in spaces around them are named once.

        One that is wrong more often than right says "at times".
        """
        names: dict[str, str] = {}
        for token in self.tokens:
            name = _named(vocabulary[token])
            names.setdefault(name.casefold(), name)
        more = len(names) - _SHOWN
        told = f"{self.kind} {', '.join([*names.values()][:_SHOWN])}" + (f" and {more} more" if more > 0 else "")
        return told if self.f1 >= _SURE else f"at times {told}"


def _named(token: str) -> str:
    """A token as a label names it."""
    shown = token.strip()
    if not shown:
        return "line break" if "\n" in token else "space"
    return f"`{shown}`"


def best_rules(
    pairs: dict[str, tuple[Tensor, Tensor, Tensor]], token_counts: dict[str, Tensor], fires: Tensor
) -> list[Rule | None]:
    """Return the best rule for each feature; None for one that never fires.

    Args:
        pairs: For "on" and "after", (feature, token, count) of each pair, by feature.
        token_counts: For both, how often each token stood there.
        fires: How often each feature fired, ``[features]``.
    """
    found: list[Rule | None] = [None] * len(fires)
    for kind, (feature, token, count) in pairs.items():
        bounds = torch.searchsorted(feature, torch.arange(len(fires) + 1)).tolist()
        for i in fires.nonzero()[:, 0].tolist():
            mine = slice(bounds[i], bounds[i + 1])
            rule = _best_set(kind, token[mine], count[mine], token_counts[kind], int(fires[i]))
            other = found[i]
            if rule is not None and (other is None or rule.f1 > other.f1):
                found[i] = rule
    return found


def rules_to_tensors(rules: list[Rule | None]) -> dict[str, Tensor]:
    """Return rules as named tensors, for a file."""
    found = [rule or Rule(_NONE, (), 0.0) for rule in rules]
    return {
        "rules.kind": torch.tensor([_KINDS.index(rule.kind) for rule in found]),
        "rules.f1": torch.tensor([rule.f1 for rule in found]),
        "rules.sizes": torch.tensor([len(rule.tokens) for rule in found]),
        "rules.tokens": torch.tensor([token for rule in found for token in rule.tokens]).long(),
    }


def rules_from_tensors(tensors: dict[str, Tensor]) -> list[Rule | None]:
    """Build rules from their `rules_to_tensors`."""
    sets = tensors["rules.tokens"].split(tensors["rules.sizes"].tolist())  # type: ignore[no-untyped-call]
    kinds = [_KINDS[kind] for kind in tensors["rules.kind"].tolist()]
    f1s = tensors["rules.f1"].tolist()
    return [
        None if kind == _NONE else Rule(kind, tuple(tokens.tolist()), f1)
        for kind, tokens, f1 in zip(kinds, sets, f1s, strict=True)
    ]


def _best_set(kind: str, token: Tensor, count: Tensor, token_count: Tensor, fires: int) -> Rule | None:
    if not len(token):
        return None
    share = count.double() / token_count[token].clamp(min=1)
    order = share.argsort(descending=True, stable=True)
    # A token that was seen once proves nothing; ordering by share alone would fill the set with those.
    order = order[count[order] > max(1, fires // 500)][:_MOST_TOKENS] if int(count.max()) > 1 else order[:_MOST_TOKENS]
    hits, said = count[order].cumsum(0), token_count[token[order]].cumsum(0)
    f1 = 2 * hits.double() / (said + fires)
    if not len(f1):
        return None
    best = int(f1.argmax())
    return Rule(kind, tuple(token[order[: best + 1]].tolist()), float(f1[best]))
