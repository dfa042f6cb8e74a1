"""Sparse autoencoders as drop-in modules for HuggingFace models.

Public names are loaded on first use, so that ``import hfsae`` costs torch and nothing else.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import torch as _torch  # noqa: F401 - every public name needs it, so its cost is paid where it is seen

if TYPE_CHECKING:
    from hfsae import toy
    from hfsae.attach import Attachment, attach, attachments, detach_all
    from hfsae.attaching.edits import Edit, sweep
    from hfsae.baking import bake
    from hfsae.bundles import load_attached, load_edits, save_attached, save_edits
    from hfsae.check import check
    from hfsae.data.store import cache_activations
    from hfsae.default import default_texts, load_default
    from hfsae.dictionary import SAE
    from hfsae.errors import HfsaeError, HfsaeWarning
    from hfsae.evaluate import evaluate
    from hfsae.features import FeatureCard, FeatureIndex, index_features
    from hfsae.layer import SAELayer
    from hfsae.measuring.evaluation import Evaluation
    from hfsae.sae.config import SAEConfig
    from hfsae.sae.sparse import SparseFeatures
    from hfsae.sites import Site
    from hfsae.train import TrainConfig, Trainer, finetune, train

__version__ = "0.1.0"

__all__ = [
    "SAE",
    "Attachment",
    "Edit",
    "Evaluation",
    "FeatureCard",
    "FeatureIndex",
    "HfsaeError",
    "HfsaeWarning",
    "SAEConfig",
    "SAELayer",
    "Site",
    "SparseFeatures",
    "TrainConfig",
    "Trainer",
    "attach",
    "attachments",
    "bake",
    "cache_activations",
    "check",
    "default_texts",
    "detach_all",
    "evaluate",
    "finetune",
    "index_features",
    "load_attached",
    "load_default",
    "load_edits",
    "save_attached",
    "save_edits",
    "sweep",
    "toy",
    "train",
]

_HOMES = {
    "attach": (
        "Attachment",
        "attach",
        "attachments",
        "detach_all",
    ),
    "baking": ("bake",),
    "bundles": (
        "load_attached",
        "load_edits",
        "save_attached",
        "save_edits",
    ),
    "check": ("check",),
    "data.store": ("cache_activations",),
    "default": (
        "default_texts",
        "load_default",
    ),
    "dictionary": ("SAE",),
    "attaching.edits": (
        "Edit",
        "sweep",
    ),
    "errors": (
        "HfsaeError",
        "HfsaeWarning",
    ),
    "evaluate": ("evaluate",),
    "measuring.evaluation": ("Evaluation",),
    "features": (
        "FeatureCard",
        "FeatureIndex",
        "index_features",
    ),
    "layer": ("SAELayer",),
    "sae.config": ("SAEConfig",),
    "sae.sparse": ("SparseFeatures",),
    "sites": ("Site",),
    "train": (
        "TrainConfig",
        "Trainer",
        "finetune",
        "train",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """This package: a public name wins over a submodule of the same name (``attach``, ``evaluate``, ``train``)."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):  # importing a submodule sets it on its package
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name == "toy":
            return import_module("hfsae.toy")
        if name not in _HOME:
            raise AttributeError(f"module 'hfsae' has no attribute {name!r}")
        value: object = getattr(import_module(f"hfsae.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
