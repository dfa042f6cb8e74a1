"""What is known of a feature, as the demo shows it: from the index where there is one, else from the dictionary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfsae.demo import render
from hfsae.demo.state import EditChoice, checked_text
from hfsae.dictionary import SAE

if TYPE_CHECKING:
    from hfsae.features import FeatureIndex


@dataclass(frozen=True)
class Cards:
    """Labels, maxima and cards of a dictionary's features."""

    dictionary: SAE
    index: "FeatureIndex | None" = None

    @property
    def count(self) -> int:
        """Number of features."""
        return self.dictionary.config.d_sae

    def maximum(self, feature: int) -> float:
        """The largest activation recorded; 1 where none was."""
        statistics = self.dictionary.statistics
        return float(statistics.max[feature]) or 1.0 if statistics is not None else 1.0

    def words(self, feature: int) -> str:
        """A few words on a feature: its label, or nothing."""
        label = self.dictionary.labels.get(feature)
        if label is not None:
            return label.text
        return self.index[feature].label if self.index is not None else ""

    def is_outside(self, edit: EditChoice) -> bool:
        """Whether the edit drives a feature beyond the largest activation recorded for it."""
        if edit.kind == "steer" and edit.unit == "max":
            return abs(edit.value) > 1
        return edit.kind == "set" and abs(edit.value) > self.maximum(edit.feature)

    def search(self, words: str, most: int = 24) -> list[tuple[int, str]]:
        """Features whose label, contexts or promoted tokens hold the words, best first."""
        wanted = checked_text("search", words, longest=200).casefold()
        labelled = [(i, label.text) for i, label in self.dictionary.labels.items() if wanted in label.text.casefold()]
        if self.index is None:
            return labelled[:most]
        known = {i for i, _ in labelled}
        found = [(card.feature, card.label) for card in self.index.search(words) if card.feature not in known]
        return (labelled + found)[:most]

    def html(self, feature: int) -> str:
        """The card of a feature."""
        if self.index is not None:
            return self.index[feature].to_html()
        statistics = self.dictionary.statistics
        rows = [("feature", str(feature)), ("label", self.words(feature) or "none")]
        if statistics is not None:
            rows += [
                ("fires on", f"{float(statistics.density[feature]):.3%} of {statistics.tokens:,} tokens"),
                ("maximum", f"{float(statistics.max[feature]):.3g}"),
            ]
        return f'<div class="hfsae-card">{render.table(rows)}</div>'
