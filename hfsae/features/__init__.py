"""What features mean: an index of what they fire on, cards, labels, a dashboard, and measures that need no judge."""

from hfsae.features.card import Example, FeatureCard
from hfsae.features.delphi import save_delphi_cache
from hfsae.features.effects import ablation_sparsity, cofiring
from hfsae.features.index import FeatureIndex
from hfsae.features.indexing import index_features
from hfsae.features.label_files import load_labels, save_labels
from hfsae.features.measures import Contrast, compare, mask_f1, rule_f1, seed_stability
from hfsae.features.probing import Probe, sparse_probe

__all__ = [
    "Contrast",
    "Example",
    "FeatureCard",
    "FeatureIndex",
    "Probe",
    "ablation_sparsity",
    "cofiring",
    "compare",
    "index_features",
    "load_labels",
    "mask_f1",
    "rule_f1",
    "save_delphi_cache",
    "save_labels",
    "seed_stability",
    "sparse_probe",
]
