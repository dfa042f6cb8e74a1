"""`FeatureIndex`: what the features of a dictionary fire on, to look up, search, merge, keep and show."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.errors import CheckpointError, InvalidValue, Mismatch, OutOfRange, Unsupported
from hfsae.features.card import Example, FeatureCard, example_of
from hfsae.features.collecting import SAMPLE_RANGES, Collected, check_range, from_tensors, merged, to_tensors
from hfsae.features.contexts import Contexts
from hfsae.features.labelling import AUTOMATIC, Rule, best_rules, rules_from_tensors, rules_to_tensors
from hfsae.features.searching import pattern_of, score
from hfsae.features.storing import FACTS, located, read_index, write_index
from hfsae.features.trimming import trimmed_counts, trimmed_weights
from hfsae.formats import native
from hfsae.sae.base import SparseCoder

FORMAT_VERSION = 1
FOLDER = native.FEATURE_INDEX
"""Name of an index's folder beside the files of its dictionary."""
_SHOWN_TOKENS, _SHOWN_SAMPLES, _SHOWN_NEIGHBOURS = 8, 12, 5


@dataclass(frozen=True, eq=False, repr=False)
class FeatureIndex:
    """What the features of one dictionary fire on. Made by `index_features`; ``index[i]`` is the card of a feature."""

    dictionary: str
    """Id of the dictionary."""
    collected: Collected
    """Counts and contexts."""
    vocabulary: list[str]
    """The text of each token id."""
    weights: dict[str, Tensor]
    """What follows from weights alone: promoted and suppressed tokens, neighbours."""
    labels: dict[int, tuple[str, str]]
    """Labels that came with the dictionary and were not automatic, (text, source); they go before automatic ones."""
    fixed_rules: list[Rule | None] | None = None
    """The automatic labels of an index that was trimmed, whose counts are gone; None where they follow from counts."""

    def __len__(self) -> int:
        return self.collected.d_sae

    def __repr__(self) -> str:
        return f"FeatureIndex of {self.dictionary}: {len(self):,} features over {self.tokens:,} tokens"

    @property
    def tokens(self) -> int:
        """How many tokens were encoded."""
        return self.collected.tokens

    @property
    def density(self) -> Tensor:
        """Fraction of tokens on which each feature fires, ``[d_sae]``."""
        return (self.collected.count.double() / max(self.tokens, 1)).float()

    @property
    def max(self) -> Tensor:
        """Largest activation of each feature, ``[d_sae]``."""
        return self.collected.max

    @cached_property
    def rules(self) -> list[Rule | None]:
        """The automatic label of each feature, as a rule that can be tested on other text."""
        if self.fixed_rules is not None:
            return self.fixed_rules
        c = self.collected
        pairs = {"on": c.on_token.pairs(), "after": c.after_token.pairs()}
        return best_rules(pairs, {"on": c.token_count, "after": c.previous_count}, c.count)

    @cached_property
    def _top(self) -> tuple[Contexts, list[int]]:
        return _by_group(self.collected.top.best(), len(self))

    @cached_property
    def _samples(self) -> tuple[Contexts, list[int]]:
        return _by_group(self.collected.samples.best(), len(self), per_feature=SAMPLE_RANGES)

    @cached_property
    def _cofiring(self) -> dict[str, Tensor]:
        return self.weights if "cofiring_ids" in self.weights else cofiring_of(self.collected)

    def __getitem__(self, feature: int) -> FeatureCard:
        """Return the card of a feature.

        Raises: OutOfRange: when there is no such feature.
        """
        if isinstance(feature, bool) or not 0 <= feature < len(self):
            raise OutOfRange(f"Feature {feature!r} does not exist. This index has features 0 to {len(self) - 1}.")
        return _card(self, feature)

    def features_like(self, feature: int) -> list[tuple[int, float]]:
        """Return the features whose decoder directions are nearest, with the cosine."""
        return _partners(self.weights, "neighbour", feature)

    def fires_with(self, feature: int) -> list[tuple[int, float]]:
        """Return the features whose firing correlates most with its own, with the correlation (phi)."""
        return _partners(self._cofiring, "cofiring", feature)

    def search(self, words: str, *, regex: bool = False, limit: int = 50) -> list[FeatureCard]:
        """Return the cards of features whose label, contexts or promoted tokens hold the words, best first.

        Args:
            words: Looked for as they are, in any case; with ``regex``, a regular expression.

        Raises: InvalidValue: when there are no words, or no such regular expression.
        """
        pattern = pattern_of(words, regex)
        scores = []
        for feature in self.collected.count.nonzero()[:, 0].tolist():
            label, source, _ = _label(self, feature)
            promoted = [token for token, _ in _effect(self, "promoted", feature)]
            found = score(pattern, label, source == AUTOMATIC, promoted, _examples(self, self._top, feature))
            if found:
                scores.append((-found, feature))
        return [self[feature] for _, feature in sorted(scores)[:limit]]

    def examples(self, limit: int = 12) -> list[dict[str, Any]]:
        """Return what the card of a repository shows of some features: those with a label, then the best explained."""
        fits = {i: rule.f1 for i, rule in enumerate(self.rules) if rule is not None}
        chosen = [*self.labels, *(i for i in sorted(fits, key=lambda i: -fits[i]) if i not in self.labels)]
        return [self[i].row() for i in chosen[:limit]]

    def merge(self, other: "FeatureIndex") -> "FeatureIndex":
        """Return the index of the data of both, as one pass over them would have made it.

        Raises:
            Mismatch: when they are of different dictionaries.
            Unsupported: when one was trimmed.
        """
        if (self.dictionary, len(self)) != (other.dictionary, len(other)):
            raise Mismatch(
                f"The indexes are of {self.dictionary!r} and {other.dictionary!r}. "
                "Indexes of one dictionary can be merged."
            )
        for index in (self, other):
            check_whole(index)
        return replace(self, collected=merged(self.collected, other.collected))

    def trimmed(self, *, contexts: int = 4, samples: int = 2, around: tuple[int, int] = (12, 5)) -> "FeatureIndex":
        """Return a small index that shows the same cards: fewer and shorter contexts, labels fixed, numbers rounded.

        It can be searched and shown, but not merged or gone on with.

        Args:
            contexts: Strongest contexts kept of each feature.
            samples: Random contexts kept of each feature, from weak to strong.
            around: Tokens kept to the left and to the right of the one that fires.

        Raises: InvalidValue: when one of them is negative.
        """
        if min(contexts, samples, *around) < 0:
            raise InvalidValue(f"contexts={contexts}, samples={samples}, around={around}: none may be negative.")
        return replace(
            self,
            collected=trimmed_counts(self.collected, contexts, samples, around),
            weights=trimmed_weights(self.weights | self._cofiring, _SHOWN_TOKENS, _SHOWN_NEIGHBOURS),
            fixed_rules=[rule and replace(rule, f1=round(256 * rule.f1) / 256) for rule in self.rules],
        )

    def save(self, folder: str | Path, *, packed: bool = False) -> None:
        """Write the index into a folder of its own, whole or not at all.

        Beside a dictionary's files, in a folder named ``index``, `of` finds it.

        Args: packed: Compress it, which takes longer; with `trimmed`, a few hundred bytes a feature.
        """
        facts, tensors = _to_file(self)
        write_index(Path(folder), facts, tensors, packed=packed)

    @staticmethod
    def load(source: str | Path, **which: Any) -> "FeatureIndex":
        """Read an index that `save` wrote, or that was published with a dictionary.

        Args:
            source: Its folder, or the Hub id of the repository that holds the dictionary.
            which: Of a repository, which dictionary: ``layer``, ``site``, ``subfolder``, ``revision``, ``token``
                and what else `SAE.from_pretrained` takes for a repository.
        Raises: CheckpointError, CheckpointNotFound: when a file is missing or damaged, by name.
        """
        path = located(source, which)
        facts, tensors = read_index(path)
        version = facts.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path / FACTS}: format_version is {version!r}. {FORMAT_VERSION} was expected. Make it again."
            )
        try:
            return _from_file(facts, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise CheckpointError(f"{path}: the index is incomplete: {error}. Make it again.") from error

    @staticmethod
    def of(dictionary: SparseCoder) -> "FeatureIndex | None":
        """Return the index that lies beside the files a dictionary was loaded from; None where there is none.

        Raises:
            CheckpointError: when it is damaged.
            Mismatch: when it is of another dictionary.
        """
        source = getattr(dictionary, "folder", None)
        if source is None or not (source / FOLDER / FACTS).is_file():
            return None
        index, wanted = FeatureIndex.load(source / FOLDER), getattr(dictionary, "id", None)
        if index.dictionary != wanted:
            raise Mismatch(
                f"{source / FOLDER} is the index of {index.dictionary!r}, the dictionary is {wanted!r}. "
                "Make the index again."
            )
        return index

    def to_html(self, folder: str | Path, texts: Sequence[Any] = ()) -> Path:
        """Write a static dashboard that works from disk and offline, and return its page.

        Args: texts: From `Attachment.top_features`, to be read with their features.
        """
        from hfsae.features.dashboard import write_dashboard

        return write_dashboard(self, Path(folder), texts)


def check_whole(index: FeatureIndex) -> None:
    """Refuse an index that was trimmed.

    Raises: Unsupported: since its counts are gone.
    """
    if index.fixed_rules is not None:
        raise Unsupported(
            f"The index of {index.dictionary!r} was trimmed, and its counts are gone. It can be searched and shown. "
            "Use the index that it was trimmed from."
        )


def _card(index: FeatureIndex, feature: int) -> FeatureCard:
    label, source, f1 = _label(index, feature)
    fires = int(index.collected.count[feature])
    return FeatureCard(
        feature=feature,
        label=label,
        label_source=source,
        f1=f1,
        density=fires / max(index.tokens, 1),
        max=float(index.max[feature]),
        mean=float(index.collected.total[feature]) / fires if fires else 0.0,
        histogram=tuple(index.collected.histogram[feature].tolist()),
        by_position=tuple(index.collected.by_position[feature].tolist()),
        top=_examples(index, index._top, feature),
        samples=_examples(index, index._samples, feature)[:_SHOWN_SAMPLES],
        promoted=_effect(index, "promoted", feature),
        suppressed=_effect(index, "suppressed", feature),
        neighbours=tuple(index.features_like(feature)),
        cofiring=tuple(index.fires_with(feature)),
    )


def _examples(index: FeatureIndex, grouped: tuple[Contexts, list[int]], feature: int) -> tuple[Example, ...]:
    contexts, bounds = grouped
    mine = range(bounds[feature], bounds[feature + 1])
    return tuple(example_of(contexts.ids[i].tolist(), contexts.f[i].tolist(), index.vocabulary) for i in mine)


def _effect(index: FeatureIndex, kind: str, feature: int) -> tuple[tuple[str, float], ...]:
    if f"{kind}_ids" not in index.weights:
        return ()
    ids, values = (index.weights[f"{kind}_{name}"][feature, :_SHOWN_TOKENS].tolist() for name in ("ids", "values"))
    return tuple(
        (index.vocabulary[i], value) for i, value in zip(ids, values, strict=True) if i < len(index.vocabulary)
    )


def _label(index: FeatureIndex, feature: int) -> tuple[str, str, float | None]:
    """Text and source of a feature's label, and the F1 of its rule."""
    rule = index.rules[feature]
    f1 = None if rule is None else rule.f1
    if feature in index.labels:
        return (*index.labels[feature], f1)
    return ("", AUTOMATIC, None) if rule is None else (rule.text(index.vocabulary), AUTOMATIC, f1)


def cofiring_of(collected: Collected) -> dict[str, Tensor]:
    """Return which features fire together, as an index keeps it."""
    ids, values = collected.together.nearest(_SHOWN_NEIGHBOURS)
    return {"cofiring_ids": ids, "cofiring_values": values}


def _partners(known: dict[str, Tensor], kind: str, feature: int) -> list[tuple[int, float]]:
    """The ids and values that are known of a feature; -1 stands for none."""
    if f"{kind}_ids" not in known:
        return []
    ids, values = (known[f"{kind}_{name}"][feature, :_SHOWN_NEIGHBOURS].tolist() for name in ("ids", "values"))
    return [(i, value) for i, value in zip(ids, values, strict=True) if i >= 0]


def _to_file(index: FeatureIndex) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = {
        "format_version": FORMAT_VERSION,
        "dictionary": index.dictionary,
        "d_sae": len(index),
        "contexts": index.collected.contexts,
        "tokens": index.tokens,
        "rows": index.collected.rows,
        "trimmed": index.fixed_rules is not None,
        "labels": {str(i): list(label) for i, label in index.labels.items()},
    }
    tensors = to_tensors(index.collected) | {f"weights.{name}": tensor for name, tensor in index.weights.items()}
    tensors["vocabulary"] = torch.tensor(list(json.dumps(index.vocabulary).encode()), dtype=torch.uint8)
    return facts, tensors | ({} if index.fixed_rules is None else rules_to_tensors(index.fixed_rules))


def _from_file(facts: dict[str, Any], tensors: dict[str, Tensor]) -> FeatureIndex:
    vocabulary = json.loads(bytes(tensors["vocabulary"].tolist()))
    collected = from_tensors(facts, tensors)
    if len(vocabulary) != collected.vocabulary or not all(isinstance(token, str) for token in vocabulary):
        raise ValueError(f"its vocabulary is not {collected.vocabulary} texts")
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    for name, tensor in weights.items():
        if tensor.dim() != 2 or len(tensor) != len(collected.count):
            raise ValueError(f"weights.{name} is {list(tensor.shape)}, not [{len(collected.count)}, ...]")
    if facts["trimmed"]:
        check_range("rules.tokens", tensors["rules.tokens"], 0, len(vocabulary))
    return FeatureIndex(
        dictionary=str(facts["dictionary"]),
        collected=collected,
        vocabulary=vocabulary,
        weights=weights,
        labels={int(i): (str(text), str(source)) for i, (text, source) in facts["labels"].items()},
        fixed_rules=rules_from_tensors(tensors) if facts["trimmed"] else None,
    )


def _by_group(contexts: Contexts, features: int, per_feature: int = 1) -> tuple[Contexts, list[int]]:
    """Return contexts with where those of each feature begin."""
    bounds = torch.searchsorted(contexts.group, torch.arange(features + 1) * per_feature).tolist()
    return contexts, bounds
