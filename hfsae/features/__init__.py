"""What features mean: an index of what they fire on, cards, labels and a dashboard."""

from hfsae.features.card import Example, FeatureCard
from hfsae.features.index import FeatureIndex
from hfsae.features.indexing import index_features

__all__ = ["Example", "FeatureCard", "FeatureIndex", "index_features"]
