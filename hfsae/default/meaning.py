"""Makes the feature index of a shipped dictionary, and the labels that follow from it.

1. Index the features over text that the dictionary learned from.
2. Test each feature's automatic label, a rule on tokens, on all held-back texts.
3. The rules that predict firing on both become labels, marked as automatic, beside those given by hand.
4. Keep what the card lists in ``eval.json``, and the index, trimmed to what the package has room for.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfsae.attach import attach
from hfsae.dictionary import SAE
from hfsae.features import FeatureCard, FeatureIndex, index_features, rule_f1
from hfsae.features.labelling import AUTOMATIC

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST_F1 = 0.7
"""A rule that predicts firing at least so well, on the indexed and on the held-back text, becomes a label."""
LEAST_FIRINGS = 100
"""On the held-back text; fewer prove little."""
_LISTED = 24
_CONTEXTS, _SAMPLES, _AROUND = 4, 2, (12, 5)


def make_index(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seen: Sequence[str],
    held: Sequence[str],
) -> None:
    """Write the index, the labels and the listed features of the dictionary in a folder.

    An interrupted pass goes on from where it was.

    Args:
        seen: Text to index, of the kind that the dictionary learned from.
        held: Text to test the labels on, which it did not learn from.
    """
    state = folder.with_name(f"{folder.name}.index")
    with attach(model, sae=SAE.from_pretrained(folder)) as attachment:
        whole = index_features(attachment, seen, tokenizer=tokenizer, folder=state)
        f1 = rule_f1(attachment, whole, held, tokenizer=tokenizer)
    measured = json.loads((folder / "eval.json").read_text())
    fires = torch.tensor(measured["density"]) * measured["tokens_spliced"]
    told = ((f1 >= LEAST_F1) & (fires >= LEAST_FIRINGS)).nonzero()[:, 0].tolist()
    told = [i for i in told if (rule := whole.rules[i]) is not None and rule.f1 >= LEAST_F1]
    labels = _labels(whole, told)
    _write_json(folder / "labels.json", labels)
    best = [i for i in sorted(told, key=lambda feature: -float(f1[feature])) if _names_a_word(whole, i)]
    listed = [*whole.labels, *(i for i in best if i not in whole.labels)][: len(whole.labels) + _LISTED]
    measured["automatic_labels"] = {
        "features": len(labels) - len(whole.labels),
        "least_f1": LEAST_F1,
        "least_firings": LEAST_FIRINGS,
    }
    measured["examples"] = [_example(whole[i], measured["density"][i], float(f1[i])) for i in listed]
    _write_json(folder / "eval.json", measured)
    small = whole.trimmed(contexts=_CONTEXTS, samples=_SAMPLES, around=_AROUND)
    small.save(folder / "index", packed=True)
    shutil.rmtree(state)


def _labels(index: FeatureIndex, told: Sequence[int]) -> dict[str, dict[str, str]]:
    """The labels given by hand, and those of the rules, for ``labels.json``."""
    labels = {i: (rule.text(index.vocabulary), AUTOMATIC) for i in told if (rule := index.rules[i]) is not None}
    return {str(i): {"text": text, "source": source} for i, (text, source) in sorted((labels | index.labels).items())}


def _names_a_word(index: FeatureIndex, feature: int) -> bool:
    """Whether its rule begins with a word, which says more to a reader of the card than a bracket does."""
    rule = index.rules[feature]
    return rule is not None and bool(re.fullmatch(r" ?[A-Za-z]{4,}", index.vocabulary[rule.tokens[0]]))


def _example(card: FeatureCard, density: float, f1: float) -> dict[str, Any]:
    """What the dictionary's card shows of a feature."""
    example = card.row() | {"density": density}
    return example | ({"held_out_f1": f1} if card.label_source == AUTOMATIC else {})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
