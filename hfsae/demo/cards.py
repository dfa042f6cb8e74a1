"""What is known of a feature, as the demo shows it: from the index where there is one, else from the weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hfsae.attach import Attachment
from hfsae.demo.state import EditChoice, checked_text
from hfsae.dictionary import SAE
from hfsae.features.attribution import logit_attribution
from hfsae.features.card import FeatureCard
from hfsae.sites import unwrap

if TYPE_CHECKING:
    from hfsae.features import FeatureIndex

_SHOWN = 8


@dataclass(frozen=True)
class Cards:
    """Labels, maxima and cards of a dictionary's features."""

    attachment: Attachment
    tokenizer: Any
    index: "FeatureIndex | None" = None

    @property
    def dictionary(self) -> SAE:
        """The dictionary, which the demo opened itself and so is a public one."""
        assert isinstance(self.attachment.dictionary, SAE)
        return self.attachment.dictionary

    @property
    def usual_unit(self) -> str:
        """The unit of strength that a new edit has."""
        return "max" if self.dictionary.statistics is not None else "activation"

    def maximum(self, feature: int) -> float | None:
        """The largest activation recorded; None where none was."""
        statistics = self.dictionary.statistics if self.dictionary.statistics is not None else self.index
        return float(statistics.max[feature]) or None if statistics is not None else None

    def words(self, feature: int) -> str:
        """A few words on a feature: its label, or nothing."""
        label = self.dictionary.labels.get(feature)
        if label is not None:
            return label.text
        return self.index[feature].label if self.index is not None else ""

    def plain_words(self, feature: int) -> str:
        """`words` without the marks of code."""
        return self.words(feature).replace("`", "")

    def warning(self, edit: EditChoice) -> str:
        """What is out of the ordinary about an edit: it drives a feature where the model never has; else nothing."""
        most = self.maximum(edit.feature)
        if edit.kind == "scale":
            return _scale_warning(edit.value)
        if most is None or edit.kind == "ablate":
            return ""
        if edit.kind == "clamp":
            return "the limit is above its largest activation: nothing changes" if edit.value >= most else ""
        share = edit.value * self.unit_sizes(edit.feature).get(edit.unit, 1.0) / most
        if share < 0 and edit.kind == "set":
            return "set below zero, where the feature never is"
        return f"{abs(share):.1f} × the largest activation recorded for it: unknown ground" if abs(share) > 1 else ""

    def unit_sizes(self, feature: int) -> dict[str, float]:
        """How much activation each unit of strength is; those that no statistics give are left out."""
        sizes, statistics, config = {"activation": 1.0}, self.dictionary.statistics, self.dictionary.config
        if statistics is not None:
            sizes["max"] = float(statistics.max[feature])
        if statistics is not None and (config.normalize != "layer_norm" or config.is_transcoder):
            norm = float(self.dictionary.directions([feature]).detach().norm())
            sizes["norm"] = statistics.mean_norm * (config.scale or 1.0) / norm
        return sizes

    def facts(self, feature: int) -> dict[str, Any]:
        """What the list of edits shows of a feature."""
        return {"label": self.plain_words(feature), "max": self.maximum(feature), "units": self.unit_sizes(feature)}

    def search(self, words: str, most: int = 24) -> list[tuple[int, str]]:
        """Features whose label, contexts or promoted tokens hold the words, best first; a number finds that feature."""
        wanted = checked_text("search", words, longest=200).strip().casefold()
        if wanted.isdecimal() and int(wanted) < self.dictionary.config.d_sae:
            return [(int(wanted), self.words(int(wanted)))]
        labelled = [(i, label.text) for i, label in self.dictionary.labels.items() if wanted in label.text.casefold()]
        if self.index is None:
            return labelled[:most]
        known = {i for i, _ in labelled}
        found = [(card.feature, card.label) for card in self.index.search(words.strip(), limit=most)]
        return (labelled + [row for row in found if row[0] not in known])[:most]

    def card(self, feature: int) -> FeatureCard:
        """The card of a feature; without an index, what its weights and statistics tell."""
        if self.index is not None:
            return self.index[feature]
        dictionary, label = self.dictionary, self.dictionary.labels.get(feature)
        statistics, density = dictionary.statistics, float("nan")
        if statistics is not None:
            density = float(statistics.density[feature])
        promoted, suppressed = self._effects(feature)
        return FeatureCard(
            feature=feature,
            label=label.text if label else "",
            label_source=label.source if label else "",
            f1=None,
            density=density,
            max=self.maximum(feature) or float("nan"),
            mean=float(statistics.mean[feature]) / density if statistics is not None and density else float("nan"),
            histogram=(),
            by_position=(),
            top=(),
            samples=(),
            promoted=promoted,
            suppressed=suppressed,
            neighbours=self._neighbours(feature),
        )

    @property
    def measured_on(self) -> str:
        """On what the figures of a card were measured, in words."""
        if self.index is not None:
            return f"on {self.index.tokens:,} tokens of the index"
        statistics = self.dictionary.statistics
        return f"on {statistics.tokens:,} tokens of its statistics" if statistics is not None else ""

    def _neighbours(self, feature: int) -> tuple[tuple[int, float], ...]:
        """The features whose decoder directions are nearest, with the cosine."""
        directions = self.dictionary.W_dec.detach().float()
        cosines = torch.cosine_similarity(directions, directions[feature, None])
        cosines[feature] = -torch.inf
        best = cosines.topk(min(_SHOWN, len(cosines) - 1))
        return tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _effects(self, feature: int) -> tuple[tuple[tuple[str, float], ...], ...]:
        """The tokens that the feature promotes and suppresses directly; nothing where the model has no unembedding."""
        effects = logit_attribution(unwrap(self.attachment.model), self.dictionary.W_dec[feature, None], _SHOWN)
        if effects is None:
            return (), ()
        up, raised, down, lowered = (part[0].tolist() for part in effects)
        return tuple(
            tuple((self.tokenizer.decode([i]), value) for i, value in zip(ids, values, strict=True))
            for ids, values in ((up, raised), (down, lowered))
        )


def _scale_warning(factor: float) -> str:
    if factor < 0:
        return "a factor below zero makes its activation negative, where it never is"
    return "a factor above 1 can exceed its largest activation" if factor > 1 else ""
