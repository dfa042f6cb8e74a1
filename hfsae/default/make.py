"""Makes everything that ships in ``hfsae/default/files``: ``python -m hfsae.default.make all --out DIR``.

1. ``texts`` packs the held-back files of this Python's library (3.11 for the shipped ones) with their hashes.
2. ``model`` trains tokenizer and language model, and measures bits per byte on the validation texts.
3. ``dictionaries`` trains the dictionaries on that model with `hfsae.train` and measures them with `hfsae.evaluate`.

Each step reads what the one before left in DIR; a model run that was interrupted goes on from its last checkpoint.
"""

import hashlib
import json
import lzma
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfsae.default import MODEL_NAME, SHIPPED_SPLITS
from hfsae.default.corpus import PACKAGES, library_root, library_texts, training_sources
from hfsae.default.language_model import (
    LanguageModelTrainer,
    Recipe,
    bits_per_byte,
    new_model,
    tokens_of,
    train_language_model,
    train_tokenizer,
)

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def make_texts(out: Path) -> None:
    """Write the held-back texts, their hashes, and the licence they come under."""
    texts = {split: library_texts(split) for split in SHIPPED_SPLITS}
    packed = json.dumps(texts, ensure_ascii=False, sort_keys=True).encode()
    (out / "texts.json.xz").write_bytes(lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME))
    hashes = {
        split: {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
        for split, files in texts.items()
    }
    _write_json(out / "texts.json", {"python": sys.version.split()[0], "licence": "PSF-2.0", "sha256": hashes})
    (out / "LICENSE-PSF.txt").write_bytes((library_root() / "LICENSE.txt").read_bytes())


def make_model(out: Path, recipe: Recipe | None = None) -> None:
    """Train the tokenizer and the language model and write both, in fp16, with what was measured."""
    recipe = recipe or Recipe()
    sources = training_sources()
    tokenizer = train_tokenizer(sources["library"] + sources["prose"], recipe)
    streams = {name: tokens_of(texts, tokenizer) for name, texts in sources.items()}
    model = new_model(recipe, tokenizer)
    trainer = LanguageModelTrainer(model, streams, recipe, tokenizer.bos_token_id)
    train_language_model(trainer, checkpoint=out / "training_state.pt", every=200)
    save_model(out, model, tokenizer, recipe)


def save_model(out: Path, model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerFast", recipe: Recipe) -> None:
    """Round the model to fp16, measure it as rounded, and write it as transformers reads it."""
    model = model.half()
    model.name_or_path = model.config._name_or_path = MODEL_NAME
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    texts = library_texts("validation").values()
    figures = {
        "bits_per_byte": bits_per_byte(model.float().eval(), tokenizer, texts),
        "validation_bytes": sum(len(text.encode()) for text in texts),
        "tokens_seen": recipe.steps * recipe.rows * recipe.context,
        "parameters": model.num_parameters(),
        "packages": PACKAGES,
    }
    _write_json(out / "model.json", figures)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
