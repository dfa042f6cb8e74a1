"""Makes everything that ships in ``hfsae/default/files``: ``python -m hfsae.default.make all --out DIR``.

1. ``texts`` packs the held-back files of this Python's library (3.11 for the shipped ones) with their hashes.
2. ``model`` trains tokenizer and language model, and measures bits per byte on the validation texts.
3. ``dictionaries`` trains the dictionaries on that model with `hfsae.train` and measures them with `hfsae.evaluate`.
4. ``index`` finds what the features of one of them mean: its index, labels and examples.

Each step reads what the one before left in DIR; a model run that was interrupted goes on from its last checkpoint.
"""

import argparse
import hashlib
import json
import lzma
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from hfsae.attach import Attachment, attach
from hfsae.data.tokens import batches
from hfsae.default import SHIPPED_SPLITS, load_model
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
from hfsae.default.meaning import make_index
from hfsae.dictionary import SAE
from hfsae.evaluate import evaluate
from hfsae.formats import write_checkpoint
from hfsae.train import DataConfig, DeadConfig, TrainConfig, train

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


DICTIONARIES = {
    1: TrainConfig(
        d_sae=2048,
        k=16,
        tokens=2_500_000,
        # At the default rate, twice as high, a tenth of so few features ended up dead.
        learning_rate=8e-4,
        dead=DeadConfig(reseed_until=0.6),
        data=DataConfig(context=256),
    ),
    2: TrainConfig(d_sae=4096, k=16, tokens=6_000_000, data=DataConfig(context=256)),
}
"""How the dictionary after each block is trained; later blocks hold more than a small dictionary can say."""
STEERED = {2: (3707, 8.0)}
"""By layer: the labelled feature whose steering is tested, and the strength at which its cost is measured."""
INDEXED = 2
"""The layer whose dictionary ships with an index; the package has no room for two."""
_INDEXED_SHARE = 3
"""Every third of the documents that a dictionary learned from is indexed."""
_STEPS = ("texts", "model", "dictionaries", "index")


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
    state = out / "training_state.pt"
    train_language_model(trainer, checkpoint=state, every=200)
    save_model(out, model, tokenizer, recipe)
    state.unlink()


def save_model(out: Path, model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerFast", recipe: Recipe) -> None:
    """Write the model, rounded to fp16, as transformers reads it, and measure what it is when read again."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    measure_model(out, recipe)


def measure_model(out: Path, recipe: Recipe) -> None:
    """Write the bits per byte of a written model, on all validation texts and on each, with what it was made from."""
    model, tokenizer = load_model(out)
    texts = library_texts("validation")
    sizes = {path: len(text.encode()) for path, text in texts.items()}
    by_file = {path: bits_per_byte(model, tokenizer, [text]) for path, text in texts.items()}
    figures = {
        "bits_per_byte": sum(by_file[path] * size for path, size in sizes.items()) / sum(sizes.values()),
        "bits_per_byte_of": by_file,
        "validation_bytes": sum(sizes.values()),
        "parameters": model.num_parameters(),
        "tokens_seen": recipe.steps * recipe.rows * recipe.context,
        "licences_of_the_text": {"python library, tests, topics": "PSF-2.0", **PACKAGES},
    }
    _write_json(out / "model.json", figures)


def make_dictionary(out: Path, layer: int) -> Path:
    """Train the dictionary after one block of the model in ``out`` and return its folder; written in fp16."""
    model, tokenizer = load_model(out)
    sae = train(model, _learned(), tokenizer=tokenizer, layer=layer, config=DICTIONARIES[layer])
    checkpoint = sae.to_checkpoint()
    rounded = {name: tensor.half() for name, tensor in checkpoint.tensors.items()}
    folder = out / checkpoint.config.place
    if folder.exists():
        shutil.rmtree(folder)
    with TemporaryDirectory(dir=out) as aside:
        # Halves on disk, fp32 once loaded: the config's dtype is the one that it computes in.
        # By way of an empty folder, since the config.json of this one is the model's.
        write_checkpoint(replace(checkpoint, tensors=rounded), Path(aside) / "dictionary").rename(folder)
    return folder


def _learned() -> list[str]:
    """What the dictionaries learn from: the library and half of its tests."""
    sources = training_sources()
    return sources["library"] + sources["tests"][::2]


def _held_back() -> list[str]:
    return [text for split in SHIPPED_SPLITS for text in library_texts(split).values()]


def measure_dictionary(out: Path, folder: Path) -> None:
    """Evaluate a written dictionary on every held-back text and leave the figures beside it."""
    model, tokenizer = load_model(out)
    texts = [text for split in SHIPPED_SPLITS for text in library_texts(split).values()]
    attachment = attach(model, sae=SAE.from_pretrained(folder))
    held_out = "the Python standard library, held-out files"
    evaluate(attachment, texts, tokenizer=tokenizer, data_name=held_out).save(folder / "eval.json")
    layer = attachment.site.layer
    if layer in STEERED:
        measured = json.loads((folder / "eval.json").read_text())
        measured["steering"] = steering_cost(attachment, tokenizer, *STEERED[layer])
        _write_json(folder / "eval.json", measured)


@torch.no_grad()
def steering_cost(
    attachment: Attachment, tokenizer: "PreTrainedTokenizerFast", feature: int, strength: float
) -> dict[str, float]:
    """Return what steering a feature at every token costs: cross-entropy in nats per token, without and with it.

    On the first 9,000 characters of each validation file; the unit of the strength is the activation's own.
    """
    excerpts = [text[:9_000] for text in library_texts("validation").values()]
    sums, count = {"CE clean": 0.0, "CE steered": 0.0}, 0
    for batch in batches(excerpts, tokenizer=tokenizer, batch_size=16):
        scored = batch.valid[:, 1:] & batch.valid[:, :-1]
        count += int(scored.sum())
        for name, edit in (("CE clean", nullcontext()), ("CE steered", attachment.steer(feature, strength))):
            with edit:
                logits = attachment.model(**batch.model_inputs()).logits[:, :-1]
            losses = cross_entropy(logits[scored], batch.input_ids[:, 1:][scored], reduction="sum")
            sums[name] += float(losses)
    means = {name: total / count for name, total in sums.items()}
    return {"feature": feature, "strength": strength, **means, "tokens": count}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m hfsae.default.make", description="Make the default model anew.")
    parser.add_argument("what", choices=[*_STEPS, "all"], help="each needs those before it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; made when it is not there")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.what in ("texts", "all"):
        make_texts(chosen.out)
    if chosen.what in ("model", "all"):
        make_model(chosen.out)
    if chosen.what in ("dictionaries", "all"):
        for layer in DICTIONARIES:
            measure_dictionary(chosen.out, make_dictionary(chosen.out, layer))
    if chosen.what in ("index", "all"):
        folder = chosen.out / f"resid_post.layer_{INDEXED}"
        make_index(folder, *load_model(chosen.out), seen=_learned()[::_INDEXED_SHARE], held=_held_back())
    for path in chosen.out.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # safetensors writes 0600, which a package installed by root keeps from its users


if __name__ == "__main__":
    main()
